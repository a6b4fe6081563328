"""Activation checkpointing: the same gradients bit for bit, running statistics that move once, blocks by structure."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torchvision
from small_training import Batches, differing, frozen, make_state, make_step, pictures
from torch import nn

from kiln.engine.fit import fit
from kiln.engine.precision import keep_fp32_
from kiln.errors import UsageError
from kiln.models.checkpointing import checkpoint_activations_, find_blocks


def small_resnet():
    from timm.models.resnet import Bottleneck, ResNet

    torch.manual_seed(0)
    return ResNet(Bottleneck, (1, 2, 1, 1), num_classes=4, base_width=16, drop_rate=0.3, drop_path_rate=0.3)


def small_vit():
    torch.manual_seed(0)
    options = {"embed_dim": 32, "depth": 3, "num_heads": 2, "img_size": 32, "patch_size": 8, "num_classes": 4}
    return timm.models.VisionTransformer(**options, proj_drop_rate=0.2, drop_path_rate=0.2)


def gradients(model, images, labels, *, precision=None):
    model.train()
    torch.manual_seed(3)
    with torch.autocast("cpu", dtype=precision or torch.bfloat16, enabled=precision is not None):
        loss = nn.functional.cross_entropy(model(images), labels)
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.parametrize("make", [small_resnet, small_vit])
def test_gradients_dropout_and_running_statistics_are_the_same_bit_for_bit(make, precision):
    images, labels = pictures(6, size=32)
    plain = make()
    again = copy.deepcopy(plain)
    names = checkpoint_activations_(again)
    assert len(names) >= 3
    expected = gradients(plain, images, labels, precision=precision)
    found = gradients(again, images, labels, precision=precision)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert differing(dict(plain.state_dict()), dict(again.state_dict())) == []  # statistics, counters, names
    assert any(gradient.abs().max() > 0 for gradient in found.values())


def test_less_is_kept_for_backward():
    """What autograd saves outside of the blocks; inside, nothing is."""

    def saved_bytes(model):
        seen = {}

        def pack(tensor):
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.train()(torch.randn(4, 3, 32, 32)).sum().backward()
        return sum(seen.values())

    plain = small_vit()
    again = copy.deepcopy(plain)
    checkpoint_activations_(again)
    assert saved_bytes(again) < saved_bytes(plain) / 3


def test_blocks_are_computed_twice_in_training_and_once_without_gradients():
    calls = []

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            calls.append(id(self))
            return self.two(self.one(x).relu())

    model = nn.Sequential(Block(), Block(), nn.Linear(4, 2))
    assert checkpoint_activations_(model) == ("0", "1")
    model(torch.ones(3, 4)).sum().backward()
    assert len(calls) == 4
    with torch.no_grad():
        model(torch.ones(3, 4))
    assert len(calls) == 6
    copied = copy.deepcopy(model)
    del calls[:]
    copied(torch.ones(3, 4)).sum().backward()
    assert set(calls) == {id(copied[0]), id(copied[1])}  # the copy's blocks, not those it was copied from


@pytest.mark.parametrize(
    ("name", "first", "last", "num"),
    [
        ("resnet50", "layer1.0", "layer4.2", 16),
        ("vit_tiny_patch16_224", "blocks.0", "blocks.11", 12),
        ("convnext_atto", "stages.0.blocks.0", "stages.3.blocks.1", 12),
        ("swin_tiny_patch4_window7_224", "layers.0.blocks.0", "layers.3.blocks.1", 12),
        ("efficientnet_b0", "blocks.0.0", "blocks.6.0", 16),
        ("mobilenetv3_small_050", "blocks.0.0", "blocks.4.2", 11),
    ],
)
def test_blocks_of_timm_models_are_found_by_structure(name, first, last, num):
    with torch.device("meta"):
        names = find_blocks(timm.create_model(name))
    assert (names[0], names[-1]) == (first, last)
    assert len(names) == num


def test_blocks_of_torchvision_models_are_found_by_structure():
    with torch.device("meta"):
        assert len(find_blocks(torchvision.models.resnet18())) == 8
        assert len(find_blocks(torchvision.models.vit_b_32())) == 12


def test_patterns_choose_and_what_lies_inside_another_is_not_wrapped_twice():
    model = small_resnet()
    assert checkpoint_activations_(model, ("layer2.*", "layer4")) == ("layer2.0", "layer2.1", "layer4")
    with pytest.raises(UsageError, match=r"(?s)'layr1' names no module.*layer1"):
        checkpoint_activations_(model, ("layr1",))
    with pytest.raises(UsageError, match="the model has no blocks"):
        checkpoint_activations_(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_training_with_micro_batches_and_islands_ends_the_same(precision):
    ends = []
    for recompute in (False, True):
        model = small_resnet()
        if precision == "bf16":
            keep_fp32_(model, ("layer2.1", "layer3.0.conv2"))
        if recompute:
            checkpoint_activations_(model)
        state = make_state(model, ema=0.9)
        step = make_step(micro_batch_size=3, precision=precision, seed=5)
        for _ in fit(state, step, Batches(*pictures(8, size=32), 8), total_steps=2):
            pass
        ends.append(frozen(state))
    assert differing(*ends) == []
