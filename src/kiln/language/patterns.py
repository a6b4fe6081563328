"""Sentences that were made in English elsewhere, said in the language of the moment: errors, reasons, notes.

A pattern is the English sentence with `{name}` for what varies; its translation has the same names. In the English one
`{name:d}` stands for a number, and any other `{name}` for any text. In the translation `{name:t}` is itself translated.
"""

from __future__ import annotations

import importlib
import re
import string
from functools import lru_cache
from typing import NamedTuple

from kiln.language import current

PARTS = ("usage", "failures", "notes", "errors_models", "errors_optim", "errors_data")
_VARIES = {"": r"(?P<{}>.+)", "d": r"(?P<{}>[\d,.]+)"}


class _Text(str):
    """What a pattern caught; formatted by `t` it is translated."""

    __slots__ = ()

    def __format__(self, spec: str) -> str:
        return translated(str(self)) if spec == "t" else str(self)


class Pattern(NamedTuple):
    """An English sentence with gaps, and how another language says it."""

    regex: re.Pattern[str]
    says: str


def translated(text: str) -> str:
    """A sentence in the language of the moment; one that no pattern knows stays English, as does all of it in English.

    Of several patterns that fit, the one with the most letters of its own is taken.
    """
    if current() == "en" or not text:
        return text
    for pattern in patterns(current()):
        if found := pattern.regex.fullmatch(text):
            return pattern.says.format_map({name: _Text(value or "") for name, value in found.groupdict().items()})
    return text


@lru_cache
def patterns(language: str) -> tuple[Pattern, ...]:
    """All patterns of a language, those with the most letters of their own first."""
    by_length = sorted(sentences(language).items(), key=lambda pair: -_num_letters(pair[0]))
    return tuple(Pattern(compiled(english), says) for english, says in by_length)


@lru_cache
def sentences(language: str) -> dict[str, str]:
    """English pattern -> its translation, brought together from a language's files."""
    found: dict[str, str] = {}
    for part in PARTS:
        found |= getattr(importlib.import_module(f"kiln.language.{language}_{part}"), language.upper())
    return found


def compiled(english: str) -> re.Pattern[str]:
    """The regular expression of a pattern."""
    pieces = []
    for literal, name, spec, _ in string.Formatter().parse(english):
        pieces.append(re.escape(literal))
        if name is not None:
            pieces.append(_VARIES[spec or ""].format(name))
    return re.compile("".join(pieces), re.DOTALL)


def _num_letters(english: str) -> int:
    return sum(len(literal) for literal, *_ in string.Formatter().parse(english))
