"""The user's own transform: what it gets, what it may return, and how its randomness stays exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision import transforms
from torchvision.transforms import v2

from kiln.data.images import ContractImages, RandomCropImages
from kiln.data.transform import TransformedImages, takes_rng
from kiln.errors import UsageError
from kiln.pixels import PixelContract

KEYS = np.arange(5, dtype=np.uint64)


class Pictures:
    transformed = False

    def __init__(self, channels=3):
        self.images = np.random.default_rng(0).integers(0, 256, (5, 20, 30, channels), np.uint8)

    def read(self, index):
        return self.images[index]


def cropped(channels=3):
    return RandomCropImages(Pictures(channels), PixelContract(height=12, width=16, channels=channels))


def with_rng(image, rng):
    return Image.fromarray(np.roll(np.asarray(image), int(rng.integers(1, 9)), axis=1))


@pytest.mark.parametrize(
    "transform",
    [
        ImageOps.mirror,
        transforms.RandomHorizontalFlip(1.0),
        v2.RandomHorizontalFlip(1.0),
        v2.Compose([v2.PILToTensor(), v2.RandomHorizontalFlip(1.0)]),
        lambda image: np.asarray(image)[:, ::-1],
    ],
    ids=["pillow", "torchvision v1", "torchvision v2", "tensor", "array"],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_whatever_it_returns_the_image_is_the_same(transform, channels):
    plain = cropped(channels)
    changed = TransformedImages(plain, transform)
    draws, inner = changed.draw(1, 2, KEYS), plain.draw(1, 2, KEYS)
    out = np.empty(changed.shape, np.uint8)
    for index in range(5):
        expected = plain.load(index, inner[index])[:, ::-1]
        assert np.array_equal(changed.load(index, draws[index]), expected)
        assert changed.load(index, draws[index], out) is out
        assert np.array_equal(out, expected)


def test_other_channel_counts_come_as_arrays():
    seen = []
    changed = TransformedImages(cropped(5), lambda image: (seen.append(type(image)), image)[1])
    changed.load(0, changed.draw(0, 0, KEYS)[0])
    assert seen == [np.ndarray]


def test_albumentations_gets_its_keyword():
    kind = type(
        "Compose", (), {"__module__": "albumentations.core", "__call__": lambda self, image: {"image": 255 - image}}
    )
    plain = cropped()
    changed = TransformedImages(plain, kind())
    draws = changed.draw(0, 0, KEYS)
    assert np.array_equal(changed.load(0, draws[0]), 255 - plain.load(0, plain.draw(0, 0, KEYS)[0]))


def test_a_generator_follows_from_seed_epoch_and_sample():
    assert takes_rng(with_rng)
    assert not takes_rng(ImageOps.mirror)
    changed = TransformedImages(ContractImages(Pictures(), PixelContract(height=20, width=20)), with_rng)

    def made(seed, epoch, index):
        return changed.load(index, changed.draw(seed, epoch, KEYS)[index]).tobytes()

    assert made(0, 0, 3) == made(0, 0, 3)
    assert len({made(0, epoch, 3) for epoch in range(6)}) > 1
    assert len({made(seed, 0, 3) for seed in range(6)}) > 1


def test_without_draws_the_image_is_the_contracts():
    plain = cropped()
    changed = TransformedImages(plain, ImageOps.mirror)
    assert np.array_equal(changed.load(0), plain.load(0))


@pytest.mark.parametrize(
    "wrong",
    [
        transforms.ToTensor(),
        lambda image: image.resize((5, 5)),
        lambda image: torch.zeros(3, 12, 16),
        lambda image: None,
    ],
    ids=["float", "size", "float tensor", "nothing"],
)
def test_something_else_is_refused_with_what_to_leave_out(wrong):
    changed = TransformedImages(cropped(), wrong)
    with pytest.raises(UsageError, match="leave out ToTensor and Normalize"):
        changed.load(0, changed.draw(0, 0, KEYS)[0])
