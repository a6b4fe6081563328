"""Pictures of many samples within a budget of bytes: first smaller and plainer, then fewer."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kiln.data.checks.looks import small_image
from kiln.data.prefetch import prefetched
from kiln.data.source import Source
from kiln.errors import DataError
from kiln.pixels import MAX_PIXELS, PixelError

BUDGET_BYTES = 3_400_000
"""Of all pictures as text; the rest of the page has 1.5 MB."""
MOST_PICTURES = 1200
LADDER = ((128, 78), (112, 70), (96, 62), (80, 55), (64, 50))
"""Longer side in pixels and quality of JPEG, the best first."""
SALIENCY_PX = 128
WARM, HIGHEST = np.array([255.0, 110.0, 0.0]), 0.75
"""Colour of what spoke for an answer, and its share in the picture where that was most."""
_WORKERS = 2


class Thumb(NamedTuple):
    """A picture in the page.

    Attributes:
        name: its id there.
        uri: its data.
        width: in pixels.
        height: in pixels.
    """

    name: str
    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Pictures:
    """What can be shown.

    Attributes:
        thumbs: by key of the sample.
        left_out: keys of pictures that were wanted and did not fit.
    """

    thumbs: Mapping[str, Thumb]
    left_out: frozenset[str]


class Photographs:
    """Decodes samples of a source, small.

    Args:
        source: where they are; without one there are none.
        max_pixels: larger images are not decoded.
    """

    def __init__(self, source: Source | None, max_pixels: int = MAX_PIXELS) -> None:
        self.source = source
        self._max_pixels = max_pixels
        self.index = {key: index for index, key in enumerate(source.keys)} if source is not None else {}

    def image(self, key: str) -> Image.Image | None:
        """A sample, upright, its longer side at most that of the best pictures; None where it cannot be read."""
        if self.source is None or key not in self.index:
            return None
        try:
            data = self.source.read(self.index[key])
            image = small_image(data, at_least_px=LADDER[0][0], max_pixels=self._max_pixels)
        except (PixelError, DataError):
            return None
        image.thumbnail((LADDER[0][0], LADDER[0][0]), Image.Resampling.BILINEAR)
        return image

    def images(self, keys: Sequence[str]) -> list[Image.Image | None]:
        """Several of them, decoded side by side."""
        return list(prefetched(self.image, keys, workers=_WORKERS, ahead=8 * _WORKERS))


def make_pictures(photographs: Photographs, wanted: Sequence[str], *, budget_bytes: int = BUDGET_BYTES) -> Pictures:
    """Picture samples so that all fit.

    Args:
        photographs: where they come from.
        wanted: keys, the most wanted first; doubles count once.
        budget_bytes: of all pictures together, as they stand in the page.
    """
    keys = list(dict.fromkeys(key for key in wanted if key in photographs.index))
    images = {
        key: image
        for key, image in zip(keys[:MOST_PICTURES], photographs.images(keys[:MOST_PICTURES]), strict=True)
        if image is not None
    }
    unreadable = set(keys[:MOST_PICTURES]) - images.keys()
    step = _best_step(list(images.values()), budget_bytes)
    thumbs: dict[str, Thumb] = {}
    spent = 0
    for key, image in images.items():
        thumb = _encode(f"p{len(thumbs)}", image, *LADDER[step])
        if spent + len(thumb.uri) > budget_bytes:
            break
        spent += len(thumb.uri)
        thumbs[key] = thumb
    return Pictures(thumbs, frozenset(keys) - thumbs.keys() - unreadable)


def _best_step(images: Sequence[Image.Image], budget_bytes: int) -> int:
    """The first step of the ladder on which all seem to fit, judged by a part of them."""
    part = images[:: max(1, len(images) // 40)]
    for step, (size, quality) in enumerate(LADDER):
        expected = sum(len(_encode("", image, size, quality).uri) for image in part) / max(len(part), 1) * len(images)
        if expected <= 0.95 * budget_bytes:
            return step
    return len(LADDER) - 1


def _encode(name: str, image: Image.Image, size: int, quality: int) -> Thumb:
    small = image.copy()
    small.thumbnail((size, size), Image.Resampling.BILINEAR)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=quality, optimize=True)
    uri = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
    return Thumb(name, uri, small.width, small.height)


def saliency_picture(name: str, image: NDArray[np.uint8], heat: NDArray[np.float32]) -> Thumb:
    """What the model was given, in grey, with colour where it looked.

    Args:
        name: id in the page.
        image: (C, H, W), of one or three channels, or more, of which the first three are shown.
        heat: (h, w) from 0 to 1.
    """
    height, width = image.shape[1:]
    planes = image[:3] if len(image) >= 3 else np.repeat(image[:1], 3, axis=0)
    wide = Image.fromarray(heat.astype(np.float32), "F").resize((width, height), Image.Resampling.BICUBIC)
    share = np.clip(np.asarray(wide), 0, 1)[..., None] ** 0.8
    grey = planes.mean(axis=0)[..., None] * 0.6 + 30
    mixed = np.clip(grey * (1 - HIGHEST * share) + WARM * HIGHEST * share, 0, 255).astype(np.uint8)
    shown = Image.fromarray(mixed)
    if max(shown.size) < SALIENCY_PX:
        factor = SALIENCY_PX / max(shown.size)
        size = (max(1, round(shown.width * factor)), max(1, round(shown.height * factor)))
        shown = shown.resize(size, Image.Resampling.BILINEAR)
    return _encode(name, shown, SALIENCY_PX, LADDER[0][1])
