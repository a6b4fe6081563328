"""Adapters change nothing before they are trained, and are nothing but weights after they were folded."""

import pytest
import timm
import torch
from torch import nn

from kiln.errors import MissingExtraError, UsageError
from kiln.models.freeze import freeze
from kiln.models.lora import ADAPTERS, add_lora_, has_adapters, merged

pytest.importorskip("peft")


def outputs(model, size):
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.eval()(images)


@pytest.mark.parametrize(("name", "layers"), [("test_vit", "attn.qkv"), ("test_resnet", "conv")])
def test_a_real_network_with_adapters_merges_to_the_same_outputs(name, layers):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=4)
        size, plain = model.default_cfg["input_size"][-1], {k: v.clone() for k, v in model.state_dict().items()}
        before = outputs(model, size)
        adapted = add_lora_(model, rank=4)
        assert any(layers in layer for layer in adapted)
        assert torch.equal(outputs(model, size), before)
        assert all(parameter.requires_grad for parameter in model.parameters())
        frozen = freeze(model, but=[*ADAPTERS, "head"])
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
        for _ in range(3):
            model.train()
            nn.functional.cross_entropy(model(torch.randn(4, 3, size, size)), torch.arange(4)).backward()
            optimizer.step()
            optimizer.zero_grad()
    frozen.verify(model)
    trained = outputs(model, size)
    assert float((trained - before).abs().max()) > 1e-2
    folded = merged(model)
    assert folded.state_dict().keys() == plain.keys()
    assert not has_adapters(folded)
    assert has_adapters(model)  # the model itself goes on being trained
    scale = float(trained.abs().max())
    assert float((outputs(folded, size) - trained).abs().max()) < 1e-5 * max(scale, 1.0)
    moved = {key for key, value in folded.state_dict().items() if not torch.equal(value, plain[key])}
    own = {f"{layer}.weight" for layer in adapted}
    assert moved & own
    assert all(key in own or key.startswith(("head", "fc")) for key in moved)


def test_a_plain_model_is_its_own_merge(tiny_model):
    model = tiny_model()
    assert merged(model) is model


def test_targets_are_ends_of_names(tiny_model):
    model = timm.create_model("test_vit", num_classes=4)
    assert all(layer.endswith("mlp.fc1") for layer in add_lora_(model, targets=["mlp.fc1"]))
    with pytest.raises(UsageError, match="lora_targets: 'fc9' is no layer"):
        add_lora_(tiny_model(), targets=["fc9"])


def test_without_peft_the_extra_is_named(tiny_model, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"LoRA needs the package 'peft'") as raised:
        add_lora_(tiny_model())
    assert "torchkiln[finetune]" in raised.value.hint
