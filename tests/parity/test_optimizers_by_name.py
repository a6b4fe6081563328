"""Every optimizer, SAM and clipping through the step, against torch's and timm's own objects in a plain loop."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import timm.optim
import torch
from timm.optim import create_optimizer_v2, list_optimizers, param_groups_layer_decay
from timm.utils import adaptive_clip_grad
from torch import nn
from torch.nn import functional as F

from kiln.batch import Batch
from kiln.engine.state import State
from kiln.engine.step import Step
from kiln.engine.supervised import supervised
from kiln.losses import CrossEntropy
from kiln.optim.clipping import ClipAdaptive, ClipNorm, ClipValue
from kiln.optim.groups import parameter_groups
from kiln.optim.optimizers import create_optimizer
from kiln.optim.sam import SharpnessAware

STEPS = 8
LEFT_OUT = ("bnb", "fused", "adahessian", "kron")  # other packages, second derivatives, compiled


def network(dtype=torch.float64, *, batch_norm=False) -> Any:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(6) if batch_norm else nn.GroupNorm(2, 6)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), norm, nn.Tanh(), nn.Flatten(), nn.Linear(96, 3)).to(dtype)


def batch(step, dtype=torch.float64, num=8):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(num, 3, 4, 4, generator=generator).to(dtype), torch.arange(num) % 3


def plain_groups(model, decay):
    """No decay on biases and norms, written out."""
    decayed = [model[0].weight, model[4].weight]
    rest = [model[0].bias, model[1].weight, model[1].bias, model[4].bias]
    return [{"params": decayed, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]


def through_the_step(model, optimizer, *, micro=None, dtype=torch.float64, **settings):
    state = State(model.train(), optimizer)
    step = Step(supervised(CrossEntropy()), micro_batch_size=micro, **settings)
    losses = []
    for number in range(STEPS):
        state.step = number
        losses.append(float(step(state, Batch(*batch(number, dtype))).loss))
    return losses


def plain_loop(model, optimizer, *, dtype=torch.float64, between=None, steps=STEPS):
    losses = []
    for number in range(steps):
        images, labels = batch(number, dtype)
        optimizer.zero_grad()
        loss = F.cross_entropy(model.train()(images), labels)
        loss.backward()
        if between is not None:
            between(model)
        optimizer.step()
        losses.append(loss.item())
    return losses


def assert_same(ours, theirs, *, atol=1e-12):
    for mine, other in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert torch.allclose(mine.double(), other.double(), rtol=0, atol=atol)
    moved = (ours[0].weight - network()[0].weight.to(ours[0].weight)).abs().max()
    assert moved > 1e-5


TORCHS = {
    "sgd": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}, {}),
    "sgd, heavy ball": (torch.optim.SGD, {"momentum": 0.8}, {"momentum": 0.8, "nesterov": False}),
    "sgd, plain": (torch.optim.SGD, {}, {"momentum": 0.0}),
    "sgd, damped": (torch.optim.SGD, {"momentum": 0.9, "dampening": 0.5}, {"dampening": 0.5, "nesterov": False}),
    "adam": (torch.optim.Adam, {}, {}),
    "adam, amsgrad": (torch.optim.Adam, {"amsgrad": True}, {"amsgrad": True}),
    "adamw": (torch.optim.AdamW, {"betas": (0.8, 0.9)}, {"betas": (0.8, 0.9)}),
    "nadam": (torch.optim.NAdam, {}, {}),
    "radam": (torch.optim.RAdam, {}, {}),
    "adamax": (torch.optim.Adamax, {}, {}),
    "adafactor": (torch.optim.Adafactor, {}, {}),
    "adagrad": (torch.optim.Adagrad, {}, {}),
    "adadelta": (torch.optim.Adadelta, {}, {}),
    "rmsprop": (torch.optim.RMSprop, {"momentum": 0.5, "centered": True}, {"momentum": 0.5, "centered": True}),
    "asgd": (torch.optim.ASGD, {"t0": 3}, {"t0": 3}),
    "rprop": (torch.optim.Rprop, {}, {}),
}


@pytest.mark.parametrize("case", TORCHS)
def test_torchs_optimizers(case):
    kind, theirs, ours = TORCHS[case]
    decay, lr = (0.0 if case == "rprop" else 0.1), 0.02
    model = network()
    reference = copy.deepcopy(model)
    groups = parameter_groups(model, lr=lr, weight_decay=decay)
    losses = through_the_step(model, create_optimizer(case.partition(",")[0], groups, lr=lr, **ours), micro=3)
    mine = [*reference.parameters()] if case == "rprop" else plain_groups(reference, decay)
    assert losses == pytest.approx(plain_loop(reference, kind(mine, lr=lr, foreach=False, **theirs)), abs=1e-10)
    assert_same(model, reference)


@pytest.mark.parametrize("name", [name for name in map(str, list_optimizers()) if not name.startswith(LEFT_OUT)])
def test_timms_optimizers_are_as_timms_own_factory_makes_them(name):
    model = network(torch.float32)
    reference = copy.deepcopy(model)
    groups = parameter_groups(model, lr=0.02, weight_decay=0.1)
    losses = through_the_step(model, create_optimizer(f"timm/{name}", groups, lr=0.02), dtype=torch.float32)
    theirs = create_optimizer_v2(plain_groups(reference, 0.1), name, lr=0.02)
    assert losses == pytest.approx(plain_loop(reference, theirs, dtype=torch.float32), abs=1e-4)
    assert_same(model, reference, atol=2e-4)


@pytest.mark.parametrize(
    ("memory_format", "steps", "atol"),
    # Its bf16 sums round anew where they are in another order: compared bit for bit, or after one step.
    [(torch.contiguous_format, STEPS, 0.0), (torch.channels_last, 1, 1e-3)],
)
def test_muon_is_torchs_on_flattened_kernels_and_adamw_on_the_rest(memory_format, steps, atol):
    model = network(torch.float32).to(memory_format=memory_format)
    reference = network(torch.float32)
    groups = parameter_groups(model, lr=0.02, weight_decay=0.1)
    optimizer = create_optimizer("muon", groups, lr=0.02, not_hidden=("4",))
    assert {g["algorithm"]: g["names"] for g in optimizer.param_groups if g["weight_decay"]} == {
        "muon": ["0.weight"],
        "adamw": ["4.weight"],
    }
    losses = plain_loop(model, optimizer, dtype=torch.float32, steps=steps)

    kernel = reference[0].weight
    flat = nn.Parameter(kernel.detach().view(6, 27))  # shares the kernel's memory
    muon = torch.optim.Muon([flat], lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    decayed, rest = plain_groups(reference, 0.1)
    decayed["params"] = decayed["params"][1:]
    adamw = torch.optim.AdamW([decayed, rest], lr=0.02)

    def step_muon(_):
        flat.grad, kernel.grad = kernel.grad.reshape(6, 27), None
        muon.step()

    told = plain_loop(reference, adamw, dtype=torch.float32, between=step_muon, steps=steps)
    assert losses == pytest.approx(told, abs=1e-6)
    assert_same(model, reference, atol=atol)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("line_search", ["strong_wolfe", None])
def test_lbfgs_follows_torchs_with_a_closure(line_search, memory_format):
    model = network(batch_norm=True).to(memory_format=memory_format)
    reference = network(batch_norm=True)
    options = {"max_iter": 5, "history_size": 4, "line_search_fn": line_search}
    groups = parameter_groups(model, lr=0.5, weight_decay=0.0)
    losses = through_the_step(model, create_optimizer("lbfgs", groups, lr=0.5, **options), micro=None)
    theirs = torch.optim.LBFGS(reference.train().parameters(), lr=0.5, **options)
    told = []
    for number in range(STEPS):
        images, labels = batch(number)
        evaluations, kept = [], {}  # running statistics move once a step: those after the first evaluation

        def closure(images=images, labels=labels, evaluations=evaluations, kept=kept):
            theirs.zero_grad()
            loss = F.cross_entropy(reference(images), labels)
            loss.backward()
            evaluations.append(loss.item())
            if not kept:
                kept.update({name: buffer.clone() for name, buffer in reference.named_buffers()})
            return loss

        theirs.step(closure)
        for name, buffer in reference.named_buffers():
            buffer.copy_(kept[name])
        told.append(evaluations[0])
    assert losses == pytest.approx(told, abs=1e-8)
    assert_same(model, reference, atol=1e-7)


def simple_sam(model, images, labels, optimizer, *, rho, adaptive):
    """SAM as the papers' formulas say it, one parameter after another; statistics from the first pass."""
    loss = F.cross_entropy(model(images), labels)
    loss.backward()
    buffers = [buffer.clone() for buffer in model.buffers()]
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    sizes = [p.detach().abs() + 0.01 if adaptive else torch.ones_like(p) for p in model.parameters()]
    pairs = list(zip(model.parameters(), sizes, strict=True))
    norm = sum(((t * p.grad) ** 2).sum() for p, t in pairs if p.grad is not None) ** 0.5
    with torch.no_grad():
        for parameter, size in pairs:
            if parameter.grad is not None:
                parameter.add_(rho * size**2 * parameter.grad / norm)
    optimizer.zero_grad()
    F.cross_entropy(model(images), labels).backward()
    with torch.no_grad():
        for parameter, weight in zip(model.parameters(), weights, strict=True):
            parameter.copy_(weight)
        for buffer, kept in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(kept)
    return loss.item()


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize(("micro", "batch_norm"), [(None, False), (None, True), (3, False), (1, False)])
def test_sam_is_two_passes_over_the_whole_batch(adaptive, micro, batch_norm):
    """Also in micro-batches: the ascent follows the gradient of the whole batch, not of each cut."""
    model = network(batch_norm=batch_norm)
    model[1].weight.requires_grad_(False)
    reference = copy.deepcopy(model).train()
    frozen = model[1].weight.clone()
    rho = 0.5 if adaptive else 0.1
    groups = parameter_groups(model, lr=0.05, weight_decay=0.0)
    sam = SharpnessAware(rho, adaptive=adaptive)
    losses = through_the_step(model, create_optimizer("sgd", groups, lr=0.05), micro=micro, sam=sam)
    theirs = torch.optim.SGD(reference.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    told = []
    for number in range(STEPS):
        theirs.zero_grad()
        told.append(simple_sam(reference, *batch(number), theirs, rho=rho, adaptive=adaptive))
        theirs.step()
    assert losses == pytest.approx(told, abs=1e-10)
    assert_same(model, reference)
    assert torch.equal(model[1].weight, frozen)
    plain = network(batch_norm=batch_norm)
    plain_loop(plain, torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9, nesterov=True))
    assert (plain[0].weight - model[0].weight).abs().max() > 1e-4  # it is not plain descent


def clips():
    def by_timm(model):
        adaptive_clip_grad(list(model.parameters())[:-2], 0.02)  # all but the head

    return {
        "norm": (lambda model: ClipNorm(0.1), lambda m: torch.nn.utils.clip_grad_norm_(m.parameters(), 0.1)),
        "value": (lambda model: ClipValue(0.01), lambda m: torch.nn.utils.clip_grad_value_(m.parameters(), 0.01)),
        "adaptive": (lambda model: ClipAdaptive(0.02, except_for=[*model[4].parameters()]), by_timm),
    }


@pytest.mark.parametrize("micro", [None, 3])
@pytest.mark.parametrize("kind", clips())
def test_clipping_sees_the_mean_gradient_of_the_whole_batch(kind, micro):
    make, plain = clips()[kind]
    model = network()
    reference, free = copy.deepcopy(model), copy.deepcopy(model)
    groups = parameter_groups(model, lr=0.5, weight_decay=0.0)
    through_the_step(model, create_optimizer("sgd", groups, lr=0.5), micro=micro, clip=make(model))
    for net, between in ((reference, plain), (free, None)):
        plain_loop(net, torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9, nesterov=True), between=between)
    assert_same(model, reference)
    assert (free[0].weight - model[0].weight).abs().max() > 1e-3  # it did clip


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "convnext_atto", "swin_tiny_patch4_window7_224"])
def test_layer_decay_and_exemptions_are_timms(name):
    model: Any = timm.create_model(name, num_classes=3)
    exempt = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    ours = parameter_groups(model, lr=1e-3, weight_decay=0.05, layer_decay=0.75)
    theirs = param_groups_layer_decay(model, 0.05, exempt, layer_decay=0.75)
    mine = {p: (group["lr"], group["weight_decay"]) for group in ours for p in group["params"]}
    other = {p: (1e-3 * group["lr_scale"], group["weight_decay"]) for group in theirs for p in group["params"]}
    assert len(ours) == len(theirs) > 10
    assert all(mine[p] == pytest.approx(other[p], rel=1e-12) for p in model.parameters())
