"""From what was asked to what is done: every `auto` becomes a value with its reason."""

from __future__ import annotations

import os
import statistics
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kiln import pixels
from kiln.data.sampler import take_fraction
from kiln.data.source import Source
from kiln.engine.precision import fastest_precision, require_precision
from kiln.errors import DataError, UsageError
from kiln.jobs.intake import Indices, Intake
from kiln.models.device import device_note, resolve_device
from kiln.optim.optimizers import find_optimizer, reads_rate_once, settings_of
from kiln.random import keys_of
from kiln.recipe import Recipe
from kiln.recipe.duration import Duration
from kiln.recipe.recipe import FIELDS
from kiln.recipe.schedule_text import RISES_BY_ITSELF, parse_schedule

SMALL_PX = 64
"""Images whose shorter side is at most this are small: our own small network suits them."""


@dataclass
class Settings:
    """Values by field name, with the reasons of those that were decided. Remembers which were read."""

    values: dict[str, Any]
    reasons: dict[str, str] = field(default_factory=dict)
    _read: set[str] = field(default_factory=set, repr=False)

    def __getitem__(self, name: str) -> Any:
        self._read.add(name)
        return self.values[name]

    def decide(self, name: str, value: Any, reason: str) -> None:
        """Settle a field that was left to us."""
        self.values[name] = value
        self.reasons[name] = reason

    def asks(self, name: str) -> bool:
        """Whether a field is left to us."""
        return self.values[name] == "auto"

    def require_all_read(self) -> None:
        """Hold that no setting was passed over.

        Raises: UsageError: with the names of those that nothing read.
        """
        unread = sorted(set(self.values) - self._read)
        if unread:
            raise UsageError("E103", f"{len(unread)} settings have no effect here: {', '.join(unread)}")

    def plain(self) -> dict[str, Any]:
        """The values as YAML takes them."""
        return {name: _plain(value) for name, value in self.values.items()}

    @classmethod
    def from_plain(cls, values: Mapping[str, Any], reasons: Mapping[str, str]) -> Settings:
        """What `plain` gave, with durations and tuples as they were."""
        return cls({name: _typed(name, value) for name, value in values.items()}, dict(reasons))


def _plain(value: Any) -> Any:
    if isinstance(value, Duration):
        return str(value)
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _typed(name: str, value: Any) -> Any:
    if FIELDS[name].units and value is not None:
        return tuple(map(Duration.parse, value)) if isinstance(value, list) else Duration.parse(value)
    return tuple(value) if FIELDS[name].is_list and isinstance(value, list) else value


def resolve(recipe: Recipe, intake: Intake, *, world_size: int = 1) -> Settings:
    """Settle every field of a recipe for these data and this machine, by stated rules.

    The model's own size, where `model.img_size` is `auto`, is settled when the model is made.
    """
    settings = Settings({name: recipe[name] for name in FIELDS})
    _resolve_place(settings, world_size)
    _resolve_model(settings, intake)
    _resolve_batches(settings, intake)
    _resolve_finetune(settings, world_size)
    _resolve_rates(settings)
    settings.values["task.name"] = intake.task.name
    if settings.asks("training.keep") and settings.values["data.folds"]:
        settings.decide("training.keep", "last", "chosen on its own fold, a model would be measured too well there")
    elif settings.asks("training.keep"):
        settings.decide("training.keep", "best", "usual; without validation there is no best, and the last is kept")
    if settings.asks("training.monitor"):
        settings.decide("training.monitor", intake.task.monitor, "the task's own")
    return settings


def _resolve_place(settings: Settings, world_size: int) -> None:
    device = resolve_device(settings.values["run.device"])
    if settings.asks("run.device"):
        settings.decide("run.device", str(device), "the accelerator, if there is one, else the CPU")
    if note := device_note(device):
        settings.reasons["run.device"] = note
    if settings.asks("run.strategy"):
        strategy = "ddp" if world_size > 1 else "single"
        settings.decide("run.strategy", strategy, f"{world_size} process{'es' if world_size > 1 else ''}")
    settings.values["run.processes"] = world_size
    if settings.asks("run.memory_format"):
        settings.decide("run.memory_format", "channels_last", "batches arrive that way, and convolutions are faster so")
    if settings.asks("data.workers") and settings.values["data.path"] is None:
        settings.decide("data.workers", 1, "a Dataset object may not be safe to read from several threads")
    if settings.asks("data.workers"):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        settings.decide("data.workers", min(cores, 8), f"{cores} processor cores")


def _resolve_model(settings: Settings, intake: Intake) -> None:
    headers = sample_headers(intake.source, intake.split.train)
    scratch = settings.values["model.weights"] == "none"
    if settings.asks("data.channels"):
        channels, reason = _channels(headers, scratch)
        settings.decide("data.channels", channels, reason)
    short_px = statistics.median(min(h.width, h.height) for h in headers) if headers else None
    small = short_px is not None and short_px <= SMALL_PX
    if settings.asks("model.name"):
        name = "kiln/small_cnn" if small and scratch else "resnet18"
        settings.decide(
            "model.name", name, f"images of about {short_px:.0f} px" if short_px else "a usual first choice"
        )
    if (
        settings.asks("model.img_size")
        and small
        and short_px is not None
        and settings.values["model.name"].startswith("kiln/")
    ):
        size = max(16, -(-int(short_px) // 8) * 8)
        settings.decide("model.img_size", size, f"the images' own size, {short_px:.0f} px, in steps of 8")
    if settings.asks("training.precision"):
        size = settings.values["model.img_size"]
        if isinstance(size, int) and size <= SMALL_PX:
            settings.decide("training.precision", "fp32", f"at {size} px, converting costs more than bf16 gains")
        else:
            settings.decide("training.precision", *fastest_precision(resolve_device(settings.values["run.device"])))
    require_precision(settings.values["training.precision"], resolve_device(settings.values["run.device"]))


def sample_headers(source: Source, indices: Indices, *, most: int = 64) -> list[pixels.Header]:
    """Headers of some samples, evenly spread; none for sources that transform by themselves."""
    if source.transformed:
        return []
    headers = []
    for index in indices[:: max(1, len(indices) // most)]:
        try:
            headers.append(source.header(int(index)))
        except (pixels.PixelError, DataError):
            continue  # bad files are counted and named by the header check
    return headers


def _channels(headers: list[pixels.Header], scratch: bool) -> tuple[int, str]:
    counts = Counter(map(_channels_of, headers))
    usual = counts.most_common(1)[0][0] if counts else 3
    if usual not in (1, 3):
        return usual, f"the arrays have {usual}"
    grey = set(counts) == {1}
    if grey and scratch:
        return 1, "the images are grey"
    return 3, "grey images, but the weights were made for colour" if grey else "the images are in colour"


def _channels_of(header: pixels.Header) -> int:
    """Grey or colour, whatever else a file holds (alpha is composited); for arrays, how many they have."""
    number = header.mode.rpartition("x")[2]
    if number.isdecimal() and header.format in ("NPY", "array"):
        return int(number)
    return 1 if header.mode in ("1", "L", "I", "F", "LA") or header.mode.startswith("I;") else 3


def chosen_samples(settings: Settings, intake: Intake) -> Indices:
    """The training samples that take part: all, or the share `data.train_fraction` of each class."""
    train, fraction = intake.split.train, settings["data.train_fraction"]
    if fraction >= 1:
        return train
    keys = keys_of([intake.source.keys[index] for index in train.tolist()])
    return take_fraction(train, keys, strata_of(intake, train), fraction, seed=settings["training.seed"])


def strata_of(intake: Intake, indices: Indices) -> tuple[str, ...]:
    """What each of these samples counts as where classes are held apart."""
    labels = intake.source.labels
    return intake.task.strata([] if labels is None else [labels[index] for index in indices.tolist()])


def _resolve_batches(settings: Settings, intake: Intake) -> None:
    num_train = len(chosen_samples(settings, intake))
    size = 32 if num_train < 5_000 else 64 if num_train < 20_000 else 128
    if str(settings.values["training.batch_size"]) == "all":
        settings.decide("training.batch_size", num_train, "all training samples in every step")
        if settings.asks("training.micro_batch_size"):
            settings.decide("training.micro_batch_size", min(size, num_train), "a usual batch at once")
    if settings.asks("training.batch_size"):
        settings.decide("training.batch_size", min(size, num_train), f"{num_train:,} training samples")
    batch_size: int = settings.values["training.batch_size"]
    if settings.asks("training.micro_batch_size"):
        settings.decide("training.micro_batch_size", None, "the whole batch at once, halved when memory runs out")
    if settings.asks("training.drop_last"):
        whole, rest = divmod(num_train, batch_size)
        drop = rest > 0 and (whole >= 10 or (whole >= 1 and rest == 1))
        reason = (
            f"{rest} of {num_train:,} samples sit out, others in each epoch" if drop else "few batches: none is spared"
        )
        settings.decide("training.drop_last", drop, reason)


SMALL_PASS = 16
"""Fewer samples at once than this give BatchNorm poor statistics; those of trained weights are better."""


def _resolve_finetune(settings: Settings, world_size: int) -> None:
    values = settings.values
    mode, scratch = values["finetune.mode"], values["model.weights"] == "none"
    first = mode == "staged" and not values["finetune.stages"]
    if settings.asks("finetune.head_start"):
        settings.decide("finetune.head_start", *_head_start(values, usual=first, scratch=scratch))
    if first:
        decide_stages(settings)
    if settings.asks("finetune.freeze_norm"):
        passed = values["training.micro_batch_size"] or -(-values["training.batch_size"] // world_size)
        if mode in ("head", "lora"):
            settings.decide("finetune.freeze_norm", "none", "norms are frozen with the rest")
        elif scratch or passed >= SMALL_PASS:
            why = "no trained statistics" if scratch else f"{passed} samples at once give good statistics"
            settings.decide("finetune.freeze_norm", "none", why)
        else:
            why = f"{passed} samples at once give poor statistics, and the weights bring good ones"
            settings.decide("finetune.freeze_norm", "statistics", why)


def decide_stages(settings: Settings) -> None:
    """The stages of `staged` without stages of the user's own: a fitted head takes none of the run."""
    decay = "" if settings.values["optim.layer_decay"] != 1 else " decay 0.75"
    if settings.values["finetune.head_start"] == "fitted":
        settings.decide("finetune.stages", (f"all{decay}",), "a fitted head, then all, lower layers more slowly")
    else:
        stages = ("head at 10", f"all from 20%{decay}")
        settings.decide("finetune.stages", stages, "the new head first, then all, lower layers more slowly")


def _head_start(values: Mapping[str, Any], *, usual: bool, scratch: bool) -> tuple[str, str]:
    if not usual:
        return "random", "staged fits it, where it has no stages of your own"
    if scratch:
        return "random", "random weights have no features to fit it to"
    if (values["finetune.views"], values["finetune.cache_features"]) != ("auto", "auto"):
        return "random", "a stage of its own trains it, on kept features"
    return "fitted", "to the frozen backbone's features, so that it teaches the backbone nothing random"


def _resolve_rates(settings: Settings) -> None:
    _resolve_optimizer(settings)
    decide_warmup(settings)


def decide_warmup(settings: Settings) -> None:
    """How long the way up to the peak rate is, where that is left to us."""
    if not settings.asks("schedule.warmup"):
        return
    schedule, optimizer = parse_schedule(settings.values["schedule.name"])[0], settings.values["optim.name"]
    if reads_rate_once(optimizer):
        settings.decide("schedule.warmup", Duration(0, "%"), f"{optimizer} looks at its rate at the first step only")
        return
    own = ":" in schedule or schedule in ("lambda", "multiplicative")
    if own or schedule in RISES_BY_ITSELF:
        why = "is your own, and the whole of it" if own else "begins low by itself"
        settings.decide("schedule.warmup", Duration(0, "%"), f"{schedule} {why}")
    else:
        settings.decide("schedule.warmup", Duration(10, "%"), "usual; the first steps are the wildest")


OWN_SETTINGS = ("momentum", "betas", "eps")
"""Settings that many optimizers have, each with a default of its own."""
MOST_COUNTED = 1024
"""Rates grow with the batch up to this many samples."""
_ADAMS = ("adamw", "adam", "nadam", "radam", "adamax", "muon")


def _resolve_optimizer(settings: Settings) -> None:
    name, mode = settings.values["optim.name"], settings.values["finetune.mode"]
    batch_size = settings.values["training.batch_size"]
    counted = min(batch_size, MOST_COUNTED)
    new = settings.values["model.weights"] == "none" or mode in ("head", "lora")  # all that is trained is new
    start = f"{mode} alone" if mode in ("head", "lora") else "from scratch" if new else "from trained weights"
    taken = settings_of(find_optimizer(name)) or {}
    if settings.asks("optim.lr"):
        if name == "sgd":
            lr = (0.05 if new else 0.005) * counted / 64
        elif name in _ADAMS:
            lr = (2e-3 if new else 2e-4) * (counted / 64) ** 0.5
        else:
            lr = taken.get("lr")
        if not isinstance(lr, int | float) or not lr > 0:
            raise UsageError("E102", f"optim.lr = auto: {name} has no rate of its own", hint="--lr RATE")
        ruled = name == "sgd" or name in _ADAMS
        reason = f"{name}, {start}, batches of {batch_size}" if ruled else f"{name}'s own default"
        settings.decide("optim.lr", float(f"{lr:.3g}"), reason)
    if settings.asks("optim.weight_decay") and settings.values["finetune.l2_sp"]:
        settings.decide("optim.weight_decay", 0.0, "finetune.l2_sp pulls the weights to where they started instead")
    if settings.asks("optim.weight_decay"):
        usual = {"sgd": 5e-4, "adamw": 0.05, "muon": 0.05}
        own = taken.get("weight_decay", 0.0)
        decay = usual.get(name, own if isinstance(own, int | float) else 0.0)
        settings.decide("optim.weight_decay", float(decay), f"usual for {name}" if name in usual else "its own default")
    for key in OWN_SETTINGS:
        if settings.asks(f"optim.{key}"):
            own = taken.get(key)
            plain = all(isinstance(part, int | float) for part in (own if isinstance(own, tuple) else (own,)))
            settings.decide(f"optim.{key}", own if plain else None, f"{name}'s own")
