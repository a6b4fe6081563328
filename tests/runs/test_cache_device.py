"""Training from images that live on the device (here the CPU): the same run as from any other place."""

from __future__ import annotations

import re

import pytest

import kiln
from kiln.errors import UsageError
from kiln.run import Run
from small_runs import Trial, differing, outcome

SETTINGS = {
    "model": "kiln/small_cnn",
    "kwargs": {"widths": [8, 16]},
    "img_size": 32,
    "epochs": 2,
    "workers": 2,
    "report": False,
}


def train(folder, output, **changes) -> Run:
    return kiln.train(folder, output=str(output), **(SETTINGS | changes))


def what_came_out(run: Run) -> tuple[bytes, bytes]:
    return run.model_file.read_bytes(), (run.path / "predictions.csv").read_bytes()


@pytest.mark.parametrize(
    "changes",
    [{}, {"crop": "none", "img_size": 16}, {"policy": "none", "mixup": 0.2}, {"policy": "standard", "workers": 0}],
    ids=str,
)
def test_the_device_memory_and_no_cache_give_the_same_run(image_folder, tmp_path, changes):
    device = train(image_folder, tmp_path / "device", cache="device", **changes)
    reason = device.resolved["reasons"]["data.cache"]
    assert re.search(r"training: 0\.\d MB on cpu, room for [\d,]+ MB", reason)
    memory = train(image_folder, tmp_path / "memory", cache="memory", **changes)
    off = train(image_folder, tmp_path / "off", cache="off", **changes)
    assert what_came_out(device) == what_came_out(memory) == what_came_out(off)


def test_a_training_set_that_does_not_fit_is_refused(image_folder, tmp_path):
    with pytest.raises(UsageError, match=r"data\.cache = 'device', but 168,960 bytes are needed and 100,000 may be"):
        train(image_folder, tmp_path, cache="device", cache_size="100KB")
    run = train(image_folder, tmp_path, cache="device", cache_size="168960B", epochs=1)
    assert run.resolved["values"]["data.cache_size"] == "168960B"


def test_what_the_device_cannot_make_alike_is_refused(image_folder, tmp_path):
    with pytest.raises(UsageError, match="'resized' is made on the host"):
        train(image_folder, tmp_path, cache="device", img_size=16)
    with pytest.raises(UsageError, match=r"augment\.transform = 'torch:clone' runs on the host"):
        train(image_folder, tmp_path, cache="device", transform="torch:clone")


def test_a_run_on_the_cpu_is_not_kept_there_unless_asked(image_folder, tmp_path):
    assert train(image_folder, tmp_path, epochs=1).resolved["values"]["data.cache"] == "disk"


def test_killed_and_resumed_it_ends_the_same(nursery, image_folder, tmp_path):
    asked = ("--cache", "device", "--set", "augment.crop=padded")
    whole = Trial(nursery, image_folder, tmp_path / "whole", *asked)
    whole.go()
    killed = Trial(nursery, image_folder, tmp_path / "killed", *asked, "--checkpoint-every", "2steps")
    killed.go(SIGNAL_AT="5:SIGKILL", expect=-9)
    killed.go(workers=2)
    assert differing(outcome(killed.run), outcome(whole.run)) == []
