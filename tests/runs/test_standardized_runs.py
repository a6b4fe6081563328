"""Each image standardised by itself: in training, and wherever the model answers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import kiln
from kiln.augment import Light, OnDevice, Standardized, standardize
from kiln.batch import Batch
from kiln.errors import UsageError
from kiln.models.normalize import Normalized, standardize_images

SETTINGS = {
    "model": "kiln/small_cnn",
    "kwargs": {"widths": [8, 16]},
    "img_size": 32,
    "epochs": 1,
    "workers": 2,
    "report": False,
}


def some_images() -> torch.Tensor:
    images = torch.randint(0, 256, (5, 3, 6, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[3] = 200  # constant
    images[4] = 200
    images[4, 0, 0, 0] = 201  # all but
    return images


def test_the_function_is_the_one_for_plain_loops_and_safe_on_constant_images():
    images = some_images()
    made = standardize_images(images.double() / 255)
    assert torch.allclose(made.float(), standardize(images, per_channel=False), atol=1e-5)
    for image, levels in zip(made[:3].numpy(), images[:3].numpy(), strict=True):
        values = levels.astype(np.float64) / 255
        assert np.allclose(image, (values - values.mean()) / values.std(), atol=1e-12)
    assert made[3].abs().max() < 1e-12
    assert made[4].abs().max() < 0.1
    assert standardize_images(images[:0].float()).shape == (0, 3, 6, 9)


def test_training_and_the_shipped_model_see_the_same():
    class Host:
        def at(self, step):
            params = policy.draw(0, 0, np.arange(5, dtype=np.uint64))
            return Batch(some_images(), torch.arange(5), params=params)

    zero, one = torch.zeros(3), torch.ones(3)
    policy = Standardized(Light(hflip=0.0), standardize_images)
    trained = OnDevice(Host(), policy, device=torch.device("cpu"), mean=zero, std=one).at(0).images
    seen = []

    class Watch(torch.nn.Module):
        def forward(self, images):
            seen.append(images)
            return images.flatten(1)

    Normalized(Watch(), [0.0] * 3, [1.0] * 3, per_image=True)(some_images())
    assert torch.allclose(trained, seen[0], atol=1e-5)
    levels = policy(some_images(), policy.draw(0, 0, np.arange(5, dtype=np.uint64)))
    assert torch.equal(levels, some_images())


def test_the_answers_are_the_same_wherever_the_model_runs(image_folder, tmp_path):
    run = kiln.train(image_folder, output=str(tmp_path), normalize="image", **SETTINGS)
    plain = kiln.train(image_folder, output=str(tmp_path), **SETTINGS)
    assert run.resolved["reasons"]["model.mean"] == "each image is standardised by itself"
    here = kiln.load(run)
    rng = np.random.default_rng(0)
    images = rng.integers(100, 200, (4, 3, 32, 32)).astype(np.uint8)
    images[1] = 7
    logits = here.logits(images)
    assert np.isfinite(logits).all()
    assert not np.allclose(logits, kiln.load(plain).logits(images), atol=1e-3)
    assert np.allclose(here.logits(images - np.uint8(50))[[0, 2, 3]], logits[[0, 2, 3]], atol=1e-3)
    path = kiln.export(run)
    assert np.allclose(kiln.load(path).logits(images), logits, atol=1e-3)
    kept = json.loads((run.path / "result.json").read_text())["metrics"]["val"]
    assert kiln.evaluate(run, split="val")["loss"] == kept["loss"]["value"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": "train"}, r"model\.mean = 'train' has no effect with model\.normalize = 'image'"),
        ({"std": [0.2, 0.2, 0.2]}, r"model\.std = .* has no effect with model\.normalize = 'image'"),
        (
            {"resize": "keep", "collate": "pad", "policy": "none"},
            r"model\.normalize = 'image' needs images of one size",
        ),
    ],
    ids=str,
)
def test_what_has_no_effect_beside_it_is_refused(image_folder, tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        kiln.train(image_folder, output=str(tmp_path), normalize="image", **SETTINGS, **changes)
