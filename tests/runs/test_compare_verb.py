"""`kiln compare`: on real runs, their model files and exports; models by sample, recipes by seed."""

from __future__ import annotations

import csv
import json
import re
import shutil

import numpy as np
import pytest
from albums import CLASSES, Path, command, swatch, train, write

import kiln
from kiln.errors import DataError, UsageError
from kiln.run import OUTPUTS

NUM_TEST = 90


def noisy(root: Path, *, val: bool = True, test: bool = True) -> Path:
    """Images of three colours under noise: easy to tell apart for who has learnt it."""
    rng = np.random.default_rng(0)
    for split, num in (("train", 60), *((("val", 30),) if val else ()), *((("test", NUM_TEST),) if test else ())):
        for number in range(num):
            pixels = swatch(number % 60, number % 3) + rng.normal(0, 70, (20, 20, 3))
            write(root / split / CLASSES[number % 3] / f"{number:03d}.png", np.clip(pixels, 0, 255).astype(np.uint8))
    return root


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two recipes with three seeds each, in folders `good` and `bad`. Read it only."""
    root = tmp_path_factory.mktemp("compared")
    data = noisy(root / "photos")
    for seed in range(3):
        train(data, root / "good", name=f"s{seed}", seed=seed, epochs=6, lr=0.02)
        train(data, root / "bad", name=f"s{seed}", seed=seed, lr=0.0005)
    return root


def accuracy(run, split="test"):
    return run.result["metrics"][split]["accuracy"]["value"]


def test_a_better_model_is_found(place):
    said = command("compare", place / "bad/s0", place / "good/s0", "--json")
    assert (said.status, said.err) == (0, "")
    found, pair = said.json, said.json["pairs"][0]
    before, after = (accuracy(kiln.Run(place / name / "s0")) for name in ("bad", "good"))
    assert [model["metrics"]["accuracy"] for model in found["models"]] == pytest.approx([before, after], abs=1e-12)
    assert (found["n"], found["split"], pair["verdict"]) == (NUM_TEST, "test", "better")
    assert pair["accuracy"]["value"] == pytest.approx(after - before)
    assert 0 < pair["accuracy"]["low"] < after - before < pair["accuracy"]["high"]
    assert pair["accuracy"]["p"] < 1e-6
    assert len(pair["flips"]) == pair["accuracy"]["only_first"] + pair["accuracy"]["only_second"] > 20
    assert set(pair["metrics"]) >= {"balanced_accuracy", "f1_macro", "loss", "brier"}
    assert pair["metrics"]["loss"]["high"] < 0
    assert [row["class"] for row in pair["classes"]] == list(CLASSES)
    assert sum(row["support"] for row in pair["classes"]) == NUM_TEST
    assert 0 < pair["speed"]["low"] <= pair["speed"]["value"] <= pair["speed"]["high"]
    files = [(place / name / "s0/model.safetensors").stat().st_size for name in ("bad", "good")]
    assert [model["bytes_on_disk"] for model in found["models"]] == files
    assert all(model["images_per_second"] > 0 < model["num_parameters"] for model in found["models"])


def test_turned_about_it_is_worse(place):
    pair = kiln.compare(place / "good/s0", place / "bad/s0", speed=False).pairs[0]
    assert pair.verdict == "worse"
    assert pair.accuracy.high < 0
    assert (pair.speed, pair.accuracy.only_second) == (None, 0)


def test_a_model_against_itself_differs_in_nothing(place):
    run = kiln.Run(place / "bad/s1")
    said = command("compare", run.path, run.path, "--no-speed")
    assert said.status == 0, said.err
    name = f"{run.path.name} (2)"
    assert f"no difference shown between {name} and {run.path.name}" in said.out
    assert said.out.startswith("split  test, 90 images in common\n")
    assert "0 samples went from wrong to right, 0 from right to wrong; both say the same of 100.0 %" in said.out
    assert re.search(r"90 samples show a true difference of \d+\.\d points in 80 of 100 cases", said.out)
    pair = kiln.compare(run, run, speed=False).pairs[0]
    assert (pair.verdict, pair.p, pair.agreement, pair.flips) == ("none", 1.0, 1.0, ())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_export_of_the_same_model_is_the_same(place, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    run = kiln.Run(place / "good/s1")
    exported = tmp_path / "model.onnx"
    kiln.export(run.path, output=str(exported))
    found = kiln.compare(run, exported)
    pair = found.pairs[0]
    assert (pair.verdict, pair.agreement, pair.flips) == ("none", 1.0, ())
    assert found.notes == ("model.onnx is measured on the test samples of s1",)
    assert pair.metrics["loss"].value == pytest.approx(0, abs=1e-5)
    assert (found.models[1].runtime, found.models[1].num_parameters) == ("onnx on cpu", None)


def test_what_was_written_down_is_what_is_computed_now(place, tmp_path):
    """Without its outputs a run is asked again, and says the same."""
    shutil.copytree(place / "good/s2", tmp_path / "again")
    (tmp_path / "again" / OUTPUTS).unlink()
    found = kiln.compare(place / "good/s2", tmp_path / "again", speed=False)
    pair = found.pairs[0]
    assert (pair.agreement, pair.flips) == (1.0, ())
    assert pair.metrics["loss"].value == pytest.approx(0, abs=1e-6)


def test_outputs_of_another_model_do_not_count(place, tmp_path):
    shutil.copytree(place / "good/s0", tmp_path / "mixed")
    shutil.copy(place / "bad/s0" / OUTPUTS, tmp_path / "mixed" / OUTPUTS)
    assert kiln.compare(place / "good/s0", tmp_path / "mixed", speed=False).pairs[0].agreement == 1.0


def test_other_data_are_asked_of_all(place, tmp_path):
    data = noisy(tmp_path / "others", val=False)
    (data / "test" / "red" / "broken.png").write_bytes(b"no image")
    found = kiln.compare(
        place / "bad/s0", place / "good/s0/model.safetensors", data=str(data), split="all", speed=False
    )
    assert found.n == 60 + NUM_TEST
    assert [note for note in found.notes if "cannot be read" in note] == [
        "left out for s0, because they cannot be read: 1",
        "left out for s0/model.safetensors, because they cannot be read: 1",
    ]
    assert found.pairs[0].verdict == "better"
    said = command("compare", place / "good/s0/model.safetensors", place / "good/s1/model.safetensors")
    assert said.status == 2
    assert "next: --data DATA" in said.err


def test_samples_of_one_model_only_are_left_out_and_counted(place, tmp_path):
    shutil.copytree(place / "photos", tmp_path / "photos")
    for number in range(0, 30, 3):
        (tmp_path / "photos/test" / CLASSES[0] / f"{number:03d}.png").unlink()
    other = train(tmp_path / "photos", tmp_path, name="fewer", epochs=6, lr=0.02)
    found = kiln.compare(place / "good/s0", other, speed=False)
    assert (found.n, [model.left_out for model in found.models]) == (NUM_TEST - 10, [10, 0])
    assert "left out of s0, because not all models have them: 10" in found.notes


def test_another_label_for_a_sample_is_an_error(place, tmp_path):
    """The same file names, but two images changed places: by name they are the same samples with other labels."""
    rows = [f"test/{number:03d}.png,{CLASSES[number % 3]},test" for number in range(30)]
    rows += [f"train/{number:03d}.png,{CLASSES[number % 3]},train" for number in range(30)]
    for row in rows:
        name, label, _ = row.split(",")
        write(tmp_path / name, swatch(int(name[-7:-4]), CLASSES.index(label)))
    (tmp_path / "one.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
    swapped = [rows[1].replace("green", "red"), rows[2].replace("red", "green")]
    (tmp_path / "two.csv").write_text("\n".join(["path,label,split", rows[0], *swapped, *rows[3:]]) + "\n")
    one, two = (train(tmp_path / f"{name}.csv", tmp_path / "runs", name=name) for name in ("one", "two"))
    with pytest.raises(DataError, match="2 samples with other labels for one than for two") as caught:
        kiln.compare(one, two, speed=False)
    assert caught.value.details == ("test/001.png", "test/002.png")


def test_classes_in_another_order_are_matched_and_others_refused(place, tmp_path):
    """Class names with another index: the second model's outputs stand in another order."""
    for order, name in ((CLASSES, "one"), (CLASSES[::-1], "two"), ((*CLASSES[:2], "pink"), "three")):
        (tmp_path / f"{name}.txt").write_text("\n".join(order) + "\n")
        rows = [
            f"{split}/{number:03d}.png,{order.index(CLASSES[number % 3]) if name != 'three' else number % 3},{split}"
            for split in ("train", "test")
            for number in range(60)
        ]
        (tmp_path / f"{name}.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
    for split in ("train", "test"):
        for number in range(60):
            write(tmp_path / f"{split}/{number:03d}.png", swatch(number, number % 3))
    one, two, three = (
        train(tmp_path / f"{name}.csv", tmp_path / "runs", name=name, epochs=10, lr=0.02,
              class_names=str(tmp_path / f"{name}.txt"))
        for name in ("one", "two", "three")
    )  # fmt: skip
    assert one.outputs().classes != two.outputs().classes
    found = kiln.compare(one, two, speed=False)
    assert found.classes == CLASSES
    assert found.models[1].metrics["accuracy"] == accuracy(two)
    assert accuracy(two) > 0.6
    with pytest.raises(DataError, match="one and three know different classes") as caught:
        kiln.compare(one, three, speed=False)
    assert caught.value.details == ("only one: 'red'", "only three: 'pink'")


def test_without_a_test_split_validation_serves_and_that_is_said(tmp_path):
    data = noisy(tmp_path / "photos", test=False)
    runs = [train(data, tmp_path / "runs", name=name, lr=lr) for name, lr in (("one", 0.01), ("two", 0.02))]
    found = kiln.compare(*runs, speed=False)
    assert (found.split, found.n) == ("val", 30)
    assert "which also served to choose the checkpoints" in found.notes[0]


def test_several_models_each_against_the_first(place):
    said = command("compare", *(place / f"bad/s{seed}" for seed in range(3)), place / "good/s0", "--no-speed", "--json")
    pairs = said.json["pairs"]
    assert [(pair["first"], pair["second"]) for pair in pairs] == [
        (pairs[0]["first"], name["name"]) for name in said.json["models"][1:]
    ]
    assert [model["name"] for model in said.json["models"]] == ["bad/s0", "s1", "s2", "good/s0"]
    raw = [pair["accuracy"]["p"] for pair in pairs]
    assert all(pair["p"] >= pair["accuracy"]["p"] for pair in pairs)
    assert pairs[raw.index(min(raw))]["p"] == pytest.approx(min(3 * min(raw), 1))
    said = command("compare", place / "bad/s0", place / "bad/s1", place / "good/s0", "--no-speed")
    assert "p values are corrected for 2 comparisons (Holm); intervals are not" in said.out


def test_the_page_and_the_tables(place, tmp_path):
    said = command("compare", place / "bad/s0", place / "good/s0", "--no-speed", "--output", tmp_path / "out")
    assert said.status == 0, said.err
    assert said.out.splitlines()[-2:] == [
        f"page   {tmp_path / 'out/compare.html'}", f"table  {tmp_path / 'out/flips.csv'}"
    ]  # fmt: skip
    facts = json.loads((tmp_path / "out/compare.json").read_text())
    with (tmp_path / "out/flips.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["key"] for row in rows] == [flip["key"] for flip in facts["pairs"][0]["flips"]]
    for row in rows:
        right = {"wrong to right": row["second_says"], "right to wrong": row["first_says"]}[row["change"]]
        assert right == row["label"] != {row["first_says"], row["second_says"]}.difference({right}).pop()
    page = (tmp_path / "out/compare.html").read_text()
    assert "good/s0 is better than bad/s0: accuracy" in page
    assert page.count("data:image/jpeg;base64,") == 24
    assert set(re.findall(r"https?://[^\"'\s<]+", page)) == set()
    assert "<script" not in page


def test_recipes_by_their_seeds(place, tmp_path):
    said = command("compare", place / "bad", place / "good", "--output", tmp_path / "out", "--json")
    assert (said.status, said.err) == (0, "")
    pair = said.json["pairs"][0]
    values = [[accuracy(kiln.Run(place / name / f"s{seed}")) for seed in range(3)] for name in ("bad", "good")]
    assert [recipe["metrics"]["accuracy"] for recipe in said.json["recipes"]] == values
    assert pair["metrics"]["accuracy"]["value"] == pytest.approx(np.mean(values[1]) - np.mean(values[0]))
    assert pair["by_seed"]["accuracy"]["degrees"] == 2
    assert pair["metrics"]["accuracy"]["degrees"] < 5  # of six trainings, not of 540 answers
    assert set(pair["differs"]) == {"optim.lr", "training.epochs"}
    assert "the unit is a training, not a sample" in (tmp_path / "out/compare.html").read_text()
    runs = [place / f"{name}/s{seed}" for name in ("bad", "good") for seed in range(3)]
    grouped = command("compare", "--group", "old", *runs[:3], "--group", "new", *runs[3:])
    assert grouped.status == 0, grouped.err
    assert "new is better than old: mean accuracy" in grouped.out
    assert "what differs: optim.lr" in grouped.out
    same = kiln.compare(groups={"a": runs[:3], "b": runs[:3]})
    assert (same.pairs[0].verdict, dict(same.pairs[0].differs)) == ("none", {})


def test_too_few_seeds_are_refused_with_their_number(place, tmp_path):
    good, bad = ([place / name / f"s{seed}" for seed in range(3)] for name in ("good", "bad"))
    said = command("compare", "--group", "old", *bad[:2], "--group", "new", *good)
    assert said.status == 2
    assert "old has 2 finished runs, which cannot show how much the seed matters" in said.err
    assert "at least 3 seeds of each recipe" in said.err
    shutil.copytree(place / "good/s0", tmp_path / "one/s0")
    with pytest.raises(UsageError, match="one has 1 finished run, which"):
        kiln.compare(place / "bad", tmp_path / "one")
    with pytest.raises(UsageError, match="x holds several runs of seed 0"):
        kiln.compare(groups={"x": [good[0], good[0], good[1]], "y": bad})
    with pytest.raises(UsageError, match=r"x is not one recipe: s0 and .*s1 differ in more than the seed") as caught:
        kiln.compare(groups={"x": [good[0], bad[1], bad[2]], "y": bad})
    assert any(line.startswith("optim.lr: ") for line in caught.value.details)
    with pytest.raises(UsageError, match=r"is a folder of runs, and .* is not"):
        kiln.compare(place / "bad", place / "good/s0")
    with pytest.raises(UsageError, match="no run folder"):
        kiln.compare(groups={"x": [*good[:2], good[2] / "model.safetensors"], "y": bad})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["good/s0"], "1 model to compare"),
        ([], "0 models to compare"),
        (["good/s0", "good/s1", "--split", "tset"], "did you mean: test"),
        (["good/s0", "--group", "a", "good/s1", "--group", "b", "good/s2"], "both models and groups"),
        (["--group", "a", "--group", "b", "good/s2"], "a group without runs"),
        (["--group", "a", "good/s1", "--group", "a", "good/s2"], "the name is taken"),
        (["--group", "a", "good/s0", "good/s1", "good/s2"], "1 group of runs"),
        (["good/s0", "good/s9"], "error E111: there is no good/s9"),
    ],
)
def test_what_is_refused(place, monkeypatch, arguments, message):
    monkeypatch.chdir(place)
    said = command("compare", *arguments)
    assert said.status in (2, 4)
    assert message in said.err


def test_several_labels_per_image(tmp_path):
    rng = np.random.default_rng(1)
    rows = []
    for split, num in (("train", 48), ("val", 24), ("test", 60)):
        for number in range(num):
            red, green = number % 2, number // 2 % 2
            pixels = np.array([60 + 140 * red, 60 + 140 * green, 60]) + rng.normal(0, 20, (16, 16, 3))
            write(tmp_path / f"{split}{number:02d}.png", np.clip(pixels, 0, 255).astype(np.uint8))
            rows.append(f'{split}{number:02d}.png,"{",".join(["red"] * red + ["green"] * green)}",{split}')
    (tmp_path / "labels.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
    runs = [
        train(tmp_path / "labels.csv", tmp_path / "runs", name=name, task="multilabel", epochs=epochs, lr=0.02)
        for name, epochs in (("short", 1), ("long", 12))
    ]
    found = kiln.compare(*runs, speed=False)
    pair = found.pairs[0]
    assert found.n == 60
    assert set(pair.metrics) >= {"label_accuracy", "f1_macro", "f1_micro", "loss"}
    assert found.models[1].metrics["accuracy"] == accuracy(runs[1])
    assert pair.verdict == "better"
    assert {flip.label for flip in pair.flips} <= {"", "green", "red", "green, red"}


def test_in_chinese(place):
    said = command("--lang", "zh", "compare", place / "bad/s0", place / "good/s0", "--no-speed")
    assert said.status == 0, said.err
    assert "优于" in said.out
    assert "is better than" not in said.out


def test_groups_of_the_data_are_drawn_as_a_whole(tmp_path):
    rows = []
    for split, num in (("train", 48), ("val", 12), ("test", 60)):
        for number in range(num):
            write(tmp_path / f"{split}{number:02d}.png", swatch(number, number % 3))
            rows.append(f"{split}{number:02d}.png,{CLASSES[number % 3]},{split},{split}-{number // 6}")
    (tmp_path / "labels.csv").write_text("\n".join(["path,label,split,group", *rows]) + "\n")
    runs = [
        train(tmp_path / "labels.csv", tmp_path / "runs", name=name, epochs=epochs, lr=lr)
        for name, epochs, lr in (("short", 1, 1e-4), ("long", 10, 0.02))
    ]
    found = kiln.compare(*runs, speed=False)
    assert found.n == 60
    assert found.pairs[0].accuracy.num_groups == 10
    same = command("compare", runs[0].path, runs[0].path, "--no-speed")
    assert "60 samples in 10 groups show a true difference of" in same.out


def test_an_ensemble_is_a_model(place, tmp_path):
    made = tmp_path / "both"
    said = command("ensemble", place / "good/s0", place / "good/s1", "--output", made)
    assert said.status == 0, said.err
    found = kiln.compare(place / "bad/s0", made)
    assert found.pairs[0].verdict == "better"
    assert found.models[1].runtime.startswith("ensemble on ")
    assert found.models[1].bytes_on_disk == sum(path.stat().st_size for path in made.rglob("*") if path.is_file())
