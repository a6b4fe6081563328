"""`kiln verify`, as typed: a training that repeats, one that does not, a run, a recipe file."""

from __future__ import annotations

import sys
import textwrap

import albums
import pytest

import kiln

NOISY = """
    import random
    from torch import nn

    class Noise(nn.Module):
        def forward(self, x):
            return x * (1 + 1e-3 * random.random())

    def model(num_classes, in_chans, **_):
        return nn.Sequential(
            nn.Conv2d(in_chans, 4, 3, 2), Noise(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes)
        )
"""


@pytest.fixture
def photos(tmp_path):
    return albums.class_folders(tmp_path / "photos")


@pytest.fixture
def noisy(tmp_path, monkeypatch):
    """The name of a model with randomness of its own."""
    (tmp_path / "noisy_model.py").write_text(textwrap.dedent(NOISY))
    monkeypatch.syspath_prepend(tmp_path)
    yield "noisy_model:model"
    sys.modules.pop("noisy_model", None)


def test_training_repeats_with_dropout_mixing_and_momentum(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fields = ("--mixup", "0.2", "--aug", "strong", "--set", "training.ema_decay=0.9", "--set", "model.drop=0.5")
    said = albums.command("verify", photos, *albums.FLAGS, "-b", "4", *fields, "--steps", "2")
    assert said.status == 0, said.err
    assert "same     2 steps, twice: every batch, loss, weight and optimizer state, bit for bit" in said.out
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_operation_that_differs_is_named(photos, noisy):
    said = albums.command("verify", photos, "--model", noisy, "--img-size", "16", "-b", "4", "-j", "0", "--epochs", "1")
    assert said.status == 7
    assert "error E603: the training does not repeat: step 1 differs in its loss" in said.err
    assert "aten.mul.Tensor in module '1'" in said.err
    assert "next: code with randomness of its own" in said.err


def test_run_is_repeated_from_its_beginning(photos, tmp_path):
    run = albums.train(photos, tmp_path / "runs", batch_size=4)
    found = kiln.verify(run, steps=100)
    assert found.same
    assert found.steps == run.status["step"]
    assert found.digests == kiln.verify(photos, steps=100, **{**albums.TINY, "batch_size": 4}).digests
    said = albums.command("verify", run.path, "--lr", "0.5")
    assert said.status == 2
    assert "optim.lr: the run has" in said.err


def test_recipe_file_is_verified(photos, tmp_path):
    run = albums.train(photos, tmp_path / "runs", batch_size=4)
    said = albums.command("verify", run.path / "recipe.yaml", "--steps", "1", "--json")
    assert said.status == 0, said.err
    assert said.json["same"] is True
    assert said.json["steps"] == 1


def test_what_cannot_be_verified_is_refused(photos):
    for arguments, words in (
        ([photos, "--steps", "0"], "steps = 0"),
        ([photos, "--set", "run.processes=2"], "verify trains in one process"),
        ([], "no data: nothing to train on"),
    ):
        said = albums.command("verify", *arguments)
        assert said.status == 2
        assert words in said.err
