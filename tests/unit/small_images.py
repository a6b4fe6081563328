"""Files for the tests of `kiln.data`: tiny real images, trees of them, and a picture of a tree before and after."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import numpy as np
from PIL import Image

from kiln.data.source import Source


def png(value: int = 0, size: tuple[int, int] = (8, 8)) -> bytes:
    """An image whose pixels all have one value."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def jpeg(value: int = 0, size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(buffer, format="JPEG")
    return buffer.getvalue()


def plant(root: Path, names: list[str]) -> Path:
    """Write an image under each name; the n-th has the pixel value n."""
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number % 256))
    return root


def snapshot(root: Path) -> str:
    """A hash over names, bytes and times of a whole tree."""
    state = hashlib.sha256()
    for folder, folders, files in os.walk(root):
        folders.sort()
        for name in ["", *sorted(files)]:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            state.update(os.fsencode(path) + f"{status.st_mtime_ns} {status.st_size} {status.st_mode}".encode())
            if name and os.path.isfile(path):
                state.update(Path(path).read_bytes())
    return state.hexdigest()


def stack(length: int, *shape: int) -> np.ndarray:
    """Images in one array, by default (N, 6, 5, 3), that differ in every pixel."""
    return np.random.default_rng(length).integers(0, 256, (length, *(shape or (6, 5, 3))), dtype=np.uint8)


def reads(source: Source) -> list:
    """Every sample of a source, in order."""
    return [source.read(index) for index in range(len(source))]
