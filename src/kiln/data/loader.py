"""Batches as pure functions of the step."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kiln.batch import Batch
from kiln.data.collate import Collate, Sample, collated
from kiln.data.images import BadSample, Images
from kiln.data.prefetch import prefetched
from kiln.data.resident import ResidentImages
from kiln.data.sampler import Cut, Remembered, Sampler
from kiln.data.storage import counted
from kiln.errors import DataError


class BadFiles:
    """The samples that could not be read in this run: each named once, with its reason. Part of a checkpoint.

    Args:
        keys: names of the source's samples.
        limit: more unreadable training samples than this are an error; held-out ones are an error or skipped at will.
    """

    def __init__(self, keys: tuple[str, ...], *, limit: float = float("inf")) -> None:
        self.keys, self.limit = keys, limit
        self.found: dict[int, tuple[str, str, str]] = {}

    def add(self, index: int, split: str, error: BadSample) -> None:
        """Record a bad sample.

        Raises: DataError: there are too many.
        """
        self.found.setdefault(index, (split, error.reason, error.detail))
        bad = [i for i, (where, _, _) in self.found.items() if where == "train"]
        if split == "train" and len(bad) > self.limit:
            raise DataError(
                "E206",
                f"{counted(len(bad), 'training file')} cannot be read; the limit is {int(self.limit)}",
                details=[f"{self.keys[i]}: {self.found[i][1]} ({self.found[i][2]})" for i in bad[:20]],
                hint="kiln check DATA finds them all: mend or remove them, or allow more with --set data.max_bad_fraction=SHARE",
            )

    def rows(self) -> list[tuple[str, str, str, str]]:
        """(key, split, reason, detail) of each, in the order of keys."""
        return [(self.keys[index], *self.found[index]) for index in sorted(self.found)]

    def merge(self, others: list[BadFiles]) -> None:
        """Take over what other processes found."""
        for other in others:
            self.found = {**other.found, **self.found}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "keys": ()}  # every process has them; they would be most of what is sent at each save

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"rows": [[index, *self.found[index]] for index in sorted(self.found)]}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        self.found = {index: (split, reason, detail) for index, split, reason, detail in state["rows"]}


DrawParams = Callable[[int, NDArray[np.uint64]], NDArray[np.float64]]


@dataclass(frozen=True)
class _Made:
    batch: Batch
    bad: list[tuple[int, BadSample]]


class Assembler:
    """Turns indices into a batch: rows in order, bad ones dropped and reported.

    Args:
        images: the image of each sample.
        targets: (N, ...) of each sample.
        collate: puts the samples together, [(image, target), ...] -> images, targets and perhaps sizes; None stacks them.
    """

    def __init__(self, images: Images, targets: NDArray[Any], collate: Collate | None = None) -> None:
        self.images, self.targets, self.collate = images, targets, collate

    def make(
        self,
        indices: NDArray[np.int64],
        draws: NDArray[np.float64] | None,
        positions: NDArray[np.int64],
        params: NDArray[np.float64] | None = None,
    ) -> _Made:
        """Load the rows; those that cannot be read are left out of everything."""
        if self.collate is not None:
            return self._collated(self.collate, indices, draws, positions, params)
        rows, good, bad = self._load(indices.tolist(), draws)
        kept = slice(None) if not bad else np.asarray(good, np.int64)
        batch = Batch(
            images=rows if not bad else rows[torch.from_numpy(kept)],
            targets=torch.from_numpy(self.targets[indices[kept]]),
            positions=positions[kept],
            indices=indices[kept],
            params=None if params is None else params[kept],
        )
        return _Made(batch, bad)

    def _collated(
        self,
        collate: Collate,
        indices: NDArray[np.int64],
        draws: NDArray[np.float64] | None,
        positions: NDArray[np.int64],
        params: NDArray[np.float64] | None,
    ) -> _Made:
        samples: list[Sample] = []
        good: list[int] = []
        bad: list[tuple[int, BadSample]] = []
        for row, index in enumerate(indices.tolist()):
            try:
                image = np.ascontiguousarray(self.images.load(index, None if draws is None else draws[row]))
            except BadSample as error:
                bad.append((index, error))
                continue
            image = image if image.flags.writeable else image.copy()  # never what a cache holds
            samples.append((torch.from_numpy(image).permute(2, 0, 1), torch.as_tensor(self.targets[index])))
            good.append(row)
        kept = np.asarray(good, np.int64)
        if not samples:
            height, width, channels = self.images.shape
            nothing = torch.zeros((0, channels, height, width), dtype=torch.uint8)
            images, targets, sizes = nothing, torch.from_numpy(self.targets[:0]), None
        else:
            images, targets, sizes = collated(collate, samples)
        batch = Batch(
            images=images,
            targets=targets,
            positions=positions[kept],
            indices=indices[kept],
            params=None if params is None else params[kept],
            sizes=sizes,
        )
        return _Made(batch, bad)

    def _load(
        self, indices: list[int], draws: NDArray[np.float64] | None
    ) -> tuple[Tensor, list[int], list[tuple[int, BadSample]]]:
        """(B, C, H, W) with a row for every index, which of them are good, and what is wrong with the others.

        uint8 rows lie in memory as (B, H, W, C), which is channels-last. Of images that live on the device only their
        places (B, 3) are made here.
        """
        if isinstance(self.images, ResidentImages):
            return self.images.places(np.asarray(indices, np.int64), draws)
        at_once = self.images.many(np.asarray(indices, np.int64), draws)
        if at_once is not None:
            return torch.from_numpy(at_once).permute(0, 3, 1, 2), list(range(len(indices))), []
        place = np.empty((len(indices), *self.images.shape), np.uint8)
        floats: dict[int, Tensor] = {}
        good: list[int] = []
        bad: list[tuple[int, BadSample]] = []
        for row, index in enumerate(indices):
            try:
                image = self.images.load(index, None if draws is None else draws[row], place[row])
            except BadSample as error:
                bad.append((index, error))
                continue
            good.append(row)
            if isinstance(image, Tensor):
                floats[row] = image
        if not floats:
            return torch.from_numpy(place).permute(0, 3, 1, 2), good, bad
        missing = torch.zeros_like(next(iter(floats.values())))
        return torch.stack([floats.get(row, missing) for row in range(len(indices))]), good, bad


@dataclass(frozen=True)
class Views:
    """Each sample is augmented in a few ways only, which its epochs take in turn: view = epoch modulo their number.

    Attributes:
        number: of views.
        before_step: the step from which on augmentation is drawn anew in each epoch; None never.
    """

    number: int
    before_step: int | None = None

    def holds(self, step: int) -> bool:
        """Whether a step sees views."""
        return self.before_step is None or step < self.before_step


class TrainLoader:
    """The training batches of one process. One pass of `len(loader)` steps is an epoch.

    Args:
        assembler: loads samples.
        sampler: the order of each epoch.
        cut: how the order is cut into steps and shares.
        keys: (len(source),) uint64 identities, for per-sample randomness.
        bad_files: where unreadable samples are recorded, when their batch is consumed.
        draw_params: (epoch, keys of the batch) -> (B, P), what augmentation on the device will need.
        workers: threads; any number gives the same batches.
        ahead: batches prepared before they are asked for.
    """

    def __init__(
        self,
        assembler: Assembler,
        sampler: Sampler,
        cut: Cut,
        *,
        keys: NDArray[np.uint64],
        bad_files: BadFiles,
        draw_params: DrawParams | None = None,
        workers: int = 0,
        ahead: int = 4,
    ) -> None:
        self.assembler, self.sampler, self.cut = assembler, Remembered(sampler), cut
        self.keys, self.bad_files, self.draw_params = keys, bad_files, draw_params
        self.workers, self.ahead = workers, ahead
        self.views: Views | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.cut.steps_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        """One epoch, the first."""
        steps = self.from_step(0)
        for _ in range(len(self)):
            yield next(steps)

    def from_step(self, step: int) -> Iterator[Batch]:
        """Batches from a step on, for ever."""
        for made in prefetched(self._make, count(step), workers=self.workers, ahead=self.ahead):
            for index, error in made.bad:
                self.bad_files.add(index, "train", error)
            yield made.batch

    def at(self, step: int) -> Batch:
        """The batch of any step, made again."""
        return self._make(step).batch

    def _make(self, step: int) -> _Made:
        epoch, positions, size = self.cut.positions(step)
        with self._lock:
            order = self.sampler.epoch(epoch)
        placeholder = len(positions) == 0
        if placeholder:  # more processes than samples: go through the motions with a row that weighs nothing; one of
            # the step's own, because even without weight a row that is not finite makes the step bad
            positions = np.array([step % self.cut.steps_per_epoch * self.cut.batch_size], np.int64)
        indices = order.indices[positions]
        if self.views is not None and self.views.holds(step):
            made = self.view(indices, epoch % self.views.number, positions)
        else:
            made = self._drawn(indices, epoch, order.draw_keys(positions, self.keys), positions)
        batch = replace(made.batch, total=float(size) if self.cut.world_size > 1 else None)
        if placeholder or (len(batch) == 0 and self.cut.world_size > 1):
            batch = _weightless(batch, self.assembler.images.shape, self.assembler.targets)
        return _Made(batch, made.bad)

    def view(self, indices: NDArray[np.int64], view: int, positions: NDArray[np.int64]) -> _Made:
        """Samples as one of their views, whichever step and order they are in: what is drawn for an epoch of that number."""
        return self._drawn(indices, view, self.keys[indices], positions)

    def _drawn(
        self, indices: NDArray[np.int64], epoch: int, keys: NDArray[np.uint64], positions: NDArray[np.int64]
    ) -> _Made:
        draws = self.assembler.images.draw(self.sampler.seed, epoch, keys)
        params = None if self.draw_params is None else self.draw_params(epoch, keys)
        return self.assembler.make(indices, draws, positions, params)


def _weightless(batch: Batch, shape: tuple[int, int, int], targets: NDArray[Any]) -> Batch:
    height, width, channels = shape
    images = batch.images if len(batch) else torch.zeros((1, channels, height, width), dtype=torch.uint8)
    labels = batch.targets if len(batch) else torch.from_numpy(targets[:1])
    nobody = np.zeros(0, np.int64)
    weights = torch.zeros(len(labels))
    return replace(batch, images=images, targets=labels, weights=weights, indices=nobody, positions=nobody, params=None)


def evaluation_batches(
    assembler: Assembler,
    indices: NDArray[np.int64],
    *,
    batch_size: int,
    bad_files: BadFiles,
    split: str,
    skip_bad: bool,
    workers: int = 0,
    ahead: int = 4,
) -> Iterator[Batch]:
    """The given samples once each, in order, without padding.

    Raises: DataError: a sample cannot be read and `skip_bad` is off.
    """

    def make(start: int) -> _Made:
        part = indices[start : start + batch_size]
        return assembler.make(part, None, np.arange(start, start + len(part), dtype=np.int64))

    for made in prefetched(make, range(0, len(indices), batch_size), workers=workers, ahead=ahead):
        for index, error in made.bad:
            if not skip_bad:
                raise DataError(
                    "E202",
                    f"{bad_files.keys[index]} ({split}) cannot be read: {error.detail}",
                    hint="mend or remove the file, or leave it out and say so with --bad-files skip",
                )
            bad_files.add(index, split, error)
        if len(made.batch):
            yield made.batch
