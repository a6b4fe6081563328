"""SAM, L-BFGS and adaptive clipping over two processes do what one process does."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from forks import together
from small_training import make_step, pictures

from kiln.batch import Batch
from kiln.engine.state import State
from kiln.engine.strategy import DataParallel, Single
from kiln.optim.clipping import ClipAdaptive
from kiln.optim.groups import parameter_groups
from kiln.optim.optimizers import create_optimizer
from kiln.optim.sam import SharpnessAware

pytestmark = pytest.mark.ddp
CPU = torch.device("cpu")


def train(tiny_model, strategy, kind, micro):
    images, labels = pictures(13)
    model = tiny_model(drop=0.0, norm=False).double().train()
    lr = 0.5 if kind == "lbfgs" else 0.1
    options = {"max_iter": 4} if kind == "lbfgs" else {}
    groups = parameter_groups(model, lr=lr, weight_decay=0.0)
    state = State(model, create_optimizer("lbfgs" if kind == "lbfgs" else "sgd", groups, lr=lr, **options))
    chosen = {"sam": {"sam": SharpnessAware(0.1)}, "asam": {"sam": SharpnessAware(0.5, adaptive=True)}}
    settings = chosen.get(kind, {}) or ({"clip": ClipAdaptive(0.02)} if kind == "adaptive" else {})
    step = make_step(strategy=strategy, micro_batch_size=micro, **settings)
    rank, world_size = strategy.rank, strategy.world_size

    def at(number):
        whole = np.arange(number * 5 % 13, min(number * 5 % 13 + 5, 13))
        mine = whole[len(whole) * rank // world_size : len(whole) * (rank + 1) // world_size]
        total = float(len(whole)) if world_size > 1 else None
        return Batch(images[mine].double(), labels[mine], indices=mine, total=total)

    def warm_up(wrapped):
        state.forward = wrapped
        step.rehearse(state, at(0))

    state.forward = strategy.prepare(model, warm_up)
    losses = []
    for state.step in range(5):
        losses.append(float(step(state, at(state.step)).loss))
    weights = torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()]).tolist()
    return {"losses": losses, "weights": weights}


@pytest.mark.parametrize(("kind", "micro"), [("sam", None), ("sam", 1), ("asam", 2), ("lbfgs", None), ("adaptive", 2)])
def test_two_processes_equal_one(tiny_model, kind, micro):
    def work(rank):
        torch.set_num_threads(1)
        strategy = DataParallel(CPU, timeout_seconds=60)
        told = train(tiny_model, strategy, kind, micro)
        strategy.close()
        return json.dumps(told)

    results = together(work, num_processes=2)
    assert [status for status, _ in results] == [0, 0], results
    first, second = (json.loads(text) for _, text in results)
    alone = train(tiny_model, Single(), kind, None)
    plain = train(tiny_model, Single(), "plain", None)
    assert first == second
    assert first["losses"] == pytest.approx(alone["losses"], rel=0, abs=1e-10)
    assert first["weights"] == pytest.approx(alone["weights"], rel=0, abs=1e-10)
    assert first["weights"] != pytest.approx(plain["weights"], rel=0, abs=1e-4)
