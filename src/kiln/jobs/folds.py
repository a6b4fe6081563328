"""Cross-validation as one run: a model for each fold, and every sample judged by the one that did not train on it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kiln.data.fingerprint import compare_fingerprint
from kiln.errors import DataError, KilnError, Preempted, UsageError
from kiln.jobs.intake import open_recipe_source
from kiln.jobs.measure import judge
from kiln.jobs.training import launch
from kiln.jobs.training.results import write_results
from kiln.jobs.training.signals import Interrupted, preempted, stopping_at_once
from kiln.language import tr
from kiln.observe.outputs import KeptOutputs, SplitOutputs
from kiln.observe.progress import Progress
from kiln.observe.wording import describe_metrics, percent
from kiln.recipe import Recipe
from kiln.recipe.trust import code_names
from kiln.run import (
    DONE,
    FAILED,
    FOLDS,
    INTERRUPTED,
    PREEMPTED,
    RESOLVED,
    RUNNING,
    Run,
    begin,
    clean,
    is_run,
    locked,
    new_folder,
    remove_unused,
    set_status,
    write_json,
)
from kiln.tasks import from_dict
from kiln.tasks.decision import Decision

OUT_OF_FOLD = "oof"
"""The split of samples that were each held out once."""


def is_folds(recipe: Recipe) -> bool:
    """Whether a recipe asks for a model of every fold, and not for one alone."""
    return recipe.data.folds > 0 and recipe.data.fold is None


def train_folds(
    recipe: Recipe,
    data: Any,
    progress: Progress,
    *,
    train: Callable[..., Run],
    stem: str = "",
    folder: Path | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Run:
    """Train the model of each fold, as an ordinary run within one folder, then bring together what they say.

    What is finished is not done again; an interrupted run goes on where it stood.

    Args:
        recipe: with `data.folds`.
        data: an object, where the recipe has no path.
        progress: of the single runs.
        train: trains or resumes one run.
        stem: names a new folder, where the recipe does not.
        folder: to go on with.
        changes: fields in which `recipe` differs from the one in the folder; only how the work is done.
    Returns: the run of the folds; its `runs` are those of the single folds.
    Raises: KilnError: as training; `Preempted` names the folder of the folds.
    """
    if launch.world_size() > 1:
        what = f"data.folds = {recipe.data.folds} in one of several processes"
        raise UsageError("E103", what, hint="--processes N starts the processes of each fold, without torchrun")
    is_new = folder is None
    if folder is None:
        folder = new_folder(Path(recipe.run.output), recipe.run.name, stem=stem)
    told = Progress(progress.stream, quiet=progress.quiet)
    job = _Folds(folder, recipe, data, told=told, progress=progress, train=train, changes=dict(changes or {}))
    with locked(folder), stopping_at_once():
        if is_new:
            begin(folder, recipe)
        try:
            with job.ending():
                return job.run()
        except Preempted:
            raise
        except BaseException:
            if is_new and not job.begun:
                (folder / FOLDS).unlink(missing_ok=True)
                remove_unused(folder)
            raise


@dataclass
class _Folds:
    """The work of one session on a folder of folds."""

    folder: Path
    recipe: Recipe
    data: Any
    told: Progress
    progress: Progress
    train: Callable[..., Run]
    changes: dict[str, Any]
    current: int = field(default=0, init=False)

    @property
    def names(self) -> list[str]:
        """Of the single runs, in order."""
        return [f"fold-{number}" for number in range(1, self.recipe.data.folds + 1)]

    @property
    def begun(self) -> list[Run]:
        """The single runs that there are."""
        return [Run(self.folder / name) for name in self.names if is_run(self.folder / name)]

    def run(self) -> Run:
        """Do what is left to do."""
        self.told.open_log(self.folder)
        clean(self.folder)
        self._record()
        for line in chosen_on_own_fold(self.recipe):
            self.told.say(line)
        self._require_same_data()
        for number, name in enumerate(self.names, 1):
            self.current = number
            self._train(self.folder / name)
            self._record()
        self.current = 0
        self._bring_together()
        return Run(self.folder)

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Within, whatever stops the work is in the status, and a stop names the folder of the folds."""
        try:
            yield
        except Preempted as stop:
            raise self._stopped(Run(self.folder / self.names[self.current - 1]).status["reason"]) from stop
        except KilnError as error:
            set_status(self.folder, FAILED, reason=error.what, code=error.code)
            raise
        except Exception as error:
            set_status(self.folder, FAILED, reason=f"{type(error).__name__}: {error}")
            raise
        except KeyboardInterrupt as interrupt:
            name = interrupt.signal if isinstance(interrupt, Interrupted) else "SIGINT"
            raise self._stopped(name) from interrupt
        finally:
            self.told.stop()

    def _stopped(self, reason: str) -> Preempted:
        step = 0
        if self.current and is_run(self.folder / self.names[self.current - 1]):
            self._record()
            step = Run(self.folder / self.names[self.current - 1]).status["step"]
        set_status(self.folder, INTERRUPTED if reason == "SIGINT" else PREEMPTED, reason=reason)
        return preempted(reason, step=step, folder=str(self.folder), fold=self.current)

    def _record(self) -> None:
        """`folds.json`: the single runs, and how each stands."""
        states = {run.path.name: run.status["state"] for run in self.begun}
        content = {"runs": self.names, "states": {name: states.get(name, "not begun") for name in self.names}}
        write_json(self.folder / FOLDS, "folds", content)
        set_status(self.folder, RUNNING, step=sum(state == DONE for state in states.values()))

    def _require_same_data(self) -> None:
        """Hold that the folds that are left would be cut from the data that the first ones were.

        Raises: DataError: the data changed.
        """
        known = [run for run in self.begun if (run.path / RESOLVED).is_file()]
        if not known:
            return
        hint = f"kiln resume {shlex.quote(str(self.folder))} --data DATA, if it lies elsewhere now"
        source = open_recipe_source(self.recipe, self.data, moved=hint)
        differences = compare_fingerprint(known[0].resolved["facts"]["data"], source)
        if differences:
            raise DataError(
                "E208",
                "the data changed since the first fold; going on would mix two data sets",
                where=source.where,
                details=differences,
                hint="restore the data, or start a new run",
            )

    def _train(self, folder: Path) -> None:
        facts = {"fold": self.current, "folds": len(self.names)}
        if not is_run(folder):
            self.told.say(tr("fold   {fold} of {folds}", **facts))
            place = {"data.fold": self.current, "run.output": str(self.folder), "run.name": folder.name}
            self.train(self.data, recipe=self.recipe.override(place), progress=self.progress)
        elif Run(folder).status["state"] == DONE:
            self.told.say(tr("fold   {fold} of {folds} is done", **facts))
        else:
            self.told.say(tr("fold   {fold} of {folds} goes on", **facts))
            changes = {name: value for name, value in self.changes.items() if name not in ("run.output", "run.name")}
            trusted = {*self.recipe.model.trust, *code_names(self.recipe).values()}  # what named it was asked before us
            changes |= {"model.trust": sorted(trusted)} if trusted else {}
            self.train(self.data, resume=folder, overrides=changes, progress=self.progress)

    def _bring_together(self) -> None:
        """Every sample by the model that did not train on it, and the test split by all of them."""
        runs = self.begun
        kept = together([run.outputs() for run in runs])
        results = [run.result for run in runs]
        metrics = [result["metrics"]["val"] for result in results]
        skipped = {OUT_OF_FOLD: sum(result["skipped"]["val"] for result in results)}
        if "test" in kept.splits:
            skipped["test"] = max(result["skipped"]["test"] for result in results)
        facts = {
            "reason": "done",
            "folds": [{"run": run.path.name, "metrics": found} for run, found in zip(runs, metrics, strict=True)],
            "spread": spread(metrics),
            "skipped": skipped,
        }
        task = from_dict(kept.task)
        measured = {
            name: judge(task, kept.classes, Decision(), part, bad_files=[]) for name, part in kept.splits.items()
        }
        write_results(self.folder, kept, measured, facts)
        first = next(iter(facts["spread"]))
        self.told.say(describe_spread(first, facts["spread"][first], num_folds=len(runs)))
        for name, found in measured.items():
            line = (
                "out of fold, each image by the model that did not train on it: {metrics}"
                if name == OUT_OF_FOLD
                else "test, by the mean of the models' probabilities: {metrics}"
            )
            self.told.say(tr(line, metrics=describe_metrics(found.plain_metrics())))
        set_status(self.folder, DONE, step=len(runs), reason="done")


def chosen_on_own_fold(recipe: Recipe) -> list[str]:
    """What to tell where something of a model is chosen on the fold that it is then measured on."""
    by = []
    if recipe.training.keep == "best":
        by.append("training.keep = best")
    if recipe.training.patience is not None:
        by.append(f"training.patience = {recipe.training.patience}")
    if "plateau" in recipe.schedule.name:
        by.append(f"schedule.name = {recipe.schedule.name}")
    if not by:
        return []
    text = "note   {what}: each model is chosen on its own fold, so numbers out of fold are slightly too good"
    return [tr(text, what=", ".join(by))]


def together(kept: Sequence[KeptOutputs]) -> KeptOutputs:
    """What the models of all folds say, as calibrated logits: `oof` of every sample, and `test` by the mean of all models.

    Args:
        kept: of each fold, `val` being what it held out.
    Raises: DataError: a sample was held out twice, or the models were not tested on the same samples.
    """
    first = kept[0]
    task = from_dict(first.task)
    held_out = [_calibrated(one, "val") for one in kept]
    keys = [key for part in held_out for key in part.keys]
    if len(set(keys)) < len(keys):
        raise DataError("E208", "the folds overlap: the data changed between them", hint="start a new run")
    splits = {}
    if "test" in first.splits:
        tests = [_calibrated(one, "test") for one in kept]
        if any(part.keys != tests[0].keys for part in tests):
            raise DataError("E208", "the folds were tested on different samples", hint="start a new run")
        pooled = task.pooled(np.stack([part.logits for part in tests]), np.full(len(tests), 1 / len(tests)))
        splits["test"] = _with_logits(tests[0], pooled)
    splits[OUT_OF_FOLD] = _joined(held_out)
    return KeptOutputs(first.classes, first.task, Decision().to_dict(), "", splits)


def _calibrated(kept: KeptOutputs, split: str) -> SplitOutputs:
    part = kept.splits[split]
    return _with_logits(part, Decision.from_dict(kept.decision).calibrated(part.logits))


def _with_logits(part: SplitOutputs, logits: Any) -> SplitOutputs:
    return SplitOutputs(part.keys, part.labels, np.asarray(logits, np.float32), part.targets, part.groups)


def _joined(parts: Sequence[SplitOutputs]) -> SplitOutputs:
    """All samples of several parts, by their keys."""
    keys = [key for part in parts for key in part.keys]
    order = sorted(range(len(keys)), key=keys.__getitem__)

    def column(values: list[Any]) -> tuple[Any, ...]:
        return tuple(values[index] for index in order)

    groups = [group for part in parts for group in part.groups or ()]
    return SplitOutputs(
        column(keys),
        column([label for part in parts for label in part.labels]),
        np.concatenate([part.logits for part in parts])[order],
        np.concatenate([part.targets for part in parts])[order],
        column(groups) if len(groups) == len(keys) else None,
    )


def spread(metrics: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """How much each metric differs over the folds.

    Args:
        metrics: of each fold, as in `result.json`.
    Returns: by metric: `mean`, standard deviation (`std`, n - 1), `lowest` and `highest`; of metrics that every fold has.
    """
    found = {}
    for name in metrics[0]:
        values = [one[name]["value"] for one in metrics if one.get(name, {}).get("value") is not None]
        if len(values) == len(metrics):
            std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
            found[name] = {"mean": float(np.mean(values)), "std": std, "lowest": min(values), "highest": max(values)}
    return found


def describe_spread(name: str, found: Mapping[str, float], *, num_folds: int) -> str:
    """One metric over the folds, in words."""
    is_share = found["lowest"] >= 0 and found["highest"] <= 1 and name != "loss"
    mean, lowest, highest = (
        percent(found[key]) if is_share else f"{found[key]:.3f}" for key in ("mean", "lowest", "highest")
    )
    std = tr("{points} points", points=f"{100 * found['std']:.1f}") if is_share else f"{found['std']:.3f}"
    text = "over {folds} folds: {metric} {mean} on average, {lowest} to {highest}, standard deviation {std}"
    facts = {"folds": num_folds, "metric": name.replace("_", " "), "mean": mean, "lowest": lowest, "highest": highest}
    return tr(text, **facts, std=std)
