"""`kiln evaluate`: training's numbers again to the last digit, from the run, the model file alone, an archive, an export."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from albums import CLASSES, class_folders, command, flat_images, split_folders, swatch, train, write

import kiln
from kiln.errors import DataError, UsageError


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on train, val and test folders, good enough that its mistakes tell the classes apart. Read it only."""
    root = tmp_path_factory.mktemp("trained")
    data = split_folders(root / "photos")
    return train(data, root / "runs", epochs=12, lr=0.02)


@pytest.fixture
def photos(trained):
    return trained.path.parent.parent / "photos"


def numbers(result):
    return {name: value for name, value in result.items() if isinstance(value, float)}


def of_training(run, split):
    return {name: metric["value"] for name, metric in run.result["metrics"][split].items()}


@pytest.mark.parametrize("split", ["val", "test"])
def test_the_run_repeats_training_to_the_last_digit(trained, split):
    said = command("evaluate", trained.path, "--split", split, "--json")
    assert said.status == 0, said.err
    assert "accuracy" in said.json
    assert numbers(said.json) == of_training(trained, split)
    assert said.json["per_class"] == trained.result["details"][split]["per_class"]
    assert said.json["confusion"] == trained.result["details"][split]["confusion"]
    assert (said.out.count("\n"), said.err) == (1, "")


def test_the_model_file_alone_repeats_it_with_the_data(trained, photos, tmp_path):
    alone = shutil.copy(trained.model_file, tmp_path / "model.safetensors")
    said = command("evaluate", alone, photos, "--split", "test", "--json")
    assert numbers(said.json) == of_training(trained, "test")
    said = command("evaluate", alone)
    assert said.status == 2
    assert f"next: kiln evaluate {alone} DATA" in said.err


def test_an_archive_of_the_same_images_repeats_it(trained, photos, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "photos"), "zip", photos)
    said = command("evaluate", trained.path, archive, "--json")
    assert numbers(said.json) == of_training(trained, "test")
    assert said.json["notes"] == []


def test_the_batch_size_and_the_workers_change_no_digit_that_counts(trained):
    for batch_size, workers in ((1, 0), (5, 2), (64, 1)):
        again = kiln.evaluate(trained, split="test", batch_size=batch_size, workers=workers)
        assert numbers(again) == pytest.approx(of_training(trained, "test"), abs=1e-6)


def test_what_a_person_reads(trained):
    said = command("evaluate", trained.path)
    lines = said.out.splitlines()
    assert lines[0].split() == ["class", "precision", "recall", "f1", "support", "auc", "average_precision"]
    assert [line.split()[0] for line in lines[1:4]] == list(CLASSES)
    assert lines[4] == ""
    assert lines[5].startswith("accuracy ")
    assert lines[5].endswith(")")
    assert lines[-3:] == ["images 6", f"model  {trained.path}", f"next   kiln predict {trained.path} IMAGES"]


def test_the_result_goes_to_a_file_too(trained, tmp_path):
    said = command("evaluate", trained.path, "--output", tmp_path / "out.json")
    assert f"file   {tmp_path / 'out.json'}" in said.out
    assert numbers(json.loads((tmp_path / "out.json").read_text())) == of_training(trained, "test")


def test_splits(trained, photos, tmp_path):
    assert kiln.evaluate(trained, split="train")["n"] == 24
    assert kiln.evaluate(trained, split="all")["n"] == 36
    said = command("evaluate", trained.path, "--split", "tset")
    assert said.status == 2
    assert "did you mean: test" in said.err
    run = train(class_folders(tmp_path / "flat"), tmp_path / "runs")
    said = command("evaluate", run.path)
    assert said.status == 3
    assert "has no test samples" in said.err
    assert "next: --split train or --split val or --split all" in said.err
    said = command("evaluate", run.model_file, tmp_path / "flat", "--json")
    assert said.json["n"] == 36
    assert said.json["notes"] == ["the data have no splits: measured on 36 samples, all there are"]


def test_a_copy_of_the_data_is_split_as_the_run_split_them(tmp_path):
    run = train(class_folders(tmp_path / "photos"), tmp_path / "runs")
    archive = shutil.make_archive(str(tmp_path / "elsewhere"), "zip", tmp_path / "photos")
    found = kiln.evaluate(run, archive, split="val")
    assert numbers(found) == of_training(run, "val")
    assert found["notes"] == []


def test_other_data_with_the_same_names_are_not_taken_for_the_runs_own(tmp_path):
    """Cameras name their files alike: the names of new images say nothing of the side they are on."""
    run = train(class_folders(tmp_path / "photos"), tmp_path / "runs")
    other = class_folders(tmp_path / "new", num=6)
    write(other / "red/99.png", swatch(50))
    found = kiln.evaluate(run, other)
    assert found["n"] == 7
    assert found["notes"][0] == "the data have no splits: measured on 7 samples, all there are"
    assert (
        "have names that were trained on: if they are the same images, these numbers are too good" in found["notes"][1]
    )
    split_folders(tmp_path / "split")
    assert kiln.evaluate(run, tmp_path / "split")["n"] == 6
    assert kiln.evaluate(run, tmp_path / "split")["notes"] == []


# Classes are matched by name.


def test_numbers_are_the_models_classes_where_nothing_else_gives_them_names(trained, tmp_path):
    rows = "".join(f"{path},{CLASSES.index(name)}\n" for path, name in flat_images(tmp_path))
    (tmp_path / "labels.csv").write_text("path,label\n" + rows)
    found = kiln.evaluate(trained.model_file, tmp_path / "labels.csv")
    assert found["accuracy"] > 0.9
    assert "labels are numbers, read as the model's classes from 0: 'blue', 'green', 'red'" in found["notes"]
    (tmp_path / "labels.csv").write_text("path,label\n" + rows.replace(",2", ",3"))
    with pytest.raises(DataError, match="label 3 has no class name") as caught:
        kiln.evaluate(trained.model_file, tmp_path / "labels.csv")
    assert caught.value.code == "E203"


def test_classes_in_another_order_are_matched_by_name(trained, tmp_path):
    """A table that meets the classes in another order, and numbers them in another order still."""
    rows = [(path, name) for path, name in reversed(flat_images(tmp_path))]
    (tmp_path / "labels.csv").write_text("path,label\n" + "\n".join(",".join(row) for row in rows) + "\n")
    by_name = kiln.evaluate(trained.model_file, tmp_path / "labels.csv")
    assert by_name["accuracy"] > 0.9
    assert [row["class"] for row in by_name["per_class"]] == list(CLASSES)


def test_classes_swapped_on_purpose_are_wrong_by_name(trained, tmp_path):
    class_folders(tmp_path / "photos", names=("green", "red", "blue"))  # blue images in the folder `green`, and so on
    assert kiln.evaluate(trained.model_file, tmp_path / "photos")["accuracy"] < 0.1


def test_a_part_of_the_classes_and_one_alone_can_be_measured(trained, tmp_path):
    class_folders(tmp_path / "two", num=9)
    shutil.rmtree(tmp_path / "two/green")
    found = kiln.evaluate(trained.model_file, tmp_path / "two")
    assert [row["support"] for row in found["per_class"]] == [3, 0, 3]
    assert found["notes"][-1] == "1 class of the model without a sample here: 'green'"
    shutil.rmtree(tmp_path / "two/red")
    found = kiln.evaluate(trained.model_file, tmp_path / "two")
    assert (found["n"], np.sum(found["confusion"])) == (3, 3)
    assert found["notes"][-1] == "2 classes of the model without a sample here: 'green', 'red'"


def test_classes_that_the_model_does_not_know_are_an_error_with_the_difference(trained, tmp_path):
    class_folders(tmp_path / "photos", names=("blue", "grean", "violet"))
    said = command("evaluate", trained.model_file, tmp_path / "photos")
    assert said.status == 3
    assert said.err.startswith("error E205: ")
    assert "only in the data: 'grean' (samples: 12); did you mean 'green'?" in said.err
    assert "only in the data: 'violet' (samples: 12)" in said.err
    assert "'red'" in said.err


def test_unlabelled_data_have_nothing_to_compare_with(trained, tmp_path):
    write(tmp_path / "flat/1.png", swatch(1))
    said = command("evaluate", trained.model_file, tmp_path / "flat")
    assert said.status == 3
    assert "CLASS/image.jpg" in said.err


# Data that are not what they were.


def test_changed_data_warn(tmp_path):
    photos = split_folders(tmp_path / "photos")
    run = train(photos, tmp_path / "runs")
    write(photos / "test/blue/99.png", swatch(60))
    said = command("evaluate", run.path)
    assert said.status == 0
    assert "note: the data changed since training: 36 samples were recorded, 37 are here" in said.err
    assert "note: the data changed since training: the split 'test' had 6 samples and has 7" in said.err
    assert "note: 1 sample new since training and in no split" in said.err
    assert "images 6" in said.out
    os.utime(photos / "test/blue/30.png", (1, 1))
    os.remove(photos / "test/blue/99.png")
    assert "modification times" in command("evaluate", run.path).err
    for name in ("test", "val"):
        shutil.rmtree(photos / name)
    said = command("evaluate", run.path)
    assert said.status == 3
    assert "has no test samples" in said.err


def test_data_that_moved(tmp_path, monkeypatch):
    photos = split_folders(tmp_path / "there/photos")
    monkeypatch.chdir(tmp_path / "there")
    run = train("photos", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    said = command("evaluate", run.path)
    assert said.status == 3
    assert "there is no photos" in said.err
    assert f"next: kiln evaluate {run.path} DATA" in said.err
    assert command("evaluate", run.path, photos).status == 0


def test_what_is_no_model(trained, photos, tmp_path):
    nowhere = tmp_path / "nowhere"
    for verb in (["evaluate"], ["compare", trained.path], ["calibrate"], ["labels"], ["report"]):
        said = command(*verb, nowhere)
        assert (said.status, said.err) == (2, f"error E111: there is no {nowhere}\n"), verb
    said = command("evaluate", trained.path.parent, photos)  # the folder of the runs instead of one
    assert said.status == 4
    assert f"choices: {trained.path}" in said.err
    said = command("evaluate", f"{str(trained.path)[:-1]}", photos)
    assert f"next: did you mean {trained.path}?" in said.err
    said = command("resume", trained.path.parent)
    assert said.status == 2
    assert f"choices: {trained.path}" in said.err
    said = command("evaluate", photos, photos)
    assert said.status == 4
    assert "holds no model.safetensors" in said.err
    said = command("evaluate", photos / "test/red/32.png", photos)
    assert said.status == 4
    damaged = tmp_path / "model.safetensors"
    damaged.write_bytes(bytes([trained.model_file.read_bytes()[0]]) + trained.model_file.read_bytes()[1:-1] + b"x")
    said = command("evaluate", damaged, photos)
    assert said.status == 4
    assert "E307" in said.err
    with pytest.raises(UsageError, match="bad_files = 'ignore'"):
        kiln.evaluate(trained, bad_files="ignore")
    with pytest.raises(DataError, match="there is no"):
        kiln.evaluate(trained, tmp_path / "nothing")


# Another runtime.


def test_the_export_agrees_with_its_parent(trained, photos):
    said = command("export", trained.path)
    assert said.status == 0, said.err
    file = trained.path / "model.onnx"
    assert said.out.splitlines() == [f"file   {file}", f"next   kiln predict {file} IMAGES"]
    for split in ("val", "test"):
        said = command("evaluate", file, photos, "--split", split, "--json")
        assert said.status == 0, said.err
        parent = of_training(trained, split)
        assert said.json["accuracy"] == parent["accuracy"]
        assert said.json["loss"] == pytest.approx(parent["loss"], abs=1e-4)
        assert said.json["confusion"] == trained.result["details"][split]["confusion"]
    images = np.random.default_rng(0).integers(0, 256, (9, 3, 16, 16), np.uint8)
    difference = kiln.load(file).logits(images) - kiln.load(trained).logits(images)
    assert np.abs(difference).max() < 1e-4
    torch_rows, onnx_rows = kiln.predict(trained, photos), kiln.predict(file, photos)
    assert [row["label"] for row in torch_rows] == [row["label"] for row in onnx_rows]
    said = command("evaluate", trained.path, "--runtime", "onnx")
    assert said.status == 2
    assert f"next: kiln export {trained.path}" in said.err
