"""From label text to class names to numbers: the rules that every task shares.

A class is its name. Numbers are given to names once, when a model is made, and never by what a split happens to hold.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from kiln.errors import DataError, closest

_INTEGER = re.compile(r"[+-]?\d+")


def is_integer(text: str) -> bool:
    """Whether a label is a whole number, such as an index into a class-name file."""
    return _INTEGER.fullmatch(text) is not None


def sort_names(names: Iterable[str]) -> tuple[str, ...]:
    """Distinct names by code point; by value when all are integers."""
    distinct = sorted(set(names))
    if all(map(is_integer, distinct)):
        distinct.sort(key=int)
    return tuple(distinct)


def to_names(labels: Sequence[str], given: tuple[str, ...] | None) -> tuple[str, ...]:
    """Replace indices into a list of class names by the names; labels that are names stay.

    Args:
        labels: label texts.
        given: class names in index order, as from a class-name file; None leaves every label as it is.
    Returns: one name per label.
    Raises: DataError: an index outside the list, a label that is neither index nor name, or a name given twice.
    """
    if given is None:
        return tuple(labels)
    if twice := [name for name, count in Counter(given).items() if count > 1]:
        raise DataError("E203", f"the class names hold {twice[0]!r} more than once", expected="one line per class")
    known = set(given)
    # Names that are themselves numbers ("0" to "9") are matched by name: an index would be a second reading of them.
    by_index = not all(map(is_integer, given))
    names = []
    for row, label in enumerate(labels):
        if label in known:
            names.append(label)
        elif by_index and is_integer(label) and 0 <= int(label) < len(given):
            names.append(given[int(label)])
        elif by_index and is_integer(label):
            numbers = [int(text) for text in labels if is_integer(text)]
            raise DataError(
                "E203",
                f"label {label} has no class name: labels run from {min(numbers)} to {max(numbers)}",
                where=f"sample {row}",
                expected=f"0 to {len(given) - 1}, for {len(given)} class names",
                hint="if the numbers start at 1, put a line for 0 at the top of the class names",
            )
        else:
            raise unknown_labels(labels, given)
    return tuple(names)


def check_number(classes: tuple[str, ...], least: int) -> tuple[str, ...]:
    """The classes, if there are enough to learn from.

    Raises: DataError: fewer than `least`.
    """
    if len(classes) < least:
        found = f"one class, {classes[0]!r}" if classes else "no class"
        raise DataError(
            "E204",
            f"the data hold {found}",
            expected=f"at least {least}",
            hint="one folder per class, or a table with a label column",
        )
    return classes


def unknown_labels(labels: Iterable[str], classes: Sequence[str]) -> DataError:
    """The error for labels that are no class: what only the data have, and what only the classes have."""
    counts = Counter(labels)
    known = set(classes)
    unknown = sorted(label for label in counts if label not in known)
    absent = [name for name in classes if name not in counts]
    details = []
    for label in unknown[:20]:
        likely = closest(label, absent)
        meant = f"; did you mean {likely!r}?" if likely else ""
        details.append(f"only in the data: {label!r} (samples: {counts[label]}){meant}")
    details += [f"only in the classes: {name!r}" for name in absent[:20]]
    left_out = max(0, len(unknown) - 20) + max(0, len(absent) - 20)
    if left_out:
        details.append(f"... and {left_out} more")
    return DataError(
        "E205",
        f"labels in the data that are no class of the {len(classes)} known: {len(unknown)} of {len(counts)}",
        details=details,
        hint="classes are matched by name: rename what differs, or train with these data",
    )
