"""Decode once: a source's images in stored form, in a file that is mapped into memory.

The stored form is a pure function of the file (upright, shorter side at most `px`, uint8), so a hit and a miss give the
same bytes, and neither a warm cache nor a lost one changes a result. Where each image lies is known from the headers, so
any number of threads and runs may fill the same file in any order: they write the same bytes.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import shutil
import time
import weakref
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray

from kiln import pixels
from kiln.data import room
from kiln.data.decode import DECODER, RESIZER, crop_resize, decode
from kiln.data.fingerprint import digest
from kiln.data.source import Source
from kiln.errors import DataError

KIND, VERSION = "kiln.cache", 1
_META, _PIXELS, _SUMS = room.META, "pixels.bin", "sums.bin"


@dataclass(frozen=True)
class StoredForm:
    """What is kept of an image: upright, `channels` of uint8, the shorter side reduced to `px` if it is longer.

    Args:
        px: of the shorter side.
        channels: of the stored image.
        interpolation: of the one antialiased reduction.
        max_pixels: larger files are refused.
    """

    px: int
    channels: int
    interpolation: str
    max_pixels: int

    def shape_of(self, header: pixels.Header) -> tuple[int, int, int]:
        """(H, W, C) of the stored image of a file with this header."""
        return self._shape(header.height, header.width)

    def _shape(self, height: int, width: int) -> tuple[int, int, int]:
        shorter = min(height, width)
        if shorter <= self.px:
            return height, width, self.channels
        return max(1, round(height * self.px / shorter)), max(1, round(width * self.px / shorter)), self.channels

    def make(self, data: bytes | NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The stored image of a file. (H, W, C) uint8.

        Raises: PixelError: it cannot be read.
        """
        image = decode(data, channels=self.channels, max_pixels=self.max_pixels) if isinstance(data, bytes) else data
        height, width = image.shape[:2]
        shape = self._shape(height, width)
        if shape == image.shape:
            return np.ascontiguousarray(image)
        reduced = np.empty(shape, np.uint8)
        crop_resize(image, (0, 0, width, height), reduced, interpolation=self.interpolation)
        return reduced


class Store:
    """Stored images in one mapped file: filled once, read for ever. Safe for many threads and many processes.

    While it is open nobody evicts it; `close()`, or forgetting it, lets others do so.

    Args:
        folder: of this cache; made and filled if it is new.
        shapes: (H, W, C) of each image.
        about: kept in `meta.json` for people.
    Raises: OSError: there is no room for it; nothing is left behind.
    """

    def __init__(self, folder: Path, shapes: Sequence[tuple[int, int, int]], *, about: dict[str, Any]) -> None:
        self.folder = folder
        self.shapes = shapes
        sizes = np.array([height * width * channels for height, width, channels in shapes], np.int64)
        self._starts = np.concatenate([[0], np.cumsum(sizes)])
        self._verified = np.zeros(len(shapes), bool)
        self._open(about)

    @property
    def num_bytes(self) -> int:
        """Bytes of pixels."""
        return int(self._starts[-1])

    def _open(self, about: dict[str, Any]) -> None:
        if not (self.folder / _META).is_file():
            _create(self.folder, self.num_bytes, len(self.shapes), about)
        use = os.open(self.folder / _META, os.O_RDONLY)
        self.close = weakref.finalize(self, os.close, use)
        fcntl.flock(use, fcntl.LOCK_SH)  # held until it is closed, so that nobody evicts it
        os.utime(self.folder / _META)
        self._pixels = _mapped(self.folder / _PIXELS, self.num_bytes)
        # One number per image: 0 while it is missing, else 1 + CRC-32 of its bytes, written after them.
        self._sums = np.memmap(self.folder / _SUMS, np.uint64, "r+", shape=(len(self.shapes),))

    def get(self, index: int) -> NDArray[np.uint8] | None:
        """An image, read-only and without copying it; None while it is missing. Checked once per process."""
        expected = int(self._sums[index])
        if not expected:
            return None
        part = self._pixels[self._starts[index] : self._starts[index + 1]]
        if not self._verified[index]:
            if zlib.crc32(part.data) + 1 != expected:
                return None  # a power cut between the pixels and the disk: made again and written again
            self._verified[index] = True
        image = part.reshape(self.shapes[index]).view()
        image.flags.writeable = False
        return image

    def put(self, index: int, image: NDArray[np.uint8]) -> None:
        """Keep an image. Others that put it at the same time write the same bytes."""
        flat = np.ascontiguousarray(image).reshape(-1)
        self._pixels[self._starts[index] : self._starts[index + 1]] = flat
        self._sums[index] = zlib.crc32(flat.data) + 1
        self._verified[index] = True

    def filled(self) -> float:
        """The share of images that are there."""
        return float(np.count_nonzero(self._sums)) / max(len(self.shapes), 1)


def _create(folder: Path, num_bytes: int, num_images: int, about: dict[str, Any]) -> None:
    """Make the files aside and rename: two runs that begin at once end up with one cache."""
    staged = folder.with_name(f".tmp-{folder.name}.{os.getpid()}")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True, mode=0o700)
    try:
        with (staged / _PIXELS).open("wb") as file:
            # Reserved now: a disk that fills up later would end a process that writes to a mapping without a word.
            os.posix_fallocate(file.fileno(), 0, max(num_bytes, 1))
        with (staged / _SUMS).open("wb") as file:
            file.truncate(8 * max(num_images, 1))
        meta = {
            "kind": KIND,
            "version": VERSION,
            "bytes": num_bytes,
            "images": num_images,
            "created": time.time(),
            **about,
        }
        (staged / _META).write_text(json.dumps(meta, indent=1))
        staged.rename(folder)
    except OSError:
        shutil.rmtree(staged, ignore_errors=True)
        if not (folder / _META).is_file():  # otherwise another run was faster
            raise


def _mapped(path: Path, num_bytes: int) -> NDArray[np.uint8]:
    with path.open("r+b") as file:
        mapping = mmap.mmap(file.fileno(), max(num_bytes, 1))
    return np.frombuffer(mapping, np.uint8)[:num_bytes]


class StoredSource:
    """A source whose images come in stored form, out of a store where they are there and into it where they are not.

    Args:
        source: of files or of uint8 arrays.
        form: what is kept of an image.
        store: None makes each image anew, every time; the bytes are the same.
    """

    transformed = False

    def __init__(self, source: Source, form: StoredForm, store: Store | None) -> None:
        self.source, self.form, self.store = source, form, store

    def read(self, index: int) -> NDArray[np.uint8]:
        """The stored image (H, W, C), read-only.

        Raises: PixelError: it cannot be decoded. DataError: the file vanished or may not be read.
        """
        found = None if self.store is None else self.store.get(index)
        if found is not None:
            return found
        item: Any = self.source.read(index)
        image = self.form.make(item)
        if self.store is not None and image.shape == self.store.shapes[index]:
            self.store.put(index, image)
        return image


def stored_shapes(source: Source, indices: Sequence[int], form: StoredForm) -> list[tuple[int, int, int]]:
    """(H, W, C) of each stored image by its header; (0, 0, C) for samples that are not asked for or cannot be read."""
    shapes = [(0, 0, form.channels)] * len(source)

    def look(index: int) -> None:
        try:
            shapes[index] = form.shape_of(source.header(index, max_pixels=form.max_pixels))
        except (pixels.PixelError, DataError):
            return  # counted and named by the header check

    with ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1))) as pool:
        list(pool.map(look, map(int, indices)))
    return shapes


def open_store(
    source: Source, shapes: Sequence[tuple[int, int, int]], form: StoredForm, *, limit_bytes: int
) -> Store | None:
    """The store of a source in this form, from an earlier run or new; None when it does not fit the limit.

    A file that changed has another size or time, so the source another fingerprint and the store another folder.
    """
    needed = sum(height * width * channels for height, width, channels in shapes)
    key = digest([source.fingerprint, repr(form), DECODER, RESIZER, PIL.__version__, *map(str, shapes)])
    folder = room.root() / key
    if not room.make_room(needed, limit_bytes, keep=folder):
        return None
    try:
        return Store(folder, shapes, about={"where": source.where, "form": repr(form)})
    except OSError:
        return None  # no room on the disk after all: every image is decoded each time
