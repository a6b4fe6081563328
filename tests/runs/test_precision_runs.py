"""Runs in half precision and with blocks computed again: what they write is fp32, and a resume ends the same."""

from __future__ import annotations

import re

import pytest
import torch
from albums import FLAGS, class_folders, command
from safetensors.torch import load_file

from kiln.run import Run

HALF = (torch.bfloat16, torch.float16)


@pytest.fixture
def photos(tmp_path):
    return class_folders(tmp_path / "photos")


def run_of(tmp_path, *more, name, photos):
    said = command("train", photos, *FLAGS, "--output", tmp_path / "runs", "--name", name, *more)
    assert said.status == 0, said.err
    return Run(tmp_path / "runs" / name)


def tensors_of(run):
    files = [run.path / "model.safetensors", *sorted(run.path.glob("checkpoints/*/*.safetensors"))]
    assert len(files) >= 3
    return {f"{file.parent.name}/{file.name}/{name}": t for file in files for name, t in load_file(file).items()}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_files_of_a_half_precision_run_hold_fp32_alone(tmp_path, photos, precision):
    more = ("--precision", precision, "--set", "training.ema_decay=0.9", "--set", "training.fp32_modules=[head]")
    run = run_of(tmp_path, *more, name="run", photos=photos)
    tensors = tensors_of(run)
    floating = {name: tensor.dtype for name, tensor in tensors.items() if tensor.is_floating_point()}
    assert len(floating) > 30
    assert set(floating.values()) == {torch.float32}
    scales = [float(tensor) for name, tensor in tensors.items() if name.endswith("/scale")]
    assert bool(scales) == (precision == "fp16")
    assert all(0 < scale <= 65536 for scale in scales)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_half_precision_run_cut_in_two_ends_the_same(tmp_path, photos, precision):
    """The second part is made by extension: it reads the checkpoint, scale and all."""
    more = ("--precision", precision, "--sched", "constant", "--warmup", "0%")
    whole = run_of(tmp_path, *more, "--epochs", "4", name="whole", photos=photos)
    cut = run_of(tmp_path, *more, "--epochs", "2", name="cut", photos=photos)
    said = command("resume", cut.path, "--extend", "2ep")
    assert said.status == 0, said.err
    ends = [load_file(run.path / "model.safetensors") for run in (whole, cut)]
    last = [sorted(run.path.glob("checkpoints/step-*"))[-1] for run in (whole, cut)]
    for file in sorted(path.name for path in last[0].glob("*.safetensors")):
        one, other = (load_file(folder / file) for folder in last)
        assert all(torch.equal(one[name], other[name]) for name in one), file
    assert ends[0].keys() == ends[1].keys()


def test_blocks_computed_again_give_the_same_run_bit_for_bit(tmp_path, photos):
    model = (
        "--model",
        "resnet10t",
        "--img-size",
        "32",
        "--set",
        "model.kwargs={}",
        "--epochs",
        "1",
        "--precision",
        "bf16",
    )
    kept = run_of(tmp_path, *model, name="kept", photos=photos)
    again = run_of(tmp_path, *model, "--set", "training.activation_checkpointing=[blocks]", name="again", photos=photos)
    one, other = (load_file(run.path / "model.safetensors") for run in (kept, again))
    assert len(one) > 50
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--precision", "tf32"), "'tf32' has no effect on cpu"),
        (("--precision", "fp32", "--set", "training.fp32_modules=[head]"), "training.fp32_modules = .* has no effect"),
        (("--precision", "bf16", "--set", "training.fp32_modules=[hed]"), "'hed' names no module of the model"),
        (("--set", "training.activation_checkpointing=[blocs]"), "'blocs' names no module of the model"),
        (("--precision", "fp16", "--opt", "lbfgs"), "precision = 'fp16' with LBFGS"),
    ],
)
def test_what_would_have_no_effect_is_an_error(tmp_path, photos, more, said):
    told = command("train", photos, *FLAGS, "--output", tmp_path / "runs", *more)
    assert told.status == 2
    assert re.search(said, told.err), told.err
