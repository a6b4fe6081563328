"""What a user decided about single samples, applied to a source: dropped, relabelled, moved, or held together."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kiln.data.checks.findings import COLUMNS, DROP, KEEP, KIND, VERSION
from kiln.data.checks.grouping import joined
from kiln.data.fingerprint import digest
from kiln.data.samples import SPLITS
from kiln.data.storage import counted
from kiln.errors import ArtifactError, DataError, closest

if TYPE_CHECKING:
    from kiln.data.source import Source

_SHOWN_PROBLEMS = 20
_EXPECTED = "keep, drop, relabel:CLASS, or move:train, move:val, move:test"


@dataclass
class Decisions:
    """What a table decides, by key.

    Attributes:
        drop: samples to leave out.
        relabel: the new label.
        move: the new split.
        groups: samples that must stay in one split, as lists of keys.
    """

    drop: set[str] = field(default_factory=set)
    relabel: dict[str, str] = field(default_factory=dict)
    move: dict[str, str] = field(default_factory=dict)
    groups: list[list[str]] = field(default_factory=list)


def apply_decisions(source: Source, path: str | os.PathLike[str]) -> Source:
    """The source without what a user dropped, and with the labels, splits and groups that the user gave.

    Args:
        source: the samples.
        path: a `check.csv`, edited or not, or any table with the columns `key` and `decision`, and perhaps `group`: samples
            with the same number in it are held together, unless they are dropped.
    Returns: another source with another fingerprint; a note says what was done.
    Raises: DataError: no such table, a decision that is none, that contradicts another of the same sample, or that is
        about a sample, class or split that the data does not have. ArtifactError: a table of another kind or version.
    """
    decisions = read_decisions(source, path)
    kept = [index for index, key in enumerate(source.keys) if key not in decisions.drop]
    if not kept:
        raise DataError("E204", f"{os.fspath(path)} drops all {counted(len(source), 'sample')} of {source.where}")
    keys = tuple(source.keys[index] for index in kept)
    labels = source.labels and tuple(decisions.relabel.get(source.keys[i], source.labels[i]) for i in kept)
    splits = source.splits and tuple(decisions.move.get(source.keys[i], source.splits[i]) for i in kept)
    groups = _groups(source, kept, decisions)
    unlabelled = tuple(repr(key) for key, label in zip(keys, labels or (), strict=False) if not label)
    done = [
        f"{counted(number, 'sample')} {what}"
        for number, what in (
            (len(source) - len(kept), "dropped"),
            (len(decisions.relabel), "relabelled"),
            (len(decisions.move), "moved"),
        )
        if number
    ]
    together = sum(len(set(group) & set(keys)) > 1 for group in decisions.groups)
    done += [f"{counted(together, 'group')} held together"] if together else []
    note = f"{os.fspath(path)}: {', '.join(done) or 'nothing to change'}"
    return dataclasses.replace(
        source,
        keys=keys,
        labels=labels,
        splits=splits,
        groups=groups,
        fingerprint=digest((source.fingerprint,), keys, labels, splits, groups),
        notes=(*source.notes, note),
        unlabelled=unlabelled if source.unlabelled else (),
        _names=tuple(source._names[index] for index in kept),
        _entries=tuple(source._entries[index] for index in kept),
    )


def _groups(source: Source, kept: Sequence[int], decisions: Decisions) -> tuple[str, ...] | None:
    """The groups of the data, those that a decision connects become one; named by their first member."""
    if not decisions.groups:
        return source.groups and tuple(source.groups[index] for index in kept)
    own = {source.keys[i]: f"group {source.groups[i]}" for i in kept if source.groups and source.groups[i]}
    there = {source.keys[index] for index in kept}
    pairs = [(f"key {key}", group) for key, group in own.items()]
    for keys in decisions.groups:
        present = [key for key in keys if key in there]
        pairs += [(f"key {present[0]}", f"key {other}") for other in present[1:]]
    name_of: dict[str, str] = {}
    for group in joined(pairs):
        members = [item.removeprefix("key ") for item in group if item.startswith("key ")]
        names = sorted({own[key].removeprefix("group ") for key in members if key in own})
        name_of |= dict.fromkeys(members, names[0] if len(names) == 1 else f"with {min(members)}")
    return tuple(name_of.get(source.keys[index], "") for index in kept)


def read_decisions(source: Source, path: str | os.PathLike[str]) -> Decisions:
    """Read a table of decisions and hold it against the data; errors as for `apply_decisions`."""
    where = os.fspath(path)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise DataError(
            "E201",
            f"cannot read the decisions {where}: {why}",
            hint="kiln check DATA --output OUT writes OUT/check.csv",
        ) from error
    head, _, rest = text.partition("\n")
    first = 1
    if head.lstrip('"').startswith("#"):
        _check_kind(head, where)
        text, first = rest, 2
    rows = csv.DictReader(io.StringIO(text, newline=""))
    missing = {"key", "decision"} - set(rows.fieldnames or ())
    if missing:
        raise DataError(
            "E203",
            f"{where} has no column {' and '.join(sorted(missing))}",
            expected=f"the columns of check.csv: {', '.join(COLUMNS)}",
        )
    reading = _Reading(source)
    for row in rows:
        reading.read(first - 1 + rows.line_num, row)
    reading.raise_if_wrong(where)
    return reading.decisions()


def _check_kind(line: str, where: str) -> None:
    cells = next(csv.reader([line]), [""])  # a spreadsheet may have put quotes around it
    try:
        about = json.loads(",".join(cells).strip().rstrip(",").lstrip("#"))
    except ValueError:
        try:
            about = json.loads(line.strip().lstrip("#"))
        except ValueError:
            about = {}
    if not isinstance(about, dict) or about.get("kind") != KIND or about.get("version", 0) > VERSION:
        raise ArtifactError(
            "E303",
            f"{where} is no table of decisions of version {VERSION} or older",
            expected=f'a first line # {{"kind": "{KIND}", "version": {VERSION}}}, or none',
            hint="update torchkiln if the file is newer",
        )


class _Reading:
    """The rows of a table, as they come."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._index = {key: index for index, key in enumerate(source.keys)}
        self._classes = {*(source.labels or ()), *(source.class_names or ())}
        self._decided: dict[str, tuple[str, int]] = {}
        self._groups: dict[str, list[str]] = {}
        self._problems: list[str] = []
        self._kinds: Counter[str] = Counter()

    def read(self, number: int, row: dict[str, str]) -> None:
        key, decision = row["key"] or "", (row["decision"] or "").strip() or KEEP
        if key not in self._index:
            self._wrong("unknown key", f"row {number}: {key!r} is not in {self._source.where}")
            return
        problem = self._problem_of(decision)
        if problem:
            self._wrong("unknown decision", f"row {number}: {decision!r}{problem}")
            return
        group = (row.get("group") or "").strip()
        if group:
            self._groups.setdefault(group, []).append(key)
        if decision == KEEP:
            return
        before, there = self._decided.setdefault(key, (decision, number))
        if before != decision:
            self._wrong("contradiction", f"row {number}: {key!r} is {decision!r}, and {before!r} in row {there}")

    def _problem_of(self, decision: str) -> str:
        word, colon, value = decision.partition(":")
        if decision in (KEEP, DROP):
            return ""
        if word == "relabel" and colon:
            if self._source.labels is None:
                return ": the data has no labels"
            if value in self._classes and value:
                return ""
            meant = closest(value, self._classes)
            return f": no such class{f'; did you mean {meant!r}?' if meant else ''}"
        if word == "move" and colon:
            if value not in SPLITS:
                return f": the splits are {', '.join(SPLITS)}"
            return "" if self._source.splits is not None else ": the data has no splits of its own, training cuts them"
        return f" is none of {_EXPECTED}"

    def _wrong(self, kind: str, line: str) -> None:
        self._kinds[kind] += 1
        if len(self._problems) < _SHOWN_PROBLEMS:
            self._problems.append(line)

    def raise_if_wrong(self, where: str) -> None:
        total = self._kinds.total()
        if not total:
            return
        kinds = ", ".join(f"{kind}: {count:,}" for kind, count in self._kinds.most_common())
        more = [f"... and {total - len(self._problems):,} more"] if total > len(self._problems) else []
        raise DataError(
            "E203",
            f"{where}: {counted(total, 'row')} wrong ({kinds})",
            expected=_EXPECTED,
            details=[*self._problems, *more],
            hint="correct these rows, or check the data again: kiln check DATA --output OUT",
        )

    def decisions(self) -> Decisions:
        found = Decisions(groups=[group for group in self._groups.values() if len(group) > 1])
        for key, (decision, _) in self._decided.items():
            word, _, value = decision.partition(":")
            if word == DROP:
                found.drop.add(key)
            elif word == "relabel":
                found.relabel[key] = value
            else:
                found.move[key] = value
        return found
