"""Samplers, policies, mixing and normalisation through `train`: each has its effect, and stays exact."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from safetensors import safe_open

import kiln
from kiln.errors import UsageError
from kiln.run import Run
from small_runs import Trial, differing, outcome

SETTINGS = {
    "model": "kiln/small_cnn",
    "kwargs": {"widths": [8, 16]},
    "img_size": 16,
    "epochs": 2,
    "workers": 2,
    "report": False,
}
CHOICES = {
    "sequential": {"sampler": "sequential"},
    "weighted": {"sampler": "weighted", "sample_weights": "sqrt"},
    "balanced": {"sampler": "balanced"},
    "repeats": {"repeats": 3},
    "fraction": {"train_fraction": 0.5},
    "standard": {"policy": "standard"},
    "strong": {"policy": "strong"},
    "trivial": {"policy": "trivial"},
    "rand": {"policy": "rand(2,9)"},
    "autoaugment": {"policy": "autoaugment(cifar10)"},
    "mixup": {"mixup": 0.2},
    "cutmix": {"cutmix": 1.0, "mix_prob": 0.5},
    "both": {"mixup": 0.2, "cutmix": 1.0},
    "measured": {"mean": "train", "std": "train"},
    "flips alone": {"crop": "none"},
}


def train(folder, output, **changes) -> Run:
    return kiln.train(folder, output=str(output), **(SETTINGS | changes))


def weights(run: Run) -> dict[str, bytes]:
    with safe_open(str(run.model_file), "np") as file:
        return {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118


@pytest.fixture(scope="module")
def plain(image_folder, tmp_path_factory) -> Run:
    return train(image_folder, tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("name", CHOICES)
def test_each_choice_has_an_effect_and_does_not_depend_on_workers(name, plain, image_folder, tmp_path):
    run = train(image_folder, tmp_path / "a", **CHOICES[name])
    assert weights(run) != weights(plain)
    again = train(image_folder, tmp_path / "b", **(CHOICES[name] | {"workers": 0, "cache": "off"}))
    assert weights(again) == weights(run)


def test_a_share_of_the_data_is_said(image_folder, tmp_path):
    run = train(image_folder, tmp_path, train_fraction=0.5, epochs=1)
    assert re.search(r"note       an epoch is 2\d of the 55 training samples", (run.path / "log.txt").read_text())


@pytest.mark.parametrize("cut", [3, 9])
def test_a_run_with_everything_is_killed_and_ends_the_same(nursery, image_folder, tmp_path, cut):
    everything = (
        "--aug",
        "strong",
        "--mixup",
        0.2,
        "--cutmix",
        1.0,
        "--sampler",
        "weighted",
        "--set",
        "data.repeats=2",
    )
    whole = Trial(nursery, image_folder, tmp_path / "whole", *everything)
    whole.go()
    killed = Trial(nursery, image_folder, tmp_path / "killed", *everything, "--checkpoint-every", "2steps")
    killed.go(SIGNAL_AT=f"{cut}:SIGKILL", expect=-9)
    killed.go(workers=2)
    assert differing(outcome(killed.run), outcome(whole.run)) == []


def test_mixing_works_for_several_labels(tmp_path):
    from PIL import Image

    rows = ["path,labels"]
    for number in range(24):
        Image.fromarray(np.full((16, 16, 3), 10 * number, np.uint8)).save(tmp_path / f"{number}.png")
        rows.append(f'{number}.png,"{"dark" if number < 12 else "light"}{",even" if number % 2 == 0 else ""}"')
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    run = train(tmp_path / "labels.csv", tmp_path / "runs", task="multilabel", mixup=0.4, epochs=1)
    assert run.status["state"] == "done"


def test_measured_normalisation_ships_with_the_model(image_folder, tmp_path):
    run = train(image_folder, tmp_path, mean="train", std="train", epochs=1)
    measured = run.resolved["values"]["model.mean"]
    assert "measured on" in run.resolved["reasons"]["model.mean"]
    with safe_open(str(run.model_file), "np") as file:
        text = json.dumps(file.metadata())
    assert all(str(value) in text for value in measured)
    given = train(image_folder, tmp_path, mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25], epochs=1)
    assert list(given.resolved["values"]["model.mean"]) == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": "wieghted"}, "did you mean: weighted"),
        ({"policy": "standrd"}, "did you mean: standard"),
        ({"policy": "rand(99,1)"}, r"rand\(n,m\)"),
        ({"sample_weights": "sqrt"}, "has no effect with data.sampler"),
        ({"mix_prob": 0.3}, "has no effect without augment.mixup"),
        ({"policy": "none", "hflip": 0.1}, "has no effect with augment.policy = 'none'"),
        ({"crop": "padded", "crop_scale": [0.5, 1.0]}, "augment.crop_scale"),
        ({"mean": [0.5]}, "3 numbers, one for each channel"),
        ({"train_fraction": 0.0}, "train_fraction"),
        ({"stored_jpeg": 101}, "stored_jpeg"),
    ],
    ids=str,
)
def test_what_cannot_be_is_said_before_anything_is_done(changes, message, image_folder, tmp_path):
    with pytest.raises(UsageError, match=message):
        train(image_folder, tmp_path, **changes)


def test_a_transform_of_the_users_own_is_exact_when_it_takes_a_generator(plain, image_folder, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import numpy as np\nfrom PIL import Image\n"
        "def roll(image, rng):\n    return Image.fromarray(np.roll(np.asarray(image), int(rng.integers(16)), axis=1))\n"
        "def places(targets):\n    return list(range(len(targets)))[::-1]\n"
    )
    named = {"overrides": {"augment.transform": f"{tmp_path}/mine.py:roll"}}
    run = train(image_folder, tmp_path / "a", **named)
    again = train(image_folder, tmp_path / "b", **(named | {"workers": 0}))
    assert weights(run) == weights(again) != weights(plain)
    own = train(image_folder, tmp_path / "c", sampler=f"{tmp_path}/mine.py:places")
    assert "E0, best effort: the sampler is your own" in (own.path / "log.txt").read_text()
