"""Whether a weight file is the one that was promised, and all of it."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

_MAX_HEADER_BYTES = 100 << 20  # safetensors' own limit
_HASH = re.compile(r"-([0-9a-f]{8,64})\.")  # torchvision and timm write the start of the SHA-256 into the name


@dataclass(frozen=True)
class Promise:
    """What is known about a file before it is there.

    Attributes:
        sha256: in hexadecimal digits, whole or its start; empty where nobody published it.
        num_bytes: its length, or None.
    """

    sha256: str = ""
    num_bytes: int | None = None

    def problem(self, path: Path) -> str:
        """Why a file is not the promised one, or nothing. Without a hash, its own form has to tell that it is whole."""
        size = path.stat().st_size
        if self.num_bytes is not None and size != self.num_bytes:
            return f"it has {size:,} bytes instead of {self.num_bytes:,}"
        if not self.sha256:
            return form_problem(path)
        digest = sha256_of(path)
        return "" if digest.startswith(self.sha256) else f"SHA-256 is {digest}, not {self.sha256}"


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_in_name(name: str) -> str:
    """The start of the SHA-256 that publishers write into a file's name (`resnet18-f37072fd.pth`), or nothing."""
    found = _HASH.search(name)
    return found[1] if found else ""


def form_problem(path: Path) -> str:
    """What a file's own form says against its being a whole weight file, or nothing.

    A safetensors header states the length of the file, and a zip (what torch.save writes) ends with a directory. The
    older form of `.pth` tells nothing about its end.
    """
    size, name = path.stat().st_size, path.name.removesuffix(".part")
    with path.open("rb") as file:
        start = file.read(512)
        if not start:
            return "it is empty"
        if start.lstrip()[:1] == b"<":
            return "it is a web page"
        if name.endswith(".json"):
            return _json_problem(start + file.read(_MAX_HEADER_BYTES))
        if start[8:9] == b"{" or name.endswith(".safetensors"):
            file.seek(0)
            return _safetensors_problem(
                file.read(8 + min(int.from_bytes(start[:8], "little"), _MAX_HEADER_BYTES)), size
            )
    if start.startswith(b"PK") and not zipfile.is_zipfile(path):
        return "its end is missing"
    return ""


def _json_problem(content: bytes) -> str:
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return "it is not JSON"
    return ""


def _safetensors_problem(start: bytes, size: int) -> str:
    """Compare the length that a safetensors header adds up to with the file's."""
    length = int.from_bytes(start[:8], "little")
    try:
        header = json.loads(start[8 : 8 + length])
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        stated = 8 + length + max(ends, default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        return "its safetensors header cannot be read"
    return "" if stated == size else f"it has {size:,} bytes, and its header states {stated:,}"
