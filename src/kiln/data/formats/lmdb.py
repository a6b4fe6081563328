"""LMDB: Kiln's own, or any with one file per key.

Own: `image/0000000012` -> bytes, `sample/0000000012` -> its row as JSON, `kiln` -> kind, version and facts. A foreign
one is read like an archive: its keys are names, and labels come from folders in the names or from a table beside it.
Environments are opened once per process, read-only and without locks: a child that was forked opens its own.
"""

from __future__ import annotations

import json
import os
import threading
import weakref
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kiln import pixels
from kiln.data.formats.opening import (
    Opened,
    Plan,
    Record,
    Request,
    Row,
    Stamp,
    cut,
    damaged,
    facts_of,
    imported,
    parsed_json,
    restored,
    samples_of,
)
from kiln.data.reader import header_of
from kiln.data.storage import Entry
from kiln.errors import DataError, ResourceError

KIND, VERSION = "kiln.lmdb", 1
DATA = "data.mdb"
_ABOUT = b"kiln"
_SAFE_TOGETHER = 512
_FIRST_MAP_BYTES = 64 << 20

_handles: weakref.WeakValueDictionary[tuple[int, str], _Handle] = weakref.WeakValueDictionary()
_lock = threading.Lock()


class _Handle:
    """An open environment; LMDB allows one per file and process."""

    def __init__(self, path: str) -> None:
        library = imported("lmdb", "LMDB")
        try:
            self.environment = library.open(
                path, subdir=False, readonly=True, lock=False, readahead=False, create=False
            )
            info, page_bytes = self.environment.info(), self.environment.stat()["psize"]
        except library.Error as error:
            raise damaged(path, str(error)) from error
        if (info["last_pgno"] + 1) * page_bytes > os.path.getsize(path):
            # LMDB maps the file: reading a page that is not there would end the process.
            raise damaged(path, f"it ends before page {info['last_pgno']:,}")


class Environment:
    """A read-only LMDB, safe from many threads, after a fork, and when pickled."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.stamp = Stamp.of(path)
        self._pid, self._handle = -1, None
        self._opened()

    def _opened(self) -> Any:
        if self._pid != os.getpid():
            with _lock:
                if self._handle is not None:
                    # Inherited by a fork. Without locks this closes only the child's own copies of map and descriptor.
                    self._handle.environment.close()
                key = os.getpid(), os.path.realpath(self.path)
                handle = _handles.get(key) or _Handle(self.path)
                self._handle = _handles[key] = handle
                self._pid = os.getpid()
        return self._handle.environment  # type: ignore[union-attr]

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.path, self.stamp)

    def get(self, key: bytes) -> bytes | None:
        """The value of a key. Raises: DataError: the file is damaged."""
        try:
            with self._opened().begin() as transaction:
                return transaction.get(key)
        except imported("lmdb", "LMDB").Error as error:
            raise DataError("E202", f"cannot read {key!r}: {error}", where=self.path) from error

    def items(self, prefix: bytes = b"") -> Iterator[tuple[bytes, memoryview]]:
        """Keys that begin with `prefix`, and their values without a copy, valid until the next one.

        Raises: DataError: the file is damaged.
        """
        try:
            with self._opened().begin(buffers=True) as transaction:
                cursor = transaction.cursor()
                if not cursor.set_range(prefix) if prefix else not cursor.first():
                    return
                for key, value in cursor:
                    if not bytes(key).startswith(prefix):
                        return
                    yield bytes(key), value
        except imported("lmdb", "LMDB").Error as error:
            raise damaged(self.path, str(error)) from error


def _reopened(path: str, stamp: Stamp) -> Environment:
    stamp.check(path)
    return Environment(path)


def open_files(request: Request) -> Opened | Names:
    """Open an LMDB, given by its data file.

    Raises: DataError: damaged. ArtifactError: of a newer version. MissingExtraError: no library.
    """
    environment = Environment(request.paths[0])
    about = environment.get(_ABOUT)
    if about is None:
        return Names(request.where, environment)
    request.refuse_columns()
    facts = facts_of(parsed_json(about, request.where), request.where, kind=KIND, version=VERSION)
    rows, names = [], []
    for key, value in environment.items(b"sample/"):
        try:
            row = Row(*parsed_json(bytes(value), request.where))
        except TypeError as error:
            raise damaged(request.where, f"{key!r}: {error}") from error
        rows.append(row)
        names.append((b"image/" + key[len(b"sample/") :], row.crc32, row.shape))
    if parsed_json(about, request.where).get("samples") != len(rows):
        raise damaged(request.where, f"{len(rows):,} samples, but its header says otherwise")
    has_headers = all(not row.shape for row in rows)
    return Opened(samples_of(rows, names, facts, request), LmdbReader(environment, has_headers=has_headers))


class LmdbReader:
    """Reads samples of an LMDB of our own."""

    def __init__(self, environment: Environment, *, has_headers: bool) -> None:
        self.environment, self.has_headers = environment, has_headers

    def read(self, name: tuple[bytes, int, str]) -> bytes | np.ndarray:
        """The bytes or the array of a sample. Raises DataError: it is missing, or its checksum is wrong."""
        key, crc32, shape = name
        data = self.environment.get(key)
        if data is None or zlib.crc32(data) != crc32:
            why = "is missing" if data is None else "has a wrong checksum"
            raise DataError("E202", f"{key.decode()} {why}", where=self.environment.path, hint="pack it again")
        return restored(data, shape)

    def header(self, name: tuple[bytes, int, str], max_pixels: int) -> pixels.Header:
        """Size and mode. Raises: PixelError: no image. DataError: missing, or its checksum is wrong."""
        return header_of(self.read(name), max_pixels)


class Names:
    """A foreign LMDB as a storage: its keys are names of files."""

    def __init__(self, where: str, environment: Environment) -> None:
        self.where = where
        self.environment = environment
        self.folders: tuple[str, ...] = ()
        identity = environment.stamp.identity
        self.entries: dict[str, Entry] = {}
        skipped = 0
        for key, value in environment.items():
            try:
                self.entries[key.decode("utf-8")] = Entry(len(value), identity)
            except UnicodeDecodeError:
                skipped += 1
        self.notes = (f"{skipped:,} keys that are no text ignored",) if skipped else ()

    def find(self, name: str) -> Entry | None:
        """The entry of a key."""
        return self.entries.get(name)

    def read(self, name: str, limit: int | None = None) -> bytes:
        """The value of a key, or its first `limit` bytes. Raises: DataError: there is none."""
        data = self.environment.get(name.encode("utf-8"))
        if data is None:
            raise DataError("E202", f"cannot read {name!r}: no such key", where=self.where)
        return data[:limit]

    def path_of(self, name: str) -> None:  # noqa: ARG002 - the same question is put to every storage
        """None: a key has no path."""
        return


class Writer:
    """Writes transactions of some hundred samples; goes on behind the last one that was committed.

    Args:
        place: the folder for `data.mdb`.
        plan: of the copy.
    """

    def __init__(self, place: Path, plan: Plan) -> None:
        place.mkdir(exist_ok=True)
        self._library = imported("lmdb", "LMDB")
        self._plan = plan
        self._place = place
        try:
            self._environment = self._library.open(
                str(place / DATA), subdir=False, lock=False, map_size=_FIRST_MAP_BYTES, meminit=False
            )
        except self._library.Error as error:
            raise self._no_room(error) from error
        used = (self._environment.info()["last_pgno"] + 1) * self._environment.stat()["psize"]
        self._environment.set_mapsize(max(2 * used, _FIRST_MAP_BYTES))
        entries = self._environment.stat()["entries"]
        with self._environment.begin() as transaction:
            entries -= transaction.get(_ABOUT) is not None
        self._num_written = entries // 2

    def pending(self) -> list[list[int]]:
        """Samples that are not committed yet."""
        return cut(range(self._num_written, len(self._plan.splits)), _SAFE_TOGETHER)

    def write(self, indices: Sequence[int], records: Iterator[Record]) -> None:
        """Commit samples in one transaction; the map grows when they do not fit. Raises: ResourceError: no room."""
        pairs = []
        try:
            for index, record in zip(indices, records, strict=False):
                row = json.dumps(record.row, ensure_ascii=False).encode("utf-8")
                pairs += [(f"image/{index:010d}".encode(), record.data), (f"sample/{index:010d}".encode(), row)]
            self._put(pairs)
        except BaseException:
            self._environment.close()  # so that this process can open it again and go on
            raise
        self._num_written += len(pairs) // 2

    def _put(self, pairs: Sequence[tuple[bytes, bytes]]) -> None:
        while True:
            try:
                with self._environment.begin(write=True) as transaction:
                    for key, value in pairs:
                        transaction.put(key, value)
                return
            except self._library.MapFullError:
                self._environment.set_mapsize(2 * self._environment.info()["map_size"])
            except self._library.Error as error:
                raise self._no_room(error) from error

    def _no_room(self, error: Exception) -> ResourceError:
        hint = "make room and start the same command again: it goes on where it was"
        return ResourceError("E401", f"cannot write {self._place}: {error}", kept="what was committed", hint=hint)

    def finish(self) -> None:
        """Write the header and close."""
        about = {"kind": KIND, "version": VERSION, "samples": self._num_written, "facts": self._plan.facts.to_dict()}
        self._put([(_ABOUT, json.dumps(about, ensure_ascii=False).encode("utf-8"))])
        self._environment.sync(True)
        self._environment.close()
