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

SETTINGS = {
    "model": "kiln/small_cnn",
    "kwargs": {"widths": [8, 16]},
    "img_size": 16,
    "epochs": 2,
    "workers": 2,
    "report": False,
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KILN_CACHE", str(tmp_path / "cache"))


def train(folder, output, **changes) -> Run:
    return kiln.train(folder, output=str(output), **(SETTINGS | changes))


def what_came_out(run: Run) -> tuple[bytes, bytes]:
    return run.model_file.read_bytes(), (run.path / "predictions.csv").read_bytes()


@pytest.mark.parametrize("changes", [{}, {"stored_jpeg": 85}, {"crop": "none"}, {"pixel_form": "original"}], ids=str)
def test_cold_warm_off_full_and_in_memory_give_the_same_run(image_folder, tmp_path, changes):
    cold = train(image_folder, tmp_path / "cold", cache="disk", **changes)
    places = room.entries()
    assert {entry.where for entry in places} == {str(image_folder)}
    assert len(places) == 2  # training's and validation's
    assert "0% there" in cold.resolved["reasons"]["data.cache"]
    warm = train(image_folder, tmp_path / "warm", cache="disk", **changes)
    assert len(room.entries()) == len(places)
    assert warm.resolved["reasons"]["data.cache"].count("100% there") == len(places)
    off = train(image_folder, tmp_path / "off", cache="off", **changes)
    full = train(image_folder, tmp_path / "full", cache="disk", cache_size="1KB", **changes)
    assert "no room" in full.resolved["reasons"]["data.cache"]
    part = train(image_folder, tmp_path / "part", cache="memory", cache_size="20KB", **changes)
    memory = train(image_folder, tmp_path / "memory", cache="memory", **changes)
    assert "in memory" in memory.resolved["reasons"]["data.cache"]
    expected = what_came_out(cold)
    assert all(what_came_out(run) == expected for run in (warm, off, full, part, memory))


def test_nothing_is_left_open_in_what_is_recorded(image_folder, tmp_path):
    run = train(image_folder, tmp_path / "run")
    left_open = [name for name, value in run.resolved["values"].items() if value == "auto"]
    assert left_open == ["loss.name"]  # the task's own


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


def test_a_resumed_run_keeps_what_it_kept_and_no_more(image_folder, tmp_path):
    run = train(image_folder, tmp_path / "a", pixel_form="original")
    assert len(room.entries()) == 1
    said = run.resolved["reasons"]["data.cache"]
    again = kiln.resume(run.path, extend="1ep")
    assert len(room.entries()) == 1  # not the bytes of the files, which nobody asked to keep
    assert again.resolved["reasons"]["data.cache"].count("validation:") == said.count("validation:") == 1


def test_the_pixel_form_decides_what_is_cropped_and_is_recorded(image_folder, tmp_path):
    original = train(image_folder, tmp_path / "a", pixel_form="original")
    assert len(room.entries()) == 1  # validation's
    stored = train(image_folder, tmp_path / "b", stored_px=18)
    assert stored.resolved["values"]["data.pixel_form"] == "stored"
    assert stored.resolved["values"]["data.stored_px"] == 18
    as_jpeg = train(image_folder, tmp_path / "c", stored_px=18, stored_jpeg=60)
    weights = [what_came_out(run)[0] for run in (original, stored, as_jpeg)]
    assert len(set(weights)) == 3


def test_copies_that_are_not_reduced_are_the_same_training_as_the_files(image_folder, tmp_path):
    """As for CIFAR-10 at 32 px: what accuracy could `stored` cost there?"""
    sizes = {"img_size": 32, "crop": "resized"}
    stored = train(image_folder, tmp_path / "a", pixel_form="stored", **sizes)
    original = train(image_folder, tmp_path / "b", pixel_form="original", **sizes)
    assert what_came_out(stored) == what_came_out(original)


def test_small_images_of_the_models_size_are_cropped_out_of_a_border(image_folder, tmp_path):
    sizes = {"img_size": 32}  # the images' own
    padded = train(image_folder, tmp_path / "a", **sizes)
    assert padded.resolved["values"]["augment.crop"] == "padded"
    again = train(image_folder, tmp_path / "b", cache="off", workers=0, **sizes)
    assert what_came_out(again) == what_came_out(padded)
    resized = train(image_folder, tmp_path / "c", crop="resized", **sizes)
    assert resized.resolved["values"]["data.pixel_form"] == "stored"
    assert what_came_out(resized)[0] != what_came_out(padded)[0]


def test_list_and_clear(image_folder, tmp_path, capsys):
    train(image_folder, tmp_path / "runs")
    capsys.readouterr()
    assert main(["cache", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [entry["data"] for entry in listed["caches"]] == [str(image_folder)] * 2
    assert main(["cache", "clear"]) == 0
    assert "2 caches removed" in capsys.readouterr().out
    assert room.entries() == []
    assert main(["cache", "empty"]) == 2
    assert "choices: list, clear" in capsys.readouterr().err
