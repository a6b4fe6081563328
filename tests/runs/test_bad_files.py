"""Files that are no images: counted, named, given no weight, and never replaced by another image or a black one."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import pytest
from albums import CLASSES, FLAGS, class_folders, command, fingerprint, number_of, split_folders, spoil

import kiln
from kiln.models.modelfile import read_header

SPY = '''
import json
from pathlib import Path

import torch
from torch import nn


class Spy(nn.Module):
    """Writes down the first pixel of every image that it is trained on."""

    def __init__(self, num_classes, record):
        super().__init__()
        self.head, self.record = nn.Linear(3, num_classes), Path(record)

    def forward(self, images):
        if self.training and images.device.type != "meta":
            write(self.record / "seen.jsonl", images[:, :, 0, 0].tolist())
        return self.head(images.mean((2, 3)))


def write(path, rows):
    with path.open("a") as file:
        file.write(json.dumps(rows) + "\\n")


def make(num_classes, record):
    return Spy(num_classes, record)


class Loss(nn.Module):
    """Cross entropy that writes down its targets."""

    def forward(self, outputs, targets):
        write(Path(__file__).parent / "targets.jsonl", targets.tolist())
        return nn.functional.cross_entropy(outputs, targets, reduction="none")
'''


def bad_rows(run: Path) -> list[dict[str, str]]:
    with (run / "bad_files.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def spied(folder: Path, run: Path) -> list[tuple[int, int]]:
    """(number that the pixels tell, target) of every image that training saw, in order."""
    spec = read_header(run / "model.safetensors")["spec"]
    red = [255 * (pixel[0] * spec["std"][0] + spec["mean"][0]) for pixel in lines(folder / "seen.jsonl")]
    trial = 1  # a loss of one's own is called once before training
    return list(zip(map(number_of, red), lines(folder / "targets.jsonl", after=trial), strict=True))


def lines(path: Path, *, after: int = 0) -> list:
    return [row for line in path.read_text().splitlines()[after:] for row in json.loads(line)]


@pytest.mark.parametrize("how", ["header", "body", "empty"])
def test_a_bad_training_file_weighs_nothing_and_nothing_stands_in_for_it(how, tmp_path):
    data = tmp_path / "data"
    class_folders(data / "train", num=60)
    class_folders(data / "val", num=3, first=60)
    bad = {7: "green", 20: "red", 33: "blue"}
    for number, name in bad.items():
        spoil(data / f"train/{name}/{number:02d}.png", how)
    (tmp_path / "spy.py").write_text(SPY)
    before = fingerprint(data)
    flags = (
        *("--model", f"{tmp_path / 'spy.py'}:make", "--set", f"model.kwargs.record={tmp_path}", "--img-size", "16"),
        *("--loss", f"{tmp_path / 'spy.py'}:Loss", "--epochs", "3", "-b", "8", "--seed", "1"),
        *("--set", "data.max_bad_fraction=0.05", "--output", tmp_path / "runs", "--name", "run"),
    )
    said = command("train", data, *flags)
    assert said.status == 0, said.err
    run = tmp_path / "runs/run"
    seen = spied(tmp_path, run)
    assert len(seen) == 3 * 57
    for epoch in range(3):
        of_epoch = seen[57 * epoch : 57 * (epoch + 1)]
        assert sorted(number for number, _ in of_epoch) == sorted(set(range(60)) - set(bad))
    assert all(target == number % 3 for number, target in seen)
    assert {row["key"] for row in bad_rows(run)} == {f"train/{name}/{number:02d}.png" for number, name in bad.items()}
    assert {row["split"] for row in bad_rows(run)} == {"train"}
    reasons = {"header": "not_an_image", "body": "truncated", "empty": "empty"}
    assert {row["reason"] for row in bad_rows(run)} == {reasons[how]}
    assert ("bad files  3 files cannot be read" in said.out) == (how != "body")
    batches = (tmp_path / "targets.jsonl").read_text().splitlines()[1:]
    assert len(batches) == 3 * 8  # a bad file keeps its place: as many steps as there would have been
    assert Counter(len(json.loads(line)) for line in batches)[8] < len(batches)
    assert fingerprint(data) == before


def test_too_many_bad_headers_stop_before_training(tmp_path):
    data = split_folders(tmp_path / "data")
    for number in (0, 3, 6):
        spoil(data / f"train/blue/{number:02d}.png", "header")
    said = command("train", data, *FLAGS, "--output", tmp_path / "runs", "--name", "run")
    assert said.status == 3
    assert said.err.startswith("error E206: 3 of 24 training files cannot be read\n  expected: at most 1.0%")
    assert "train/blue/03.png" in said.err
    assert "(kiln check DATA lists them all), or allow more with --set data.max_bad_fraction=0.13\n" in said.err
    assert (
        command("train", data, *FLAGS, "--set", "data.max_bad_fraction=0.13", "--output", tmp_path / "more").status == 0
    )
    assert [row["key"] for row in bad_rows(tmp_path / "runs/run")] == [f"train/blue/0{i}.png" for i in (0, 3, 6)]
    status = kiln.Run(tmp_path / "runs/run").status
    assert (status["state"], status["step"], status["code"]) == ("failed", 0, "E206")
    assert "E206" in (tmp_path / "runs/run/log.txt").read_text()


def test_too_many_bad_bodies_stop_at_the_first_that_is_too_many(tmp_path):
    data = split_folders(tmp_path / "data")
    for number in (0, 3, 6):
        spoil(data / f"train/blue/{number:02d}.png", "body")
    said = command("train", data, *FLAGS, "--output", tmp_path / "runs", "--name", "run")
    assert said.status == 3
    assert "E206" in said.err
    assert "truncated" in said.err
    assert "--set data.max_bad_fraction" in said.err
    rows = bad_rows(tmp_path / "runs/run")
    assert rows
    assert {row["reason"] for row in rows} == {"truncated"}


def test_the_limit_is_a_share_that_can_be_set(tmp_path):
    data = split_folders(tmp_path / "data")
    spoil(data / "train/blue/03.png", "body")
    assert command("train", data, *FLAGS, "--output", tmp_path / "runs").status == 3  # 1 of 24 is 4 %
    flags = ("--set", "data.max_bad_fraction=0.05", "--output", tmp_path / "runs", "--name", "run")
    assert command("train", data, *FLAGS, *flags).status == 0
    assert [row["key"] for row in bad_rows(tmp_path / "runs/run")] == ["train/blue/03.png"]


@pytest.mark.parametrize("how", ["header", "body"])
@pytest.mark.parametrize("split", ["val", "test"])
def test_a_bad_held_out_file_is_an_error_unless_skipped_and_then_the_denominator_says_so(split, how, tmp_path):
    data = split_folders(tmp_path / "data")
    number = {"val": 24, "test": 30}[split]
    key = f"{split}/blue/{number}.png"
    spoil(data / key, how)
    said = command("train", data, *FLAGS, "--output", tmp_path / "runs", "--name", "strict")
    assert said.status == 3
    assert said.err.startswith("error E202: ")
    assert key in said.err
    assert "--bad-files skip" in said.err
    skip = ("--bad-files", "skip", "--output", tmp_path / "runs", "--name", "run")
    said = command("train", data, *FLAGS, *skip)
    assert said.status == 0, said.err
    assert "n 5" in next(line for line in said.out.splitlines() if line.startswith(f"{split} "))
    run = kiln.Run(tmp_path / "runs/run")
    assert run.result["skipped"] == {"val": int(split == "val"), "test": int(split == "test")}
    assert run.result["metrics"][split]["accuracy"]["n"] == 5
    assert [(row["key"], row["split"]) for row in bad_rows(run.path)] == [(key, split)]
    assert not any(row["key"] == key for row in run.predictions())
    assert command("evaluate", run.path, "--split", split).status == 3
    said = command("evaluate", run.path, "--split", split, "--bad-files", "skip")
    assert said.status == 0, said.err
    assert "images 5 (1 unreadable, not counted)" in said.out
    said = command("evaluate", run.path, "--split", split, "--bad-files", "skip", "--json")
    assert (said.json["n"], said.json["skipped"]) == (5, 1)
    assert said.json["bad_files"][0]["key"] == key
    assert said.json["accuracy"] == run.result["metrics"][split]["accuracy"]["value"]


def test_a_test_file_that_spoils_the_end_spoils_no_training(tmp_path):
    data = split_folders(tmp_path / "data")
    spoil(data / "test/blue/30.png", "body")
    said = command("train", data, *FLAGS, "--output", tmp_path / "runs", "--name", "run")
    assert said.status == 3
    assert f"kept: the trained model, {tmp_path / 'runs/run/model.safetensors'}" in said.err
    assert f"next: kiln evaluate {tmp_path / 'runs/run'} --split test --bad-files skip" in said.err
    assert command("evaluate", tmp_path / "runs/run", "--split", "test", "--bad-files", "skip").status == 0


def test_a_split_without_a_readable_file_is_an_error_also_when_skipping(tmp_path):
    data = split_folders(tmp_path / "data", test=None)
    for path in (data / "val").rglob("*.png"):
        spoil(path, "body")
    said = command("train", data, *FLAGS, "--bad-files", "skip", "--output", tmp_path / "runs")
    assert said.status == 3
    assert "no validation file can be read" in said.err


def test_a_class_of_which_nothing_can_be_read_is_still_a_class(tmp_path):
    data = split_folders(tmp_path / "data", test=None)
    for path in (data / "val/red").iterdir():
        spoil(path, "header")
    flags = ("--bad-files", "skip", "--output", tmp_path / "runs", "--name", "run")
    assert command("train", data, *FLAGS, *flags).status == 0
    run = kiln.Run(tmp_path / "runs/run")
    assert [row["support"] for row in run.result["details"]["val"]["per_class"]] == [2, 2, 0]
    assert run.resolved["facts"]["classes"] == list(CLASSES)


def test_too_many_pixels_is_a_bad_file(tmp_path):
    data = split_folders(tmp_path / "data")
    said = command("train", data, *FLAGS, "--set", "data.max_pixels=399", "--output", tmp_path / "runs")
    assert said.status == 3
    assert "24 of 24 training files cannot be read" in said.err
    assert "400 pixels" in said.err
