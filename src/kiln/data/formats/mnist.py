"""The IDX files of MNIST and its relatives: `train-images-idx3-ubyte` and `train-labels-idx1-ubyte`, plain or `.gz`."""

from __future__ import annotations

import gzip
import os
import re
import struct
import zlib
from typing import Any

import numpy as np

from kiln.data.archive import MAX_RATIO, RATIO_MATTERS_BYTES
from kiln.data.formats.arrays import Mapped, Part, label_texts, opened
from kiln.data.formats.opening import Opened, Request, Stamp, damaged, split_in
from kiln.errors import DataError

NAME = re.compile(r"idx\d-ubyte(\.gz)?$")


def open_files(request: Request) -> Opened:
    """Pair the files of images with those of labels; `t10k` is the test split.

    Raises: DataError: damaged, shorter than they say, or without labels.
    """
    request.refuse_columns()
    notes: list[str] = []
    parts = []
    # The same file may lie there packed and unpacked.
    paths = {path.removesuffix(".gz"): path for path in sorted(request.paths, reverse=True)}
    for plain, path in sorted(paths.items()):
        folder, name = os.path.split(plain)
        if "images" not in name:
            continue
        labels_path = paths.get(os.path.join(folder, name.replace("images", "labels").replace("idx3", "idx1")))
        if labels_path is None and request.labelled:
            labels_path = _beside(path)
        labels = None
        if labels_path is not None and request.labelled:
            values = _array(labels_path, notes)
            labels = label_texts(values.array if isinstance(values, Mapped) else values, None, labels_path)
        split = "test" if name.startswith("t10k") else split_in(name)
        parts.append(Part(_array(path, notes), labels, split, Stamp.of(path).identity, path))
    if not parts:
        raise DataError("E201", f"no images in {request.where}", expected="train-images-idx3-ubyte or the like")
    return opened(parts, notes=notes, labelled=request.labelled)


def _beside(path: str) -> str | None:
    folder, name = os.path.split(path)
    name = name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    found = [os.path.join(folder, name + ending) for ending in ("", ".gz")]
    return next((candidate for candidate in found if os.path.isfile(candidate)), None)


def _array(path: str, notes: list[str]) -> Any:
    """The array of a file: mapped, or unpacked into memory."""
    is_packed = path.lower().endswith(".gz")
    try:
        with gzip.open(path) if is_packed else open(path, "rb") as file:
            shape, offset = _header(file.read(4), file, path)
            if not is_packed:
                return Mapped(path, np.dtype(np.uint8), shape, offset=offset)
            size = 1
            for length in shape:
                size *= length
            if size > max(MAX_RATIO * os.path.getsize(path), RATIO_MATTERS_BYTES):
                raise damaged(path, f"it says that it unpacks to {size:,} bytes")
            data = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise damaged(path, str(error)) from error
    if len(data) != size:
        raise damaged(path, f"not the {size:,} bytes that its header says")
    notes.append(f"{os.path.basename(path)} is compressed, so {size / 1e6:,.0f} MB are held in memory")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _header(magic: bytes, file: Any, path: str) -> tuple[tuple[int, ...], int]:
    if len(magic) < 4 or magic[:3] != b"\0\0\x08" or magic[3] not in (1, 2, 3, 4):
        raise damaged(path, "it does not begin as IDX files of bytes do (00 00 08)")
    lengths = file.read(4 * magic[3])
    if len(lengths) < 4 * magic[3]:
        raise damaged(path, "it ends inside its header")
    return struct.unpack(f">{magic[3]}I", lengths), 4 + 4 * magic[3]
