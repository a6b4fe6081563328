"""Augmentation functions: identity parameters, rows that know nothing of each other, inputs left alone, dtypes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kiln import augment as ours
from kiln.errors import UsageError

NUM = 5
ROWS = torch.arange(NUM)
SEEDS = torch.arange(NUM) * 2**40 + 7
MATRIX = ours.affine_matrix(NUM, angle=ROWS * 9.0, translate=(ROWS * 1.0, 0.0), scale=1 + ROWS / 10)
COLLAPSE = torch.tensor([[[1.5, 1.5], [-1.5, 1.5], [-1.5, -1.5], [1.5, -1.5]]])  # all corners to the middle
BOXES = np.array([[0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1], [0, 0, 0, 0], [0.9, 0.9, 0.1, 0.1], [0.5, 0, 0.01, 1.0]])

# name -> (images, rows of the parameters) -> images
FUNCTIONS = {
    "flip": lambda x, r: ours.flip(x, (ROWS % 2 == 0)[r]),
    "crop": lambda x, r: ours.crop(x, (ROWS - 2)[r], (ROWS * 3)[r], size=(9, 7)),
    "shift": lambda x, r: ours.shift(x, (ROWS - 2)[r], ROWS[r]),
    "warp": lambda x, r: ours.warp(x, MATRIX[r]),
    "warp nearest": lambda x, r: ours.warp(x, MATRIX[r], interpolation="nearest", fill=1),
    "jitter": lambda x, r: ours.jitter(x, brightness=(ROWS / 3)[r], contrast=1.2, saturation=(ROWS / 2)[r]),
    "adjust_brightness": lambda x, r: ours.adjust_brightness(x, (ROWS / 2)[r]),
    "adjust_gamma": lambda x, r: ours.adjust_gamma(x, (1 + ROWS / 2)[r]),
    "adjust_hue": lambda x, r: ours.adjust_hue(x, (ROWS / 8)[r]),
    "to_grey": lambda x, r: ours.to_grey(x, (ROWS > 2)[r]),
    "add_noise": lambda x, r: ours.add_noise(x, SEEDS[r], sigma=0.1),
    "gaussian_blur": lambda x, r: ours.gaussian_blur(x, (0.3 + ROWS)[r], kernel_size=5),
    "adjust_sharpness": lambda x, r: ours.adjust_sharpness(x, (ROWS / 2)[r]),
    "posterize": lambda x, r: ours.posterize(x, (ROWS + 2)[r]),
    "solarize": lambda x, r: ours.solarize(x, (ROWS / 5 * (255 if x.dtype == torch.uint8 else 1))[r]),
    "equalize": lambda x, r: ours.equalize(x),
    "autocontrast": lambda x, r: ours.autocontrast(x),
    "invert": lambda x, r: ours.invert(x),
    "erase": lambda x, r: ours.erase(x, BOXES[r]),
}


def levels(channels=3, num=NUM):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (num, channels, 20, 24), np.uint8))


def batch(kind, channels=3):
    images = levels(channels)
    return images if kind == torch.uint8 else (images.float() / 255).to(kind)


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_rows_are_alone_and_the_input_stays(name, channels, kind):
    images, function = batch(kind, channels), FUNCTIONS[name]
    before = images.clone()
    whole = function(images, slice(None))
    assert torch.equal(images, before)
    assert whole.dtype == kind
    assert whole.shape[:2] == images.shape[:2]
    assert whole.data_ptr() != images.data_ptr()
    for cut in (1, 3):
        parts = [function(images[:cut], slice(0, cut)), function(images[cut:], slice(cut, None))]
        assert torch.equal(torch.cat(parts), whole)
    assert function(images[:0], slice(0, 0)).shape[0] == 0


@pytest.mark.parametrize("name", set(FUNCTIONS) - {"flip", "crop", "shift", "invert", "erase", "equalize"})
def test_bfloat16_is_float32_rounded_once(name):
    images = batch(torch.bfloat16)
    exact = FUNCTIONS[name](images.float(), slice(None))
    tolerance = 0.08 if name in ("posterize", "solarize") else 0.004  # those may jump at a threshold
    torch.testing.assert_close(FUNCTIONS[name](images, slice(None)).float(), exact, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
@pytest.mark.parametrize(
    "same",
    [
        lambda x: ours.flip(x, torch.zeros(NUM, dtype=torch.bool)),
        lambda x: ours.crop(x, 0 * ROWS, 0 * ROWS, size=(20, 24)),
        lambda x: ours.warp(x, ours.affine_matrix(NUM)),
        lambda x: ours.jitter(x),
        lambda x: ours.adjust_hue(x, 0.0),
        lambda x: ours.adjust_hue(x, 1.0),
        lambda x: ours.adjust_gamma(x, 1.0),
        lambda x: ours.adjust_sharpness(x, 1.0),
        lambda x: ours.gaussian_blur(x, 1.0, kernel_size=1),
        lambda x: ours.add_noise(x, SEEDS, sigma=0.0),
        lambda x: ours.erase(x, np.zeros((NUM, 4))),
        lambda x: ours.views(x, ["hflip+hflip"])[0],
    ],
)
def test_parameters_that_change_nothing(same, kind):
    images = batch(kind)
    torch.testing.assert_close(same(images), images, rtol=0, atol=0 if kind == torch.uint8 else 1e-6)


def test_several_steps_are_one_warp():
    ramp = torch.linspace(0, 1, 41).expand(1, 1, 41, 41)  # interpolated without error, but for the border
    first, then = ours.affine_matrix(1, angle=20.0), ours.affine_matrix(1, translate=(3.0, -2.0), scale=1.1)
    once, twice = ours.warp(ramp, ours.compose(first, then)), ours.warp(ours.warp(ramp, first), then)
    torch.testing.assert_close(once[..., 14:27, 14:27], twice[..., 14:27, 14:27], rtol=0, atol=1e-5)
    mirrored = ours.warp(batch(torch.uint8), ours.flip_matrix(ROWS > 2, ROWS > 3))
    expected = ours.flip(ours.flip(batch(torch.uint8), ROWS > 2), ROWS > 3, dim=-2)
    assert torch.equal(mirrored, expected)


def test_noise_is_standard_normal_and_another_for_each_seed():
    images = torch.full((3, 3, 100, 100), 0.5)
    noise = (ours.add_noise(images, torch.tensor([1, 2, 1 + 2**32]), sigma=0.05) - 0.5) / 0.05
    assert float(noise.mean()) == pytest.approx(0, abs=0.02)
    assert float(noise.std()) == pytest.approx(1, abs=0.02)
    assert (noise.abs() < 1).float().mean().item() == pytest.approx(0.6827, abs=0.01)
    flat = noise.flatten(1)
    assert (torch.corrcoef(flat) - torch.eye(3)).abs().max() < 0.03
    assert torch.corrcoef(torch.stack([flat[0, :-1], flat[0, 1:]]))[0, 1].abs() < 0.03


@pytest.mark.parametrize("per_channel", [True, False])
def test_constant_images_standardise_to_zero(per_channel):
    images = torch.full((2, 3, 8, 8), 77, dtype=torch.uint8)
    assert torch.equal(ours.standardize(images, per_channel=per_channel), torch.zeros(2, 3, 8, 8))


def test_five_crops_and_flips():
    images = levels()
    seen = ours.views(images, ["identity", "hflip", "center", "top_left", "center+vflip"])
    assert seen.shape == (5, *images.shape)
    assert torch.equal(seen[1], images.flip(-1))
    assert torch.equal(seen[4], seen[2].flip(-2))
    assert not torch.equal(seen[3], seen[2])
    with pytest.raises(UsageError, match=r"(?s)view 'hfilp'.*did you mean: hflip"):
        ours.views(images, ["hfilp"])
    with pytest.raises(UsageError, match="at least one view"):
        ours.views(images, [])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: ours.jitter(levels(4)), "4 channels.*1 or 3 channels"),
        (lambda: ours.invert(levels()[0]), r"\(3, 20, 24\) torch.uint8.*\(B, C, H, W\)"),
        (lambda: ours.invert(levels().int()), "torch.int32"),
        (lambda: ours.adjust_gamma(levels(), torch.ones(3)), r"gamma has shape \(3,\).*each of the 5 images"),
        (lambda: ours.gaussian_blur(levels(), 1.0, kernel_size=4), "kernel_size = 4.*odd, below 40"),
        (lambda: ours.warp(levels(), MATRIX, interpolation="bilinaer"), "did you mean: bilinear"),
        (lambda: ours.perspective_matrix(COLLAPSE, size=(4, 4)), "corners lie on one line"),
    ],
)
def test_what_cannot_be_is_refused(wrong, words):
    with pytest.raises(UsageError, match="(?s)" + words):
        wrong()
