"""Settings that are each right but not together, or that would have no effect: both are errors, never a shrug."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kiln.recipe.check import Problem
from kiln.recipe.finetune_text import find_finetune_problems
from kiln.recipe.loss_text import find_loss_problems
from kiln.recipe.optim_problems import find_optim_problems
from kiln.recipe.schedule_text import find_schedule_problems

# field -> (the field that decides, the values under which the first has an effect)
EFFECTIVE_ONLY = {
    "augment.crop_padding": ("augment.crop", ("auto", "padded")),
    "augment.crop_scale": ("augment.crop", ("auto", "resized")),
    "augment.crop_ratio": ("augment.crop", ("auto", "resized")),
    "model.mean": ("model.normalize", ("channels",)),
    "model.std": ("model.normalize", ("channels",)),
    "data.cache_key": ("data.cache", ("auto", "disk", "device")),
    "data.sample_weights": ("data.sampler", ("weighted",)),
    "training.fp32_modules": ("training.precision", ("auto", "bf16", "fp16")),
}
WITHOUT_POLICY = tuple(
    f"augment.{name}" for name in ("crop", "crop_scale", "crop_ratio", "crop_padding", "hflip", "vflip")
)
POSITIVE = ("training.epochs", "training.eval_every", "training.patience", "checkpoint.every")
RISING = ("augment.crop_scale", "augment.crop_ratio")


def find_contradictions(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[Problem]:
    """What is wrong between fields.

    Args:
        values: every field of a recipe by its full name, each valid alone.
        defaults: the same for a recipe that says nothing.
    """
    return [
        *_without_effect(values, defaults),
        *_only_beside_another(values, defaults),
        *_empty(values),
        *_not_rising(values),
        *_too_much(values),
        *_sizes_that_differ(values),
        *_two_thresholds(values),
        *_folds(values, defaults),
        *find_optim_problems(values, defaults),
        *find_loss_problems(values, defaults),
        *find_finetune_problems(values, defaults),
        *find_schedule_problems(values, defaults),
    ]


def _two_thresholds(values: Mapping[str, Any]) -> Iterator[Problem]:
    accuracy, coverage = values["answers.wanted_accuracy"], values["answers.wanted_coverage"]
    if accuracy is not None and coverage is not None:
        what = (
            f"answers.wanted_accuracy = {accuracy} and answers.wanted_coverage = {coverage}: one threshold serves one"
        )
        yield Problem("E103", what, expected="one of them")


def _folds(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> Iterator[Problem]:
    folds, fold = values["data.folds"], values["data.fold"]
    if folds == 1:
        yield Problem("E102", "data.folds = 1", expected="2 or more, or 0 for none")
    if fold is not None and fold > folds:
        yield Problem("E103", f"data.fold = {fold} with data.folds = {folds}", expected="a fold from 1 to data.folds")
    if folds and values["data.val_fraction"] != defaults["data.val_fraction"]:
        what = f"data.val_fraction = {values['data.val_fraction']} has no effect with data.folds = {folds}"
        yield Problem("E103", what, expected="one of them: a fold is what its model is validated on")


def _without_effect(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> Iterator[Problem]:
    for name, (decider, effective) in EFFECTIVE_ONLY.items():
        decided = values[decider]
        if values[name] != defaults[name] and decided not in effective and ":" not in decided:
            what = f"{name} = {values[name]!r} has no effect with {decider} = {decided!r}"
            yield Problem("E103", what, expected=f"{decider} = {' or '.join(effective)}, or no {name}")
    if values["augment.policy"] == "none":
        for name in WITHOUT_POLICY:
            if values[name] != defaults[name]:
                what = f"{name} = {values[name]!r} has no effect with augment.policy = 'none'"
                yield Problem("E103", what, expected=f"another augment.policy, or no {name}")
    if (
        values["augment.mix_prob"] != defaults["augment.mix_prob"]
        and not values["augment.mixup"] + values["augment.cutmix"]
    ):
        what = f"augment.mix_prob = {values['augment.mix_prob']} has no effect without augment.mixup or augment.cutmix"
        yield Problem("E103", what, expected="augment.mixup or augment.cutmix above 0")


def _only_beside_another(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> Iterator[Problem]:
    if values["training.ema_decay"] and values["training.swa_start"] is not None:
        what = "training.ema_decay and training.swa_start: two averages of the weights, and one can ship"
        yield Problem("E103", what, expected="one of them")
    if values["augment.first_px"] is None and values["augment.full_px_from"] != defaults["augment.full_px_from"]:
        what = f"augment.full_px_from = {values['augment.full_px_from']} has no effect without augment.first_px"
        yield Problem("E103", what, expected="augment.first_px, or no augment.full_px_from")
    if values["training.min_delta"] and values["training.patience"] is None:
        what = f"training.min_delta = {values['training.min_delta']} has no effect without training.patience"
        yield Problem("E103", what, expected="training.patience, or no training.min_delta")


def _empty(values: Mapping[str, Any]) -> Iterator[Problem]:
    for name in POSITIVE:
        durations = values[name] if isinstance(values[name], tuple) else (values[name],)
        if not durations or any(duration is not None and duration.value == 0 for duration in durations):
            yield Problem("E102", f"{name} = {' '.join(map(str, durations))!r}", expected="more than nothing")
    for name in ("task.separator", "model.name", "model.weights", "run.output"):
        if not values[name]:
            yield Problem("E102", f"{name} = {values[name]!r}", expected="text that is not empty")


def _not_rising(values: Mapping[str, Any]) -> Iterator[Problem]:
    for name in RISING:
        low, high = values[name]
        if low > high:
            yield Problem("E102", f"{name} = [{low}, {high}]", expected="the smaller number first")
    if values["augment.crop_scale"][1] > 1:
        yield Problem("E102", f"augment.crop_scale = {list(values['augment.crop_scale'])}", expected="shares up to 1")


def _sizes_that_differ(values: Mapping[str, Any]) -> Iterator[Problem]:
    """Images of different sizes are padded, and go through nothing that wants one size."""
    pads, keeps = values["data.collate"] == "pad", values["data.resize"] == "keep"
    if pads != keeps:
        what = f"data.collate = {values['data.collate']!r} with data.resize = {values['data.resize']!r}"
        yield Problem("E103", what, expected="pad together with keep, or neither")
    if not pads:
        return
    allowed = {
        "augment.policy": ("none",), "augment.mixup": (0,), "augment.cutmix": (0,), "augment.transform": (None,),
        "augment.first_px": (None,),
        "data.cache": ("auto", "off", "memory", "disk"), "model.normalize": ("channels",),
    }  # fmt: skip
    for name, fitting in allowed.items():
        if values[name] not in fitting:
            what = f"{name} = {values[name]!r} needs images of one size, and data.collate = 'pad' keeps their own"
            yield Problem("E103", what, expected=f"{name} = {' or '.join(map(str, fitting))}")
    for name in ("model.mean", "model.std"):
        if values[name] == "train":
            what = f"{name} = 'train' is measured on images of one size, and data.collate = 'pad' keeps their own"
            yield Problem("E103", what, expected=f"{name} = auto or numbers")


def _too_much(values: Mapping[str, Any]) -> Iterator[Problem]:
    held_out = values["data.val_fraction"] + values["data.test_fraction"]
    if held_out >= 1:
        what = f"data.val_fraction + data.test_fraction = {held_out:g}"
        yield Problem("E103", what, expected="less than 1, so that samples remain to train on")
    batch, micro = values["training.batch_size"], values["training.micro_batch_size"]
    if isinstance(batch, int) and isinstance(micro, int) and micro > batch:
        yield Problem(
            "E103", f"training.micro_batch_size = {micro} > training.batch_size = {batch}", expected="at most it"
        )
    if values["run.strategy"] == "single" and values["run.processes"] > 1:
        what = f"run.processes = {values['run.processes']} with run.strategy = 'single'"
        yield Problem("E103", what, expected="run.strategy = ddp (or auto), or one process")
