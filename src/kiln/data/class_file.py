"""Class names in index order, from a file or a sequence: the meaning of integer labels."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from kiln.data.storage import shown
from kiln.errors import DataError

_INDEXED = re.compile(r"\s*(\d+)[\s:,;]+(.+?)\s*")


def class_names_from(given: str | os.PathLike[str] | Sequence[str]) -> tuple[str, ...]:
    """Class names in index order.

    Args:
        given: the names themselves, or a file of them: one name a line; lines such as `0 cat` with the indices 0 to
            K-1; or JSON, a list or an object from index to name.
    Raises: DataError: the file cannot be read, holds no names, or holds one twice.
    """
    if isinstance(given, str | os.PathLike):
        where = os.fspath(given)
        try:
            with open(where, encoding="utf-8-sig") as file:
                text = file.read()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError("E203", f"cannot read the class names in {where}: {error}") from error
        names = _from_json(text, where) if text.lstrip().startswith(("[", "{")) else _from_lines(text)
    else:
        where, names = "class_names", [str(name) for name in given]
    names = [unicodedata.normalize("NFC", name.strip()) for name in names]
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if not names or not all(names) or twice:
        why = f"these stand there twice: {shown(twice)}" if twice else "it holds none, or an empty one"
        raise DataError("E203", f"no good class names in {where}: {why}", expected="one name a line, in index order")
    return tuple(names)


def _from_lines(text: str) -> list[str]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    indexed = [_INDEXED.fullmatch(line) for line in lines]
    numbers = {int(match[1]): match[2] for match in indexed if match}
    if sorted(numbers) == list(range(len(lines))):
        return [numbers[index] for index in range(len(lines))]
    return lines


def _from_json(text: str, where: str) -> list[str]:
    try:
        found = json.loads(text)
        if isinstance(found, dict):
            numbers = {int(index): name for index, name in found.items()}
            found = [numbers[index] for index in range(len(numbers))]
    except (ValueError, KeyError) as error:
        expected = 'a list of names, or {"0": "cat", "1": "dog"} with every index from 0'
        raise DataError("E203", f"cannot read the class names in {where}: {error!r}", expected=expected) from error
    return [str(name) for name in found]
