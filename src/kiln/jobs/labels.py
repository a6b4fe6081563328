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
from kiln.metrics.classification import balanced_accuracy, confusion_matrix
from kiln.metrics.ranking import mean_roc_area
from kiln.observe.outputs import KeptOutputs, SplitOutputs
from kiln.observe.wording import percent
from kiln.reports.check_page import check_page
from kiln.run import Run, write_atomically, writing
from kiln.tasks import Task, from_dict

PAGE, TABLE = "labels.html", "labels.csv"
SUGGESTIONS = (KEEP, "relabel")
LEAST_SKILL = 0.5
"""Models nearer to chance than to perfection do not judge labels: where they differ from one, it is mostly they who err."""
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
    not train on it. Any other run knows only the samples that it held out, and a note says so. Weak models (`LEAST_SKILL`)
    judge nothing: what they doubt is a `label_doubt` and no `label_error`, nothing is estimated or suggested.

    Args:
        run: a finished run, or its folder.
        output: a folder for `labels.html`, to look at, and `labels.csv`, to edit and give to `--decisions`.
        top: the first so many alone; `left_out` of what is returned counts the rest.
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
    first = _first(found.findings, top)
    found = replace(found, where=str(run.path), findings=first, left_out=len(found) - len(first))
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
    all_judged = [_Judged.of(kept, name) for name in kept.splits]
    weak = _skill(all_judged) < LEAST_SKILL
    for judged in all_judged:
        name, part = judged.name, judged.part
        places |= {
            key: Place(_SPLIT_OF.get(name, name), label) for key, label in zip(part.keys, part.labels, strict=True)
        }
        ranked += [
            (float(judged.errors.quality[index]), judged.finding(index, KEEP if weak else suggest, weak=weak))
            for index in judged.errors.order.tolist()
        ]
    ranked.sort(key=lambda pair: pair[0])
    total = f"{len(places):,}"
    notes = _reliance(all_judged, total, weak=weak)
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


def _reliance(all_judged: Sequence[_Judged], total: str, *, weak: bool) -> list[str]:
    """How often the models were right, and what that allows to be said."""
    right = percent(float(np.concatenate([judged.right for judged in all_judged]).mean()))
    if weak:
        text = "these models are right for {right} of the images; they cannot judge labels: train longer or from pretrained weights"
        return [tr(text, right=right)]
    expected = sum(judged.errors.num_expected for judged in all_judged)
    return [
        tr("the models agree with the labels given for {right} of the images", right=right),
        tr(
            "of {total} labels about {count} are wrong, as the confident joint estimates",
            count=round(expected),
            total=total,
        ),
    ]


def _skill(all_judged: Sequence[_Judged]) -> float:
    """From 0, chance, to 1: balanced accuracy brought to that scale; for several labels an image, the area under the ROC."""
    scores = np.concatenate([judged.probabilities for judged in all_judged])
    truth = np.concatenate([judged.truth for judged in all_judged])
    if not all_judged[0].one_label:  # rare labels seldom reach one half, however well they are told apart
        return 2 * mean_roc_area(truth, scores) - 1
    num_classes = truth.shape[1]
    confusion = confusion_matrix(truth.argmax(axis=1), scores.argmax(axis=1), num_classes)
    return (num_classes * balanced_accuracy(confusion) - 1) / (num_classes - 1)


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

    @property
    def right(self) -> NDArray[np.bool_]:
        """(N,) where the models said what the labels say."""
        return self.task.correct(self.probabilities, self.part.targets)

    @property
    def truth(self) -> NDArray[np.bool_]:
        """(N, K) the labels as given."""
        return self.task.true_labels(self.part.targets, self.probabilities.shape[1])

    @property
    def one_label(self) -> bool:
        """Whether each sample bears one label, and not any number of them."""
        return self.part.targets.ndim == 1

    def finding(self, index: int, suggest: str, *, weak: bool) -> Finding:
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
        code = "label_doubt" if weak else "label_error"
        return Finding(code, detail, (self.part.keys[index],), (f"relabel:{to}" if relabels else KEEP,))


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
