"""Promises about a whole training, by the real command: it repeats in new processes, and the test split has no say."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

import albums
import pytest
from safetensors.torch import load_file

from kiln.run import Run


@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_fifty_steps_repeat_in_new_processes(threads, image_folder, tmp_path):
    """With dropout, mixing, an average and random crops; the machine's random numbers and hashes differ each time."""
    flags = (
        "--model",
        "kiln/small_cnn",
        "--img-size",
        "32",
        "--epochs",
        "50steps",
        "-b",
        "16",
        "-j",
        "2",
        "--seed",
        "3",
    )
    fields = ("model.drop=0.2", "training.ema_decay=0.9", "augment.mixup=0.2", "model.kwargs.widths=[8,16]")
    fields += ("training.eval_every=50steps", "checkpoint.every=50steps", "data.cache=off")
    sets = [word for field in fields for word in ("--set", field)]
    runs = []
    for name in ("one", "two"):
        command = [
            sys.executable,
            "-m",
            "kiln",
            "train",
            image_folder,
            *flags,
            *sets,
            "--output",
            tmp_path,
            "--name",
            name,
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONHASHSEED": "random"}
        subprocess.run(command, check=True, capture_output=True, timeout=240, env=environment)
        runs.append(Run(tmp_path / name))
    first, second = runs
    assert first.status["step"] == 50
    manifest = json.loads((first.path / "checkpoints/step-00000050/manifest.json").read_text())
    assert manifest["about"]["threads"] == threads
    assert [row.get("loss") for row in first.metrics()] == [row.get("loss") for row in second.metrics()]
    digests = [
        [
            hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(run.path.glob("checkpoints/*50/*.safetensors"))
        ]
        for run in runs
    ]
    assert digests[0] == digests[1]
    assert len(digests[0]) == 3  # weights, their average, and the optimizer's state
    assert first.model_file.read_bytes() == second.model_file.read_bytes()


def test_trap_the_test_split_has_no_say_in_what_is_best(tmp_path):
    """The same training beside another test split, and beside one with wrong labels, ends with the same best weights."""
    photos = albums.split_folders(tmp_path / "photos")
    run = albums.train(photos, tmp_path / "runs", epochs=4)
    folders = sorted((photos / "test").iterdir())
    names = [folder.name for folder in folders]
    for folder in folders:
        folder.rename(folder.with_name(f"_{folder.name}"))
    for old, new in zip(names, [*names[1:], names[0]], strict=True):
        (photos / "test" / f"_{old}").rename(photos / "test" / new)
    other = albums.train(photos, tmp_path / "runs", epochs=4)
    assert run.result["metrics"]["test"] != other.result["metrics"]["test"]
    assert run.result["metrics"]["val"] == other.result["metrics"]["val"]
    mine, theirs = load_file(run.model_file), load_file(other.model_file)
    assert all(mine[name].equal(theirs[name]) for name in mine)
