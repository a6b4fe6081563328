"""In which numbers is computed: fp16's scale beside torch's, islands of fp32, tf32 where it is, custom operations."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from itertools import pairwise

import pytest
import torch
from small_training import Batches, differing, frozen, largest_gap, make_state, make_step, pictures
from torch import nn
from torch.nn import functional as F

from kiln.batch import Batch
from kiln.engine.fit import OVERFLOW, fit
from kiln.engine.precision import (
    _fp32_as,
    autocast,
    fastest_precision,
    keep_fp32_,
    multiplying_fp32,
    require_precision,
)
from kiln.engine.scaler import LossScaler
from kiln.engine.step import Step
from kiln.errors import ArtifactError, NumericError, UsageError
from kiln.events import Skipped, StepDone
from kiln.losses import LossTerms
from kiln.optim.groups import parameter_groups
from kiln.optim.sam import SharpnessAware

CPU = torch.device("cpu")


# The loss scale.


@pytest.mark.parametrize("growth_interval", [2, 3])
def test_parity_of_the_scale_with_torchs_over_a_sequence_with_infs(growth_interval):
    """Growth, backoff, the interval that begins anew, and a state that is read back in the middle."""
    options = {"growth_factor": 2.0, "backoff_factor": 0.5}
    theirs = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=growth_interval, **options)
    ours = LossScaler(initial_scale=64.0, growth_interval_steps=growth_interval, **options)
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    infs = [0, 0, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0]
    scales = []
    for number, bad in enumerate(infs):
        theirs.scale((weight * (float("inf") if bad else 1.0)).sum()).backward()
        theirs.step(optimizer)
        theirs.update()
        optimizer.zero_grad()
        ours.update(torch.tensor(float(bad)), torch.tensor(float(bad)))
        assert float(ours.scale) == theirs.get_scale()
        assert float(ours.inverse()) == 1 / theirs.get_scale()
        assert ours.state()["growth_tracker"] == theirs.state_dict()["_growth_tracker"]
        scales.append(float(ours.scale))
        if number == 9:
            again = LossScaler(initial_scale=1.0, growth_interval_steps=growth_interval, **options)
            again.load_state(ours.state())
            ours = again
    assert ours.num_overflows == sum(infs)
    steps = [after / before for before, after in pairwise(scales)]
    assert {0.5, 1.0, 2.0} == set(steps)  # it backed off, waited and grew


class Amplify(torch.autograd.Function):
    """Passes values on and multiplies gradients: an overflow of half precision where and when a test wants one."""

    @staticmethod
    def forward(ctx, values, factor):
        ctx.factor = factor
        return values.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.factor, None


def amplified(factors):
    """A `forward_loss` whose gradient is multiplied by factors[step]."""

    def forward_loss(state, batch):
        values = F.cross_entropy(state.forward(batch.images), batch.targets, reduction="none")
        return LossTerms(Amplify.apply(values.float(), factors.get(state.step, 1.0)), None)

    return forward_loss


def test_parity_of_training_with_torchs_scaler_and_clipping_after_unscaling(tiny_model):
    """The plain loop of torch's documentation, with an overflow at steps 2 and 5."""
    factors = {2: float("inf"), 5: float("inf")}
    batches = Batches(*pictures(24), 8)
    model = tiny_model(drop=0.0, norm=False)
    reference = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(parameter_groups(reference, lr=0.01, weight_decay=0.01), lr=0.01, fused=True)
    scaler = torch.amp.GradScaler("cpu")
    norms = []
    for number in range(9):
        batch = batches.at(number)
        with torch.autocast("cpu", dtype=torch.float16):
            values = F.cross_entropy(reference(batch.images), batch.targets, reduction="none")
        loss = Amplify.apply(values.float(), factors.get(number, 1.0)).mean()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norms.append(float(torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.5)))
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    state = make_state(model)
    step = Step(amplified(factors), precision="fp16", clip=0.5)
    events = list(fit(state, step, batches, total_steps=9))
    assert largest_gap(model, reference) < 1e-5
    assert largest_gap(model, tiny_model(drop=0.0, norm=False)) > 1e-2
    assert float(step.scaler.scale) == scaler.get_scale() == 65536 / 4
    assert [event.step for event in events if isinstance(event, Skipped)] == [3, 6]
    assert sum(norm > 0.5 for norm in norms if norm < 1e9) >= 3  # clipping did bite, at its own scale


def test_an_overflow_is_counted_apart_from_bad_batches_and_moves_nothing(tiny_model):
    state = make_state(tiny_model(), ema=0.9)
    step = Step(amplified({1: float("inf")}), precision="fp16")
    batches = Batches(*pictures(), 5)
    for _ in fit(state, step, batches, total_steps=1):
        pass
    before = frozen(state)
    events = list(fit(state, step, batches, total_steps=2))
    assert Skipped(2, OVERFLOW) in events
    changed = differing(before, frozen(state))
    assert {name.rpartition("/")[0] for name in changed} == {"parts/scaler"}
    assert (step.scaler.num_overflows, state.skipped, state.log) == (1, 0, [])

    batches.inputs[0] = float("nan")  # now a bad sample, which is the guard's
    state, step = make_state(tiny_model()), Step(amplified({}), precision="fp16")
    events = list(fit(state, step, batches, total_steps=1))
    assert [event.reason for event in events if isinstance(event, Skipped)] == ["the loss or a gradient is not finite"]
    assert (step.scaler.num_overflows, state.skipped) == (0, 1)


def test_an_overflow_before_a_sharpness_aware_step_is_the_scales_too(tiny_model):
    """The second evaluation stands on weights that the overflow spoilt: its loss is no fault of the batch."""
    state = make_state(tiny_model())
    step = Step(amplified({1: float("inf")}), precision="fp16", sam=SharpnessAware(rho=0.05))
    events = list(fit(state, step, Batches(*pictures(), 5), total_steps=3))
    assert [event for event in events if isinstance(event, Skipped)] == [Skipped(2, OVERFLOW)]
    assert (step.scaler.num_overflows, state.skipped) == (1, 0)
    assert all(torch.isfinite(tensor).all() for tensor in state.model.state_dict().values())


def test_gradients_that_never_become_finite_end_the_training(tiny_model):
    """Not one overflow after the other for ever: at a scale of 1 the scale is not to blame."""
    factors = dict.fromkeys(range(100), float("inf"))
    state, step = make_state(tiny_model()), Step(amplified(factors), precision="fp16")
    with pytest.raises(NumericError, match="4 steps in a row"):
        list(fit(state, step, Batches(*pictures(), 5), total_steps=100))
    assert step.scaler.num_overflows == 16  # from 65536 down to 1
    assert state.step == 20


def test_small_gradients_survive_fp16_by_the_scale_alone():
    """Below fp16's smallest number they would all be 0."""
    model = nn.Linear(4, 1, bias=False)
    before = model.weight.detach().clone()

    def tiny_loss(state, batch):
        return LossTerms((state.forward(batch.images)[:, 0].float() * 1e-7), None)

    images = torch.full((4, 4), 0.1)
    with torch.autocast("cpu", dtype=torch.float16):
        (model(images)[:, 0].float() * 1e-7).mean().backward()
    assert model.weight.grad.abs().max() == 0
    state = make_state(model, opt="sgd", lr=1e6, momentum=0.0, nesterov=False)
    state.optimizer.param_groups[0]["weight_decay"] = 0.0
    Step(tiny_loss, precision="fp16")(state, Batch(images, torch.zeros(4)))
    assert torch.allclose(before - model.weight, torch.full((1, 4), 1e6 * 1e-8), rtol=1e-2)


@pytest.mark.parametrize("cut", [1, 3, 4])
def test_a_resumed_fp16_training_ends_the_same_bit_for_bit(tiny_model, cut):
    factors = {2: float("inf")}
    ends = []
    for stops in ([6], [cut, 6]):
        state, step = make_state(tiny_model(), ema=0.9), Step(amplified(factors), precision="fp16", micro_batch_size=3)
        tree = None
        for stop in stops:
            if tree is not None:
                state, step = make_state(tiny_model(seed=9), ema=0.9), Step(amplified(factors), precision="fp16")
                step.micro_batch_size = 3
                state.parts["scaler"] = step.scaler
                state.load_state(tree)
            for _ in fit(state, step, Batches(*pictures(), 5), total_steps=stop):
                pass
            tree = copy.deepcopy(state.state())
        ends.append(frozen(state))
    assert differing(*ends) == []
    assert ends[0]["parts/scaler/scale"] == 65536 / 2


def test_trap_an_fp16_checkpoint_is_neither_written_nor_read_without_its_scale(tiny_model):
    state = make_state(tiny_model())
    for _ in fit(state, make_step(precision="fp16"), Batches(*pictures(), 5), total_steps=1):
        pass
    tree = copy.deepcopy(state.state())
    assert set(tree["parts"]["scaler"]) == {"scale", "growth_tracker", "num_overflows"}
    with pytest.raises(ArtifactError, match="scaler"):
        make_state(tiny_model()).load_state(tree)


def test_fp16_with_an_optimizer_that_compares_losses_is_an_error(tiny_model):
    state = make_state(tiny_model())
    state.optimizer = torch.optim.LBFGS(state.model.parameters())
    with pytest.raises(UsageError, match=r"(?s)precision = 'fp16' with .*LBFGS.*bf16 or fp32"):
        make_step(precision="fp16")(state, Batch(*pictures(4)))


# What fits where.


def test_tf32_is_refused_where_it_has_no_effect():
    with pytest.raises(UsageError, match=r"(?s)precision = 'tf32' has no effect on cpu.*expected.*fp32"):
        require_precision("tf32", CPU)
    with pytest.raises(UsageError, match="'tf32' has no effect on mps"):
        autocast("tf32", torch.device("mps"))


@pytest.mark.parametrize(("precision", "chosen"), [("fp32", "ieee"), ("tf32", "tf32")])
def test_what_cuda_multiplies_fp32_with_is_chosen_and_put_back(precision, chosen):
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    before = [switch.fp32_precision for switch in switches]
    with multiplying_fp32(precision, torch.device("cuda"))():
        assert [switch.fp32_precision for switch in switches] == [chosen, chosen]
        with pytest.raises(RuntimeError, match="told"), _fp32_as("tf32"):
            raise RuntimeError("told")
        assert [switch.fp32_precision for switch in switches] == [chosen, chosen]
    assert [switch.fp32_precision for switch in switches] == before
    assert multiplying_fp32(precision, CPU) is nullcontext
    assert multiplying_fp32("bf16", torch.device("cuda")) is nullcontext


def test_the_cpus_own_precision_is_bf16_with_amx_or_avx512_bf16_alone(monkeypatch):
    for capabilities, expected in (
        ({"avx512_bf16": True}, "bf16"),
        ({"amx_bf16": True, "avx512_bf16": False}, "bf16"),
        ({"avx512_f": True, "amx_bf16": False}, "fp32"),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda capabilities=capabilities: capabilities)
        assert fastest_precision(CPU)[0] == expected


# Islands of fp32.


class Spy(nn.Module):
    """Notes in which numbers its inputs come and its product is."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.seen = []

    def forward(self, x, *, gate=None):
        out = self.inner(x)
        self.seen.append((x.dtype, out.dtype, None if gate is None else gate.dtype))
        return out


class Three(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = Spy(), Spy(), Spy()

    def forward(self, x):
        return self.last(self.norm(self.first(x), gate=self.first.inner(x)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_island_computes_in_fp32_and_the_rest_does_not(dtype):
    model = Three()
    assert keep_fp32_(model, ("n*", "norm.inner")) == ("norm",)
    copied = copy.deepcopy(model)
    for one in (model, copied):
        with torch.autocast("cpu", dtype=dtype):
            one(torch.randn(2, 4)).float().sum().backward()
        assert one.norm.seen == [(torch.float32, torch.float32, torch.float32)]
        assert one.first.seen == [(torch.float32, dtype, None)]
        assert one.last.seen == [(torch.float32, dtype, None)]
        assert one.norm.inner.weight.grad.dtype == torch.float32
    half = torch.randn(2, 4)
    assert torch.equal(model.norm(half), F.linear(half, model.norm.inner.weight, model.norm.inner.bias))


def test_an_island_is_left_when_its_forward_fails():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(3, 3))
    keep_fp32_(model, ("1",))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with pytest.raises(RuntimeError, match="shapes"):
            model(torch.ones(2, 4))
        assert torch.is_autocast_enabled("cpu")
        assert model[0](torch.ones(2, 4)).dtype == torch.bfloat16


def test_a_pattern_that_names_nothing_is_an_error():
    with pytest.raises(UsageError, match=r"(?s)'nrm' names no module.*norm"):
        keep_fp32_(Three(), ("nrm",))


def test_islands_bring_bf16_nearer_to_fp32(tiny_model):
    """All islands is fp32 itself."""
    images, labels = pictures(8)
    gaps = {}
    for patterns in ((), ("0",), ("0", "6")):
        model = tiny_model(drop=0.0)
        reference = copy.deepcopy(model)
        if patterns:
            keep_fp32_(model, patterns)
        make_step()(make_state(reference, opt="sgd"), Batch(images, labels))
        make_step(precision="bf16")(make_state(model, opt="sgd"), Batch(images, labels))
        gaps[patterns] = largest_gap(model, reference)
    assert gaps[()] > gaps[("0",)] > gaps[("0", "6")] == 0


# Custom operations that want fp32.


class FineSquare(torch.autograd.Function):
    """An operation that is only right in fp32: torch casts its inputs and turns autocast off inside."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(ctx, x):
        assert x.dtype == torch.float32
        assert not torch.is_autocast_enabled("cpu")
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx, gradient):
        assert gradient.dtype == torch.float32
        (x,) = ctx.saved_tensors
        return 2 * x * gradient


@torch.library.custom_op("kiln_tests::fine_square", mutates_args=())
def fine_square(x: torch.Tensor) -> torch.Tensor:
    assert x.dtype == torch.float32
    return x * x


fine_square.register_autograd(
    lambda ctx, gradient: 2 * ctx.saved_tensors[0] * gradient,
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0]),
)
torch.library.register_autocast(fine_square, "cpu", torch.float32)


@pytest.mark.parametrize("operation", [FineSquare.apply, fine_square])
@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_a_custom_operation_that_wants_fp32_gets_it_in_a_step(operation, precision):
    model = nn.Linear(4, 4)
    reference = copy.deepcopy(model)

    def forward_loss(state, batch):
        out = operation(state.forward(batch.images))
        assert out.dtype == torch.float32
        return LossTerms(out.mean(1), None)

    images = torch.randn(6, 4)
    for one, asked in ((model, precision), (reference, "fp32")):
        Step(forward_loss, precision=asked)(make_state(one, opt="sgd", lr=0.1), Batch(images, torch.zeros(6)))
    assert largest_gap(model, reference) < 1e-2


def test_a_trained_state_is_fp32_throughout(tiny_model):
    for precision in ("bf16", "fp16"):
        state = make_state(tiny_model(), ema=0.9)
        events = list(fit(state, make_step(precision=precision), Batches(*pictures(), 5), total_steps=3))
        floats = {name: t.dtype for name, t in frozen(state).items() if t.is_floating_point()}
        assert len(floats) > 20
        assert set(floats.values()) == {torch.float32}
        assert all(event.loss.dtype == torch.float32 for event in events if isinstance(event, StepDone))
