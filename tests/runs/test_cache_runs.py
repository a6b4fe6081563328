"""The cache through the verbs: cold, warm, lost or off, a training ends with the same bits."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal

import pytest

import kiln
from kiln.cli import main
from kiln.data import room
from kiln.errors import Preempted
from kiln.events import StepDone
from kiln.observe.progress import Progress
from kiln.run import Run

SETTINGS = {"model": "kiln/small_cnn", "kwargs": {"widths": [8, 16]}, "img_size": 16, "epochs": 2, "workers": 2}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KILN_CACHE", str(tmp_path / "cache"))


def train(folder, output, **changes) -> Run:
    return kiln.train(folder, output=str(output), **(SETTINGS | changes))


def what_came_out(run: Run) -> tuple[bytes, bytes]:
    return run.model_file.read_bytes(), (run.path / "predictions.csv").read_bytes()


def test_cold_warm_off_and_full_give_the_same_run(image_folder, tmp_path):
    cold = train(image_folder, tmp_path / "cold")
    assert [entry.where for entry in room.entries()] == [str(image_folder)]
    assert "0% there" in cold.resolved["reasons"]["data.cache"].replace("\n", " ")
    warm = train(image_folder, tmp_path / "warm")
    assert len(room.entries()) == 1
    assert "100% there" not in warm.resolved["reasons"]["data.cache"]  # validation's images are never in it
    left_open = [name for name, value in cold.resolved["values"].items() if value == "auto"]
    assert left_open == ["loss.name"]  # the task's own
    off = train(image_folder, tmp_path / "off", cache="off")
    full = train(image_folder, tmp_path / "full", cache_size="1KB")
    assert "no room" in full.resolved["reasons"]["data.cache"]
    assert what_came_out(cold) == what_came_out(warm) == what_came_out(off) == what_came_out(full)


def test_a_cache_lost_in_the_middle_changes_nothing(image_folder, tmp_path):
    whole = train(image_folder, tmp_path / "whole")

    class StopsAtStep3(Progress):
        def __call__(self, event):
            if isinstance(event, StepDone) and event.step == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Preempted, match="stopped by SIGTERM at step"):
        train(image_folder, tmp_path / "halves", name="run", progress=StopsAtStep3(io.StringIO()))
    shutil.rmtree(room.root())
    resumed = kiln.resume(tmp_path / "halves" / "run")
    assert what_came_out(resumed) == what_came_out(whole)


def test_the_pixel_form_decides_what_is_cropped_and_is_recorded(image_folder, tmp_path):
    original = train(image_folder, tmp_path / "a", pixel_form="original")
    assert room.entries() == []
    stored = train(image_folder, tmp_path / "b", stored_px=18)
    assert stored.resolved["values"]["data.pixel_form"] == "stored"
    assert stored.resolved["values"]["data.stored_px"] == 18
    assert what_came_out(original)[0] != what_came_out(stored)[0]
    assert [entry.num_bytes for entry in room.entries()] == [
        original.resolved["facts"]["samples"]["train"] * 18 * 18 * 3
    ]


def test_list_and_clear(image_folder, tmp_path, capsys):
    train(image_folder, tmp_path / "runs")
    capsys.readouterr()
    assert main(["cache", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [entry["data"] for entry in listed["caches"]] == [str(image_folder)]
    assert main(["cache", "clear"]) == 0
    assert "1 caches removed" in capsys.readouterr().out
    assert room.entries() == []
    assert main(["cache", "empty"]) == 2
    assert "choices: list, clear" in capsys.readouterr().err
