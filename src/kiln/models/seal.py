"""Files that notice a single flipped bit: a digest of the whole file, written inside it, and an atomic write.

The seal is `kiln-seal:` and a SHA-256 somewhere in the file's own metadata, computed over the file with these digits as
zeros, so that no part of the file, header included, lies outside it. Any container that can carry a text can be sealed:
safetensors and ONNX are. It guards against damage, not against an attacker, who could seal again.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import re
from pathlib import Path

from kiln.errors import ArtifactError, ResourceError

ZEROS = b"0" * 64
OPEN_SEAL = "kiln-seal:" + ZEROS.decode()
ANOTHER_COPY = "use another copy of the file, or make it again"
_SEAL = re.compile(rb"kiln-seal:([0-9a-f]{64})")
_CHUNK = 1 << 24


def seal(payload: bytes) -> tuple[bytes, str]:
    """Put the digest where `OPEN_SEAL` stands. Returns: the sealed bytes and the digest."""
    found = _SEAL.search(payload)
    if found is None or found[1] != ZEROS:
        raise ValueError("the payload has no open seal, or another seal stands before it")
    digest = hashlib.sha256(payload).hexdigest()
    return b"".join((payload[: found.start(1)], digest.encode(), payload[found.end(1) :])), digest


def verify_seal(path: Path) -> str:
    """Check a sealed file; returns its digest.

    Raises: ArtifactError (E307): no seal, or the file is not what was written.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            raise ArtifactError("E307", f"{path} is empty", hint=ANOTHER_COPY)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            found = _SEAL.search(view)
            if found is None:
                raise ArtifactError("E307", f"{path} has lost its digest", hint=ANOTHER_COPY)
            start, expected = found.start(1), found[1].decode()
            del found  # it holds the map open
            digest = hashlib.sha256()
            for at in range(0, start, _CHUNK):
                digest.update(view[at : min(at + _CHUNK, start)])
            digest.update(ZEROS)
            for at in range(start + len(ZEROS), size, _CHUNK):
                digest.update(view[at : at + _CHUNK])
    if digest.hexdigest() != expected:
        raise ArtifactError("E307", f"{path} is damaged: its content no longer matches its digest", hint=ANOTHER_COPY)
    return expected


def write_atomically(path: Path, payload: bytes) -> None:
    """Write a file so that after a crash either the old content or the new is there, never a part.

    Raises: ResourceError (E401): the disk is full or cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        part.unlink(missing_ok=True)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        what = f"no room for {len(payload) / 2**20:.1f} MiB" if full else f"cannot write: {error.strerror or error}"
        raise ResourceError("E401", f"{path}: {what}", kept="whatever was there before") from error


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return  # Windows cannot open a folder
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
