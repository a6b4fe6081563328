"""One decode of every sample, and what is kept of it: a small grey picture, hashes, the facts of its header."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kiln import pixels
from kiln.data.prefetch import prefetched
from kiln.errors import DataError

if TYPE_CHECKING:
    from kiln.data.source import Source

THUMB_PX = 64
_DECODE_PX = 128
"""JPEGs are decoded at 1/2, 1/4 or 1/8 as long as the shorter side keeps so many pixels."""


@dataclass(frozen=True)
class Look:
    """What one decode tells of one sample.

    Attributes:
        header: its size and mode; None for an item that is an array, and for an unreadable file.
        file_hash: of its bytes; empty for an array.
        pixel_hash: of its pixels, decoded small.
        thumb: (64, 64) uint8, grey, squeezed to a square.
        error: reason and detail where it is unreadable, else nothing.
    """

    header: pixels.Header | None
    file_hash: bytes
    pixel_hash: bytes
    thumb: NDArray[np.uint8]
    error: tuple[str, str] | None = None


@dataclass(frozen=True, eq=False)
class Looks:
    """The looks at all samples of a source, as columns.

    Attributes:
        headers: see `Look.header`.
        file_hashes: see `Look.file_hash`.
        pixel_hashes: see `Look.pixel_hash`.
        thumbs: (N, 64, 64) uint8: 4 KiB a sample.
        errors: reason and detail of unreadable samples, by index.
    """

    headers: list[pixels.Header | None]
    file_hashes: list[bytes]
    pixel_hashes: list[bytes]
    thumbs: NDArray[np.uint8]
    errors: dict[int, tuple[str, str]]


def look_at_all(
    source: Source, *, max_pixels: int, workers: int | None = None, progress: Callable[[int, int], None] | None = None
) -> Looks:
    """Decode every sample once, in threads.

    Args:
        source: the samples.
        max_pixels: an image with more is not decoded, and counts as unreadable.
        workers: threads; one per processor without it.
        progress: called with the number of samples done and of all.
    """
    number = len(source)
    thumbs = np.zeros((number, THUMB_PX, THUMB_PX), np.uint8)
    headers: list[pixels.Header | None] = []
    file_hashes: list[bytes] = []
    pixel_hashes: list[bytes] = []
    errors: dict[int, tuple[str, str]] = {}
    workers = (os.cpu_count() or 1) if workers is None else workers
    looks = prefetched(
        lambda index: look_at(source, index, max_pixels=max_pixels), range(number), workers=workers, ahead=8 * workers
    )
    for index, look in enumerate(looks):
        headers.append(look.header)
        file_hashes.append(look.file_hash)
        pixel_hashes.append(look.pixel_hash)
        thumbs[index] = look.thumb
        if look.error is not None:
            errors[index] = look.error
        if progress is not None:
            progress(index + 1, number)
    return Looks(headers, file_hashes, pixel_hashes, thumbs, errors)


def look_at(source: Source, index: int, *, max_pixels: int) -> Look:
    """Decode one sample; whatever is wrong with it is in `Look.error`."""
    header, file_hash = None, b""
    try:
        data = source.read(index)
        if isinstance(data, bytes):
            file_hash = digest(data)
            header = pixels.probe(data, max_pixels=max_pixels)
        image = small_image(data, at_least_px=_DECODE_PX, max_pixels=max_pixels)
    except pixels.PixelError as error:
        return _unreadable(file_hash, error.reason, str(error))
    except DataError as error:
        return _unreadable(file_hash, "unreadable", error.what)
    shape = f"{image.width}x{image.height}".encode()
    thumb = image.convert("L").resize((THUMB_PX, THUMB_PX), Image.Resampling.BILINEAR)
    return Look(header, file_hash, digest(shape + image.tobytes()), np.asarray(thumb))


def _unreadable(file_hash: bytes, reason: str, detail: str) -> Look:
    return Look(None, file_hash, b"", np.zeros((THUMB_PX, THUMB_PX), np.uint8), (reason, detail))


def digest(data: bytes) -> bytes:
    """A hash of bytes; 16 of them are enough that no two files meet by chance."""
    return hashlib.blake2b(data, digest_size=16).digest()


def small_image(data: Any, *, at_least_px: int, max_pixels: int = pixels.MAX_PIXELS) -> Image.Image:
    """An upright RGB image of what a source reads, decoded small where its format allows that.

    Args:
        data: the bytes of a file, uint8 (H, W, C), or float (C, H, W) of a data set that transforms its items.
        at_least_px: of the shorter side, if it has so many.
        max_pixels: refuse larger files.
    Raises: PixelError: it cannot be decoded.
    """
    if isinstance(data, bytes):
        decoded = pixels.decode_image(data, max_pixels=max_pixels, at_least_px=at_least_px)
        return decoded if isinstance(decoded, Image.Image) else _from_array(decoded)
    return _from_array(np.asarray(data))


def _from_array(values: NDArray[Any]) -> Image.Image:
    if values.dtype != np.uint8:  # a transformed item: any range, channels first
        values = np.moveaxis(values.astype(np.float32), 0, -1)
        low, high = float(values.min()), float(values.max())
        values = ((values - low) * (255.0 / max(high - low, 1e-12))).round().astype(np.uint8)
    values = values if values.ndim == 3 else values[..., None]
    if values.shape[2] in (1, 2):
        return Image.fromarray(values[..., 0]).convert("RGB")
    return Image.fromarray(np.ascontiguousarray(values[..., :3]))
