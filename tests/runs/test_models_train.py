"""Models of every family through the verbs: names, sizes, auxiliary outputs, weights from elsewhere, code of the user's."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from albums import FLAGS, TINY, class_folders, command, split_folders, train
from torch import nn

import kiln
from kiln.errors import SecurityError, UsageError
from kiln.models.create import create_model
from kiln.models.modelfile import read_header

QUICK = ("--epochs", "1", "-b", "12", "-j", "0", "--seed", "0")
CODE = '''
import torch
from torch import nn


def make_model(num_classes, width=4):
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes)
    )


def fixed_head():
    return make_model(1000)


def my_loss(outputs, targets):
    """The mean over the batch, as most people write one."""
    return nn.functional.cross_entropy(outputs, targets) * 2


def per_sample(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, reduction="none") * 2


def of_classes(outputs, targets):
    return outputs.sum(0)


def not_a_model(num_classes):
    return "resnet"
'''


@pytest.fixture
def photos(tmp_path):
    return class_folders(tmp_path / "photos")


@pytest.fixture
def code(tmp_path):
    (tmp_path / "mycode.py").write_text(CODE)
    return tmp_path / "mycode.py"


# Code of the user's own.


def test_a_model_from_a_file_of_the_users_own(photos, code, tmp_path):
    flags = ("--model", f"{code}:make_model", "--set", "model.kwargs.width=6", "--img-size", "16")
    said = command("train", photos, *QUICK, *flags, "--output", tmp_path / "runs", "--name", "run")
    assert said.status == 0, said.err
    run = kiln.Run(tmp_path / "runs/run")
    assert read_header(run.model_file)["spec"]["kwargs"] == {"width": 6}
    # The file names code, and what a file names does not run by itself.
    for verb in (
        ("predict", run.path, photos),
        ("evaluate", run.model_file, photos),
        ("export", run.path),
    ):
        said = command(*verb)
        assert said.status == 8
        assert said.err.startswith("error E701: the model's description names the code")
        assert f"'{code}:make_model'" in said.err
        assert f"next: --trust {code}:make_model if you know it" in said.err
    said = command("evaluate", run.path, "--split", "val", "--trust", f"{code}:make_model", "--json")
    assert said.status == 0, said.err
    assert said.json["loss"] == run.result["metrics"]["val"]["loss"]["value"]
    with pytest.raises(SecurityError, match="names the code"):
        kiln.load(run)
    assert len(kiln.predict(run, photos, trust=[f"{code}:make_model"])) == 36
    with pytest.raises(SecurityError):
        kiln.load(run, trust=[f"{code}:fixed_head"])  # another name of the same file is another name


def test_a_head_for_other_classes_is_replaced_and_it_is_said(photos, code, tmp_path):
    flags = ("--model", f"{code}:fixed_head", "--img-size", "16", "--output", tmp_path / "runs", "--name", "run")
    said = command("train", photos, *QUICK, *flags)
    assert said.status == 0, said.err
    assert "note       " in said.out
    assert "1000" in said.out
    run = kiln.Run(tmp_path / "runs/run")
    assert kiln.evaluate(run, split="val", trust=[f"{code}:fixed_head"])["n"] > 0


def test_a_resume_needs_the_code_to_be_trusted_again(photos, code, tmp_path):
    flags = ("--model", f"{code}:make_model", "--img-size", "16", "--output", tmp_path / "runs", "--name", "run")
    assert command("train", photos, *QUICK, *flags, "-q").status == 0
    assert command("resume", tmp_path / "runs/run").status == 8
    said = command("resume", tmp_path / "runs/run", "--extend", "1ep", "--trust", f"{code}:make_model", "-q")
    assert said.status == 0, said.err


@pytest.mark.parametrize("name", ["my_loss", "per_sample"])
def test_a_loss_of_the_users_own(name, photos, code, tmp_path):
    """Twice the cross entropy: at the first step, before anything is learnt, twice the loss."""
    plain = train(photos, tmp_path / "runs", batch_size=30, smoothing=0.0, loss="cross_entropy")
    own = train(photos, tmp_path / "runs", batch_size=30, loss=f"{code}:{name}")
    first, doubled = plain.metrics()[0]["loss"], own.metrics()[0]["loss"]
    assert doubled == pytest.approx(2 * first, rel=1e-6)


def test_a_class_of_torch_is_a_loss_too(photos, tmp_path):
    run = train(photos, tmp_path / "runs", loss="torch.nn:CrossEntropyLoss")
    assert run.status["state"] == "done"


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (("--loss", "{code}:of_classes"), 2, "the loss returned a tensor of shape (3,) for a batch of"),
        (("--loss", "{code}:my_los"), 2, "did you mean: my_loss"),
        (("--loss", "{folder}/none.py:x"), 2, "no such file"),
        (("--model", "{code}:not_a_model"), 2, "returned str"),
        (("--model", "{code}:make_models"), 2, "did you mean: make_model"),
        (("--model", "{code}:make_model", "--drop", "0.5"), 2, "drop = 0.5 has no effect"),
        (("--model", "{code}:make_model", "--weights", "pretrained"), 4, "error E301"),
        (("--model", "mycode:make_model"), 2, "cannot import 'mycode'"),
    ],
    ids=lambda value: value[1].split(":")[-1] if isinstance(value, tuple) else None,
)
def test_code_that_does_not_do(flags, status, message, photos, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # which is never on the path that modules are imported from
    flags = [flag.format(code=code, folder=tmp_path) for flag in flags]
    model = () if "--model" in flags else ("--model", "kiln/small_cnn", "--set", "model.kwargs.widths=[4,8]")
    said = command("train", photos, *QUICK, "--img-size", "16", *model, *flags, "--output", tmp_path / "runs")
    assert said.status == status, said.err
    assert message in said.err
    if "mycode:make_model" in flags:
        assert "next: name the file instead: mycode.py:make_model" in said.err


# Weights from elsewhere.


def test_weights_of_another_run_with_other_classes(photos, tmp_path):
    first = train(photos, tmp_path / "runs", epochs=3, lr=0.02)
    class_folders(tmp_path / "other", names=("cat", "dog"), num=24)
    flags = ("--weights", first.model_file, "--output", tmp_path / "runs", "--name", "second")
    said = command("train", tmp_path / "other", *FLAGS, *flags)
    assert said.status == 0, said.err
    assert f"tensors loaded from {first.model_file}" in said.out
    assert "the head of other classes: initialised anew" in said.out
    assert "from trained weights" in said.out  # a lower rate
    started = create_model(TINY["model"], num_classes=2, kwargs=TINY["kwargs"], weights=first.model_file, img_size=16)
    before = first.model().runtime.model.state_dict()
    own = started.model.state_dict()
    assert own["head.weight"].shape == (2, 8)
    assert all(torch.equal(own[name], before[name]) for name in own if not name.startswith("head."))


def test_weights_of_a_run_with_the_same_classes_keep_the_head(photos, tmp_path):
    first = train(photos, tmp_path / "runs", epochs=3, lr=0.02)
    flags = ("--weights", first.model_file, "--output", tmp_path / "runs", "--name", "second")
    said = command("train", photos, *FLAGS, *flags, "--lr", "1e-9")
    assert said.status == 0, said.err
    assert "initialised anew" not in said.out
    second = kiln.Run(tmp_path / "runs/second")
    head = second.model().runtime.model.state_dict()["head.weight"]
    assert torch.allclose(head, first.model().runtime.model.state_dict()["head.weight"], atol=1e-6)


def test_weights_that_fit_nothing(photos, tmp_path):
    from safetensors.torch import save_file

    save_file({"a.weight": torch.zeros(3), "b.bias": torch.zeros(2)}, tmp_path / "other.safetensors")
    said = command("train", photos, *FLAGS, "--weights", tmp_path / "other.safetensors", "--output", tmp_path / "runs")
    assert said.status == 4
    assert said.err.startswith("error E304: ")
    assert os.listdir(tmp_path / "runs") == []


@pytest.mark.slow
def test_a_foreign_checkpoint_is_converted_and_a_pickle_with_code_is_refused(photos, tmp_path):
    network = create_model(TINY["model"], num_classes=3, kwargs=TINY["kwargs"]).model
    state = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "foreign.pth")
    said = command("train", photos, *FLAGS, "--weights", tmp_path / "foreign.pth", "--output", tmp_path / "runs")
    assert said.status == 0, said.err
    assert f"tensors loaded from {tmp_path / 'foreign.pth'}" in said.out
    torch.save(nn.Linear(2, 2), tmp_path / "code.pth")  # a whole module: only unpickling with code could read it
    said = command("train", photos, *FLAGS, "--weights", tmp_path / "code.pth", "--output", tmp_path / "runs")
    assert said.status in (4, 8)
    assert said.err.startswith("error E")


def test_pretrained_weights_that_are_not_here_are_no_silent_start_from_scratch(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    flags = ("--model", "resnet18", "--weights", "pretrained", "--img-size", "32", "--output", tmp_path / "runs")
    said = command("train", photos, *QUICK, *flags)
    assert said.status == 4
    assert said.err.startswith("error E301: ")
    assert "--weights none" in said.err
    assert os.listdir(tmp_path / "runs") == []


# Sizes, families, auxiliary outputs.


def test_a_size_that_a_model_cannot_take(photos, tmp_path):
    flags = ("--model", "torchvision/googlenet", "--img-size", "8", "--output", tmp_path / "runs")
    said = command("train", photos, *QUICK, *flags)
    assert said.status == 2
    assert "img_size = 8 with 3 channels does not fit torchvision/googlenet" in said.err
    assert "expected: at least " in said.err
    assert os.listdir(tmp_path / "runs") == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "px", "flags"),
    [
        ("torchvision/googlenet", 96, ()),
        ("torchvision/inception_v3", 299, ()),  # its auxiliary head takes nothing smaller
        ("torchvision/inception_v3", 96, ("--set", "model.kwargs.aux_logits=false")),
        ("inception_v3", 96, ()),
    ],
)
def test_auxiliary_outputs_train_and_evaluate(name, px, flags, tmp_path):
    photos = class_folders(tmp_path / "photos", num=9)
    flags = (*flags, "--model", name, "--img-size", px, "--epochs", "1steps", "-b", "4", "--output", tmp_path / "runs")
    said = command("train", photos, *flags, "--name", "run", "-j", "0")
    assert said.status == 0, said.err
    run = kiln.Run(tmp_path / "runs/run")
    assert kiln.evaluate(run, split="val")["loss"] == run.result["metrics"]["val"]["loss"]["value"]
    assert all(abs(line["loss"]) < 20 for line in run.metrics() if line["event"] == "step")
    rows = kiln.predict(run, photos / "red")
    assert [row["error"] for row in rows] == [None] * 3


@pytest.mark.slow
def test_an_auxiliary_model_learns_from_its_auxiliary_outputs_too(tmp_path):
    """At the first step the loss of googlenet is that of three heads: (1 + 0.3 + 0.3) times that of chance."""
    photos = class_folders(tmp_path / "photos", num=15)
    settings = {"model": "torchvision/googlenet", "kwargs": {}, "img_size": 96, "epochs": "1steps", "smoothing": 0.0}
    run = train(photos, tmp_path / "runs", batch_size=12, val_fraction=0, **settings)
    heads = next(line["loss"] for line in run.metrics() if line["event"] == "step") / 1.0986
    assert 1.3 < heads < 2.2
    without = train(
        photos, tmp_path / "runs", batch_size=12, val_fraction=0, **{**settings, "kwargs": {"aux_logits": False}}
    )
    alone = next(line["loss"] for line in without.metrics() if line["event"] == "step") / 1.0986
    assert 0.7 < alone < 1.4


@pytest.mark.slow
def test_a_size_below_an_auxiliary_models_minimum_names_the_way_without(photos, tmp_path):
    said = command("train", photos, *QUICK, "--model", "torchvision/inception_v3", "--img-size", "96")
    assert said.status == 2
    assert "expected: at least 299 px" in said.err
    assert "model.kwargs.aux_logits=false" in said.err


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resnet18", "torchvision/mobilenet_v3_small", "mobilenetv3_small_050", "vit_tiny_patch16_224"]
)
def test_families(name, tmp_path):
    photos = split_folders(tmp_path / "photos", test=None)
    flags = ("--model", name, "--img-size", "32", "--epochs", "1steps", "-b", "8", "-j", "0")
    said = command("train", photos, *flags, "--output", tmp_path / "runs", "--name", "run")
    assert said.status == 0, said.err
    run = kiln.Run(tmp_path / "runs/run")
    assert kiln.evaluate(run, split="val")["loss"] == run.result["metrics"]["val"]["loss"]["value"]


def test_the_models_verb_is_the_list_of_what_train_takes(tmp_path, photos):
    said = command("models", "small_cnn")
    assert said.status == 0
    assert "kiln/small_cnn" in said.out
    said = command("models", "kiln/small_cnn", "--img-size", "16", "--num-classes", "3", "--json")
    assert said.json["parameters"] > 100_000
    said = command("models", "kiln/small_cnn", "--num-classes", "10")
    assert "parameters         288,746" in said.out
    assert "activation memory  1.0 MiB" in said.out
    assert command("models", "kiln/small_cnns").status == 2


def test_the_choice_of_a_model_has_a_reason(photos, tmp_path):
    said = command("train", photos, *QUICK, "--output", tmp_path / "runs", "--name", "run")
    assert said.status == 0, said.err
    assert "decided    model.name = kiln/small_cnn: images of about 20 px" in said.out
    assert "decided    model.img_size = 24: the images' own size, 20 px, in steps of 8" in said.out
    assert Path(tmp_path / "runs/run").is_dir()


def test_settings_of_the_model_that_it_does_not_have(photos, tmp_path):
    with pytest.raises(UsageError, match="kiln/small_cnn does not take 'depth'"):
        train(photos, tmp_path / "runs", kwargs={"depth": 3})
    with pytest.raises(UsageError, match="drop_path has no effect"):
        train(photos, tmp_path / "runs", drop_path=0.1)
    said = command("train", photos, *FLAGS, "--set", "model.kwargs.depth=3", "--output", tmp_path / "runs", "--json")
    assert said.json["error"]["code"] == "E101"
    assert json.dumps(said.json)
