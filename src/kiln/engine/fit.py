"""The training loop: a generator of events. It knows nothing of images."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from kiln.batch import Batch, as_batch
from kiln.engine.codec import require_encodable
from kiln.engine.guard import LateReader, Reading
from kiln.engine.precision import autocast
from kiln.engine.state import State
from kiln.engine.statistics import BATCHES, renew_statistics
from kiln.engine.step import Step
from kiln.errors import NumericError, UsageError
from kiln.events import EpochDone, Evaluated, Event, Saved, Skipped, StepDone, Stopped
from kiln.losses.contract import as_terms
from kiln.optim.schedules import Plateau, Schedule, set_rates


@dataclass
class Timetable:
    """When the loop evaluates and saves. Steps count from 1; the last step of the run is always due.

    Args:
        evaluate_every_steps: 0 never evaluates.
        save_every_steps: also several; without any, saves at the end, at a new best, and when stopping.
        save_every_seconds: also save when this much time has passed since the last save.
    """

    evaluate_every_steps: int = 0
    save_every_steps: tuple[int, ...] = ()
    save_every_seconds: float = float("inf")
    _saved_at: float = field(default_factory=time.monotonic)

    def is_time(self, what: str, step: int, total_steps: int) -> bool:
        """Whether `what` (`evaluate` or `save`) is due after `step` steps."""
        for every in (self.evaluate_every_steps,) if what == "evaluate" else self.save_every_steps:
            if every > 0 and step % every == 0:
                return True
        return step == total_steps

    def is_overdue(self) -> bool:
        """Whether so much time has passed since the last save that another is wanted."""
        return time.monotonic() - self._saved_at >= self.save_every_seconds

    def saved(self) -> None:
        """Start waiting for the next timed save."""
        self._saved_at = time.monotonic()


def fit(
    state: State,
    step: Step,
    batches: Iterable[Any],
    *,
    total_steps: int,
    schedule: Schedule | None = None,
    evaluate: Callable[[State], Mapping[str, Any]] | None = None,
    save: Callable[[State], Path] | None = None,
    timetable: Timetable | None = None,
) -> Iterator[Event]:
    """Train until `total_steps`, early stopping, or a requested stop; tell what happens.

    Everything that a resume needs is in `state` and is updated before it is saved.

    Args:
        state: what is trained; a state with `state.step > 0` goes on from there.
        step: turns a batch into an update.
        batches: one pass is one epoch. Has a length; if it has `from_step(step)`, a resume goes on in mid-epoch exactly,
            otherwise it starts the interrupted epoch's pass and passes over what was consumed.
        total_steps: of the whole run, not of what is left.
        schedule: 0-based step -> factor of the rates, set before the step is taken; `state.plateau` multiplies it.
        evaluate: state -> named metrics with a `.value`; `state.tracker.monitor` names the one that decides.
        save: state -> path of the committed checkpoint.
        timetable: when to do both; by default only at the end.
    Raises:
        ArtifactError: what a stage of fine-tuning froze has changed.
        UsageError: no sample of a whole epoch counts in the loss.
        NumericError: more than `MAX_SKIPPED_IN_A_ROW` steps in a row had a non-finite loss or gradient.
    """
    timetable = timetable or Timetable()
    steps_per_epoch = _length(batches)
    reader = LateReader(state.device)
    alone = step.strategy.world_size == 1
    state.model.train()
    if save is not None:
        require_encodable(state.state())  # now, rather than at the first save
    if state.tracker is not None and state.tracker.exhausted:
        state.request_stop("early_stop")  # a resume of a run that had stopped so trains no further
    stops = state.step >= total_steps or state.stop_reason == "early_stop"
    num_empty = 0  # steps of this epoch in which nothing counted
    for batch in stream(batches, state.step):
        if stops:
            break
        if state.stages is not None and (began := state.stages.enter(state)) is not None:
            yield began
        reduced = state.plateau.factor if state.plateau else 1.0
        lr = set_rates(state.optimizer, schedule(state.step) if schedule else 1.0, scale=reduced)
        state.wants_save = timetable.is_overdue()
        measured = step(state, batch)
        state.step += 1
        readings = reader.push(state.step, measured, batch.indices)
        yield StepDone(state.step, state.epoch, measured.loss, lr, len(batch))

        # With several processes a wish is heeded when all have heard of it, at the same step everywhere.
        stops = state.step >= total_steps or (alone and state.stop_reason is not None)
        ends_epoch = state.step % steps_per_epoch == 0
        evaluates = evaluate is not None and timetable.is_time("evaluate", state.step, total_steps)
        saves = timetable.is_time("save", state.step, total_steps) or (alone and state.wants_save)
        if ends_epoch or evaluates or saves or stops:
            readings += reader.flush()
        for reading in readings:
            stops, saves = stops or reading.stop, saves or reading.save
            if reading.stop:
                state.request_stop("another process asked to stop")
            if reading.bad and reading.weight == 0:
                num_empty += 1
                yield Skipped(reading.step, NOTHING_COUNTS)
            elif reading.bad:
                yield _skipped(state, step, batches, reading)
            elif reading.overflow:
                yield Skipped(reading.step, OVERFLOW)
            else:
                state.skipped_in_a_row = 0
                state.add_loss(reading.loss, reading.weight)

        if ends_epoch:
            state.epoch += 1
            if num_empty == steps_per_epoch:
                what = f"no sample of epoch {state.epoch} counts in the loss"
                hint = "look at class weights of 0 and at ignore_index"
                raise UsageError("E103", what, expected="weights above 0 for some samples", hint=hint)
            num_empty = 0
            yield EpochDone(state.epoch, state.step, state.take_mean_loss())
        if evaluate is not None and evaluates:
            event = _evaluate(state, step, batches, evaluate)
            stops = stops or (state.tracker is not None and state.tracker.exhausted)
            saves = saves or event.is_best
            yield event
        if save is not None and (saves or stops):
            path = save(state)
            timetable.saved()
            yield Saved(state.step, path)
    if state.stages is not None:
        state.stages.prove(state)
    yield Stopped(state.step, state.epoch, state.stop_reason or "done")


MAX_SKIPPED_IN_A_ROW = 3
NOTHING_COUNTS = "no sample of the batch counts in the loss"
OVERFLOW = "a gradient overflowed fp16: the loss scale is reduced"


def stream(batches: Iterable[Any], start_step: int) -> Iterator[Batch]:
    """Batches from a step on, epoch after epoch, for ever.

    Raises: UsageError: the batches have no length, or a pass yields none.
    """
    if hasattr(batches, "from_step"):
        yield from batches.from_step(start_step)  # type: ignore[attr-defined]
    length = _length(batches)
    passed_over = start_step % length
    while True:
        index = -1
        for index, item in enumerate(batches):
            if index >= passed_over:
                yield as_batch(item)
        if index < 0:
            raise UsageError("E107", f"a pass over {length} batches yielded none", expected="batches in every pass")
        passed_over = 0


def _length(batches: Iterable[Any]) -> int:
    length = len(batches) if hasattr(batches, "__len__") else 0  # type: ignore[arg-type]
    if length == 0:
        raise UsageError("E107", "the batches have no length, or none are left", expected="an iterable with len() >= 1")
    return length


def _evaluate(
    state: State, step: Step, batches: Iterable[Any], evaluate: Callable[[State], Mapping[str, Any]]
) -> Evaluated:
    if state.average is not None and state.average.needs_statistics and state.average.model is not state.model:
        _renew_statistics(state, step, batches)
    step.strategy.broadcast_buffers(state.evaluated_model())  # running statistics differ by process
    state.evaluated_model().eval()
    metrics = evaluate(state)
    is_best = False
    if state.tracker is not None:
        decides = _named(metrics, state.tracker.monitor)
        is_best = state.tracker.update(decides, state.step, loss=metrics.get("loss"))
        if state.tracker.exhausted:
            state.request_stop("early_stop")
    if state.plateau is not None:
        _watch(state, state.plateau, metrics)
    state.model.train()
    return Evaluated(state.step, state.epoch, "val", metrics, is_best)


def _renew_statistics(state: State, step: Step, batches: Iterable[Any]) -> None:
    """Measure the average's running statistics over the first epoch's first batches, the same ones each time."""
    state.model.train()
    first = stream(batches, 0)
    context = autocast(step.precision, state.device)
    renew_statistics(
        state.evaluated_model(), first, like=state.model, num_batches=min(BATCHES, _length(batches)), context=context
    )
    first.close()  # type: ignore[attr-defined] - a generator, whose threads end with it


def _watch(state: State, plateau: Plateau, metrics: Mapping[str, Any]) -> None:
    """Reduce the rates if the metric has stopped improving, as an entry in the log."""
    monitor = plateau.monitor or (state.tracker.monitor if state.tracker else "")
    metric = _named(metrics, monitor)
    if plateau.update(metric.value, higher_is_better=getattr(metric, "higher_is_better", True)):
        state.decide("plateau", monitor=monitor, factor=plateau.factor)


def _named(metrics: Mapping[str, Any], monitor: str) -> Any:
    if monitor not in metrics:
        raise UsageError("E101", f"monitor = {monitor!r}", got=monitor, choices=sorted(metrics))
    return metrics[monitor]


def _skipped(state: State, step: Step, batches: Iterable[Any], reading: Reading) -> Skipped:
    """Record that the guard skipped a step, and find the samples at fault by making its batch again."""
    state.skipped += 1
    state.skipped_in_a_row += 1
    indices = () if reading.indices is None else tuple(int(i) for i in reading.indices)
    if hasattr(batches, "at"):
        rows = guilty_rows(state, step, batches.at(reading.step - 1))  # type: ignore[attr-defined]
        shares = step.strategy.gather([indices[row] for row in rows] if indices else [])
        indices = tuple(index for share in shares for index in share) or indices
    state.decide("skipped", bad_step=reading.step, indices=list(indices))
    if state.skipped_in_a_row > MAX_SKIPPED_IN_A_ROW:
        raise NumericError(
            "E601",
            f"{state.skipped_in_a_row} steps in a row had a loss or gradient that is not finite",
            where=f"step {reading.step}, samples {', '.join(map(str, indices[:20])) or 'unknown'}",
            kept="the last checkpoint; the weights have not moved since the first of those steps",
            hint="a lower --lr, --precision fp32, or --clip-grad 1; look at those samples",
        )
    return Skipped(reading.step, "the loss or a gradient is not finite", indices)


@torch.no_grad()
def guilty_rows(state: State, step: Step, batch: Batch) -> list[int]:
    """Rows of a batch whose own loss is not finite, each looked at alone."""
    training = state.model.training
    state.model.eval()
    rows = []
    for row in range(len(batch)):
        one = as_terms(step.forward_loss(state, batch.cut(row, row + 1)), 1)
        if not torch.isfinite(one.values).all():
            rows.append(row)
    state.model.train(training)
    return rows
