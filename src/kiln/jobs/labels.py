"""`labels`: which labels are probably wrong, from what models said of samples that they had not trained on."""

from __future__ import annotations

import csv
import io
import os
import shlex
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kiln.data.checks.findings import COLUMNS, KEEP, Finding, Findings, Place
from kiln.data.checks.label_errors import LabelErrors, find_label_errors
from kiln.data.source import Source
from kiln.errors import DataError, UsageError
from kiln.jobs.folds import OUT_OF_FOLD
from kiln.jobs.intake import open_recipe_source
from kiln.language import tr
from kiln.observe.outputs import KeptOutputs, SplitOutputs
from kiln.observe.wording import percent
from kiln.reports.check_page import check_page
from kiln.run import Run, write_atomically, writing
from kiln.tasks import Task, from_dict

PAGE, TABLE = "labels.html", "labels.csv"
SUGGESTIONS = (KEEP, "relabel")
MOST_SHOWN = 200
"""Suspects with a picture on the page; all are in labels.csv."""


def labels(
    run: str | os.PathLike[str] | Run,
    output: str | os.PathLike[str] | None = None,
    *,
    top: int | None = None,
    suggest: str = KEEP,
    data: Any = None,
) -> Findings:
    """Rank the samples whose given label is probably wrong, the most certain first.

    Best asked of a run of folds (`kiln.train(data, folds=5)`), which has an answer for every sample by a model that did
    not train on it. Any other run knows only the samples that it held out, and a note says so.

    Args:
        run: a finished run, or its folder.
        output: a folder for `labels.html`, to look at, and `labels.csv`, to edit and give to `--decisions`.
        top: the first so many alone.
        suggest: what stands in the column `decision`: `keep`, to be edited, or `relabel`, the suggestion itself.
        data: where the pictures are, if not where the run was trained.
    Returns: a finding for each suspect, with the reason in words.
    Raises: UsageError: no run, or an unknown suggestion. ArtifactError: the run has no outputs. DataError: it held
        nothing out.
    """
    if suggest not in SUGGESTIONS:
        raise UsageError("E101", f"suggest = {suggest!r}", got=suggest, choices=SUGGESTIONS)
    run = run if isinstance(run, Run) else Run(run)
    kept = run.outputs()
    if not kept.splits:
        raise DataError("E204", f"{run.path} held no sample out", hint="kiln train DATA --folds 5")
    found = label_findings(kept, suggest=suggest)
    found = replace(found, where=str(run.path), findings=_first(found.findings, top))
    if output is not None:
        folder = Path(output)
        source = _pictures(run, data)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        text = found.to_csv() + _earlier_decisions(run, found)
        write_atomically(folder / TABLE, text.encode("utf-8", "surrogateescape"))
        page = check_page(
            found, source, max_pixels=run.recipe.data.max_pixels, title="Labels", table=TABLE, most_cases=MOST_SHOWN
        )
        write_atomically(folder / PAGE, page.encode("utf-8", "replace"))
    return found


def _first(findings: Sequence[Finding], top: int | None) -> tuple[Finding, ...]:
    """The first so many suspects, and all else that was found."""
    suspects = [finding for finding in findings if finding.keys]
    return (*suspects[:top], *(finding for finding in findings if not finding.keys))


def label_findings(kept: KeptOutputs, *, suggest: str = KEEP) -> Findings:
    """The suspects among all samples of kept outputs, each split judged by itself, the most certain first.

    Args:
        kept: what models said of samples that they had not trained on.
        suggest: as for `labels`.
    """
    began = time.monotonic()
    ranked: list[tuple[float, Finding]] = []
    places: dict[str, Place] = {}
    expected = 0.0
    for name, part in kept.splits.items():
        judged = _Judged.of(kept, name)
        expected += judged.errors.num_expected
        places |= {
            key: Place(_SPLIT_OF.get(name, name), label) for key, label in zip(part.keys, part.labels, strict=True)
        }
        ranked += [
            (float(judged.errors.quality[index]), judged.finding(index, suggest))
            for index in judged.errors.order.tolist()
        ]
    ranked.sort(key=lambda pair: pair[0])
    total = f"{len(places):,}"
    notes = [
        tr(
            "of {total} labels about {count} are wrong, as the confident joint estimates",
            count=round(expected),
            total=total,
        )
    ]
    if OUT_OF_FOLD not in kept.splits:
        text = "only the {total} samples that the run held out were judged; kiln train DATA --folds 5 judges all"
        notes.append(tr(text, total=total))
    return Findings(
        "",
        len(places),
        dict(Counter(place.split for place in places.values())),
        (*(finding for _, finding in ranked), *(Finding("note", note) for note in notes)),
        places,
        seconds=time.monotonic() - began,
    )


@dataclass(frozen=True)
class _Judged:
    """One split, and what is wrong with its labels."""

    task: Task
    classes: tuple[str, ...]
    name: str
    part: SplitOutputs
    probabilities: NDArray[np.float64]
    errors: LabelErrors
    text_of: dict[frozenset[str], str]

    @classmethod
    def of(cls, kept: KeptOutputs, name: str) -> _Judged:
        """Judge a split of kept outputs."""
        task, part, probabilities = from_dict(kept.task), kept.splits[name], kept.probabilities(name)
        errors = find_label_errors(probabilities, part.targets)
        texts = {task.occurring([text], kept.classes): text for one in kept.splits.values() for text in set(one.labels)}
        return cls(task, kept.classes, name, part, probabilities, errors, texts)

    def finding(self, index: int, suggest: str) -> Finding:
        """One suspect: the reason in words, and the decision that is suggested."""
        row, suggested = self.probabilities[index], self.errors.suggested[index]
        given = self.task.true_labels(self.part.targets[index : index + 1], len(self.classes))[0]
        doubted = [f"{percent(row[k])} {self.classes[k]!r}" for k in np.flatnonzero(suggested != given)]
        doubted = [text for _, text in sorted(zip(-row[suggested != given], doubted, strict=True))]
        names = [self.classes[k] for k in np.flatnonzero(suggested)]
        text = (
            "given {given!r}, out of fold {shares}: {suggestion!r}?"
            if self.name == OUT_OF_FOLD
            else "given {given!r}, held out {shares}: {suggestion!r}?"
        )
        label = self.part.labels[index]
        to = self.text_of.get(frozenset(names), self.task.decode(suggested.astype(float), self.classes).label)
        detail = tr(text, given=label, shares=", ".join(doubted), suggestion=to)
        relabels = suggest == "relabel" and frozenset(names) in self.text_of
        return Finding("label_error", detail, (self.part.keys[index],), (f"relabel:{to}" if relabels else KEEP,))


_SPLIT_OF = {OUT_OF_FOLD: "train"}
"""Where samples are that were held out fold by fold."""


def _pictures(run: Run, data: Any) -> Source | None:
    """The data of the run; None where it was trained on objects, so that the page has no pictures."""
    recipe = run.recipe
    if data is None and recipe.data.path is None:
        return None
    if isinstance(data, str | os.PathLike):
        recipe, data = recipe.override({"data.path": os.fspath(data)}), None
    hint = f"kiln labels {shlex.quote(str(run.path))} --data DATA, if it lies elsewhere now"
    return open_recipe_source(recipe, data, moved=hint)


def _earlier_decisions(run: Run, found: Findings) -> str:
    """The rows of the table that the run itself applied, so that the new one may take its place; but not what it revises."""
    path = run.recipe.data.decisions
    if path is None:
        return ""
    revised = {key for one in found for key, decision in zip(one.keys, one.decisions, strict=False) if decision != KEEP}
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(
            line for line in file.read().splitlines(keepends=True) if not line.lstrip('"').startswith("#")
        )
        earlier = [row for row in rows if row["key"] not in revised and (row.get("decision") or KEEP) != KEEP]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", restval="", extrasaction="ignore")
    writer.writerows(earlier)
    return text.getvalue()
