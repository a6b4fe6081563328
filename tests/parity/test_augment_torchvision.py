"""Augmentation against torchvision's functions, one image at a time, and against its private tables."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode as Mode
from torchvision.transforms.v2 import functional as tv

from kiln import augment as ours
from kiln.augment.operations import NAMES, OPERATIONS, SIGNED, WIDE, Ranges
from kiln.augment.published import PUBLISHED

SIZES = [(3, 17, 23), (1, 17, 23), (3, 32, 32)]


def floats(shape=(3, 17, 23), num=4, low=0.0, high=1.0):
    return torch.from_numpy(np.random.default_rng(1).uniform(low, high, (num, *shape)).astype(np.float32))


def levels(shape=(3, 17, 23), num=4):
    return torch.from_numpy(np.random.default_rng(2).integers(0, 256, (num, *shape), np.uint8))


def close(mine, theirs, atol=1e-5):
    torch.testing.assert_close(mine, theirs, rtol=0, atol=atol)


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize(
    ("mine", "theirs", "values"),
    [
        (ours.adjust_brightness, tv.adjust_brightness, [0.5, 0.9, 1.0, 1.2]),
        (ours.adjust_contrast, tv.adjust_contrast, [0.0, 0.9, 1.0, 1.2]),
        (ours.adjust_saturation, tv.adjust_saturation, [0.0, 0.9, 1.0, 1.2]),
        (ours.adjust_hue, tv.adjust_hue, [-0.5, -0.1, 0.0, 0.3]),
        (ours.adjust_gamma, tv.adjust_gamma, [0.5, 0.9, 1.0, 2.0]),
        (ours.adjust_sharpness, tv.adjust_sharpness, [0.0, 0.5, 1.0, 1.9]),
        (ours.solarize, tv.solarize, [0.0, 0.4, 0.7, 1.0]),
    ],
)
def test_floats(mine, theirs, values, shape):
    images = floats(shape, low=0.3, high=0.7)  # nothing clips
    expected = torch.stack([theirs(image, value) for image, value in zip(images, values, strict=True)])
    close(mine(images, torch.tensor(values)), expected)


def test_colour_steps_in_one_matrix_are_torchvisions_one_after_another():
    images = floats(low=0.3, high=0.7)
    brightness, contrast, saturation = [0.9, 1.0, 1.1, 0.8], [1.1, 0.7, 1.0, 0.9], [0.5, 1.2, 1.0, 0.0]
    fused = ours.jitter(
        images,
        brightness=torch.tensor(brightness),
        contrast=torch.tensor(contrast),
        saturation=torch.tensor(saturation),
        grey=torch.tensor([0.0, 0.0, 0.0, 1.0]),
    )
    expected = []
    for row, image in enumerate(images):
        one = tv.adjust_contrast(tv.adjust_brightness(image, brightness[row]), contrast[row])
        one = tv.adjust_saturation(one, saturation[row])
        expected.append(tv.rgb_to_grayscale(one, 3) if row == 3 else one)
    close(fused, torch.stack(expected))


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize(
    ("mine", "theirs"), [(ours.invert, tv.invert), (ours.equalize, tv.equalize), (ours.autocontrast, tv.autocontrast)]
)
def test_tone_is_exact_on_levels(mine, theirs, shape):
    images = levels(shape)
    images[1] = 77  # a constant image
    images[2] = images[2] // 8 + 100  # a narrow one
    assert torch.equal(mine(images), theirs(images))


@pytest.mark.parametrize("mine", [ours.autocontrast, ours.invert, ours.equalize])
def test_tone_on_floats(mine):
    images = floats()
    close(mine(images), getattr(tv, mine.__name__)(images), atol=1e-6)


def test_posterize_and_solarize_are_exact_on_levels():
    images = levels(num=9)
    bits = torch.arange(9)
    assert torch.equal(
        ours.posterize(images, bits), torch.stack([tv.posterize(i, int(b)) for i, b in zip(images, bits, strict=True)])
    )
    limits = [0.0, 1.0, 17.5, 100.0, 127.5, 128.0, 200.2, 254.5, 255.0]
    expected = torch.stack([tv.solarize(i, limit) for i, limit in zip(images, limits, strict=True)])
    assert torch.equal(ours.solarize(images, torch.tensor(limits)), expected)


@pytest.mark.parametrize("kernel_size", [1, 3, 9, 23])
def test_gaussian_blur(kernel_size):
    images, sigmas = floats((3, 17, 23)), [0.1, 0.8, 1.5, 4.0]
    expected = torch.stack([tv.gaussian_blur(i, [kernel_size] * 2, [s]) for i, s in zip(images, sigmas, strict=True)])
    close(ours.gaussian_blur(images, torch.tensor(sigmas), kernel_size=kernel_size), expected)


AFFINE = [(0.0, (0, 0), 1.0, (0.0, 0.0)), (31.0, (2, -1), 0.8, (5.0, -9.0)), (-100.0, (0, 3), 1.3, (0.0, 20.0))]


@pytest.mark.parametrize("mode", [Mode.BILINEAR, Mode.NEAREST])
@pytest.mark.parametrize("shape", SIZES)
def test_affine(shape, mode):
    images = floats(shape, num=3)
    angle, translate, scale, shear = (torch.tensor(column) for column in zip(*AFFINE, strict=True))
    matrix = ours.affine_matrix(3, angle=angle, translate=translate.unbind(1), scale=scale, shear=shear.unbind(1))
    warped = ours.warp(images, matrix, interpolation=mode.value)
    for mine, image, (a, t, z, s) in zip(warped, images, AFFINE, strict=True):
        theirs = tv.affine(image, a, list(t), z, list(s), interpolation=mode)
        different = ((mine - theirs).abs() > 1e-4).float().mean()  # a place on an edge may fall to either side
        assert float(different) < 0.01


def test_a_fill_is_torchvisions_for_the_nearest_pixel_and_a_mean_at_bilinear_borders():
    image = levels(num=1)
    matrix = ours.affine_matrix(1, angle=30.0)
    nearest = ours.warp(image, matrix, interpolation="nearest", fill=9)
    assert (nearest != tv.affine(image, 30.0, [0, 0], 1.0, [0.0, 0.0], fill=9)).float().mean() < 0.01
    flat = torch.full((1, 1, 20, 20), 0.5)
    torch.testing.assert_close(ours.warp(flat, ours.affine_matrix(1, angle=30.0), fill=0.5), flat)


def test_perspective():
    image, size = floats(num=1), (17, 23)
    moved = torch.tensor([[[2.0, 1.0], [-3.0, 2.0], [-1.0, -2.0], [1.0, -4.0]]])
    start = [[0, 0], [22, 0], [22, 16], [0, 16]]
    end = [[x + int(dx), y + int(dy)] for (x, y), (dx, dy) in zip(start, moved[0].tolist(), strict=True)]
    mine = ours.warp(image, ours.perspective_matrix(moved, size=size))
    # torchvision solves in corner coordinates and samples at pixel middles: half a pixel apart at the far end
    theirs = tv.perspective(image, start, end)
    grad = torch.linspace(0, 1, 23).expand(1, 3, 17, 23)
    mine_ramp = ours.warp(grad, ours.perspective_matrix(moved, size=size))[..., 5:12, 6:16]
    theirs_ramp = tv.perspective(grad, start, end)[..., 5:12, 6:16]
    assert mine.shape == theirs.shape
    close(mine_ramp, theirs_ramp, atol=0.02)


def test_crop_with_padding():
    images, top, left = levels(num=4), [-4, 0, 3, 9], [2, -4, 0, 9]
    cropped = ours.crop(images, torch.tensor(top), torch.tensor(left), size=(17, 23), fill=0)
    expected = [tv.crop(i, t, x, 17, 23) for i, t, x in zip(images, top, left, strict=True)]
    assert torch.equal(cropped, torch.stack(expected))


@pytest.mark.parametrize("name", ["imagenet", "cifar10", "svhn"])
def test_published_policies(name):
    theirs = v2.AutoAugment(v2.AutoAugmentPolicy(name))._policies
    assert [[(op, p, m or 0) for op, p, m in pair] for pair in theirs] == [list(map(tuple, p)) for p in PUBLISHED[name]]
    assert len(theirs) == 25


@pytest.mark.parametrize(
    ("transform", "ranges"),
    [(v2.TrivialAugmentWide, WIDE), (v2.RandAugment, Ranges()), (v2.AutoAugment, Ranges(num_bins=10))],
)
def test_ranges_of_magnitudes(transform, ranges):
    space, table, px = transform._AUGMENTATION_SPACE, ranges.table(), 331
    assert set(space) <= set(NAMES)
    assert set(NAMES) - set(space) <= {"Invert", "Identity"}
    for name, (magnitudes, signed) in space.items():
        mine, theirs = table[NAMES.index(name)], magnitudes(ranges.num_bins, px, px)
        share = px if name.startswith("Translate") and ranges.translate_unit == "share" else 1
        expected = np.zeros(ranges.num_bins) if theirs is None else theirs.double().numpy()
        assert np.allclose(mine * share, expected, rtol=1e-6, atol=1e-6), name
        assert signed == (NAMES.index(name) in SIGNED)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(3, 33, 40), (1, 33, 40)])
def test_operations_do_what_torchvisions_do(name, shape):
    smooth = torch.nn.functional.avg_pool2d(floats((shape[0], 37, 44), num=1), 5, 1)
    image = ours.autocontrast(smooth * 255 // 1 / 255).mul(255).to(torch.uint8)
    magnitudes = {"Posterize": [3.0, 8.0], "Solarize": [0.3, 1.0], "Rotate": [-20.0, 45.0], "TranslateX": [5.0, -9.9]}
    magnitudes["TranslateY"] = magnitudes["TranslateX"]
    for magnitude in magnitudes.get(name, [-0.5, 0.3]):
        mine = OPERATIONS[name](image, torch.tensor([magnitude], dtype=torch.float64))
        theirs = v2.RandAugment()._apply_image_or_video_transform(image, name, magnitude, Mode.NEAREST, {})
        distance = (mine.int() - theirs.int()).abs()
        if name in ("ShearX", "ShearY", "Rotate"):
            assert float((distance > 0).float().mean()) < 0.01  # places on an edge
        else:
            assert int(distance.max()) <= (1 if name in ("Brightness", "Color", "Contrast", "Sharpness") else 0)


def test_standardize_is_the_formula():
    images = levels()
    values = images.double() / 255
    for per_channel, dims in ((True, (-2, -1)), (False, (-3, -2, -1))):
        mean, std = values.mean(dims, keepdim=True), values.std(dims, correction=0, keepdim=True)
        close(ours.standardize(images, per_channel=per_channel), ((values - mean) / std).float())
