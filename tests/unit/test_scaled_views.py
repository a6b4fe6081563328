"""Views nearer and farther."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from kiln.augment.views import scaled, views
from kiln.errors import UsageError

IMAGES = torch.randint(0, 256, (3, 3, 32, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def resized(image: torch.Tensor, width: int, height: int) -> np.ndarray:
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR)).astype(int)


def test_nearer_is_the_middle_enlarged():
    seen = scaled(IMAGES, 2.0)
    assert seen.shape == IMAGES.shape
    assert seen.dtype == torch.uint8
    for image, view in zip(IMAGES, seen, strict=True):
        expected = resized(image[:, 8:24, 6:18], 24, 32)
        assert np.abs(view.permute(1, 2, 0).numpy().astype(int) - expected).max() <= 1


def test_farther_is_the_whole_reduced_within_its_own_border():
    seen = scaled(IMAGES, 0.5)
    for image, view in zip(IMAGES, seen, strict=True):
        array = view.permute(1, 2, 0).numpy().astype(int)
        assert np.abs(array[8:24, 6:18] - resized(image, 12, 16)).max() <= 1
        assert (array[:8] == array[8]).all()
        assert (array[24:] == array[23]).all()
        assert (array[:, :6] == array[:, 6:7]).all()
        assert (array[:, 18:] == array[:, 17:18]).all()


def test_by_name_and_joined():
    seen = views(IMAGES, ["scale(1)", "scale(1.25)", "scale(0.8)+hflip"])
    assert seen.shape == (3, *IMAGES.shape)
    assert torch.equal(seen[0], IMAGES)
    assert torch.equal(seen[1], scaled(IMAGES, 1.25))
    assert torch.equal(seen[2], scaled(IMAGES, 0.8).flip(-1))
    assert views(IMAGES.double() / 255, ["scale(0.8)"]).dtype == torch.float64


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("scale(9)", r"scale\(9\)\n.*a factor from 0\.25 to 4"),
        ("scale(0)", r"scale\(0\)"),
        ("scale()", r"view 'scale\(\)'"),
    ],
)
def test_what_is_no_scale_is_refused(name, message):
    with pytest.raises(UsageError, match=message):
        views(IMAGES, [name])
