"""A contact sheet: images beside what became of them, each with its names, as one picture. Needs Pillow alone."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from kiln.errors import UsageError

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
LARGEST_PX, SMALLEST_PX = 256, 96
"""Larger images are reduced to this side; smaller ones enlarged by whole numbers until they reach theirs."""
WIDTH_TO_HEIGHT = 1.6
"""Of the whole sheet, about: a screen."""

_MARGIN, _GAP, _BETWEEN = 16, 14, 2
_FONT_PX, _LINE_PX = 14, 19
_BACKGROUND, _INK, _FAINT, _FRAME = "#ffffff", "#1a1a1a", "#6e6e6e", "#c8c8c8"
_SHORTENED = "..."
WIDER_FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial Unicode.ttf", "arial.ttf", "NotoSansCJK-Regular.ttc")
"""Tried where Pillow's own font, which has little more than ASCII, lacks a letter; most systems have one of them."""

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


@dataclass(frozen=True)
class Frame:
    """One sample on the sheet.

    Attributes:
        images: side by side, each (H, W, C) uint8. One or two channels are shown as grey, of more than three the first
            three.
        label: its first line, what it is.
        name: its second line, where it comes from; shortened in the middle, because paths tell most at their ends.
    """

    images: tuple[NDArray[np.uint8], ...]
    label: str
    name: str


def contact_sheet(frames: Sequence[Frame], *, heading: Sequence[str] = (), font: Font | None = None) -> Image.Image:
    """Draw samples in a grid that is about as wide as a screen.

    Args:
        frames: in reading order; at least one, all with equally many images.
        heading: lines above the grid; longer ones are wrapped.
        font: for all text; without one, what `font_for` finds for it.
    Returns: an RGB image.
    """
    font = font or font_for(texts_of(frames, heading))
    tiles = [[_tile(image) for image in frame.images] for frame in frames]
    tile_width = max(tile.width for row in tiles for tile in row)
    tile_height = max(tile.height for row in tiles for tile in row)
    num_images = max(map(len, tiles))
    width = num_images * tile_width + (num_images - 1) * _BETWEEN
    height = tile_height + 2 * _LINE_PX + 4
    columns = _num_columns(len(frames), width + _GAP, height + _GAP)
    rows = math.ceil(len(frames) / columns)
    inner = columns * (width + _GAP) - _GAP
    lines = [part for line in heading for part in wrapped(line, inner, font)]
    top = _MARGIN + len(lines) * _LINE_PX + (_GAP // 2 if lines else 0)
    size = (inner + 2 * _MARGIN, top + rows * (height + _GAP) - _GAP + _MARGIN)
    sheet = Image.new("RGB", size, _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        draw.text((_MARGIN, _MARGIN + number * _LINE_PX), line, fill=_INK, font=font)
    for number, (frame, images) in enumerate(zip(frames, tiles, strict=True)):
        left, y = _MARGIN + number % columns * (width + _GAP), top + number // columns * (height + _GAP)
        for place, tile in enumerate(images):
            x = left + place * (tile_width + _BETWEEN)
            sheet.paste(tile, (x, y))
            draw.rectangle((x, y, x + tile.width - 1, y + tile.height - 1), outline=_FRAME)
        draw.text((left, y + tile_height + 4), shortened(frame.label, width, font, keep_end=0), fill=_INK, font=font)
        name = shortened(frame.name, width, font, keep_end=0.7)
        draw.text((left, y + tile_height + 4 + _LINE_PX), name, fill=_FAINT, font=font)
    return sheet


def encode_sheet(sheet: Image.Image, suffix: str) -> bytes:
    """The bytes of a file with this suffix.

    Raises: UsageError: no form of picture that sheets are written in.
    """
    check_suffix(suffix)
    options = {"PNG": {"optimize": True}, "JPEG": {"quality": 92, "subsampling": 0}}
    kind = FORMATS[suffix.lower()]
    data = io.BytesIO()
    sheet.save(data, kind, **options[kind])
    return data.getvalue()


def check_suffix(suffix: str) -> None:
    """Hold that a sheet can be written in a file with this suffix, before any work is done. Raises as `encode_sheet`."""
    if suffix.lower() not in FORMATS:
        raise UsageError(
            "E101", f"a contact sheet cannot be a {suffix or 'file without suffix'}", choices=tuple(FORMATS)
        )


def texts_of(frames: Sequence[Frame], heading: Sequence[str]) -> list[str]:
    """All that will be written on a sheet."""
    return [*heading, *(text for frame in frames for text in (frame.label, frame.name))]


def font_for(texts: Sequence[str]) -> Font:
    """Pillow's own font if it can show these texts, else the font of the system that lacks least."""
    best = _default_font()
    missing = len(missing_glyphs(texts, best))
    for name in WIDER_FONTS:
        if not missing:
            break
        try:
            font = ImageFont.truetype(name, _FONT_PX)
        except OSError:
            continue  # this system has no such font
        lacking = len(missing_glyphs(texts, font))
        if lacking < missing:
            best, missing = font, lacking
    return best


@lru_cache(maxsize=1)
def _default_font() -> Font:
    return ImageFont.load_default(size=_FONT_PX)


def load_font(path: str | os.PathLike[str]) -> Font:
    """A TrueType or OpenType font: a file, or a name that the system knows.

    Raises: UsageError: it cannot be read.
    """
    try:
        return ImageFont.truetype(os.fspath(path), _FONT_PX)
    except OSError as error:
        raise UsageError(
            "E101", f"font = {os.fspath(path)!r}: {error}", expected="a .ttf or .otf file, or a font of the system"
        ) from error


def missing_glyphs(texts: Sequence[str], font: Font) -> str:
    """The characters of texts that a font has no glyph for, each once; they are drawn as empty boxes."""
    nothing = _outline("\uffff", font)
    characters = sorted(set("".join(map(printable, texts))) - {" "})
    return "".join(character for character in characters if _outline(character, font) == nothing)


def _outline(character: str, font: Font) -> bytes:
    drawn = Image.new("1", (4 * _FONT_PX, 2 * _LINE_PX))
    ImageDraw.Draw(drawn).text((_FONT_PX, 0), character, fill=1, font=font)
    return drawn.tobytes()


def printable(text: str) -> str:
    """Text on one line: line breaks, control characters and undecodable bytes are written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def shortened(text: str, width_px: int, font: Font, *, keep_end: float) -> str:
    """Text cut to a width, with dots where something is left out.

    Args:
        text: any; made printable.
        width_px: of what is returned, at most.
        font: that it will be drawn in.
        keep_end: the share of what is kept that comes from its end: 0 keeps the beginning.
    """
    text = printable(text)
    if font.getlength(text) <= width_px:
        return text
    fits, too_long = 0, len(text)
    while too_long - fits > 1:
        kept = (fits + too_long) // 2
        if font.getlength(_cut(text, kept, keep_end)) <= width_px:
            fits = kept
        else:
            too_long = kept
    return _cut(text, fits, keep_end)


def _cut(text: str, kept: int, keep_end: float) -> str:
    end = round(kept * keep_end)
    return text[: kept - end] + _SHORTENED + (text[-end:] if end else "")


def wrapped(text: str, width_px: int, font: Font) -> list[str]:
    """Text as lines of at most a width, broken between words; a word that is too long alone is shortened."""
    lines = [""]
    for word in printable(text).split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if font.getlength(longer) <= width_px:
            lines[-1] = longer
        else:
            lines += [shortened(word, width_px, font, keep_end=0.5)]
    return [line for line in lines if line]


def _tile(image: NDArray[np.uint8]) -> Image.Image:
    """An image of any size and number of channels as RGB, at a size that can be looked at."""
    picture = Image.fromarray(image[..., 0] if image.shape[2] < 3 else np.ascontiguousarray(image[..., :3])).convert(
        "RGB"
    )
    longest = max(picture.size)
    if longest > LARGEST_PX:
        scale = LARGEST_PX / longest
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        return picture.resize(size, Image.Resampling.LANCZOS)
    times = math.ceil(SMALLEST_PX / longest)
    return picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)


def _num_columns(num_frames: int, width: int, height: int) -> int:
    """As many as make the sheet about as wide as a screen, and no last row nearly empty if that can be helped."""
    ideal = math.sqrt(num_frames * height * WIDTH_TO_HEIGHT / width)
    near = {max(1, math.floor(ideal)), max(1, math.ceil(ideal))}
    return min(near, key=lambda columns: (-num_frames % columns, abs(columns - ideal)))
