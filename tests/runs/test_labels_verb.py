"""Wrong labels are found, told with the reason, and a next run trains on the corrected ones."""

from __future__ import annotations

import csv
import shutil

import numpy as np
import pytest
from albums import class_folders, command, flat_images, train

import kiln
from kiln.data.checks.findings import COLUMNS
from kiln.errors import DataError, UsageError
from kiln.jobs.labels import label_findings
from kiln.observe.outputs import KeptOutputs, SplitOutputs

LONG = {"epochs": 30, "batch_size": 8, "lr": 0.01}
PLANTED = {"red/00.png": "blue", "red/03.png": "blue", "green/08.png": "red"}
"""Where three images were put, and what they are."""


@pytest.fixture(scope="module")
def mislabelled(tmp_path_factory):
    folder = class_folders(tmp_path_factory.mktemp("mislabelled") / "photos", num=48)
    for key, true in PLANTED.items():
        shutil.move(folder / true / key.split("/")[1], folder / key)
    return folder


@pytest.fixture(scope="module")
def folds(mislabelled, tmp_path_factory):
    return train(mislabelled, tmp_path_factory.mktemp("runs"), folds=4, name="folds", **LONG)


def test_what_was_planted_is_found_first_with_the_reason(folds):
    found = kiln.labels(folds)
    suspects = found.of("label_error")
    assert {finding.keys[0] for finding in suspects[:3]} == set(PLANTED)
    for finding in suspects[:3]:
        given, true = finding.keys[0].split("/")[0], PLANTED[finding.keys[0]]
        assert finding.detail.startswith(f"given '{given}', out of fold ")
        shares = finding.detail.removeprefix(f"given '{given}', out of fold ").removesuffix(f": '{true}'?").split(", ")
        assert [share.split()[-1] for share in shares] == [f"'{true}'", f"'{given}'"]
        assert finding.decisions == ("keep",)
    assert found.num_samples == 48
    assert found.sizes == {"train": 48}
    assert found.of("note")[0].detail.startswith("the models agree with the labels given for ")
    assert "of 48 labels about" in found.of("note")[1].detail
    assert len(found.of("note")) == 2
    first = kiln.labels(folds.path, top=2)
    assert (len(first.of("label_error")), first.left_out) == (2, len(suspects) - 2)


def test_accepted_the_next_run_trains_on_the_corrected_labels(folds, mislabelled, tmp_path):
    said = command("labels", folds.path, "--output", tmp_path / "out", "--suggest", "relabel", "--top", 3)
    assert said.status == 0, said.err
    assert f"table  {tmp_path / 'out' / 'labels.csv'}\n" in said.out
    table = tmp_path / "out" / "labels.csv"
    with table.open(newline="") as file:
        assert file.readline() == '# {"kind": "kiln.check", "version": 1}\n'
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert {row["key"]: row["decision"] for row in rows} == {key: f"relabel:{true}" for key, true in PLANTED.items()}
    assert {row["finding"] for row in rows} == {"label_error"}
    after = train(mislabelled, tmp_path / "runs", folds=4, decisions=table).outputs().splits["oof"]
    labels = dict(zip(after.keys, after.labels, strict=True))
    assert {key: label for key, label in labels.items() if label != key.split("/")[0]} == PLANTED


def test_what_an_earlier_table_decided_is_not_forgotten(mislabelled, tmp_path):
    first = tmp_path / "first.csv"
    first.write_text("key,decision\nred/00.png,relabel:blue\ngreen/01.png,drop\ngreen/04.png,keep\n")
    run = train(mislabelled, tmp_path / "runs", folds=4, name="second", decisions=first, **LONG)
    kiln.labels(run, tmp_path / "out", suggest="relabel", top=2)
    again = train(mislabelled, tmp_path / "runs", name="third", decisions=tmp_path / "out" / "labels.csv")
    note = next(note for note in again.resolved["notes"] if "labels.csv" in note)
    assert note.endswith("1 sample dropped, 3 samples relabelled")


def test_the_page_shows_the_pictures(folds, tmp_path):
    command("labels", folds.path, "--output", tmp_path / "out")
    page = (tmp_path / "out" / "labels.html").read_text()
    assert page.count("data:image/jpeg;base64,") == len(kiln.labels(folds).of("label_error"))
    assert "labels.csv" in page
    assert "check.csv" not in page
    assert f"<h1>Labels of {folds.path}</h1>" in page
    for key in PLANTED:
        assert key in page


def test_the_command_tells_the_first_ones_and_says_what_next(folds):
    said = command("labels", folds.path)
    assert said.status == 0, said.err
    lines = said.out.splitlines()
    assert lines[0].startswith("note   the models agree with the labels given for ")
    assert {line.split("  ")[0] for line in lines[2:5]} == set(PLANTED)
    num = len(kiln.labels(folds).of("label_error"))
    assert any(line.startswith(f"found  suspicious labels: {num} of 48") for line in lines)
    first = command("labels", folds.path, "--top", 2).out
    assert f"found  suspicious labels: {num} of 48, the first 2 listed\n" in first
    assert first.count(", out of fold ") == 2
    assert lines[-1] == "next   kiln labels RUN --output OUT writes the pictures and the table of decisions"
    assert command("labels", folds.path, "--json").json["counts"]["label_error"] >= 3


def test_a_plain_run_judges_what_it_held_out_and_says_so(mislabelled, tmp_path):
    run = train(mislabelled, tmp_path / "runs")
    found = kiln.labels(run)
    held_out = run.outputs().splits["val"].keys
    assert found.num_samples == len(held_out) < 48
    assert found.sizes == {"val": len(held_out)}
    assert f"only the {len(held_out)} samples that the run held out were judged" in found.of("note")[-1].detail
    suspects = found.of("label_error") + found.of("label_doubt")
    assert {finding.keys[0] for finding in suspects} <= set(held_out)
    assert all(", held out " in finding.detail for finding in suspects)


def test_weak_models_judge_no_label(mislabelled, tmp_path):
    run = train(mislabelled, tmp_path / "runs", folds=4, epochs=1, lr=1e-6)
    found = kiln.labels(run, tmp_path / "out", suggest="relabel")
    assert found.of("label_error") == ()
    assert {decision for finding in found for decision in finding.decisions} == {"keep"}
    assert "they cannot judge labels: train longer" in found.of("note")[0].detail
    assert not any("are wrong" in finding.detail for finding in found.of("note"))
    page = (tmp_path / "out" / "labels.html").read_text()
    assert "probably wrong" not in page
    assert "labels that weak models doubt" in page
    lines = command("labels", run.path).out.splitlines()
    assert lines[0].startswith("note   these models are right for ")
    assert any(line.startswith("found  labels that weak models doubt: ") for line in lines)


@pytest.mark.parametrize(("right", "judges"), [(1.0, True), (0.7, True), (0.5, False), (0.34, False)])
def test_models_judge_from_half_way_between_chance_and_perfection_on(right, judges):
    targets = np.repeat(np.arange(3), 50)
    said = np.where(np.tile(np.arange(50), 3) < round(right * 50), targets, (targets + 1) % 3)
    logits = 3.0 * np.eye(3, dtype=np.float32)[said]
    keys = tuple(f"{index}" for index in range(150))
    names = tuple("abc"[target] for target in targets)
    part = SplitOutputs(keys, names, logits, targets)
    kept = KeptOutputs(("a", "b", "c"), {"name": "classification"}, {}, "", {"oof": part})
    notes = [finding.detail for finding in label_findings(kept).of("note")]
    assert any("labels about" in note for note in notes) == judges
    assert f"{100 * round(right * 50) / 50:.1f} % of the images" in notes[0]


def test_labels_of_several_are_judged_one_by_one(tmp_path):
    rows = [
        (path, f"{label},seen" if label != "green" else label) for path, label in flat_images(tmp_path / "data", num=48)
    ]
    wrong = rows[0][0], rows[1][0]
    rows[0], rows[1] = (wrong[0], "blue"), (wrong[1], "green,seen")
    with (tmp_path / "data" / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    run = train(tmp_path / "data" / "table.csv", tmp_path / "runs", folds=4, **LONG)
    suspects = kiln.labels(run, suggest="relabel").of("label_error")
    details = {finding.keys[0]: (finding.detail, finding.decisions) for finding in suspects}
    assert details[wrong[0]][0].startswith("given 'blue', out of fold ")
    assert details[wrong[0]][0].endswith(" % 'seen': 'blue,seen'?")
    assert details[wrong[0]][1] == ("relabel:blue,seen",)
    assert details[wrong[1]][0].endswith(" % 'seen': 'green'?")


def test_the_data_may_lie_elsewhere_now(folds, mislabelled, tmp_path):
    moved = shutil.copytree(folds.path, tmp_path / "moved")
    recipe = (moved / "recipe.yaml").read_text().replace(str(mislabelled), str(tmp_path / "gone"))
    (moved / "recipe.yaml").write_text(recipe)
    assert len(kiln.labels(moved).of("label_error")) >= 3  # without pictures no data are needed
    with pytest.raises(DataError, match=r"kiln labels .* --data DATA"):
        kiln.labels(moved, tmp_path / "out")
    said = command("labels", moved, "--output", tmp_path / "out", "--data", mislabelled)
    assert said.status == 0, said.err
    assert "data:image/jpeg" in (tmp_path / "out" / "labels.html").read_text()


def test_what_cannot_be(folds, tmp_path):
    with pytest.raises(UsageError, match="suggest = 'drop'"):
        kiln.labels(folds, suggest="drop")
    assert command("labels", tmp_path).status == 2
    run = train(class_folders(tmp_path / "data", num=12), tmp_path / "runs", val_fraction=0.0)
    with pytest.raises(DataError, match="held no sample out"):
        kiln.labels(run)
    assert command("labels", folds.path, "--top", 0).status == 2
