"""HDF5: stacks of arrays with labels, encoded images of variable length, or a copy written by Kiln.

The HDF5 library takes one lock for the whole process, so threads read chunked or compressed data in turn. What lies in
the file in one piece (no chunks, no compression) is mapped or read at its offset instead, without the library; copies of
Kiln's own always do. Links to other files are never followed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kiln import pixels
from kiln.data.formats import arrays, packed
from kiln.data.formats.opening import (
    Opened,
    Plan,
    Record,
    Request,
    Stamp,
    damaged,
    facts_of,
    imported,
    parsed_json,
    samples_of,
    splits_of,
    unlabelled,
)
from kiln.data.reader import header_of
from kiln.data.samples import Samples
from kiln.data.storage import Entry
from kiln.errors import DataError

KIND, VERSION = "kiln.hdf5", 1
LIBRARY_ERRORS = (OSError, RuntimeError, KeyError, TypeError, ValueError)
"""What h5py raises on a damaged file."""


def open_files(request: Request) -> Opened:
    """Open HDF5 files; several are told apart by the split in their names.

    Raises: DataError: damaged, or no name tells what the data sets are. MissingExtraError: no library.
    """
    with _opened_file(request.paths[0]) as file:
        try:
            about = file.attrs.get("kiln")
        except LIBRARY_ERRORS as error:
            raise damaged(request.paths[0], str(error)) from error
        if about is not None:
            request.refuse_columns()
            return _own(file, parsed_json(about, request.paths[0]), request)
    found: dict[str, Any] = {}
    for path, split in zip(request.paths, splits_of(request.paths, request.where), strict=True):
        prefix = f"{split}/" if split and len(request.paths) > 1 else ""
        found |= {prefix + name: values for name, values in _datasets(path).items()}
    identity = " ".join(Stamp.of(path).identity for path in request.paths)
    parts, class_names = arrays.parts_among(found, request, identity=identity)
    chunked = [part.where for part in parts if isinstance(part.images, Dataset)]
    notes = [f"{where} is read in chunks, by one thread at a time; kiln pack makes it faster" for where in chunked]
    if any(isinstance(part.images, Dataset) and part.images.is_encoded for part in parts):
        return _encoded(parts, class_names, notes, request)
    return arrays.opened(parts, class_names=class_names, notes=notes, labelled=request.labelled)


def _opened_file(path: str) -> Any:
    library = imported("h5py", "HDF5")
    try:
        return library.File(path, "r", locking="best-effort")
    except OSError as error:
        raise damaged(path, str(error)) from error


def _datasets(path: str) -> dict[str, Any]:
    """The data sets of a file by name; those in one piece mapped."""
    library = imported("h5py", "HDF5")
    found: dict[str, Any] = {}

    def visit(name: Any, item: Any) -> None:
        if not isinstance(item, library.Dataset):
            return
        if not isinstance(name, str):
            raise ValueError(f"{name!r} is no text")
        if item.is_virtual or item.external:
            raise DataError("E207", f"{name!r} in {path} refers to other files", hint="repack it: h5repack, or h5py")
        offset = item.id.get_offset()
        if offset is not None and item.chunks is None and not item.dtype.hasobject:
            found[name] = arrays.Mapped(path, item.dtype, item.shape, offset=offset)
        else:
            found[name] = Dataset(path, name, item)

    try:
        with _opened_file(path) as file:
            file.visititems(visit)
    except LIBRARY_ERRORS as error:
        raise damaged(path, str(error)) from error
    return found


class Dataset:
    """A data set in chunks or of variable length, read through the library; opened once per process."""

    def __init__(self, path: str, name: str, item: Any) -> None:
        library = imported("h5py", "HDF5")
        self.path, self.name, self.shape, self.dtype = path, name, item.shape, item.dtype
        self.is_encoded = library.check_vlen_dtype(item.dtype) is not None and item.ndim == 1
        self.stamp = Stamp.of(path)
        self._closed()

    def _closed(self) -> None:
        self._pid, self._item = -1, None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_pid", "_item", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.stamp.check(self.path)
        self._closed()

    @property
    def id(self) -> int:
        """Says to `numpy`-like readers that the whole is had by `[()]`."""
        return 0

    def __getitem__(self, row: Any) -> Any:
        if self._pid != os.getpid():
            with self._lock:
                # A forked child keeps what it inherited, unused: it is the parent's to close.
                try:
                    self._inherited, self._item = self._item, _opened_file(self.path)[self.name]
                except LIBRARY_ERRORS as error:
                    raise damaged(self.path, str(error)) from error
                self._pid = os.getpid()
        try:
            return self._item[row]  # type: ignore[index]
        except LIBRARY_ERRORS as error:
            why = str(error).splitlines()[0]
            raise DataError("E202", f"cannot read {row} of {self.name!r}: {why}", where=self.path) from error


def _encoded(
    parts: Sequence[arrays.Part], class_names: tuple[str, ...] | None, notes: Sequence[str], request: Request
) -> Opened:
    """Images as files of variable length."""
    keys, names, labels, splits, entries = [], [], [], [], []
    several = len({part.split for part in parts}) > 1
    for number, part in enumerate(parts):
        length = part.images.shape[0]
        if part.labels is not None and len(part.labels) != length:
            raise DataError("E209", f"{length:,} images, but {len(part.labels):,} labels", where=part.where)
        if request.labelled and part.labels is None:
            raise arrays.without_labels(part.where)
        prefix = f"{part.split or 'data'}/" if several else ""
        keys += [f"{prefix}{row:09d}" for row in range(length)]
        names += [(number, row) for row in range(length)]
        labels += part.labels or ()
        splits += [part.split] * length
        entries += [Entry(0, part.identity)] * length
    samples = Samples(
        keys=keys,
        names=names,
        entries=entries,
        labels=labels if request.labelled else None,
        splits=splits if any(splits) else None,
        class_names=class_names,
        unlabelled=unlabelled(labels if request.labelled else None, keys),
        notes=tuple(notes),
    )
    return Opened(samples, EncodedReader([part.images for part in parts]))


class EncodedReader:
    """Reads encoded images by (number of the data set, row)."""

    has_headers = True

    def __init__(self, datasets: Sequence[Any]) -> None:
        self._datasets = datasets

    def read(self, name: tuple[int, int]) -> bytes:
        """The bytes of an image file. Raises DataError: they cannot be read."""
        value = self._datasets[name[0]][name[1]]
        return value if isinstance(value, bytes) else np.asarray(value, np.uint8).tobytes()

    def header(self, name: tuple[int, int], max_pixels: int) -> pixels.Header:
        """Size and mode. Raises: PixelError: no image. DataError: it cannot be read."""
        return header_of(self.read(name), max_pixels)


def _own(file: Any, about: Any, request: Request) -> Opened:
    path = request.paths[0]
    facts = facts_of(about, path, kind=KIND, version=VERSION)
    try:
        index, data = _in_one_piece(file["index"], path), _in_one_piece(file["data"], path)
        text, base, total = index[()].tobytes(), data.id.get_offset() or 0, data.shape[0]
    except LIBRARY_ERRORS as error:
        raise damaged(path, str(error)) from error
    if hashlib.sha256(text).hexdigest() != about.get("index_sha256"):
        raise damaged(path, "the checksum of its index is wrong")
    rows = list(packed.parse_rows(text.decode("utf-8"), facts, path))
    if sum(row.size for row in rows) != total or base + total > os.path.getsize(path):
        raise damaged(path, f"{total:,} bytes of data are not what its index lists")
    reader = packed.BlobReader(path, has_headers=not any(row.shape for row in rows))
    return Opened(samples_of(rows, packed.blob_names(rows, base), facts, request), reader)


def _in_one_piece(values: Any, path: str) -> Any:
    """Bytes that lie in this file as they are, so that the file bounds them: a header that lies may say any length."""
    plain = values.chunks is None and not values.external and not values.is_virtual and values.dtype == np.uint8
    if not plain or values.ndim != 1 or values.shape[0] > os.path.getsize(path):
        raise damaged(path, f"{values.name} of shape {values.shape}")
    return values


class Writer:
    """Collects samples as a packed copy, which can be gone on with, and writes the HDF5 file from it at the end.

    A killed process leaves an HDF5 file that may be unreadable, so it is written in one go. Needs twice the room meanwhile.

    Args:
        place: the file.
        plan: of the copy.
    """

    def __init__(self, place: Path, plan: Plan) -> None:
        imported("h5py", "HDF5")
        self._place = place
        self._collected = place.with_name("collected")
        self._inner = packed.Writer(self._collected, plan)

    def pending(self) -> list[list[int]]:
        """Samples that are not collected yet."""
        return self._inner.pending()

    def write(self, indices: Sequence[int], records: Iterator[Record]) -> None:
        """Collect samples."""
        self._inner.write(indices, records)

    def finish(self) -> None:
        """Write the file: the index through the library, the bytes at the offset that it gave them."""
        library = imported("h5py", "HDF5")
        self._inner.finish()
        rows, facts = packed.read_index(self._collected)
        index = (self._collected / packed.INDEX).read_bytes()
        staged = self._place.with_name("unfinished.h5")
        total = sum(row.size for row in rows)
        with library.File(staged, "w") as file:
            about = {"kind": KIND, "version": VERSION, "samples": len(rows), "facts": facts.to_dict()}
            about["index_sha256"] = hashlib.sha256(index).hexdigest()
            file.attrs["kiln"] = json.dumps(about, ensure_ascii=False)
            file["index"] = np.frombuffer(index, np.uint8)
            # For other readers, which need not take the index apart: image i is data[offset[i] : offset[i] + size[i]].
            file["offset"] = np.array([name[0] for name in packed.blob_names(rows)], np.int64)
            file["size"] = np.array([row.size for row in rows], np.int64)
            properties = library.h5p.create(library.h5p.DATASET_CREATE)
            properties.set_obj_track_times(False)  # the same samples make the same file
            properties.set_layout(library.h5d.CONTIGUOUS)
            properties.set_alloc_time(library.h5d.ALLOC_TIME_EARLY)
            properties.set_fill_time(library.h5d.FILL_TIME_NEVER)
            space = library.h5s.create_simple((total,))
            data = library.h5d.create(file.id, b"data", library.h5t.NATIVE_UINT8, space, properties)
            offset = data.get_offset()
        with (self._collected / packed.DATA).open("rb") as collected, staged.open("r+b") as file:
            file.seek(offset or 0)
            shutil.copyfileobj(collected, file, 16 << 20)
            file.flush()
            os.fsync(file.fileno())
        staged.replace(self._place)
