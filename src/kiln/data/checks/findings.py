"""What a check found: one finding per case, with the samples it concerns, and the table `check.csv` of all of them."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

KIND, VERSION = "kiln.check", 1
COLUMNS = (
    *("key", "split", "class", "finding", "severity", "partner", "group", "similarity", "decision", "detail"),
)  # fmt: skip
SEVERITIES = ("serious", "warning", "info")
KEEP, DROP = "keep", "drop"


class Kind(NamedTuple):
    """What all findings of one code word have in common."""

    severity: str
    title: str
    advice: str


KINDS: dict[str, Kind] = {
    "unusable": Kind("serious", "the data cannot be used as they are", "correct what is named; training stops there too"),
    "unreadable": Kind("serious", "files that cannot be decoded", "copy them again, or drop them"),
    "unlabelled": Kind("serious", "rows without a label", "label them, or remove the rows"),
    "conflict": Kind("serious", "the same image under several labels", "keep the right label and drop the rest"),
    "duplicate_across": Kind("serious", "exact copies in several splits", "drop the copies that are trained on"),
    "near_duplicate_across": Kind(
        "serious", "near copies in several splits", "drop the copies that are trained on, or give a group column"
    ),
    "group_across": Kind("serious", "groups in more than one split", "move each group to one side"),
    "class_missing": Kind("serious", "classes that a split lacks", "collect some, or cut the splits anew"),
    "label_error": Kind("warning", "labels that are probably wrong", "look at them; relabel or drop those that are"),
    "duplicate": Kind("warning", "exact copies within a split", "drop all but one"),
    "near_duplicate": Kind("warning", "near copies within a split", "keep them together (their group does), or drop some"),
    "backdrop_across": Kind(
        "warning", "the same backdrop in several splits", "a possible group leak: if one scene, give a group column"
    ),
    "label_doubt": Kind(
        "info", "labels that weak models doubt", "nothing yet: models that are often wrong themselves cannot judge labels"
    ),
    "class_small": Kind("warning", "classes too small", "collect more: a few images say little about a class"),
    "imbalance": Kind("warning", "classes of very different size", "read balanced accuracy rather than accuracy"),
    "empty": Kind("warning", "images of nearly one colour", "look whether something went wrong in making them"),
    "odd_mode": Kind("info", "images stored unlike most", "Kiln converts them all alike; see docs/pixels.md"),
    "odd_size": Kind("info", "images of unusual size or shape", "look whether they belong here"),
    "rotated": Kind("info", "images that EXIF turns upright", "nothing: Kiln turns them; other programs may not"),
    "note": Kind("info", "what opening the data told", "read it"),
}  # fmt: skip
"""Every code word, the most serious first."""


@dataclass(frozen=True)
class Finding:
    """One case.

    Attributes:
        code: a key of `KINDS`.
        detail: one line for people.
        keys: the samples it concerns; of pairs, both. Empty where it concerns a class or the whole.
        decisions: what is suggested for each of `keys`.
        group: a number that all samples of one group of copies share.
        similarity: correlation of the pixels, of a pair of near copies.
        subject: the class or group that it is about.
        split: that lacks the class.
    """

    code: str
    detail: str
    keys: tuple[str, ...] = ()
    decisions: tuple[str, ...] = ()
    group: int | None = None
    similarity: float | None = None
    subject: str = ""
    split: str = ""

    @property
    def severity(self) -> str:
        """`serious`, `warning` or `info`."""
        return KINDS[self.code].severity


class Place(NamedTuple):
    """Where a sample is: its split and its label, empty where there is none."""

    split: str
    label: str


@dataclass(frozen=True, eq=False)
class Findings:
    """All that a check found.

    Attributes:
        where: what was checked.
        num_samples: how many images there are.
        sizes: samples in each split.
        findings: the most serious first.
        places: split and label of every sample that a finding names.
        usable: False where training could not even start.
        seconds: what the check took.
        left_out: how many more there were than were asked for.
    """

    where: str
    num_samples: int
    sizes: Mapping[str, int]
    findings: tuple[Finding, ...]
    places: Mapping[str, Place] = field(repr=False)
    usable: bool = True
    seconds: float = 0.0
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.findings)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def of(self, code: str) -> tuple[Finding, ...]:
        """The findings of one code word."""
        return tuple(finding for finding in self.findings if finding.code == code)

    @property
    def counts(self) -> dict[str, int]:
        """Findings by code word, the most serious first; only those that occur."""
        found = Counter(finding.code for finding in self.findings)
        return {code: found[code] for code in KINDS if found[code]}

    @property
    def serious(self) -> bool:
        """Whether some finding makes numbers wrong or training impossible."""
        return any(finding.severity == "serious" for finding in self.findings)

    def rows(self) -> Iterator[dict[str, str]]:
        """One row per sample and finding, as in `check.csv`; what concerns no single sample has no row."""
        for finding in self.findings:
            for place, key in enumerate(finding.keys):
                where = self.places.get(key, Place("", ""))
                partner = next((other for other in finding.keys if other != key), "")
                similarity = "" if finding.similarity is None else f"{finding.similarity:.4f}"
                group = "" if finding.group is None else str(finding.group)
                decision = finding.decisions[place] if finding.decisions else KEEP
                yield dict(
                    zip(
                        COLUMNS,
                        (
                            *(key, *where, finding.code, finding.severity),
                            *(partner, group, similarity, decision, finding.detail),
                        ),
                        strict=True,
                    )
                )

    def to_csv(self) -> str:
        """The text of `check.csv`; the user may edit its column `decision`, and `--decisions` applies it."""
        text = io.StringIO(newline="")
        text.write(f"# {json.dumps({'kind': KIND, 'version': VERSION})}\n")
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows())
        return text.getvalue()

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "kind": KIND,
            "version": VERSION,
            "where": self.where,
            "samples": self.num_samples,
            "splits": dict(self.sizes),
            "usable": self.usable,
            "serious": self.serious,
            "seconds": round(self.seconds, 2),
            "counts": self.counts,
            "left_out": self.left_out,
            "findings": [
                {
                    "finding": finding.code,
                    "severity": finding.severity,
                    "detail": finding.detail,
                    "keys": list(finding.keys),
                    "decisions": list(finding.decisions),
                    "group": finding.group,
                    "similarity": finding.similarity,
                }
                for finding in self.findings
            ],
        }


def by_severity(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """The most serious first, in the order of `KINDS`; within one code as they were found."""
    order = {code: place for place, code in enumerate(KINDS)}
    return tuple(sorted(findings, key=lambda finding: order[finding.code]))
