"""Where a store's entries are written: a data file and an index of fixed-size records, or plain memory."""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kiln.data import room

KIND, VERSION = "kiln.cache", 2
_DATA, _INDEX = "data.bin", "index.bin"
_MOST_PARTS = 512  # the system takes 1,024 at once

RECORD = np.dtype(
    [
        ("entry", "<u8"),
        ("offset", "<u8"),
        ("size", "<u4"),
        ("shape", "<u4", 3),  # (0, 0, 0): the entry is bytes, not an image
        ("crc", "<u4"),
        ("check", "<u4"),  # of the fields before it
    ]
)
BYTES_PER_RECORD = RECORD.itemsize
META_BYTES = 4096
_FACTORS = np.array([0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1] * 2, np.uint32)[:9]


def check_of(records: NDArray[np.void]) -> NDArray[np.uint32]:
    """(N,) a checksum of each record; that of a record of zeros is not zero."""
    words = np.ascontiguousarray(records).view("<u4").reshape(-1, BYTES_PER_RECORD // 4)[:, :9]
    mixed = (words ^ (words >> np.uint32(15))) * _FACTORS
    return mixed.sum(axis=1, dtype=np.uint32) + np.uint32(1)


class Log(Protocol):
    """Entries one behind the other in `data`, and a record of each."""

    data: NDArray[np.uint8]
    num_records: int

    def exclusive(self) -> Any:
        """A context in which nobody else appends."""
        ...

    def fresh(self) -> NDArray[np.void]:
        """Sound records that were appended since the last call, by anybody."""
        ...

    def append(self, records: NDArray[np.void], parts: Sequence[NDArray[np.uint8]]) -> None:
        """Write entries behind each other from the first record's offset on, then their records."""
        ...

    def close(self) -> None:
        """Nothing more will be asked."""
        ...


class MemoryLog:
    """Entries in this process's memory; pages count only once they are written."""

    def __init__(self, capacity: int) -> None:
        self.data = np.frombuffer(mmap.mmap(-1, max(capacity, 1)), np.uint8)[:capacity]
        self.num_records = 0
        self._fresh = np.zeros(0, RECORD)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Nothing to do: a store appends under its own lock."""
        yield

    def fresh(self) -> NDArray[np.void]:
        """See `Log`."""
        records, self._fresh = self._fresh, np.zeros(0, RECORD)
        return records

    def append(self, records: NDArray[np.void], parts: Sequence[NDArray[np.uint8]]) -> None:
        """See `Log`."""
        for offset, part in zip(records["offset"].tolist(), parts, strict=True):
            self.data[offset : offset + len(part)] = part
        self._fresh = records
        self.num_records += len(records)

    def close(self) -> None:
        """The memory goes when the last image of it goes."""


class FileLog:
    """Entries in a folder that other runs use too. While it is open nobody evicts it.

    Args:
        folder: made if it is new.
        num_bytes: that all its files may take together.
        num_entries: that there may be, at least.
        about: kept in `meta.json` for people.
    Raises: OSError: the folder cannot be made.
    """

    def __init__(self, folder: Path, num_bytes: int, *, num_entries: int, about: dict[str, Any]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._use = os.open(folder / room.META, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._use, fcntl.LOCK_SH)
        self._data = os.open(folder / _DATA, os.O_RDWR | os.O_CREAT, 0o600)
        self._index = os.open(folder / _INDEX, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._read_to = self.num_records = 0
        with self.exclusive():
            capacity = num_bytes - META_BYTES - num_entries * BYTES_PER_RECORD
            capacity = max(capacity, os.fstat(self._data).st_size)
            os.ftruncate(self._data, capacity)  # sparse: a disk that fills up is an error when writing, never a crash
            self._most_index_bytes = max(num_bytes - META_BYTES - capacity, os.fstat(self._index).st_size)
            total = META_BYTES + capacity + self._most_index_bytes
            _write_meta(self._use, {"bytes": total, **about})
        size = os.fstat(self._data).st_size
        self.data: NDArray[np.uint8] = np.frombuffer(mmap.mmap(self._data, size) if size else b"", np.uint8)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """See `Log`."""
        fcntl.flock(self._index, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._index, fcntl.LOCK_UN)

    def fresh(self) -> NDArray[np.void]:
        """See `Log`."""
        size = os.fstat(self._index).st_size // BYTES_PER_RECORD * BYTES_PER_RECORD
        raw = os.pread(self._index, size - self._read_to, self._read_to)
        self._read_to = size
        self.num_records = size // BYTES_PER_RECORD
        records = np.frombuffer(raw, RECORD)
        inside = records["offset"] + records["size"] <= len(self.data)
        return records[(records["check"] == check_of(records)) & inside]

    def append(self, records: NDArray[np.void], parts: Sequence[NDArray[np.uint8]]) -> None:
        """See `Log`. Raises: OSError: the disk is full."""
        have = os.fstat(self._index).st_size
        if torn := have % BYTES_PER_RECORD:  # a record that a kill cut short
            have -= torn
            os.ftruncate(self._index, have)
        most = (self._most_index_bytes - have) // BYTES_PER_RECORD
        records, parts = records[:most], parts[: max(most, 0)]
        if not len(records):
            return
        at = int(records[0]["offset"])
        for start in range(0, len(parts), _MOST_PARTS):
            some = [part.data for part in parts[start : start + _MOST_PARTS]]
            total = sum(part.nbytes for part in some)
            if os.pwritev(self._data, some, at) != total:
                raise OSError("the disk is full")
            at += total
        os.write(self._index, records.tobytes())

    def close(self) -> None:
        """Let others evict it."""
        descriptors = (self._data, self._index, self._use)
        self._data = self._index = self._use = -1
        for descriptor in descriptors:
            if descriptor >= 0:
                os.close(descriptor)


def _write_meta(descriptor: int, about: dict[str, Any]) -> None:
    text = json.dumps({"kind": KIND, "version": VERSION, "created": time.time(), **about}, indent=1).encode()
    os.pwrite(descriptor, text[:META_BYTES], 0)
    os.ftruncate(descriptor, min(len(text), META_BYTES))
    os.utime(descriptor)
