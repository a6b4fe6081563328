"""How many columns of a terminal a text takes: a Chinese character takes two."""

from __future__ import annotations

import unicodedata

from kiln.language import word


def width(text: str) -> int:
    """The columns that a text takes."""
    if text.isascii():
        return len(text)
    marks = sum(1 for letter in text if unicodedata.combining(letter))
    return len(text) - marks + sum(1 for letter in text if unicodedata.east_asian_width(letter) in "WF")


def padded(text: str, columns: int, *, right: bool = False) -> str:
    """A text with blanks after it, or before it, up to so many columns."""
    blanks = " " * max(0, columns - width(text))
    return blanks + text if right else text + blanks


def label(name: str, columns: int = 6) -> str:
    """A name in the language of the moment, as it stands before what is said of it: padded, and a blank."""
    return f"{padded(word(name), columns)} "
