"""The one place where settings become objects. A setting that nothing here consumes is an error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from kiln.augment import OnDevice
from kiln.augment.progressive import Progressive
from kiln.batch import Batch
from kiln.data.collate import pad
from kiln.data.images import ContractImages, Images, KeptImages
from kiln.data.loader import Assembler, BadFiles, evaluation_batches
from kiln.engine.determinism import set_determinism
from kiln.engine.evaluate import collect_outputs
from kiln.engine.features import EvaluationFeatures, FeatureBatches
from kiln.engine.fit import Timetable
from kiln.engine.precision import keep_fp32_
from kiln.engine.starting_point import with_penalty
from kiln.engine.state import State, Tracker
from kiln.engine.step import Step
from kiln.engine.strategy import Strategy
from kiln.engine.supervised import supervised
from kiln.errors import DataError
from kiln.jobs.assembly.batches import Pipeline, assemble_batches
from kiln.jobs.assembly.criterion import LossState, make_loss
from kiln.jobs.assembly.features import KeptFeatures, keep_features
from kiln.jobs.assembly.finetuning import adapt_, make_stages, make_starting_point, output_layer
from kiln.jobs.assembly.first_head import fit_head_, settle_first_head
from kiln.jobs.assembly.further_metrics import further_metrics
from kiln.jobs.assembly.optimization import make_average, make_clip, make_optimizer, make_sam
from kiln.jobs.assembly.resolve import Settings
from kiln.jobs.assembly.schedules import Clock, make_schedule
from kiln.jobs.intake import Intake
from kiln.metrics import Metric
from kiln.models.checkpointing import checkpoint_activations_
from kiln.models.create import Created
from kiln.models.normalize import Normalized
from kiln.models.outputs import main_and_auxiliary
from kiln.names import STRATEGIES, resolve
from kiln.optim.schedules import Schedule
from kiln.pixels import PixelContract
from kiln.recipe.duration import Duration
from kiln.runtimes import BATCH_SIZE


@dataclass
class Training:
    """All that a loop needs, and what its results need to be read."""

    state: State
    step: Step
    batches: OnDevice | Progressive | FeatureBatches
    schedule: Schedule
    timetable: Timetable
    total_steps: int
    created: Created
    contract: PixelContract
    bad_files: BadFiles
    validator: Validator | None
    strategy: Strategy


def make_strategy(settings: Settings) -> Strategy:
    """The strategy, which must stand before anything else: it tells the rank."""
    name = settings["run.strategy"]
    settings["run.processes"]  # settled by the launcher
    device = torch.device(settings["run.device"])
    made = resolve(STRATEGIES, name, kind="strategy")
    return made() if name == "single" else made(device)


def assemble(
    settings: Settings, intake: Intake, strategy: Strategy, *, resuming: bool = False, begins: bool = False
) -> Training:
    """Build everything that a training stands on. When resuming, the checkpoint brings the weights.

    `begins`: fit the head, where it is to be fitted before the first step.

    Raises: UsageError: settings that do not fit each other or the data, or have no effect.
    """
    device = torch.device(settings["run.device"])
    set_determinism(settings["run.determinism"], fixed_shapes=_has_fixed_shapes(settings))
    pipeline = assemble_batches(settings, intake, strategy, resuming=resuming)
    created, contract, bad_files = pipeline.created, pipeline.contract, pipeline.bad_files
    adapt_(settings, created)
    model = created.model.to(device).to(memory_format=_memory_format(settings["run.memory_format"]))
    _choose_arithmetic(settings, model)
    steps_per_epoch = len(pipeline.batches)
    total_steps = settings["training.epochs"].to_steps(steps_per_epoch=steps_per_epoch)
    loss = make_loss(settings, intake, model, mixed=pipeline.batches.mixing is not None)
    _first_head_(settings, intake, pipeline, loss, begins=begins)
    stages = make_stages(settings, created, total_steps=total_steps, steps_per_epoch=steps_per_epoch)
    features = keep_features(settings, intake, pipeline, strategy=strategy, total_steps=total_steps)
    optimizer = make_optimizer(settings, model) if stages is None else stages.make_optimizer()
    average = make_average(settings, model, total_steps=total_steps, steps_per_epoch=steps_per_epoch)
    state = State(model, optimizer, average=average, stages=stages)
    state.parts["bad_files"] = bad_files
    timetable, tracker = _timetable(settings, total_steps, steps_per_epoch)
    validator = None
    skip_bad, workers = settings["data.bad_files"] == "skip", settings["data.workers"]
    if len(intake.split.val):
        state.tracker = tracker
        validator = Validator(
            intake, pipeline.validation, created, bad_files, strategy, skip_bad=skip_bad, workers=workers
        )
        validator.features = None if features is None else features.evaluation
    if loss.state_dict():
        state.parts["loss"] = LossState(loss)
    step = _step(settings, model, loss, strategy, features)
    if step.scaler is not None:
        state.parts["scaler"] = step.scaler
    start = make_starting_point(settings, created)
    if start is not None:
        state.parts["starting_point"] = start
        step.forward_loss = with_penalty(step.forward_loss, start.penalty)
    clock = Clock(total_steps, steps_per_epoch, timetable.evaluate_every_steps)
    schedule, state.plateau = make_schedule(settings, clock, validates=validator is not None)
    further = further_metrics(settings, intake, state.plateau)
    if validator is not None:
        validator.further = further
    _read_elsewhere(settings)
    settings.require_all_read()
    return Training(
        state=state,
        step=step,
        batches=pipeline.batches if features is None else features.batches,
        schedule=schedule,
        timetable=timetable,
        total_steps=total_steps,
        created=created,
        contract=contract,
        bad_files=bad_files,
        validator=validator,
        strategy=strategy,
    )


def _first_head_(settings: Settings, intake: Intake, pipeline: Pipeline, loss: nn.Module, *, begins: bool) -> None:
    created = pipeline.created
    head = output_layer(created)
    cut = settle_first_head(settings, pipeline, head=head)
    if cut is not None and begins:
        device = torch.device(settings["run.device"])
        transformed, spec = intake.source.transformed, created.spec
        scaled = partial(Normalized, mean=spec.mean, std=spec.std, per_image=spec.per_image)
        forward = created.model if transformed else scaled(created.model).to(device)
        fit_head_(settings, intake, pipeline, cut, forward=forward, loss=loss, head=head)


def wrap_for_processes(training: Training) -> None:
    """Put the strategy's wrapper around the model. Call after a checkpoint was loaded: the wrapper shares the weights."""
    state = training.state

    def warm_up(wrapped: nn.Module) -> None:
        state.forward = wrapped
        training.step.rehearse(state, training.batches.at(0))

    def wrap() -> None:
        state.forward = training.strategy.prepare(state.model, warm_up)

    wrap()
    if state.stages is not None:
        state.stages.rewrap = wrap


class Validator:
    """Evaluates a training's state on the validation split; each process takes a share."""

    def __init__(
        self,
        intake: Intake,
        images: Images,
        created: Created,
        bad_files: BadFiles,
        strategy: Strategy,
        *,
        skip_bad: bool,
        workers: int,
    ) -> None:
        self._intake, self._created, self._strategy = intake, created, strategy
        self._bad_files, self._skip_bad, self._workers = bad_files, skip_bad, workers
        keeps = isinstance(images, ContractImages | KeptImages) and images.contract.resize == "keep"
        self._assembler = Assembler(images, intake.targets, pad if keeps else None)
        self.features: EvaluationFeatures | None = None
        self.further: tuple[str, ...] = ()

    def __call__(self, state: State) -> Mapping[str, Metric]:
        """Metrics of the weights that would ship. Each sample counts once."""
        share = np.array_split(self._intake.split.val, self._strategy.world_size)[self._strategy.rank]
        batches: Iterable[Batch] = evaluation_batches(
            self._assembler,
            share,
            batch_size=BATCH_SIZE,
            bad_files=self._bad_files,
            split="val",
            skip_bad=self._skip_bad,
            workers=self._workers,
        )
        model = state.evaluated_model()
        forward = uint8_forward(model, self._created, self._intake.source.transformed, state.device)
        if self.features is not None and self.features.holds(state):
            batches = self.features.batches(model, batches, forward=forward, device=state.device)
            forward = partial(self.features.cut.head, model)
        outputs = collect_outputs(forward, batches, device=state.device, strategy=self._strategy)
        if outputs is None:
            raise DataError("E202", "no validation file can be read")
        task, classes = self._intake.task, self._intake.classes
        found = task.metrics(outputs.logits, outputs.targets, classes)
        further = task.metrics(outputs.logits, outputs.targets, classes, intervals=False, names=self.further)
        return {**found, **further}


def uint8_forward(model: nn.Module, created: Created, transformed: bool, device: torch.device) -> Callable[..., Tensor]:
    """Images as the contract makes them (or as the source transformed them) -> logits, in evaluation mode."""
    if transformed:
        return lambda images: main_and_auxiliary(model.eval()(images))[0]
    spec = created.spec
    return Normalized(model, spec.mean, spec.std, per_image=spec.per_image).to(device).eval()


def _memory_format(name: str) -> torch.memory_format:
    return torch.channels_last if name == "channels_last" else torch.contiguous_format


def _has_fixed_shapes(settings: Settings) -> bool:
    """Whether all batches that go through the model have one shape."""
    batch, micro = settings["training.batch_size"], settings["training.micro_batch_size"]
    same_px = settings["augment.first_px"] is None
    return same_px and bool(settings["training.drop_last"]) and (not micro or batch % micro == 0)


def _step(
    settings: Settings, model: nn.Module, loss: nn.Module, strategy: Strategy, features: KeptFeatures | None
) -> Step:
    micro = settings["training.micro_batch_size"]
    return Step(
        supervised(loss, head=None if features is None else features.batches.cut.head),
        strategy=strategy,
        precision=settings["training.precision"],
        micro_batch_size=micro,
        clip=make_clip(settings, model),
        sam=make_sam(settings),
        seed=settings["training.seed"],
    )


def _choose_arithmetic(settings: Settings, model: nn.Module) -> None:
    """What computes in fp32 all the same, and what is computed again in backward."""
    if patterns := settings["training.fp32_modules"]:
        keep_fp32_(model, patterns)
    if what := settings["training.activation_checkpointing"]:
        checkpoint_activations_(model, what)


def _timetable(settings: Settings, total_steps: int, steps_per_epoch: int) -> tuple[Timetable, Tracker]:
    def steps(duration: Duration) -> int:
        return duration.to_steps(steps_per_epoch=steps_per_epoch, total_steps=total_steps)

    eval_every = steps(settings["training.eval_every"])
    every = settings["checkpoint.every"]
    clock = [duration.seconds for duration in every if duration.seconds is not None]
    counted = {steps(duration) for duration in every if duration.seconds is None}
    if "checkpoint.every" not in settings.reasons:  # otherwise epochs are too short for it
        counted.add(steps_per_epoch)
    timetable = Timetable(
        evaluate_every_steps=eval_every,
        save_every_steps=tuple(sorted(counted)),
        save_every_seconds=min(clock, default=float("inf")),
    )
    patience = settings["training.patience"]
    evaluations = None if patience is None else max(1, -(-steps(patience) // eval_every))
    return timetable, Tracker(
        settings["training.monitor"],
        patience=evaluations,
        min_delta=settings["training.min_delta"],
        keep_last=settings["training.keep"] == "last",
    )


def _read_elsewhere(settings: Settings) -> None:
    """Name the settings that other parts of a job read: the intake, the step, the schedule, the run folder."""
    for name in CONSUMED_ELSEWHERE:
        settings[name]


CONSUMED_ELSEWHERE = (
    *("data.path", "data.root", "data.path_column", "data.label_column", "data.split_column", "data.group_column"),
    *("data.class_names", "data.decisions", "data.val_fraction", "data.test_fraction"),  # jobs/intake.py, as the next
    *("data.folds", "data.fold"),
    *("task.name", "task.separator"),
    *(
        "run.output",
        "run.name",
        "run.report",
        "checkpoint.keep",
        "model.trust",
    ),  # jobs/train.py and jobs/training/finish.py
    *("answers.calibration", "answers.wanted_accuracy", "answers.wanted_coverage", "answers.max_unfamiliarity"),
)
