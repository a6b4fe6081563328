"""Training a head on features that are kept: the frozen backbone sees each view of each image once.

Features are made in chunks of a fixed size, in the order of the samples, whatever batch asks for them first: a batch of them
is the same bytes in a run that made them, in one that found them on the disk, and in one that was killed and resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kiln.batch import Batch
from kiln.data.feature_files import FeatureFiles
from kiln.data.images import BadSample
from kiln.data.prefetch import prefetched
from kiln.engine.precision import autocast, multiplying_fp32
from kiln.engine.state import State
from kiln.engine.supervised import extra_inputs
from kiln.models.features import FeatureCut
from kiln.models.sizes import mode

ROWS_AT_ONCE = 64
"""Images that pass through the backbone together. A constant: the last bits of a feature depend on it."""


@dataclass(frozen=True)
class _Table:
    """Features of one view: (N, ...) on the device, one row for each sample, and which samples cannot be read."""

    rows: Tensor
    bad: dict[int, BadSample]


class FeatureBatches:
    """Training batches of features instead of images, up to a step; from there on the batches themselves.

    A batch is a pure function of the step still, and of the frozen weights. Only for one process.

    Args:
        batches: such as `OnDevice`, over a `TrainLoader`; nothing in them mixes samples.
        model: with its backbone frozen until `before_step`. Used when the first batch is asked for, not before.
        cut: where the backbone ends.
        indices: (N,) the samples that take part.
        views: how many ways there are in which a sample is augmented; epochs take them in turn.
        before_step: the first step that trains the backbone; None where none does.
        precision: of the forward pass.
        open_files: opens where features are kept for later runs; called when the first ones are wanted, because the name
            of the files follows from the weights.
    """

    def __init__(
        self,
        batches: Any,
        model: nn.Module,
        *,
        cut: FeatureCut,
        indices: NDArray[np.int64],
        views: int,
        before_step: int | None = None,
        precision: str = "fp32",
        open_files: Callable[[], FeatureFiles | None] | None = None,
    ) -> None:
        self._batches, self._model, self.cut = batches, model, cut
        self.views, self.before_step = views, before_step
        self._indices, self._precision, self._open_files = indices, precision, open_files
        self._slots = np.full(int(indices.max()) + 1, -1, np.int64)
        self._slots[indices] = np.arange(len(indices))
        self._tables: dict[int, _Table] = {}
        self._files: FeatureFiles | None = None

    def __getattr__(self, name: str) -> Any:
        if name == "_batches":  # while it is copied or unpickled
            raise AttributeError(name)
        return getattr(self._batches, name)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        for _, batch in zip(range(len(self)), self.from_step(0), strict=False):
            yield batch

    def from_step(self, step: int) -> Iterator[Batch]:
        """Batches from a step on, for ever. Closing it ends the threads that make them."""
        while self._holds(step):
            batch, bad = self._gathered(step)
            for index, error in bad.items():
                self._batches.batches.bad_files.add(index, "train", error)
            yield batch
            step += 1
        self._tables, self._files = {}, None
        with closing(self._batches.from_step(step)) as batches:
            yield from batches

    def at(self, step: int) -> Batch:
        """The batch of any step, made again."""
        return self._gathered(step)[0] if self._holds(step) else self._batches.at(step)

    def _holds(self, step: int) -> bool:
        return self.before_step is None or step < self.before_step

    def _gathered(self, step: int) -> tuple[Batch, dict[int, BadSample]]:
        """The batch of a step, and those of its samples that cannot be read."""
        loader = self._batches.batches
        epoch, positions, _ = loader.cut.positions(step)
        indices = loader.sampler.epoch(epoch).indices[positions]
        table, bad = self._table(epoch % self.views), {}
        if table.bad:
            bad = {index: table.bad[index] for index in indices.tolist() if index in table.bad}
            good = ~np.isin(indices, list(bad))
            indices, positions = indices[good], positions[good]
        rows = torch.from_numpy(self._slots[indices]).to(table.rows.device)
        targets = torch.from_numpy(loader.assembler.targets[indices]).to(table.rows.device)
        features = table.rows.index_select(0, rows)
        return Batch(features, targets, positions=positions, indices=indices, features=True), bad

    def _table(self, view: int) -> _Table:
        if not self._tables and self._open_files is not None:
            self._files = self._open_files()
        if view not in self._tables:
            self._tables[view] = self._made(view)
        return self._tables[view]

    def _made(self, view: int) -> _Table:
        """Features of all samples in a view: those on the disk, if the first chunk, made again, is the same."""
        loader, number = self._batches.batches, len(self._indices)
        chunks = [self._indices[start : start + ROWS_AT_ONCE] for start in range(0, number, ROWS_AT_ONCE)]

        def read(chunk: NDArray[np.int64]) -> Any:
            return loader.view(chunk, view, np.arange(len(chunk), dtype=np.int64))

        found = None if self._files is None else self._files.load(f"view-{view}")
        rows: Tensor | None = None
        bad: dict[int, BadSample] = {}
        with closing(prefetched(read, chunks, workers=loader.workers, ahead=loader.ahead)) as made:  # pyright: ignore[reportArgumentType] - a generator
            for part in made:
                bad.update(part.bad)
                if not len(part.batch):
                    continue
                features = self._features(part.batch)
                if rows is None:
                    rows = features.new_zeros((number, *features.shape[1:]))
                    if found is not None and not bad and _begins_with(found, features.cpu(), number):
                        return _Table(found.to(features.device), {})
                rows[torch.from_numpy(self._slots[part.batch.indices]).to(rows.device)] = features
        if rows is None:  # nothing can be read; whoever counts bad files will say so
            return _Table(torch.zeros((number, 1)), bad)
        if self._files is not None and not bad:
            self._files.save(f"view-{view}", rows)
        return _Table(rows, bad)

    @torch.no_grad()
    def _features(self, batch: Batch) -> Tensor:
        images = self._batches.prepare(batch).images
        device = images.device
        multiplying = multiplying_fp32(self._precision, device)
        with mode(self._model, training=False), autocast(self._precision, device), multiplying():
            return self.cut.features(self._model, images)


def _begins_with(found: Tensor, first: Tensor, number: int) -> bool:
    """Whether a table from the disk has these rows, to the bit, and as many as are wanted."""
    return len(found) == number and found.dtype == first.dtype and torch.equal(found[: len(first)], first)


class EvaluationFeatures:
    """Features of a validation split, made at the first evaluation, in its very batches: the logits are the same to the bit.

    Args:
        cut: where the backbone ends.
        before_step: evaluations after more steps than this see images; None never.
    """

    def __init__(self, cut: FeatureCut, *, before_step: int | None = None) -> None:
        self.cut, self.before_step = cut, before_step
        self._batches: list[Batch] | None = None

    def holds(self, state: State) -> bool:
        """Whether the backbone is as it was when training began."""
        if self.before_step is not None and state.step > self.before_step:
            self._batches = None
            return False
        return True

    def batches(
        self, model: nn.Module, images: Iterable[Batch], *, forward: Callable[..., Any], device: torch.device
    ) -> list[Batch]:
        """Batches of features, of what `images` hold; they are read the first time only.

        Args:
            model: that is inside `forward`.
            images: the split, in order.
            forward: images -> logits, in evaluation mode.
            device: where to compute.
        """
        if self._batches is None:
            self._batches = [self._of(model, batch.to(device), forward) for batch in images]
        return self._batches

    @torch.no_grad()
    def _of(self, model: nn.Module, batch: Batch, forward: Callable[..., Any]) -> Batch:
        features = self.cut.features(model, batch.images, run=lambda images: forward(images, **extra_inputs(batch)))
        return replace(batch, images=features.clone(), features=True)
