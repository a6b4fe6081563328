"""Several views of an image at prediction time: what they are, their mean, alike in every runtime and every verb."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from albums import command, split_folders, train
from PIL import Image

import kiln
from kiln.augment.views import views as torch_views
from kiln.errors import UsageError
from kiln.models.create import create_model
from kiln.models.modelfile import read_model, save_model
from kiln.pixels import PixelContract
from kiln.runtimes import load
from kiln.runtimes.views import SETS, VIEWS, seen, view_names, view_of
from kiln.tasks.decision import Decision

CLASSES = ("blue", "green", "red")
SIZE = 16
PICTURES = np.random.default_rng(0).integers(0, 256, (12, SIZE, SIZE, 3), dtype=np.uint8)
BATCH = np.ascontiguousarray(PICTURES.transpose(0, 3, 1, 2))


def saved(path, *, symmetric=False, decision=None):
    """A model file of random weights; a symmetric one cannot tell an image from its mirror image."""
    made = create_model("kiln/small_cnn", num_classes=3, img_size=SIZE, kwargs={"widths": [8, 16]}, seed=3)
    with torch.no_grad():
        for parameter in made.model.parameters():
            if symmetric and parameter.ndim == 4:
                parameter.copy_((parameter + parameter.flip(-1)) / 2)
    contract, task = PixelContract(SIZE, SIZE), {"name": "classification"}
    save_model(path, made.model, spec=made.spec, classes=CLASSES, contract=contract, task=task, decision=decision)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model file whose decision has a temperature and a bias."""
    decision = Decision(scale=(1.7,), bias=(0.3, -0.2, 0.0), entropies=(0.1, 0.9, 1.5)).to_dict()
    return saved(tmp_path_factory.mktemp("model") / "model.safetensors", decision=decision)


def probabilities(predictor, images=BATCH):
    return predictor.probabilities(predictor.logits(images))


@pytest.mark.parametrize("name", list(SETS))
def test_the_answer_is_the_mean_of_calibrated_probabilities_over_views(model, name):
    plain, viewed = load(model, device="cpu"), load(model, device="cpu", views=name)
    expected = np.mean([probabilities(plain, view_of(BATCH, view)) for view in SETS[name]], axis=0)
    assert np.abs(probabilities(viewed) - expected).max() < 1e-6
    said = viewed.predict(PICTURES, top_k=3)
    assert np.allclose([one.probability for one in said], expected.max(1), atol=1e-6)
    assert viewed.classes == plain.classes
    assert viewed.digest == plain.digest


def test_no_views_and_one_that_changes_nothing_are_the_plain_answer(model):
    plain = load(model, device="cpu").predict(PICTURES)
    assert load(model, device="cpu", views="none").predict(PICTURES) == plain
    viewed = load(model, device="cpu", views=["identity"]).predict(PICTURES)
    assert np.allclose([one.probability for one in viewed], [one.probability for one in plain], atol=1e-6)
    assert np.allclose([one.unfamiliarity for one in viewed], [one.unfamiliarity for one in plain], atol=1e-5)


def test_a_symmetric_model_says_the_same_of_a_mirrored_image(tmp_path):
    path = saved(tmp_path / "model.safetensors", symmetric=True)
    plain, mirrored = load(path, device="cpu"), load(path, device="cpu", views="hflip")
    assert np.abs(probabilities(plain) - probabilities(mirrored)).max() < 1e-5
    other = saved(tmp_path / "other.safetensors")
    difference = probabilities(load(other, device="cpu")) - probabilities(load(other, device="cpu", views="hflip"))
    assert np.abs(difference).max() > 1e-3


@pytest.mark.parametrize("name", [*VIEWS, "scale(0.75)", "scale(1.25)", "scale(1.5)+hflip"])
def test_views_are_those_of_the_augmentation(name):
    theirs = torch_views(torch.from_numpy(BATCH), [name])[0].numpy().astype(int)
    ours = view_of(BATCH, name).astype(int)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= (1 if "scale" in name or name in SETS["five_crop"] else 0)


def test_padded_images_are_turned_within_their_own_size():
    sizes = np.array([[10, 7]] * 12)
    padded = BATCH.copy()
    padded[:, :, 10:], padded[:, :, :, 7:] = 0, 0
    for name in ("hflip", "rotate180", "top_left"):
        turned = view_of(padded, name, sizes)
        assert not turned[:, :, 10:].any()
        assert not turned[:, :, :, 7:].any()
        whole = np.ascontiguousarray(padded[0, :, :10, :7].transpose(1, 2, 0))
        assert np.array_equal(turned[0, :, :10, :7].transpose(1, 2, 0), seen(whole, name))


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("hflipp", "did you mean: hflip"),
        ("scale(9)", "from 0.25 to 4"),
        ("", "no view"),
        (["hflip", "turn"], "'turn'"),
        (
            "five_crop,hflip",
            r"five_crop is a set of views, which stands alone.*\n.*--tta five_crop, or a list of identity, ",
        ),
    ],
)
def test_unknown_views_are_refused(model, asked, words):
    with pytest.raises(UsageError, match=words):
        load(model, device="cpu", views=asked)


def test_a_list_of_views_may_be_text():
    assert view_names("identity, scale(1.25)+hflip") == ("identity", "scale(1.25)+hflip")
    assert view_names("flips") == SETS["flips"]


@pytest.mark.parametrize("name", ["flips", "ten_crop", "scales"])
def test_onnx_and_torch_agree(model, name, tmp_path):
    exported = kiln.export(model, tmp_path / "model.onnx")
    one, other = load(model, device="cpu", views=name), load(exported, device="cpu", views=name)
    assert np.abs(probabilities(one) - probabilities(other)).max() < 1e-4
    assert one.decision == other.decision


def test_evaluate_and_predict_show_the_views(tmp_path):
    data = split_folders(tmp_path / "album")
    run = train(data, tmp_path, epochs=2)
    for path in (data / "test").rglob("*.png"):  # one colour alone looks the same from everywhere
        Image.fromarray(np.random.default_rng(int(path.stem)).integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(path)
    first, again = (command("evaluate", run.path, data, "--tta", "ten_crop", "--json") for _ in range(2))
    assert first.status == 0, first.err
    assert first.json == again.json
    assert first.json["views"] == list(view_names("ten_crop"))
    said = command("evaluate", run.path, data, "--tta", "hflip").out
    assert "views  2 of each image, probabilities averaged: identity, hflip\n" in said
    assert "views" not in command("evaluate", run.path, data).out
    assert first.json["loss"] != command("evaluate", run.path, data, "--json").json["loss"]
    assert kiln.evaluate(run, data, tta="ten_crop")["loss"] == first.json["loss"]
    kept = read_model(run.model_file).digest
    said = command("predict", run.path, data / "test", "--tta", "ten_crop", "--json")
    viewed = load(run.path, views="ten_crop")
    for row in said.json["predictions"]:
        assert row["probability"] == pytest.approx(viewed.predict(data / "test" / row["key"])[0].probability, abs=1e-6)
    assert run.outputs().model == kept  # what a run keeps of its model is not that of views
    assert command("predict", run.path, data / "test", "--tta", "nothing").status == 2


def test_views_of_an_exported_model_need_no_torch(model, tmp_path):
    exported = kiln.export(model, tmp_path / "model.onnx")
    code = (
        "import json, sys, numpy as np\n"
        "from kiln.runtimes import load\n"
        f"said = load({str(exported)!r}, views='ten_crop').predict(np.zeros((16, 16, 3), np.uint8))\n"
        "print(json.dumps(['torch' in sys.modules, said[0].label]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(done.stdout.splitlines()[-1])[0] is False
