"""The binary files of CIFAR-10 and CIFAR-100, mapped into memory. The pickled ("python") ones are refused."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from kiln.data.formats.arrays import Mapped, Part, label_texts, opened
from kiln.data.formats.opening import Opened, Request, Stamp, damaged
from kiln.errors import DataError, SecurityError

BINARY = re.compile(r"(data_batch_\d|test_batch|train|test)\.bin$")
PICKLED = re.compile(r"(data_batch_\d|test_batch|batches\.meta)$")
_CIFAR10, _CIFAR100 = 1 + 3072, 2 + 3072


class _Field:
    """The images of records that begin with labels; the map is shared, and nothing is copied but one image."""

    def __init__(self, records: Mapped) -> None:
        self.records = records
        self.shape = (records.shape[0], 3, 32, 32)
        self.dtype = np.dtype(np.uint8)

    def __getitem__(self, row: int) -> np.ndarray:
        return self.records[row]["image"]


def open_files(request: Request) -> Opened:
    """Open `data_batch_1.bin`, ..., `test_batch.bin` (CIFAR-10), or `train.bin` and `test.bin` (CIFAR-100, fine labels).

    Raises: DataError: a size that is no number of records. SecurityError: the pickled version.
    """
    request.refuse_columns()
    binary = [path for path in request.paths if BINARY.search(path)]
    if not binary:
        raise SecurityError(
            "E702",
            f"{request.where} holds CIFAR's pickled files, and loading a pickle can run any code",
            expected="the binary version: data_batch_1.bin, ..., test_batch.bin",
            hint="fetch cifar-10-binary.tar.gz; or, if you trust the files, give "
            "{'train': torchvision.datasets.CIFAR10(root), 'test': torchvision.datasets.CIFAR10(root, train=False)}",
        )
    names = _names(Path(binary[0]).parent)
    parts = []
    for path in binary:
        size = Stamp.of(path).size
        lead = 1 if size % _CIFAR10 == 0 and re.search(r"batch", os.path.basename(path)) else 2
        if size == 0 or size % (lead + 3072):
            raise damaged(path, f"{size:,} bytes are no whole number of records of {lead + 3072:,} bytes")
        record = np.dtype([("labels", np.uint8, (lead,)), ("image", np.uint8, (3, 32, 32))])
        records = Mapped(path, record, (size // record.itemsize,), offset=0)
        values = np.asarray(records.array["labels"][:, -1])  # CIFAR-100: coarse, then fine
        if names and int(values.max()) >= len(names):
            raise DataError("E209", f"a label is {int(values.max())}, but there are {len(names)} names", where=path)
        split = "test" if "test" in os.path.basename(path) else "train"
        texts = label_texts(values, names, path) if request.labelled else None
        parts.append(Part(_Field(records), texts, split, Stamp.of(path).identity, path))
    return opened(parts, class_names=names, labelled=request.labelled)


def _names(folder: Path) -> tuple[str, ...] | None:
    for name in ("batches.meta.txt", "fine_label_names.txt"):
        if (folder / name).is_file():
            lines = (folder / name).read_text("utf-8", errors="replace").splitlines()
            return tuple(line.strip() for line in lines if line.strip())
    return None
