"""Metrics by name and of the user's own: at validation, deciding the best model, trusted by name, in every task."""

import json

import numpy as np
import pytest
import torchmetrics
from albums import class_folders, command, train
from torchmetrics.classification import MulticlassF1Score

import kiln
from kiln import tasks
from kiln.errors import SecurityError, UsageError
from kiln.recipe import Recipe
from kiln.recipe.trust import code_names, require_trust

task, labels = tasks.get("classification"), tasks.get("multilabel")
CLASSES = ("a", "b", "c")


def told(probabilities, targets):
    return (probabilities.argmax(axis=1) == targets).mean()


def doubts(probabilities, targets):
    return np.float32(1 - probabilities.max(axis=1).mean())


doubts.higher_is_better = False


def fails(probabilities, targets):
    return probabilities[:, 99].mean()


def gives_a_row(probabilities, targets):
    return probabilities.mean(axis=0)


instance = MulticlassF1Score(num_classes=3, average="macro")
HERE = __name__


@pytest.fixture
def said():
    draws = np.random.default_rng(0)
    targets = draws.integers(0, 3, 120)
    return draws.normal(size=(120, 3)) + 1.5 * np.eye(3)[targets], targets


def test_a_function_is_a_metric_with_an_interval(said):
    names = [f"{HERE}:told", f"{HERE}:doubts", "accuracy"]
    found = task.metrics(*said, CLASSES, names=names)
    assert list(found) == names
    own, accuracy = found[names[0]], found["accuracy"]
    assert own.value == accuracy.value
    assert own.low < own.value < own.high
    assert (own.high - own.low) == pytest.approx(accuracy.high - accuracy.low, rel=0.35)
    assert own.higher_is_better
    assert not found[names[1]].higher_is_better
    wide = task.metrics(*said, CLASSES, names=names[:1], groups=np.argsort(np.argsort(said[0][:, 0])) // 30)[names[0]]
    assert wide.low is not None
    plain = task.metrics(*said, CLASSES, names=names[:1], intervals=False)[names[0]]
    assert (plain.value, plain.low, plain.high) == (own.value, None, None)


@pytest.mark.parametrize("name", [f"{HERE}:instance", "torchmetrics.classification:MulticlassF1Score"])
def test_any_torchmetrics_metric(said, name):
    first = task.metrics(*said, CLASSES, names=[name, "f1_macro"])
    assert first[name].value == pytest.approx(first["f1_macro"].value, abs=1e-6)
    assert first[name].low is None
    assert task.metrics(*said, CLASSES, names=[name])[name] == first[name]  # nothing is left from the first time


def test_torchmetrics_of_labels(said):
    rows = np.eye(3)[said[1]].astype(np.float32)
    name = "torchmetrics.classification:MultilabelAccuracy"
    found = labels.metrics(said[0], rows, CLASSES, names=[name, "label_accuracy"])
    assert found[name].value == pytest.approx(found["label_accuracy"].value, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (f"{HERE}:fails", "fails: IndexError"),
        (f"{HERE}:gives_a_row", "of shape"),
        (f"{HERE}:CLASSES", "cannot be called"),
        (f"{HERE}:nothing", "has no 'nothing'"),
        ("acuracy", "unknown metric 'acuracy'"),
        ("top9_accuracy", "unknown metric"),
        ("recall[z]", "unknown metric"),
    ],
)
def test_what_is_no_metric_says_so(said, name, words):
    with pytest.raises(UsageError, match=words.replace("[", r"\[")):
        task.metrics(*said, CLASSES, names=[name])


def test_names_with_numbers_and_classes(said):
    names = ["f0.3_macro", "top2_accuracy", "coverage_at_risk_0.2", "recall[b]", "roc_auc[b]", "average_precision[b]"]
    for found in (
        task.metrics(*said, CLASSES, names=names),
        labels.metrics(said[0], np.eye(3)[said[1]], CLASSES, names=[n for n in names if n != "top2_accuracy"]),
    ):
        assert all(metric.low <= metric.value <= metric.high for metric in found.values())
    details = task.details(*said, CLASSES)["per_class"][1]
    found = task.metrics(*said, CLASSES, names=names)
    assert found["recall[b]"].value == pytest.approx(details["recall"])
    assert found["roc_auc[b]"].value == pytest.approx(details["auc"])


def test_intervals_shrink_with_samples_and_widen_with_groups():
    draws = np.random.default_rng(1)
    widths = {}
    for n in (200, 1800):
        targets = draws.integers(0, 3, n)
        logits = draws.normal(size=(n, 3)) + 1.2 * np.eye(3)[targets]
        found = task.metrics(logits, targets, CLASSES, names="all")
        widths[n] = {name: metric.high - metric.low for name, metric in found.items()}
    assert [name for name in widths[200] if widths[1800][name] >= 0.7 * widths[200][name]] in (
        [],
        ["coverage_at_risk_0.01"],
    )
    few = task.metrics(logits[:100], targets[:100], CLASSES, names="all")
    rows = np.repeat(np.arange(100), 10)  # each sample ten times: no more is known than of one
    grouped = task.metrics(logits[rows], targets[rows], CLASSES, names="all", groups=rows)
    for name in ("accuracy", "f1_macro", "mcc", "kappa", "loss", "brier", "roc_auc", "average_precision", "aurc"):
        width = few[name].high - few[name].low
        assert 0.6 * width < grouped[name].high - grouped[name].low < 1.7 * width, name
    alone = task.metrics(logits, targets, CLASSES, names="all", groups=np.zeros(n))
    assert all(metric.low is None for metric in alone.values())


def test_a_run_chooses_its_best_by_any_metric(tmp_path):
    photos = class_folders(tmp_path / "photos")
    own = f"{HERE}:told"
    run = train(photos, tmp_path, epochs=2, monitor="mcc", metrics=(told, "roc_auc"))
    lines = [line for line in run.metrics() if line["event"] == "val"]
    assert all({"accuracy", "loss", "mcc", "roc_auc", own} <= line["metrics"].keys() for line in lines)
    assert all(line["metrics"]["mcc"]["low"] is None for line in lines)
    assert all(line["metrics"][own]["value"] == line["metrics"]["accuracy"]["value"] for line in lines)
    best = max(lines, key=lambda line: (line["metrics"]["mcc"]["value"], -line["step"]))
    assert json.loads((run.path / "best.json").read_text())["step"] == best["step"]
    by_own = train(photos, tmp_path, epochs=1, monitor=doubts)
    assert by_own.metrics()[-1]["metrics"][f"{HERE}:doubts"]["value"] > 0


def test_wrong_metrics_stop_before_the_first_step(tmp_path):
    photos = class_folders(tmp_path / "photos")
    with pytest.raises(UsageError, match=r"training.metrics = 'mmc'") as caught:
        train(photos, tmp_path, metrics=("mmc",))
    assert caught.value.suggestion == "mcc"
    with pytest.raises(UsageError, match="fails: IndexError"):
        train(photos, tmp_path, metrics=fails)
    with pytest.raises(UsageError, match=r"training\.metrics = mcc without effect"):
        train(photos, tmp_path, metrics="mcc", val_fraction=0.0)
    assert not list(tmp_path.glob("photos-*/checkpoints/step-*"))
    assert command("train", photos, "--monitor", "mc", "--output", tmp_path).status == 2


def test_code_in_a_recorded_recipe_needs_trust():
    recipe = Recipe().override({"training.metrics": ["mcc", "mine:score", "recall[a:b]"], "training.monitor": "my:own"})
    assert set(code_names(recipe).values()) == {"mine:score", "my:own"}
    with pytest.raises(SecurityError, match=r"--trust my:own"):
        require_trust(recipe, (), named_by="recipe.yaml")
    require_trust(recipe, ("mine:score", "my:own"), named_by="recipe.yaml")


def test_torchmetrics_is_what_is_tested():
    assert isinstance(instance, torchmetrics.Metric)
    assert kiln.Recipe().training.metrics == ()
