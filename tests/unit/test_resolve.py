"""Every `auto` becomes a value by a stated rule, with its reason; a setting that nothing reads is an error."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from kiln.errors import UsageError
from kiln.jobs.assembly.resolve import Settings, resolve, sample_headers
from kiln.jobs.intake import take_in
from kiln.recipe import FIELDS, Recipe
from kiln.recipe.duration import Duration


def planted(folder, num, *, size=(32, 32), mode="RGB"):
    rng = np.random.default_rng(0)
    for number in range(num):
        path = folder / f"class{number % 2}" / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8)).convert(mode).save(path)
    return folder


def resolved(folder, *, world_size=1, **sections):
    recipe = Recipe(**{"run": {"device": "cpu"}, **sections, "data": {"path": str(folder), **sections.get("data", {})}})
    return resolve(recipe, take_in(recipe, None), world_size=world_size)


def test_nothing_is_left_open_and_each_decision_has_its_reason(image_folder):
    settings = resolved(image_folder)
    open_ones = {name for name, value in settings.values.items() if value == "auto"}
    later = {*("data.pixel_form", "data.stored_px", "data.stored_jpeg", "data.cache", "data.cache_size")}
    later |= {"augment.crop", "model.mean", "model.std"}  # when the model's size is known
    later |= {"finetune.views", "finetune.cache_features"}  # when it is known what is frozen
    assert open_ones <= {"model.img_size", "loss.name"} | later  # settled by the model and by the task
    assert settings.values.keys() == FIELDS.keys()
    decided = {name for name in FIELDS if FIELDS[name].default == "auto"} - open_ones - {"task.name", "run.device"}
    assert len(decided) >= 10
    assert {name for name in decided if not settings.reasons.get(name)} == set()


def test_what_was_asked_is_never_changed(image_folder):
    asked = {
        "model": {"name": "resnet18", "img_size": 48},
        "optim": {"name": "sgd", "lr": 0.125, "weight_decay": 0.0},
        "training": {"batch_size": 7, "micro_batch_size": 3, "precision": "bf16", "drop_last": True, "monitor": "loss"},
        "data": {"channels": 1, "workers": 0},
        "run": {"device": "cpu", "memory_format": "contiguous"},
    }
    settings = resolved(image_folder, **asked)
    for section, fields in asked.items():
        for name, value in fields.items():
            assert settings.values[f"{section}.{name}"] == value, name
            assert f"{section}.{name}" not in settings.reasons or name == "device"


def test_small_pictures_get_a_small_network_of_their_own_size(tmp_path):
    settings = resolved(planted(tmp_path, 12, size=(35, 29)))
    assert settings.values["model.name"] == "kiln/small_cnn"
    assert settings.values["model.img_size"] == 32  # the median shorter side, 29, in steps of 8
    assert "29 px" in settings.reasons["model.img_size"]
    assert settings.values["training.precision"] == "fp32"


def test_large_pictures_and_trained_weights_get_a_usual_network(tmp_path):
    assert resolved(planted(tmp_path, 12, size=(90, 70))).values["model.name"] == "resnet18"
    small = planted(tmp_path / "small", 12)
    assert resolved(small, model={"weights": "pretrained"}).values["model.name"] == "resnet18"


@pytest.mark.parametrize(
    ("mode", "weights", "channels"), [("L", "none", 1), ("L", "pretrained", 3), ("RGB", "none", 3)]
)
def test_channels_follow_the_pictures_unless_the_weights_were_made_for_colour(tmp_path, mode, weights, channels):
    settings = resolved(planted(tmp_path, 12, mode=mode), model={"weights": weights})
    assert settings.values["data.channels"] == channels
    assert settings.reasons["data.channels"]


def test_one_picture_in_colour_makes_the_data_colourful(tmp_path):
    planted(tmp_path, 12, mode="L")
    Image.new("RGB", (32, 32)).save(tmp_path / "class0" / "colour.png")
    assert resolved(tmp_path, data={"val_fraction": 0.01}).values["data.channels"] == 3


def test_unreadable_headers_do_not_stop_the_decisions(tmp_path):
    planted(tmp_path, 12, mode="L")
    (tmp_path / "class0" / "bad.png").write_bytes(b"<html>")
    assert resolved(tmp_path).values["data.channels"] == 1


def test_headers_are_looked_at_evenly_and_not_all(tmp_path):
    recipe = Recipe(data={"path": str(planted(tmp_path, 40))})
    intake = take_in(recipe, None)
    assert len(sample_headers(intake.source, np.arange(40), most=10)) == 10
    assert len(sample_headers(intake.source, np.arange(3), most=10)) == 3


@pytest.mark.parametrize(
    ("num", "batch_size", "drop"),
    [
        (6, "auto", False),  # one batch of all
        (40, 8, False),  # few batches, nothing over
        (43, 8, False),  # few batches: none is spared
        (41, 8, True),  # but never a batch of a single sample, whose norm layers have nothing to go by
        (83, 8, True),  # many batches: the rest sits out
        (88, 8, False),  # many batches, nothing over
    ],
)
def test_batches(tmp_path, num, batch_size, drop):
    settings = resolved(planted(tmp_path, num), training={"batch_size": batch_size}, data={"val_fraction": 0.0})
    assert settings.values["training.batch_size"] == (num if batch_size == "auto" else batch_size)
    assert settings.values["training.drop_last"] is drop


@pytest.mark.parametrize(
    ("optim", "weights", "batch_size", "lr", "weight_decay"),
    [
        ("adamw", "none", 64, 2e-3, 0.05),
        ("adamw", "none", 16, 1e-3, 0.05),  # with the square root of the batch
        ("adamw", "pretrained", 64, 2e-4, 0.05),
        ("sgd", "none", 64, 0.05, 5e-4),
        ("sgd", "none", 32, 0.025, 5e-4),  # in proportion to the batch
        ("sgd", "pretrained", 64, 0.005, 5e-4),
    ],
)
def test_rates_follow_the_optimizer_the_start_and_the_batch(image_folder, optim, weights, batch_size, lr, weight_decay):
    settings = resolved(
        image_folder, optim={"name": optim}, model={"weights": weights}, training={"batch_size": batch_size}
    )
    assert settings.values["optim.lr"] == pytest.approx(lr)
    assert settings.values["optim.weight_decay"] == weight_decay
    assert f"batches of {batch_size}" in settings.reasons["optim.lr"]


def test_several_processes_make_it_ddp(image_folder):
    assert resolved(image_folder).values["run.strategy"] == "single"
    settings = resolved(image_folder, world_size=2)
    assert (settings.values["run.strategy"], settings.values["run.processes"]) == ("ddp", 2)


def test_bf16_where_the_processor_has_it(tmp_path, monkeypatch):
    folder = planted(tmp_path, 8, size=(90, 90))
    for has, precision in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(
            torch.cpu, "get_capabilities", lambda has=has: {"avx512_bf16": has, "amx_bf16": False}, raising=False
        )
        settings = resolved(folder)
        assert settings.values["training.precision"] == precision
        assert "native" in settings.reasons["training.precision"]


def test_settings_survive_the_way_through_yaml(image_folder):
    settings = resolved(
        image_folder,
        checkpoint={"every": ["5steps", "10m"]},
        training={"patience": "3ep", "epochs": "7ep"},
        schedule={"warmup": "20%"},
        model={"kwargs": {"width": 8}, "trust": ["mine:net"]},
    )
    text = yaml.safe_dump({"values": settings.plain(), "reasons": settings.reasons})
    found = yaml.safe_load(text)
    again = Settings.from_plain(found["values"], found["reasons"])
    assert again.values == settings.values
    assert {name: type(value) for name, value in again.values.items()} == {
        name: type(value) for name, value in settings.values.items()
    }
    assert again.reasons == settings.reasons
    assert again.values["checkpoint.every"] == (Duration(5, "steps"), Duration(10, "m"))


def test_a_setting_that_nothing_reads_is_an_error():
    settings = Settings({"optim.lr": 0.1, "optim.momentum": 0.9, "loss.name": "auto"})
    assert settings["optim.lr"] == 0.1
    with pytest.raises(UsageError, match=r"2 settings have no effect here: loss\.name, optim\.momentum") as caught:
        settings.require_all_read()
    assert caught.value.code == "E103"
    assert (settings["loss.name"], settings["optim.momentum"]) == ("auto", 0.9)
    settings.require_all_read()


def test_deciding_is_not_reading():
    settings = Settings({"optim.lr": "auto"})
    assert settings.asks("optim.lr")
    settings.decide("optim.lr", 0.5, "because")
    assert not settings.asks("optim.lr")
    assert settings.reasons == {"optim.lr": "because"}
    with pytest.raises(UsageError, match=r"optim\.lr"):
        settings.require_all_read()


def test_batches_are_counted_in_the_samples_that_take_part(tmp_path):
    folder = planted(tmp_path, 240)
    data = {"val_fraction": 0.0}
    whole = resolved(folder, data=data)
    assert whole.values["training.batch_size"] == 32
    assert whole.reasons["training.drop_last"] == "few batches: none is spared"
    part = resolved(folder, data={**data, "train_fraction": 0.1})
    assert (part.values["training.batch_size"], part.reasons["training.batch_size"]) == (24, "24 training samples")
    asked = {"data": {**data, "train_fraction": 0.5}, "training": {"batch_size": 11}}
    assert resolved(folder, **asked).reasons["training.drop_last"].startswith("10 of 120 samples sit out")
