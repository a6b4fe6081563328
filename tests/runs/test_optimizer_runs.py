"""Optimizers as the command reaches them: trained, killed in mid-run and resumed, shown without training."""

from __future__ import annotations

import shutil

import pytest
from albums import FLAGS, TINY, class_folders, command, train

import kiln
from kiln.observe.progress import make

CHOICES = {
    "sam with adaptive clipping": {"optim.sam": 0.05, "optim.clip_adaptive": 0.05, "training.micro_batch_size": 5},
    "lbfgs on the full batch": {"optim.name": "lbfgs", "training.batch_size": "all", "optim.args": {"max_iter": 3}},
    "muon in stages, of which the first has only what AdamW trains": {
        "optim.name": "muon",
        "schedule.name": "one_cycle",
        "finetune.mode": "staged",
        "finetune.random_weights": True,
    },
    "muon": {"optim.name": "muon", "optim.layer_decay": 0.8, "optim.head_lr": 2.0},
    "lamb, which counts by group": {"optim.name": "lamb", "optim.lr": 0.01},
    "single samples": {"optim.name": "sgd", "training.batch_size": 1, "training.epochs": "20steps"},
}


@pytest.mark.parametrize("choice", CHOICES)
def test_a_run_that_was_stopped_and_resumed_ends_with_the_same_weights(tmp_path, choice):
    data = class_folders(tmp_path / "photos")
    overrides = {"training.epochs": "4ep", "augment.policy": "light", "checkpoint.every": "2steps", **CHOICES[choice]}
    settings = {key: value for key, value in TINY.items() if key not in ("epochs", "batch_size")}
    if "training.batch_size" not in overrides:
        settings["batch_size"] = 16
    whole = kiln.train(
        str(data), output=str(tmp_path / "whole"), overrides=overrides, progress=make(quiet=True), **settings
    )
    half = kiln.train(
        str(data), output=str(tmp_path / "half"), overrides=overrides, progress=make(quiet=True), **settings
    )
    _, *newer = steps = sorted((half.path / "checkpoints").iterdir())
    assert len(newer) >= 1
    for folder in newer:  # as if it had been killed before them
        shutil.rmtree(folder)
    kiln.train(resume=str(half.path), progress=make(quiet=True))
    for name in ("model", "optimizer"):
        ends = [run.path / "checkpoints" / steps[-1].name / f"{name}.safetensors" for run in (whole, half)]
        assert ends[0].read_bytes() == ends[1].read_bytes()


def test_a_dry_run_shows_every_group_and_leaves_nothing(tmp_path):
    data = class_folders(tmp_path / "photos")
    flags = (*FLAGS, "--output", tmp_path / "runs", "--set", "optim.head_lr=10", "--layer-decay", "0.5")
    said = command("train", data, *flags, "--set", "optim.groups={features.0: {betas: [0.5, 0.9]}}", "--dry-run")
    assert said.status == 0, said.err
    lines = said.out.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("group "))
    assert lines[start].split() == ["group", "lr", "weight", "decay", "parameters", "tensors", "settings", "names"]
    assert any(line.startswith("features.0 layer 0, no decay") and "betas=(0.5, 0.9)" in line for line in lines)
    head = next(line for line in lines if line.startswith("head layer"))
    assert "0.01 " in head
    assert "0.05" in head
    assert not (tmp_path / "runs").exists()
    told = command("train", data, *flags, "--dry-run", "--json").json
    assert sum(row["parameters"] for row in told["groups"]) == 1191
    assert told["settings"]["optim.layer_decay"] == 0.5


def test_a_dry_run_of_a_run_is_refused(tmp_path):
    said = command("train", tmp_path, "--dry-run", "--resume", "auto")
    assert said.status == 2
    assert "--dry-run shows how a run would begin" in said.err


def test_settings_that_timms_optimizer_does_not_take_are_errors(tmp_path):
    data = class_folders(tmp_path / "photos")
    said = command(
        "train", data, *FLAGS, "--output", tmp_path / "runs", "--opt", "lion", "--set", "optim.args.lambda=1"
    )
    assert said.status == 2
    assert "lion takes no 'lambda'" in said.err
    said = command("train", data, *FLAGS, "--output", tmp_path / "runs", "--set", "optim.args.betas=[0.9,0.9]")
    assert "optim.args.betas" in said.err
    assert "optim.betas, the field of its own" in said.err


def test_all_is_every_training_sample_in_usual_cuts(tmp_path):
    run = train(class_folders(tmp_path / "photos"), tmp_path, batch_size="all", epochs=2)
    values = run.resolved["values"]
    assert values["training.batch_size"] == values["training.micro_batch_size"] == 30
    assert run.status["step"] == 2


def test_muon_for_the_head_alone_is_refused(tmp_path):
    data = class_folders(tmp_path / "photos")
    flags = ("--output", tmp_path / "runs", "--opt", "muon", "--set", "finetune.random_weights=true")
    said = command("train", data, *FLAGS, *flags, "--set", "finetune.mode=head")
    assert said.status == 2
    assert "muon finds no hidden matrix or kernel here" in said.err


def test_a_loss_or_schedule_of_the_users_that_fails_in_mid_run_is_named_and_no_bug_of_kiln(tmp_path):
    data, mine = class_folders(tmp_path / "photos"), tmp_path / "mine.py"
    mine.write_text(
        "import torch.nn.functional as F\n"
        "calls = []\n"
        "def late(outputs, targets):\n"
        "    calls.append(1)\n"
        "    return F.cross_entropy(outputs, targets) / (len(calls) < 3 or {}['gone'])\n"
        "def boom(step):\n"
        "    return 1 / (1 - step)\n"
    )
    said = command("train", data, *FLAGS, "--output", tmp_path / "a", "--loss", f"{mine}:late")
    assert (said.status, "the loss late fails at step 2: KeyError: 'gone'" in said.err) == (2, True), said.err
    assert "bug in Kiln" not in said.err
    said = command("train", data, *FLAGS, "--output", tmp_path / "b", "--sched", f"{mine}:boom")
    assert (said.status, "fails at its step 1: ZeroDivisionError" in said.err) == (2, True), said.err
    said = command("train", data, *FLAGS, "--output", tmp_path / "c", "--set", "optim.betas=[0.9]")
    assert (said.status, "betas = [0.9] for adamw" in said.err) == (2, True), said.err
