"""Where the frozen part ends: features and head together are the model, in both modes, or it is said why not."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kiln.errors import UsageError
from kiln.models.create import create_model
from kiln.models.features import find_cut
from kiln.models.freeze import freeze


def images(size=32):
    return torch.linspace(-2, 2, 3 * 3 * size * size).view(3, 3, size, size)


def run(model, training, call):
    model.train(training)
    torch.manual_seed(1)
    with torch.no_grad():
        return call()


def check(model, pictures, shape):
    """Features are made in evaluation mode; the head gives what the model gives."""
    cut = find_cut(model, pictures)
    features = run(model, False, lambda: cut.features(model, pictures))
    assert features.shape[1:] == shape
    for training in (False, True):
        whole = run(model, training, lambda: model(pictures))
        assert torch.allclose(run(model, training, lambda: cut.head(model, features)), whole, atol=1e-6)
    return cut


@pytest.mark.parametrize(
    ("name", "options", "size", "shape"),
    [
        ("kiln/small_cnn", {"drop": 0.5, "kwargs": {"widths": [4, 8]}}, 32, (8,)),
        ("resnet10t", {"drop": 0.5}, 32, (512,)),  # a dropout that only its code knows
        ("vit_tiny_patch16_224", {"kwargs": {"depth": 1}}, 32, (192,)),
        ("convnext_atto", {"drop": 0.5, "kwargs": {"depths": [1, 1, 1, 1]}}, 64, (320, 1, 1)),
        ("torchvision/mobilenet_v3_small", {}, 32, (1024,)),
    ],
)
def test_families_are_cut_behind_their_pooling(name, options, size, shape):
    model = create_model(name, num_classes=5, img_size=size, seed=0, **options).model
    freeze(model, "backbone")
    check(model, images(size), shape)


class Own(nn.Module):
    """A user's network, whose code between body and head is given."""

    def __init__(self, head, forward=None):
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1)), head
        self.code = forward or (lambda model, images: model.head(model.body(images).flatten(1)))

    def forward(self, images):
        return self.code(self, images)


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)

    def forward(self, features):
        return self.second(F.relu(self.norm(self.first(features))) * 2)


def test_a_head_with_code_of_its_own_is_one_step():
    model = Own(TwoLayers())
    freeze(model, "body")
    statistics = model.head.norm.running_mean.clone()
    cut = find_cut(model, images())
    assert model.head.norm.running_mean.equal(statistics)  # as if nothing had run
    assert cut.steps == ("head",)
    check(model, images(), (6,))


def test_a_flatten_between_dropout_and_layer_is_taken_along():
    model = Own(
        nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 4)),
        lambda model, images: model.head[1](model.head[0](model.body(images)).flatten(1)),
    )
    freeze(model, "body")
    cut = check(model, images(), (6, 1, 1))
    assert cut.steps == ("head.0", "head.1")
    assert cut.flattened == {1}


@pytest.mark.parametrize(
    ("forward", "why"),
    [
        (lambda model, images: model.head(model.body(images).flatten(1)) * images.mean(), "modules in a row that end"),
        (lambda model, images: (model.head(model.body(images).flatten(1)), images), "more than logits"),
        (
            lambda model, images: model.head(F.dropout(model.body(images).flatten(1), 0.5, model.training)),
            "something else is random or changes",
        ),
        (lambda model, images: F.linear(model.body(images).flatten(1), model.head.weight), "modules in a row that end"),
    ],
    ids=["after-the-head", "a-tuple", "dropout-in-code", "without-its-layer"],
)
def test_what_cannot_be_cut_is_refused(forward, why):
    model = Own(nn.Linear(6, 4), forward)
    freeze(model, "body")
    with pytest.raises(UsageError, match=why):
        find_cut(model, images())
