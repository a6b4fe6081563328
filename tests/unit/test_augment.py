"""Augmentation on whole batches: what was drawn is what is done, to each image alone, in any memory format."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kiln.augment import Light, OnDevice, flip, policy
from kiln.batch import Batch
from kiln.models.normalize import normalize

CPU = torch.device("cpu")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MEAN_T, STD_T = (torch.tensor(values).view(-1, 1, 1) for values in (MEAN, STD))


def pictures(num=6, height=5, width=7, *, channels_last=False):
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (num, 3, height, width), np.uint8))
    return images.to(memory_format=torch.channels_last) if channels_last else images


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dim", [-1, -2])
def test_flip_mirrors_exactly_the_named_images(dim, channels_last):
    images = pictures(channels_last=channels_last)
    before = images.clone()
    mask = torch.tensor([True, False, True, True, False, False])
    flipped = flip(images, mask, dim=dim)
    for picture, original, named in zip(flipped, before, mask, strict=True):
        expected = np.flip(original.numpy(), dim) if named else original.numpy()
        assert np.array_equal(picture.numpy(), expected)
    assert flipped.dtype == torch.uint8
    assert torch.equal(images, before)
    assert torch.equal(flip(flipped, mask, dim=dim), before)


@pytest.mark.parametrize("channels_last", [False, True])
def test_normalize_is_torchvisions_to_a_rounding(channels_last):
    from torchvision.transforms.v2 import functional as tv

    images = pictures(channels_last=channels_last)
    before = images.clone()
    ours = normalize(images, MEAN_T, STD_T)
    theirs = tv.normalize(tv.to_dtype(before, torch.float32, scale=True), list(MEAN), list(STD))
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-6)
    assert ours.dtype == torch.float32
    assert ours.is_contiguous(memory_format=torch.channels_last) == channels_last
    assert torch.equal(images, before)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**63), st.integers(0, 1000), st.integers(1, 30), st.integers(0, 30))
def test_parameters_belong_to_samples_not_to_batches(seed, epoch, num, cut):
    keys = np.arange(num, dtype=np.uint64) * 977
    light, cut = Light(), min(cut, num)
    whole = light.draw(seed, epoch, keys)
    assert whole.shape == (num, 2)
    assert ((whole >= 0) & (whole < 1)).all()
    parts = [light.draw(seed, epoch, part) for part in (keys[:cut], keys[cut:]) if len(part)]
    assert np.array_equal(np.concatenate(parts), whole)
    assert not np.array_equal(light.draw(seed, epoch + 1, keys), whole)


@pytest.mark.parametrize(("hflip", "vflip"), [(0.5, 0.0), (0.25, 0.75), (0.0, 0.0), (1.0, 1.0)])
def test_flips_happen_as_often_as_asked(hflip, vflip):
    keys = np.arange(4000, dtype=np.uint64)
    light = Light(hflip=hflip, vflip=vflip)
    corner = torch.zeros(4000, 1, 2, 2, dtype=torch.uint8)
    corner[:, 0, 0, 0] = 255  # tells both directions apart
    done = light(corner, light.draw(3, 0, keys))[:, 0] > 0
    across, down = (done[:, :, 1].any(1)).float().mean(), (done[:, 1, :].any(1)).float().mean()
    assert float(across) == pytest.approx(hflip, abs=0.04)
    assert float(down) == pytest.approx(vflip, abs=0.04)


class Host:
    """Host batches that know their step."""

    def __init__(self, batch):
        self.batch = batch

    def __len__(self):
        return 3

    def __iter__(self):
        return iter([self.batch] * 3)

    def from_step(self, step):
        while True:
            yield self.batch

    def at(self, step):
        return self.batch


def host(num=6, **fields):
    labels = torch.arange(num)
    return Host(Batch(pictures(num), labels, positions=np.arange(num), indices=np.arange(num) + 5, **fields))


def test_batches_are_flipped_then_normalised_and_keep_what_makes_them_repeatable():
    params = np.array([[0.1, 0.9], [0.9, 0.9]] * 3)
    made = host(params=params, weights=torch.ones(6), total=12.0)
    on_device = OnDevice(made, Light(), device=CPU, mean=torch.tensor(MEAN), std=torch.tensor(STD))
    expected = normalize(flip(made.batch.images, torch.tensor([True, False] * 3)), MEAN_T, STD_T)
    for batch in (on_device.at(4), next(on_device.from_step(4)), next(iter(on_device))):
        torch.testing.assert_close(batch.images, expected, rtol=0, atol=1e-6)
        assert batch.indices.tolist() == list(range(5, 11))
        assert batch.targets.tolist() == list(range(6))
        assert (batch.total, batch.weights.tolist()) == (12.0, [1.0] * 6)
    assert len(on_device) == 3
    assert len(list(on_device)) == 3


def test_without_a_policy_images_are_only_normalised():
    made = host(params=np.zeros((6, 2)))
    on_device = OnDevice(made, policy("none"), device=CPU, mean=torch.tensor(MEAN), std=torch.tensor(STD))
    expected = normalize(made.batch.images, MEAN_T, STD_T)
    torch.testing.assert_close(on_device.at(0).images, expected, rtol=0, atol=1e-6)


def test_images_that_come_already_transformed_are_left_alone():
    images = torch.randn(4, 3, 5, 5)
    made = Host(Batch(images, torch.arange(4), params=np.zeros((4, 2))))
    on_device = OnDevice(made, None, device=CPU)
    assert torch.equal(on_device.at(0).images, images)


def test_a_batch_whose_samples_were_all_bad_passes_through_empty():
    made = host(0, params=np.zeros((0, 2)))
    batch = OnDevice(made, Light(), device=CPU, mean=torch.tensor(MEAN), std=torch.tensor(STD)).at(0)
    assert batch.images.shape == (0, 3, 5, 7)
