"""`kiln show`: the sheet shows the very batch of a step; nothing else is made."""

from __future__ import annotations

import shutil

import albums
import numpy as np
import pytest
import torch
from PIL import Image

import kiln
from kiln.data import room
from kiln.engine import fit as engine_fit
from kiln.errors import UsageError
from kiln.jobs import show as show_job


@pytest.fixture
def photos(tmp_path):
    return albums.class_folders(tmp_path / "photos")


@pytest.fixture
def seen(monkeypatch):
    """What the sheet is drawn from: the frames of each call."""
    calls = []
    drawn = show_job.contact_sheet
    monkeypatch.setattr(show_job, "contact_sheet", lambda frames, **how: calls.append(frames) or drawn(frames, **how))
    return calls


@pytest.fixture
def trained_on(monkeypatch):
    """The batches that a training took, by step from 1."""
    batches = []
    stream = engine_fit.stream

    def watched(*arguments):
        for batch in stream(*arguments):
            batches.append(batch)
            yield batch

    monkeypatch.setattr(engine_fit, "stream", watched)
    return batches


def test_the_batch_of_a_run_is_the_one_that_it_was_trained_on(image_folder, tmp_path, seen, trained_on, monkeypatch):
    run = albums.train(image_folder, tmp_path / "runs", epochs=3, vflip=0.5)
    monkeypatch.chdir(tmp_path)
    last = run.status["step"]
    for step in (1, 5, last):
        shown = kiln.show(run, step=step, count=64)
        was = trained_on[step - 1]
        source = kiln.open_source(str(image_folder))
        assert shown.keys == tuple(source.keys[index] for index in was.indices)
        assert shown.labels == tuple(key.split("/")[0] for key in shown.keys)
        after = np.stack([frame.images[1] for frame in seen[-1]])
        assert after.shape == (len(was), 16, 16, 3)
        for channel in range(3):  # a straight line leads from what the model was given to what is shown
            given, drawn = was.images[:, channel].flatten().double(), torch.from_numpy(after[..., channel]).flatten()
            line = torch.stack([given, torch.ones_like(given)], 1)
            fitted = line @ torch.linalg.lstsq(line, drawn.double()[:, None]).solution[:, 0]
            assert (fitted - drawn).abs().max() < 1e-3
            assert drawn.max() > drawn.min()
    assert kiln.show(run).step == last


def test_left_is_the_contracts_image_and_right_differs(photos, tmp_path, seen):
    kiln.show(photos, output=tmp_path / "a.png", **{**albums.TINY, "epochs": 1}, hflip=0.0)
    kiln.show(photos, output=tmp_path / "b.png", **{**albums.TINY, "epochs": 1}, policy="none")
    for augmented, plain in zip(*seen, strict=True):
        assert augmented.name == plain.name
        assert np.array_equal(plain.images[0], plain.images[1])  # normalised and back: not a level is lost
        assert np.array_equal(augmented.images[0], plain.images[0])
    shown = albums.number_of(seen[0][0].images[0][0, 0, 0])
    assert f"{shown:02d}.png" in seen[0][0].name


def test_the_command(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KILN_CACHE", str(tmp_path / "cache"))
    before = albums.fingerprint(photos)
    said = albums.command("show", photos, *albums.FLAGS, "--step", "3", "--count", "5")
    assert said.status == 0
    assert all(line.startswith("note: ") for line in said.err.splitlines())
    assert said.out == "step   3, in epoch 2: 5 of its 16 images\nfile   photos-step000003.png\n"
    with Image.open("photos-step000003.png") as sheet:
        assert sheet.format == "PNG"
        assert min(sheet.size) > 2 * 96
    said = albums.command("show", photos, *albums.FLAGS, "--output", "sheet.jpg", "--count", "99", "--json")
    assert said.status == 0
    assert said.json["path"] == "sheet.jpg"
    assert len(said.json["keys"]) == said.json["batch_size"] == 16
    assert "the step has 16 samples, fewer than the 99 asked for" in said.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "photos", "photos-step000003.png", "sheet.jpg"]
    assert albums.fingerprint(photos) == before
    assert room.entries() == []


def test_a_run_by_the_command_also_when_the_data_moved(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = albums.train(photos, tmp_path / "runs", name="first")
    said = albums.command("show", run.path, "--count", "2")
    assert said.status == 0
    assert "file   first-step000002.png" in said.out
    same = (tmp_path / "first-step000002.png").read_bytes()
    shutil.move(photos, tmp_path / "elsewhere")
    said = albums.command("show", run.path)
    assert said.status == 3
    assert f"kiln show {run.path} --set data.path=DATA" in said.err
    said = albums.command("show", run.path, "--set", f"data.path={tmp_path / 'elsewhere'}", "--count", "2")
    assert said.status == 0
    assert (tmp_path / "first-step000002.png").read_bytes() == same
    said = albums.command("show", run.path, "--img-size", "32")
    assert said.status == 2
    assert "model.img_size: the run has 16, now given 32" in said.err
    assert "next: kiln show DATA does it with other settings" in said.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--step", "0"], "step = 0"),
        (["--count", "0"], "count = 0"),
        (["--output", "sheet.gif"], "choices: .png, .jpg, .jpeg"),
        (["--stpe", "1"], "did you mean --step?"),
        (["--name", "x"], "No such option"),
        (["data=elsewhere"], "two data sets"),
    ],
)
def test_what_is_refused(photos, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    said = albums.command("show", photos, *arguments)
    assert said.status == 2
    assert message in said.err
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_no_data_is_an_error():
    with pytest.raises(UsageError, match="nothing to show"):
        kiln.show()


def test_bad_samples_are_left_out_and_counted(photos, tmp_path):
    albums.spoil(photos / "blue" / "00.png")
    shown = kiln.show(photos, output=tmp_path / "a.png", val_fraction=0.0, **{**albums.TINY, "batch_size": 36})
    assert len(shown.keys) == 16
    assert shown.batch_size == 35
    assert "1 sample of the step left out: no image can be read there" in shown.notes


def test_names_without_glyphs_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr("kiln.reports.contact_sheet.WIDER_FONTS", ())
    photos = albums.class_folders(tmp_path / "photos", names=("日本", "plain"), num=12)
    shown = kiln.show(photos, output=tmp_path / "a.png", **albums.TINY)
    assert any("can show 日本: --font FILE" in note for note in shown.notes)


def test_several_labels_and_mixed_targets_in_words():
    label = show_job.target_label
    classes = ("cat", "dog", "owl")
    assert label(torch.tensor(2), classes) == "owl"
    assert label(torch.tensor([1.0, 0.0, 1.0]), classes) == "cat, owl"
    assert label(torch.tensor([0.3, 0.7, 0.0]), classes) == "dog 70%, cat 30%"
    assert label(torch.tensor([0.0, 0.0, 0.0]), classes) == "(none)"
    assert label(torch.tensor(1.5), classes) == "1.5"


def test_a_data_set_that_transforms_by_itself(tmp_path, seen):
    images = torch.randn(24, 3, 16, 16)
    data = torch.utils.data.TensorDataset(images, torch.arange(24) % 3)
    shown = kiln.show(data, output=tmp_path / "a.png", count=4, **albums.TINY)
    assert len(shown.keys) == 4
    for frame in seen[0]:
        (image,) = frame.images
        assert (image.min(), image.max()) == (0, 255)
