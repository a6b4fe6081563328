"""Optimizers and averages against torch's plain ones, fused kernels against loops over single tensors."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from kiln.optim.averages import Ema
from kiln.optim.groups import parameter_groups
from kiln.optim.optimizers import adamw, sgd
from kiln.optim.schedules import cosine, set_rates

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 3)).to(dtype)


def data(step, dtype):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 6, generator=generator).to(dtype), torch.arange(8) % 3


def plain_groups(model, weight_decay):
    """No decay on biases and norms, written out by name."""
    plain = [parameter for name, parameter in model.named_parameters() if name in ("0.weight", "3.weight")]
    rest = [parameter for name, parameter in model.named_parameters() if name not in ("0.weight", "3.weight")]
    return [{"params": plain, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


PAIRS = {
    "sgd": (
        lambda groups: sgd(groups, lr=0.05),
        lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True, fused=False, foreach=False),
    ),
    "sgd without nesterov": (
        lambda groups: sgd(groups, lr=0.05, momentum=0.8, nesterov=False),
        lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.8, fused=False, foreach=False),
    ),
    "sgd without momentum": (
        lambda groups: sgd(groups, lr=0.05, momentum=0.0),
        lambda groups: torch.optim.SGD(groups, lr=0.05, fused=False, foreach=False),
    ),
    "adamw": (
        lambda groups: adamw(groups, lr=0.01),
        lambda groups: torch.optim.AdamW(groups, lr=0.01, fused=False, foreach=False),
    ),
    "adamw with other settings": (
        lambda groups: adamw(groups, lr=0.01, betas=(0.8, 0.95), eps=1e-6),
        lambda groups: torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.95), eps=1e-6, fused=False, foreach=False),
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", PAIRS)
def test_thirty_steps_with_a_schedule_and_decay_groups(name, dtype):
    make, make_plain = PAIRS[name]
    model = network(dtype)
    reference = copy.deepcopy(model)
    optimizer = make(parameter_groups(model, lr=0.05 if name.startswith("sgd") else 0.01, weight_decay=0.1))
    plain = make_plain(plain_groups(reference, weight_decay=0.1))
    base, factor = plain.param_groups[0]["lr"], cosine(30, min_fraction=0.1)
    for step in range(30):
        images, labels = data(step, dtype)
        set_rates(optimizer, factor(step))
        for group in plain.param_groups:
            group["lr"] = base * factor(step)
        for net, opt in ((model, optimizer), (reference, plain)):
            opt.zero_grad()
            F.cross_entropy(net(images), labels).backward()
            opt.step()
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=TOLERANCE[dtype])
    assert not torch.allclose(model[0].weight, network(dtype)[0].weight, atol=1e-2)


def test_averages_follow_torchs_averaged_model_with_our_decay():
    model = network(torch.float64)
    ours = Ema(model, decay=0.9)
    decay = 0.0
    theirs = AveragedModel(copy.deepcopy(model), avg_fn=lambda old, new, _: decay * old + (1 - decay) * new)
    theirs.n_averaged.fill_(1)  # at its first update torch's would only copy
    for step in range(20):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step)))
        decay = min(0.9, (1 + step) / (10 + step))
        ours.update()
        theirs.update_parameters(model)
    for mine, other in zip(ours.module.parameters(), theirs.module.parameters(), strict=True):
        assert torch.allclose(mine, other, rtol=0, atol=1e-12)
