"""Schedules against torch's own schedulers, step by step."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR

from kiln.optim.schedules import cosine, set_rates, with_warmup

BASE = 0.3


def rates_of(make_scheduler, steps):
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=BASE)
    scheduler = make_scheduler(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def ours(factor, steps):
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=BASE)
    return [set_rates(optimizer, factor(step)) for step in range(steps)]


@pytest.mark.parametrize("total", [2, 10, 101, 1000])
@pytest.mark.parametrize("low", [0.0, 0.01, 0.5])
def test_cosine(total, low):
    theirs = rates_of(lambda o: CosineAnnealingLR(o, T_max=total - 1, eta_min=low * BASE), total)
    assert ours(cosine(total, min_fraction=low), total) == pytest.approx(theirs, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("total", "warmup"), [(40, 10), (100, 5), (1000, 100)])
def test_linear_warmup_then_cosine(total, warmup):
    """Torch's two schedulers meet in the last step of the warmup, which is the first of the cosine."""
    rising = rates_of(lambda o: LinearLR(o, start_factor=1 / warmup, total_iters=warmup - 1), warmup)
    falling = rates_of(lambda o: CosineAnnealingLR(o, T_max=total - warmup, eta_min=0.01 * BASE), total - warmup + 1)
    assert rising[-1] == pytest.approx(falling[0])
    factor = with_warmup(cosine, total, warmup_steps=warmup, min_fraction=0.01)
    assert ours(factor, total) == pytest.approx(rising + falling[1:], rel=1e-9, abs=1e-12)
