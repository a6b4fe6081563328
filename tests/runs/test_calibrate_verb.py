"""`kiln calibrate`: what a trained model says of itself, in its file, its export and every answer."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
from albums import command, train

import kiln
from kiln.errors import DataError, UsageError
from kiln.jobs.demo import write_digits
from kiln.metrics.classification import log_losses
from kiln.models.modelfile import read_model
from kiln.tasks.decision import Decision


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on the handwritten digits, good but not perfect. Copy it to change it."""
    root = tmp_path_factory.mktemp("calibrated")
    write_digits(root / "digits")
    return train(root / "digits", root / "runs", epochs=4, lr=0.02, test_fraction=0.2)


@pytest.fixture
def run(trained, tmp_path):
    return kiln.Run(shutil.copytree(trained.path, tmp_path / "run"))


def test_training_leaves_a_calibrated_model_and_all_that_it_said(trained):
    kept, result = trained.outputs(), trained.result
    decision = Decision.from_dict(kept.decision)
    assert decision.fitted["method"] == "temperature"
    assert result["decision"] == kept.decision == read_model(trained.model_file).decision
    assert kept.model == read_model(trained.model_file).digest
    assert set(kept.splits) == {"val", "test"}
    held = kept.splits["val"]
    raw = log_losses(held.logits, held.targets).mean()
    calibrated = log_losses(decision.calibrated(held.logits), held.targets).mean()
    assert calibrated < raw == pytest.approx(decision.fitted["loss_before"])
    assert result["metrics"]["val"]["loss"]["value"] == calibrated
    assert "calibrated on val: temperature" in (trained.path / "log.txt").read_text()
    assert {row["refused"] for row in trained.predictions()} == {""}


def test_calibration_can_be_left_out(trained):
    run = train(trained.recipe.data.path, trained.path.parent, epochs=1, calibration="none")
    assert Decision.from_dict(run.outputs().decision).scale == ()


def test_from_kept_outputs_without_the_images(run):
    shutil.rmtree(run.checkpoints)
    before = run.outputs()
    found = kiln.calibrate(run.path, method="none")
    assert found["decision"]["scale"] == ()
    kiln.calibrate(run.path)
    after = run.outputs()
    assert after.decision == before.decision
    assert after.model == before.model  # the same file again, to the bit
    assert found["metrics"]["test"]["before"]["accuracy"] == found["metrics"]["test"]["after"]["accuracy"]


def test_it_answers_less_and_is_right_more_often(run):
    said = command("calibrate", run.path, "--coverage", "0.7", "--json")
    assert said.status == 0, said.err
    measured = said.json["metrics"]
    assert measured["val"]["answers"]["coverage"]["value"] == pytest.approx(0.7, abs=0.01)
    for split in ("val", "test"):
        assert measured[split]["answers"]["accuracy"]["value"] > measured[split]["after"]["accuracy"]["value"]
    rows = run.predictions()
    refused = [row for row in rows if row["refused"]]
    assert len(refused) / len(rows) == pytest.approx(0.3, abs=0.1)
    assert {row["refused"] for row in refused} == {"unsure"}
    evaluated = command("evaluate", run.path, "--split", "test", "--json").json
    assert evaluated["answers"] == measured["test"]["answers"] == run.result["details"]["test"]["answers"]
    text = command("calibrate", run.path, "--coverage", "0.7").out
    assert "answers only from a probability of" in text
    assert "answered" in text


def test_the_export_refuses_what_the_model_refuses(run, trained, tmp_path):
    command("calibrate", run.path, "--coverage", "0.6", "--max-unfamiliarity", "0.9")
    assert command("export", run.path).status == 0
    images = f"{trained.recipe.data.path}/3"
    tables = []
    for model in (run.path, run.path / "model.onnx"):
        assert command("predict", model, images, "--output", tmp_path / "said.csv").status == 0
        with (tmp_path / "said.csv").open(newline="") as file:
            tables.append(list(csv.DictReader(file)))
    torch_rows, onnx_rows = tables
    assert [row["refused"] for row in torch_rows] == [row["refused"] for row in onnx_rows]
    assert {"", "unsure"} <= {row["refused"] for row in torch_rows}
    for ours, theirs in zip(torch_rows, onnx_rows, strict=True):
        assert ours["label"] == theirs["label"]
        assert (ours["label"] == "") == bool(ours["refused"])
        assert float(ours["probability"]) == pytest.approx(float(theirs["probability"]), abs=1e-4)
        assert float(ours["unfamiliarity"]) == pytest.approx(float(theirs["unfamiliarity"]), abs=1e-3)


def test_the_exports_own_probabilities_are_calibrated(run):
    onnxruntime = pytest.importorskip("onnxruntime")
    command("export", run.path)
    session = onnxruntime.InferenceSession(str(run.path / "model.onnx"))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 1, 16, 16)).astype(np.uint8)
    logits, probabilities = session.run(["logits", "probabilities"], {"images": images})
    predictor = kiln.load(run.path)
    assert probabilities == pytest.approx(predictor.probabilities(logits), abs=1e-5)
    assert np.abs(probabilities.max(1) - np.exp(logits.max(1)) / np.exp(logits).sum(1)).max() > 1e-3


def test_a_model_file_alone_needs_data_and_takes_it(run, trained, tmp_path):
    alone = shutil.copy(run.model_file, tmp_path / "model.safetensors")
    said = command("calibrate", alone)
    assert said.status == 2
    assert f"no data: {alone} is no run, and knows none\n  next: kiln calibrate {alone} DATA\n" in said.err
    found = kiln.calibrate(alone, trained.recipe.data.path, split="all", coverage=0.5)
    assert found["metrics"]["all"]["answers"]["coverage"]["value"] == pytest.approx(0.5, abs=0.01)
    assert read_model(alone).decision == json.loads(json.dumps(found["decision"]))
    assert kiln.load(alone).decision.least_probability == found["decision"]["least_probability"]


def test_what_cannot_be(run, tmp_path):
    with pytest.raises(UsageError, match="fitted on test can no longer be tested"):
        kiln.calibrate(run, split="test")
    with pytest.raises(UsageError, match="one threshold serves one"):
        kiln.calibrate(run, accuracy=0.9, coverage=0.9)
    before = run.model_file.read_bytes()
    with pytest.raises(DataError, match=r"cannot show an accuracy of 0.9999"):
        kiln.calibrate(run, accuracy=0.9999)
    assert run.model_file.read_bytes() == before
    command("export", run.path)
    with pytest.raises(UsageError, match="is an export"):
        kiln.calibrate(run.path / "model.onnx")
    assert command("calibrate", run.path, "--method", "temprature").err.count("did you mean: temperature") == 1


def test_an_accuracy_that_training_cannot_promise_is_a_note(trained):
    run = train(trained.recipe.data.path, trained.path.parent, epochs=1, wanted_accuracy=0.9999)
    assert "answers.wanted_accuracy = 0.9999 cannot be had" in (run.path / "log.txt").read_text()
    assert run.status["state"] == "done"
    assert Decision.from_dict(run.outputs().decision).least_probability is None


def test_thresholds_without_validation_have_no_effect_and_are_refused(trained, tmp_path):
    with pytest.raises(UsageError, match=r"answers\.wanted_coverage = 0\.9 without effect"):
        train(trained.recipe.data.path, tmp_path, val_fraction=0.0, wanted_coverage=0.9)
    with pytest.raises(UsageError, match="one threshold serves one"):
        train(trained.recipe.data.path, tmp_path, wanted_accuracy=0.9, wanted_coverage=0.9)
