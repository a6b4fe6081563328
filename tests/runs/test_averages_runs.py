"""Averages, growing images and initial values in real runs: each has its effect, and a kill changes nothing."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

import kiln
from kiln.errors import UsageError
from small_runs import Trial, differing, outcome

SMALL = {
    "model": "kiln/small_cnn",
    "kwargs": {"widths": [8, 16]},
    "img_size": 32,
    "epochs": 4,
    "workers": 0,
    "report": False,
}
EACH = {
    "swa": {"training.swa_start": "50%"},
    "growing": {"augment.first_px": 16},
    "init": {"model.init": {"features*.weight": "normal(0.2)", "head.bias": "class_prior"}},
}


def train(folder, output, overrides=None):
    return kiln.train(folder, output=str(output), overrides=overrides or {}, **SMALL)


@pytest.fixture(scope="module")
def plain(image_folder, tmp_path_factory):
    return load_file(train(image_folder, tmp_path_factory.mktemp("plain")).model_file)


@pytest.mark.parametrize("name", EACH)
def test_each_has_an_effect_and_repeats(name, plain, image_folder, tmp_path):
    one, other = (load_file(train(image_folder, tmp_path / place, EACH[name]).model_file) for place in "ab")
    assert all(torch.equal(one[key], other[key]) for key in plain)
    assert not all(torch.equal(one[key], plain[key]) for key in plain)


@pytest.mark.parametrize("cut", [3, 14, 18])  # before the average, at its beginning, after
def test_killed_run_ends_with_the_same_average(nursery, image_folder, tmp_path, cut):
    fields = ("training.ema_decay=0", "training.swa_start=50%", "augment.first_px=16", "model.init.head*=normal(0.1)")
    everything = tuple(word for field in fields for word in ("--set", field))
    whole = Trial(nursery, image_folder, tmp_path / "whole", *everything)
    whole.go()
    killed = Trial(nursery, image_folder, tmp_path / "killed", *everything, "--checkpoint-every", "1steps")
    killed.go(SIGNAL_AT=f"{cut}:SIGKILL", expect=-9)
    killed.go()
    assert differing(outcome(killed.run), outcome(whole.run)) == []


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"training.swa_start": "9ep"}, r"training.swa_start = 9ep has no effect: the run ends at step \d+"),
        ({"training.swa_start": "50%", "training.ema_decay": 0.9}, "two averages of the weights"),
        ({"augment.first_px": 32}, "augment.first_px = 32 with kiln/small_cnn at 32 px"),
        ({"augment.full_px_from": "50%"}, "augment.full_px_from = 50% has no effect without augment.first_px"),
        ({"training.min_delta": 0.1}, "training.min_delta = 0.1 has no effect without training.patience"),
        ({"model.init": {"no.such": "zeros"}}, "'no.such' fits no parameter"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_done(overrides, words, image_folder, tmp_path):
    with pytest.raises(UsageError, match=words):
        train(image_folder, tmp_path, overrides)


def test_model_built_for_one_size_is_not_given_another(image_folder, tmp_path):
    with pytest.raises(UsageError, match=r"augment\.first_px = 32 with timm/vit_tiny_patch16_224 at 64 px"):
        kiln.train(image_folder, output=str(tmp_path), **{**SMALL, "kwargs": {}, "model": "vit_tiny_patch16_224", "img_size": 64},
                   overrides={"augment.first_px": 32})  # fmt: skip
