"""The models of a comparison: what each said of the samples that all of them were asked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kiln.data.split import read_split_csv
from kiln.data.storage import counted, shown
from kiln.errors import DataError, KilnError, UsageError
from kiln.jobs.evaluate import samples_of
from kiln.jobs.measure import collect
from kiln.language import tr, word
from kiln.measure.paired_metrics import Answers
from kiln.models.ensemblefile import ENSEMBLE
from kiln.models.seal import verify_seal
from kiln.observe.outputs import KeptOutputs, SplitOutputs
from kiln.run import OUTPUTS, RECIPE, SPLIT, Run, not_there
from kiln.runtimes import BATCH_SIZE, MODEL_NAME, Predictor, load, model_path
from kiln.tasks import Task, from_dict
from kiln.tasks.decision import Decision


@dataclass(frozen=True)
class Asking:
    """How models are asked: of which data, and how that is computed."""

    data: Any = None
    split: str | None = None
    batch_size: int | None = None
    workers: int | None = None
    device: str = "auto"
    trust: tuple[str, ...] = ()


@dataclass(frozen=True)
class Contender:
    """One of the models.

    Attributes:
        name: short, and no other's.
        path: as it was given.
        asking: how it is opened.
    """

    name: str
    path: Path
    asking: Asking

    @cached_property
    def run(self) -> Run | None:
        """The run that it is, if it is one."""
        return Run(self.path) if (self.path / RECIPE).is_file() else None

    @cached_property
    def file(self) -> Path:
        """The file that holds the model."""
        return model_path(self.path)

    @cached_property
    def predictor(self) -> Predictor:
        """The model, opened."""
        return load(self.path, device=self.asking.device, trust=self.asking.trust)

    @cached_property
    def kept(self) -> KeptOutputs | None:
        """What the run wrote down of this very model."""
        if self.run is None or not (self.run.path / OUTPUTS).is_file():
            return None
        kept = self.run.outputs()
        return kept if kept.model == verify_seal(self.file) else None

    @property
    def splits(self) -> frozenset[str]:
        """The splits of the run."""
        recorded = self.run.path / SPLIT if self.run is not None else None
        if recorded is None or not recorded.is_file():
            return frozenset(self.kept.splits) if self.kept is not None else frozenset()
        return frozenset(row.split for row in read_split_csv(recorded).values())


@dataclass(frozen=True)
class Heard:
    """What a model said of its samples, in the order of its own classes."""

    name: str
    task: Task
    classes: tuple[str, ...]
    decision: Decision
    part: SplitOutputs


@dataclass(frozen=True)
class Aligned:
    """What all models said of the samples that they have in common.

    Attributes:
        keys: of the samples.
        classes: names, in the order of the first model.
        groups: (N,) numbers of the samples' groups, where there are any.
        answers: of each model, classes in the common order.
        higher_is_better: the metrics that the task has, by name.
        values: those metrics, of each model.
        left_out: how many samples of each model are not in common.
    """

    keys: tuple[str, ...]
    classes: tuple[str, ...]
    groups: NDArray[np.int64] | None
    answers: tuple[Answers, ...]
    higher_is_better: dict[str, bool]
    values: tuple[dict[str, float], ...]
    left_out: tuple[int, ...]


def contenders(models: Sequence[Any], asking: Asking) -> list[Contender]:
    """The models to compare, each under a name of its own: its file or folder, with as much of its path as that takes."""
    paths = [model.path if isinstance(model, Run) else Path(os.fspath(model)) for model in models]
    for path in paths:
        if not path.expanduser().exists():
            raise not_there(path)
    names = _short_names([path.resolve() for path in paths])
    for index, name in enumerate(names):
        if name in names[:index]:
            names[index] = next(
                new for number in range(2, len(names) + 2) if (new := f"{name} ({number})") not in names
            )
    return [Contender(name, path, asking) for name, path in zip(names, paths, strict=True)]


def _short_names(places: Sequence[Path]) -> list[str]:
    """The end of each path, as long as it takes to tell different ones apart."""
    lengths = [2 if place.name in (MODEL_NAME, ENSEMBLE) else 1 for place in places]

    def name(index: int, length: int) -> str:
        return "/".join(places[index].parts[-length:])

    for index, place in enumerate(places):
        others = [other for other, elsewhere in enumerate(places) if elsewhere != place]
        while any(name(other, lengths[index]) == name(index, lengths[index]) for other in others):
            lengths[index] += 1
    return [name(index, length) for index, length in enumerate(lengths)]


def choose_split(models: Sequence[Contender], asking: Asking) -> tuple[str, list[str]]:
    """The split to compare on: what was asked for, or `test`, or `val` where a run has no other."""
    if asking.split is not None:
        return asking.split, []
    without = [model.name for model in models if model.run is not None and "test" not in model.splits]
    if not without or asking.data is not None:
        return "test", []
    note = tr(
        "no test split in {names}: compared on val, which also served to choose the checkpoints", names=shown(without)
    )
    return "val", [note]


def hear(model: Contender, reference: Contender, split: str) -> tuple[Heard, list[str]]:
    """What a model says of a split: as its run wrote it down, or asked now.

    Args:
        model: the model.
        reference: whose samples are meant where the model is no run and no data were given.
        split: one of `kiln.jobs.evaluate.SPLITS`.
    Returns: what it said, and what to tell.
    Raises: UsageError: no data. DataError: they do not fit the model, or cannot be read.
    """
    asking, kept = model.asking, model.kept
    if asking.data is None and kept is not None and split in kept.splits:
        task, decision = from_dict(kept.task), Decision.from_dict(kept.decision)
        return Heard(model.name, task, kept.classes, decision, kept.splits[split]), []
    owner = model if model.run is not None else reference
    if asking.data is None and owner.run is None:
        raise UsageError("E103", "no data to compare on: none of the models is a run", hint="--data DATA")
    predictor = model.predictor
    source, indices, targets, notes = samples_of(predictor, owner.path, asking.data, split=split, again="--data DATA")
    part, _ = collect(
        predictor,
        source,
        indices,
        targets,
        split=split,
        batch_size=asking.batch_size or BATCH_SIZE,
        skip_bad=True,
        workers=min(os.cpu_count() or 1, 8) if asking.workers is None else asking.workers,
    )
    if asking.data is None and owner is not model:
        notes.append(
            tr(
                "{name} is measured on the {split} samples of {owner}",
                name=model.name,
                split=word(split),
                owner=owner.name,
            )
        )
    if len(part.keys) < len(indices):
        unread = len(indices) - len(part.keys)
        notes.append(tr("left out for {name}, because they cannot be read: {count}", name=model.name, count=unread))
    return Heard(model.name, predictor.task, predictor.classes, predictor.decision, part), notes


def align(heard: Sequence[Heard]) -> Aligned:
    """Bring what models said into one order of classes and samples.

    Raises: UsageError: they do different tasks. DataError: their classes, or the labels of a sample, differ, or no sample
        is in common.
    """
    first = heard[0]
    for other in heard[1:]:
        _require_alike(first, other)
    common = set(first.part.keys).intersection(*(other.part.keys for other in heard[1:]))
    keys = tuple(key for key in first.part.keys if key in common)
    if not keys:
        raise DataError(
            "E204",
            f"{' and '.join(one.name for one in heard)} have no sample in common to be compared on",
            hint="--data DATA asks all of them about the same images",
        )
    told = [_answers(one, keys, first.classes) for one in heard]
    for other, (answers, _) in zip(heard[1:], told[1:], strict=True):
        _require_same_labels(first, other, keys, told[0][0].truth, answers.truth)
    rows = _rows(first, keys)
    groups = None
    if first.part.groups is not None:
        groups = np.unique([first.part.groups[row] for row in rows], return_inverse=True)[1].astype(np.int64)
        groups = None if len(np.unique(groups)) == len(groups) else groups
    return Aligned(
        keys=keys,
        classes=first.classes,
        groups=groups,
        answers=tuple(answers for answers, _ in told),
        higher_is_better={name: metric.higher_is_better for name, metric in told[0][1].items()},
        values=tuple({name: metric.value for name, metric in metrics.items()} for _, metrics in told),
        left_out=tuple(len(one.part.keys) - len(keys) for one in heard),
    )


def _answers(one: Heard, keys: Sequence[str], classes: Sequence[str]) -> tuple[Answers, dict[str, Any]]:
    """What a model said of some samples, its labels in the order of `classes`; and its metrics there."""
    rows, task = _rows(one, keys), one.task
    logits, targets = one.decision.calibrated(one.part.logits[rows]), one.part.targets[rows]
    order = [one.classes.index(name) for name in classes]
    answers = Answers(
        given=task.given_labels(task.probabilities(logits))[:, order],
        truth=task.true_labels(targets, len(classes))[:, order],
        scores=task.sample_scores(logits, targets),
    )
    metrics = task.metrics(logits, targets, one.classes, intervals=False)
    others = tuple(name for name in answers.scores if name not in metrics)
    more = task.metrics(logits, targets, one.classes, intervals=False, names=others) if others else {}
    return answers, {**metrics, **more}


def _rows(one: Heard, keys: Sequence[str]) -> NDArray[np.int64]:
    place = {key: row for row, key in enumerate(one.part.keys)}
    return np.array([place[key] for key in keys], np.int64)


def _require_alike(first: Heard, other: Heard) -> None:
    if first.task.to_dict() != other.task.to_dict():
        what = f"{first.name} does {first.task.to_dict()}, {other.name} does {other.task.to_dict()}"
        raise UsageError("E103", what, expected="models of one task")
    missing = [name for name in first.classes if name not in other.classes]
    added = [name for name in other.classes if name not in first.classes]
    if missing or added:
        raise DataError(
            "E205",
            f"{first.name} and {other.name} know different classes",
            details=[
                *([f"only {first.name}: {shown(missing, 20)}"] if missing else []),
                *([f"only {other.name}: {shown(added, 20)}"] if added else []),
            ],
            hint="compare models that were trained on the same classes",
        )


def _require_same_labels(
    first: Heard, other: Heard, keys: Sequence[str], truth: NDArray[np.bool_], others: NDArray[np.bool_]
) -> None:
    differ = np.flatnonzero((truth != others).any(axis=1))
    if len(differ):
        raise DataError(
            "E205",
            f"{counted(len(differ), 'sample')} with other labels for {first.name} than for {other.name}",
            details=[f"{keys[row]}" for row in differ[:20]],
            hint="--data DATA asks both about the same labels",
        )


def require_models(given: Sequence[Any]) -> None:
    """Hold that there is something to compare. Raises: UsageError."""
    if len(given) < 2:
        raise UsageError(
            "E101", f"{counted(len(given), 'model')} to compare", expected="two or more", hint="kiln compare RUN RUN"
        )


def open_pictures(models: Sequence[Contender], asking: Asking, split: str) -> tuple[Any, str]:
    """The source of the samples, to show or to time on; None and the reason where it cannot be opened."""
    owner = next((model for model in models if model.run is not None), models[0])
    try:
        source, *_ = samples_of(owner.predictor, owner.path, asking.data, split=split)
    except KilnError as error:
        return None, error.what
    return source, ""
