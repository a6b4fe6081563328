"""Small pictures of samples, to stand inside a page."""

from __future__ import annotations

import base64
import io

from PIL import Image

from kiln.data.checks.looks import small_image
from kiln.data.source import Source
from kiln.errors import DataError
from kiln.pixels import MAX_PIXELS, PixelError

PICTURE_PX = 200


class Album:
    """Makes a small picture of a sample, once.

    Args:
        source: where the pictures come from; without one there are none.
        max_pixels: larger images are not shown.
        picture_px: the longer side of a picture at most.
    """

    def __init__(self, source: Source | None, max_pixels: int = MAX_PIXELS, *, picture_px: int = PICTURE_PX) -> None:
        self._source = source
        self._max_pixels = max_pixels
        self._picture_px = picture_px
        self._index = {key: index for index, key in enumerate(source.keys)} if source is not None else {}
        self._made: dict[str, str] = {}

    def image(self, key: str) -> str:
        """A sample's picture as a data URI; empty where there is none or it cannot be decoded."""
        if key not in self._made:
            self._made[key] = self._make(key)
        return self._made[key]

    def _make(self, key: str) -> str:
        if self._source is None or key not in self._index:
            return ""
        try:
            data = self._source.read(self._index[key])
            image = small_image(data, at_least_px=self._picture_px, max_pixels=self._max_pixels)
        except (PixelError, DataError):
            return ""
        image.thumbnail((self._picture_px, self._picture_px), Image.Resampling.BILINEAR)
        file = io.BytesIO()
        image.save(file, "JPEG", quality=80)
        return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
