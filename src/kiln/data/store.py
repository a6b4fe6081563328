"""Images that were made once, kept in one growing file: written at its end, found by what they were made from.

An entry is named by a hash of the sample's key, size and time (or checksum): a changed file is a miss, and only it. Any
number of threads and runs may fill one store; two that make the same image write the same bytes. A kill or a power cut
loses at most what had not been written; every entry is checked against its checksum before a process first uses it.
"""

from __future__ import annotations

import threading
import zlib
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from kiln.data.storelog import BYTES_PER_RECORD, RECORD, Log, check_of

Kept = bytes | NDArray[np.uint8]

_BUFFER_BYTES = 4 << 20


class Store:
    """What was made of a source's samples, by index. Safe for many threads and many processes.

    Args:
        entries: (N,) uint64, what each sample's entry is named by.
        log: where entries are written, on disk or in memory.
    """

    def __init__(self, entries: NDArray[np.uint64], log: Log) -> None:
        self.log = log
        self._entries = entries
        self._order = np.argsort(entries)
        self._sorted = entries[self._order]
        self._offsets = np.full(len(entries), -1, np.int64)
        self._sizes = np.zeros(len(entries), np.int64)
        self._shapes = np.zeros((len(entries), 3), np.int64)
        self._sums = np.zeros(len(entries), np.uint32)
        self._verified = np.zeros(len(entries), bool)
        self._pending: dict[int, Kept] = {}
        self._pending_bytes = 0
        self._end = 0
        self._lock = threading.Lock()
        self._take_in(log.fresh())

    def get(self, index: int) -> Kept | None:
        """What is kept of a sample: an image (H, W, C), read-only and not a copy, or bytes; None while it is missing."""
        start = int(self._offsets[index])
        if start < 0:
            return self._pending.get(index)
        part = self.log.data[start : start + int(self._sizes[index])]
        if not self._verified[index]:
            if zlib.crc32(part.data) != self._sums[index]:  # a power cut between the entry and the disk: made again
                self._offsets[index] = -1
                return None
            self._verified[index] = True
        height, width, channels = self._shapes[index].tolist()
        if not channels:
            return part.tobytes()
        image = part.reshape(height, width, channels)
        image.flags.writeable = False
        return image

    def many(self, indices: NDArray[np.int64], shape: tuple[int, int, int]) -> NDArray[np.uint8] | None:
        """(B, H, W, C), a copy, when all of these are there and have this shape; else None."""
        if self._pending and (self._offsets[indices] < 0).any():
            self.flush()
        size = shape[0] * shape[1] * shape[2]
        slots, beside = np.divmod(self._offsets[indices], size)
        if (self._offsets[indices] < 0).any() or beside.any() or (self._shapes[indices] != shape).any():
            return None
        for index in indices[~self._verified[indices]].tolist():
            if self.get(index) is None:
                return None
        data = self.log.data
        return data[: len(data) // size * size].reshape(-1, *shape)[slots]

    def put(self, index: int, made: Kept) -> None:
        """Keep what was made of a sample, if there is room. An array must not be changed afterwards."""
        size = len(made) if isinstance(made, bytes) else made.nbytes
        with self._lock:
            if self._end + self._pending_bytes + size > len(self.log.data) or index in self._pending:
                return
            self._pending[index] = made
            self._pending_bytes += size
            if self._pending_bytes >= _BUFFER_BYTES:
                self._flush()

    def flush(self) -> None:
        """Write what is buffered."""
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        pending = self._pending
        if not pending:
            return
        with suppress(OSError), self.log.exclusive():  # a full disk: these are made again when they are needed
            self._take_in(self.log.fresh())
            missing = {index: made for index, made in pending.items() if self._offsets[index] < 0}
            records = self._records_of(missing)
            fits = records["offset"] + records["size"] <= len(self.log.data)
            parts = [_flat(made) for made, fit in zip(missing.values(), fits, strict=True) if fit]
            self.log.append(records[fits], parts)
            self._take_in(self.log.fresh())
            written = np.array(list(missing), np.int64)[fits]
            self._verified[written] = self._offsets[written] >= 0  # by this very process, a moment ago
        self._pending, self._pending_bytes = {}, 0

    def _records_of(self, pending: dict[int, Kept]) -> NDArray[np.void]:
        records = np.zeros(len(pending), RECORD)
        records["entry"] = self._entries[list(pending)]
        records["size"] = [len(_flat(made)) for made in pending.values()]
        records["crc"] = [zlib.crc32(_flat(made).data) for made in pending.values()]
        shapes = [(0, 0, 0) if isinstance(made, bytes) else made.shape for made in pending.values()]
        records["shape"] = np.array(shapes, np.uint32).reshape(-1, 3)
        records["offset"] = self._end + np.cumsum(records["size"], dtype=np.uint64) - records["size"]
        records["check"] = check_of(records)
        return records

    def _take_in(self, records: NDArray[np.void]) -> None:
        """Note entries that were written, here or by another run; of several of one name the last counts."""
        if not len(records) or not len(self._entries):
            return
        self._end = max(self._end, int((records["offset"] + records["size"]).max()))
        places = np.minimum(np.searchsorted(self._sorted, records["entry"]), len(self._sorted) - 1)
        known = self._sorted[places] == records["entry"]
        indices, records = self._order[places[known]], records[known]
        self._verified[indices] = False
        self._sizes[indices], self._shapes[indices], self._sums[indices] = (
            records["size"],
            records["shape"],
            records["crc"],
        )
        self._offsets[indices] = records["offset"]  # last: from here on other threads read it

    def filled(self) -> float:
        """The share of all samples that are there."""
        return self.filled_of(np.arange(len(self._entries)))

    def filled_of(self, indices: NDArray[np.int64]) -> float:
        """The share of these samples that are there."""
        there = np.count_nonzero(self._offsets[indices] >= 0) + sum(
            index in self._pending for index in indices.tolist()
        )
        return there / len(indices) if len(indices) else 0.0

    @property
    def num_bytes(self) -> int:
        """Bytes of all entries and of their index, also of those that no sample here stands behind any more."""
        return self._end + self.log.num_records * BYTES_PER_RECORD

    @property
    def num_dead_bytes(self) -> int:
        """Bytes of entries that no sample here stands behind."""
        return self._end - int(self._sizes[self._offsets >= 0].sum())

    def close(self) -> None:
        """Write what is buffered, and let others evict the store."""
        self.flush()
        self.log.close()

    def __del__(self) -> None:
        if hasattr(self, "_lock"):
            with suppress(OSError, ValueError):
                self.close()


def _flat(made: Kept) -> NDArray[np.uint8]:
    return np.frombuffer(made, np.uint8) if isinstance(made, bytes) else made.reshape(-1)
