"""Features of a frozen backbone on disk, in the room of the caches: one file for each view, there as a whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, uint8

from kiln.data import room
from kiln.errors import ResourceError
from kiln.run import write_atomically

KIND, VERSION = "kiln.features", 1
_SPARE_BYTES = 1 << 16


class FeatureFiles:
    """Tables of features by name. Other runs may read and write the same ones; while this is open nobody evicts them.

    Args:
        folder: in the room, named by everything that the features follow from.
        num_bytes: that all tables may take together.
        about: kept in `meta.json` for people.
    Raises: OSError: the folder cannot be made.
    """

    def __init__(self, folder: Path, num_bytes: int, *, about: dict[str, Any]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._use = os.open(folder / room.META, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._use, fcntl.LOCK_SH)
        text = json.dumps({"kind": KIND, "version": VERSION, "created": time.time(), "bytes": num_bytes, **about})
        os.pwrite(self._use, text.encode(), 0)
        os.ftruncate(self._use, len(text.encode()))
        os.utime(self._use)

    def load(self, name: str) -> Tensor | None:
        """A table (N, ...) as it was saved; None where there is none, or a damaged one."""
        with suppress(OSError, SafetensorError, KeyError), safe_open(self._path(name), "pt") as file:
            rows = file.get_tensor("rows")
            if _check_of(rows) == (file.metadata() or {}).get("check"):
                return rows
        return None

    def save(self, name: str, rows: Tensor) -> None:
        """Keep a table (N, ...); on a disk that is full it is not kept."""
        rows = rows.detach().cpu().contiguous()
        with suppress(ResourceError):
            write_atomically(self._path(name), save({"rows": rows}, {"check": _check_of(rows)}))

    def close(self) -> None:
        """Let others evict them."""
        descriptor, self._use = self._use, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        if hasattr(self, "_use"):
            self.close()

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


def open_feature_files(key: str, num_bytes: int, *, limit_bytes: int, about: dict[str, Any]) -> FeatureFiles | None:
    """The files of a key, from an earlier run or new; None when the room does not suffice for all of them.

    Args:
        key: a digest of everything that the features follow from.
        num_bytes: that they take together.
        limit_bytes: that all caches together may take; unused ones give way.
        about: kept for people.
    """
    folder, needed = room.root() / key, num_bytes + _SPARE_BYTES
    try:
        with room.locked():
            if room.reserve(folder, needed, limit_bytes) < needed:
                return None
            return FeatureFiles(folder, needed, about=about)
    except OSError:
        return None


def _check_of(rows: Tensor) -> str:
    as_bytes = rows.flatten().view(uint8)
    return hashlib.blake2b(as_bytes.numpy().data, digest_size=16).hexdigest()
