"""What is said to people, in their language: English in the code, other languages in catalogues beside this file.

`tr` is for a text that the code says itself, `word` for a name that is shown (a metric, a column, a split), and
`kiln.language.patterns.translated` for an English sentence that was made elsewhere. What programs read stays English.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache

LANGUAGES = {"en": "English", "zh": "简体中文"}
VARIABLE = "KILN_LANG"
"""The environment variable that the command reads, and gives to the processes it starts."""

_process = {"language": "en"}
_within: ContextVar[str | None] = ContextVar("language", default=None)


def current() -> str:
    """The language of the moment: a key of `LANGUAGES`."""
    return _within.get() or _process["language"]


def set_language(language: str) -> None:
    """Speak a language from here on, in all threads.

    Raises: UsageError: it is none of `LANGUAGES`.
    """
    _process["language"] = _known(language)


@contextmanager
def speaking(language: str | None) -> Iterator[None]:
    """Speak a language within, in this thread; None changes nothing. Raises as `set_language`."""
    token = _within.set(_within.get() if language is None else _known(language))
    try:
        yield
    finally:
        _within.reset(token)


def _known(language: str) -> str:
    if language not in LANGUAGES:
        from kiln.errors import UsageError

        raise UsageError("E101", f"unknown language {language!r}", got=language, choices=tuple(LANGUAGES))
    return language


def tr(text: str, /, **values: object) -> str:
    """A text in the language of the moment, its `{fields}` filled with values as by `str.format`.

    A text without a translation stays English; a test holds that each one has its own.
    """
    if current() != "en":
        text = catalogue(current()).get(text, text)
    return text.format(**values) if values else text


def word(name: str) -> str:
    """A name as people of the language of the moment say it: `val` is `验证集`; in English it is itself.

    For what is shown and never for what is stored. A name that has no translation, such as a user's own, stays.
    """
    return name if current() == "en" else names(current()).get(name, name)


CATALOGUES = ("command", "errors", "report", "compare", "folds", "ensemble", "card")


@lru_cache
def catalogue(language: str) -> dict[str, str]:
    """English text -> its translation, brought together from a language's files."""
    found: dict[str, str] = {}
    for part in CATALOGUES:
        found |= _table(language, part)
    return found


@lru_cache
def names(language: str) -> dict[str, str]:
    """Names that are shown -> how they are said."""
    return _table(language, "names")


def _table(language: str, part: str) -> dict[str, str]:
    module = f"kiln.language.{language}_{part}"
    return getattr(importlib.import_module(module), language.upper()) if importlib.util.find_spec(module) else {}
