"""An optimizer that keeps its state in 8 bits, from a library: a run with it, cut in two, ends the same."""

from __future__ import annotations

import pytest
import torch
from albums import FLAGS, class_folders, command
from safetensors.torch import load_file

pytest.importorskip("bitsandbytes")
ADAM = ("--opt", "bitsandbytes.optim:AdamW8bit", "--sched", "constant", "--warmup", "0%", "--lr", "0.01")
WIDE = ("--set", "model.kwargs.widths=[32,64]")  # it leaves tensors of fewer than 4,096 numbers at 32 bits


def test_a_run_with_an_8_bit_optimizer_cut_in_two_ends_the_same(tmp_path):
    photos, runs = class_folders(tmp_path / "photos"), tmp_path / "runs"
    for name, epochs in (("whole", "4"), ("cut", "2")):
        more = ("--output", runs, "--name", name, *ADAM, *WIDE, "--epochs", epochs)
        said = command("train", photos, *FLAGS, *more)
        assert said.status == 0, said.err
    resumed = command("resume", runs / "cut", "--extend", "2ep", "--trust", "bitsandbytes.optim:AdamW8bit")
    assert resumed.status == 0, resumed.err
    ends = []
    for name in ("whole", "cut"):
        last = sorted((runs / name).glob("checkpoints/step-*"))[-1]
        files = sorted(last.glob("*.safetensors"))
        ends.append({f"{file.name}/{key}": t for file in files for key, t in load_file(file).items()})
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    assert sum(tensor.dtype == torch.uint8 and tensor.numel() >= 4096 for tensor in ends[0].values()) >= 2
