"""Which weights make the most of several models: chosen on validation, judged on test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kiln.jobs.calibrate import Wanted, fit_decision
from kiln.jobs.together.candidates import Candidate, Common, said_of
from kiln.language import tr
from kiln.measure.paired import compare_shares
from kiln.metrics import Metric
from kiln.metrics.pooling import greedy_weights, mixture_weights
from kiln.observe.records import plain
from kiln.tasks import Task
from kiln.tasks.decision import Decision

LEAST_WEIGHT = 1e-3
"""A member with less than this is left out: it costs a forward pass and changes nothing."""
Weights = NDArray[np.float64]


class Blend:
    """Weights of some models, and what is reached with them.

    Attributes:
        common: the samples that all models held out, by split.
        metric: that choices are compared by.
        weights: (M,), of the choice that was kept.
        kept: its name: `best`, `uniform`, `fitted` or `greedy`.
        scores: the metric of each choice on validation; empty where there is none.
        best: which member is best on validation; of folds, each on its own.
        decision: how the pooled outputs become answers.
        notes: what to tell.
    """

    def __init__(self, candidates: Sequence[Candidate], common: dict[str, Common], metric: str | None) -> None:
        self._candidates, self.common = candidates, common
        self._task: Task = candidates[0].predictor.task
        self._classes = candidates[0].predictor.classes
        self.metric = metric or self._task.monitor
        self.notes: list[str] = []
        self.scores: dict[str, float] = {}
        self.best: int | None = None
        self.decision = Decision()
        self.kept, self.weights = "uniform", np.full(len(candidates), 1 / len(candidates))
        if "val" in common:
            self._choose(common["val"])
        else:
            self.notes.append(
                tr("no validation samples that all models held out: all weigh alike, and nothing is fitted")
            )

    def _choose(self, held: Common) -> None:
        num = len(self._candidates)
        likelihoods = [self._task.log_likelihoods(logits, held.targets) for logits in held.logits]
        ranked = [(self._score(one, "val"), np.mean(likelihoods[row])) for row, one in enumerate(np.eye(num))]
        self.best = max(range(num), key=lambda row: ranked[row])
        choices = {
            "best": np.eye(num)[self.best],
            "uniform": self.weights,
            "fitted": _without_crumbs(mixture_weights(np.stack(likelihoods))),
            "greedy": greedy_weights(num, lambda weights: self._score(weights, "val")),
        }
        values = {name: self._score(weights, "val") for name, weights in choices.items()}
        fits = {
            name: self._task.log_likelihoods(self.pooled(weights, "val"), held.targets).mean()
            for name, weights in choices.items()
        }
        self.kept = max(choices, key=lambda name: (values[name], fits[name]))
        self.weights = choices[self.kept]
        self.scores = {name: self._metric(self.pooled(weights, "val"), held).value for name, weights in choices.items()}
        pooled = self.pooled(self.weights, "val")
        self.decision = fit_decision(self._task, pooled, held.targets, Wanted(), split="val")
        if signed(self._metric(self.decision.calibrated(pooled), held)) < values[self.kept]:
            self.decision = fit_decision(self._task, pooled, held.targets, Wanted("none"), split="val")

    def pooled(self, weights: Weights, split: str) -> NDArray[np.float32]:
        """(N, K) logits of the models together, in the precision in which the ensemble gives them."""
        return self._task.pooled(self.common[split].logits, weights).astype(np.float32)

    def measured(self, split: str) -> dict[str, Metric]:
        """What the ensemble reaches, calibrated."""
        held = self.common[split]
        return self._reported(self.decision.calibrated(self.pooled(self.weights, split)), held)

    def of_member(self, number: int) -> dict[str, Any]:
        """The metrics of one model by split."""
        return {split: plain_metrics(self._reported(held.logits[number], held)) for split, held in self.common.items()}

    def gain(self, data: Any) -> dict[str, Any] | None:
        """How much more often the ensemble is right on test than its best member; None without test samples."""
        if "test" not in self.common:
            return None
        held, best = self.common["test"], self.best
        if best is None:
            best = max(range(len(self._candidates)), key=lambda row: self._on_its_own(self._candidates[row], data))
        alone = self._task.correct(self._task.probabilities(held.logits[best]), held.targets)
        together = self.decision.calibrated(self.pooled(self.weights, "test"))
        right = self._task.correct(self._task.probabilities(together), held.targets)
        difference = asdict(compare_shares(alone, right, held.groups))
        return {"split": "test", "over": str(self._candidates[best].place), **difference}

    def _on_its_own(self, one: Candidate, data: Any) -> float:
        """The metric of a model on its own validation samples."""
        said = said_of(one, data, "val", notes=[])
        if said is None:
            return -np.inf
        logits = one.predictor.decision.calibrated(said.logits)
        return signed(self._metric(logits, said, classes=one.predictor.classes))

    def _score(self, weights: Weights, split: str) -> float:
        return signed(self._metric(self.pooled(weights, split), self.common[split]))

    def _metric(self, logits: NDArray, held: Any, *, classes: tuple[str, ...] | None = None) -> Metric:
        return metric_of(self._task, logits, held.targets, classes or self._classes, name=self.metric)

    def _reported(self, logits: NDArray, held: Common) -> dict[str, Metric]:
        return reported(self._task, logits, held, self._classes, name=self.metric)


def metric_of(task: Task, logits: NDArray, targets: NDArray, classes: tuple[str, ...], *, name: str) -> Metric:
    """One metric of calibrated logits. Raises: UsageError: there is none of that name."""
    return task.metrics(logits, targets, classes, intervals=False, names=(name,))[name]


def signed(metric: Metric) -> float:
    """A metric's value, negative where lower is better; one that does not exist is below all others."""
    if np.isnan(metric.value):
        return -np.inf
    return metric.value if metric.higher_is_better else -metric.value


def reported(task: Task, logits: NDArray, held: Common, classes: tuple[str, ...], *, name: str) -> dict[str, Metric]:
    """The metrics that are always told and the one of that name, each with its interval."""
    found = task.metrics(logits, held.targets, classes, groups=held.groups)
    more = () if name in found else (name,)
    return {**task.metrics(logits, held.targets, classes, groups=held.groups, names=more), **found}


def _without_crumbs(weights: Weights) -> Weights:
    kept = np.where(weights < LEAST_WEIGHT, 0, weights)
    return kept / kept.sum()


def plain_metrics(metrics: dict[str, Metric]) -> dict[str, Any]:
    """Each metric by name as value, low, high and n."""
    return {name: plain(metric) for name, metric in metrics.items()}
