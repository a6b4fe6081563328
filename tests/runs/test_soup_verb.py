"""Weights averaged into one model: never below the best on validation, with statistics of its own, an ordinary file."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest
import torch
from albums import CLASSES, class_folders, command, split_folders, train

import kiln
from kiln.errors import ArtifactError, DataError, UsageError
from kiln.jobs.together.averaging import Average, Averaging
from kiln.models.modelfile import read_model
from kiln.models.normalize import normalize
from kiln.pixels import PixelContract
from kiln.run import MODEL
from kiln.runtimes import load


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return split_folders(tmp_path_factory.mktemp("album"))


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """Runs of different worth that began from the same weights."""
    output = tmp_path_factory.mktemp("runs")
    start = train(data, output, name="start", epochs=3, lr=0.02)
    return [
        train(data, output, name=f"run-{seed}", seed=seed, epochs=seed, lr=0.01 * seed, weights=str(start.model_file))
        for seed in (1, 2, 3)
    ]


@pytest.mark.parametrize("metric", [None, "loss"])
def test_greedy_is_never_below_its_best_member_on_validation(runs, data, metric, tmp_path):
    found = kiln.soup(*runs, output=tmp_path / "soup", metric=metric)
    name, sign = found["metric"], -1 if found["metric"] == "loss" else 1
    best = max(sign * one["metrics"]["val"][name]["value"] for one in found["members"])
    assert sign * found["metrics"]["val"][name]["value"] >= best
    assert any(one["taken"] and sign * one["metrics"]["val"][name]["value"] == best for one in found["members"])
    for split in ("val", "test"):
        again = kiln.evaluate(tmp_path / "soup", data, split=split)
        assert again[name] == pytest.approx(found["metrics"][split][name]["value"], abs=1e-6)


def test_uniform_takes_all_and_is_an_ordinary_model_file(runs, data, tmp_path):
    found = kiln.soup(*runs, output=tmp_path / "soup.safetensors", method="uniform")
    assert [one["taken"] for one in found["members"]] == [True] * 3
    soup = read_model(tmp_path / "soup.safetensors")
    states = [read_model(run.model_file).model.state_dict() for run in runs]
    mean = torch.stack([state["head.weight"].double() for state in states]).mean(0).float()
    assert torch.equal(soup.model.state_dict()["head.weight"], mean)
    assert soup.classes == CLASSES
    assert soup.extra["soup"]["method"] == "uniform"
    assert [one["digest"] for one in soup.extra["soup"]["members"]] == [load(run.path).digest for run in runs]
    exported = kiln.export(tmp_path / "soup.safetensors", tmp_path / "soup.onnx")
    images = sorted((data / "test").rglob("*.png"))
    one, other = (load(path).predict(images) for path in (tmp_path / "soup.safetensors", exported))
    assert [said.label for said in one] == [said.label for said in other]
    assert found["gain"]["n"] == 6
    assert found["gain"]["low"] <= found["gain"]["value"] <= found["gain"]["high"]


def test_where_nothing_helps_no_average_is_taken_and_no_gain_claimed(data, tmp_path):
    good = train(data, tmp_path, name="good", epochs=12, lr=0.02)
    worse = train(data, tmp_path, name="worse", epochs=1, lr=1e-9, seed=7)
    found = kiln.soup(good, worse, output=tmp_path / "soup", metric="loss")
    assert [one["taken"] for one in found["members"]] == [True, False]
    assert found["gain"] is None
    expected = f"no average was taken: none was as good as {good.path} alone, which is what was written"
    assert found["notes"] == [expected]
    said = command("soup", good.path, worse.path, "--output", tmp_path / "two", "--metric", "loss")
    assert "gain" not in said.out
    assert expected in said.err


def test_running_statistics_are_those_of_the_average_over_training_images(runs, data, tmp_path):
    """All 24 training images are one batch, so that the plain mean over batches is the mean over images."""
    found = kiln.soup(*runs, output=tmp_path / "soup", method="uniform")
    assert found["statistics"] == "measured again"
    file = read_model(tmp_path / "soup" / MODEL)
    contract: PixelContract = file.contract
    images = np.stack([contract.apply(path.read_bytes()) for path in sorted((data / "train").rglob("*.png"))])
    assert len(images) == 24
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (file.spec.mean, file.spec.std))
    convolved = file.model.get_submodule("features.0.0")(
        normalize(torch.from_numpy(images.transpose(0, 3, 1, 2)), mean, std)
    )
    norm = file.model.get_submodule("features.0.1")
    assert torch.allclose(norm.running_mean, convolved.mean((0, 2, 3)), atol=1e-4)
    assert torch.allclose(norm.running_var, convolved.var((0, 2, 3)), rtol=1e-3)


def test_copies_make_a_copy(runs, data, tmp_path):
    other = shutil.copy(runs[0].model_file, tmp_path / "copy.safetensors")
    found = kiln.soup(runs[0].model_file, other, output=tmp_path / "soup", method="uniform", data=str(data))
    assert found["statistics"] == "none to measure"
    own, made = (read_model(path).model.state_dict() for path in (runs[0].model_file, tmp_path / "soup" / MODEL))
    assert all(torch.equal(value, made[name]) for name, value in own.items())


def test_layers_that_were_held_fixed_keep_their_statistics(data, tmp_path):
    start = train(data, tmp_path, name="start", epochs=2, lr=0.02)
    frozen = {"finetune.mode": "staged", "finetune.stages": ["top(1)"], "model.weights": str(start.model_file)}
    runs = [
        train(data, tmp_path, name=f"r{seed}", seed=seed, epochs=seed, lr=0.05, overrides=frozen) for seed in (1, 2)
    ]
    before = [read_model(run.model_file).model.state_dict() for run in runs]
    assert torch.equal(before[0]["features.0.1.running_mean"], before[1]["features.0.1.running_mean"])
    kiln.soup(*runs, output=tmp_path / "soup", method="uniform")
    made = read_model(tmp_path / "soup" / MODEL).model.state_dict()
    assert torch.equal(made["features.0.1.running_mean"], before[0]["features.0.1.running_mean"])
    last = [name for name in made if name.endswith("running_mean")][-1]
    assert not torch.equal(made[last], (before[0][last] + before[1][last]) / 2)


def test_models_that_cannot_be_averaged_are_refused(runs, data, tmp_path):
    wider = train(data, tmp_path, kwargs={"widths": [4, 12]})
    with pytest.raises(ArtifactError, match=r"different architectures(.|\n)*kiln ensemble puts different"):
        kiln.soup(runs[0], wider, output=tmp_path / "soup")
    with pytest.raises(UsageError, match="method = 'gready'"):
        kiln.soup(*runs, output=tmp_path / "soup", method="gready")
    (tmp_path / MODEL).write_bytes(b"")
    with pytest.raises(UsageError, match="is there already"):
        kiln.soup(*runs, output=tmp_path)
    folds = train(class_folders(tmp_path / "album", num=30), tmp_path, name="folds", folds=3)
    with pytest.raises(DataError, match="no validation samples that all models held out"):
        kiln.soup(folds, output=tmp_path / "soup")
    assert not (tmp_path / "soup").exists()


def test_the_command(runs, tmp_path):
    said = command("soup", *(run.path for run in runs), "--output", tmp_path / "soup")
    assert said.status == 0, said.err
    assert "taken" in said.out
    assert re.search(r"^\S+ +(yes|no) +\d+\.\d % +\d+\.\d %$", said.out, re.MULTILINE), said.out
    assert f"model  {tmp_path / 'soup' / MODEL}" in said.out
    said = command("soup", *(run.path for run in runs), "output=" + str(tmp_path / "two"), "method=uniform", "--json")
    assert said.json["method"] == "uniform"
    assert command("predict", tmp_path / "two", tmp_path / "absent.png").status != 0


class Choosing(Averaging):
    """`greedy` over made-up values of validation: members -> metric, log likelihood."""

    def __init__(self, reached):
        self.reached = reached

    def alone(self, row):
        return self.of((row,))

    def of(self, rows):
        return Average(tuple(rows), None, None, tuple(rows))

    def score(self, logits):
        return self.reached[logits][0]

    def fit(self, logits):
        return self.reached[logits][1]


def test_greedy_takes_no_member_that_gains_by_chance_what_the_likelihood_loses():
    better = {(2,): (0.80, -0.60), (2, 0): (0.81, -0.70), (2, 1): (0.80, -0.55)}
    assert Choosing(better).greedy([2, 0, 1]).rows == (2, 1)
    worse = {(2,): (0.80, -0.60), (2, 0): (0.79, -0.50)}
    assert Choosing(worse).greedy([2, 0]).rows == (2,)
