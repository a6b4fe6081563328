"""`kiln bench data`: every stage is measured, the sample is named, and nothing is left behind."""

from __future__ import annotations

import albums
import pytest
import torch

import kiln
from kiln.data import room
from kiln.errors import DataError, UsageError
from kiln.measure.wall import READ_FIRST

QUICK = {**albums.TINY, "seconds": 0.2}


@pytest.fixture
def photos(tmp_path):
    return albums.class_folders(tmp_path / "photos")


def names(measured):
    return [stage.name for stage in measured.stages]


def test_the_command(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KILN_CACHE", str(tmp_path / "cache"))
    before = albums.fingerprint(photos)
    flags = [flag if flag != "0" else "2" for flag in albums.FLAGS[:-2]]
    said = albums.command("bench", "data", photos, *flags, "--seconds", "0.2", "--model-step", "--json")
    assert said.status == 0, said.err
    stages = said.json["stages"]
    assert [(stage["name"], stage["threads"]) for stage in stages] == [
        (READ_FIRST, 1),
        ("read, again", 1),
        ("read, decode, crop", 1),
        ("read, decode, crop", 2),
        ("crop from what is kept", 1),
        ("crop from what is kept", 2),
        ("stack", 1),
        ("augment, normalise", 1),
        ("all together", 2),
        ("the model's step", 1),
    ]
    assert all(0 < stage["rate"]["low"] <= stage["rate"]["per_second"] <= stage["rate"]["high"] for stage in stages)
    assert said.json["wall"]["model_per_second"] == stages[-1]["rate"]["per_second"]
    conditions = said.json["conditions"]
    assert (conditions["images"], conditions["batch_size"], conditions["workers"]) == (30, 16, 2)
    assert "page cache" in said.err
    assert albums.fingerprint(photos) == before
    assert room.entries() == []
    assert {path.name for path in tmp_path.iterdir()} <= {"photos", "cache"}
    said = albums.command("bench", "data", photos, *flags, "--seconds", "0.1")
    assert said.status == 0
    assert said.out.splitlines()[0].split() == ["stage", "threads", "images/s", "middle", "half", "in", "the", "plan"]
    assert "\nwall   the slowest stage of the data is: " in said.out


def test_the_plan_says_which_stages_count(photos):
    kept = kiln.bench_data(photos, **QUICK)
    off = kiln.bench_data(photos, **QUICK, cache="off")
    for measured, keeps in ((kept, True), (off, False)):
        in_plan = {stage.name for stage in measured.stages if stage.in_plan}
        assert ("crop from what is kept" in in_plan) == keeps
        assert ("read, decode, crop" in in_plan) != keeps
        assert measured.conditions["kept"] == keeps
    original = kiln.bench_data(photos, **QUICK, cache="off", pixel_form="original", crop="resized")
    (other,) = (stage for stage in original.stages if stage.name == "crop from stored copies")
    assert other.tries == "--set data.pixel_form=stored"
    assert not other.in_plan


def test_a_data_set_that_transforms_by_itself():
    data = torch.utils.data.TensorDataset(torch.randn(40, 3, 16, 16), torch.arange(40) % 3)
    measured = kiln.bench_data(data, **QUICK)
    assert "crop from what is kept" not in names(measured)
    assert measured.wall.data_per_second > 0


def test_bad_files_are_passed_over_unless_there_are_no_others(photos):
    files = sorted(photos.rglob("*.png"))
    for path in files[:3]:
        albums.spoil(path)
    assert kiln.bench_data(photos, **QUICK).wall.data_per_second > 0
    for path in files[3:]:
        albums.spoil(path)
    with pytest.raises(DataError, match="none of the first"):
        kiln.bench_data(photos, **QUICK)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dta", "x"], "did you mean: data"),
        (["photos"], "next: kiln bench data photos"),
        (["data"], "no data: nothing to measure"),
        (["data", "x", "--secnds", "3"], "did you mean --seconds?"),
    ],
)
def test_what_is_refused(arguments, message):
    said = albums.command("bench", *arguments)
    assert said.status == 2
    assert message in said.err


def test_help_and_wrong_numbers(photos):
    assert albums.command("bench", "--help").out.startswith("Usage: kiln bench SUBJECT")
    assert "--model-step" in albums.command("bench", "data", "--help").out
    with pytest.raises(UsageError, match="seconds = 0"):
        kiln.bench_data(photos, seconds=0)
