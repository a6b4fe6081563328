"""What the last opening of a large zip found, kept beside the caches: listing 60,000 members again costs a second.

A record holds all columns of a source and what reading a member needs. It stands for one file: another size, time or
inode, or another end of the archive (where zip keeps its own listing), and the archive is listed anew.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kiln.data import room
from kiln.data.archive import Member, Zip
from kiln.data.fingerprint import digest
from kiln.data.reader import FileReader
from kiln.data.source import Source
from kiln.data.storage import Entry
from kiln.errors import DataError

KIND, VERSION = "kiln.listing", 1
LEAST_MEMBERS = 5_000  # fewer are listed within a tenth of a second
_FILE = "listing.bin"
_TAIL_BYTES = 64 << 10
_COLUMNS = ("keys", "labels", "splits", "groups", "names", "identities")
_NOTHING = "\x02"  # None, in the column of splits
_SIZE = Member._fields.index("size")


def recall(where: str | os.PathLike[str]) -> Source | None:
    """The source that `remember` kept of the archive at `where`; None where there is none, or the file changed."""
    try:
        stamp = _stamp(where)
        folder = room.root() / digest([KIND, *stamp])
        head, _, body = (folder / _FILE).read_bytes().partition(b"\n")
        about = json.loads(head)
        if about["digest"] != _digest(body) or about["stamp"] != stamp:
            return None
        os.utime(folder / room.META)
        return _source(os.fspath(where), about, body)
    except (OSError, ValueError, KeyError, TypeError, DataError):
        return None  # damaged, or of another version: listing anew is always right


def remember(source: Source, *, cache_size: str = "auto") -> None:
    """Keep the listing of a source that is one large zip; of others nothing is kept.

    Args:
        source: as it was opened, with nothing but its path asked for.
        cache_size: what all caches on disk together may take, as `data.cache_size` says it.
    """
    reader = source._reader
    archive = reader.storage if isinstance(reader, FileReader) else None
    if not isinstance(archive, Zip) or len(archive.members) < LEAST_MEMBERS or source.unlabelled:
        return
    try:
        _write(source, archive, room.budget(cache_size))
    except OSError:
        return  # no room on the disk, or no right to write there: the next opening lists anew


def _write(source: Source, archive: Zip, limit_bytes: int) -> None:
    stamp = _stamp(source.where)
    identities = [entry.identity for entry in source._entries]
    texts = [*(getattr(source, name) for name in ("keys", "labels", "splits", "groups")), source._names, identities]
    columns = [None if column is None else _packed(column) for column in texts]
    members = np.array([archive.members[name] for name in source._names], np.int64)
    body = b"".join([members.tobytes(), *(column for column in columns if column is not None)])
    about = {
        "kind": KIND,
        "version": VERSION,
        "stamp": stamp,
        "digest": _digest(body),
        "shape": members.shape,
        "columns": [None if column is None else len(column) for column in columns],
        "fingerprint": source.fingerprint,
        "class_names": source.class_names,
        "notes": source.notes,
    }
    content = json.dumps(about).encode() + b"\n" + body
    folder = room.root() / digest([KIND, *stamp])
    with room.locked():
        if room.reserve(folder, len(content), limit_bytes) < len(content):
            return
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _replace(folder / _FILE, content)
        meta = {"kind": KIND, "version": VERSION, "where": f"{source.where} (listing)", "bytes": len(content)}
        _replace(folder / room.META, json.dumps(meta).encode())


def _source(where: str, about: dict[str, Any], body: bytes) -> Source:
    rows, fields = about["shape"]
    start = rows * fields * 8
    members = np.frombuffer(body[:start], np.int64).reshape(rows, fields)
    columns: dict[str, tuple[Any, ...] | None] = {}
    for name, size in zip(_COLUMNS, about["columns"], strict=True):
        columns[name] = None if size is None else _unpacked(body[start : start + size], name)
        start += size or 0
    names: tuple[str, ...] = columns["names"] or ()
    entries = _Entries(members[:, _SIZE].tolist(), columns["identities"] or ())
    rows_by_name = dict(zip(names, range(rows), strict=True))
    reader = FileReader(Zip.listed(where, _Rows(rows_by_name, entries), _Rows(rows_by_name, members)))
    return Source(
        where=where,
        keys=columns["keys"] or (),
        labels=columns["labels"],
        splits=columns["splits"],
        groups=columns["groups"],
        class_names=None if about["class_names"] is None else tuple(about["class_names"]),
        fingerprint=about["fingerprint"],
        notes=tuple(about["notes"]),
        _names=names,
        _entries=entries,
        _reader=reader,
    )


class _Entries(Sequence[Entry]):
    """Entries made when asked for: 60,000 at once would take the garbage collector a tenth of a second."""

    def __init__(self, sizes: list[int], identities: tuple[str, ...]) -> None:
        self._sizes, self._identities = sizes, identities

    def __len__(self) -> int:
        return len(self._identities)

    def __getitem__(self, index: Any) -> Any:
        return Entry(self._sizes[index], self._identities[index])


class _Rows(Mapping[str, Any]):
    """Rows of a table, by name."""

    def __init__(self, rows: dict[str, int], table: Any) -> None:
        self._rows, self._table = rows, table

    def __getitem__(self, name: str) -> Any:
        return self._table[self._rows[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


def _stamp(where: str | os.PathLike[str]) -> list[Any]:
    """What tells this file from any other, and from itself after a change."""
    with open(where, "rb") as file:
        status = os.fstat(file.fileno())
        file.seek(max(0, status.st_size - _TAIL_BYTES))
        tail = hashlib.blake2b(file.read(), digest_size=16).hexdigest()
    return [os.path.abspath(os.fspath(where)), status.st_size, status.st_mtime_ns, status.st_ino, tail, VERSION]


def _digest(body: bytes) -> str:
    return hashlib.blake2b(body, digest_size=16).hexdigest()


def _packed(column: tuple[Any, ...] | list[Any]) -> bytes:
    """No text of a zip holds a zero byte: such names are refused."""
    return "\0".join(_NOTHING if value is None else value for value in column).encode("utf-8", "surrogatepass")


def _unpacked(column: bytes, name: str) -> tuple[Any, ...]:
    values = column.decode("utf-8", "surrogatepass").split("\0")
    return tuple(None if value == _NOTHING else value for value in values) if name == "splits" else tuple(values)


def _replace(path: Path, content: bytes) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}")
    part.write_bytes(content)
    part.replace(path)
