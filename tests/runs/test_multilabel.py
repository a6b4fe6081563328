"""Several labels per image, from the table to the export."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from albums import FLAGS, command, fingerprint, write

import kiln

NAMES = ("bright", "left", "top")


def picture(labels: set[str], number: int) -> np.ndarray:
    """(20, 20, 3): bright in red, light on the left in blue, light at the top in green; each by its label."""
    image = np.full((20, 20, 3), number % 20, np.uint8)
    image[..., 0] += 150 if "bright" in labels else 0
    image[:, :10, 2] += 200 if "left" in labels else 0
    image[:10, :, 1] += 200 if "top" in labels else 0
    return image


@pytest.fixture(scope="module")
def album(tmp_path_factory):
    """A table of 48 images that bear each combination of three labels, none among them."""
    root = tmp_path_factory.mktemp("album")
    rows = [("path", "label", "split")]
    for number in range(48):
        labels = {name for bit, name in enumerate(NAMES) if number >> bit & 1}
        write(root / f"img/{number:02d}.png", picture(labels, number))
        split = "test" if number >= 40 else "val" if number >= 32 else "train"
        rows.append((f"img/{number:02d}.png", ",".join(sorted(labels, reverse=True)), split))
    with (root / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return root


@pytest.fixture(scope="module")
def trained(album, tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    before = fingerprint(album)
    flags = ("--epochs", "30", "--lr", "0.03", "--set", "augment.policy=none", "--output", runs, "--name", "run")
    said = command("train", album / "labels.csv", *FLAGS, *flags)
    assert said.status == 0, said.err
    assert "task       multilabel, 3 classes: 'bright', 'left', 'top'" in said.out
    assert "note       6 rows with an empty label" in said.out
    assert fingerprint(album) == before
    return kiln.Run(runs / "run")


def test_it_learns_and_the_numbers_repeat(album, trained):
    metrics = trained.result["metrics"]["test"]
    assert metrics["label_accuracy"]["value"] > 0.8  # one label after another; of three coins it would be a half
    assert set(metrics) >= {
        *("accuracy", "label_accuracy", "f1_macro", "f1_micro", "mean_average_precision", "loss"),
    }
    for model, data in ((trained.path, ()), (trained.model_file, (album / "labels.csv",))):
        said = command("evaluate", model, *data, "--split", "test", "--json")
        assert said.status == 0, said.err
        assert {name: said.json[name] for name in metrics} == {name: m["value"] for name, m in metrics.items()}
    assert [row["class"] for row in said.json["per_class"]] == list(NAMES)
    assert np.shape(said.json["confusion"]) == (3, 2, 2)


def test_a_person_reads_a_table(trained):
    said = command("evaluate", trained.path)
    assert said.out.split("\n")[0].split() == [
        "class",
        "precision",
        "recall",
        "f1",
        "support",
        "auc",
        "average_precision",
    ]
    assert "label accuracy " in said.out
    assert "mean average precision " in said.out


def test_predictions_are_label_texts_that_train_again(album, trained, tmp_path):
    said = command("predict", trained.path, album / "labels.csv", "--output", tmp_path / "p.csv")
    assert said.status == 0, said.err
    rows = list(csv.DictReader((tmp_path / "p.csv").read_text().splitlines()))
    assert [row["key"] for row in rows] == [f"img/{number:02d}.png" for number in range(48)]
    recorded = {row["key"]: (row["predicted"], row["probability"]) for row in trained.predictions()}
    assert len(recorded) == 8
    told = {row["key"]: (row["label"], row["probability"]) for row in rows}
    predicted = {key: label for key, (label, _) in told.items()}
    assert {key: label for key, (label, _) in recorded.items()} == {key: predicted[key] for key in recorded}
    for key, (_, probability) in recorded.items():
        assert float(told[key][1]) == pytest.approx(float(probability), abs=1e-6)  # in batches of other sizes
    assert {name for row in rows for name in row["label"].split(",")} <= {*NAMES, ""}
    table = tmp_path / "again.csv"
    table.write_text("path,label\n" + "".join(f'{row["key"]},"{row["label"]}"\n' for row in rows))
    flags = ("--root", album, "--output", tmp_path / "runs", "--name", "again", "-q")
    assert command("train", table, *FLAGS, *flags).status == 0
    assert kiln.Run(tmp_path / "runs/again").resolved["facts"]["classes"] == list(NAMES)


def test_an_image_without_a_label_says_none(trained, album):
    said = command("predict", trained.path, album / "labels.csv")
    none = [line for line in said.out.splitlines() if "(none)" in line]
    assert none
    said = command("predict", trained.path, album / "labels.csv", "--top-k", "3", "--json")
    row = said.json["predictions"][0]
    assert sorted(name for name, _ in row["top"]) == sorted(NAMES)
    assert sum(share for _, share in row["top"]) != pytest.approx(1)  # each label has a probability of its own


@pytest.mark.slow
def test_the_export_agrees(trained, album):
    said = command("export", trained.path, "--json")
    assert said.status == 0, said.err
    found = kiln.evaluate(said.json["file"], album / "labels.csv", split="test")
    metrics = trained.result["metrics"]["test"]
    assert found["accuracy"] == metrics["accuracy"]["value"]
    assert found["loss"] == pytest.approx(metrics["loss"]["value"], abs=1e-4)


def test_another_separator(album, tmp_path):
    text = (album / "labels.csv").read_text().replace('"', "")
    lines = [line.replace("img/", f"{album}/img/") for line in text.splitlines()]
    rows = [(line.split(",")[0], "|".join(line.split(",")[1:-1]), line.split(",")[-1]) for line in lines]
    (tmp_path / "labels.csv").write_text("\n".join(",".join(row) for row in rows) + "\n")
    flags = ("--set", "task.separator=|", "--root", "/", "--output", tmp_path / "runs", "--name", "run")
    said = command("train", tmp_path / "labels.csv", *FLAGS, *flags)
    assert said.status == 0, said.err
    assert "task       multilabel, 3 classes" in said.out
    run = kiln.Run(tmp_path / "runs/run")
    assert kiln.evaluate(run, split="test")["loss"] == run.result["metrics"]["test"]["loss"]["value"]


def test_a_label_that_the_model_does_not_know(trained, tmp_path):
    write(tmp_path / "1.png", picture({"top"}, 1))
    (tmp_path / "labels.csv").write_text('path,label\n1.png,"top,bottom"\n')
    said = command("evaluate", trained.model_file, tmp_path / "labels.csv")
    assert said.status == 3
    assert said.err.startswith("error E205: ")
    assert "'bottom'" in said.err


def test_commas_may_be_part_of_a_name_and_the_task_can_be_said(album, tmp_path):
    said = command(
        *("train", album / "labels.csv", *FLAGS, "--task", "classification", "--output", tmp_path / "runs"),
    )
    assert said.status == 3  # an empty label is a label only where there may be none
    assert "labels.csv row" in said.err
    assert "the task is multilabel" in said.err


def test_classification_data_can_be_trained_as_multilabel(album, tmp_path):
    for number in range(12):
        write(tmp_path / "photos" / NAMES[number % 2] / f"{number}.png", picture({NAMES[number % 2]}, number))
    flags = ("--task", "multilabel", "--output", tmp_path / "runs", "--name", "run")
    said = command("train", tmp_path / "photos", *FLAGS, *flags)
    assert said.status == 0, said.err
    assert "label_accuracy" in kiln.Run(tmp_path / "runs/run").result["metrics"]["val"]
