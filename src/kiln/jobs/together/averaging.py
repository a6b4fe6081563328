"""Averages of the weights of some runs, each made and measured as it would ship."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kiln.batch import Batch
from kiln.data.collate import pad
from kiln.data.images import ContractImages
from kiln.data.loader import Assembler, BadFiles, evaluation_batches
from kiln.data.source import Source
from kiln.engine.statistics import BATCHES, renew_statistics
from kiln.errors import DataError
from kiln.jobs.calibrate import Wanted, fit_decision
from kiln.jobs.evaluate import samples_of
from kiln.jobs.measure import collect
from kiln.jobs.together.blend import metric_of, reported, signed
from kiln.jobs.together.candidates import Candidate, Common
from kiln.language import tr
from kiln.measure.paired import compare_shares
from kiln.metrics import Metric
from kiln.models.device import resolve_device
from kiln.models.freeze import set_frozen
from kiln.models.modelfile import ModelFile, read_model
from kiln.models.normalize import Normalized
from kiln.models.soup import average_states, moving_norms, require_alike
from kiln.observe.outputs import SplitOutputs
from kiln.random import keys_of
from kiln.runtimes import BATCH_SIZE, Predictor
from kiln.runtimes.torch import TorchRuntime
from kiln.tasks.decision import Decision

STATISTICS_BATCH_SIZE = 64
Samples = tuple[Source, NDArray[np.int64], NDArray[Any]]


@dataclass(frozen=True)
class Average:
    """A model made of some of the candidates.

    Attributes:
        rows: which of them.
        file: the model; not yet on disk.
        decision: how its outputs become answers.
        logits: (N, K) calibrated, of validation; None where there is none.
    """

    rows: tuple[int, ...]
    file: ModelFile
    decision: Decision
    logits: NDArray[Any] | None


class Averaging:
    """Makes averages and compares them.

    Args:
        candidates: runs or model files of one architecture.
        common: samples that all of them held out, by split.
        metric: what to compare; the task's own by default.
        data: as for the verb.
        device: where to compute.
        trust: code that the model files may name.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        common: dict[str, Common],
        metric: str | None,
        *,
        data: Any,
        device: str,
        trust: Sequence[str],
    ) -> None:
        self._candidates, self.common, self._data = candidates, common, data
        self._device, self._trust = device, trust
        first = candidates[0]
        self._task, self._classes = first.predictor.task, first.predictor.classes
        self.metric = metric or self._task.monitor
        self.notes: list[str] = []
        self._samples: dict[str, Samples] = {}
        specs = [self._read(one).spec for one in candidates]
        for one, spec in zip(candidates, specs, strict=True):
            require_alike(specs[0], spec, names=(str(first.place), str(one.place)))
            if one.predictor.classes != self._classes:
                what = f"{first.place} and {one.place} have their classes in different orders"
                raise DataError("E204", what, hint="kiln ensemble matches classes by name")
        self._moving, self._held = moving_norms(self._read(one).model.state_dict() for one in candidates)
        self.statistics = "none to measure" if not self._moving else ""

    def ranked(self) -> list[int]:
        """The candidates, best on validation first; in the order given where there is no validation."""
        rows = list(range(len(self._candidates)))
        if "val" not in self.common:
            return rows
        held = self.common["val"]
        return sorted(rows, key=lambda row: (-self.score(held.logits[row]), -self.fit(held.logits[row])))

    def alone(self, row: int) -> Average:
        """One candidate as it is."""
        file, held = self._read(self._candidates[row]), self.common.get("val")
        logits = None if held is None else held.logits[row]
        return Average((row,), file, self._candidates[row].predictor.decision, logits)

    def greedy(self, ranked: Sequence[int]) -> Average:
        """Take in one after the other where validation does not fall: neither the metric nor the log likelihood.

        The metric of some hundreds of images ties, or gains one, by chance; the likelihood, of every image, seldom does.
        """
        best = self.alone(ranked[0])
        for row in ranked[1:]:
            tried = self.of((*best.rows, row))
            if self.score(tried.logits) >= self.score(best.logits) and self.fit(tried.logits) >= self.fit(best.logits):
                best = tried
        return best

    def of(self, rows: Sequence[int]) -> Average:
        """The average of some candidates, with statistics of its own and calibrated on validation."""
        state = average_states(self._read(self._candidates[row]).model.state_dict() for row in rows)
        file = replace(self._read(self._candidates[rows[0]]), digest="", decision={})
        file.model.load_state_dict(state)
        if self._moving:
            self._renew(file)
        if "val" not in self.common:
            return Average(tuple(rows), file, Decision(), None)
        held = self.common["val"]
        said = self.said(file, "val")
        decision = fit_decision(self._task, said, held.targets, Wanted(), split="val")
        return Average(tuple(rows), file, decision, decision.calibrated(said))

    def score(self, logits: NDArray[Any] | None) -> float:
        """The metric of calibrated validation logits, so signed that higher is better."""
        if logits is None:
            return -np.inf
        return signed(metric_of(self._task, logits, self.common["val"].targets, self._classes, name=self.metric))

    def fit(self, logits: NDArray[Any] | None) -> float:
        """The mean log likelihood of calibrated validation logits."""
        if logits is None:
            return -np.inf
        return float(self._task.log_likelihoods(logits, self.common["val"].targets).mean())

    def measured(self, logits: NDArray[Any], split: str) -> dict[str, Metric]:
        """Metrics of calibrated logits of a split."""
        return reported(self._task, logits, self.common[split], self._classes, name=self.metric)

    def calibrated(self, average: Average, split: str) -> NDArray[Any]:
        """What an average says of a split."""
        if split == "val" and average.logits is not None:
            return average.logits
        if len(average.rows) == 1:
            return self.common[split].logits[average.rows[0]]
        return average.decision.calibrated(self.said(average.file, split))

    def gain(self, average: Average, best: int) -> dict[str, Any] | None:
        """How much more often an average is right on test than the best candidate; None without test samples."""
        if "test" not in self.common:
            return None
        held = self.common["test"]
        alone, together = (
            self._task.correct(self._task.probabilities(logits), held.targets)
            for logits in (held.logits[best], self.calibrated(average, "test"))
        )
        difference = compare_shares(alone, together, held.groups)
        return {"split": "test", "over": str(self._candidates[best].place), **asdict(difference)}

    def said(self, file: ModelFile, split: str) -> NDArray[np.float32]:
        """(N, K) logits of a model for the common samples of a split, in their order."""
        source, indices, targets = self._samples_of(split)
        runtime: Any = TorchRuntime(file, device=self._device)  # plain attributes are not the protocol's, to pyright
        said, _ = collect(
            Predictor(runtime),
            source,
            indices,
            targets,
            split=split,
            batch_size=BATCH_SIZE,
            skip_bad=True,
            workers=_workers(),
        )
        return _in_order(said, self.common[split].keys)

    def _samples_of(self, split: str) -> Samples:
        if split not in self._samples:
            first = self._candidates[0]
            source, indices, targets, _ = samples_of(first.predictor, first.place, self._data, split=split)
            if split in self.common:
                wanted = set(self.common[split].keys)
                indices = np.array([index for index in indices if source.keys[index] in wanted], np.int64)
            self._samples[split] = source, indices, targets
        return self._samples[split]

    def _renew(self, file: ModelFile) -> None:
        """Measure running statistics again, over training images as validation would see them, in mixed order."""
        try:
            source, indices, targets = self._samples_of("train")
        except DataError as error:
            self._not_renewed(error.what)
            return
        held = {key for part in self.common.values() for key in part.keys}
        indices = np.array([index for index in indices if source.keys[index] not in held], np.int64)
        if len(indices) < 2:
            self._not_renewed(tr("the data have no training samples"))
            return
        hashes = keys_of([source.keys[index] for index in indices])
        mixed = indices[np.argsort(hashes, kind="stable")][: BATCHES * STATISTICS_BATCH_SIZE]
        device = resolve_device(self._device)
        set_frozen(file.model, {f"{name}.running_mean" for name in self._held})
        spec = file.spec
        network = Normalized(file.model, spec.mean, spec.std, per_image=spec.per_image).to(device).eval()
        renew_statistics(network, self._batches(source, mixed, targets, device))
        set_frozen(file.model, ())
        file.model.eval()
        self.statistics = "measured again"

    def _batches(
        self, source: Source, indices: NDArray[np.int64], targets: NDArray[Any], device: torch.device
    ) -> Iterator[Batch]:
        contract = self._candidates[0].predictor.contract
        rows = Assembler(ContractImages(source, contract), targets, pad if contract.resize == "keep" else None)
        made = evaluation_batches(
            rows,
            indices,
            batch_size=STATISTICS_BATCH_SIZE,
            bad_files=BadFiles(source.keys),
            split="train",
            skip_bad=True,
            workers=_workers(),
        )
        for batch in made:
            if len(batch) > 1 or len(indices) == 1:  # one image has no variance
                yield batch.to(device)

    def _not_renewed(self, why: str) -> None:
        self.statistics = "averaged"
        told = tr("running statistics were averaged, not measured again: {why}", why=why)
        if told not in self.notes:
            self.notes.append(told)

    def _read(self, one: Candidate) -> ModelFile:
        return read_model(one.file, trusted=tuple(self._trust))


def _in_order(said: SplitOutputs, keys: Sequence[str]) -> NDArray[np.float32]:
    row_of = {key: row for row, key in enumerate(said.keys)}
    lost = [key for key in keys if key not in row_of]
    if lost:
        raise DataError("E202", f"{len(lost)} samples that the runs measured cannot be read now", details=lost[:20])
    return said.logits[[row_of[key] for key in keys]]


def _workers() -> int:
    return min(os.cpu_count() or 1, 8)
