"""`kiln.losses.check`: every fault planted is found, by its name, and sound losses pass."""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kiln.cli import main
from kiln.errors import UsageError
from kiln.losses import CrossEntropy, check
from kiln.names import LOSSES

PENALTIES = ("l1_weights", "l2_weights", "l1_outputs", "l2_outputs")
SOUND = [name for name in LOSSES if name not in PENALTIES]


@pytest.mark.parametrize("name", SOUND)
def test_every_loss_of_ours_passes(name):
    report = check(name)
    assert report.passed, str(report)
    assert len(report.findings) >= 11


@pytest.mark.parametrize(
    ("loss", "targets", "shape"),
    [
        ("cross_entropy + 0.5*dice(smooth=1)", "masks", None),
        ("dice(activation='sigmoid')", "labels", (1, 16, 16)),
        ("dice(per_batch=True)", "masks", None),
        ("cross_entropy + 1e-4*l1_weights", "classes", None),
        ("cross_entropy(smoothing=0.1)", "shares", (7,)),
        (nn.CrossEntropyLoss, "auto", None),
        (nn.BCEWithLogitsLoss(), "auto", None),
        (nn.SmoothL1Loss(), "auto", None),
        ("dice", "masks", (1, 8, 8)),
        ("jaccard + tversky", "masks", (1, 8, 8)),
        ("cross_entropy(ignore_index=1)", "auto", None),
        ("focal(ignore_index=0)", "auto", None),
        ("cross_entropy(ignore_index=1)", "masks", None),
    ],
)
def test_sums_shapes_and_losses_of_torch_pass(loss, targets, shape):
    report = check(loss, targets=targets, shape=shape)
    assert report.passed, str(report)


def ce(outputs, targets):
    return F.cross_entropy(outputs.float() if outputs.dtype != torch.float64 else outputs, targets)


def clamped(outputs, targets):
    p = outputs.softmax(1).clamp(1e-7, 1 - 1e-7)
    return -p.log()[torch.arange(len(targets)), targets].mean()


def naive(outputs, targets):
    p = outputs.exp() / outputs.exp().sum(1, keepdim=True)
    return -p.log()[torch.arange(len(targets)), targets].mean()


def summed(outputs, targets):
    return F.cross_entropy(outputs, targets, reduction="sum")


def upside_down(outputs, targets):
    return -ce(outputs, targets)


def detached(outputs, targets):
    return ce(outputs.detach(), targets)


def by_argmax(outputs, targets):
    return (outputs.argmax(1) != targets).double().mean()


def in_place(outputs, targets):
    outputs = outputs.sub_(outputs.detach().amax(1, keepdim=True)) if not outputs.requires_grad else outputs
    return F.cross_entropy(outputs, targets)


class WrongDerivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values):
        return values.square()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def wrong_derivative(outputs, targets):
    return WrongDerivative.apply(outputs - targets).mean()


def unsmoothed_dice(outputs, targets):
    p = outputs.sigmoid().flatten(1)
    t = targets.flatten(1)
    return (1 - 2 * (p * t).sum(1) / (p.sum(1) + t.sum(1))).mean()


def half_sums(outputs, targets):
    """Counts pixels in the outputs' own precision."""
    p = outputs.sigmoid()
    t = targets.to(outputs.dtype)
    hits, both = (p * t).sum(), p.sum() + t.sum()
    return 1 - (2 * hits + 1) / (both + 1)


def noisy(outputs, targets):
    return ce(outputs + 0.1 * torch.randn_like(outputs), targets)


def over_the_batch(outputs, targets):
    p, t = outputs.float().sigmoid(), targets.float()
    return 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)


class LateLog(nn.Module):
    """In float32 the sigmoid of 18 is 1, and its gradient 0."""

    def forward(self, outputs, targets):
        return F.binary_cross_entropy(outputs.sigmoid(), targets.to(outputs.dtype))


class Learning(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, outputs, targets):
        return F.cross_entropy(outputs.double(), targets) * self.scale.exp()


class TutorialDice(nn.Module):
    def forward(self, outputs, targets):
        p, t = outputs.sigmoid().flatten(1), targets.flatten(1)
        return (1 - (2 * (p * t).sum(1) + 1) / (p.sum(1) + t.sum(1) + 1)).mean()


def unsaid(outputs, targets):
    return F.cross_entropy(outputs, targets, ignore_index=1)


def positives_alone(outputs, targets):
    return -(F.logsigmoid(outputs) * targets.unsqueeze(1)).mean()


@pytest.mark.parametrize(
    ("loss", "options", "fault", "words"),
    [
        (clamped, {}, "silenced", "gradient is 0 for 100% of the outputs that are wrong by 10 (a clamp"),
        (naive, {}, "extreme outputs", "value and gradient not finite: right by 1e4"),
        (naive, {}, "float16", "raise it by .float() first"),
        (F.cross_entropy, {"targets": "masks"}, "float16", "value nan"),  # on the CPU: it sums pixels in half precision
        (summed, {}, "scale", "doubling the batch doubles it: a sum"),
        (upside_down, {}, "direction", "does not fall with better outputs"),
        (detached, {}, "gradient", "none reaches the outputs"),
        (by_argmax, {}, "gradient", "none reaches the outputs"),
        (in_place, {}, "inputs", "changes its outputs in place"),
        (wrong_derivative, {"targets": "values"}, "gradient", "is not the derivative of the value"),
        (unsmoothed_dice, {"targets": "labels"}, "perfect, empty", "not finite: empty targets, nothing predicted"),
        (LateLog(), {"targets": "labels"}, "silenced", "gradient is 0 in float32 for "),
        (Learning(), {}, "parameters", "scale would have to be trained, and training refuses that"),
        (half_sums, {"targets": "labels", "shape": (1, 16, 16)}, "float16", "raise"),
    ],
)
def test_each_planted_fault_is_found(loss, options, fault, words):
    report = check(loss, **options)
    (finding,) = (finding for finding in report.findings if finding.check == fault)
    assert finding.verdict == "FAIL", str(report)
    assert words in finding.detail
    assert fault in report.failed
    assert not report.passed
    assert report.verdict.startswith("FAIL: ")


@pytest.mark.parametrize(
    ("loss", "options", "warned", "words"),
    [
        (noisy, {}, "repeats", "then"),
        (over_the_batch, {"targets": "labels"}, "cut", "say coupled = True"),
        (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2, 3, 4, 5]).double()), {}, "cut", "or return LossTerms"),
        ("dice", {}, "silenced", "gradient fades"),
        (unsaid, {}, "silenced", "25% of the outputs have no gradient, right or wrong"),
    ],
)
def test_what_works_but_should_be_known(loss, options, warned, words):
    report = check(loss, **options)
    (finding,) = (finding for finding in report.findings if finding.check == warned)
    assert (finding.verdict, words in finding.detail) == ("warn", True), str(report)


def test_a_clamp_of_the_peers_is_found_where_ours_has_none():
    timm = pytest.importorskip("timm.loss")
    assert "silenced" in check(timm.AsymmetricLossMultiLabel()).failed
    assert check("asymmetric").passed


def test_saying_coupled_ends_the_warning():
    over_the_batch.coupled = True
    try:
        (cut,) = (f for f in check(over_the_batch, targets="labels").findings if f.check == "cut")
    finally:
        del over_the_batch.coupled
    assert (cut.verdict, cut.detail) == ("note", "coupled, as it says: never cut into micro-batches")


def test_the_kind_of_targets_is_found_out():
    assert check(nn.MSELoss()).targets == "values"
    assert check(nn.BCEWithLogitsLoss()).targets == "labels"
    assert check(lambda x, y: F.cross_entropy(x, y)).targets == "classes"
    assert check("supervised_contrastive").targets == "embeddings"


def test_the_comparison_is_with_the_usual_loss():
    (compared,) = (f for f in check(CrossEntropy()).findings if f.check == "compared")
    assert compared.detail == "value 1 times cross_entropy, gradient's cosine with it 1.000"


def test_what_is_no_loss_is_refused():
    def broken(outputs, targets):
        raise RuntimeError("never works")

    with pytest.raises(UsageError, match=r"fails on every kind of targets[\s\S]*classes: RuntimeError: never works"):
        check(broken)
    with pytest.raises(UsageError, match="the loss fails on masks"):
        check("mse", targets="masks")
    with pytest.raises(UsageError, match="did you mean: classes"):
        check("mse", targets="class")
    with pytest.raises(UsageError, match="int is no loss"):
        check(5)


def test_the_check_leaves_the_random_state_and_the_loss_alone():
    state = torch.get_rng_state()
    check(noisy)
    assert torch.equal(state, torch.get_rng_state())


def test_the_command_tells_and_its_status_says(tmp_path, capfd):
    path = tmp_path / "mine.py"
    path.write_text(
        "from torch.nn import functional as F\n"
        "def good(outputs, targets):\n    return F.cross_entropy(outputs, targets)\n"
        "def bad(outputs, targets):\n    return F.cross_entropy(outputs, targets, reduction='sum')\n"
    )
    assert main(["check-loss", f"{path}:good"]) == 0
    assert capfd.readouterr().out.splitlines()[-1] == "verdict  passes"
    assert main(["check-loss", f"{path}:bad"]) == 7
    assert capfd.readouterr().out.splitlines()[-1] == "verdict  FAIL: scale"
    assert main(["check-loss", f"{path}:bad", "--json"]) == 7
    said = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert said["passed"] is False
    assert [f["check"] for f in said["findings"] if f["verdict"] == "FAIL"] == ["scale"]
    assert main(["check-loss", "focal", "--shape", "3,x"]) == 2
    assert "whole numbers above 0" in capfd.readouterr().err
    assert main(["check-loss", "dice(smoth=1)"]) == 2
    assert "did you mean: smooth" in capfd.readouterr().err


def test_masks_of_one_class_are_yes_and_no():
    findings = {f.check: f for f in check(TutorialDice, targets="masks", shape=(1, 8, 8)).findings}
    assert findings["direction"].verdict == "ok"
    assert "times binary_cross_entropy" in findings["compared"].detail
    assert (
        "silenced" in check(positives_alone, targets="masks", shape=(1, 8, 8)).failed
    )  # no position is left out there


def test_what_is_ignored_is_told_and_what_is_silenced_besides_is_found():
    def clamped_too(outputs, targets):
        p = outputs.softmax(1).clamp(1e-7, 1 - 1e-7)
        return F.nll_loss(p.log(), targets, ignore_index=1)

    (silenced,) = (f for f in check("cross_entropy(ignore_index=1)").findings if f.check == "silenced")
    assert silenced.detail.endswith("25% ignored")
    assert "silenced" in check(clamped_too).failed


def test_a_usual_loss_of_0_is_no_comparison():
    (compared,) = (f for f in check("cross_entropy", targets="shares", shape=(1,)).findings if f.check == "compared")
    assert (compared.verdict, compared.detail.startswith("not compared")) == ("note", True)
