"""`show`: a contact sheet of the very batch that a training sees at a step, before and after augmentation."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kiln.batch import Batch
from kiln.data.images import BadSample, ContractImages
from kiln.data.storage import counted
from kiln.engine.strategy import Single
from kiln.errors import DataError, UsageError
from kiln.jobs.asked import Asked, asked_for
from kiln.jobs.assembly.batches import Pipeline, assemble_batches
from kiln.jobs.assembly.features import hold_views
from kiln.jobs.assembly.resolve import Settings, resolve
from kiln.jobs.intake import Intake, stem_of, take_in
from kiln.jobs.training.recorded import plan_of_run
from kiln.recipe import Recipe
from kiln.reports.contact_sheet import (
    Frame,
    check_suffix,
    contact_sheet,
    encode_sheet,
    font_for,
    load_font,
    missing_glyphs,
    texts_of,
)
from kiln.run import Run, is_run, write_atomically

SMALLEST_SHARE_SHOWN = 0.005
"""Of a soft target: classes below it are left out of a label."""
MOST_GLYPHS_NAMED = 20


@dataclass(frozen=True)
class Shown:
    """What a contact sheet shows.

    Attributes:
        path: the picture.
        step: the step whose batch it is, counted from 1 as in `metrics.jsonl`.
        epoch: that the step belongs to, counted from 1.
        keys: of the samples, in the order of the batch.
        labels: of the samples; a mixed one has several classes with their shares.
        batch_size: samples of the whole batch.
        notes: what the picture does not show.
    """

    path: Path
    step: int
    epoch: int
    keys: tuple[str, ...]
    labels: tuple[str, ...]
    batch_size: int
    notes: tuple[str, ...]


def show(
    data: Any = None,
    *,
    step: int | None = None,
    count: int = 16,
    output: str | os.PathLike[str] | None = None,
    font: str | os.PathLike[str] | None = None,
    recipe: Recipe | None = None,
    overrides: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Shown:
    """Write a contact sheet of what a model sees in training: each image by the contract, and after augmentation.

    Nothing is trained and no run folder is made. A batch is a pure function of the recipe and the step, so the batch
    of any step of a run is the one that it was trained on, bit for bit.

    Args:
        data: a run (its folder, or a `Run`), or data as for `kiln.train`, for which everything left to `auto` is
            decided as it would be there.
        step: counted from 1, as in `metrics.jsonl`; a run's last one, and the first otherwise.
        count: samples to show, at most those of the batch.
        output: the picture, `.png` or `.jpg`; `NAME-stepNNNNNN.png` in the working folder without one.
        font: a TrueType font for names that Pillow's own cannot show.
        recipe: as for `kiln.train`.
        overrides: recipe fields by their full names; of a run only those that change nothing of what comes out.
        **settings: recipe fields by their short names.
    Returns: what is on the sheet, and where it is.
    Raises: DataError: no sample of the batch can be read. UsageError: a step below 1, another form than PNG and JPEG.
    """
    _check_numbers(step=step, count=count)
    if output is not None:
        check_suffix(Path(output).suffix)
    letters = None if font is None else load_font(font)
    if is_run(data):
        run = data if isinstance(data, Run) else Run(data)
        seen = _of_run(run, asked_for(None, recipe, overrides, settings))
        step = max(1, run.status["step"]) if step is None else step
        stem = run.path.resolve().name
    else:
        seen = _of_data(asked_for(data, recipe, overrides, settings))
        stem = stem_of(data if seen.path is None else seen.path)
    step = step or 1
    batch, num_wanted, epoch = seen.batch(step)
    frames = seen.frames(batch.cut(0, count))
    path = Path(f"{stem}-step{step:06d}.png" if output is None else output)
    heading = [seen.heading(f"{stem} · step {step:,}, in epoch {epoch + 1:,}"), seen.legend]
    letters = letters or font_for(texts_of(frames, heading))
    sheet = contact_sheet(frames, heading=heading, font=letters)
    write_atomically(path, encode_sheet(sheet, path.suffix))
    notes = [*_shortfalls(len(batch), num_wanted, count), *_without_glyphs(texts_of(frames, heading), letters)]
    return Shown(
        path=path,
        step=step,
        epoch=epoch + 1,
        keys=tuple(frame.name for frame in frames),
        labels=tuple(frame.label for frame in frames),
        batch_size=len(batch),
        notes=(*seen.intake.notes, *notes),
    )


def _check_numbers(**values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < 1:
            raise UsageError("E102", f"{name} = {value}", expected="a whole number, at least 1")


def _of_run(run: Run, asked: Asked) -> _Seen:
    """A run's own batches, by what it recorded."""
    return _seen(*plan_of_run(run, asked, verb="show"))


def _of_data(asked: Asked) -> _Seen:
    """The batches that a training would see."""
    if asked.data is None and asked.recipe.data.path is None:
        raise UsageError("E103", "no data: nothing to show", hint="kiln show photos/, or kiln show runs/NAME")
    intake = take_in(asked.recipe, asked.data)
    return _seen(resolve(asked.recipe, intake), intake, asked.recipe.data.path)


def _seen(settings: Settings, intake: Intake, path: str | None) -> _Seen:
    settings.values["data.cache"] = "off"  # kept copies change no byte; none need be made for one batch
    # As a resume does, without the weights that the model starts from: no batch depends on them.
    pipeline = assemble_batches(settings, intake, Single(), resuming=True)
    hold_views(settings, pipeline)
    return _Seen(settings, intake, path, pipeline)


@dataclass(frozen=True)
class _Seen:
    """What a model sees, by a plan."""

    settings: Settings
    intake: Intake
    path: str | None
    pipeline: Pipeline

    def batch(self, step: int) -> tuple[Batch, int, int]:
        """The batch of a step counted from 1, on the host; how many samples it was to have; its epoch from 0.

        Raises: DataError: none of them can be read.
        """
        epoch, _, num_wanted = self.pipeline.loader.cut.positions(step - 1)
        batch = self.pipeline.batches.at(step - 1)
        if len(batch) == 0:
            raise DataError("E202", f"none of the {num_wanted} samples of step {step} can be read")
        return batch.to("cpu"), num_wanted, epoch

    def frames(self, batch: Batch) -> list[Frame]:
        """Each sample with its names, before and after augmentation."""
        indices = np.zeros(0, np.int64) if batch.indices is None else batch.indices
        after = _viewable(batch.images, None if self._is_transformed else self.pipeline)
        labels = [target_label(target, self.intake.classes) for target in batch.targets]
        keys = self.intake.source.keys
        if self._is_transformed:
            return [Frame((image,), label, keys[i]) for image, label, i in zip(after, labels, indices, strict=True)]
        contract = ContractImages(self.intake.source, self.pipeline.contract)
        frames = []
        for image, label, index in zip(after, labels, indices.tolist(), strict=True):
            try:
                before = contract.load(index)
            except BadSample as error:  # a moment ago it could be read
                raise DataError("E202", f"{keys[index]} cannot be read: {error.detail}") from error
            frames.append(Frame((before, image), label, keys[index]))
        return frames

    @property
    def _is_transformed(self) -> bool:
        return self.intake.source.transformed

    def heading(self, where: str) -> str:
        """Where these images stand in a training, and by which settings."""
        values, size = self.settings.values, self.pipeline.created.spec.img_size
        said = f"augmentation {values['augment.policy']}, pixel form {values['data.pixel_form']}, seed"
        return f"{where} · {size} px · {said} {values['training.seed']}"

    @property
    def legend(self) -> str:
        """What stands where."""
        if self._is_transformed:
            return "As the data set transforms them, each stretched to its own range."
        return "Left: the image by the pixel contract, as in validation. Right: what the model is given in training."


def _viewable(images: Tensor, pipeline: Pipeline | None) -> NDArray[np.uint8]:
    """(B, H, W, C) uint8 of the model's inputs (B, C, H, W): the normalisation undone, or each stretched to its range."""
    images = images.detach().float()
    if pipeline is None or pipeline.created.spec.per_image:
        low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
        images = (images - low) / (high - low).clamp_min(torch.finfo(images.dtype).tiny)
    else:
        spec = pipeline.created.spec
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (spec.mean, spec.std))
        images = images * std + mean
    return (images * 255).round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def target_label(target: Tensor, classes: tuple[str, ...]) -> str:
    """A target in words: a class, several classes, or several with their shares where they are mixed."""
    if target.ndim == 0:
        return f"{target.item():g}" if target.is_floating_point() else classes[int(target)]
    shares = {name: share for name, share in zip(classes, target.tolist(), strict=True) if share > SMALLEST_SHARE_SHOWN}
    if not shares:
        return "(none)"
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    return ", ".join(name if share >= 1 - SMALLEST_SHARE_SHOWN else f"{name} {share:.0%}" for name, share in ordered)


def _shortfalls(num_there: int, num_wanted: int, count: int) -> list[str]:
    notes = []
    if num_there < num_wanted:
        left_out = counted(num_wanted - num_there, "sample")
        notes.append(f"{left_out} of the step left out: no image can be read there")
    if count > num_there:
        notes.append(f"the step has {counted(num_there, 'sample')}, fewer than the {count} asked for")
    return notes


def _without_glyphs(texts: list[str], font: Any) -> list[str]:
    missing = missing_glyphs(texts, font)
    shown = missing if len(missing) <= MOST_GLYPHS_NAMED else f"{missing[:MOST_GLYPHS_NAMED]} ..."
    return [f"no font at hand can show {shown}: --font FILE takes another"] if missing else []
