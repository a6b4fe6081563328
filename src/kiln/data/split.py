"""Training, validation and test samples: by the hash of a name, so that a new file moves no old one.

Source: the threshold on a hash is as in the Speech Commands data set (Warden 2018, arXiv:1804.03209, section 6.3);
differs: a seed, groups, and a class that would be left empty lends a sample.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kiln.data.samples import SPLITS
from kiln.data.storage import counted, shown
from kiln.errors import ArtifactError, DataError, ResourceError, UsageError
from kiln.random import keys_of

if TYPE_CHECKING:
    from kiln.data.source import Source

KIND, VERSION = "kiln.split", 1
_COLUMNS = ("key", "split", "label", "group", "fold")


@dataclass(frozen=True, eq=False)
class Split:
    """Which samples train, validate and test.

    Attributes:
        train: (N,) int64, indices into the source, ascending; likewise the others.
        val: see `train`.
        test: see `train`; empty where the data has no test split and none was asked for.
        lent: keys that went elsewhere than their hash says, because a class would have been left empty.
        reached: the share of all samples in each split; the hash reaches the fractions asked for only roughly.
        notes: findings to print.
    """

    train: NDArray[np.int64]
    val: NDArray[np.int64]
    test: NDArray[np.int64]
    lent: tuple[str, ...] = ()
    reached: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def parts(self) -> dict[str, NDArray[np.int64]]:
        """The three index arrays by name."""
        return {"train": self.train, "val": self.val, "test": self.test}


def split_source(
    source: Source,
    class_of: Sequence[str],
    *,
    val_fraction: float = 0.15,
    test_fraction: float = 0.0,
    seed: int = 0,
) -> Split:
    """Cut what the data does not already say.

    Splits that the data has are kept as they are. Validation is cut from training, never from test; a test split is cut
    from training only when asked for. A sample goes where the hash of its group (or key) and the seed falls. A class
    that is left empty in validation lends its member with the lowest hash, and one left empty in training takes back
    the highest; members of a group move together, and no class is emptied by it.

    Args:
        source: the samples.
        class_of: one text per sample, as from a task's `strata`.
        val_fraction: share of the training samples for validation, where the data has none.
        test_fraction: share of the training samples for test; 0 cuts none.
        seed: another seed is another cut.
    Raises: UsageError: fractions out of range, or a test fraction where the data has a test split.
    """
    _check_fractions(val_fraction, test_fraction)
    given = np.array([split or "train" for split in source.splits or ("train",) * len(source)], dtype="U5")
    if test_fraction and (given == "test").any():
        raise UsageError(
            "E103", f"test_fraction = {test_fraction} has no effect: the data has a test split", hint="leave it out"
        )
    if (given == "val").any():
        val_fraction = 0.0
    pool = np.flatnonzero(given == "train")
    units = Units(source, class_of, pool, seed)
    where = np.select([units.hashes < val_fraction, units.hashes < val_fraction + test_fraction], [1, 2], default=0)
    moved, too_small = units.fill(where, lend=val_fraction > 0)
    notes = [f"{counted(len(too_small), 'class')} too small to validate: {shown(too_small)}"] if too_small else []
    part = np.array(SPLITS)[where][units.unit_of]  # (P,)
    given[pool] = part
    train, val, test = (np.flatnonzero(given == name) for name in SPLITS)
    lent = tuple(sorted(source.keys[index] for unit in moved for index in pool[units.members(unit)]))
    reached = {name: len(part) / max(len(source), 1) for name, part in zip(SPLITS, (train, val, test), strict=True)}
    return Split(train, val, test, lent, reached, (*notes, *parted_groups(source, given)))


def _check_fractions(val_fraction: float, test_fraction: float) -> None:
    for name, fraction in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
        if not 0 <= fraction < 1:
            raise UsageError("E102", f"{name} = {fraction}", expected="0 or more, and less than 1")
    if val_fraction + test_fraction >= 1:
        raise UsageError(
            "E102", f"val_fraction + test_fraction = {val_fraction + test_fraction:g}", expected="less than 1"
        )


class Units:
    """What moves as one: a group, or a sample without a group.

    Attributes:
        hashes: (U,) float64 in [0, 1), one per unit.
        unit_of: (P,) the unit of each sample of the pool.
        classes: of the members of each unit.
        of_class: the units of each class, in the order of their hashes.
    """

    def __init__(self, source: Source, class_of: Sequence[str], pool: NDArray[np.int64], seed: int) -> None:
        if len(class_of) != len(source):
            raise UsageError("E107", f"{len(class_of)} classes for {len(source)} samples", expected="one for each")
        groups = source.groups
        texts = [f"group {groups[i]}" if groups is not None and groups[i] else f"key {source.keys[i]}" for i in pool]
        number_of = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        self.unit_of = np.fromiter((number_of[text] for text in texts), np.int64, count=len(texts))
        keys = keys_of([f"split {seed} {text}" for text in number_of])
        self.hashes = (keys >> np.uint64(11)).astype(np.float64) * 2.0**-53
        self.classes: list[set[str]] = [set() for _ in number_of]
        self.of_class: dict[str, list[int]] = {}
        for unit, name in zip(self.unit_of.tolist(), (class_of[int(index)] for index in pool), strict=True):
            if name not in self.classes[unit]:
                self.classes[unit].add(name)
                self.of_class.setdefault(name, []).append(unit)
        for units in self.of_class.values():
            units.sort(key=lambda unit: (self.hashes[unit], unit))

    def members(self, unit: int) -> NDArray[np.int64]:
        """Places in the pool of the samples of a unit."""
        return np.flatnonzero(self.unit_of == unit)

    def fill(self, where: NDArray[np.int64], *, lend: bool) -> tuple[list[int], list[str]]:
        """Change `where` (0 train, 1 val, 2 test) in place so that every class trains and, with `lend`, validates.

        Returns: the units that moved, and the classes that cannot validate because nothing would be left to train.
        """
        counts = Counter((name, int(where[unit])) for name, units in self.of_class.items() for unit in units)
        moved: dict[int, None] = {}

        def move(unit: int, to: int) -> None:
            for name in self.classes[unit]:
                counts[name, int(where[unit])] -= 1
                counts[name, to] += 1
            where[unit] = to
            moved[unit] = None

        def can_leave(unit: int) -> bool:
            return where[unit] == 0 and all(counts[name, 0] > 1 for name in self.classes[unit])

        for name in sorted(self.of_class):
            if not counts[name, 0]:
                move(max(self.of_class[name], key=lambda unit: (where[unit] == 1, self.hashes[unit])), 0)
        too_small = []
        for name in sorted(self.of_class):
            if lend and not counts[name, 1]:
                lender = next(filter(can_leave, self.of_class[name]), None)
                if lender is None:
                    too_small.append(name)
                else:
                    move(lender, 1)
        return list(moved), too_small


def parted_groups(source: Source, split_of: NDArray[np.str_]) -> list[str]:
    """A note where the data's own splits part a group: a leak that is not ours to repair."""
    if source.groups is None:
        return []
    places: dict[str, set[str]] = {}
    for group, split in zip(source.groups, split_of.tolist(), strict=True):
        if group:
            places.setdefault(group, set()).add(split)
    parted = sorted(group for group, splits in places.items() if len(splits) > 1)
    if not parted:
        return []
    return [f"{counted(len(parted), 'group')} in more than one split of the data itself (a leak): {shown(parted)}"]


class SplitRow(NamedTuple):
    """One line of split.csv. `fold` is -1 where there are no folds."""

    split: str
    label: str
    group: str
    fold: int


def write_split_csv(
    path: str | os.PathLike[str], source: Source, split: Split, *, folds: NDArray[np.int64] | None = None
) -> None:
    """Write which sample is where: a table that can be read again, and given as a label table itself.

    Raises: ResourceError: the disk is full or cannot be written.
    """
    name_of = {int(index): name for name, part in split.parts().items() for index in part}
    text = io.StringIO(newline="")
    text.write(f"# {json.dumps({'kind': KIND, 'version': VERSION})}\n")
    columns = [name for name in _COLUMNS if name != "fold" or folds is not None]
    columns = [name for name in columns if name != "group" or source.groups is not None]
    # Before Python 3.13 the writer leaves a carriage return unquoted, and a reader would end the row there.
    quoting = csv.QUOTE_ALL if any("\r" in key for key in source.keys) else csv.QUOTE_MINIMAL
    writer = csv.writer(text, lineterminator="\n", quoting=quoting)
    writer.writerow(columns)
    for index, key in enumerate(source.keys):
        row = {
            "key": key,
            "split": name_of[index],
            "label": source.labels[index] if source.labels is not None else "",
            "group": source.groups[index] if source.groups is not None else "",
            "fold": int(folds[index]) if folds is not None else "",
        }
        writer.writerow([row[name] for name in columns])
    _write_whole(path, text.getvalue().encode())


def _write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    temporary = f"{os.fspath(path)}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise ResourceError("E401", f"cannot write {os.fspath(path)}: {error.strerror}") from error


def read_split_csv(path: str | os.PathLike[str]) -> dict[str, SplitRow]:
    """What `write_split_csv` wrote, by key.

    Raises: ArtifactError: another kind of file, or a newer version. DataError: damaged rows.
    """
    with open(path, encoding="utf-8", newline="") as file:
        first = file.readline()
        _check_first_line(first, path)
        rows = csv.DictReader(file)
        found: dict[str, SplitRow] = {}
        for number, row in enumerate(rows, 3):
            if None in row or None in row.values() or row.get("split") not in SPLITS or "key" not in row:
                raise DataError("E203", f"{os.fspath(path)} row {number} is damaged", expected=", ".join(_COLUMNS[:3]))
            fold = int(row["fold"]) if row.get("fold") else -1
            found[row["key"]] = SplitRow(row["split"], row.get("label", ""), row.get("group", ""), fold)
    return found


def _check_first_line(line: str, path: str | os.PathLike[str]) -> None:
    try:
        about = json.loads(line.removeprefix("#"))
    except ValueError:
        about = {}
    if not isinstance(about, dict) or about.get("kind") != KIND or about.get("version", 0) > VERSION:
        raise ArtifactError(
            "E303",
            f"{os.fspath(path)} is no split table of version {VERSION} or older",
            expected=f'a first line # {{"kind": "{KIND}", "version": {VERSION}}}',
            hint="update torchkiln if the file is newer",
        )
