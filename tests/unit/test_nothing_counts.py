"""A batch of which nothing counts teaches nothing, and is no fault of its samples."""

import pytest
import torch
from small_training import Batches, make_state, pictures

from kiln.engine.fit import NOTHING_COUNTS, fit
from kiln.engine.step import Step
from kiln.engine.supervised import supervised
from kiln.errors import UsageError
from kiln.events import EpochDone, Skipped, StepDone
from kiln.losses import CrossEntropy


def told(model, batches, *, total_steps):
    loss = supervised(CrossEntropy(ignore_index=0))
    return list(fit(make_state(model), Step(loss), batches, total_steps=total_steps))


def test_batches_of_ignored_samples_are_passed_over(tiny_model):
    images, labels = pictures(12)
    labels = torch.tensor([0] * 10 + [1, 2])  # five batches of two in which nothing counts, then one
    model = tiny_model()
    before = [p.clone() for p in model.parameters()]
    events = told(model, Batches(images, labels, 2), total_steps=6)
    skipped = [event for event in events if isinstance(event, Skipped)]
    assert [(event.step, event.reason) for event in skipped] == [(step, NOTHING_COUNTS) for step in range(1, 6)]
    assert sum(isinstance(event, StepDone) for event in events) == 6
    (epoch,) = (event for event in events if isinstance(event, EpochDone))
    assert epoch.train_loss > 0
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_an_epoch_of_which_nothing_counts_is_an_error(tiny_model):
    images, labels = pictures(4)
    with pytest.raises(UsageError, match="no sample of epoch 1 counts in the loss"):
        told(tiny_model(), Batches(images, torch.zeros_like(labels), 2), total_steps=6)


def test_class_weights_that_are_all_0_are_refused():
    with pytest.raises(UsageError, match="nothing would count"):
        CrossEntropy(class_weights=[0, 0, 0])
