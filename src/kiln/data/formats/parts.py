"""Copies in several files: which samples go into which, and each file written whole or not at all."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from kiln.data.formats.opening import Plan, Record, cut, sync

PART_BYTES = 256 << 20


class Part(NamedTuple):
    """The samples of one file; all of one split, because others tell the split by the file's name.

    Attributes:
        stem: `train-00003-of-00010`.
    """

    stem: str
    indices: list[int]


def parts_of(plan: Plan) -> list[Part]:
    """The same cut each time it is asked for, so that a copy can be gone on with."""
    per_part = max(1, PART_BYTES // max(plan.mean_bytes, 1))
    parts = []
    for split in dict.fromkeys(plan.splits):
        lists = cut([index for index, other in enumerate(plan.splits) if other == split], per_part)
        name = split or "data"
        parts += [Part(f"{name}-{number:05d}-of-{len(lists):05d}", part) for number, part in enumerate(lists)]
    return parts


class PartedWriter:
    """Writes whole files; goes on with the first that is missing.

    Args:
        place: the folder.
        plan: of the copy.
        suffix: of each file.
        write_part: (path, indices, records) -> None writes one file.
    """

    def __init__(
        self,
        place: Path,
        plan: Plan,
        *,
        suffix: str,
        write_part: Callable[[Path, Sequence[int], Iterator[Record]], None],
    ) -> None:
        place.mkdir(exist_ok=True)
        self._write_part = write_part
        self._parts = {part.indices[0]: (place / f"{part.stem}{suffix}", part.indices) for part in parts_of(plan)}

    def pending(self) -> list[list[int]]:
        """The samples of the files that are missing."""
        return [indices for path, indices in self._parts.values() if not path.exists()]

    def write(self, indices: Sequence[int], records: Iterator[Record]) -> None:
        """Write one file aside and give it its name."""
        path, _ = self._parts[indices[0]]
        staged = path.with_name(f".tmp-{path.name}")
        self._write_part(staged, indices, records)
        sync(staged)
        staged.replace(path)
        sync(path.parent)

    def finish(self) -> None:
        """Nothing is left to do: every file is whole."""


def as_file(record: Record) -> bytes:
    """The bytes of an image file, for forms that others read: an array becomes a PNG, which keeps every pixel, or .npy."""
    if not record.row.shape:
        return record.data
    array = np.frombuffer(record.data, np.uint8).reshape([int(part) for part in record.row.shape.split("x")])
    buffer = io.BytesIO()
    if array.shape[2] in (1, 3, 4):
        Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(buffer, format="PNG", compress_level=1)
    else:
        np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


_SUFFIXES = {
    b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"RIFF": "webp", b"GIF8": "gif", b"BM": "bmp", b"II*\0": "tif",
    b"MM\0*": "tif", b"\x93NUMPY": "npy",
}  # fmt: skip


def suffix_of(data: bytes) -> str:
    """The ending of a file's name by its first bytes; `jpg` where they tell nothing."""
    return next((suffix for start, suffix in _SUFFIXES.items() if data.startswith(start)), "jpg")
