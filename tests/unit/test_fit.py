"""The loop: what it learns, what it tells and when, how it stops and goes on. It knows nothing of images."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from small_training import Batches, differing, frozen, make_state, make_step, pictures
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kiln.engine.checkpoint import read_checkpoint, write_checkpoint
from kiln.engine.fit import Timetable, fit, stream
from kiln.engine.state import State, Tracker
from kiln.engine.step import Step
from kiln.engine.supervised import supervised
from kiln.errors import ArtifactError, UsageError
from kiln.events import EpochDone, Evaluated, Saved, StepDone, Stopped
from kiln.metrics import Metric
from kiln.optim.optimizers import sgd
from kiln.optim.schedules import cosine, with_warmup

TRUE_WEIGHT, TRUE_BIAS = [2.0, -1.0, 0.5], 0.25


def mean_squared_error(outputs, targets):
    """A loss as users write it: a scalar, the mean over the batch."""
    return ((outputs.squeeze(1) - targets) ** 2).mean()


def line(num=50):
    inputs = torch.randn(num, 3, generator=torch.Generator().manual_seed(1))
    return inputs, inputs @ torch.tensor(TRUE_WEIGHT) + TRUE_BIAS


def regression(lr=0.1):
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    groups = [{"params": [*model.parameters()], "names": ["weight", "bias"], "weight_decay": 0.0}]
    return State(model, sgd(groups, lr=lr, momentum=0.9)), Step(supervised(mean_squared_error))


def loader(size=8):
    return DataLoader(TensorDataset(*line()), batch_size=size)


def pairs(size=8):
    inputs, targets = line()
    return list(zip(inputs.split(size), targets.split(size), strict=True))


def own(size=8):
    return Batches(*line(), size)


def drain(events):
    return list(events)


def never_improves(state):
    return {"accuracy": Metric(0.5, None, None, 10)}


def names(events):
    return [type(event).__name__ for event in events]


@pytest.mark.parametrize("make", [loader, pairs, own])
def test_a_linear_regression_with_a_function_of_ones_own_recovers_its_weights(make):
    state, step = regression()
    events = drain(fit(state, step, make(), total_steps=200, schedule=cosine(200)))
    assert torch.allclose(state.model.weight, torch.tensor([TRUE_WEIGHT]), atol=1e-3)
    assert state.model.bias.item() == pytest.approx(TRUE_BIAS, abs=1e-3)
    losses = [event.train_loss for event in events if isinstance(event, EpochDone)]
    assert len(losses) == 200 // 7
    assert losses[-1] < 1e-5 < losses[0]


def test_events_come_in_order_with_their_numbers():
    state, step = regression()
    state.tracker = Tracker("accuracy")
    timetable = Timetable(evaluate_every_steps=7, save_every_steps=(5,))
    saved = []

    def save(state):
        saved.append((state.step, state.epoch, state.tracker.best_step))
        return Path(f"step-{state.step}")

    events = drain(fit(state, step, pairs(), total_steps=14, evaluate=never_improves, save=save, timetable=timetable))
    steps = ["StepDone"]
    assert names(events) == [
        *(steps * 5 + ["Saved"]),
        *(steps * 2 + ["EpochDone", "Evaluated", "Saved"]),  # the first evaluation is the best so far
        *(steps * 3 + ["Saved"]),
        *(steps * 4 + ["EpochDone", "Evaluated", "Saved", "Stopped"]),
    ]
    assert [event.step for event in events if isinstance(event, StepDone)] == list(range(1, 15))
    assert [event.num_samples for event in events if isinstance(event, StepDone)] == [8, 8, 8, 8, 8, 8, 2] * 2
    assert [event.epoch for event in events if isinstance(event, StepDone)] == [0] * 7 + [1] * 7
    assert [(event.epoch, event.step) for event in events if isinstance(event, EpochDone)] == [(1, 7), (2, 14)]
    assert [event.is_best for event in events if isinstance(event, Evaluated)] == [True, False]
    assert saved == [(5, 0, 0), (7, 1, 7), (10, 1, 7), (14, 2, 7)]
    assert [event.path.name for event in events if isinstance(event, Saved)] == [f"step-{n}" for n, *_ in saved]
    assert events[-1] == Stopped(14, 2, "done")


def test_a_saved_state_already_knows_the_evaluation_of_its_step():
    state, step = regression()
    state.tracker = Tracker("accuracy", patience=5)
    seen = []
    timetable = Timetable(evaluate_every_steps=2)

    def save(state):
        seen.append(state.tracker.state())
        return Path()

    drain(fit(state, step, pairs(), total_steps=4, evaluate=never_improves, save=save, timetable=timetable))
    known = {"best": 0.5, "best_step": 2, "best_loss": None, "improved_to": 0.5}
    assert seen == [{**known, "since": 0}, {**known, "since": 1}]


@pytest.mark.parametrize("make", [loader, pairs, own])
@pytest.mark.parametrize("cut", [1, 6, 7, 8, 12])
def test_a_resume_in_mid_epoch_ends_as_if_nothing_had_happened(make, cut, tmp_path):
    whole, step = regression()
    wanted = drain(fit(whole, step, make(), total_steps=21, schedule=cosine(21)))

    first, step = regression()
    events = fit(first, step, make(), total_steps=21, schedule=cosine(21), save=saver(tmp_path))
    told = []
    for event in events:
        told.append(event)
        if isinstance(event, StepDone) and event.step == cut:
            first.request_stop("SIGTERM")
    assert told[-1] == Stopped(cut, cut // 7, "SIGTERM")

    second, step = regression()
    with torch.no_grad():
        second.model.weight.fill_(9.0)
    second.load_state(read_checkpoint(tmp_path / f"step-{cut:08d}").tree)
    told += drain(fit(second, step, make(), total_steps=21, schedule=cosine(21)))
    assert differing(frozen(whole), frozen(second)) == []
    assert second.state()["progress"] == whole.state()["progress"]

    def facts(events):
        return [(e.step, float(e.loss), e.lr) for e in events if isinstance(e, StepDone)]

    assert facts(told) == facts(wanted)
    assert [e for e in told if isinstance(e, EpochDone)] == [e for e in wanted if isinstance(e, EpochDone)]


def saver(folder):
    return lambda state: write_checkpoint(folder, state.step, state.state())


def test_batches_that_know_their_step_are_not_run_through_again():
    batches = own()
    state, step = regression()
    state.step = 12
    drain(fit(state, step, batches, total_steps=15))
    assert batches.asked[:3] == [12, 13, 14]


def test_a_whole_image_training_resumes_bit_for_bit(tiny_model, tmp_path):
    """Dropout, running statistics, averages and optimizer state all come back."""
    batches = Batches(*pictures(20), 6)

    def begin():
        return make_state(tiny_model(), ema=0.99), make_step(seed=3, clip=1.0)

    schedule = with_warmup(cosine, 10, warmup_steps=2, min_fraction=0.01)
    whole, step = begin()
    drain(fit(whole, step, batches, total_steps=10, schedule=schedule))
    for cut in (1, 4, 7):
        first, step = begin()
        for event in fit(first, step, batches, total_steps=10, schedule=schedule, save=saver(tmp_path / str(cut))):
            if isinstance(event, StepDone) and event.step == cut:
                first.request_stop("SIGTERM")
        second, step = make_state(tiny_model(seed=5), ema=0.99), make_step(seed=3, clip=1.0)
        second.load_state(read_checkpoint(tmp_path / str(cut) / f"step-{cut:08d}").tree)
        drain(fit(second, step, batches, total_steps=10, schedule=schedule))
        assert differing(frozen(whole), frozen(second)) == []


def test_request_stop_saves_and_stops_after_the_step():
    state, step = regression()
    saved = []

    def save(state):
        saved.append(state.step)
        return Path()

    events = []
    for event in fit(state, step, pairs(), total_steps=100, save=save):
        events.append(event)
        if isinstance(event, StepDone) and event.step == 3:
            state.request_stop("SIGUSR1")
            state.request_stop("SIGINT")  # the first reason stands
    assert names(events) == ["StepDone"] * 3 + ["Saved", "Stopped"]
    assert events[-1] == Stopped(3, 0, "SIGUSR1")
    assert saved == [3]


def metric_by_step(values):
    values = iter(values)
    return lambda state: {"accuracy": Metric(next(values), None, None, 10)}


def test_early_stopping_counts_evaluations_without_an_improvement():
    state, step = regression()
    state.tracker = Tracker("accuracy", patience=2)
    evaluate = metric_by_step([0.5, 0.4, 0.6, 0.6, math.nan, 0.9])
    events = drain(
        fit(state, step, pairs(), total_steps=100, evaluate=evaluate, timetable=Timetable(evaluate_every_steps=4))
    )
    assert [e.is_best for e in events if isinstance(e, Evaluated)] == [True, False, True, False, False]
    assert events[-1] == Stopped(20, 2, "early_stop")
    assert (state.tracker.best, state.tracker.best_step) == (0.6, 12)


def test_a_run_that_had_stopped_early_stays_stopped_when_it_is_resumed():
    # Killed between its last checkpoint and its end, it must not train on and find another best.
    state, step = regression()
    state.tracker = Tracker("accuracy", patience=1)
    timetable = Timetable(evaluate_every_steps=2)
    drain(fit(state, step, pairs(), total_steps=50, evaluate=metric_by_step([0.5, 0.4]), timetable=timetable))
    assert state.step == 4

    again, step = regression()
    again.tracker = Tracker("accuracy", patience=1)
    again.load_state(state.state())
    events = drain(fit(again, step, pairs(), total_steps=50, evaluate=metric_by_step([0.9] * 50), timetable=timetable))
    assert events == [Stopped(4, 0, "early_stop")]


def test_a_finished_run_has_nothing_left_to_do():
    state, step = regression()
    drain(fit(state, step, pairs(), total_steps=5))
    assert drain(fit(state, step, pairs(), total_steps=5)) == [Stopped(5, 0, "done")]


def test_no_torch_context_leaks_into_the_consumer(tiny_model):
    batches = Batches(*pictures(20), 6)
    batches.inputs[3] = float("nan")  # one skipped step, so that samples are looked at alone
    state, step = make_state(tiny_model()), make_step(precision="bf16")

    @torch.inference_mode()
    def evaluate(state):
        return {"accuracy": Metric(0.5, None, None, 1)}

    kinds = set()
    timetable = Timetable(evaluate_every_steps=2)
    for event in fit(
        state, step, batches, total_steps=4, evaluate=evaluate, save=lambda s: Path(), timetable=timetable
    ):
        kinds.add(type(event).__name__)
        assert not torch.is_autocast_enabled("cpu"), event
        assert not torch.is_inference_mode_enabled(), event
        assert torch.is_grad_enabled(), event
        made = torch.nn.functional.linear(torch.ones(1, 1, requires_grad=True), torch.ones(1, 1))
        assert (made.dtype, made.requires_grad) == (torch.float32, True)
    assert kinds == {"StepDone", "Skipped", "EpochDone", "Evaluated", "Saved", "Stopped"}


def test_the_model_trains_after_each_evaluation_and_is_evaluated_in_eval_mode(tiny_model):
    state, step = make_state(tiny_model().eval()), make_step()
    modes = []

    def evaluate(state):
        modes.append(state.model.training)
        return {"accuracy": Metric(0.0, None, None, 1)}

    events = fit(
        state,
        step,
        Batches(*pictures(), 5),
        total_steps=6,
        evaluate=evaluate,
        timetable=Timetable(evaluate_every_steps=2),
    )
    assert all(state.model.training for event in events if not isinstance(event, Stopped))
    assert modes == [False] * 3


class Opaque:
    def state(self):
        return {"counts": [1, 2, {"lookup": object()}]}

    def load_state(self, state):
        pass


def test_a_part_that_a_checkpoint_cannot_hold_is_refused_by_name(tmp_path):
    state, step = regression()
    state.parts["sorter"] = Opaque()
    with pytest.raises(ArtifactError, match=r"parts/sorter/counts/2/lookup is a builtins.object"):
        drain(fit(state, step, pairs(), total_steps=3, save=saver(tmp_path)))
    assert list(tmp_path.iterdir()) == []


def test_a_part_that_a_checkpoint_cannot_hold_is_refused_before_the_first_step(tmp_path):
    state, step = regression()
    state.parts["sorter"] = Opaque()
    before = frozen_model(state)
    events = fit(state, step, pairs(), total_steps=3, save=saver(tmp_path))
    with pytest.raises(ArtifactError, match="parts/sorter"):
        next(events)
    assert state.step == 0
    assert torch.equal(before, frozen_model(state))


def frozen_model(state):
    return state.model.weight.detach().clone()


def test_an_unknown_monitor_is_named_with_the_metrics_there_are():
    state, step = regression()
    state.tracker = Tracker("acuracy")
    with pytest.raises(UsageError, match="did you mean: accuracy"):
        drain(fit(state, step, pairs(), total_steps=1, evaluate=never_improves))


@pytest.mark.parametrize("batches", [iter([]), [], itertools.repeat((torch.ones(1, 3), torch.ones(1)))])
def test_batches_without_a_length_are_refused(batches):
    state, step = regression()
    with pytest.raises(UsageError, match="no length, or none are left"):
        drain(fit(state, step, batches, total_steps=1))
    with pytest.raises(UsageError, match="no length, or none are left"):
        next(stream(batches, 0))


class Empty:
    def __len__(self):
        return 3

    def __iter__(self):
        return iter(())


def test_a_pass_without_any_batch_is_an_error_and_no_hang():
    with pytest.raises(UsageError, match="a pass over 3 batches yielded none"):
        next(stream(Empty(), 0))


@pytest.mark.parametrize(
    ("timetable", "what", "due"),
    [
        (Timetable(evaluate_every_steps=4), "evaluate", [4, 8, 10]),
        (Timetable(evaluate_every_steps=0), "evaluate", [10]),
        (Timetable(save_every_steps=(3, 5)), "save", [3, 5, 6, 9, 10]),
        (Timetable(), "save", [10]),
    ],
)
def test_timetable(timetable, what, due):
    assert [step for step in range(1, 11) if timetable.is_time(what, step, 10)] == due


def test_time_on_the_clock_asks_for_a_save(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("kiln.engine.fit.time.monotonic", lambda: now[0])
    state, step = regression()
    timetable = Timetable(save_every_seconds=60.0, _saved_at=100.0)
    saved = []

    def save(state):
        saved.append(state.step)
        return Path()

    for event in fit(state, step, pairs(), total_steps=10, save=save, timetable=timetable):
        if isinstance(event, StepDone):
            now[0] += 25.0
    assert saved == [4, 8, 10]


# The traps of the design that concern the loop.


def test_trap_a_schedule_is_set_before_each_optimizer_step_and_per_step():
    state, step = regression(lr=0.1)
    factors = [0.5, 0.25, 1.0, 0.0, 2.0, 0.125, 0.75, 0.3]
    before, moved = frozen_model(state), []
    for event in fit(state, step, pairs(), total_steps=8, schedule=factors.__getitem__):
        if isinstance(event, StepDone):
            assert event.lr == 0.1 * factors[event.step - 1]
            after = frozen_model(state)
            moved.append(not torch.equal(before, after))
            before = after
    assert moved == [True, True, True, False, True, True, True, True]  # rate 0 stands still in its own step


def test_trap_the_loss_of_an_epoch_is_a_mean_over_samples_not_over_batches():
    state, step = regression(lr=0.0)
    inputs, targets = line(10)
    batches = [(inputs[:9], targets[:9]), (inputs[9:], targets[9:] + 30.0)]  # one odd sample in a batch of its own
    with torch.no_grad():
        whole = float(((state.model(inputs).squeeze(1) - torch.cat([targets[:9], targets[9:] + 30.0])) ** 2).mean())
    (done,) = [e for e in fit(state, step, batches, total_steps=2) if isinstance(e, EpochDone)]
    assert done.train_loss == pytest.approx(whole, rel=1e-6)


def test_trap_dropout_is_not_left_on_in_evaluation_nor_off_in_training(tiny_model):
    state, step = make_state(tiny_model(drop=0.5, norm=False)), make_step()
    images, _ = pictures(4)
    answers = []

    def evaluate(state):
        answers.append((state.model(images), state.model(images)))
        return {"accuracy": Metric(0.0, None, None, 1)}

    drain(fit(state, step, Batches(*pictures(), 10), total_steps=1, evaluate=evaluate))
    assert torch.equal(*answers[0])
    assert not torch.equal(state.model(images), state.model(images))
