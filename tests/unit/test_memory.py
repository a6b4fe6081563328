"""Where memory goes: parts that are known by arithmetic, blocks computed again, and units that are bytes."""

from __future__ import annotations

import copy
import os
import sys

import psutil
import pytest
import torch
from torch import nn

from kiln.models.checkpointing import checkpoint_activations_
from kiln.observe.memory import expand_segments, memory_in_use, peak_by_part, state_by_part

CPU = torch.device("cpu")


def stepper(model, optimizer, images):
    def step():
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()

    return step


def test_the_parts_of_a_chain_of_layers_are_what_arithmetic_says():
    width, batch, depth = 256, 512, 4
    model = nn.Sequential(*(nn.Sequential(nn.Linear(width, width, bias=False), nn.Sigmoid()) for _ in range(depth)))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    images = torch.randn(batch, width)
    peak = peak_by_part(stepper(model, optimizer, images), model, optimizer)
    weights, activation = depth * width * width * 4, batch * width * 4
    assert peak.weights == weights
    assert peak.optimizer == 2 * weights + depth * 4  # two moments, and a step counter for each
    assert peak.other == activation  # the batch
    # At the end of forward: the sigmoids, which backward needs; what they were made of is gone.
    assert depth * activation <= peak.activations <= (depth + 2) * activation
    assert peak.total == sum(vars(peak).values())
    assert state_by_part(model, optimizer) == {"weights": weights, "gradients": weights, "optimizer": peak.optimizer}
    assert 0 <= peak.gradients <= weights


def test_gradients_count_as_such_where_they_are_the_peak():
    model = nn.Linear(1000, 1000, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    peak = peak_by_part(stepper(model, optimizer, torch.randn(2, 1000)), model, optimizer)
    assert (peak.weights, peak.gradients, peak.optimizer) == (4_000_000, 4_000_000, 0)
    assert peak.activations + peak.workspace + peak.other < 100_000


def test_what_is_freed_counts_no_more_and_nothing_is_left_behind():
    """Ten steps' worth of temporaries are not ten times as much."""
    model = nn.Linear(100, 100)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    images = torch.randn(1000, 100)

    def step():
        for _ in range(10):
            optimizer.zero_grad()
            model(images).square().mean().backward()

    once = peak_by_part(stepper(model, optimizer, images), model, optimizer)
    many = peak_by_part(step, model, optimizer)
    assert many.total < 1.5 * once.total
    assert all(parameter._post_accumulate_grad_hooks in (None, {}) for parameter in model.parameters())


def test_blocks_computed_again_hold_less_at_the_peak():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 4, 256, batch_first=True)
    plain = nn.Sequential(nn.Linear(64, 64), *(copy.deepcopy(layer) for _ in range(6)))
    again = copy.deepcopy(plain)
    assert len(checkpoint_activations_(again)) == 6
    found = []
    for model in (plain, again):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        peak = peak_by_part(stepper(model, optimizer, torch.randn(16, 32, 64)), model, optimizer)
        found.append(peak.activations + peak.workspace)
    assert found[1] < 0.5 * found[0]


def test_memory_in_use_is_in_bytes_and_needs_no_accelerator():
    found = memory_in_use(CPU)
    total = psutil.virtual_memory().total
    assert 50e6 < found.resident <= found.resident_peak < total  # an imported torch is about 200 MB
    assert found.allocated is found.reserved is found.fragmented is None
    held = torch.ones(100_000_000 // 4)
    assert 90e6 < memory_in_use(CPU).resident - found.resident < 200e6
    assert held[0] == 1


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, sys.platform == "linux" and torch.version.cuda is not None),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:100"}, False),
        ({"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}, True),
    ],
)
def test_segments_expand_unless_the_user_has_set_the_allocator(monkeypatch, given, expected):
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert expand_segments() == expected
    if given:
        assert {name: os.environ[name] for name in given} == given
