"""The one place where settings become objects. A setting that nothing here consumes is an error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kiln.augment import Light, OnDevice
from kiln.data.images import ContractImages, RandomCropImages
from kiln.data.loader import Assembler, BadFiles, TrainLoader, evaluation_batches
from kiln.data.sampler import Cut, Shuffle
from kiln.engine.evaluate import collect_outputs
from kiln.engine.fit import Timetable
from kiln.engine.state import State, Tracker
from kiln.engine.step import Step
from kiln.engine.strategy import Strategy
from kiln.engine.supervised import supervised
from kiln.errors import DataError, UsageError
from kiln.jobs.intake import Intake
from kiln.jobs.pixel_form import training_source
from kiln.jobs.resolve import Settings
from kiln.metrics import Metric
from kiln.models.create import Created, create_model
from kiln.models.normalize import Normalized, normalize
from kiln.models.outputs import main_and_auxiliary
from kiln.names import LOSSES, OPTIMIZERS, SCHEDULES, STRATEGIES, resolve
from kiln.optim.averages import Ema
from kiln.optim.groups import check_groups, parameter_groups
from kiln.optim.schedules import Schedule, with_warmup
from kiln.pixels import PixelContract
from kiln.random import keys_of
from kiln.recipe.duration import Duration
from kiln.runtimes import BATCH_SIZE


@dataclass
class Training:
    """All that a loop needs, and what its results need to be read."""

    state: State
    step: Step
    batches: OnDevice
    schedule: Schedule
    timetable: Timetable
    total_steps: int
    created: Created
    contract: PixelContract
    bad_files: BadFiles
    validator: Validator | None
    strategy: Strategy


@dataclass
class Pipeline:
    """What a training sees: its batches, and what is needed to read them."""

    batches: OnDevice
    loader: TrainLoader
    created: Created
    contract: PixelContract
    bad_files: BadFiles


def make_strategy(settings: Settings) -> Strategy:
    """The strategy, which must stand before anything else: it tells the rank."""
    name = settings["run.strategy"]
    settings["run.processes"]  # settled by the launcher
    device = torch.device(settings["run.device"])
    made = resolve(STRATEGIES, name, kind="strategy")
    return made() if name == "single" else made(device)


def assemble(settings: Settings, intake: Intake, strategy: Strategy, *, resuming: bool = False) -> Training:
    """Build everything that a training stands on. When resuming, the checkpoint brings the weights.

    Raises: UsageError: settings that do not fit each other or the data, or have no effect.
    """
    device = torch.device(settings["run.device"])
    _set_determinism(settings["run.determinism"])
    pipeline = assemble_batches(settings, intake, strategy, resuming=resuming)
    created, contract, bad_files = pipeline.created, pipeline.contract, pipeline.bad_files
    model = created.model.to(device).to(memory_format=_memory_format(settings["run.memory_format"]))
    steps_per_epoch = len(pipeline.batches)
    total_steps = settings["training.epochs"].to_steps(steps_per_epoch=steps_per_epoch)
    state = State(model, _optimizer(settings, model), ema=_ema(settings, model))
    state.parts["bad_files"] = bad_files
    timetable, tracker = _timetable(settings, total_steps, steps_per_epoch)
    validator = None
    skip_bad, workers = settings["data.bad_files"] == "skip", settings["data.workers"]
    _check_monitor(settings, intake)
    if len(intake.split.val):
        state.tracker = tracker
        validator = Validator(intake, contract, created, bad_files, strategy, skip_bad=skip_bad, workers=workers)
    step = _step(settings, intake, strategy, device)
    schedule = _schedule(settings, total_steps, steps_per_epoch)
    _read_elsewhere(settings)
    settings.require_all_read()
    return Training(
        state=state,
        step=step,
        batches=pipeline.batches,
        schedule=schedule,
        timetable=timetable,
        total_steps=total_steps,
        created=created,
        contract=contract,
        bad_files=bad_files,
        validator=validator,
        strategy=strategy,
    )


def assemble_batches(settings: Settings, intake: Intake, strategy: Strategy, *, resuming: bool = False) -> Pipeline:
    """Build the batches of a training without what learns from them; arguments and errors as for `assemble`."""
    device = torch.device(settings["run.device"])
    created = _created(settings, intake, resuming)
    contract = _contract(settings, created)
    bad_files = BadFiles(intake.source.keys, limit=settings["data.max_bad_fraction"] * len(intake.split.train))
    loader = _batches(settings, intake, contract, bad_files, strategy)
    batches = OnDevice(loader, _flips(settings, intake), device=device, normalize=_normalizer(created, intake, device))
    return Pipeline(batches=batches, loader=loader, created=created, contract=contract, bad_files=bad_files)


def wrap_for_processes(training: Training) -> None:
    """Put the strategy's wrapper around the model. Call after a checkpoint was loaded: the wrapper shares the weights."""
    state, first = training.state, training.batches.at(0)

    def warm_up(wrapped: nn.Module) -> None:
        state.forward = wrapped
        training.step.rehearse(state, first)

    state.forward = training.strategy.prepare(state.model, warm_up)


class Validator:
    """Evaluates a training's state on the validation split; each process takes a share."""

    def __init__(
        self,
        intake: Intake,
        contract: PixelContract,
        created: Created,
        bad_files: BadFiles,
        strategy: Strategy,
        *,
        skip_bad: bool,
        workers: int,
    ) -> None:
        self._intake, self._created, self._strategy = intake, created, strategy
        self._bad_files, self._skip_bad, self._workers = bad_files, skip_bad, workers
        self._assembler = Assembler(ContractImages(intake.source, contract), intake.targets)

    def __call__(self, state: State) -> Mapping[str, Metric]:
        """Metrics of the weights that would ship. Each sample counts once."""
        share = np.array_split(self._intake.split.val, self._strategy.world_size)[self._strategy.rank]
        batches = evaluation_batches(
            self._assembler,
            share,
            batch_size=BATCH_SIZE,
            bad_files=self._bad_files,
            split="val",
            skip_bad=self._skip_bad,
            workers=self._workers,
        )
        forward = uint8_forward(state.evaluated_model(), self._created, self._intake.source.transformed, state.device)
        outputs = collect_outputs(forward, batches, device=state.device, strategy=self._strategy)
        if outputs is None:
            raise DataError("E202", "no validation file can be read")
        return self._intake.task.metrics(outputs.logits, outputs.targets, self._intake.classes)


def uint8_forward(
    model: nn.Module, created: Created, transformed: bool, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """Images as the contract makes them (or as the source transformed them) -> logits, in evaluation mode."""
    if transformed:
        return lambda images: main_and_auxiliary(model.eval()(images))[0]
    return Normalized(model, created.spec.mean, created.spec.std).to(device).eval()


def _created(settings: Settings, intake: Intake, resuming: bool) -> Created:
    asked, weights = settings["model.img_size"], settings["model.weights"]
    created = create_model(
        settings["model.name"],
        num_classes=intake.task.num_outputs(intake.classes),
        channels=settings["data.channels"],
        img_size=None if asked == "auto" else asked,
        weights="none" if resuming else weights,
        drop=settings["model.drop"],
        drop_path=settings["model.drop_path"],
        kwargs=settings["model.kwargs"],
        seed=settings["training.seed"],
        classes=intake.classes,
    )
    if asked == "auto":
        settings.decide("model.img_size", created.spec.img_size, f"{created.spec.name} was made for it")
    return created


def _contract(settings: Settings, created: Created) -> PixelContract:
    spec = created.spec
    return PixelContract(
        height=spec.img_size,
        width=spec.img_size,
        channels=spec.channels,
        resize=settings["data.resize"],
        interpolation=spec.interpolation,
        crop_fraction=spec.crop_fraction,
        max_pixels=settings["data.max_pixels"],
    )


def _normalizer(created: Created, intake: Intake, device: torch.device) -> Callable[[Tensor], Tensor] | None:
    if intake.source.transformed:
        return None
    mean, std = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (created.spec.mean, created.spec.std))
    return lambda images: normalize(images, mean, std)


def _memory_format(name: str) -> torch.memory_format:
    return torch.channels_last if name == "channels_last" else torch.contiguous_format


def _set_determinism(level: str) -> None:
    strict = level == "strict"
    if strict != torch.are_deterministic_algorithms_enabled():  # to say it again imports the compiler: seconds
        torch.use_deterministic_algorithms(strict)
    if torch.backends.cudnn.is_available():
        torch.backends.cudnn.deterministic = strict
        torch.backends.cudnn.benchmark = not strict


def _augments(settings: Settings, intake: Intake) -> bool:
    return settings["augment.policy"] == "light" and not intake.source.transformed


def _flips(settings: Settings, intake: Intake) -> Light | None:
    flips = Light(hflip=settings["augment.hflip"], vflip=settings["augment.vflip"])
    return flips if _augments(settings, intake) else None


def _batches(
    settings: Settings, intake: Intake, contract: PixelContract, bad_files: BadFiles, strategy: Strategy
) -> TrainLoader:
    source, train, seed = intake.source, intake.split.train, settings["training.seed"]
    scale, ratio = settings["augment.crop_scale"], settings["augment.crop_ratio"]
    cropped = RandomCropImages(training_source(settings, intake, contract), contract, scale=scale, ratio=ratio)
    images = cropped if _augments(settings, intake) else ContractImages(source, contract)
    flips = _flips(settings, intake)
    keys = keys_of(source.keys)
    cut = Cut(
        num_samples=len(train),
        batch_size=settings["training.batch_size"],
        drop_last=settings["training.drop_last"],
        rank=strategy.rank,
        world_size=strategy.world_size,
    )
    if cut.steps_per_epoch == 0:
        raise UsageError(
            "E103",
            f"training.batch_size = {cut.batch_size} is more than the {len(train)} training samples, and drop_last is on",
            hint="a smaller --batch-size, or --set training.drop_last=false",
        )
    return TrainLoader(
        Assembler(images, intake.targets),
        Shuffle(train, keys[train], seed=seed),
        cut,
        keys=keys,
        bad_files=bad_files,
        draw_params=None if flips is None else lambda epoch, of: flips.draw(seed, epoch, of),
        workers=settings["data.workers"],
        ahead=settings["data.prefetch"],
    )


def _optimizer(settings: Settings, model: nn.Module) -> torch.optim.Optimizer:
    lr, name = settings["optim.lr"], settings["optim.name"]
    groups = parameter_groups(model, lr=lr, weight_decay=settings["optim.weight_decay"])
    momentum, betas, eps = settings["optim.momentum"], settings["optim.betas"], settings["optim.eps"]
    options: dict[str, Any] = {"sgd": {"momentum": momentum}, "adamw": {"betas": betas, "eps": eps}}.get(name, {})
    optimizer = resolve(OPTIMIZERS, name, kind="optimizer")(groups, lr=lr, **options)
    check_groups(model, optimizer.param_groups)
    return optimizer


def _ema(settings: Settings, model: nn.Module) -> Ema | None:
    decay = settings["training.ema_decay"]
    return Ema(model, decay=decay) if decay else None


def _loss(settings: Settings, intake: Intake) -> nn.Module:
    name, smoothing = settings["loss.name"], settings["loss.smoothing"]
    if name == "auto":
        return intake.task.default_loss(smoothing=smoothing)
    made = resolve(LOSSES, name, kind="loss")
    if name in ("cross_entropy", "binary_cross_entropy"):
        return made(smoothing=smoothing)
    return made() if isinstance(made, type) else _FunctionLoss(made)


class _FunctionLoss(nn.Module):
    """A user's loss function as a module."""

    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, outputs: Any, targets: Any) -> Any:
        return self.function(outputs, targets)


def _step(settings: Settings, intake: Intake, strategy: Strategy, device: torch.device) -> Step:
    micro = settings["training.micro_batch_size"]
    return Step(
        supervised(_loss(settings, intake).to(device)),
        strategy=strategy,
        precision=settings["training.precision"],
        micro_batch_size=micro,
        clip_norm=settings["optim.clip_norm"],
        seed=settings["training.seed"],
    )


def _schedule(settings: Settings, total_steps: int, steps_per_epoch: int) -> Schedule:
    name = settings["schedule.name"]
    warmup_steps = settings["schedule.warmup"].to_steps(steps_per_epoch=steps_per_epoch, total_steps=total_steps)
    make = resolve(SCHEDULES, name, kind="schedule")
    return with_warmup(make, total_steps, warmup_steps=warmup_steps, min_fraction=settings["schedule.min_lr_fraction"])


def _timetable(settings: Settings, total_steps: int, steps_per_epoch: int) -> tuple[Timetable, Tracker]:
    def steps(duration: Duration) -> int:
        return duration.to_steps(steps_per_epoch=steps_per_epoch, total_steps=total_steps)

    eval_every = steps(settings["training.eval_every"])
    every = settings["checkpoint.every"]
    clock = [duration.seconds for duration in every if duration.seconds is not None]
    counted = {steps_per_epoch, *(steps(duration) for duration in every if duration.seconds is None)}
    timetable = Timetable(
        evaluate_every_steps=eval_every,
        save_every_steps=tuple(sorted(counted)),
        save_every_seconds=min(clock, default=float("inf")),
    )
    patience = settings["training.patience"]
    evaluations = None if patience is None else max(1, -(-steps(patience) // eval_every))
    return timetable, Tracker(settings["training.monitor"], patience=evaluations)


def _check_monitor(settings: Settings, intake: Intake) -> None:
    """Hold that the metric that decides exists, and that there is something to decide on.

    Raises: UsageError: it does not, or settings about validation have no effect.
    """
    monitor, patience = settings["training.monitor"], settings["training.patience"]
    if len(intake.split.val) == 0:
        asked = [f"training.patience = {patience}"] if patience is not None else []
        asked += [f"training.monitor = {monitor}"] if "training.monitor" not in settings.reasons else []
        if asked:
            what = f"{' and '.join(asked)} without effect: there is nothing to validate on"
            raise UsageError("E103", what, hint="leave it out, or set data.val_fraction or a folder called val apart")
    no_logits = np.zeros((1, intake.task.num_outputs(intake.classes)), np.float32)
    names = list(intake.task.metrics(no_logits, intake.targets[:1], intake.classes, intervals=False))
    if monitor not in names:
        raise UsageError("E101", f"training.monitor = {monitor!r}", got=monitor, choices=names)


def _read_elsewhere(settings: Settings) -> None:
    """Name the settings that other parts of a job read: the intake, the step, the schedule, the run folder."""
    for name in CONSUMED_ELSEWHERE:
        settings[name]


CONSUMED_ELSEWHERE = (
    *("data.path", "data.root", "data.path_column", "data.label_column", "data.split_column", "data.group_column"),
    *("data.class_names", "data.decisions", "data.val_fraction", "data.test_fraction"),  # jobs/intake.py, as the next
    *("task.name", "task.separator"),
    *("run.output", "run.name", "checkpoint.keep", "model.trust"),  # jobs/train.py
)
