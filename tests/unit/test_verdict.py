"""What a report says limits a model, and what a calibration did on images that it was not fitted on."""

from __future__ import annotations

import numpy as np
import pytest

from kiln.measure.calibration_harm import calibration_harm
from kiln.metrics import wilson
from kiln.observe.outputs import KeptOutputs, SplitOutputs
from kiln.reports.run_page.calibration import calibration
from kiln.reports.run_page.material import Material
from kiln.reports.run_page.subject import subject_of
from kiln.reports.run_page.verdict import headline
from kiln.tasks import from_dict
from kiln.tasks.decision import Decision

CLASSES = ("coat", "dress", "shirt", "shoe")
TASK = {"name": "classification"}


def said(targets, share_right, *, sure=4.0):
    """Logits that are right for a share of each class, as sure as they are asked to be."""
    turn = np.zeros(len(targets), np.int64)
    for number in np.unique(targets):
        turn[targets == number] = np.arange((targets == number).sum())
    wrong = turn >= share_right * np.bincount(targets)[targets] - 1e-9
    return sure * np.eye(len(CLASSES), dtype=np.float32)[(targets + wrong) % len(CLASSES)]


def part(targets, share_right, *, sure=4.0):
    keys, labels = tuple(map(str, range(len(targets)))), tuple(CLASSES[k] for k in targets)
    return SplitOutputs(keys, labels, said(targets, share_right, sure=sure), targets)


def told(parts, *, split="test", decision=None):
    """The headline of a run that said so much."""
    kept = KeptOutputs(CLASSES, TASK, (decision or Decision()).to_dict(), "", parts)
    metrics = {}
    for name, one in parts.items():
        hits, n = int((one.logits.argmax(1) == one.targets).sum()), len(one.targets)
        low, high = wilson(hits, n)
        metrics[name] = {"accuracy": {"value": hits / n, "low": float(low), "high": float(high), "n": n}}
    material = Material("run", "run", {"metrics": metrics}, {}, {}, [], [], kept, None)
    return headline(material, split, subject_of(kept, split)), kept


EVEN = np.repeat(np.arange(4), 50)
SKEWED = np.repeat(np.arange(4), [20, 140, 20, 20])


def test_a_model_at_chance_has_learnt_nothing_yet():
    limits = told({"test": part(EVEN, 0.25)})[0]["limits"]
    assert limits[0].startswith("The model has learnt nothing yet that would show: train longer")
    assert "--weights pretrained" in limits[0]
    assert not any("learnt nothing" in line for line in told({"test": part(EVEN, 0.5)})[0]["limits"])
    assert any("learnt nothing" in line for line in told({"test": part(SKEWED, 0.7)})[0]["limits"])


@pytest.mark.parametrize(("targets", "words"), [(EVEN, "always naming one class"), (SKEWED, "always saying dress")])
def test_the_guess_is_named_as_it_is(targets, words):
    verdict = " ".join(told({"test": part(targets, 0.5)})[0]["verdict"])
    assert words in verdict
    assert ("most frequent" in verdict) == (targets is SKEWED)


@pytest.mark.parametrize(
    ("val", "test", "words"),
    [
        (0.8, 0.7, "Test (70.0\xa0%) lies clearly below validation (80.0\xa0%)"),  # their intervals overlap
        (0.7, 0.8, "Validation (70.0\xa0%) lies clearly below test (80.0\xa0%)"),
        (0.8, 0.74, None),
    ],
)
def test_validation_and_test_that_differ_beyond_chance_are_told(val, test, words):
    limits = told({"val": part(EVEN, val), "test": part(EVEN, test)})[0]["limits"]
    assert [line for line in limits if "clearly below" in line and line.startswith(words or "?")] == [
        line for line in limits if "clearly below" in line
    ]
    assert any("clearly below" in line for line in limits) == (words is not None)


SURER, LESS_SURE = Decision(scale=(2.0,)), Decision(scale=(0.25,))


@pytest.mark.parametrize(
    ("share_right", "decision", "harmful"),
    [
        (0.5, SURER, True),
        (0.95, LESS_SURE, True),
        (0.6, LESS_SURE, False),
        (1.0, SURER, False),
        (0.5, Decision(), False),
    ],
)
def test_a_calibration_that_did_harm_on_test_is_told(share_right, decision, harmful):
    one = part(EVEN, share_right)
    harm = calibration_harm(from_dict(TASK), one.logits, one.targets, decision, classes=CLASSES)
    assert (harm is not None) == harmful
    found, kept = told({"val": one, "test": one}, decision=decision)
    assert any("did harm" in line for line in found["limits"]) == harmful
    assert ("did harm" in calibration(kept, subject_of(kept, "test"))["harm"]) == harmful
    if harm is not None:
        assert harm.loss_after > harm.loss_before
        assert harm.ece_after > harm.ece_before


def test_few_images_show_no_harm():
    one = part(np.arange(4), 1.0)
    assert calibration_harm(from_dict(TASK), one.logits[:1], one.targets[:1], SURER, classes=CLASSES) is None
    groups = np.array(["a"] * 4)
    assert calibration_harm(from_dict(TASK), one.logits, one.targets, LESS_SURE, classes=CLASSES, groups=groups) is None
