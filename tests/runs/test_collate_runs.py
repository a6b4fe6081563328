"""Images of different sizes padded to one, and a collate function of the user's own, through the verbs."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

import kiln
from kiln.errors import SecurityError, UsageError
from kiln.recipe import Recipe
from kiln.recipe.trust import code_names, require_trust

CODE = """
import torch
from torch import nn


class Masked(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Linear(8, num_classes)

    def forward(self, images, mask=None):
        features = self.stem(images).relu()
        weights = torch.ones_like(features[:, :1]) if mask is None else mask[:, None].to(features.dtype)
        return self.head((features * weights).sum((2, 3)) / weights.sum((2, 3)))


def masked(num_classes=2):
    return Masked(num_classes)


def mirrored(samples):
    return torch.stack([image.flip(-1) for image, _ in samples]), torch.stack([target for _, target in samples])
"""
PAD = {"resize": "keep", "collate": "pad", "policy": "none", "img_size": 24, "epochs": 2, "workers": 2}


@pytest.fixture
def code(tmp_path):
    (tmp_path / "mine.py").write_text(CODE)
    return tmp_path / "mine.py"


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(40):
        folder = tmp_path / "photos" / ("dark", "light")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        size = (*rng.integers(6, 40, 2), 3)
        Image.fromarray((rng.integers(0, 120, size) + 130 * (number % 2)).astype(np.uint8)).save(
            folder / f"{number}.png"
        )
    return tmp_path / "photos"


def test_images_of_different_sizes_are_trained_on_measured_and_predicted(photos, code, tmp_path):
    asked = {**PAD, "model": f"{code}:masked", "batch_size": 8, "lr": 0.05}
    run = kiln.train(photos, output=str(tmp_path / "runs"), **asked)
    again = kiln.train(photos, output=str(tmp_path / "again"), **(asked | {"workers": 0, "cache": "off"}))
    assert run.model_file.read_bytes() == again.model_file.read_bytes()
    result = json.loads((run.path / "result.json").read_text())["metrics"]["val"]
    trust = (f"{code}:masked",)
    measured = kiln.evaluate(run, split="val", trust=trust)
    assert measured["accuracy"] == result["accuracy"]["value"] == 1.0
    rows = {row["key"]: row for row in kiln.predict(run, photos, trust=trust)}
    assert len(rows) == 40
    assert all(row["label"] == key.split("/")[0] for key, row in rows.items())
    alone = {row["key"]: row for row in kiln.predict(run, photos, trust=trust, batch_size=1)}
    assert max(abs(alone[key]["probability"] - row["probability"]) for key, row in rows.items()) < 1e-5
    with pytest.raises(UsageError, match="an export takes images of one size"):
        kiln.export(run, trust=trust)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy": "light"}, r"augment\.policy = 'light' needs images of one size"),
        ({"mixup": 0.2}, r"augment\.mixup = 0\.2 needs images of one size"),
        ({"cutmix": 1.0}, r"augment\.cutmix = 1\.0 needs images of one size"),
        ({"transform": "torch:clone"}, r"augment\.transform = 'torch:clone' needs images of one size"),
        ({"first_px": 16}, r"augment\.first_px = 16 needs images of one size"),
        ({"cache": "device"}, r"data\.cache = 'device' needs images of one size"),
        ({"mean": "train"}, r"model\.mean = 'train' is measured on images of one size"),
        ({"resize": "crop"}, r"data\.collate = 'pad' with data\.resize = 'crop'"),
        ({"collate": "stack"}, r"data\.collate = 'stack' with data\.resize = 'keep'"),
        ({"collate": "padd"}, r"unknown collate 'padd'|data\.collate = 'padd' with"),
        ({"model": "kiln/small_cnn"}, r"the forward of kiln/small_cnn takes no mask"),
    ],
    ids=str,
)
def test_what_needs_one_size_is_refused(photos, code, tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        kiln.train(photos, output=str(tmp_path / "runs"), **({**PAD, "model": f"{code}:masked"} | changes))


def test_a_function_of_the_user_s_own_changes_what_is_trained_on(photos, code, tmp_path):
    asked = {"model": "kiln/small_cnn", "img_size": 16, "epochs": 1, "workers": 2, "policy": "none"}
    plain = kiln.train(photos, output=str(tmp_path / "a"), **asked)
    mirrored = kiln.train(photos, output=str(tmp_path / "b"), collate=f"{code}:mirrored", **asked)
    assert plain.model_file.read_bytes() != mirrored.model_file.read_bytes()
    assert "E0, best effort: the collate function may hold" in (mirrored.path / "log.txt").read_text()
    with pytest.raises(UsageError, match=r"data\.collate = .*mine\.py:mirrored' runs on the host"):
        kiln.train(photos, output=str(tmp_path / "c"), collate=f"{code}:mirrored", cache="device", **asked)


@pytest.mark.parametrize("field", ["data.collate", "data.sampler", "augment.transform"])
def test_a_recipe_that_names_code_needs_trust(field):
    recipe = Recipe().override({field: "theirs.py:part"})
    assert code_names(recipe) == {field: "theirs.py:part"}
    with pytest.raises(SecurityError, match=r"theirs\.py:part"):
        require_trust(recipe, [], named_by="r.yaml")
    require_trust(recipe, ["theirs.py:part"], named_by="r.yaml")
