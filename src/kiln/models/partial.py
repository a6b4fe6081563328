"""What has arrived of a file so far: hidden bytes beside the target, and a note of what they are part of."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from kiln.errors import ResourceError

SYNC_BYTES = 32 << 20  # what a power cut can cost


class Part:
    """The beginning of a file, which may be gone on with if it is of the same address and the file did not change.

    Without a hash to compare with in the end, only bytes that are known to have reached the disk are gone on with: after
    a power cut the others may be zeros.

    Args:
        target: the name that the file gets when it is complete.
        name: for messages.
        hash_known: whether its SHA-256 is known, so that whatever went wrong will be noticed.
    """

    def __init__(self, target: Path, *, name: str, hash_known: bool) -> None:
        self.target, self.name = target, name
        self.path = target.with_name(f".{target.name}.part")
        self.note = target.with_name(f".{target.name}.part.json")
        self.hash_known = hash_known
        self.resumed = False
        self._noted: dict[str, Any] = {}

    @property
    def size(self) -> int:
        """Bytes that are here."""
        return self.path.stat().st_size if self.path.is_file() else 0

    @property
    def can_go_on(self) -> bool:
        """Whether the next try will use what is here: the server gives pieces, and it can be told that they fit."""
        noted = self._noted or self._read_note()
        return bool(self.size and noted.get("ranges") and (noted.get("validator") or self.hash_known))

    def range_headers(self, address: str) -> dict[str, str]:
        """What asks for the rest of the file, and for all of it if it has changed; nothing where all is needed."""
        noted = self._noted = self._read_note()
        if noted.get("address") != _fingerprint(address) or not (noted.get("validator") or self.hash_known):
            return {}
        with writing(self.target):
            if not self.hash_known and self.size > noted["synced"]:
                os.truncate(self.path, noted["synced"])
        if not self.size:
            return {}
        return {"Range": f"bytes={self.size}-"} | ({"If-Range": noted["validator"]} if noted["validator"] else {})

    def _read_note(self) -> dict[str, Any]:
        try:
            return json.loads(self.note.read_text())
        except (OSError, ValueError):
            return {}

    def start_anew(self, address: str, validator: str, *, ranges: bool) -> None:
        """Drop what is here; all bytes come from this address, of the version that the validator names.

        `ranges`: whether the server says that it gives pieces.
        """
        self.discard()
        self.resumed = False
        self._noted = {"address": _fingerprint(address), "validator": validator, "synced": 0, "ranges": ranges}
        with writing(self.target):
            self.target.parent.mkdir(parents=True, exist_ok=True)
            self.note.write_text(json.dumps(self._noted))

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """To append to. What was received stays, whatever happens inside; an empty part does not."""
        with writing(self.target):
            file = self.path.open("ab")
        try:
            yield file
        finally:
            with file:
                self._sync(file)
            if not self.size:
                self.discard()

    def write(self, file: BinaryIO, chunk: bytes) -> bool:
        """Append. Returns: whether it was time to make sure that all has reached the disk."""
        with writing(self.target):
            file.write(chunk)
            file.flush()  # a killed process leaves all that it received
        due = self.size - self._noted["synced"] >= SYNC_BYTES
        if due:
            self._sync(file)
        return due

    def _sync(self, file: BinaryIO) -> None:
        with writing(self.target):
            os.fsync(file.fileno())
            self._noted["synced"] = self.size
            self.note.write_text(json.dumps(self._noted))

    def publish(self) -> None:
        """Give the file its name: from here on it counts."""
        with writing(self.target):
            self.path.replace(self.target)
            self.note.unlink(missing_ok=True)

    def discard(self) -> None:
        """Nothing of it is kept."""
        with writing(self.target):
            self.path.unlink(missing_ok=True)
            self.note.unlink(missing_ok=True)


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Inside, trouble with the disk is told apart from trouble with the network.

    Raises: ResourceError (E401): no room, or no right to write.
    """
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        what = f"{target}: {'the disk is full' if full else f'cannot write ({error.strerror or error})'}"
        hint = "make room, or set HF_HOME, TORCH_HOME or KILN_CACHE to another disk"
        raise ResourceError("E401", what, kept="what has arrived", hint=hint) from error


def _fingerprint(address: str) -> str:
    return hashlib.sha256(address.encode()).hexdigest()  # an address may hold a signature, which is nobody's business
