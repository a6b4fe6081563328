"""Files one by one: unreadable, empty, stored or shaped unlike the others, turned by EXIF."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from kiln.data.checks.findings import DROP, KEEP, Finding
from kiln.data.checks.looks import Looks
from kiln.pixels import Header

_GREY, _DEEP = ("1", "L", "LA", "La"), ("I", "F", "I;16", "I;16B")
_MOST_RATIO = 5.0
_SIZE_FACTOR = 8.0
_TINY_PX = 16
_COMMON = 0.25
"""Share of the images from which on a form is no exception."""


def file_findings(keys: Sequence[str], looks: Looks, empty: NDArray[np.bool_]) -> list[Finding]:
    """What is odd about single files.

    Args:
        keys: of all samples.
        looks: at all samples.
        empty: (N,) which are of nearly one colour.
    """
    found = [
        Finding("unreadable", f"{reason}: {detail}", (keys[index],), (DROP,))
        for index, (reason, detail) in looks.errors.items()
    ]
    found += [
        Finding("empty", "nearly one colour", (keys[index],), (KEEP,)) for index in np.flatnonzero(empty).tolist()
    ]
    headers = [(key, header) for key, header in zip(keys, looks.headers, strict=True) if header is not None]
    for code, key, detail in (*_odd_modes(headers), *_odd_sizes(headers), *_rotated(headers)):
        found.append(Finding(code, detail, (key,), (KEEP,)))
    return found


def _traits(header: Header) -> list[str]:
    mode = header.mode
    traits = ["grey" if mode in _GREY else "colour"] if not mode.startswith(("uint", "float", "bool")) else []
    if mode in _DEEP:
        traits = [f"more than 8 bits a channel ({mode})"]
    if mode in ("RGBA", "RGBa", "LA", "La", "PA"):
        traits.append("an alpha channel, which is laid over white")
    if mode == "CMYK":
        traits.append("CMYK, the form of printing")
    if header.frames > 1:
        traits.append("several frames, of which the first counts")
    return traits


def _odd_modes(headers: Sequence[tuple[str, Header]]) -> Iterator[tuple[str, str, str]]:
    traits = [(key, _traits(header)) for key, header in headers]
    counts = Counter(trait for _, some in traits for trait in some)
    for key, some in traits:
        odd = [trait for trait in some if counts[trait] < _COMMON * len(traits)]
        if odd:
            yield "odd_mode", key, "; ".join(_among(trait) for trait in odd)


def _among(trait: str) -> str:
    return {"grey": "grey among colour images", "colour": "colour among grey images"}.get(trait, trait)


def _odd_sizes(headers: Sequence[tuple[str, Header]]) -> Iterator[tuple[str, str, str]]:
    if not headers:
        return
    sides = np.array([(header.width * header.height) ** 0.5 for _, header in headers])
    ratios = np.array([max(header.width / header.height, header.height / header.width) for _, header in headers])
    usual, usual_ratio = float(np.median(sides)), float(np.median(ratios))
    for (key, header), side, ratio in zip(headers, sides, ratios, strict=True):
        size = f"{header.width} x {header.height}"
        if ratio > _MOST_RATIO and ratio > 2 * usual_ratio:
            yield "odd_size", key, f"{size}: a strip, {ratio:.0f} times as long as wide"
        elif side * _SIZE_FACTOR < usual:
            yield "odd_size", key, f"{size}: tiny beside the others, which have about {usual:.0f} px"
        elif side > _SIZE_FACTOR * usual:
            yield "odd_size", key, f"{size}: huge beside the others, which have about {usual:.0f} px"
        elif min(header.width, header.height) < _TINY_PX < usual:
            yield "odd_size", key, f"{size}: fewer than {_TINY_PX} pixels on a side"


def _rotated(headers: Sequence[tuple[str, Header]]) -> Iterator[tuple[str, str, str]]:
    for key, header in headers:
        if header.orientation != 1:
            yield "rotated", key, f"EXIF orientation {header.orientation}"
