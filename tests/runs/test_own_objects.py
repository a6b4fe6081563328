"""Your own model and optimizer as objects: trained, kept, read back here; elsewhere they must be named."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import kiln
from kiln.errors import UsageError

QUICK = {"epochs": 2, "img_size": 16, "lr": 0.05, "batch_size": 8, "overrides": {"run.report": False}}


def network(width=8):
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 7)
    )


def test_a_network_given_ready_made_is_trained_from_its_own_weights(image_folder, tmp_path):
    given = network()
    before = {name: value.clone() for name, value in given.state_dict().items()}
    run = kiln.train(image_folder, model=given, opt=torch.optim.SGD, output=tmp_path, **QUICK)
    assert all(torch.equal(before[name], value) for name, value in given.state_dict().items())  # it was copied
    assert run.resolved["values"]["optim.name"].endswith(":SGD")
    images = [str(path) for path in sorted(image_folder.glob("*/*"))[:3]]
    model = kiln.load(run.model_file)
    assert {said.label for said in model.predict(images)} <= set(model.classes)
    still = kiln.train(image_folder, model=given, output=tmp_path, **{**QUICK, "lr": 1e-12, "weight_decay": 0.0})
    first = next(value for name, value in load_file(still.model_file).items() if name.endswith("0.weight"))
    torch.testing.assert_close(first, before["0.weight"], atol=1e-6, rtol=0)


def test_in_another_process_the_file_says_what_it_needs(image_folder, tmp_path):
    run = kiln.train(image_folder, model=network(), output=tmp_path, **QUICK)
    code = "import sys, kiln; kiln.load(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, run.model_file], capture_output=True, text=True, check=False)
    assert "was an object given from Python, in another process" in done.stderr


def optimizer(groups, *, lr, momentum=0.9):
    return torch.optim.SGD(groups, lr=lr, momentum=momentum)


def test_an_optimizer_made_by_a_function(image_folder, tmp_path):
    settings = {**QUICK, "momentum": 0.5}
    run = kiln.train(image_folder, model="kiln/small_cnn", opt=optimizer, output=tmp_path, **settings)
    named = kiln.train(image_folder, model="kiln/small_cnn", opt="torch.optim:SGD", output=tmp_path, **settings)
    assert run.resolved["values"]["optim.name"].endswith("test_own_objects:optimizer")
    assert load_file(run.model_file).keys() == load_file(named.model_file).keys()
    for name, value in load_file(named.model_file).items():
        torch.testing.assert_close(load_file(run.model_file)[name], value, msg=name)


def test_settings_of_a_ready_made_network_have_no_effect(image_folder, tmp_path):
    with pytest.raises(UsageError, match="the network was given ready made"):
        kiln.train(image_folder, model=network(), drop=0.3, output=tmp_path, **QUICK)
