"""How the peers spell things: timm's and torchvision's flags and Ultralytics' `key=value`, mapped onto fields.

What Kiln knows by another name is mapped, with a note. What it does not have yet is refused: a setting that is
silently ignored costs more than an error. Names are looked up in kebab-case, without dashes in front.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from kiln.errors import UsageError
from kiln.names import OPTIMIZERS

OFF = ("", "0", "0.0", "false", "none", "off")
ON = ("1", "true", "on", "yes")


@dataclass(frozen=True)
class Alias:
    """What another tool's setting means here.

    `convert` turns the peer's value into ours, or into None where there is nothing to set. A flag with a `bare` value
    takes no argument.
    """

    field: str
    convert: Callable[[str], str | None] | None = None
    bare: str | None = None
    num_values: int = 1


def _one_of(meanings: Mapping[str, str | None]) -> Callable[[str], str | None]:
    """A conversion by table; words that the table lacks pass unchanged."""
    return lambda text: meanings.get(text.lower(), text)


def _switch(on: str, off: str | None) -> Callable[[str], str | None]:
    """A conversion of true and false (and of a switch without value); other words pass unchanged."""
    meanings: dict[str, str | None] = {**dict.fromkeys(ON, on), **dict.fromkeys(OFF, off)}
    return _one_of(meanings)


def _unit(unit: str) -> Callable[[str], str | None]:
    return lambda text: f"{text}{unit}" if text.replace(".", "", 1).isdigit() else text


def _if_positive(convert: Callable[[str], str | None]) -> Callable[[str], str | None]:
    return lambda text: None if text.startswith("-") else convert(text)


_OPTIMIZERS = _one_of({"auto": "adamw", **{name: name for name in OPTIMIZERS}})
_SCHEDULES = _one_of(
    {
        "none": "constant",
        "cosineannealinglr": "cosine",
        "cosineannealingwarmrestarts": "cosine_restarts",
        "steplr": "step",
        "multisteplr": "multistep",
        "exponentiallr": "exponential",
        "linearlr": "linear",
        "constantlr": "constant",
        "poly": "polynomial",
        "polynomiallr": "polynomial",
        "onecycle": "one_cycle",
        "onecyclelr": "one_cycle",
        "cycliclr": "cyclic",
        "reducelronplateau": "plateau",
    }
)
_MONITORS = _one_of({"top1": "accuracy", "acc1": "accuracy", "eval_top1": "accuracy"})
_AUGMENTS = _one_of(
    {
        "ta_wide": "trivial",
        "trivialaugment": "trivial",
        "original": "autoaugment(imagenet)",
        "randaugment": "rand(2,9)",
        "rand-m9-mstd0.5-inc1": "rand(2,9)",
        "rand-m7-mstd0.5": "rand(2,7)",
        "ra": "rand(2,9)",
        "autoaugment": "autoaugment(imagenet)",
        "imagenet": "autoaugment(imagenet)",
        "cifar10": "autoaugment(cifar10)",
        **dict.fromkeys(OFF, None),
    }
)
_DEVICES = _one_of({"0": "cuda", "": "auto", "-1": "auto", "none": "auto"})
_BATCHES = _one_of({"-1": "auto"})

MAPPED: dict[str, Alias] = {
    "data": Alias("data.path"),
    "data-dir": Alias("data.path"),
    "data-path": Alias("data.path"),
    "class-map": Alias("data.class_names"),
    "in-chans": Alias("data.channels"),
    "arch": Alias("model.name"),
    "pretrained": Alias("model.weights", _switch("pretrained", "none"), bare="true"),
    "pretrained-path": Alias("model.weights"),
    "initial-checkpoint": Alias("model.weights"),
    "imgsz": Alias("model.img_size"),
    "train-crop-size": Alias("model.img_size"),
    "dropout": Alias("model.drop"),
    "label-smoothing": Alias("loss.smoothing"),
    "bce-loss": Alias("loss.name", _switch("binary_cross_entropy", None), bare="true"),
    "scale": Alias("augment.crop_scale", num_values=2),
    "ratio": Alias("augment.crop_ratio", num_values=2),
    "hflip": Alias("augment.hflip"),
    "vflip": Alias("augment.vflip"),
    "fliplr": Alias("augment.hflip"),
    "flipud": Alias("augment.vflip"),
    "mixup-alpha": Alias("augment.mixup"),
    "cutmix-alpha": Alias("augment.cutmix"),
    "mixup-prob": Alias("augment.mix_prob"),
    "aa": Alias("augment.policy", _AUGMENTS),
    "auto-augment": Alias("augment.policy", _AUGMENTS),
    "augment": Alias("augment.policy", _AUGMENTS),
    "aug-repeats": Alias("data.repeats", _if_positive(lambda text: "1" if text == "0" else text)),
    "ra-reps": Alias("data.repeats"),
    "fraction": Alias("data.train_fraction"),
    "mean": Alias("model.mean", num_values=3),
    "std": Alias("model.std", num_values=3),
    "kfold": Alias("data.folds"),
    "n-splits": Alias("data.folds"),
    "no-aug": Alias("augment.policy", _switch("none", None), bare="true"),
    "lr0": Alias("optim.lr"),
    "learning-rate": Alias("optim.lr"),
    "optimizer": Alias("optim.name", _OPTIMIZERS),
    "opt-betas": Alias("optim.betas", num_values=2),
    "opt-eps": Alias("optim.eps"),
    "clip-grad-norm": Alias("optim.clip_norm"),
    "layer-decay": Alias("optim.layer_decay"),
    "lr-scheduler": Alias("schedule.name", _SCHEDULES),
    "cos-lr": Alias("schedule.name", _switch("cosine", "linear"), bare="true"),
    "warmup-epochs": Alias("schedule.warmup", _unit("ep")),
    "lr-warmup-epochs": Alias("schedule.warmup", _unit("ep")),
    "lr-warmup-method": Alias("schedule.warmup_shape"),
    "lrf": Alias("schedule.min_lr_fraction"),
    "batch": Alias("training.batch_size", _BATCHES),
    "amp": Alias("training.precision", _switch("bf16", "fp32"), bare="true"),
    "amp-dtype": Alias("training.precision", _one_of({"bfloat16": "bf16", "float16": "fp16"})),
    "model-ema": Alias("training.ema_decay", _switch("0.9998", "0"), bare="true"),
    "eval-metric": Alias("training.monitor", _MONITORS),
    "checkpoint-hist": Alias("checkpoint.keep"),
    "save-period": Alias("checkpoint.every", _if_positive(_unit("ep"))),
    "recovery-interval": Alias("checkpoint.every", _unit("steps")),
    "project": Alias("run.output"),
    "output-dir": Alias("run.output"),
    "experiment": Alias("run.name"),
    "nproc-per-node": Alias("run.processes"),
    "channels-last": Alias("run.memory_format", _switch("channels_last", "contiguous"), bare="true"),
    "deterministic": Alias("run.determinism", _switch("strict", "seeded"), bare="true"),
    "use-deterministic-algorithms": Alias("run.determinism", _switch("strict", "seeded"), bare="true"),
}

# The conversions that flags of Kiln's own names need when they come with a peer's value
OWN_VALUES: dict[str, Callable[[str], str | None]] = {
    "optim.name": _OPTIMIZERS,
    "schedule.name": _SCHEDULES,
    "run.device": _DEVICES,
    "data.cache": _one_of({"ram": "memory", **dict.fromkeys(ON, "disk"), **dict.fromkeys(OFF, "off")}),
    "training.batch_size": _BATCHES,
    "model.weights": _switch("pretrained", "none"),
}

ALWAYS_ON = {
    "val": "a run validates whenever it has a validation split; data.val_fraction = 0 cuts none",
    "save": "a run is always saved",
}
REPLACED = {
    "num-classes": "leave it out: the classes come from the data",
    "nb-classes": "leave it out: the classes come from the data",
    "min-lr": "--set schedule.min_lr_fraction=0.01, a share of the peak rate",
    "lr-min": "--set schedule.min_lr_fraction=0.01, a share of the peak rate",
    "lr-step-size": "--set schedule.args.every=30ep",
    "decay-epochs": "--set schedule.args.every=30ep",
    "decay-milestones": "--set schedule.args.milestones=[30ep,60ep]",
    "lr-gamma": "--set schedule.args.gamma=0.1",
    "decay-rate": "--set schedule.args.gamma=0.1",
    "lr-cycle-mul": "--set schedule.args.multiplier=2, with --sched cosine_restarts",
    "input-size": "--img-size and --channels",
    "reprob": "--aug standard erases a rectangle in a quarter of the images",
    "random-erase": "--aug standard erases a rectangle in a quarter of the images",
    "erasing": "--aug standard erases a rectangle in a quarter of the images",
    "color-jitter": "--aug standard varies light and colour",
    "interpolation": "leave it out: the model's own interpolation is used",
    "crop-pct": "leave it out: the model's own crop is used",
    "model-kwargs": "--set model.kwargs.NAME=VALUE",
    "grad-accum-steps": "the whole batch as --batch-size, and --micro-batch-size for what passes at once",
    "accumulate": "the whole batch as --batch-size, and --micro-batch-size for what passes at once",
}
_NOT_YET = """
mixup-mode mixup-off-epoch cutmix-minmax remode recount color-jitter-prob grayscale-prob hsv-h hsv-s
hsv-v degrees translate shear perspective mosaic copy-paste bgr aug-splits ra-sampler
jsd-loss sync-bn split-bn dist-bn freeze freeze-layers compile torchcompile torchscript drop-block
cooldown-epochs warmup-momentum
warmup-bias-lr layer-decay-min-scale kd-model-name distill-model tta time multi-scale nbs
class-weights exist-ok
"""
NOT_YET = frozenset(_NOT_YET.split())
KNOWN = frozenset(MAPPED) | frozenset(ALWAYS_ON) | frozenset(REPLACED) | NOT_YET


def kebab(name: str) -> str:
    """A peer's spelling as the tables have it."""
    return name.lstrip("-").replace("_", "-").lower()


@dataclass(frozen=True)
class Meaning:
    """What a peer's setting comes to: nothing to set where `field` is None."""

    field: str | None
    value: str
    note: str


def translate(written: str, values: Iterable[str] = ()) -> Meaning:
    """What a peer's flag (`--label-smoothing`) or key (`imgsz`) of `KNOWN` means here; no values: a bare flag.

    Raises: UsageError: Kiln has no such setting yet, or gets it in another way.
    """
    name, text = kebab(written), ",".join(values)
    if name in MAPPED:
        return _mapped(written, MAPPED[name], text or MAPPED[name].bare or "")
    if name in REPLACED:
        raise UsageError("E101", f"{written} is not a setting of Kiln", hint=REPLACED[name])
    if name in ALWAYS_ON and (text or "true").lower() in ON:
        return Meaning(None, "", f"{written}: {ALWAYS_ON[name]}")
    if name in NOT_YET and text.lower() in OFF and text:
        return Meaning(None, "", f"{written} = {text}: off here anyway")
    why = f"cannot be {text}: {ALWAYS_ON[name]}" if name in ALWAYS_ON else "is not available yet"
    raise UsageError("E101", f"{written} {why}", hint="leave it out")


def _mapped(written: str, alias: Alias, text: str) -> Meaning:
    value = alias.convert(text) if alias.convert else text
    if value is not None:
        value = own_value(alias.field, value)
    if value is None:
        return Meaning(None, "", f"{written} = {text}: nothing to set here")
    return Meaning(alias.field, value, f"{written} is {alias.field} here")


def own_value(field: str, text: str) -> str | None:
    """A value for a field as Kiln spells it, from a peer's spelling of the value."""
    return OWN_VALUES[field](text) if field in OWN_VALUES else text
