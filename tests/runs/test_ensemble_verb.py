"""Several models that answer together: never below the best on validation, whole in a folder, refused where it is not."""

from __future__ import annotations

import json
import os
import re
import shutil

import numpy as np
import pytest
import torch
from albums import CLASSES, class_folders, command, flat_images, split_folders, swatch, train

import kiln
from kiln.errors import ArtifactError, DataError, SecurityError, UsageError
from kiln.models.ensemblefile import ENSEMBLE, EnsembleFile, Member, read_ensemble, write_ensemble
from kiln.models.modelfile import read_model, save_model
from kiln.models.seal import OPEN_SEAL, seal
from kiln.run import Run
from kiln.runtimes import load

IMAGES = [swatch(number) for number in range(12)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return split_folders(tmp_path_factory.mktemp("album"))


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """Three runs that were validated alike and are of different worth."""
    output = tmp_path_factory.mktemp("runs")
    return [train(data, output, name=f"run-{epochs}", seed=epochs, epochs=epochs, lr=0.02) for epochs in (1, 2, 5)]


@pytest.fixture(scope="module")
def made(runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "ensemble"
    return folder, kiln.ensemble(*runs, output=folder, metric="loss")


def encoded(predictor, images=IMAGES):
    return np.stack([predictor.contract.apply(image) for image in images]).transpose(0, 3, 1, 2)


def asked(place, images=IMAGES):
    predictor = load(place, device="cpu")
    return predictor.probabilities(predictor.logits(encoded(predictor, images)))


@pytest.mark.parametrize("metric", [None, "loss", "f1_macro"])
def test_it_is_never_below_its_best_member_on_validation(runs, data, metric, tmp_path):
    found = kiln.ensemble(*runs, output=tmp_path / "e", metric=metric)
    name, sign = found["metric"], -1 if found["metric"] == "loss" else 1
    reached = sign * found["metrics"]["val"][name]["value"]
    assert reached >= max(sign * one["metrics"]["val"][name]["value"] for one in found["members"])
    assert set(found["candidates"]) == {"best", "uniform", "fitted", "greedy"}
    assert sign * found["candidates"][found["kept"]] == max(sign * value for value in found["candidates"].values())
    again = kiln.evaluate(tmp_path / "e", data, split="val")
    assert again[name] == pytest.approx(found["metrics"]["val"][name]["value"], abs=1e-6)
    assert sum(one["weight"] for one in found["members"]) == pytest.approx(1)


def test_its_answer_is_the_weighted_mean_of_its_members_calibrated_ones(made, runs):
    folder, found = made
    predictor = load(folder, device="cpu")
    weights = [one["weight"] for one in found["members"]]
    expected = sum(weight * asked(run.path) for weight, run in zip(weights, runs, strict=True))
    pooled = predictor.task.probabilities(predictor.runtime.logits(encoded(predictor)))
    assert np.abs(pooled - expected).max() < 1e-6
    assert predictor.classes == CLASSES
    assert predictor.runtime.name == "ensemble"


def test_gain_on_test_is_stated_with_its_paired_interval(made, runs):
    _, found = made
    best = min(found["members"], key=lambda one: one["metrics"]["val"]["loss"]["value"])
    gain = found["gain"]
    accuracy = found["metrics"]["test"]["accuracy"]["value"]
    assert gain["over"] == best["model"]
    assert gain["value"] == pytest.approx(accuracy - best["metrics"]["test"]["accuracy"]["value"])
    assert gain["low"] <= gain["value"] <= gain["high"]
    assert gain["n"] == 6
    assert best["metrics"]["test"]["accuracy"] == Run(best["model"]).result["metrics"]["test"]["accuracy"]


def test_weights_never_look_at_test(runs, data, tmp_path):
    """The labels of test are turned round: nothing that was chosen may change."""
    found = kiln.ensemble(*runs, output=tmp_path / "one", data=str(data), metric="loss")
    turned = shutil.copytree(data, tmp_path / "turned")
    (turned / "test" / "red").rename(turned / "test" / "spare")
    (turned / "test" / "blue").rename(turned / "test" / "red")
    (turned / "test" / "spare").rename(turned / "test" / "blue")
    other = kiln.ensemble(*runs, output=tmp_path / "two", data=str(turned), metric="loss")
    assert other["metrics"]["test"] != found["metrics"]["test"]
    assert [one["weight"] for one in other["members"]] == [one["weight"] for one in found["members"]]
    assert other["kept"] == found["kept"]
    assert load(tmp_path / "two").decision == load(tmp_path / "one").decision


def test_the_folder_ships_as_a_whole(runs, tmp_path):
    kiln.ensemble(*runs, output=tmp_path / "e", metric="loss")
    before = asked(tmp_path / "e")
    moved = shutil.move(tmp_path / "e", tmp_path / "elsewhere")
    assert np.array_equal(asked(moved), before)
    assert all(os.stat(file).st_nlink == 1 for file in moved.glob("members/*"))
    kiln.ensemble(*runs, output=tmp_path / "linked", metric="loss", link=True)
    assert all(os.stat(file).st_nlink == 2 for file in (tmp_path / "linked").glob("members/*"))
    assert np.array_equal(asked(tmp_path / "linked"), before)


def test_members_that_are_not_those_that_were_put_there_are_refused(made, runs, tmp_path):
    folder = shutil.copytree(made[0], tmp_path / "e")
    member = sorted((folder / "members").iterdir())[-1]
    other = next(run for run in runs if run.path.name not in member.name)
    shutil.copyfile(other.model_file, member)
    with pytest.raises(ArtifactError, match="not the file that this ensemble was made of"):
        load(folder)
    member.unlink()
    with pytest.raises(ArtifactError, match="has lost its member"):
        load(folder)


def test_a_changed_description_is_refused(made, tmp_path):
    folder = shutil.copytree(made[0], tmp_path / "e")
    text = (folder / ENSEMBLE).read_text()
    (folder / ENSEMBLE).write_text(text.replace('"weight": 0', '"weight": 1', 1).replace('"kept"', '"Kept"'))
    with pytest.raises(ArtifactError, match="no longer matches its digest"):
        load(folder)
    about = json.loads(text)
    for change, error, words in [
        ({"version": 2}, ArtifactError, "version 1"),
        ({"members": []}, ArtifactError, "do not sum to 1"),
        ({"members": [{**about["members"][0], "weight": 1.0, "file": "../x"}]}, SecurityError, "outside its folder"),
    ]:
        (folder / ENSEMBLE).write_bytes(seal(json.dumps({**about, "seal": OPEN_SEAL, **change}).encode())[0])
        with pytest.raises(error, match=words):
            load(folder)


def test_classes_are_matched_by_name(runs, data, tmp_path):
    """The same model with its outputs in another order is the same opinion twice."""
    place, turned = tmp_path / "members", tmp_path / "members" / "turned.safetensors"
    place.mkdir()
    file = read_model(shutil.copy(runs[2].model_file, place / "straight.safetensors"))
    straight = file.digest
    order = [2, 0, 1]
    with torch.no_grad():
        head = file.model.get_submodule("head")
        head.weight.copy_(head.weight[order].clone())
        head.bias.copy_(head.bias[order].clone())
    classes, facts = tuple(file.classes[index] for index in order), {"contract": file.contract, "task": file.task}
    digest = save_model(turned, file.model, spec=file.spec, classes=classes, decision=file.decision, **facts)
    members = Member("members/straight.safetensors", straight, 0.5), Member("members/turned.safetensors", digest, 0.5)
    write_ensemble(tmp_path / ENSEMBLE, EnsembleFile(CLASSES, file.contract, file.task, members))
    assert np.allclose(asked(tmp_path), asked(runs[2].path), rtol=0, atol=1e-6)
    found = kiln.ensemble(runs[2], turned, data=str(data), output=tmp_path / "e")
    values = [one["metrics"]["val"]["accuracy"]["value"] for one in found["members"]]
    assert values[0] == values[1] == found["metrics"]["val"]["accuracy"]["value"]


def test_models_that_do_not_go_together_are_refused(runs, data, tmp_path):
    with pytest.raises(UsageError, match="at least two different"):
        kiln.ensemble(runs[0], output=tmp_path / "e")
    with pytest.raises(UsageError, match="at least two different"):
        kiln.ensemble(runs[0], runs[0].path, output=tmp_path / "e")
    with pytest.raises(UsageError, match=r"unknown metric 'lost'(.|\n)*did you mean: loss"):
        kiln.ensemble(*runs, output=tmp_path / "e", metric="lost")
    larger = train(data, tmp_path, img_size=24)
    with pytest.raises(DataError, match=r"do not take the same pixels: height: 16 and 24"):
        kiln.ensemble(runs[0], larger, output=tmp_path / "e")
    others = class_folders(tmp_path / "others", names=("blue", "green", "pink"))
    other = train(others, tmp_path)
    with pytest.raises(ArtifactError, match="know different classes") as caught:
        kiln.ensemble(runs[0], other, output=tmp_path / "e")
    assert list(caught.value.details) == [f"only {other.path}: 'pink'", f"only {runs[0].path}: 'red'"]
    with pytest.raises(UsageError, match="is no run, and knows no data"):
        kiln.ensemble(runs[0], shutil.copy(runs[1].model_file, tmp_path / "m.safetensors"), output=tmp_path / "e")
    assert not (tmp_path / "e").exists()
    kiln.ensemble(*runs, output=tmp_path / "e")
    with pytest.raises(UsageError, match="holds an ensemble already"):
        kiln.ensemble(*runs, output=tmp_path / "e")


def test_only_samples_that_no_member_trained_on_count(tmp_path):
    """Runs of other seeds cut other validation samples from one folder."""
    album = class_folders(tmp_path / "album", num=60)
    runs = [train(album, tmp_path, name=f"s{seed}", seed=seed, overrides={"data.val_fraction": 0.4}) for seed in (1, 2)]
    held = [set(run.outputs().splits["val"].keys) for run in runs]
    assert 0 < len(held[0] & held[1]) < len(held[0])
    found = kiln.ensemble(*runs, output=tmp_path / "e")
    assert found["metrics"]["val"]["accuracy"]["n"] == len(held[0] & held[1])
    assert any("held out by all models" in note for note in found["notes"])
    assert found["gain"] is None


def test_folds_weigh_alike_and_can_be_chosen_on_other_samples(data, tmp_path):
    album = class_folders(tmp_path / "album", num=30)
    shutil.copytree(data / "test", tmp_path / "split" / "test")
    shutil.copytree(album, tmp_path / "split" / "train")
    folds = train(tmp_path / "split", tmp_path, name="folds", folds=3)
    found = kiln.ensemble(folds)
    assert found["ensemble"] == str(folds.path / "ensemble")
    assert found["kept"] == "uniform"
    assert [one["weight"] for one in found["members"]] == [pytest.approx(1 / 3)] * 3
    assert found["candidates"] == {}
    assert any("nothing is fitted" in note for note in found["notes"])
    assert list(found["metrics"]) == ["test"]
    assert found["gain"]["n"] == 6
    assert kiln.evaluate(folds.path / "ensemble", data)["accuracy"] == found["metrics"]["test"]["accuracy"]["value"]
    chosen = kiln.ensemble(folds.path, output=tmp_path / "chosen", data=str(data))
    assert set(chosen["candidates"]) == {"best", "uniform", "fitted", "greedy"}
    assert chosen["metrics"]["val"]["accuracy"]["n"] == 6


def test_many_labels(tmp_path):
    lines = ["path,label,split"]
    for row, (path, label) in enumerate(flat_images(tmp_path / "album", num=48)):
        lines.append(f"{path},{label}{';round' if row % 2 else ''},{('train', 'val', 'test', 'train')[row % 4]}")
    table = tmp_path / "album" / "labels.csv"
    table.write_text("\n".join(lines))
    settings = {"task.name": "multilabel", "task.separator": ";"}
    runs = [train(table, tmp_path, name=f"r{seed}", seed=seed, epochs=2, overrides=settings) for seed in (1, 2)]
    found = kiln.ensemble(*runs, output=tmp_path / "e", metric="loss")
    assert found["metrics"]["val"]["loss"]["value"] <= min(
        one["metrics"]["val"]["loss"]["value"] for one in found["members"]
    )
    weights = [one["weight"] for one in found["members"]]
    expected = sum(weight * asked(run.path) for weight, run in zip(weights, runs, strict=True))
    predictor = load(tmp_path / "e")
    assert np.abs(predictor.task.probabilities(predictor.runtime.logits(encoded(predictor))) - expected).max() < 1e-6


def test_it_is_calibrated_like_a_model(made, data, tmp_path):
    folder = shutil.copytree(made[0], tmp_path / "e")
    before = load(folder)
    kiln.calibrate(folder, str(data), method="none", coverage=0.5)
    after = load(folder)
    assert after.decision.least_probability is not None
    assert after.digest != before.digest
    assert {one.refused for one in after.predict(IMAGES)} <= {"", "unsure"}
    assert read_ensemble(folder / ENSEMBLE).members == read_ensemble(made[0] / ENSEMBLE).members


def test_the_command(runs, data, tmp_path):
    said = command("ensemble", *(run.path for run in runs), "--output", tmp_path / "e", "--metric", "loss")
    assert said.status == 0, said.err
    assert "tried  loss on val: best" in said.out
    said_of_shares = command("ensemble", *(run.path for run in runs), "--output", tmp_path / "shares").out
    assert re.search(r"^\S+ +\d+\.\d % +\d+\.\d % +\d+\.\d %$", said_of_shares, re.MULTILINE), said_of_shares
    assert re.search(r"^tried  accuracy on val: best \d+\.\d %, ", said_of_shares, re.MULTILINE)
    for verb in ("export", "report"):
        refused = command(verb, tmp_path / "e")
        assert refused.status == 2
        assert "is an ensemble" in refused.err
    assert f"kiln export {tmp_path}/e/members/" in command("export", tmp_path / "e").err
    assert f"next: kiln calibrate {tmp_path / 'e'} DATA" in command("calibrate", tmp_path / "e").err
    assert "points (" in said.out
    assert f"next   kiln predict {tmp_path / 'e'} IMAGES" in said.out
    said = command("evaluate", tmp_path / "e", data, "--split", "val", "--json")
    assert said.json["n"] == 6
    said = command("predict", tmp_path / "e", data / "test", "--json")
    assert said.json["count"] == 6
    said = command("evaluate", tmp_path / "e", data, "--runtime", "onnx")
    assert said.status == 2
    assert "--runtime ensemble" in said.err
