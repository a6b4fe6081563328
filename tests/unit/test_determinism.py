"""Levels of determinism settle every switch, never two that contradict each other, and strict runs every family of models."""

from __future__ import annotations

import os

import pytest
import torch

from kiln.engine.determinism import CUBLAS, set_determinism
from kiln.models.create import create_model

FAMILIES = (
    *(
        "kiln/small_cnn",
        "resnet18",
        "vit_tiny_patch16_224",
        "convnext_atto",
        "mobilenetv3_small_050",
        "efficientnet_b0",
    ),
    *("swin_tiny_patch4_window7_224", "mixer_s32_224", "densenet121", "regnety_002", "torchvision/mobilenet_v2"),
)


@pytest.fixture(autouse=True)
def _restored(monkeypatch):
    monkeypatch.delenv(CUBLAS, raising=False)
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(False)
    cudnn.deterministic, cudnn.benchmark = before


@pytest.mark.parametrize("fixed_shapes", [True, False])
@pytest.mark.parametrize("before", ["off", "strict"])
@pytest.mark.parametrize("level", ["off", "seeded", "strict"])
def test_every_switch_is_settled_whatever_was_set_before(level, before, fixed_shapes, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    set_determinism(before, fixed_shapes=True)
    said = set_determinism(level, fixed_shapes=fixed_shapes)
    cudnn = torch.backends.cudnn
    assert torch.are_deterministic_algorithms_enabled() == (level == "strict")
    assert cudnn.deterministic == (level == "strict")
    assert cudnn.benchmark == (level == "off" and fixed_shapes)
    assert not (cudnn.benchmark and cudnn.deterministic)
    assert said


def test_strict_sets_aside_workspace_for_matrix_products_but_keeps_yours(monkeypatch):
    set_determinism("strict", fixed_shapes=True)
    assert os.environ[CUBLAS] == ":4096:8"
    monkeypatch.setenv(CUBLAS, ":16:8")
    set_determinism("strict", fixed_shapes=True)
    assert os.environ[CUBLAS] == ":16:8"


@pytest.mark.parametrize("name", FAMILIES)
def test_strict_trains_every_family(name):
    px = 224 if "_224" in name else 64
    model = create_model(name, num_classes=3, img_size=px).model.train()
    set_determinism("strict", fixed_shapes=True)
    gradients = []
    for _ in range(2):
        torch.manual_seed(0)
        model.zero_grad()
        images = torch.rand(2, 3, px, px, generator=torch.Generator().manual_seed(1))
        model(images).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
