"""Named bytes: a folder on disk here, a zip or a tar in `archive.py`; all are read in place and never written to.

A name is a relative path with `/`. Everything that `read` touches is safe to call from many threads and after a fork.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from kiln.errors import DataError

# The last line holds formats that `kiln.pixels` does not read: the header check shall name such files.
IMAGE_SUFFIXES = frozenset(
    {
        ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff",
        ".ppm", ".pgm", ".pbm", ".pnm", ".npy",
        ".heic", ".heif", ".avif", ".jp2", ".tga",
    }
)  # fmt: skip
_CLUTTER = frozenset({"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "@eadir"})


class Entry(NamedTuple):
    """What is known of a file without opening it: a changed `identity` means changed bytes."""

    size: int
    identity: str


class Storage(Protocol):
    """Files by name. `folders` lists the directories seen, `notes` what was left out and why."""

    where: str

    @property
    def entries(self) -> Mapping[str, Entry]:
        """Every file that is not hidden."""
        ...

    @property
    def folders(self) -> Sequence[str]:
        """Every directory that is not hidden, empty ones too."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Findings worth printing, such as "4 hidden files ignored"."""
        ...

    def find(self, name: str) -> Entry | None:
        """The entry of a file, or None where there is no such file."""
        ...

    def read(self, name: str, limit: int | None = None) -> bytes:
        """The bytes of a file, or its first `limit` bytes. Raises DataError: it cannot be read."""
        ...

    def path_of(self, name: str) -> str | None:
        """Where the file lies on disk; None inside an archive."""
        ...


def is_image_name(name: str) -> bool:
    """Whether a file name ends like an image's. What is inside is found out by the header check."""
    return name[name.rfind(".") :].lower() in IMAGE_SUFFIXES


def is_hidden(part: str) -> bool:
    """Whether one component of a path is hidden, or clutter that an operating system leaves."""
    return part.startswith(".") or part.lower() in _CLUTTER


def counted(number: int, thing: str) -> str:
    """`1 file`, `2 files`, `2 classes`."""
    plural = thing[:-1] + "ies" if thing.endswith("ry") else thing + ("es" if thing.endswith("ss") else "s")
    return f"{number:,} {thing if number == 1 else plural}"


def findings(found: Counter[tuple[str, str]]) -> tuple[str, ...]:
    """Notes such as "4 hidden files ignored" from counts by (thing, what happened to it)."""
    return tuple(f"{counted(count, thing)} {what}".replace(" :", ":") for (thing, what), count in sorted(found.items()))


def shown(names: Sequence[str], most: int = 5) -> str:
    """The first few names, quoted so that newlines and blanks can be seen."""
    more = f", ... ({len(names):,} in all)" if len(names) > most else ""
    return ", ".join(repr(name) for name in names[:most]) + more


class Folder:
    """A directory tree, symbolic links followed, or (`scan=False`) only a place that names are relative to.

    Args:
        where: the directory.
        scan: list the tree now; without it `entries` is empty and `find` asks the disk.
    Raises: DataError: the directory cannot be listed.
    """

    def __init__(self, where: str | os.PathLike[str], *, scan: bool = True) -> None:
        self.where = os.path.abspath(os.fspath(where))
        self.entries: dict[str, Entry] = {}
        self.folders: list[str] = []
        self._scanned = scan
        self._undecodable: dict[str, str] = {}
        self._found: Counter[tuple[str, str]] = Counter()
        if scan:
            self._scan()
        self.notes = findings(self._found)

    def _scan(self) -> None:
        status = os.stat(self.where)
        pending = [("", self.where, frozenset({(status.st_dev, status.st_ino)}))]
        while pending:
            prefix, path, ancestors = pending.pop()
            try:
                with os.scandir(path) as children:
                    for child in children:
                        place = self._add(prefix, child)
                        if place in ancestors:
                            self._found["link", "back into its own folder ignored"] += 1
                        elif place is not None:
                            name = prefix + printable(child.name)
                            self.folders.append(name)
                            pending.append((name + "/", child.path, ancestors | {place}))
            except OSError as error:
                if not prefix:
                    raise DataError("E201", f"cannot list {self.where}: {error.strerror}") from error
                self._found["unreadable folder", "ignored"] += 1

    def _add(self, prefix: str, child: os.DirEntry[str]) -> tuple[int, int] | None:
        """Take a file in; a directory is answered with its device and inode."""
        if is_hidden(child.name):
            self._found["hidden file", "ignored"] += 1
            return None
        linked = child.is_symlink()
        try:
            status = child.stat()
        except OSError:
            self._found["broken link" if linked else "unreadable file", "ignored"] += 1
            return None
        if linked and not (os.path.realpath(child.path) + os.sep).startswith(os.path.realpath(self.where) + os.sep):
            self._found["link", "to outside the folder followed"] += 1
        if stat.S_ISDIR(status.st_mode):
            return status.st_dev, status.st_ino
        if not stat.S_ISREG(status.st_mode):
            self._found["special file", "(pipe, device) ignored"] += 1
            return None
        name = prefix + printable(child.name)
        if name in self.entries:
            self._found["name", "ignored: not UTF-8, and printed like another"] += 1
            return None
        self.entries[name] = _entry(status)
        if os.path.join(self.where, name) != child.path:
            self._undecodable[name] = child.path
        return None

    def find(self, name: str) -> Entry | None:
        """The entry of a file, from the listing or, without one, from the disk."""
        if self._scanned:
            return self.entries.get(name)
        try:
            status = os.stat(name if os.path.isabs(name) else f"{self.where}/{name}")
        except (OSError, ValueError):  # ValueError: a NUL byte in the name
            return None
        return _entry(status) if stat.S_ISREG(status.st_mode) else None

    def path_of(self, name: str) -> str:
        """Where the file lies on disk."""
        return self._undecodable.get(name) or os.path.join(self.where, name)

    def read(self, name: str, limit: int | None = None) -> bytes:
        """The bytes of a file, or its first `limit` bytes.

        Raises: DataError: it vanished or may not be read.
        """
        try:
            with open(self.path_of(name), "rb") as file:
                return file.read(-1 if limit is None else limit)
        except OSError as error:
            raise DataError("E202", f"cannot read {name!r}: {error.strerror}", where=self.where) from error


def _entry(status: os.stat_result) -> Entry:
    return Entry(status.st_size, f"mtime:{status.st_mtime_ns}")


def printable(name: str) -> str:
    """A file name that can be written as UTF-8: bytes that are not UTF-8 become `\\xNN`."""
    if name.isascii():
        return name
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
