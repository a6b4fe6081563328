"""Two trainings are compared step by step, and the operation that parts them is named."""

from __future__ import annotations

import random

import torch
from torch import nn

from kiln.batch import Batch
from kiln.engine.state import State
from kiln.engine.step import Step
from kiln.engine.supervised import supervised
from kiln.losses import CrossEntropy
from kiln.measure.repeat import Difference, StepTrace, digest, first_difference, trace
from kiln.optim.groups import parameter_groups
from kiln.optim.optimizers import sgd


class Noise(nn.Module):
    """Randomness that no seed of ours reaches."""

    def forward(self, x):
        return x * (1 + 1e-3 * random.random())


class Batches:
    def __init__(self, noise: float = 0.0) -> None:
        self.noise = noise

    def __len__(self) -> int:
        return 10

    def __iter__(self):
        for step in range(10):
            generator = torch.Generator().manual_seed(step)
            images = torch.rand(4, 3, 6, 6, generator=generator)
            yield Batch(images=images + self.noise * (step == 3), targets=torch.arange(4) % 2)


def trained(middle: nn.Module, *, num_steps=5, batches=None, **options) -> list[StepTrace]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), middle, nn.Flatten(), nn.Linear(64, 2))
    state = State(model, sgd(parameter_groups(model, lr=0.1, weight_decay=0.01), lr=0.1))
    return list(trace(state, Step(supervised(CrossEntropy())), batches or Batches(), num_steps=num_steps, **options))


def test_same_training_has_no_difference():
    one, other = trained(nn.Dropout(0.5), operations_of=2), trained(nn.Dropout(0.5), operations_of=2)
    assert [t.step for t in one] == [1, 2, 3, 4, 5]
    assert len({t.digests["weights"] for t in one}) == 5
    assert len(one[1].operations) > 20
    assert one[0].operations == one[2].operations == ()
    assert one == other
    assert first_difference(one, other) is None


def test_recording_changes_nothing():
    plain, recorded = trained(nn.Dropout(0.5)), trained(nn.Dropout(0.5), operations_of=3)
    assert [t.digests for t in plain] == [t.digests for t in recorded]


def test_operation_that_parts_two_trainings_is_named():
    difference = first_difference(trained(Noise(), operations_of=1), trained(Noise(), operations_of=1))
    assert difference is not None
    assert difference.operation is not None
    assert (difference.step, difference.part) == (1, "loss")
    assert difference.operation.name == "aten.mul.Tensor"
    assert difference.operation.module == "2"
    assert not difference.operation.backward
    assert str(difference.operation) == "aten.mul.Tensor in module '2'"


class NoisyGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, *grads):
        return grads[0] * (1 + 1e-3 * random.random())


class NoisyBackward(nn.Module):
    def forward(self, x):
        return NoisyGradient.apply(x)


def test_operation_of_the_backward_pass_is_named():
    difference = first_difference(trained(NoisyBackward(), operations_of=1), trained(NoisyBackward(), operations_of=1))
    assert difference is not None
    assert difference.operation is not None
    assert (difference.step, difference.part) == (1, "weights")
    assert difference.operation.name == "aten.mul.Tensor"
    assert difference.operation.backward


def test_batch_that_differs_is_said_before_what_follows_from_it():
    one, other = trained(nn.Identity()), trained(nn.Identity(), batches=Batches(noise=1e-3))
    assert first_difference(one, other) == Difference(4, "batch")


def test_digest_tells_bytes_shapes_and_types_apart():
    x = torch.arange(6.0)
    same = digest(x.reshape(2, 3))
    assert same == digest(x.reshape(2, 3).clone())
    assert len({same, digest(x), digest(x.int()), digest(x.reshape(2, 3), x), digest(-x.reshape(2, 3)), digest()}) == 6
    assert digest(torch.tensor(0.0)) != digest(torch.tensor(-0.0))
    assert digest(x.reshape(2, 3).t()) == digest(x.reshape(2, 3).t().contiguous())
    assert digest(torch.zeros(0)) == digest(torch.zeros(0))
