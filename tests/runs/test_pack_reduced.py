"""Reduced copies by `kiln pack --px`: what they hold, what they say, and training from them."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

import kiln
from kiln.cli import main
from kiln.data.cache import StoredForm
from kiln.errors import UsageError
from kiln.pixels import MAX_PIXELS

NOTE = "images were reduced to 12 px on the shorter side when they were packed"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("reduced") / "photos", np.random.default_rng(0)
    for number in range(24):
        path = root / "ab"[number % 2] / f"{number:02d}.{'png' if number % 3 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (10, 30, 3) if number < 4 else (40, 24 + number, 3)
        Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(path)
    return root


@pytest.mark.parametrize("form", ["packed", "lmdb", "hdf5", "webdataset", "parquet"])
def test_the_copy_holds_what_the_stored_form_makes_and_says_so(photos, tmp_path, form):
    source = kiln.open_source(photos)
    output = tmp_path / ("small.h5" if form == "hdf5" else "small")
    done = kiln.pack(photos, output, format=form, px=12)
    assert done.samples == len(source)
    copy = kiln.open_source(output)
    assert copy.keys == source.keys
    assert copy.labels == source.labels
    assert copy.notes == (f"{NOTE}: training, validation and test see these",)
    made = StoredForm(12, 3, "bicubic", MAX_PIXELS)
    for index in range(len(source)):
        item = copy.read(index)
        array = np.asarray(Image.open(io.BytesIO(item))) if isinstance(item, bytes) else item
        assert np.array_equal(array, made.make(source.read(index)))
    assert {min(np.shape(made.make(source.read(index)))[:2]) for index in range(24)} == {10, 12}


def test_as_jpeg_small_files_stay_as_they_are(photos, tmp_path):
    source = kiln.open_source(photos)
    kiln.pack(photos, tmp_path / "small", px=12, jpeg=85)
    copy = kiln.open_source(tmp_path / "small")
    assert copy.notes == (f"{NOTE}, JPEG 85: training, validation and test see these",)
    same = [copy.read(index) == source.read(index) for index in range(24)]
    assert same == [int(key[2:4]) < 4 for key in source.keys]
    headers = [copy.header(index) for index in range(24)]
    assert {min(header.height, header.width) for header in headers} == {10, 12}


def test_training_from_the_copy_is_told_and_sees_the_same_crops(photos, tmp_path):
    settings = {"model": "kiln/small_cnn", "img_size": 12, "epochs": 2, "workers": 2, "stored_px": 20}
    kiln.pack(photos, tmp_path / "small", px=20)
    run = kiln.train(tmp_path / "small", output=str(tmp_path / "runs"), **settings)
    assert "images were reduced to 20 px" in (run.path / "log.txt").read_text()
    assert run.status["state"] == "done"


def test_grey_images_stay_grey(tmp_path):
    for number in range(4):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((30, 30), 9 * number, np.uint8)).save(path)
    kiln.pack(tmp_path / "photos", tmp_path / "small", px=8)
    assert kiln.open_source(tmp_path / "small").read(0).shape == (8, 8, 1)


def test_the_command_and_its_refusals(photos, tmp_path, capsys):
    assert main(["pack", str(photos), str(tmp_path / "small"), "--px", "12", "--jpeg", "80", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 24
    with pytest.raises(UsageError, match="jpeg = 90 has no effect without px"):
        kiln.pack(photos, tmp_path / "other", jpeg=90)
    with pytest.raises(UsageError, match="px = 0, jpeg = None"):
        kiln.pack(photos, tmp_path / "other", px=0)
