"""How fast and how large the models of a comparison are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from kiln.data.images import BadSample, ContractImages
from kiln.data.source import Source
from kiln.jobs.comparing.contenders import Contender
from kiln.measure.side_by_side import take_turns
from kiln.models.ensemblefile import ENSEMBLE, read_ensemble
from kiln.pixels import stack_padded
from kiln.runtimes import BATCH_SIZE, Predictor

NUM_BATCHES = 2
SECONDS = 2.0
"""For each model, about."""


@dataclass(frozen=True)
class Speed:
    """How long a model takes for the images of the measurement, in each round.

    Attributes:
        seconds: by round, in turns with the other models.
        num_images: of a round.
        batch_size: images per forward pass.
        runtime: what computed, and where.
    """

    seconds: tuple[float, ...]
    num_images: int
    batch_size: int
    runtime: str

    @property
    def images_per_second(self) -> float:
        """By the median round."""
        return self.num_images / median(self.seconds)


def measure_speed(models: Sequence[Contender], source: Source, keys: Sequence[str]) -> list[Speed] | None:
    """Time the networks on the same few batches, in turns; decoding does not count.

    Args:
        models: at least one.
        source: of the images.
        keys: of samples that may be taken.
    Returns: for each model; None where no image could be read.
    """
    batch_size = models[0].asking.batch_size or BATCH_SIZE
    place = {key: index for index, key in enumerate(source.keys)}
    indices = [place[key] for key in keys if key in place][: NUM_BATCHES * batch_size]
    if source.transformed or not indices:
        return None
    works, num_images = [], 0
    for model in models:
        images = _read(model.predictor, source, indices)
        if not images:
            return None
        num_images = len(images)
        works.append(_work(model.predictor, images, batch_size))
    times = take_turns(works, seconds=SECONDS * len(models))
    return [
        Speed(tuple(took), num_images, min(batch_size, num_images), f"{model.predictor.runtime.name} on "
              f"{model.predictor.runtime.device}")
        for model, took in zip(models, times, strict=True)
    ]  # fmt: skip


def size_on_disk(model: Contender) -> int:
    """Bytes of the model's file; of an ensemble, with its members."""
    members = read_ensemble(model.file).members if model.file.name == ENSEMBLE else ()
    return sum(file.stat().st_size for file in (model.file, *(model.file.parent / member.file for member in members)))


def num_parameters(model: Contender) -> int | None:
    """Numbers that the model has learnt; None where its runtime does not tell."""
    network = getattr(model.predictor.runtime, "model", None)
    return sum(part.numel() for part in network.parameters()) if network is not None else None


def _read(predictor: Predictor, source: Source, indices: Sequence[int]) -> list[Any]:
    images = ContractImages(source, predictor.contract)
    found = []
    for index in indices:
        try:
            found.append(images.load(index))
        except BadSample:
            continue
    return found


def _work(predictor: Predictor, images: Sequence[Any], batch_size: int) -> Callable[[], None]:
    batches = []
    for start in range(0, len(images), batch_size):
        part = images[start : start + batch_size]
        stacked, sizes = stack_padded(list(part)) if predictor.contract.resize == "keep" else (np.stack(part), None)
        batches.append((np.ascontiguousarray(stacked.transpose(0, 3, 1, 2)), sizes))

    def work() -> None:
        for pixels, sizes in batches:
            predictor.logits(pixels, sizes)

    return work
