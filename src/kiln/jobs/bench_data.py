"""`bench_data`: how fast each stage of the data path is on this machine, where the wall is, and what to try next."""

from __future__ import annotations

import copy
import os
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.random import fork_rng

from kiln.batch import Batch
from kiln.data.images import BadSample, read
from kiln.data.loader import Assembler
from kiln.data.prefetch import prefetched
from kiln.engine.strategy import Single
from kiln.errors import DataError, UsageError
from kiln.jobs.asked import asked_for
from kiln.jobs.assembly.assemble import assemble, make_strategy
from kiln.jobs.assembly.batches import Pipeline, assemble_batches
from kiln.jobs.assembly.resolve import Settings, resolve
from kiln.jobs.intake import Intake, take_in
from kiln.measure.rates import Rate, measure_rate
from kiln.measure.wall import READ_FIRST, Stage, Wall, find_wall, read_first_time
from kiln.recipe import Recipe

CHUNK = 16
"""Images made at once where one thread is measured."""
PILOT_IMAGES = 32
LARGEST_SAMPLE = 1024
SAMPLE_SECONDS = 3.0
BATCH_SECONDS = 1.0
"""The sample is what all workers decode in `SAMPLE_SECONDS`; a batch, at most what they decode in `BATCH_SECONDS`."""
NUM_STAGES = 10
"""The time is shared evenly; so many can be measured."""


@dataclass(frozen=True)
class DataBench:
    """How fast the data path is.

    Attributes:
        stages: in the order of the path; those that the plan does not use are there for comparison.
        wall: the slowest stage, and what to try next.
        conditions: what was measured, by name: images of the sample, batch size, workers, device ...
        notes: what to know of the numbers.
    """

    stages: tuple[Stage, ...]
    wall: Wall
    conditions: dict[str, Any]
    notes: tuple[str, ...]


def bench_data(
    data: Any = None,
    *,
    seconds: float = 20.0,
    model_step: bool = False,
    recipe: Recipe | None = None,
    overrides: Mapping[str, Any] | None = None,
    **settings: Any,
) -> DataBench:
    """Measure each stage from the bytes of a file to a normalised batch on the device, alone and all together.

    A sample of the training images is measured, in the pixel form, crops and batches that `kiln.train` would use. What is
    kept is measured in memory; no cache on the disk is made or changed.

    Args:
        data: as for `kiln.train`.
        seconds: to measure for, about; opening the data and making the model come on top.
        model_step: measure the rate of training's own step as well, on a batch that is there already.
        recipe: as for `kiln.train`.
        overrides: recipe fields by their full names.
        **settings: recipe fields by their short names.
    Raises: DataError: no image of the sample can be read. UsageError: no data, or no time.
    """
    if seconds <= 0:
        raise UsageError("E102", f"seconds = {seconds}", expected="a number above 0")
    asked = asked_for(data, recipe, overrides, settings)
    if asked.data is None and asked.recipe.data.path is None:
        raise UsageError("E103", "no data: nothing to measure", hint="kiln bench data photos/")
    intake = take_in(asked.recipe, asked.data)
    with fork_rng(devices=[]):
        bench = _Bench(resolve(asked.recipe, intake), intake, seconds / NUM_STAGES)
        bench.measure()
        if model_step:
            bench.measure_model()
    return bench.result()


class _Bench:
    """One measurement of a plan's data path."""

    def __init__(self, settings: Settings, intake: Intake, seconds: float) -> None:
        self.settings, self.intake, self.seconds = settings, intake, seconds
        self.stages: list[Stage] = []
        self.can_keep = intake.source.has_headers and not intake.source.transformed
        self.keeps = self.can_keep and settings.values["data.cache"] != "off"
        settled = _with(settings, cache="off")
        whole = assemble_batches(settled, intake, Single(), resuming=True)
        self.settings = _with(settled, cache=settings.values["data.cache"])  # the sample follows the rules for all
        self.device, self.batch_size = whole.batches.device, settings.values["training.batch_size"]
        self.workers = max(1, settings.values["data.workers"])
        train = np.random.default_rng(0).permutation(intake.split.train)
        pilot = train[:PILOT_IMAGES]
        begun = perf_counter()
        good = _num_good(whole, pilot)
        per_second = max(good / (perf_counter() - begun) * self.workers, 1.0)
        if good == 0:
            raise DataError("E202", f"none of the first {len(pilot)} training images can be read")
        self.bench_batch = min(self.batch_size, max(8, int(per_second * BATCH_SECONDS)))
        size = int(min(LARGEST_SAMPLE, max(self.bench_batch, PILOT_IMAGES, per_second * SAMPLE_SECONDS)))
        sample = train[-size:]  # its files, but for a few of a small set, were not read a moment ago
        self.sample = replace(intake, split=replace(intake.split, train=np.sort(sample), val=intake.split.val[:0]))
        self.created = whole.created

    def measure(self) -> None:
        """Measure every stage of the path."""
        files = self._pipeline(cache="off")
        self._add(READ_FIRST, read_first_time(self._reads(passes=1), chunk=CHUNK), in_plan=False)
        self._add("read, again", self._rate(_each(self._reads())), in_plan=not self.keeps)
        self._add_makers(files, "read, decode, crop", in_plan=not self.keeps)
        steady = files
        if self.can_keep:
            kept = self._kept()
            self._add_makers(kept, "crop from what is kept", in_plan=self.keeps, tries="--cache disk")
            steady = kept if self.keeps else files
        values = self.settings.values
        if self.can_keep and values["data.pixel_form"] == "original" and values["augment.crop"] == "resized":
            tries = "--set data.pixel_form=stored"
            self._add_makers(self._kept(pixel_form="stored"), "crop from stored copies", in_plan=False, tries=tries)
        host = steady.loader.at(0)
        self._add("stack", self._rate(_stacking(steady, host)))
        self._add("augment, normalise", self._rate(lambda: len(steady.batches.prepare(host))), device=True)
        with closing(_batches_of(steady)) as batches:
            self._add("all together", self._rate(lambda: len(next(batches))), threads=self.workers, whole=True)

    def measure_model(self) -> None:
        """Measure training's step on a batch that is on the device already; the weights stay as they are."""
        settings = _with(self.settings, cache="off")
        settings.values["run.strategy"] = "single"
        settings.values["finetune.cache_features"] = "off"  # the step that takes images
        training = assemble(settings, self.intake, make_strategy(settings), resuming=True)
        state, batch = training.state, training.batches.at(0)
        state.model.train()
        for group in state.optimizer.param_groups:
            group["lr"] = 0.0

        def step() -> int:
            training.step(state, batch)
            return len(batch)

        self._add("the model's step", self._rate(step), device=True, model=True)

    def result(self) -> DataBench:
        """All that was measured, and what it says."""
        values, cores = self.settings.values, _num_cores()
        wall = find_wall(
            self.stages,
            workers=values["data.workers"],
            cores=cores,
            shares_cores=self.device.type == "cpu",
        )
        conditions = {
            "images": len(self.sample.split.train),
            "img_size": self.created.spec.img_size,
            "batch_size": self.bench_batch,
            "pixel_form": values["data.pixel_form"],
            "kept": self.keeps,
            "policy": values["augment.policy"],
            "workers": values["data.workers"],
            "cores": cores,
            "device": str(self.device),
            "model": self.created.spec.name,
        }
        return DataBench(tuple(self.stages), wall, conditions, tuple(self._notes()))

    def _notes(self) -> list[str]:
        notes = list(self.intake.notes)
        if self.bench_batch < self.batch_size:
            notes.append(
                f"measured in batches of {self.bench_batch}, not {self.batch_size}: decoding one takes too long"
            )
        notes.append(
            "all but the first reading finds its files in the system's page cache: a set larger than memory does not"
        )
        return notes

    def _pipeline(self, **changes: Any) -> Pipeline:
        """The plan's own, over the sample, with some settings of the data changed."""
        settings = _with(self.settings, **changes)
        settings.values["training.batch_size"] = self.bench_batch
        settings.values["training.drop_last"] = True
        settings.values["data.max_bad_fraction"] = 1.0  # what cannot be read is not counted, and no reason to stop
        return assemble_batches(settings, self.sample, Single(), resuming=True)

    def _kept(self, **changes: Any) -> Pipeline:
        """The same with everything kept already: in memory, so that no cache on the disk is touched or made."""
        pipeline = self._pipeline(cache="memory", cache_size="auto", **changes)
        for _ in self._chunks_made(pipeline, passes=1):
            pass
        return pipeline

    def _chunks_made(self, pipeline: Pipeline, passes: int | None = None) -> Generator[int]:
        """How many images of each chunk could be read, made by all workers."""
        ahead = 2 * self.workers
        make = partial(_num_good, pipeline)
        yield from prefetched(make, self._chunks(passes), workers=self.workers, ahead=ahead)

    def _add_makers(self, pipeline: Pipeline, name: str, *, in_plan: bool, tries: str = "") -> None:
        """Measure making images by one thread and by all."""
        chunks = self._chunks()
        alone = self._rate(lambda: _num_good(pipeline, next(chunks)))
        self._add(name, alone, in_plan=in_plan and self.workers == 1, tries=tries)
        if self.workers > 1:
            with closing(self._chunks_made(pipeline)) as made:
                rate = self._rate(lambda: sum(next(made) for _ in range(self.workers)))
            self._add(name, rate, threads=self.workers, in_plan=in_plan, tries=tries)

    def _rate(self, work: Any) -> Rate:
        try:
            return measure_rate(work, seconds=self.seconds, wait=self._wait)
        except ValueError as error:
            raise DataError("E202", "no image of the sample can be read", where=self.intake.source.where) from error

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def _add(self, name: str, rate: Rate, **about: Any) -> None:
        self.stages.append(Stage(name=name, rate=rate, **about))

    def _chunks(self, passes: int | None = None) -> Iterator[NDArray[np.int64]]:
        """Parts of the sample, over and over or so many times."""
        indices = np.random.default_rng(0).permutation(self.sample.split.train)
        for _ in count() if passes is None else range(passes):
            for start in range(0, len(indices), CHUNK):
                yield indices[start : start + CHUNK]

    def _reads(self, passes: int | None = None) -> Iterator[int]:
        """Read sample after sample; yields 1 for each that could be read."""
        for part in self._chunks(passes):
            for index in part.tolist():
                try:
                    read(self.intake.source, index)
                except BadSample:
                    yield 0
                else:
                    yield 1


def _with(settings: Settings, **changes: Any) -> Settings:
    """A copy with other settings of the data."""
    changed = copy.deepcopy(settings)
    changed.values |= {f"data.{name}": value for name, value in changes.items()}
    return changed


def _num_good(pipeline: Pipeline, indices: NDArray[np.int64]) -> int:
    """Make the images of these samples, with some crops; returns how many could be read."""
    loader = pipeline.loader
    draws = loader.assembler.images.draw(0, 0, loader.keys[indices])
    return len(loader.assembler.make(indices, draws, np.arange(len(indices), dtype=np.int64)).batch)


def _each(reads: Iterator[int]) -> Any:
    return lambda: sum(next(reads) for _ in range(CHUNK))


@dataclass(frozen=True)
class _InMemory:
    """Images that are there already."""

    rows: Any
    shape: tuple[int, int, int]

    def load(self, index: int, draws: Any = None, out: Any = None) -> Any:  # noqa: ARG002
        """A row, in `out` where there is one."""
        if out is None or isinstance(self.rows, torch.Tensor):
            return self.rows[index]
        out[...] = self.rows[index]
        return out

    def many(self, indices: Any, draws: Any) -> None:
        """None: the rows are to be stacked one by one."""


def _stacking(pipeline: Pipeline, host: Batch) -> Any:
    """Putting images that are there together as a batch."""
    images = host.images if host.images.is_floating_point() else host.images.permute(0, 2, 3, 1).numpy().copy()
    stub: Any = _InMemory(images, pipeline.loader.assembler.images.shape)
    assembler, indices = Assembler(stub, host.targets.numpy()), np.arange(len(host), dtype=np.int64)
    return lambda: len(assembler.make(indices, None, indices).batch)


def _batches_of(pipeline: Pipeline) -> Generator[Batch]:
    """Batches for ever; closing it ends the threads that make them ahead."""
    yield from pipeline.batches.from_step(0)


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
