"""The guard: a step with a non-finite loss or gradient changes nothing, and the guilty samples are named."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from small_training import Batches, differing, frozen, make_state, make_step, pictures
from torch import nn

from kiln.batch import Batch
from kiln.engine.fit import MAX_SKIPPED_IN_A_ROW, fit
from kiln.engine.guard import BufferGuard
from kiln.engine.step import Step
from kiln.errors import NumericError
from kiln.events import EpochDone, Skipped, StepDone, Stopped
from kiln.observe.progress import Progress
from kiln.observe.records import MetricsLog


def poisoned(where=7, value=float("nan"), num=20, size=5):
    """Batches of which one sample makes the loss, and every gradient, undefined; its index is where + 100."""
    batches = Batches(*pictures(num), size)
    batches.inputs[where] = value
    return batches


def tensors_and_counters(state):
    tree = state.state()
    return frozen(state), {name: tree[name] for name in ("tracker",)}, getattr(state.average, "updates", None)


def train_to(state, step, batches, total_steps):
    return list(fit(state, step, batches, total_steps=total_steps))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("opt", ["adamw", "sgd"])
@pytest.mark.parametrize("micro", [None, 2])
def test_a_bad_sample_skips_its_step_and_nothing_moves(tiny_model, opt, value, micro):
    batches = poisoned(7, value)
    state = make_state(tiny_model(), opt=opt, ema=0.9)
    step = make_step(micro_batch_size=micro, clip=1.0)
    train_to(state, step, batches, 1)
    before = tensors_and_counters(state)
    events = train_to(state, step, batches, 2)
    after = tensors_and_counters(state)
    assert differing(before[0], after[0]) == []
    assert before[1:] == after[1:]
    assert (state.step, state.skipped, state.skipped_in_a_row) == (2, 1, 1)
    assert events[1] == Skipped(2, "the loss or a gradient is not finite", (107,))
    assert state.log == [{"step": 2, "what": "skipped", "bad_step": 2, "indices": [107]}]
    events = train_to(state, step, batches, 3)
    assert "Skipped" not in {type(event).__name__ for event in events}
    assert differing(after[0], frozen(state)) != []
    assert (state.skipped, state.skipped_in_a_row) == (1, 0)


@pytest.mark.parametrize("opt", ["adamw", "sgd"])
def test_the_very_first_step_can_be_skipped(tiny_model, opt):
    """Fused momentum would otherwise start from a buffer that nobody has set."""
    skipped = make_state(tiny_model(), opt=opt, ema=0.9)
    before = {name: tensor.clone() for name, tensor in skipped.model.state_dict().items()}
    step = make_step()
    train_to(skipped, step, poisoned(0), 1)
    assert differing(before, dict(skipped.model.state_dict())) == []

    clean = make_state(tiny_model(), opt=opt, ema=0.9)
    clean.step = 1  # the same schedule and dropout as after the skipped step
    batches = Batches(*pictures(), 5)
    train_to(skipped, step, batches, 4)
    train_to(clean, make_step(), batches, 4)
    assert differing(frozen(skipped), frozen(clean)) == []


def test_an_optimizer_that_cannot_skip_by_itself_is_not_stepped(tiny_model):
    from kiln.engine.state import State

    model = tiny_model()
    groups = [{"params": [*model.parameters()], "names": [name for name, _ in model.named_parameters()]}]
    state = State(model, torch.optim.RMSprop(groups, lr=0.01))
    step, batches = make_step(), poisoned(7)
    train_to(state, step, batches, 1)
    before = frozen(state)
    train_to(state, step, batches, 2)
    assert differing(before, frozen(state)) == []
    assert state.skipped == 1


class InfiniteGradient(torch.autograd.Function):
    """A finite loss whose gradient is not."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad / 0.0


def test_an_infinite_gradient_of_a_finite_loss_is_caught(tiny_model):
    model = tiny_model()
    state = make_state(model)
    step = Step(lambda state, batch: InfiniteGradient.apply(model(batch.images)).mean(1))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    events = train_to(state, step, Batches(*pictures(), 5), 1)
    assert differing(before, dict(model.state_dict())) == []
    assert events[1].indices == (100, 101, 102, 103, 104)  # no sample's loss gives it away: all of them


def test_the_loss_of_the_epoch_leaves_the_skipped_step_out(tiny_model):
    state = make_state(tiny_model(), lr=1e-9)
    events = train_to(state, make_step(), poisoned(7), 4)
    losses = [float(event.loss) for event in events if isinstance(event, StepDone)]
    (done,) = [event for event in events if isinstance(event, EpochDone)]
    assert done.train_loss == pytest.approx(np.mean([losses[0], losses[2], losses[3]]), rel=1e-6)


def test_several_guilty_samples_are_all_named(tiny_model):
    batches = poisoned(7)
    batches.inputs[5] = float("inf")
    events = train_to(make_state(tiny_model(norm=False)), make_step(), batches, 2)
    assert [event.indices for event in events if isinstance(event, Skipped)] == [(105, 107)]


def test_more_than_three_in_a_row_is_an_error_with_status_7(tiny_model):
    batches = Batches(*pictures(30), 5)
    batches.inputs[5:] = float("nan")
    state = make_state(tiny_model(), ema=0.9)
    step = make_step()
    train_to(state, step, batches, 1)
    before, events = frozen(state), []
    with pytest.raises(NumericError, match=r"(?s)4 steps in a row.*step 5, samples 120, 121, 122, 123, 124") as caught:
        events.extend(fit(state, step, batches, total_steps=6))
    assert (caught.value.code, caught.value.exit_code) == ("E601", 7)
    assert [event.step for event in events if isinstance(event, Skipped)] == [2, 3, 4]
    assert len([e for e in events if isinstance(e, Skipped)]) == MAX_SKIPPED_IN_A_ROW
    assert differing(before, frozen(state)) == []


def test_bad_steps_with_good_ones_between_them_never_add_up_to_an_error(tiny_model):
    batches = Batches(*pictures(30), 5)
    batches.inputs[0:5] = float("nan")
    batches.inputs[10:15] = float("nan")
    state = make_state(tiny_model())
    events = train_to(state, make_step(), batches, 24)
    assert len([event for event in events if isinstance(event, Skipped)]) == 8
    assert events[-1] == Stopped(24, 4, "done")


def test_the_row_count_survives_a_resume(tiny_model):
    batches = Batches(*pictures(30), 5)
    batches.inputs[:] = float("nan")
    state = make_state(tiny_model())
    train_to(state, make_step(), batches, 2)
    again = make_state(tiny_model())
    again.load_state(state.state())
    with pytest.raises(NumericError, match="4 steps in a row"):
        train_to(again, make_step(), batches, 6)
    assert again.step == 4


def test_the_sample_is_named_to_people_and_in_the_metrics_log(tiny_model, tmp_path):
    stream = io.StringIO()
    progress, log = Progress(stream), MetricsLog(tmp_path, every_steps=1000)
    for event in fit(make_state(tiny_model()), make_step(), poisoned(7), total_steps=3):
        progress(event)
        log(event)
    log.close()
    assert "step 2 skipped: the loss or a gradient is not finite (samples 107)" in stream.getvalue()
    assert '"event": "skipped", "step": 2' in (tmp_path / "metrics.jsonl").read_text()
    assert '"indices": [107]' in (tmp_path / "metrics.jsonl").read_text()


class Nameless(Batches):
    """Batches that can be made again, but do not say which samples they hold."""

    def at(self, step):
        batch = super().at(step)
        return Batch(batch.images, batch.targets)


@pytest.mark.parametrize("make", [Nameless, lambda i, t, size: list(zip(i.split(size), t.split(size), strict=True))])
def test_a_bad_sample_of_batches_without_indices_is_skipped_all_the_same(tiny_model, make):
    source = poisoned(7)
    events = train_to(make_state(tiny_model()), make_step(), make(source.inputs, source.targets, 5), 3)
    assert [event.step for event in events if isinstance(event, Skipped)] == [2]


class Running(nn.Module):
    """Buffers of several kinds: floats of two widths, a counter, a scalar, an empty one, none at all."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.arange(6.0).view(2, 3))
        self.register_buffer("precise", torch.tensor([1.5], dtype=torch.float64))
        self.register_buffer("scale", torch.tensor(2.0), persistent=False)
        self.register_buffer("empty", torch.zeros(0))
        self.register_buffer("nothing", None)
        self.register_buffer("updates", torch.tensor(3))
        self.inner = nn.BatchNorm1d(3)


def change(model):
    for buffer in model.buffers():
        buffer.add_(1)


@pytest.mark.parametrize(("bad", "changed"), [(0.0, True), (1.0, False)])
def test_buffers_are_put_back_only_after_a_bad_step(bad, changed):
    model = Running()
    guard = BufferGuard(model)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    guard.save()
    change(model)
    guard.restore_if(torch.tensor(bad))
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name] + (1 if changed else 0)), name


def test_buffers_are_put_back_unconditionally_and_stay_what_they_are_called():
    model = Running()
    names = list(model.state_dict())
    guard = BufferGuard(model)
    assert list(model.state_dict()) == names
    model.load_state_dict(model.state_dict())
    guard.save()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    change(model)
    guard.restore()
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]), name


def test_a_buffer_that_two_modules_share_stays_shared():
    model = nn.ModuleList([Running(), nn.Module()])
    model[1].register_buffer("borrowed", model[0].mean)
    guard = BufferGuard(model)
    guard.save()
    model[0].mean.fill_(7.0)
    assert model[1].borrowed.tolist() == [[7.0] * 3] * 2
    guard.restore()
    assert model[1].borrowed.tolist() == model[0].mean.tolist() == torch.arange(6.0).view(2, 3).tolist()
