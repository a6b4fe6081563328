"""Statistics that are measured again: torch's own, without dropout, and frozen layers left alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from kiln.batch import Batch
from kiln.engine.fit import Timetable, fit
from kiln.engine.state import State
from kiln.engine.statistics import renew_statistics
from kiln.engine.step import Step
from kiln.engine.supervised import supervised
from kiln.losses import CrossEntropy
from kiln.models.freeze import freeze
from kiln.optim.averages import Swa
from kiln.optim.groups import parameter_groups
from kiln.optim.optimizers import sgd


def network(drop=0.0):
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.3), nn.Dropout(drop), nn.Conv2d(4, 5, 3)),
        *(nn.BatchNorm2d(5, affine=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2)),
    ).eval()


def batches(number=6):
    generator = torch.Generator().manual_seed(0)
    return [(torch.rand(8, 3, 8, 8, generator=generator) * (1 + i), torch.arange(8) % 2) for i in range(number)]


def test_statistics_are_those_of_torch():
    model, reference = network(), network()
    assert renew_statistics(model, batches()) == 6
    torch.optim.swa_utils.update_bn([images for images, _ in batches()], reference)
    for (name, own), theirs in zip(model.state_dict().items(), reference.state_dict().values(), strict=True):
        assert torch.allclose(own, theirs, rtol=0, atol=1e-6), name
    assert not any(module.training for module in model.modules())
    assert model[1].momentum == 0.3


def test_dropout_stays_off_and_weights_stay():
    plain, dropping = network(), network(drop=0.9)
    weights = copy.deepcopy(list(dropping.parameters()))
    renew_statistics(plain, batches())
    renew_statistics(dropping, batches())
    assert torch.equal(plain[4].running_mean, dropping[4].running_mean)
    assert all(torch.equal(a, b) for a, b in zip(dropping.parameters(), weights, strict=True))


def test_only_so_many_batches_are_taken():
    model, short = network(), network()
    assert renew_statistics(model, iter(batches()), num_batches=2) == 2
    renew_statistics(short, batches(2))
    assert torch.equal(model[1].running_mean, short[1].running_mean)
    assert renew_statistics(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)).eval(), batches()) == 0


@pytest.mark.parametrize("copied", ["before", "after"])
def test_layers_that_are_frozen_in_training_keep_theirs(copied):
    model = network()
    average = copy.deepcopy(model)
    freeze(model, "0", "1")
    if copied == "after":
        average = copy.deepcopy(model)
    before = average[1].running_mean.clone()
    renew_statistics(average, batches(), like=model)
    assert torch.equal(average[1].running_mean, before)
    assert not torch.equal(average[4].running_mean, network()[4].running_mean)
    assert not average[1].training
    assert not average[4].training


def test_loop_renews_statistics_before_it_evaluates_the_average():
    model = network()
    state = State(model, sgd(parameter_groups(model, lr=0.05, weight_decay=0.0), lr=0.05))
    state.average = Swa(model, start=6, every=3)
    seen = []

    def evaluate(state):
        seen.append((state.step, {name: value.clone() for name, value in state.evaluated_model().state_dict().items()}))
        return {}

    for _ in fit(state, Step(supervised(CrossEntropy())), batches(), total_steps=12, evaluate=evaluate,
                 timetable=Timetable(evaluate_every_steps=3)):  # fmt: skip
        pass
    assert [step for step, _ in seen] == [3, 6, 9, 12]
    for step, tensors in seen:
        expected = network()
        expected.load_state_dict(tensors)
        renew_statistics(expected, batches())
        same = torch.allclose(expected[1].running_mean, tensors["1.running_mean"], rtol=0, atol=1e-7)
        assert same == (step >= 6)


class Masked(nn.Module):
    """Cannot do without the mask of padded images."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, images, *, mask):
        return self.norm(images * mask[:, None]).mean((2, 3))


def test_padded_images_come_with_their_mask():
    model = Masked().eval()
    batch = Batch(images=torch.ones(2, 3, 4, 4), targets=torch.zeros(2), sizes=torch.tensor([[4, 4], [2, 4]]))
    renew_statistics(model, [batch])
    assert torch.allclose(model.norm.running_mean, torch.full((3,), 0.75))
