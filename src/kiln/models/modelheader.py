"""The description that a model file carries, read without its weights: one JSON text in a safetensors header."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kiln.errors import ArtifactError

KIND, VERSION = "kiln-model", 1
METADATA_KEY = "kiln"
MAX_TENSORS = 50_000  # the largest networks of timm have a few thousand
MAX_HEADER_BYTES = 32 << 20  # 100,000 classes and 10,000 tensors stay below 5 MiB


def read_header(path: str | Path) -> dict[str, Any]:
    """What a model file says about itself: `spec`, `classes`, `contract`, `task`, `extra`, the versions that wrote it.

    Raises: ArtifactError: not a Kiln model file, or of a newer version (E303); damaged (E307).
    """
    path = Path(path)
    header = header_of(path)
    if header is None:
        raise ArtifactError(
            "E303", f"{path} is not a Kiln model file", hint="to start from bare weights: --weights FILE"
        )
    return header


def header_of(path: Path) -> dict[str, Any] | None:
    """`read_header`, or None for any file that is not a Kiln model file."""
    metadata = _safetensors_header(path).get("__metadata__")
    text = metadata.get(METADATA_KEY) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        return None
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArtifactError("E307", f"{path} is damaged: its description is not JSON") from error
    if not isinstance(header, dict) or header.get("kind") != KIND:
        return None
    check_version(header, path)
    return header


def check_version(header: dict[str, Any], path: Path) -> None:
    """Refuse a description that a newer Kiln wrote (ArtifactError E303)."""
    if header.get("version") != VERSION:
        what = f"{path} is a {header.get('kind')} of version {header.get('version')!r}; this Kiln reads {VERSION}"
        raise ArtifactError("E303", what, hint="pip install -U torchkiln")


def _safetensors_header(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= MAX_HEADER_BYTES:
                return {}
            found = json.loads(file.read(length))
    except FileNotFoundError as error:
        raise ArtifactError("E303", f"{path}: no such file") from error
    except (OSError, ValueError, RecursionError):
        return {}
    if isinstance(found, dict) and len(found) > MAX_TENSORS:
        raise ArtifactError("E307", f"{path} lists {len(found):,} tensors", expected=f"at most {MAX_TENSORS:,}")
    return found if isinstance(found, dict) else {}
