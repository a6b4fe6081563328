"""`kiln models`: the list, and what one model is made of and costs."""

import pytest
import torch
from torch import nn

from kiln.errors import UsageError
from kiln.jobs.models import describe_model, list_models
from kiln.models.create import create_model
from kiln.models.describe import costs_of


def names(rows):
    return [row["name"] for row in rows]


def test_listing():
    everything = list_models()
    assert names(everything)[0] == "kiln/small_cnn"
    assert len(everything) > 1200
    assert len(set(names(everything))) == len(everything)
    assert {"resnet18", "seresnet18", "torchvision/resnet18"} < set(names(list_models("resnet18")))
    assert names(list_models("torchvision/resnet?8")) == ["torchvision/resnet18"]
    assert names(list_models("SMALL_cnn")) == ["kiln/small_cnn"]
    assert list_models("small_cnn", pretrained=True) == []
    assert list_models("nothing like it") == []
    (row,) = list_models("torchvision/resnet50", pretrained=True)
    assert row["weights"] == ["IMAGENET1K_V1", "IMAGENET1K_V2"]
    (row,) = [row for row in list_models("resnet18*") if row["name"] == "resnet18"]
    assert "a1_in1k" in row["weights"]


def test_the_costs_of_resnet18_are_the_known_ones():
    described = describe_model("resnet18")
    assert described["parameters"] == 11_689_512
    assert described["flops"] == pytest.approx(2 * 1.814e9, rel=1e-3)  # torchvision's table: 1.81 GMACs
    assert (described["img_size"], described["smallest_px"]) == (224, 1)
    first, last = described["layers"][0], described["layers"][-1]
    assert first == {"name": "conv1", "kind": "Conv2d", "shape": (64, 112, 112), "parameters": 9408}
    assert last == {"name": "fc", "kind": "Linear", "shape": (1000,), "parameters": 513_000}
    assert sum(layer["parameters"] for layer in described["layers"]) == 11_689_512


def test_attention_is_counted():
    described = describe_model("vit_tiny_patch16_224", num_classes=1000)
    tokens, width, depth = 197, 192, 12
    attention = depth * 2 * 2 * tokens * tokens * width
    mlps = depth * 2 * tokens * width * width * (3 + 1 + 8)
    ends = 2 * 196 * width * 768 + 2 * width * 1000
    assert described["flops"] == attention + mlps + ends
    assert described["smallest_px"] == 224


def test_activation_memory_is_what_backward_keeps():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16 * 16, 5))
    costs = costs_of(model, channels=3, img_size=16)
    image, features = 3 * 16 * 16, 8 * 16 * 16  # the convolution keeps its input; ReLU and the layer share its output
    assert costs.activation_bytes == 4 * (image + features)
    assert costs.flops == 2 * 16 * 16 * 8 * 27 + 2 * features * 5


def test_describing_changes_nothing():
    model = create_model("kiln/small_cnn", num_classes=3).model.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    costs_of(model, channels=3, img_size=32)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())


def test_a_network_with_hidden_tensors_is_described_by_running_it():
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(12, 2)
            self.scale = [torch.ones(1)]  # neither parameter nor buffer

        def forward(self, images):
            return self.linear(images.flatten(1)) * self.scale[0]

    costs = costs_of(Hidden(), channels=3, img_size=2)
    assert costs.parameters == 26
    assert costs.flops == 2 * 12 * 2


def test_unknown_names_are_explained():
    with pytest.raises(UsageError, match=r"unknown model 'resnet18x'[\s\S]*did you mean: resnet18"):
        describe_model("resnet18x")
