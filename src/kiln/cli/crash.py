"""The report that a bug of ours leaves behind: what happened, with which versions, and no secrets."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from kiln import __version__
from kiln.redact import redact, redact_arguments

_PACKAGES = ("torch", "torchvision", "timm", "numpy", "Pillow", "safetensors", "pydantic", "typer", "onnxruntime")


def write_report(error: BaseException, arguments: Sequence[str]) -> Path:
    """Write a report about an unexpected error.

    Returns: the file, in the user's log folder, or in the temporary folder if that cannot be written.
    """
    text = report_text(error, arguments)
    name = f"kiln-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    for folder in (_log_folder(), Path(tempfile.gettempdir())):
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            path = folder / name
            path.write_text(text, encoding="utf-8", errors="backslashreplace")
        except OSError:
            continue
        return path
    sys.stderr.write(text)
    return Path(os.devnull)


def report_text(error: BaseException, arguments: Sequence[str]) -> str:
    """What the report says."""
    versions = [f"{package} {_version_of(package)}" for package in _PACKAGES]
    return "\n".join(
        [
            "A bug in Kiln. Please send this report; secrets have been taken out, but look through it first.",
            "",
            f"command: kiln {' '.join(redact_arguments(arguments))}",
            f"kiln {__version__}, Python {platform.python_version()}, {platform.platform()}",
            f"packages: {', '.join(versions)}",
            "",
            redact("".join(traceback.format_exception(error))),
        ]
    )


def _log_folder() -> Path:
    import platformdirs

    return platformdirs.user_log_path("kiln", appauthor=False)


def _version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
