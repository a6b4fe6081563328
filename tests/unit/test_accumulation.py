"""Accumulation on real networks with mixup on, ragged cuts too; and a micro-batch that memory halved, after a resume."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from small_training import Batches, differing, frozen, make_state, make_step, pictures
from torch import nn

import kiln
from kiln.augment.mixing import Mixing, mix_targets
from kiln.batch import Batch
from kiln.engine.fit import fit
from kiln.engine.step import Step
from kiln.losses import CrossEntropy

NUM, CLASSES = 64, 10


def vit_tiny():
    return timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=CLASSES)


def group_norm_resnet():
    return timm.create_model("resnet18", num_classes=CLASSES, norm_layer=timm.layers.GroupNorm)


def mixed_batch():
    """64 images, paired and blended as training does it, with shares of classes as targets."""
    images, labels = pictures(NUM, size=32, num_classes=CLASSES)
    mixing = Mixing(mixup_alpha=0.4)
    positions, keys = np.arange(NUM), np.arange(NUM, dtype=np.uint64)
    images, partner, lam = mixing(images, mixing.draw(0, 0, keys), positions)
    assert ((lam > 0.05) & (lam < 0.95)).sum() > NUM // 4  # much is truly mixed
    targets = mix_targets(nn.functional.one_hot(labels, CLASSES).float(), partner, lam)
    return Batch(images, targets)


@pytest.mark.parametrize("make", [vit_tiny, group_norm_resnet])
def test_1x64_4x16_and_3x22_give_the_same_update(make):
    torch.manual_seed(0)
    model, batch = make(), mixed_batch()
    ends, losses = [], []
    for micro in (64, 16, 22):  # 22 + 22 + 20
        own = copy.deepcopy(model).train()
        state = make_state(own, opt="sgd", lr=0.1, momentum=0.0, nesterov=False)
        losses.append(float(make_step(micro_batch_size=micro)(state, batch).loss))
        ends.append({name: p.detach() for name, p in own.named_parameters()})
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-6)
    before = {name: p.detach() for name, p in model.named_parameters()}
    assert max(float((ends[0][name] - before[name]).abs().max()) for name in before) > 1e-3  # it did move
    for other in ends[1:]:
        gaps = {name: float((ends[0][name] - other[name]).abs().max()) for name in other}
        assert max(gaps.values()) < 1e-6, max(gaps, key=gaps.get)


# What running out of memory decided, after a resume.


def greedy(limit, tried):
    """A `forward_loss` that runs out of memory above `limit` samples, and writes down what was tried."""

    def forward_loss(state, batch):
        tried.append(len(batch))
        if len(batch) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return CrossEntropy(smoothing=0.1)(state.forward(batch.images), batch.targets)

    return forward_loss


def train(state, step, stop):
    for _ in fit(state, step, Batches(*pictures(16), 8), total_steps=stop):
        pass


@pytest.mark.parametrize("asked", [None, 6])
def test_a_resume_begins_with_the_micro_batch_that_memory_allowed(tiny_model, asked):
    tried = []
    whole = make_state(tiny_model())
    train(whole, Step(greedy(3, tried), micro_batch_size=asked), 4)

    state = make_state(tiny_model())
    train(state, Step(greedy(3, tried), micro_batch_size=asked), 2)
    tree = copy.deepcopy(state.state())
    state = make_state(tiny_model(seed=4))
    state.load_state(tree)
    del tried[:]
    train(state, Step(greedy(3, tried), micro_batch_size=asked), 4)
    assert max(tried) <= 3  # nothing is tried whole again
    assert differing(frozen(whole), frozen(state)) == []
    assert state.log == whole.log


def test_another_micro_batch_may_be_asked_for_at_a_resume(tiny_model):
    """On a larger device, say."""
    tried = []
    state = make_state(tiny_model())
    train(state, Step(greedy(3, tried), micro_batch_size=8), 1)
    tree = copy.deepcopy(state.state())
    state = make_state(tiny_model())
    state.load_state(tree)
    del tried[:]
    train(state, Step(greedy(100, tried), micro_batch_size=7), 2)
    assert tried == [7, 1]


def test_the_devices_cache_is_emptied_after_running_out_of_memory_and_nowhere_else():
    """It waits for the device and makes the next allocations slow. Read from the sources: a CPU has no such cache."""
    sources = sorted(Path(kiln.__file__).parent.rglob("*.py"))
    calls = [
        path.name for path in sources for line in path.read_text().splitlines() if "accelerator.empty_cache(" in line
    ]
    users = {path.name for path in sources if " empty_cache()" in path.read_text()}
    assert len(sources) > 150
    assert calls == ["out_of_memory.py"]
    assert users - {"out_of_memory.py"} == {"step.py", "evaluate.py"}
    assert "empty_cache(" in inspect.getsource(Step._halve)
