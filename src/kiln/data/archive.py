"""Zip and tar, read in place: nothing is extracted, so no name in an archive can lead anywhere.

One file descriptor per archive is shared by all threads and forked children, because `pread` has no position.
A compressed tar has no random access: it is unpacked once into an unnamed temporary file.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import posixpath
import re
import stat
import struct
import tarfile
import tempfile
import threading
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import IO, Any, NamedTuple

from kiln.data.storage import Entry, counted, findings, is_hidden
from kiln.errors import DataError, ResourceError

MAX_RATIO = 100
MAX_MEMBERS = 10_000_000
MAX_MEMBER_BYTES = 2 << 30
RATIO_MATTERS_BYTES = 64 << 20  # below this even an honest flat image may shrink more than a hundredfold

_DRIVE = re.compile(r"[A-Za-z]:")
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_STORED, _DEFLATED, _BZIP2 = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2
_UNPACKERS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}


class Blob:
    """An open file, read at any offset by any thread or forked child; `file` itself may be closed."""

    def __init__(self, file: IO[bytes]) -> None:
        self._descriptor = os.dup(file.fileno())
        self._lock = threading.Lock()
        self.size = os.fstat(self._descriptor).st_size

    def __del__(self) -> None:
        os.close(self._descriptor)

    def read_at(self, offset: int, size: int) -> bytes:
        """At most `size` bytes from `offset` on; fewer where the file ends."""
        if hasattr(os, "pread"):
            return os.pread(self._descriptor, size, offset)
        with self._lock:  # Windows has no pread, and no fork either
            os.lseek(self._descriptor, offset, os.SEEK_SET)
            return os.read(self._descriptor, size)


class Member(NamedTuple):
    """Where a zip's member lies, and how it is packed."""

    offset: int
    lead: int  # a guess of how far the data lies behind the offset, so that one read is enough
    packed: int
    size: int
    method: int
    crc: int


class _Archive:
    """What zip and tar share: the census of members, its guards, and how a process started afresh opens it again."""

    kind = ""

    def __init__(self, where: str | os.PathLike[str]) -> None:
        self.where = os.path.abspath(os.fspath(where))
        self.entries: dict[str, Entry] = {}
        self.folders: list[str] = []
        self._found: Counter[tuple[str, str]] = Counter()
        self._unsafe: list[str] = []
        status = os.stat(self.where)
        self._stamp = (status.st_size, status.st_mtime_ns)

    @property
    def notes(self) -> tuple[str, ...]:
        return findings(self._found)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (type(self), self.where, self._stamp)

    def find(self, name: str) -> Entry | None:
        """The entry of a member."""
        return self.entries.get(name)

    def path_of(self, name: str) -> None:  # noqa: ARG002 - the same question is put to every storage
        """None: a member has no path of its own."""
        return

    def _accept(self, name: str, mode: int) -> str | None:
        """The cleaned name of a regular member that is wanted; everything else is counted."""
        name = name.replace("\\", "/")
        parts = name.split("/")
        if name.startswith("/") or ".." in parts or "\0" in name or _DRIVE.match(name):
            self._unsafe.append(name)
            return None
        folder = name.endswith("/") or stat.S_ISDIR(mode)
        if "" in parts or "." in parts:
            name = posixpath.normpath(name)
            parts = name.split("/")
        if any(map(is_hidden, parts)) and name != ".":
            self._found["hidden file", "ignored"] += 1
        elif stat.S_ISLNK(mode):
            self._found["link", "inside the archive ignored"] += 1
        elif stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            self._found["special file", "(pipe, device) ignored"] += 1
        elif folder:
            self.folders.append(name)
        else:
            if name in self.entries:
                self._found["repeated name", ": the last one counts"] += 1
            if len(self.entries) >= MAX_MEMBERS:
                raise self._refused(f"more than {MAX_MEMBERS:,} members")
            return name
        return None

    def _refused(self, why: str, *names: str) -> DataError:
        return DataError("E207", f"{self.kind} archive refused: {why}", where=self.where, details=names[:20])

    def _refuse_unsafe_names(self) -> None:
        if self._unsafe:
            why = f"{counted(len(self._unsafe), 'name')} with a path to outside of it"
            raise self._refused(why, *(repr(name) for name in self._unsafe))
        # folders are implied by the files in them, too
        seen = set(self.folders)
        for name in self.entries:
            while (name := posixpath.dirname(name)) and name not in seen:
                seen.add(name)
        self.folders = sorted(seen - {"", "."})

    def _damaged(self, name: str, why: str) -> DataError:
        return DataError("E207", f"cannot read {name!r}: {why}", where=self.where)


def _reopen(archive: type[_Archive], where: str, stamp: tuple[int, int]) -> _Archive:
    opened = archive(where)
    if opened._stamp != stamp:
        raise DataError("E208", f"{where} changed while it was in use", hint="start again, or resume the run")
    return opened


class Zip(_Archive):
    """A zip archive: stored, deflated and bzip2 members. A member is one `pread`, and its checksum is checked.

    `members` holds what `read` needs of each: the fields of `Member`, as integers.

    Raises: DataError: damaged, encrypted, unsafe names, or a compression bomb.
    """

    kind = "zip"

    def __init__(self, where: str | os.PathLike[str]) -> None:
        super().__init__(where)
        self.members: dict[str, Member] = {}
        try:
            with open(self.where, "rb") as file, zipfile.ZipFile(file) as listing:
                self._blob = Blob(file)
                for info in listing.infolist():
                    self._take(info)
        except (
            zipfile.BadZipFile,
            zipfile.LargeZipFile,
            struct.error,
            UnicodeDecodeError,
            NotImplementedError,
        ) as error:
            raise self._refused(f"damaged ({error})") from error
        self._refuse_unsafe_names()
        total = sum(entry.size for entry in self.entries.values())
        if total > max(MAX_RATIO * self._blob.size, RATIO_MATTERS_BYTES):
            raise self._refused(f"unpacks to {total:,} bytes, over {MAX_RATIO} times its own {self._blob.size:,}")

    @classmethod
    def listed(cls, where: str, entries: Mapping[str, Entry], members: Mapping[str, Sequence[int]]) -> Zip:
        """The archive at `where`, whose listing is known already; folders and notes are not."""
        archive = cls.__new__(cls)
        _Archive.__init__(archive, where)
        archive.entries, archive.members = entries, members  # type: ignore[assignment] - nothing is added any more
        with open(archive.where, "rb") as file:
            archive._blob = Blob(file)
        return archive

    def _take(self, info: zipfile.ZipInfo) -> None:
        name = self._accept(info.orig_filename, info.external_attr >> 16 if info.create_system == 3 else 0)
        if name is None:
            return
        if info.flag_bits & 0x1:
            raise self._refused("encrypted", repr(name))
        if (
            info.file_size > max(MAX_RATIO * info.compress_size, RATIO_MATTERS_BYTES)
            or info.file_size > MAX_MEMBER_BYTES
        ):
            raise self._refused(f"a member unpacks from {info.compress_size:,} to {info.file_size:,} bytes", repr(name))
        if info.compress_type not in (_STORED, _DEFLATED, _BZIP2):
            raise self._refused(f"compression method {info.compress_type} is not supported", repr(name))
        lead = 30 + len(info.orig_filename.encode("utf-8", "surrogatepass")) + len(info.extra) + 32
        self.members[name] = Member(
            info.header_offset, lead, info.compress_size, info.file_size, info.compress_type, info.CRC
        )
        self.entries[name] = Entry(info.file_size, f"crc32:{info.CRC:08x}")

    def read(self, name: str, limit: int | None = None) -> bytes:
        """The bytes of a member, or its first `limit` bytes.

        Raises: DataError: damaged, or its checksum is wrong.
        """
        member = Member(*map(int, self.members[name]))
        packed = self._packed(name, member, member.packed if limit is None else min(member.packed, limit + 1024))
        wanted = member.size if limit is None else min(limit, member.size)
        try:
            data = _unpack(packed, member.method, wanted)
        except (zlib.error, OSError, EOFError) as error:
            raise self._damaged(name, str(error)) from error
        if limit is not None:
            return data[:limit]
        if len(data) != member.size or zlib.crc32(data) != member.crc:
            raise self._damaged(name, "its checksum or size is not what the archive says")
        return data

    def _packed(self, name: str, member: Member, size: int) -> bytes:
        raw = self._blob.read_at(member.offset, member.lead + size)
        if len(raw) < _LOCAL_HEADER.size or raw[:4] != b"PK\x03\x04":
            raise self._damaged(name, "no member where the archive says")
        _, name_bytes, extra_bytes = _LOCAL_HEADER.unpack_from(raw)
        start = 30 + name_bytes + extra_bytes
        if start > member.lead:
            return self._blob.read_at(member.offset + start, size)
        return raw[start : start + size]


def _unpack(packed: bytes, method: int, size: int) -> bytes:
    """At most `size` + 1 bytes: a member that holds more than it says is noticed, and cannot fill the memory."""
    if method == _STORED:
        return packed[: size + 1]
    unpacker = zlib.decompressobj(-15) if method == _DEFLATED else bz2.BZ2Decompressor()
    return unpacker.decompress(packed, size + 1)


class Tar(_Archive):
    """A tar archive; `.tar.gz`, `.tar.bz2` and `.tar.xz` are unpacked once into an unnamed temporary file.

    Raises: DataError: damaged, unsafe names, or a compression bomb. ResourceError: no room to unpack.
    """

    kind = "tar"

    def __init__(self, where: str | os.PathLike[str]) -> None:
        super().__init__(where)
        self._offsets: dict[str, tuple[int, int]] = {}
        try:
            with self._plain() as file, tarfile.open(fileobj=file, mode="r:") as listing:
                self._blob = Blob(file)
                for info in listing:
                    self._take(info)
                    listing.members.clear()  # type: ignore[attr-defined]  # the list would hold every header again
        except (tarfile.TarError, ValueError, EOFError) as error:
            raise self._refused(f"damaged ({error})") from error
        self._refuse_unsafe_names()

    def _take(self, info: tarfile.TarInfo) -> None:
        name = self._accept(info.name, _mode_of(info))
        if name is None:
            return
        if info.size > MAX_MEMBER_BYTES or info.issparse():
            raise self._refused(f"a member of {info.size:,} bytes, or with holes", repr(name))
        if info.offset_data + info.size > self._blob.size:
            raise self._refused("it ends inside a member", repr(name))
        self._offsets[name] = (info.offset_data, info.size)
        self.entries[name] = Entry(info.size, f"tar:{int(info.mtime)}:{info.chksum}")

    def _plain(self) -> IO[bytes]:
        with open(self.where, "rb") as packed:
            magic = packed.read(6)
        opener = next((opener for start, opener in _UNPACKERS.items() if magic.startswith(start)), None)
        if opener is None:
            return open(self.where, "rb")
        plain = tempfile.TemporaryFile()  # noqa: SIM115 - closed by the caller
        try:
            with opener(self.where) as packed:
                self._unpack_to(plain, packed)
        except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
            plain.close()
            raise self._refused(f"damaged ({error})") from error
        except (DataError, ResourceError):
            plain.close()
            raise
        plain.seek(0)
        self._found["compressed tar", "unpacked to a temporary file (a plain tar or a zip is read in place)"] = 1
        return plain

    def _unpack_to(self, plain: IO[bytes], packed: IO[bytes]) -> None:
        room = max(MAX_RATIO * self._stamp[0], RATIO_MATTERS_BYTES)
        while chunk := packed.read(1 << 20):
            room -= len(chunk)
            if room < 0:
                raise self._refused(f"unpacks to over {MAX_RATIO} times its own {self._stamp[0]:,} bytes")
            self._write(plain, chunk)

    def _write(self, plain: IO[bytes], chunk: bytes) -> None:
        try:
            plain.write(chunk)
            plain.flush()
        except OSError as error:
            hint = "set TMPDIR to a larger disk, or give a plain tar, a zip or the folder"
            raise ResourceError("E401", f"no room to unpack {self.where}: {error.strerror}", hint=hint) from error

    def read(self, name: str, limit: int | None = None) -> bytes:
        """The bytes of a member, or its first `limit` bytes.

        Raises: DataError: the archive became shorter.
        """
        offset, size = self._offsets[name]
        wanted = size if limit is None else min(size, limit)
        data = self._blob.read_at(offset, wanted)
        if len(data) != wanted:
            raise self._damaged(name, "the archive became shorter")
        return data


def _mode_of(info: tarfile.TarInfo) -> int:
    """The type bits of a member; everything special counts as a pipe."""
    if info.isfile():
        return stat.S_IFREG
    if info.isdir():
        return stat.S_IFDIR
    return stat.S_IFLNK if info.issym() or info.islnk() else stat.S_IFIFO


def open_archive(path: str | os.PathLike[str]) -> Zip | Tar | None:
    """The archive at `path`, recognised by what is in it; None where it is no archive.

    Raises: DataError: a damaged or unsafe archive.
    """
    with open(path, "rb") as file:
        head = file.read(265)
    suffix = os.fspath(path).lower()
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")) or suffix.endswith(".zip"):
        return Zip(path)
    tar_suffixes = (".tar", ".tgz", ".tar.gz", ".tbz2", ".tar.bz2", ".txz", ".tar.xz")
    if head[257:262] == b"ustar" or suffix.endswith(tar_suffixes):
        return Tar(path)
    return None
