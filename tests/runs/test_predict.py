"""`kiln predict`: a row per input, in its order, with the reason where there is no answer; the same answers as training's."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from albums import CLASSES, class_folders, command, fingerprint, flat_images, split_folders, spoil, swatch, train, write
from PIL import Image
from torch.utils.data import TensorDataset

import kiln
from kiln.errors import UsageError


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that knows its classes. Read it only."""
    root = tmp_path_factory.mktemp("trained")
    return train(split_folders(root / "photos"), root / "runs", epochs=12, lr=0.02)


@pytest.fixture
def photos(trained):
    return trained.path.parent.parent / "photos"


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_answers_are_those_of_predictions_csv_to_the_last_digit(trained, photos, tmp_path):
    said = command("predict", trained.path, photos / "test", "--output", tmp_path / "p.csv")
    assert said.status == 0, said.err
    told = {row["key"]: (row["label"], row["probability"]) for row in rows_of(tmp_path / "p.csv")}
    recorded = {
        row["key"].removeprefix("test/"): (row["predicted"], row["probability"]) for row in trained.predictions()
    }
    assert told == recorded
    assert len(told) == 6


def test_a_table_for_people(trained, photos):
    said = command("predict", trained.path, photos / "test/red")
    assert (said.status, said.err) == (0, "")
    assert said.out.splitlines()[0].split() == ["key", "label", "probability"]
    assert said.out.splitlines()[1].split()[:2] == ["32.png", "red"]
    assert re.fullmatch(r"[01]\.\d{4}", said.out.splitlines()[1].split()[2])
    assert said.out.splitlines()[3:] == [
        "images 2",
        f"next   kiln predict {trained.path} INPUTS --output predictions.csv",
    ]


# What can be given.


def test_one_image(trained, photos):
    said = command("predict", trained.path, photos / "test/red/32.png", "--json")
    assert said.json["count"] == 1
    assert said.json["predictions"][0]["key"] == str(photos / "test/red/32.png")
    assert said.json["predictions"][0]["label"] == "red"


def test_a_folder_a_glob_several_paths_and_an_archive(trained, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(photos)
    labels = {f"test/{CLASSES[i % 3]}/{i}.png": CLASSES[i % 3] for i in range(30, 36)}

    def told(*inputs):
        said = command("predict", trained.path, *inputs, "--json")
        assert said.status == 0, said.err
        return {row["key"]: row["label"] for row in said.json["predictions"]}

    assert told("test") == {key.removeprefix("test/"): label for key, label in labels.items()}
    assert told("test/*/*.png") == told("test/**/*.png") == labels
    assert told(*labels) == labels
    assert told("test/red", "test/blue/30.png") == {key: labels[key] for key in labels if "red" in key or "30" in key}
    archive = shutil.make_archive(str(tmp_path / "new"), "zip", photos, "test")
    assert told(archive) == labels
    archive = shutil.make_archive(str(tmp_path / "new"), "gztar", photos, "test")
    assert told(archive) == labels


def test_a_table_keeps_its_order_with_labels_or_without(trained, tmp_path):
    rows = list(reversed(flat_images(tmp_path, num=36)[30:]))
    for lines in ([f"{path},{name}" for path, name in rows], [path for path, _ in rows]):
        header = "path,label" if "," in lines[0] else "path"
        (tmp_path / "new.csv").write_text("\n".join([header, *lines]) + "\n")
        found = kiln.predict(trained, tmp_path / "new.csv")
        assert [row["key"] for row in found] == [path for path, _ in rows]
        assert [row["label"] for row in found] == [name for _, name in rows]


def test_a_list_is_answered_in_its_order_each_time_it_names_an_image(trained, photos):
    red, blue = photos / "test/red/32.png", photos / "test/blue/30.png"
    found = kiln.predict(trained, [red, blue, red])
    assert [row["label"] for row in found] == ["red", "blue", "red"]
    assert [row["key"] for row in found] == [str(red), str(blue), str(red)]
    found = kiln.predict(trained, [red, photos / "test/blue", blue])
    assert [Path(row["key"]).name for row in found] == ["32.png", "30.png", "33.png", "30.png"]
    assert len(kiln.predict(trained, photos.glob("test/*/*.png"))) == 6  # an iterator is used up once
    with pytest.raises(UsageError, match="a list of ndarray is no source") as caught:
        kiln.predict(trained, [swatch(1)])
    assert "kiln.load(model).predict(images)" in str(caught.value)


def test_a_dataset(trained):
    images = torch.stack([torch.from_numpy(swatch(i)).permute(2, 0, 1) for i in range(30, 36)])
    found = kiln.predict(trained, TensorDataset(images))
    assert [row["label"] for row in found] == [CLASSES[i % 3] for i in range(6)]
    assert [row["key"] for row in found] == [f"{i:09d}" for i in range(6)]


def test_the_predictor_takes_what_is_in_memory(trained, photos):
    red = photos / "test/red/32.png"
    predictor = kiln.load(trained)
    everything = [red, str(red), red.read_bytes(), Image.open(red), swatch(32)]
    found = predictor.predict(everything)
    assert len({(said.label, said.probability) for said in found}) == 1
    assert found[0].label == "red"
    assert predictor.predict(np.stack([swatch(32)] * 5)) == found
    assert predictor.predict(red)[0].probability == pytest.approx(found[0].probability, abs=1e-6)  # another batch size


# What comes back.


@pytest.mark.parametrize("suffix", ["csv", "json", "parquet"])
def test_forms_of_output(suffix, trained, photos, tmp_path):
    if suffix == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / f"p.{suffix}"
    said = command("predict", trained.path, photos / "test", "--output", out, "--top-k", "2")
    assert said.status == 0, said.err
    assert said.out.splitlines() == ["images 6", f"file   {out}"]
    expected = kiln.predict(trained, photos / "test", top_k=2)
    if suffix == "json":
        assert json.loads(out.read_text()) == expected
        return
    found = rows_of(out) if suffix == "csv" else parquet.read_table(out).to_pylist()
    columns = ["key", "label", "probability", "label_1", "probability_1", "label_2", "probability_2"]
    columns += ["unfamiliarity", "refused", "error"]
    assert list(found[0]) == columns
    for row, other in zip(found, expected, strict=True):
        assert row["label"] == row["label_1"] == other["label"] == other["top"][0][0]
        assert float(row["probability_2"]) == other["top"][1][1]
        assert not row["error"]


def test_the_form_can_be_said_where_the_name_does_not(trained, photos, tmp_path):
    assert command("predict", trained.path, photos / "test", "--output", tmp_path / "x", "--format", "json").status == 0
    assert len(json.loads((tmp_path / "x").read_text())) == 6
    said = command("predict", trained.path, photos / "test", "--output", tmp_path / "x.xls")
    assert said.status == 2
    assert "choices: csv, json, parquet" in said.err
    said = command("predict", trained.path, photos / "test", "--format", "csv")
    assert said.status == 2
    assert "--output FILE" in said.err
    said = command("predict", trained.path, photos / "test", "--output", tmp_path / "no/such/folder/p.csv")
    assert said.status == 5


def test_top_k_is_at_most_all(trained, photos):
    found = kiln.predict(trained, photos / "test", top_k=10)
    assert {len(row["top"]) for row in found} == {3}
    assert all(sum(share for _, share in row["top"]) == pytest.approx(1) for row in found)
    assert all([share for _, share in row["top"]] == sorted((s for _, s in row["top"]), reverse=True) for row in found)
    assert command("predict", trained.path, photos / "test", "--top-k", "0").status == 2


def test_unreadable_files_are_rows_with_the_reason(trained, photos, tmp_path):
    new = tmp_path / "new"
    shutil.copytree(photos / "test", new)
    spoil(new / "blue/30.png", "body")
    spoil(new / "green/31.png", "header")
    spoil(new / "red/32.png", "empty")
    (new / "notes.txt").write_text("for myself")
    before = fingerprint(new)
    said = command("predict", trained.path, new, "--output", tmp_path / "p.csv")
    assert said.status == 0
    assert "note: 1 file without an image's suffix ignored (.txt 1)" in said.err
    assert "images 6, 3 of them unreadable" in said.out
    rows = {row["key"]: row for row in rows_of(tmp_path / "p.csv")}
    assert len(rows) == 6
    assert rows["blue/30.png"]["error"].startswith("truncated: ")
    assert rows["green/31.png"]["error"].startswith("not_an_image: ")
    assert rows["red/32.png"]["error"].startswith("empty: ")
    assert {rows[key]["label"] for key in ("blue/30.png", "green/31.png", "red/32.png")} == {""}
    alone = kiln.predict(trained, photos / "test/red/35.png")[0]
    assert float(rows["red/35.png"]["probability"]) == pytest.approx(alone["probability"], abs=1e-6)
    assert fingerprint(new) == before
    only_bad = command("predict", trained.path, new / "red/32.png")
    assert only_bad.status == 0
    assert "empty: " in only_bad.out


def test_nothing_there(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir("empty")
    write(tmp_path / "photo.png", swatch(1))
    for inputs, message in (
        (["photos.png"], "did you mean photo.png?"),
        (["*.jpg"], "no file matches '*.jpg'"),
        (["empty"], "no images in"),
        (["photo.png", "gone.png"], "there is no gone.png"),
    ):
        said = command("predict", trained.path, *inputs)
        assert said.status == 3
        assert message in said.err


def test_a_model_of_another_kind_of_file(tmp_path):
    photos = class_folders(tmp_path / "photos")
    said = command("predict", photos / "red/02.png", photos)
    assert said.status == 4
    said = command("predict", tmp_path / "runs", photos)
    assert said.status == 2
    assert f"there is no {tmp_path / 'runs'}" in said.err
