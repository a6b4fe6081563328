"""What a layout, a table or a data set found: one column per fact, one row per sample."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kiln.data.storage import Entry

SPLITS = ("train", "val", "test")
_SPLIT_WORDS = {
    "train": "train", "training": "train", "trainset": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test", "testset": "test",
}  # fmt: skip


def split_word(word: str) -> str | None:
    """`train`, `val` or `test` for any of their usual spellings, else None."""
    return _SPLIT_WORDS.get(word.strip().lower())


@dataclass(frozen=True)
class Samples:
    """Columns of equal length, in the order in which they were found.

    Attributes:
        keys: the identity of each sample: unique, UTF-8.
        names: what the storage (or the data set) calls it.
        entries: size and identity of each file; empty identities where nothing is known.
        labels: raw label text; None where there are no labels.
        splits: `train`, `val`, `test` or None for each sample; None where the data says nothing of splits.
        groups: samples of one group must not be parted.
        class_names: names in index order, for integer labels.
        unlabelled: places whose label is empty, such as "labels.csv row 7".
        notes: findings to print.
    """

    keys: Sequence[str]
    names: Sequence[Any]
    entries: Sequence[Entry]
    labels: Sequence[str] | None = None
    splits: Sequence[str | None] | None = None
    groups: Sequence[str] | None = None
    class_names: tuple[str, ...] | None = None
    unlabelled: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def ordered(self) -> Samples:
        """The same samples sorted by key, by code point: independent of locale and of the order of a listing."""
        order = sorted(range(len(self.keys)), key=self.keys.__getitem__)
        columns = {
            field.name: tuple(column[i] for i in order)
            for field in dataclasses.fields(self)
            if field.name in {"keys", "names", "entries", "labels", "splits", "groups"}
            and (column := getattr(self, field.name)) is not None
        }
        return dataclasses.replace(self, **columns)
