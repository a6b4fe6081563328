"""Evaluation: each sample once, in the order of the source, whatever the batches and shares."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from kiln.batch import Batch
from kiln.engine.evaluate import collect_outputs
from kiln.errors import ResourceError

CPU = torch.device("cpu")


class Share:
    """One process's place in a group whose members all see the same shares."""

    world_size = 3

    def __init__(self, others):
        self.others = others

    def gather(self, value):
        return [value, *self.others]


def forward(images):
    return torch.stack([images, -images], dim=1)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.randoms(use_true_random=False))
def test_trap_padded_samples_are_never_counted_because_there_is_no_padding(num, size, random):
    """Samples come in any order and any cut; the outputs are in the order of the source, each there once."""
    order = list(range(num))
    random.shuffle(order)
    batches = [
        Batch(torch.tensor(part, dtype=torch.float32), torch.tensor(part) * 10, indices=np.array(part))
        for part in (order[start : start + size] for start in range(0, num, size))
    ]
    outputs = collect_outputs(forward, batches, device=CPU)
    assert outputs.indices.tolist() == list(range(num))
    assert outputs.targets.tolist() == [index * 10 for index in range(num)]
    assert outputs.logits.tolist() == [[float(index), -float(index)] for index in range(num)]
    assert outputs.logits.dtype == np.float32


def test_shares_of_other_processes_are_put_in_their_places():
    def part(indices):
        array = np.array(indices)
        return forward(torch.tensor(indices, dtype=torch.float32)).numpy(), array * 10, array

    mine = [Batch(torch.tensor([4.0, 0.0]), torch.tensor([40, 0]), indices=np.array([4, 0]))]
    shares = Share([[part([1]), part([5, 3])], []])
    outputs = collect_outputs(forward, mine, device=CPU, strategy=shares)
    assert outputs.indices.tolist() == [0, 1, 3, 4, 5]
    assert outputs.logits[:, 0].tolist() == [0.0, 1.0, 3.0, 4.0, 5.0]
    assert outputs.targets.tolist() == [0, 10, 30, 40, 50]


def test_a_data_loader_of_pairs_is_numbered_in_its_order():
    loader = DataLoader(TensorDataset(torch.arange(7.0), torch.arange(7)), batch_size=3)
    outputs = collect_outputs(forward, loader, device=CPU)
    assert outputs.indices.tolist() == list(range(7))
    assert outputs.logits[:, 0].tolist() == list(range(7))


@pytest.mark.parametrize("batches", [[], iter(())])
def test_nothing_gives_none(batches):
    assert collect_outputs(forward, batches, device=CPU) is None


def test_nothing_is_remembered_for_a_backward_pass_and_halves_become_floats():
    weight = torch.ones(1, requires_grad=True)
    seen = []

    def half(images):
        made = (images * weight).to(torch.bfloat16).unsqueeze(1)
        seen.append((made.requires_grad, torch.is_inference_mode_enabled()))
        return made

    outputs = collect_outputs(half, [(torch.arange(3.0), torch.arange(3))], device=CPU)
    assert seen == [(False, True)]
    assert outputs.logits.dtype == np.float32
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize(
    ("limit", "tried"), [(8, [7]), (3, [7, 4, 2, 2, 3]), (1, [7, 4, 2, 1, 1, 2, 1, 1, 3, 2, 1, 1, 1])]
)
def test_a_batch_that_does_not_fit_goes_in_halves(limit, tried):
    seen = []

    def greedy(images):
        seen.append(len(images))
        if len(images) > limit:
            torch.empty(1 << 60, dtype=torch.uint8)  # more than there is
        return forward(images)

    images = torch.arange(7, dtype=torch.float32)
    outputs = collect_outputs(greedy, [Batch(images, images.long())], device=CPU)
    assert seen == tried
    assert outputs.logits[:, 0].tolist() == images.tolist()


def test_one_sample_that_does_not_fit_is_an_error_that_says_so():
    def hungry(images):
        torch.empty(1 << 60, dtype=torch.uint8)

    images = torch.arange(2, dtype=torch.float32)
    with pytest.raises(ResourceError, match="one sample at a time, in evaluation"):
        collect_outputs(hungry, [Batch(images, images.long())], device=CPU)
