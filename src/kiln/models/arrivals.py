"""What is noted of a file that was fetched and that nobody published a hash of: its address, and the hash it arrived with."""

from __future__ import annotations

import json
from pathlib import Path

from kiln.models.integrity import Promise, sha256_of
from kiln.models.seal import write_atomically


def note_arrival(path: Path, address: str) -> None:
    """Write down, beside a file that has just arrived, where it came from and what it is."""
    note = {"kind": "kiln-download", "version": 1, "url": address, "sha256": sha256_of(path)}
    write_atomically(_note_of(path), json.dumps(note).encode())


def arrived_promise(path: Path) -> Promise:
    """The hash that a file arrived with, so that damage since then shows; nothing where none was noted."""
    return Promise(_noted(path, "sha256"))


def arrived_from(path: Path) -> str:
    """The address that a file came from; empty where none was noted."""
    return _noted(path, "url")


def forget_arrival(path: Path) -> None:
    """Remove the note of a file that is removed."""
    _note_of(path).unlink(missing_ok=True)


def _noted(path: Path, name: str) -> str:
    try:
        return str(json.loads(_note_of(path).read_text())[name])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _note_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")
