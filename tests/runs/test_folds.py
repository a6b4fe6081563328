"""Cross-validation as one command: every sample is held out once, and a run that is stopped goes on where it stood."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
from albums import CLASSES, FLAGS, TINY, class_folders, command, flat_images, split_folders, train

import kiln
from kiln.errors import DataError, UsageError
from kiln.observe.outputs import read_outputs
from kiln.observe.progress import make
from kiln.run import Run
from small_runs import WATCHED, Trial, differing, outcome, status

FEW = ("--folds", 3, "--epochs", 2, "--set", "training.ema_decay=0")


@pytest.fixture(scope="module")
def undisturbed(nursery, image_folder, tmp_path_factory):
    trial = Trial(nursery, image_folder, tmp_path_factory.mktemp("undisturbed"), *FEW)
    trial.said = trial.go()
    return trial


@pytest.fixture
def trial(nursery, image_folder, tmp_path):
    return Trial(nursery, image_folder, tmp_path / "runs", *FEW)


def same(one, other):
    """What differs between two runs of folds: of each fold's run, and of what they say together."""
    folds = [run.path.name for run in Run(other).runs]
    assert [run.path.name for run in Run(one).runs] == folds
    names = [f"{fold}: {name}" for fold in folds for name in differing(outcome(one / fold), outcome(other / fold))]
    files = ("outputs.safetensors", "predictions.csv", "result.json", "folds.json")
    return names + [name for name in files if (one / name).read_bytes() != (other / name).read_bytes()]


def test_every_sample_is_held_out_once(undisturbed, image_folder):
    run = Run(undisturbed.run)
    files = sorted(f"{path.parent.name}/{path.name}" for path in image_folder.glob("*/*"))
    rows = run.predictions()
    assert [row["key"] for row in rows] == files
    assert [row["label"] for row in rows] == [name.split("/")[0] for name in files]
    held_out = [set(part.outputs().splits["val"].keys) for part in run.runs]
    assert [part.path.name for part in run.runs] == ["fold-1", "fold-2", "fold-3"]
    assert sorted(key for keys in held_out for key in keys) == files
    oof = run.outputs().splits["oof"]
    assert oof.keys == tuple(files)
    for part, keys in zip(run.runs, held_out, strict=True):
        kept = part.outputs()
        own = dict(zip(kept.splits["val"].keys, kept.probabilities("val"), strict=True))
        at = [files.index(key) for key in sorted(keys)]
        np.testing.assert_allclose(
            run.outputs().probabilities("oof")[at], [own[key] for key in sorted(keys)], atol=1e-6
        )
        counts = [sum(key.startswith(f"{name}/") for key in keys) for name in ("bars", "checks", "dots", "rings")]
        assert set(counts) <= {5, 6}


def test_the_result_is_that_of_all_samples(undisturbed):
    run = Run(undisturbed.run)
    accuracy = run.result["metrics"]["oof"]["accuracy"]
    right = np.mean([row["label"] == row["predicted"] for row in run.predictions()])
    assert (accuracy["value"], accuracy["n"]) == (pytest.approx(right), 64)
    assert accuracy["low"] < right < accuracy["high"]
    each = [part.result["metrics"]["val"]["accuracy"]["value"] for part in run.runs]
    spread = run.result["spread"]["accuracy"]
    assert spread["mean"] == pytest.approx(np.mean(each))
    assert spread["std"] == pytest.approx(np.std(each, ddof=1))
    assert (spread["lowest"], spread["highest"]) == (min(each), max(each))
    assert [one["run"] for one in run.result["folds"]] == ["fold-1", "fold-2", "fold-3"]
    assert run.status["state"] == "done"
    assert json.loads((run.path / "folds.json").read_text()) == {
        "kind": "kiln.folds",
        "version": 1,
        "runs": ["fold-1", "fold-2", "fold-3"],
        "states": dict.fromkeys(["fold-1", "fold-2", "fold-3"], "done"),
    }
    said = undisturbed.said
    assert "over 3 folds: accuracy" in said
    assert f"out of fold, each image by the model that did not train on it: accuracy {100 * right:.1f} %" in said
    assert f"kiln labels {run.path}" in said


def test_a_model_is_not_chosen_on_its_own_fold(undisturbed):
    for part in Run(undisturbed.run).runs:
        steps = part.result["step"]
        assert json.loads((part.path / "best.json").read_text())["step"] == part.result["best_step"] == steps
        assert part.resolved["values"]["training.keep"] == "last"
        assert part.resolved["values"]["data.fold"] == int(part.path.name[-1])
    assert "too good" not in undisturbed.said


def states(run):
    return list(json.loads((run / "folds.json").read_text())["states"].values())


def test_killed_in_a_fold_and_gone_on_with(undisturbed, trial):
    trial.go(SIGNAL_AT="9:SIGKILL", expect=-9)
    assert status(trial.run)["state"] == "running"
    trial.go()
    assert same(trial.run, undisturbed.run) == []


def test_stopped_between_folds_and_in_one_and_gone_on_with(undisturbed, trial):
    said = trial.go(SIGNAL_AT_WORD="fold   2 of 3:SIGTERM", expect=75)
    assert f"kiln resume {trial.run}\n" in said
    assert (status(trial.run)["state"], states(trial.run)) == ("preempted", ["done", "not begun", "not begun"])
    finished = (trial.run / "fold-1" / "result.json").stat().st_mtime_ns
    said = trial.go(SIGNAL_AT="9:SIGTERM", expect=75)
    assert "stopped by SIGTERM at step 9 of fold 2\n" in said
    assert (status(trial.run)["state"], states(trial.run)) == ("preempted", ["done", "preempted", "not begun"])
    said = trial.resume()
    assert "fold   1 of 3 is done" in said
    assert "fold   2 of 3 goes on" in said
    assert "resumed at step 9; exactness E2" in said
    assert same(trial.run, undisturbed.run) == []
    assert (trial.run / "fold-1" / "result.json").stat().st_mtime_ns == finished


@pytest.mark.slow
@pytest.mark.parametrize("operation", range(12, 400, 31))
def test_killed_between_any_two_file_operations(undisturbed, trial, operation):
    child = trial.start(DIE_BEFORE_OPERATION=str(operation))
    assert child.wait() in (-9, 0)
    trial.go()
    assert same(trial.run, undisturbed.run) == []


def test_interrupted_it_leaves_with_130(trial):
    assert "of fold 1" in trial.go(SIGNAL_AT="3:SIGINT", expect=130)
    assert status(trial.run)["state"] == "interrupted"
    assert status(trial.run / "fold-1")["state"] == "interrupted"


def test_a_finished_run_of_folds_trains_no_more(undisturbed, nursery, tmp_path):
    copy = shutil.copytree(undisturbed.run, tmp_path / "copy")
    said = nursery.run("resume", copy, "--trust", WATCHED)
    assert said.count("is done\n") == 3
    assert same(copy, undisturbed.run) == []


def test_folds_are_several_models_and_no_one(undisturbed):
    for verb in (["evaluate"], ["report"], ["predict"], ["export"]):
        said = command(*verb, undisturbed.run, *(["x.png"] if verb == ["predict"] else []))
        assert said.status == 4, verb
        assert f"{undisturbed.run} holds 3 models, one of each fold\n" in said.err
        assert f"next: kiln ensemble {undisturbed.run} makes one of them; " in said.err


def quietly(data, output, **settings):
    return train(data, output, folds=3, **settings)


def test_from_python_with_a_test_split(tmp_path):
    run = quietly(split_folders(tmp_path / "data", val=None), tmp_path / "runs")
    assert run.path == tmp_path / "runs" / "data-small_cnn-folds"
    assert [part.path.name for part in run.runs] == ["fold-1", "fold-2", "fold-3"]
    kept = run.outputs()
    assert [len(kept.splits[name].keys) for name in ("test", "oof")] == [6, 24]
    each = [part.outputs() for part in run.runs]
    mean = np.mean([one.probabilities("test") for one in each], axis=0)
    np.testing.assert_allclose(kept.probabilities("test"), mean, atol=1e-6)
    assert run.result["metrics"]["test"]["accuracy"]["n"] == 6
    assert run.result["skipped"] == {"test": 0, "oof": 0}


def test_the_datas_own_validation_samples_are_dealt_out_too(tmp_path):
    run = quietly(split_folders(tmp_path / "data"), tmp_path / "runs")
    assert len(run.outputs().splits["oof"].keys) == 30


def test_objects_can_be_trained_on(tmp_path):
    import torch

    data = torch.utils.data.TensorDataset(torch.rand(30, 3, 16, 16), torch.arange(30) % 3)
    run = quietly(data, tmp_path / "runs", name="objects")
    assert len(run.outputs().splits["oof"].keys) == 30
    assert quietly(data, tmp_path / "runs", resume=run.path).path == run.path
    with pytest.raises(UsageError, match="was trained on objects"):
        kiln.resume(run.path, progress=make(quiet=True))


def test_groups_stay_together(tmp_path):
    rows = flat_images(tmp_path / "data")
    with (tmp_path / "data" / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "group"])
        writer.writerows([(path, label, f"g{number // 4}") for number, (path, label) in enumerate(rows)])
    run = quietly(tmp_path / "data" / "table.csv", tmp_path / "runs", overrides={"data.group_column": "group"})
    folds = [set(part.outputs().splits["val"].groups) for part in run.runs]
    assert sum(map(len, folds)) == len(set().union(*folds)) == 9
    assert set(run.outputs().splits["oof"].groups) == set().union(*folds)


def test_several_labels_for_an_image(tmp_path):
    rows = flat_images(tmp_path / "data", num=24)
    with (tmp_path / "data" / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"])
        writer.writerows([(path, f"{label},{'odd' if n % 2 else 'even'}") for n, (path, label) in enumerate(rows)])
    run = quietly(tmp_path / "data" / "table.csv", tmp_path / "runs")
    kept = run.outputs()
    assert kept.task["name"] == "multilabel"
    assert kept.splits["oof"].targets.shape == (24, 5)


def test_one_fold_alone_is_an_ordinary_run(tmp_path):
    folder = class_folders(tmp_path / "data")
    whole = quietly(folder, tmp_path / "runs", name="whole")
    one = train(folder, tmp_path / "runs", folds=3, fold=2, name="one")
    assert one.runs == []
    assert one.outputs().splits["val"].keys == whole.runs[1].outputs().splits["val"].keys
    assert (one.path / "model.safetensors").read_bytes() == (whole.runs[1].path / "model.safetensors").read_bytes()


def test_the_best_on_the_fold_only_if_asked_and_then_it_is_said(tmp_path):
    folder = class_folders(tmp_path / "data")
    said = command("train", folder, *FLAGS, "--folds", 2, "--set", "training.keep=best", "--output", tmp_path / "runs")
    assert said.status == 0, said.err
    assert "note   training.keep = best: each model is chosen on its own fold" in said.out
    said = command("train", folder, *FLAGS, "--folds", 2, "--patience", "1ep", "--output", tmp_path / "runs", "--json")
    assert said.status == 0, said.err
    assert said.json["folds"] == [f"{said.json['run']}/fold-{number}" for number in (1, 2)]
    assert said.json["metrics"]["oof"]["accuracy"]["n"] == 36


def test_the_last_weights_can_be_kept_without_folds_too(tmp_path):
    run = train(class_folders(tmp_path / "data"), tmp_path / "runs", epochs=3, overrides={"training.keep": "last"})
    assert json.loads((run.path / "best.json").read_text()) == {
        "kind": "kiln.best",
        "version": 1,
        "step": run.result["step"],
        "monitor": None,
        "value": None,
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--folds", 1), "data.folds = 1"),
        (("--folds", 3, "--set", "data.fold=4"), "data.fold = 4 with data.folds = 3"),
        (("--set", "data.fold=1"), "data.fold = 1 with data.folds = 0"),
        (("--folds", 3, "--val-fraction", 0.3), "data.val_fraction = 0.3 has no effect with data.folds = 3"),
        (("--folds", 99), "has no samples"),
    ],
)
def test_what_cannot_be(tmp_path, arguments, words):
    said = command("train", class_folders(tmp_path / "data"), *FLAGS, *arguments, "--output", tmp_path / "runs")
    assert said.status in (2, 3)
    assert words in said.err
    assert not [path for path in tmp_path.glob("runs/*") if path.name.endswith("folds")] or arguments == ("--folds", 99)


def test_longer_training_is_asked_of_each_fold(tmp_path):
    run = quietly(class_folders(tmp_path / "data"), tmp_path / "runs")
    with pytest.raises(UsageError, match="extend = 1ep of a run of folds"):
        kiln.resume(run.path, extend="1ep", progress=make(quiet=True))
    kiln.resume(run.path / "fold-1", extend="1ep", progress=make(quiet=True))
    before = read_outputs(run.path / "outputs.safetensors").splits["oof"].logits
    assert kiln.resume(run.path, progress=make(quiet=True)).path == run.path
    assert not np.array_equal(before, run.outputs().splits["oof"].logits)


def test_folds_of_changed_data_do_not_mix(tmp_path):
    folder = class_folders(tmp_path / "data")
    run = quietly(folder, tmp_path / "runs")
    shutil.rmtree(run.path / "fold-3")
    class_folders(folder, first=40, num=2)
    with pytest.raises(DataError, match="the data changed since the first fold"):
        kiln.resume(run.path, progress=make(quiet=True))
    assert run.status["state"] == "failed"


def test_nothing_is_left_of_what_could_not_begin(tmp_path):
    folder = class_folders(tmp_path / "data", names=CLASSES)
    with pytest.raises(UsageError, match="kiln/nothing"):
        quietly(folder, tmp_path / "runs", **{**TINY, "model": "kiln/nothing", "kwargs": {}})
    assert list((tmp_path / "runs").iterdir()) == []
