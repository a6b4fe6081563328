"""Where caches lie, how much they may take, and which give way: whole caches, the longest unused first."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from kiln.errors import UsageError

META = "meta.json"
DISK_SHARE = 0.1
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


@dataclass(frozen=True)
class Entry:
    """A cache on disk: of which data, how large, when it was last used (seconds since 1970), and by a run just now."""

    folder: Path
    where: str
    num_bytes: int
    used: float
    in_use: bool


def root() -> Path:
    """The folder of image caches: `KILN_CACHE`, else the platform's cache folder."""
    base = os.environ.get("KILN_CACHE") or platformdirs.user_cache_dir("kiln")
    return Path(base) / "images"


def parse_size(text: str) -> int:
    """Bytes of `20GB`, `500 MB`, `1.5T`.

    Raises: UsageError: something else.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([kmgt]?)b?\s*", text.lower())
    if found is None:
        raise UsageError("E102", f"cache size = {text!r}", expected="a number and a unit, such as 20GB or 500MB")
    return int(float(found[1]) * _UNITS[found[2]])


def size_text(num_bytes: int) -> str:
    """So many bytes, or at most a hundredth of a unit less, as `parse_size` reads them."""
    unit = next((unit for unit in "tgmk" if num_bytes >= _UNITS[unit]), "")
    if not unit:
        return f"{num_bytes}B"
    return f"{num_bytes * 100 // _UNITS[unit] / 100:.2f}{unit.upper()}B"


def budget(asked: str) -> int:
    """Bytes that all caches together may take: what was asked, or a tenth of what the disk has free and they hold."""
    if asked != "auto":
        return parse_size(asked)
    place = root()
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    return int(DISK_SHARE * (shutil.disk_usage(place).free + sum(entry.num_bytes for entry in entries())))


def entries() -> list[Entry]:
    """All caches, the longest unused first."""
    place = root()
    folders = [path for path in place.iterdir() if (path / META).is_file()] if place.is_dir() else []
    return sorted((_entry(path) for path in folders), key=lambda entry: entry.used)


def _entry(folder: Path) -> Entry:
    try:
        meta = json.loads((folder / META).read_text())
    except ValueError:
        meta = {}
    return Entry(
        folder, str(meta.get("where", "?")), int(meta.get("bytes", 0)), (folder / META).stat().st_mtime, _in_use(folder)
    )


def _in_use(folder: Path) -> bool:
    with (folder / META).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def reserve(folder: Path, needed: int, limit: int) -> int:
    """Make room for a cache: remove unused others, the longest unused first, until it fits or none is left.

    Args:
        folder: of the cache, which may be there already.
        needed: bytes it would take.
        limit: bytes that all caches together may take.
    Returns: how many bytes it may take, at most `needed`; less where others that are in use leave no more.
    """
    own = next((entry for entry in entries() if entry.folder == folder), None)
    there = [entry for entry in entries() if entry.folder != folder]
    held = sum(entry.num_bytes for entry in there)
    free = [entry for entry in there if not entry.in_use]
    while needed + held > limit and free:
        entry = free.pop(0)
        shutil.rmtree(entry.folder, ignore_errors=True)
        held -= entry.num_bytes
    if own is not None and own.num_bytes > limit - held:  # made under a larger limit
        if own.in_use:
            return 0
        shutil.rmtree(folder, ignore_errors=True)
    return max(0, min(needed, limit - held))


@contextmanager
def locked() -> Iterator[None]:
    """No other process reserves room meanwhile."""
    root().mkdir(parents=True, exist_ok=True, mode=0o700)
    with (root() / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def remove(folder: Path) -> None:
    """Remove a cache, unless a run uses it."""
    if not _in_use(folder):
        shutil.rmtree(folder, ignore_errors=True)


def clear() -> list[Entry]:
    """Remove all caches that no run uses; returns them."""
    removed = [entry for entry in entries() if not entry.in_use]
    for entry in removed:
        shutil.rmtree(entry.folder, ignore_errors=True)
    return removed
