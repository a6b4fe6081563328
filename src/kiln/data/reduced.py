"""A source whose images are reduced copies: what `kiln pack --px` writes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from kiln import pixels
from kiln.data.cache import StoredForm
from kiln.data.fingerprint import digest
from kiln.data.reader import Reader, header_of
from kiln.data.source import MAX_PIXELS, Source
from kiln.data.storage import Entry
from kiln.errors import DataError, UsageError

_GREY = frozenset({"1", "L", "I", "F", "LA"})


class _ReducedReader:
    """Reads samples of another reader as copies. With a JPEG quality, files that are small enough stay as they are."""

    def __init__(self, reader: Reader, form: StoredForm) -> None:
        self.has_headers = form.quality is not None
        self._reader, self._form = reader, form

    def read(self, name: Any) -> bytes | np.ndarray:
        """An array (H, W, C), or the bytes of a file. Raises: DataError: it is no image."""
        item: Any = self._reader.read(name)
        try:
            if isinstance(item, bytes) and self._form.quality is not None:
                header = header_of(item, self._form.max_pixels)
                if min(header.height, header.width) <= self._form.px:
                    return item
            return self._form.make(item)
        except pixels.PixelError as error:
            raise DataError("E202", f"an image cannot be reduced: {error}", hint="mend or remove it") from error

    def header(self, name: Any, max_pixels: int) -> pixels.Header:
        """The header of the copy, which is made for it."""
        return header_of(self.read(name), max_pixels)


def reduced(source: Source, *, px: int, quality: int | None = None) -> Source:
    """The same samples with their images reduced: upright, the shorter side at most `px`.

    Args:
        source: of files or uint8 arrays.
        px: of the shorter side; larger ones are reduced once, with antialiasing (bicubic).
        quality: of a JPEG, 1 to 100; None gives pixels.
    Raises: UsageError: below 1 px, a quality that is none, or nothing that can be reduced.
    """
    if px < 1 or (quality is not None and not 1 <= quality <= 100):
        raise UsageError("E102", f"px = {px}, jpeg = {quality}", expected="at least 1 px; a quality from 1 to 100")
    if source.transformed:
        raise UsageError("E107", "these samples come already transformed", expected="images that can be reduced")
    form = StoredForm(px, _channels(source), "bicubic", MAX_PIXELS, quality)
    return replace(
        source,
        fingerprint=digest([source.fingerprint, repr(form)]),
        _entries=[Entry(0, f"{source.identity_of(index)} {form!r}") for index in range(len(source))],
        _reader=_ReducedReader(source._reader, form),
    )


def _channels(source: Source) -> int:
    """Of all copies: one where every image is grey, those of arrays, else three."""
    modes: set[str] = set()
    for index in range(len(source)):
        try:
            modes.add(source.header(index).mode)
        except pixels.PixelError:
            continue  # it is named when its turn comes
    numbers = {int(mode.rpartition("x")[2]) for mode in modes if mode.rpartition("x")[2].isdecimal()}
    if len(numbers) == 1 and len(modes) == 1:
        return numbers.pop()
    return 1 if modes and all(mode in _GREY or mode.startswith("I;") for mode in modes) else 3


def described(px: int, quality: int | None) -> str:
    """What a packed copy says of itself."""
    return f"reduced to {px} px on the shorter side when they were packed" + (f", JPEG {quality}" if quality else "")
