"""Several processes do what one does: the same gradients, the same skips, the same stop. Over gloo, on this machine."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from forks import together
from small_training import make_state, make_step, pictures

from kiln.batch import Batch
from kiln.engine.fit import fit
from kiln.engine.strategy import DataParallel, Single
from kiln.events import EpochDone, Skipped, StepDone, Stopped

pytestmark = pytest.mark.ddp
CPU = torch.device("cpu")


class Share:
    """One rank's part of each batch of `size`, as the training loader cuts it; a row of no weight where there is none."""

    def __init__(self, inputs, targets, size, strategy):
        self.inputs, self.targets, self.size, self.strategy = inputs, targets, size, strategy

    def __len__(self):
        return (len(self.inputs) + self.size - 1) // self.size

    def at(self, step):
        start = step % len(self) * self.size
        whole = np.arange(start, min(start + self.size, len(self.inputs)))
        rank, world_size = self.strategy.rank, self.strategy.world_size
        mine = whole[len(whole) * rank // world_size : len(whole) * (rank + 1) // world_size]
        rows, weights = (mine, None) if len(mine) else (np.zeros(1, int), torch.zeros(1))
        total = float(len(whole)) if world_size > 1 else None
        return Batch(self.inputs[rows], self.targets[rows], indices=mine + 100, weights=weights, total=total)

    def from_step(self, step):
        while True:
            yield self.at(step)
            step += 1


def train(tiny_model, strategy, *, dtype=torch.float32, poison=None, num=13, size=5, steps=6, micro=None, stop_at=None):
    images, labels = pictures(num)
    images = images.to(dtype)
    if poison is not None:
        images[poison] = float("nan")
    batches = Share(images, labels, size, strategy)
    state = make_state(tiny_model(drop=0.0, norm=False).to(dtype), opt="sgd", lr=0.1, ema=0.9)
    step = make_step(strategy=strategy, micro_batch_size=micro, clip=5.0)

    def warm_up(wrapped):
        state.forward = wrapped
        step.rehearse(state, batches.at(0))

    state.forward = strategy.prepare(state.model, warm_up)
    events = []
    for event in fit(state, step, batches, total_steps=steps):
        events.append(event)
        if isinstance(event, StepDone) and (strategy.rank, event.step) == (1, stop_at):
            state.request_stop("SIGTERM")
    return {
        "losses": [float(e.loss) for e in events if isinstance(e, StepDone)],
        "means": [e.train_loss for e in events if isinstance(e, EpochDone)],
        "skipped": [[e.step, *e.indices] for e in events if isinstance(e, Skipped)],
        "stopped": [[e.step, e.reason] for e in events if isinstance(e, Stopped)],
        "weights": torch.cat([p.detach().double().reshape(-1) for p in state.model.parameters()]).tolist(),
        "ema": torch.cat([p.detach().double().reshape(-1) for p in state.average.module.parameters()]).tolist(),
    }


def in_processes(tiny_model, num_processes=2, **options):
    def work(rank):
        torch.set_num_threads(1)
        strategy = DataParallel(CPU, timeout_seconds=60)
        told = train(tiny_model, strategy, **options)
        strategy.close()
        return json.dumps(told)

    results = together(work, num_processes=num_processes)
    assert [status for status, _ in results] == [0] * num_processes, results
    return [json.loads(text) for _, text in results]


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (torch.float32, {}),  # batches of 5, 5 and 3, cut 2 + 3 and 1 + 2
        (torch.float64, {"micro": 2}),
        (torch.float64, {"num": 11, "size": 5}),  # a last batch of one sample: one process has nothing
    ],
)
def test_two_processes_equal_one(tiny_model, dtype, options):
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    alone = train(tiny_model, Single(), dtype=dtype, **options)
    first, second = in_processes(tiny_model, dtype=dtype, **options)
    assert first == second
    for name in ("losses", "means", "weights", "ema"):
        assert first[name] == pytest.approx(alone[name], rel=0, abs=tolerance), name
    assert len(alone["means"]) == 2


def test_a_bad_sample_on_one_process_skips_the_step_on_all_and_all_name_it(tiny_model):
    alone = train(tiny_model, Single(), poison=8)
    first, second = in_processes(tiny_model, poison=8)
    assert first["skipped"] == second["skipped"] == alone["skipped"] == [[2, 108], [5, 108]]
    assert first["weights"] == second["weights"] == pytest.approx(alone["weights"], rel=0, abs=1e-6)
    assert first["ema"] == pytest.approx(alone["ema"], rel=0, abs=1e-6)


def test_a_stop_that_one_process_wishes_is_heeded_by_all_at_the_same_step(tiny_model):
    first, second = in_processes(tiny_model, stop_at=2, steps=50)
    assert first["stopped"] == [[3, "another process asked to stop"]]
    assert second["stopped"] == [[3, "SIGTERM"]]
    assert first["weights"] == second["weights"]


def test_values_are_gathered_in_the_order_of_ranks_and_a_lost_process_is_an_error():
    def work(rank):
        strategy = DataParallel(CPU, timeout_seconds=20)
        told = [strategy.gather({"rank": rank}), strategy.sum_(torch.tensor([1.0, rank])).tolist()]
        if rank == 1:
            return told  # leaves without a word
        from kiln.errors import DistributedError

        with pytest.raises(DistributedError, match="rank 0 cannot reach the others") as caught:
            strategy.gather("are you there?")
        return [told, caught.value.code, caught.value.exit_code]

    (first, text), (second, other) = together(work)
    assert (first, second) == (0, 0), (text, other)
    assert other == "[[{'rank': 0}, {'rank': 1}], [2.0, 1.0]]"
    assert text == f"[{other}, 'E501', 6]"


def test_one_process_alone_needs_no_group():
    single = Single()
    tensor = torch.ones(2)
    assert (single.rank, single.world_size) == (0, 1)
    assert single.gather("x") == ["x"]
    assert single.sum_(tensor) is tensor
    model = torch.nn.Linear(1, 1)
    assert single.prepare(model, None) is model
    with single.synchronising(False):
        pass
    single.close()
