"""One update: the same for any cut of the batch, exact with weights, repeatable dropout, clipping, out of memory."""

from __future__ import annotations

import copy

import pytest
import torch
from small_training import Batches, differing, frozen, largest_gap, make_state, make_step, pictures
from torch import nn
from torch.nn import functional as F

from kiln.batch import Batch
from kiln.engine.fit import fit
from kiln.engine.precision import autocast
from kiln.engine.state import State
from kiln.engine.step import Step
from kiln.engine.supervised import supervised
from kiln.errors import ResourceError, UsageError
from kiln.losses import CrossEntropy, LossTerms
from kiln.optim.groups import parameter_groups

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


def plain_update(model, images, labels, *, lr=0.1, loss=None, clip=None):
    """What a hand-written loop does with a whole batch: the reference."""
    optimizer = torch.optim.SGD(parameter_groups(model, lr=lr, weight_decay=0.01), lr=lr)
    value = (loss or (lambda o, t: F.cross_entropy(o, t, label_smoothing=0.1)))(model(images), labels)
    value.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip) if clip else None
    optimizer.step()
    return value.detach(), norm


def sgd_state(model, *, lr=0.1):
    return make_state(model, opt="sgd", lr=lr, momentum=0.0, nesterov=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("micros", [1, 2, 3, 5, 13])
@pytest.mark.parametrize("num", [13, 12])
def test_accumulation_equals_the_full_batch(tiny_model, dtype, micros, num):
    """Also where the last micro-batch is smaller: 13 samples in cuts of 7+6, 5+5+3, 3+3+3+3+1."""
    images, labels = pictures(num)
    images = images.to(dtype)
    model = tiny_model(drop=0.0, norm=False).to(dtype)
    reference = copy.deepcopy(model)
    loss, _ = plain_update(reference, images, labels)
    state = sgd_state(model)
    measured = make_step(micro_batch_size=-(-num // micros))(state, Batch(images, labels))
    assert abs(float(measured.loss - loss)) < TOLERANCE[dtype]
    assert largest_gap(model, reference) < TOLERANCE[dtype]
    assert largest_gap(model, tiny_model(drop=0.0, norm=False)) > 1e-3  # it did move


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("micro", [1, 2, 4, 5])
def test_a_users_scalar_loss_counts_as_a_mean_over_samples(tiny_model, dtype, micro):
    images, labels = pictures(9)
    images = images.to(dtype)
    model = tiny_model(drop=0.0, norm=False).to(dtype)
    reference = copy.deepcopy(model)
    loss, _ = plain_update(reference, images, labels, loss=F.cross_entropy)
    step = Step(supervised(lambda outputs, targets: F.cross_entropy(outputs, targets)), micro_batch_size=micro)
    measured = step(sgd_state(model), Batch(images, labels))
    assert abs(float(measured.loss - loss)) < TOLERANCE[dtype]
    assert largest_gap(model, reference) < TOLERANCE[dtype]


@pytest.mark.parametrize("micro", [None, 1, 3, 4])
def test_class_and_sample_weights_divide_by_what_is_there(tiny_model, micro):
    images, labels = pictures(10)
    class_weights = torch.tensor([1.0, 3.0, 0.5, 0.0])
    sample_weights = torch.tensor([1.0, 1, 0, 1, 1, 1, 0, 1, 1, 1])
    model = tiny_model(drop=0.0, norm=False)
    reference = copy.deepcopy(model)

    def weighted(outputs, targets):
        weights = class_weights[targets] * sample_weights
        return (F.cross_entropy(outputs, targets, reduction="none") * weights).sum() / weights.sum()

    loss, _ = plain_update(reference, images, labels, loss=weighted)
    step = Step(supervised(CrossEntropy(class_weights=class_weights)), micro_batch_size=micro)
    measured = step(sgd_state(model), Batch(images, labels, weights=sample_weights))
    assert abs(float(measured.loss - loss)) < 1e-6
    assert largest_gap(model, reference) < 1e-6
    assert float(measured.weight) == pytest.approx(float((class_weights[labels] * sample_weights).sum()))


def test_many_steps_equal_a_plain_loop(tiny_model):
    """The whole machinery against ten lines of PyTorch, over 20 steps, with norm layers and AdamW."""
    batches = Batches(*pictures(22), 8)
    model = tiny_model(drop=0.0)
    reference = copy.deepcopy(model).train()
    optimizer = torch.optim.AdamW(parameter_groups(reference, lr=0.01, weight_decay=0.01), lr=0.01, fused=True)
    losses = []
    for number in range(20):
        batch = batches.at(number)
        optimizer.zero_grad()
        loss = F.cross_entropy(reference(batch.images), batch.targets, label_smoothing=0.1)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    state = make_state(model)
    events = [e for e in fit(state, make_step(), batches, total_steps=20) if type(e).__name__ == "StepDone"]
    assert [float(e.loss) for e in events] == pytest.approx(losses, abs=1e-6)
    assert largest_gap(model, reference) < 1e-5


def run(model, *, steps=4, **settings):
    state = make_state(model)
    for _ in fit(state, make_step(**settings), Batches(*pictures(20), 10), total_steps=steps):
        pass
    return state


def test_dropout_is_a_function_of_seed_and_step_alone(tiny_model):
    torch.manual_seed(1)
    one = run(tiny_model(), seed=4)
    torch.manual_seed(2)
    torch.rand(100)
    again = run(tiny_model(), seed=4)
    other = run(tiny_model(), seed=5)
    assert differing(frozen(one), frozen(again)) == []
    assert differing(frozen(one), frozen(other)) != []


def test_steps_and_micro_batches_draw_different_dropout():
    seen = []

    def record(state, batch):
        seen.append(torch.rand(3).tolist())
        return state.model(batch.images).sum(1)

    model = nn.Linear(2, 1)
    step = Step(record, micro_batch_size=2, seed=7)
    state = sgd_state(model, lr=0.0)
    for _ in fit(state, step, [(torch.ones(4, 2), torch.ones(4))], total_steps=300):
        pass
    assert len(seen) == 600
    assert len({tuple(row) for row in seen}) == 600


def test_trap_clipping_is_by_the_norm_of_the_whole_mean_gradient(tiny_model):
    """Neither per micro-batch, nor of the sum, nor mistaken for accumulation."""
    images, labels = pictures(12)
    for clip, bites in ((1e-3, True), (1e3, False)):
        model = tiny_model(drop=0.0, norm=False)
        reference = copy.deepcopy(model)
        _, norm = plain_update(reference, images, labels, clip=clip)
        assert bool(norm > clip) == bites
        make_step(clip=clip, micro_batch_size=5)(sgd_state(model), Batch(images, labels))
        assert largest_gap(model, reference) < 1e-6


def test_trap_gradients_do_not_leak_from_one_step_into_the_next(tiny_model):
    images, labels = pictures(8)
    model = tiny_model(drop=0.0, norm=False)
    reference = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e3)
    plain_update(reference, images, labels)
    make_step()(sgd_state(model), Batch(images, labels))
    assert largest_gap(model, reference) < 1e-6


def test_trap_a_frozen_parameter_is_moved_neither_by_decay_nor_by_momentum(tiny_model):
    model = tiny_model()
    model[0].requires_grad_(False)
    state = make_state(model, opt="sgd", lr=0.1)
    before = model[0].weight.clone()
    head = model[6].weight.detach().clone()
    for _ in fit(state, make_step(), Batches(*pictures(), 10), total_steps=5):
        pass
    assert torch.equal(model[0].weight, before)
    assert model[0].weight.grad is None
    assert not torch.equal(model[6].weight, head)


def test_bf16_follows_fp32_within_two_percent(tiny_model):
    batches = Batches(*pictures(24), 8)
    losses = {}
    for precision in ("fp32", "bf16"):
        state = make_state(tiny_model(drop=0.0))
        events = fit(state, make_step(precision=precision), batches, total_steps=20)
        losses[precision] = [float(e.loss) for e in events if type(e).__name__ == "StepDone"]
        assert all(p.dtype == torch.float32 for p in state.model.parameters())
        assert {v.dtype for s in state.optimizer.state.values() for v in s.values()} == {torch.float32}
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=2e-2)
    assert losses["bf16"] != losses["fp32"]  # it did compute in bf16


def test_an_unknown_precision_is_an_error():
    with pytest.raises(UsageError, match=r"(?s)precision = 'fp8'.*choices: fp32, tf32, bf16, fp16"):
        autocast("fp8", torch.device("cpu"))


def test_a_loss_of_an_unfit_shape_is_refused(tiny_model):
    step = Step(lambda state, batch: state.model(batch.images))
    with pytest.raises(UsageError, match=r"shape \(4, 4\) for a batch of 4"):
        step(make_state(tiny_model()), Batch(*pictures(4)))


def test_an_auxiliary_output_adds_its_weighted_loss_in_training(tiny_model):
    images, labels = pictures(6)
    both = LossTerms(*supervised(CrossEntropy())(two_heads(tiny_model), Batch(images, labels)))
    logits = two_heads(tiny_model).forward(images)
    alone = [F.cross_entropy(part, labels, reduction="none") for part in logits]
    assert torch.allclose(both.values, alone[0] + 0.4 * alone[1], atol=1e-6)


def two_heads(tiny_model):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = tiny_model(drop=0.0, norm=False), tiny_model(drop=0.0, norm=False, seed=1)

        def forward(self, images):
            return self.one(images), self.two(images)

    return make_state(Two())


# Out of memory: F08 of the reliability table.


def more_than_there_is():
    """What the CPU's allocator cannot give: a real failure."""
    torch.empty(1 << 60, dtype=torch.uint8)


def accelerator_fails():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def out_of_memory_above(limit, model, *, where="forward", fail=accelerator_fails):
    """A forward that fails for more than `limit` samples, as an accelerator would or as `fail` does; counts it."""
    fails = []

    class Greedy(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.num = len(x)
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            check(ctx.num)
            return grad

    def check(num):
        if num > limit:
            fails.append(num)
            fail()

    def forward_loss(state, batch):
        logits = model(batch.images)
        if where == "forward":
            check(len(batch))
        return CrossEntropy(smoothing=0.1)(Greedy.apply(logits), batch.targets)

    return forward_loss, fails


@pytest.mark.parametrize(
    ("where", "fail"),
    [("forward", accelerator_fails), ("backward", accelerator_fails), ("forward", more_than_there_is)],
)
@pytest.mark.parametrize(("limit", "retries"), [(8, [16]), (3, [16, 8, 4]), (1, [16, 8, 4, 2])])
def test_out_of_memory_halves_the_micro_batch_and_changes_nothing_else(tiny_model, limit, retries, where, fail):
    batches = Batches(*pictures(24), 16)  # batches of 16 and of 8
    whole = make_state(tiny_model(drop=0.0, norm=False), opt="sgd", ema=0.99)
    told = [float(e.loss) for e in fit(whole, make_step(), batches, total_steps=4) if type(e).__name__ == "StepDone"]

    model = tiny_model(drop=0.0, norm=False)
    forward_loss, fails = out_of_memory_above(limit, model, where=where, fail=fail)
    state = make_state(model, opt="sgd", ema=0.99)
    events = [e for e in fit(state, Step(forward_loss), batches, total_steps=4) if type(e).__name__ == "StepDone"]
    assert fails == retries
    assert [float(e.loss) for e in events] == pytest.approx(told, abs=1e-6)
    assert [e.num_samples for e in events] == [16, 8, 16, 8]
    assert largest_gap(state.model, whole.model) < 1e-6
    assert largest_gap(state.average.module, whole.average.module) < 1e-6
    halved = [{"step": 0, "what": "out_of_memory", "micro_batch_size": size // 2, "asked": None} for size in retries]
    assert state.log == halved
    assert state.state()["progress"]["log"] == state.log


def test_running_statistics_forget_the_pass_that_ran_out_of_memory(tiny_model):
    images, labels = pictures(8)
    halves, broken = tiny_model(drop=0.0), tiny_model(drop=0.0)
    make_step(micro_batch_size=4)(make_state(halves), Batch(images, labels))
    forward_loss, fails = out_of_memory_above(4, broken)
    Step(forward_loss)(make_state(broken), Batch(images, labels))
    assert fails == [8]
    assert differing(dict(halves.state_dict()), dict(broken.state_dict())) == []


def test_out_of_memory_with_a_single_sample_is_an_error_that_says_so(tiny_model):
    model = tiny_model()
    forward_loss, fails = out_of_memory_above(0, model)
    with pytest.raises(ResourceError, match="out of memory with one sample at a time") as caught:
        Step(forward_loss)(make_state(model), Batch(*pictures(6)))
    assert (caught.value.code, caught.value.exit_code) == ("E402", 5)
    assert fails == [6, 3, 2, 1]


def test_another_runtime_error_is_left_as_it_is(tiny_model):
    def fail():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    forward_loss, fails = out_of_memory_above(0, tiny_model(), fail=fail)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        Step(forward_loss)(make_state(tiny_model()), Batch(*pictures(6)))
    assert fails == [6]


class HungryAdam(torch.optim.AdamW):
    """Has no room for its state."""

    def step(self, closure=None):
        more_than_there_is()


def test_out_of_memory_in_the_update_says_what_takes_it(tiny_model):
    model = tiny_model()
    state = State(model, HungryAdam(model.parameters()))
    with pytest.raises(ResourceError, match="out of memory in the update of HungryAdam") as caught:
        make_step()(state, Batch(*pictures(6)))
    assert caught.value.code == "E402"
    assert "sgd" in caught.value.hint


def test_class_weights_are_exact_in_float64():
    torch.manual_seed(0)
    model = nn.Linear(5, 3).double()
    images, labels = torch.randn(8, 5, dtype=torch.float64), torch.randint(3, (8,))
    weights = torch.tensor([0.3, 1.7, 0.9], dtype=torch.float64)
    expected = torch.autograd.grad(F.cross_entropy(model(images), labels, weight=weights), model.weight)[0]
    state = sgd_state(model)
    measured = Step(supervised(CrossEntropy(class_weights=weights)), micro_batch_size=3)(state, Batch(images, labels))
    assert measured.loss.dtype == torch.float64
    assert (model.weight.grad - expected).abs().max() < 1e-15
