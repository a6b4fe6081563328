"""The library from Python: the same runs as the command's, and what a `Run` gives back."""

from __future__ import annotations

import csv
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from albums import CLASSES, FLAGS, TINY, class_folders, command, split_folders, train
from torch import nn

import kiln
from kiln.errors import KilnError, UsageError
from kiln.observe.progress import make
from kiln.recipe.presets import preset


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Train, val and test folders. Read them only."""
    return split_folders(tmp_path_factory.mktemp("data") / "photos")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_python_and_the_command_give_the_same_weights_byte_for_byte(photos, tmp_path):
    run = train(photos, tmp_path / "python", epochs=2)
    said = command("train", photos, *FLAGS, "--epochs", "2", "--output", tmp_path / "command", "--name", "run")
    assert said.status == 0, said.err
    other = kiln.Run(tmp_path / "command/run")
    assert digest(run.model_file) == digest(other.model_file)
    assert (run.path / "predictions.csv").read_bytes() == (other.path / "predictions.csv").read_bytes()
    assert run.result["metrics"] == other.result["metrics"]
    assert digest(train(photos, tmp_path / "python", epochs=2, seed=1).model_file) != digest(run.model_file)


@pytest.mark.slow
def test_a_fresh_process_gives_them_too(photos, tmp_path):
    run = train(photos, tmp_path / "python", workers=2)
    code = f"import kiln; kiln.train({str(photos)!r}, output={str(tmp_path)!r}, name='run', **{TINY!r})"
    environment = {"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1", "PATH": ""}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env=environment, capture_output=True)
    assert digest(tmp_path / "run/model.safetensors") == digest(run.model_file)


def test_the_global_random_state_plays_no_part(photos, tmp_path):
    first = train(photos, tmp_path / "runs")
    torch.manual_seed(99)
    torch.rand(7)
    before = torch.get_rng_state()
    assert digest(train(photos, tmp_path / "runs").model_file) == digest(first.model_file)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_a_run_gives(photos, tmp_path):
    run = train(photos, tmp_path / "runs", epochs=2)
    assert isinstance(run, kiln.Run)
    assert repr(run) == f"Run({str(run.path)!r})"
    assert run.status["state"] == "done"
    assert run.recipe.training.batch_size == 16
    assert run.resolved["values"]["training.monitor"] == "accuracy"
    events = [line["event"] for line in run.metrics()]
    assert (events.count("epoch"), events.count("val")) == (2, 2)
    assert len(run.predictions()) == 6
    assert set(run.predictions()[0]) == {"key", "label", "predicted", "probability", "refused"}
    assert run.model_file == run.path / "model.safetensors"
    assert run.model().classes == CLASSES
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["step-00000002", "step-00000004"]
    summary = run.summary()
    assert summary["metrics"]["test"] == run.result["metrics"]["test"]
    assert summary["state"] == "done"
    assert json.dumps(summary)
    with (run.path / "summary.csv").open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]


def test_the_model_answers(photos, tmp_path):
    run = train(photos, tmp_path / "runs")
    path = photos / "test/red/32.png"
    for model in (run, run.path, str(run.path), run.model_file):
        said = kiln.load(model).predict([path])[0]
        assert said.label in CLASSES
        assert 1 / 3 <= said.probability <= 1
        assert said.error == ""
    assert kiln.evaluate(run)["accuracy"] == run.result["metrics"]["test"]["accuracy"]["value"]
    assert kiln.predict(run, path)[0]["label"] == said.label


def test_a_run_goes_on(photos, tmp_path):
    run = train(photos, tmp_path / "runs", epochs=2)
    longer = run.resume(extend="1ep", progress=make(quiet=True))
    assert longer.path == run.path
    assert longer.status["step"] == 6
    assert kiln.resume(run.path, progress=make(quiet=True)).status["step"] == 6


def test_resuming_on_objects_needs_the_objects_again(tmp_path):
    from torch.utils.data import TensorDataset

    data = TensorDataset(torch.randint(0, 256, (24, 3, 8, 8), dtype=torch.uint8), torch.arange(24) % 2)
    run = train(data, tmp_path / "runs")
    steps = run.status["step"]
    longer = kiln.train(data, resume=run.path, extend="1ep", progress=make(quiet=True))
    assert longer.status["step"] == 2 * steps
    with pytest.raises(KilnError, match="data"):
        run.resume(extend="1ep", progress=make(quiet=True))


def test_recipes_and_overrides(photos, tmp_path):
    recipe = preset("quick").override({"model.name": "kiln/small_cnn", "run.output": str(tmp_path), "optim.lr": 1})
    run = kiln.train(
        photos,
        recipe=recipe,
        overrides={"training.epochs": "1ep", "optim.lr": 1e-3, "model.kwargs": {"widths": [4, 8]}},
        img_size=16,
        progress=make(quiet=True),
    )
    assert run.recipe.optim.lr == 1e-3
    assert run.recipe.model.img_size == 16
    again = kiln.train(recipe=kiln.Recipe.load(run.path / "recipe.yaml"), progress=make(quiet=True))
    assert digest(again.model_file) == digest(run.model_file)  # the recipe that a run keeps repeats it


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epoch": 3}, "unknown setting 'epoch'\n  did you mean: epochs"),
        ({"lr": -1}, "optim.lr = -1"),
        ({"batch_size": 0}, "training.batch_size = 0"),
        ({"overrides": {"optim.lrr": 1}}, "optim.lr"),
        ({"extend": "1ep"}, "needs a run to go on with"),
        ({"resume": "nowhere"}, "there is no nowhere"),
    ],
    ids=["unknown", "negative", "zero", "override", "extend", "resume"],
)
def test_wrong_words_are_the_commands_errors(settings, message, photos, tmp_path):
    with pytest.raises(UsageError) as caught:
        kiln.train(photos, output=str(tmp_path / "runs"), progress=make(quiet=True), **settings)
    assert message in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_no_data_and_strange_data(tmp_path):
    with pytest.raises(UsageError, match="no data: nothing to train on"):
        kiln.train(output=str(tmp_path))
    for strange in (3, object(), "", b"bytes", nn.Linear(2, 2)):
        with pytest.raises(KilnError):
            kiln.train(strange, output=str(tmp_path), progress=make(quiet=True))


def test_it_prints_what_it_reached_and_can_be_told_not_to(tmp_path, capsys):
    data = class_folders(tmp_path / "photos")
    kiln.train(data, output=str(tmp_path / "runs"), **TINY)
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("data       ")
    assert said[-1].startswith("val    accuracy ")
    train(data, tmp_path / "runs")
    assert capsys.readouterr() == ("", "")


def test_in_a_thread_that_gets_no_signals(photos, tmp_path):
    """A notebook or a server trains in a thread, where Python allows no handlers."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(train, photos, tmp_path / "runs").result()
    assert digest(run.model_file) == digest(train(photos, tmp_path / "runs").model_file)


def test_two_runs_side_by_side_get_folders_of_their_own(photos, tmp_path):
    first, second = train(photos, tmp_path / "runs"), train(photos, tmp_path / "runs")
    assert [first.path.name, second.path.name] == ["photos-small_cnn", "photos-small_cnn-2"]
    third = train(photos, tmp_path / "runs", name="mine")
    assert third.path == tmp_path / "runs/mine"
