"""Losses through the verbs: sums, class weights from counts, penalties, the user's own, and what is refused before training."""

from __future__ import annotations

import pytest
import torch
from albums import CLASSES, FLAGS, class_folders, command, swatch, train, write
from torch import nn
from torch.nn import functional as F

import kiln
from kiln import names
from kiln.batch import Batch
from kiln.engine import checkpoint
from kiln.engine.state import State
from kiln.engine.step import Step
from kiln.engine.supervised import supervised
from kiln.errors import UsageError
from kiln.losses import Dice
from kiln.run import RESOLVED, read_yaml

CODE = """
import torch
from torch.nn import functional as F


def no_batchnorm(num_classes):
    layers = torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    return torch.nn.Sequential(*layers, torch.nn.Linear(8, num_classes))


def hard_only(outputs, targets):
    return F.nll_loss(outputs.log_softmax(1), targets)


def no_gradient(outputs, targets):
    return (outputs.argmax(1) != targets).float().mean()


class Learning(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, outputs, targets):
        return self.scale * F.cross_entropy(outputs, targets)


class Counting(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, outputs, targets):
        self.calls += 1
        return F.cross_entropy(outputs, targets)
"""


def plain_loss(outputs, targets):
    return F.cross_entropy(outputs, targets)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return class_folders(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """24 blue, 6 green and 3 red images to train on, and some of each to validate."""
    root, number = tmp_path_factory.mktemp("uneven"), 0
    for split, counts in (("train", (24, 6, 3)), ("val", (2, 2, 2))):
        for label, count in enumerate(counts):
            for _ in range(count):
                write(root / split / CLASSES[label] / f"{number:02d}.png", swatch(number, label))
                number += 1
    return root


@pytest.fixture
def code(tmp_path):
    (tmp_path / "mine.py").write_text(CODE)
    return tmp_path / "mine.py"


def first_loss(run):
    return next(line["loss"] for line in run.metrics() if line["event"] == "step")


@pytest.mark.parametrize(
    "loss",
    [
        "focal(gamma=1)",
        "poly1",
        "dice(smooth=0.5)",
        "asymmetric_softmax",
        "cross_entropy + 0.5*dice(smooth=1) + 1e-4*l2_weights",
        "cross_entropy + 0.1*supervised_contrastive",
    ],
)
def test_losses_by_name_train(loss, photos, tmp_path):
    said = command("train", photos, *FLAGS, "--loss", loss, "--output", tmp_path / "runs", "--name", "run", "-q")
    assert said.status == 0, said.err
    assert kiln.Run(tmp_path / "runs/run").recipe.loss.name == loss


@pytest.mark.parametrize("micro", [5, 7])
def test_a_sum_with_penalty_and_class_weights_is_the_same_in_micro_batches(micro, uneven, code, tmp_path):
    loss = "cross_entropy + 0.5*dice + 1e-3*l1_weights"
    given = {"loss": loss, "class_weights": "inverse", "model": f"{code}:no_batchnorm", "kwargs": {}, "epochs": 2}
    whole = train(uneven, tmp_path / "runs", batch_size=33, **given)
    parts = train(uneven, tmp_path / "runs", batch_size=33, micro_batch_size=micro, **given)
    losses = [[line["loss"] for line in run.metrics() if line["event"] == "step"] for run in (whole, parts)]
    assert len(losses[0]) == 2
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_a_penalty_adds_what_it_says(photos, tmp_path):
    """At the first step the weights are those of the seed: the losses differ by the penalty."""
    runs = [train(photos, tmp_path / "runs", loss=f"cross_entropy{more}", batch_size=30, epochs=2)
            for more in ("", " + 0.01*l1_weights", " + 0.02*l1_weights")]  # fmt: skip
    none, one, two = map(first_loss, runs)
    assert one - none > 0.05
    assert two - none == pytest.approx(2 * (one - none), rel=1e-4)


@pytest.mark.parametrize(("how", "expected"), [("inverse", (11 / 24, 11 / 6, 11 / 3)), ("effective", None)])
def test_class_weights_come_from_the_training_samples(how, expected, uneven, tmp_path):
    run = train(uneven, tmp_path / "runs", class_weights=how)
    resolved = read_yaml(run.path / RESOLVED, kind="resolved")
    weights = resolved["values"]["loss.class_weights"]
    assert resolved["reasons"]["loss.class_weights"] == f"{how}, by the 33 training samples"
    assert weights == pytest.approx(expected or weights)
    assert weights[0] < weights[1] < weights[2]
    given = train(uneven, tmp_path / "runs", class_weights=weights)
    assert first_loss(given) == first_loss(run)
    assert first_loss(train(uneven, tmp_path / "runs")) != first_loss(run)


def test_a_resumed_run_keeps_its_class_weights(uneven, tmp_path):
    run = train(uneven, tmp_path / "runs", class_weights="inverse", name="run")
    before = read_yaml(run.path / RESOLVED, kind="resolved")["values"]["loss.class_weights"]
    said = command("resume", run.path, "--extend", "1ep", "-q")
    assert said.status == 0, said.err
    assert read_yaml(run.path / RESOLVED, kind="resolved")["values"]["loss.class_weights"] == before


def test_labels_have_pos_weights(photos, tmp_path):
    run = train(photos, tmp_path / "runs", task="multilabel", pos_weight="inverse")
    weights = read_yaml(run.path / RESOLVED, kind="resolved")["values"]["loss.pos_weight"]
    assert len(weights) == 3
    assert all(1.5 < weight < 2.6 for weight in weights)
    one = train(
        photos,
        tmp_path / "runs",
        task="multilabel",
        pos_weight=[3.0],
        loss="binary_cross_entropy + dice(activation='sigmoid')",
    )
    assert one.status["state"] == "done"


def test_losses_as_objects_from_python(photos, tmp_path):
    named = train(photos, tmp_path / "runs", loss=nn.CrossEntropyLoss)
    assert named.recipe.loss.name == "torch.nn.modules.loss:CrossEntropyLoss"
    made = train(photos, tmp_path / "runs", loss=nn.CrossEntropyLoss(label_smoothing=0.0))
    assert made.recipe.loss.name == "object:CrossEntropyLoss"
    assert (
        "E0, best effort: the loss is an object, which a resume must be given again"
        in (made.path / "log.txt").read_text()
    )
    assert "exactness E0" in read_yaml(made.path / RESOLVED, kind="resolved")["reasons"]["loss.name"]
    local = train(photos, tmp_path / "runs", loss=lambda outputs, targets: F.cross_entropy(outputs, targets))
    own = train(photos, tmp_path / "runs", loss=plain_loss)
    assert own.recipe.loss.name == f"{__name__}:plain_loss"
    assert first_loss(named) == first_loss(made) == first_loss(local) == first_loss(own)


def test_a_run_on_an_object_goes_on_with_the_object(photos, tmp_path, monkeypatch):
    class Mine(nn.CrossEntropyLoss):
        pass

    run = train(photos, tmp_path / "runs", loss=Mine(), name="run")
    monkeypatch.setattr(names, "_objects", {})  # as in another process
    said = command("resume", run.path, "--extend", "1ep", "-q")
    assert said.status == 2
    assert "was an object given from Python, in another process\n  next: give it again" in said.err
    again = train(photos, tmp_path / "runs", loss=Mine(), resume=run.path, extend="1ep")
    assert again.status["state"] == "done"


def test_what_a_loss_remembers_is_in_the_checkpoint(photos, code, tmp_path):
    run = train(photos, tmp_path / "runs", loss=f"{code}:Counting", epochs=2)
    newest = checkpoint.newest_checkpoint(run.path / "checkpoints")
    assert newest.tree["parts"]["loss"]["calls"].item() == newest.step  # the call that tries it is undone
    assert (
        "loss" not in checkpoint.newest_checkpoint(train(photos, tmp_path / "runs").path / "checkpoints").tree["parts"]
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--loss", "mse"), "the loss MeanSquaredError takes labels or shares or values, and the targets are classes"),
        (("--loss", "binary_cross_entropy"), "choices: cross_entropy, focal"),
        (("--loss", "supervised_contrastive", "--mixup", "0.2"), "leave augment.mixup and augment.cutmix out"),
        (
            ("--loss", "cross_entropy + supervised_contrastive", "--cutmix", "1"),
            "takes classes, and the targets are shares",
        ),
        (
            ("--loss", "{code}:hard_only", "--mixup", "0.2"),
            "fails on outputs (4, 3) and targets (4, 3) of torch.float32",
        ),
        (("--loss", "{code}:no_gradient"), "has no gradient with respect to the outputs"),
        (("--loss", "{code}:Learning"), "trainable parameters (scale), and they are in no optimizer group"),
        (("--loss", "dice(per_batch=True)", "--micro-batch-size", "4"), "cuts batches of 16, and the loss"),
        (("--set", "loss.class_weights=1,2"), "loss.class_weights has 2 numbers\n  expected: 3"),
        (("--task", "multilabel", "--set", "loss.class_weights=inverse"), "has no effect with the loss 'binary_cross"),
        (
            ("--loss", "{code}:hard_only", "--set", "loss.class_weights=inverse"),
            "loss.class_weights = 'inverse' has no effect",
        ),
        (("--loss", "dice(smoth=1)"), "did you mean: smooth"),
        (("--loss", "cross_entropy + dise"), "did you mean: dice"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_step(flags, message, photos, code, tmp_path):
    flags = [flag.format(code=code) for flag in flags]
    said = command("train", photos, *FLAGS, *flags, "--output", tmp_path / "runs", "--name", "run")
    assert said.status == 2, said.err
    assert message in said.err
    assert not (tmp_path / "runs/run").exists()


def test_a_coupled_loss_is_not_cut_in_a_loop_of_ones_own():
    model = nn.Linear(4, 3)
    state = State(model, torch.optim.SGD(model.parameters(), lr=0.1))
    step = Step(supervised(Dice(per_batch=True)), micro_batch_size=2)
    batch = Batch(torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2]))
    with pytest.raises(UsageError, match="micro_batch_size = 2 cuts a batch of 6, whose samples the loss couples"):
        step(state, batch)
    Step(supervised(Dice(per_batch=True)), micro_batch_size=6)(state, batch)
