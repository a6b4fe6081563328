"""What a recipe can say: one frozen section per subject, one sentence of help per field.

The sections are plain dataclasses, so that reading their help costs no heavy import; `kiln.recipe.check` turns them
into strict pydantic models when values arrive. Field metadata: `description` (feeds `--help`, the docs and the schema),
`how` (decides how the work is done, never what comes out: a resumed run may change it) and `units` of a duration.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar, dataclass_transform

from annotated_types import Ge, Gt, Interval

from kiln.recipe.check import check_section
from kiln.recipe.duration import Duration

Auto = Literal["auto"]
PositiveInt = Annotated[int, Ge(1)]
CountInt = Annotated[int, Ge(0)]
PositiveFloat = Annotated[float, Gt(0)]
NonNegativeFloat = Annotated[float, Ge(0)]
Share = Annotated[float, Interval(ge=0, le=1)]
ShareBelowOne = Annotated[float, Interval(ge=0, lt=1)]

TRAINING_UNITS = ("ep", "steps")
SHARE_UNITS = ("ep", "steps", "%")
ALL_UNITS = ("ep", "steps", "%", "h", "m", "s")


def option(default: Any, description: str, *, how: bool = False, units: tuple[str, ...] = ()) -> Any:
    """A field of a section: its default, its one sentence of help, and what else is known about it."""
    extra: dict[str, Any] = {"how": True} if how else {}
    if units:
        extra["units"] = list(units)
    metadata = {"description": description, "json_schema_extra": extra}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


SectionType = TypeVar("SectionType", bound="Section")


@dataclasses.dataclass(frozen=True, init=False)
class Section:
    """Base of all sections: checks every value when it is made, all problems at once.

    Raises: UsageError: an unknown field, or a value of the wrong type or out of range.
    """

    def __init__(self, **values: Any) -> None:
        self._fill(check_section(type(self), values))

    @classmethod
    def from_checked(cls, values: Mapping[str, Any]) -> Self:
        """A section of values that `find_problems` has passed."""
        made = cls.__new__(cls)
        made._fill(values)
        return made

    def _fill(self, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(option,))
def section(cls: type[SectionType]) -> type[SectionType]:
    """Make a frozen dataclass whose constructor is `Section`'s checked one."""
    return dataclasses.dataclass(frozen=True, kw_only=True, init=False)(cls)


@section
class Data(Section):
    """Where the samples come from and how they are split."""

    path: str | None = option(None, "Folder, table, archive or glob that holds the labelled images.", how=True)
    root: str | None = option(None, "Folder that the file names of a table are relative to.", how=True)
    path_column: str | None = option(None, "Table column that holds the file names.")
    label_column: str | None = option(None, "Table column that holds the labels.")
    split_column: str | None = option(None, "Table column that says train, val or test.")
    group_column: str | None = option(None, "Table column whose equal values must stay in one split.")
    class_names: str | None = option(None, "Text file with one class name per line, for integer labels.")
    decisions: str | None = option(
        None, "Table that says which samples to drop, relabel, move or hold together, as `kiln check` writes it."
    )
    val_fraction: ShareBelowOne = option(0.15, "Share of the training samples to validate on, if none are set apart.")
    test_fraction: ShareBelowOne = option(
        0.0, "Share of the training samples to set apart for the final test; 0 sets none apart."
    )
    folds: CountInt = option(
        0, "Cross-validation: train so many models, each measured on the part of the samples it does not see."
    )
    fold: PositiveInt | None = option(None, "With data.folds: train the model of this fold alone, counted from 1.")
    bad_files: Literal["error", "skip"] = option(
        "error", "An unreadable validation or test file: stop, or skip and count it (in training its weight is 0)."
    )
    max_bad_fraction: Share = option(0.01, "Stop when more than this share of the training files is unreadable.")
    max_pixels: PositiveInt = option(50_000_000, "Refuse images with more pixels than this before decoding them.")
    channels: Auto | PositiveInt = option(
        "auto", "Image channels: 3 for colour, 1 for grey, auto for what the data has."
    )
    resize: Literal["crop", "pad", "stretch", "keep"] = option(
        "crop", "How an image is brought to the model's square, or kept at its own size up to the model's (keep)."
    )
    collate: str = option(
        "stack", "How samples become a batch: stack, pad to the largest (with resize = keep), or module:name."
    )
    pixel_form: Literal["auto", "original", "stored"] = option(
        "auto", "What training crops from: the file itself (original), or a reduced copy (stored)."
    )
    stored_px: Auto | PositiveInt = option("auto", "Shorter side of the reduced copy, in pixels.")
    stored_jpeg: Auto | Annotated[int, Interval(ge=0, le=100)] = option(
        "auto", "JPEG quality of the reduced copy; 0 keeps its pixels, auto does while they take at most 20 GB."
    )
    cache: Literal["auto", "off", "memory", "disk", "device"] = option(
        "auto",
        "Where images that were made once are kept: disk (for later runs too), memory, device, or off.",
        how=True,
    )
    cache_size: str = option(
        "auto",
        "Bytes that all caches may take, such as 20GB; auto is a tenth of the disk, or half of memory.",
        how=True,
    )
    cache_key: Literal["stat", "content"] = option(
        "stat",
        "What tells that a file changed: its size and time, or a hash of its content (reads every file).",
        how=True,
    )
    sampler: str = option(
        "shuffle", "Order of training samples: shuffle, sequential, weighted, balanced, or module:name."
    )
    sample_weights: Literal["inverse", "sqrt", "effective"] = option(
        "inverse", "Weight of a sample by the size of its class, for the weighted sampler."
    )
    repeats: PositiveInt = option(1, "Times that a sample stands in a row, differently augmented; epochs stay as long.")
    train_fraction: Annotated[float, Interval(gt=0, le=1)] = option(
        1.0, "Share of the training samples to use, the same of each class: for learning curves."
    )
    workers: Auto | CountInt = option("auto", "Threads that decode images; 0 decodes in the main thread.", how=True)
    prefetch: PositiveInt = option(4, "Batches to prepare ahead of the device.", how=True)


@section
class Model(Section):
    """The network and the weights that it starts from."""

    name: str = option("auto", "A timm name, torchvision/NAME, module:function, or auto for one that fits the data.")
    weights: str = option(
        "none", "Weights to start from: none, pretrained, a file, a URL, hf-hub:NAME, or torchvision's."
    )
    img_size: Auto | PositiveInt = option("auto", "Side of the square image that the model sees, in pixels.")
    normalize: Literal["channels", "image"] = option(
        "channels", "By mean and std of each channel, or each image as a whole by its own (image)."
    )
    mean: Literal["auto", "train"] | tuple[float, ...] = option(
        "auto",
        "Mean of each channel, 0 to 1: the model's (auto), measured on training images (train), or given.",
    )
    std: Literal["auto", "train"] | tuple[PositiveFloat, ...] = option(
        "auto", "Standard deviation of each channel: the model's (auto), measured (train), or given."
    )
    init: dict[str, str] = option({}, "New initial values by pattern of parameter names: {'head.bias': 'class_prior'}.")
    drop: ShareBelowOne = option(0.0, "Dropout probability before the classifier.")
    drop_path: ShareBelowOne = option(0.0, "Probability of dropping a residual branch (stochastic depth).")
    kwargs: dict[str, Any] = option({}, "Further arguments for the model's constructor.")
    trust: tuple[str, ...] = option((), "Code (module:name) that a file may name and that may run here.", how=True)


@section
class Task(Section):
    """What the target is."""

    name: str = option("auto", "What to learn: classification, multilabel, or auto to tell from the labels.")
    separator: str = option(",", "What separates the labels of one image in a multilabel table.")


@section
class Augment(Section):
    """How training images are varied."""

    policy: str = option(
        "light", "How much: none, light (crop and flip), standard, strong, trivial, rand(n,m), autoaugment(NAME)."
    )
    crop: Literal["auto", "resized", "padded", "none"] = option(
        "auto", "Random crop: resized to the model's size, or of that size out of the image with a border (padded)."
    )
    crop_padding: ShareBelowOne = option(0.125, "Width of the border of padded crops, as share of the image's side.")
    crop_scale: tuple[PositiveFloat, PositiveFloat] = option(
        (0.35, 1.0), "Smallest and largest crop, as share of area."
    )
    crop_ratio: tuple[PositiveFloat, PositiveFloat] = option(
        (0.75, 4 / 3), "Narrowest and widest crop, width / height."
    )
    hflip: Share = option(0.5, "Probability of mirroring an image left to right.")
    vflip: Share = option(0.0, "Probability of turning an image upside down by mirroring.")
    mixup: Annotated[float, Interval(ge=0, le=100)] = option(
        0.0, "Blend pairs of images: alpha of the Beta distribution of shares, 0.2 is usual; 0 is off."
    )
    cutmix: Annotated[float, Interval(ge=0, le=100)] = option(
        0.0, "Paste a rectangle of one image into another: alpha of its area, 1 is usual; 0 is off."
    )
    first_px: PositiveInt | None = option(
        None, "Side of training images at the start, in pixels, growing to the model's own (progressive resizing)."
    )
    full_px_from: Duration = option(
        Duration(70, "%"), "When growing images have reached the model's size.", units=SHARE_UNITS
    )
    transform: str | None = option(
        None, "Your own transform of each cropped image (torchvision, albumentations, any), as module:name."
    )
    mix_prob: Share = option(1.0, "Probability that a sample is mixed, where mixup or cutmix is on.")


@section
class Finetune(Section):
    """What of a trained network is trained further, and when."""

    mode: str = option(
        "full", "What is trained: full, head, top(n) (the head and the last n blocks), staged, or lora (adapters)."
    )
    stages: tuple[str, ...] = option(
        (), "Stages of staged, such as [head at 10, all from 20% decay 0.75]: what, from when, rate, layer decay."
    )
    head_start: Literal["auto", "fitted", "random"] = option(
        "auto", "How a new head begins: fitted to the frozen backbone's features, or random; auto fits in staged."
    )
    freeze_norm: Literal["auto", "none", "statistics", "all"] = option(
        "auto", "What of BatchNorm and its like stays frozen: statistics, all of it, none; auto goes by batch size."
    )
    l2_sp: NonNegativeFloat = option(0.0, "Pull of the weights towards those they started from (L2-SP); 0 is off.")
    l2_head: NonNegativeFloat = option(0.0, "With l2_sp, pull of the head's weights towards zero; 0 is off.")
    lora_rank: PositiveInt = option(8, "Rank of LoRA's adapters.")
    lora_alpha: PositiveFloat = option(16.0, "Weight of LoRA's adapters: they count alpha / rank times.")
    lora_targets: tuple[str, ...] = option(
        (), "Layers that get an adapter, by the ends of their names; without any, all linear layers."
    )
    views: Auto | CountInt = option(
        "auto",
        "Ways to augment each image while the head alone is trained, taken in turn; 0: anew in each epoch.",
    )
    cache_features: Literal["auto", "on", "off"] = option(
        "auto", "Keep what the frozen part makes of each view, while the head alone is trained.", how=True
    )
    random_weights: bool = option(False, "Keep parts frozen although no trained weights are loaded.")


@section
class Loss(Section):
    """What training makes small."""

    name: str = option(
        "auto",
        "The loss: auto for the task's own, a name, module:name, or a sum such as cross_entropy + 0.5*dice.",
    )
    smoothing: ShareBelowOne = option(0.1, "Label smoothing: share of the target spread over all classes.")
    class_weights: Literal["none", "inverse", "effective"] | tuple[NonNegativeFloat, ...] = option(
        "none", "Weight of each class: by its training samples (inverse, effective number), or given."
    )
    pos_weight: Literal["none", "inverse"] | tuple[PositiveFloat, ...] = option(
        "none", "Weight of the positives of each label: negatives / positives (inverse), or given."
    )


@section
class Optim(Section):
    """How weights are changed."""

    name: str = option(
        "adamw", "The optimizer: any of torch's or timm's by name (adamw, sgd, muon, lion), or module:name."
    )
    lr: Auto | PositiveFloat = option("auto", "Peak learning rate; auto follows a stated rule for optimizer and batch.")
    weight_decay: Auto | NonNegativeFloat = option("auto", "Weight decay; never applied to biases and norms.")
    momentum: Auto | ShareBelowOne = option("auto", "Momentum, where the optimizer has one; auto is its own default.")
    betas: Auto | tuple[ShareBelowOne, ...] = option(
        "auto", "Decay rates of an Adam's averages, where the optimizer has them; auto is its own default."
    )
    eps: Auto | PositiveFloat = option(
        "auto", "Term that keeps a division finite, where the optimizer has one; auto is its own default."
    )
    args: dict[str, Any] = option({}, "Further arguments for the optimizer, by their own names.")
    groups: dict[str, Any] = option(
        {}, "Settings by parameter pattern, such as {layer4: {lr_factor: 0.1}}; see docs/optimizers.md."
    )
    layer_decay: Annotated[float, Interval(gt=0, le=1)] = option(
        1.0, "Factor of the rate from each layer to the one below it; 1 is off, 0.65 to 0.9 usual for fine-tuning."
    )
    head_lr: PositiveFloat = option(1.0, "Factor of the head's rate; 10 is usual where only the head is new.")
    sam: NonNegativeFloat = option(
        0.0,
        "Sharpness-aware minimisation at twice the cost: how far it looks uphill, 0.05 is usual; 0 is off.",
    )
    sam_adaptive: bool = option(False, "Look uphill in proportion to each weight; optim.sam = 0.5 to 2 is usual then.")
    clip_norm: PositiveFloat | None = option(None, "Largest norm of the gradient of all weights together.")
    clip_value: PositiveFloat | None = option(None, "Largest absolute value of a component of the gradient.")
    clip_adaptive: PositiveFloat | None = option(
        None, "Largest norm of a unit's gradient as share of its weights' norm, but for the head; 0.01 is usual."
    )


@section
class Schedule(Section):
    """How the learning rate moves."""

    name: str = option("cosine", "Shape after warmup: a name (docs/schedules.md), step(every=30%), or module:name.")
    args: dict[str, Any] = option(
        {}, "Settings of that shape; lengths are durations, and 30% is of the steps after warmup."
    )
    warmup: Auto | Duration = option(
        "auto",
        "Length of the way up to the peak rate; auto is 10%, or 0 where the shape rises by itself.",
        units=SHARE_UNITS,
    )
    warmup_shape: Literal["linear", "exponential", "constant"] = option(
        "linear", "Way up: equal steps (linear), equal ratios (exponential), or a third of the peak (constant)."
    )
    min_lr_fraction: Share = option(0.01, "Lowest rate of shapes that have one, as share of the peak.")


@section
class Training(Section):
    """How long, in which batches, and when to stop."""

    epochs: Duration = option(Duration(10, "ep"), "Length of training, in epochs or steps.", units=TRAINING_UNITS)
    batch_size: Literal["auto", "all"] | PositiveInt = option(
        "auto", "Samples per optimizer step, over all processes; all is full-batch descent, 1 one sample a step."
    )
    micro_batch_size: Auto | PositiveInt = option(
        "auto", "Samples that pass through the model at once; gradients add up to the batch.", how=True
    )
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = option(
        "auto", "Number format of the heavy arithmetic; weights and files are always fp32."
    )
    fp32_modules: tuple[str, ...] = option(
        (), "Modules that compute in fp32 among bf16 or fp16, as patterns of names, such as [head, '*.norm?']."
    )
    activation_checkpointing: tuple[str, ...] = option(
        (), "Modules computed again in backward to save memory: [blocks], or patterns of names.", how=True
    )
    ema_decay: ShareBelowOne = option(0.0, "Decay per step of an average of the weights, which is evaluated; 0 is off.")
    swa_start: Duration | None = option(
        None,
        "When a plain mean of the weights at the end of each epoch begins, which is evaluated from then on.",
        units=SHARE_UNITS,
    )
    monitor: str = option(
        "auto", "Validation metric that decides the best model, by name or module:name; auto takes the task's own."
    )
    metrics: tuple[str, ...] = option((), "Further metrics to compute at each validation, by name or module:name.")
    patience: Duration | None = option(
        None, "Stop after this long without a better validation metric.", units=SHARE_UNITS
    )
    min_delta: NonNegativeFloat = option(0.0, "A better validation metric is one that is better by more than this.")
    keep: Auto | Literal["best", "last"] = option(
        "auto", "Which weights ship: the best on validation, or the last; auto is best, with folds last."
    )
    drop_last: Auto | bool = option("auto", "Leave the last, smaller batch of an epoch out.")
    seed: CountInt = option(0, "The number from which all randomness follows.")
    eval_every: Duration = option(Duration(1, "ep"), "How often to validate.", units=SHARE_UNITS)


@section
class Answers(Section):
    """How sure the trained model says it is, and when it says that it does not know."""

    calibration: Literal["temperature", "vector", "none"] = option(
        "temperature", "What makes probabilities true, fitted on validation: one factor, one for each class, or none."
    )
    wanted_accuracy: Annotated[float, Interval(gt=0, lt=1)] | None = option(
        None, "Answer only where that share of answers is right on validation, with a margin for chance."
    )
    wanted_coverage: Annotated[float, Interval(gt=0, le=1)] | None = option(
        None, "Answer that share of images, the surest ones."
    )
    max_unfamiliarity: Annotated[float, Interval(gt=0, lt=1)] | None = option(
        None, "Answer no image that is less familiar than that share of the validation images."
    )


@section
class Checkpoint(Section):
    """When the state of a run is saved."""

    every: tuple[Duration, ...] = option(
        (Duration(1, "ep"),), "How often to save: epochs, steps, minutes, or a list of them.", how=True, units=ALL_UNITS
    )
    keep: Annotated[int, Ge(2)] = option(2, "Newest checkpoints to keep, besides the best.", how=True)


@section
class RunPlace(Section):
    """Where the run lies and what it runs on."""

    output: str = option("runs", "Folder that holds the run folders.", how=True)
    name: str | None = option(None, "Name of the run folder; without one, data and model make it.", how=True)
    report: bool = option(True, "Write report.html and MODEL_CARD.md when the training is done.", how=True)
    device: str = option("auto", "Device to compute on: auto, cpu, cuda, mps, xpu.", how=True)
    strategy: Literal["auto", "single", "ddp"] = option("auto", "How processes share the work.", how=True)
    processes: PositiveInt = option(1, "Processes that train together on this machine.", how=True)
    memory_format: Literal["auto", "contiguous", "channels_last"] = option(
        "auto", "Order of image tensors in memory.", how=True
    )
    determinism: Literal["off", "seeded", "strict"] = option(
        "seeded", "Arithmetic that repeats: chosen by timing (off), by rule (seeded), or bit for bit (strict, slower)."
    )


SECTIONS: dict[str, type[Section]] = {
    "data": Data,
    "model": Model,
    "task": Task,
    "augment": Augment,
    "loss": Loss,
    "finetune": Finetune,
    "optim": Optim,
    "schedule": Schedule,
    "training": Training,
    "answers": Answers,
    "checkpoint": Checkpoint,
    "run": RunPlace,
}
