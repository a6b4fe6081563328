"""Losses against torch, torchvision and timm, and against slow obvious versions of the published formulas."""

import math

import numpy as np
import pytest
import torch
from timm.loss import AsymmetricLossMultiLabel, AsymmetricLossSingleLabel, SoftTargetCrossEntropy
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from kiln import losses as L

B, K = 9, 5
CLOSE = {"rtol": 0, "atol": 1e-12}
WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 3.0, 0.25], dtype=torch.float64)


def data(shape=(B, K), seed=0, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
    indices = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
    labels = (torch.rand(shape, generator=generator) < 0.4).double()
    return logits, indices, labels


def mean(terms):
    values, weights = terms
    return values.mean() if weights is None else (values * weights).sum() / weights.sum()


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("ignored", [None, 255])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_of_masks_is_that_of_torch(weights, ignored, smoothing):
    logits, indices, _ = data((4, K, 6, 7))
    if ignored is not None:
        indices[0, :3], indices[1] = ignored, ignored
    ours = mean(L.cross_entropy(logits, indices, class_weights=weights, ignore_index=ignored, smoothing=smoothing))
    torchs = F.cross_entropy(
        logits, indices, weight=weights, ignore_index=-100 if ignored is None else ignored, label_smoothing=smoothing
    )
    torch.testing.assert_close(ours, torchs, **CLOSE)


def test_soft_targets_against_timm():
    logits, _, _ = data()
    soft = torch.softmax(data(seed=1)[0], 1)
    torch.testing.assert_close(mean(L.cross_entropy(logits, soft)), SoftTargetCrossEntropy()(logits, soft), **CLOSE)


@pytest.mark.parametrize("alpha", [None, 0.25, 0.7])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 3.0])
def test_binary_focal_against_torchvision(alpha, gamma):
    logits, _, labels = data()
    theirs = sigmoid_focal_loss(logits, labels, alpha=-1 if alpha is None else alpha, gamma=gamma)
    ours = L.binary_focal(logits, labels, gamma=gamma, alpha=alpha).values
    torch.testing.assert_close(ours, theirs.mean(1), **CLOSE)
    soft = 0.1 + 0.8 * labels
    theirs = sigmoid_focal_loss(logits, soft, alpha=-1 if alpha is None else alpha, gamma=gamma)
    torch.testing.assert_close(L.binary_focal(logits, soft, gamma=gamma, alpha=alpha).values, theirs.mean(1), **CLOSE)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_against_its_formula(gamma):
    logits, indices, _ = data()
    p = logits.softmax(1)[torch.arange(B), indices]
    naive = (1 - p) ** gamma * -p.log()
    torch.testing.assert_close(L.focal(logits, indices, gamma=gamma).values, naive, **CLOSE)
    weighted = L.focal(logits, indices, gamma=gamma, class_weights=WEIGHTS)
    by_hand = (WEIGHTS[indices] * naive).sum() / WEIGHTS[indices].sum()
    torch.testing.assert_close(mean(weighted), by_hand, **CLOSE)


def test_focal_without_focus_is_cross_entropy():
    logits, indices, _ = data((3, K, 4, 4))
    for options in ({}, {"class_weights": WEIGHTS}, {"ignore_index": 2}, {"class_weights": WEIGHTS, "ignore_index": 2}):
        focal, plain = L.focal(logits, indices, gamma=0.0, **options), L.cross_entropy(logits, indices, **options)
        torch.testing.assert_close(focal.values, plain.values, **CLOSE)
        if plain.weights is not None:
            torch.testing.assert_close(focal.weights, plain.weights, **CLOSE)


@pytest.mark.parametrize("margin", [0.0, 0.05, 0.2])
@pytest.mark.parametrize(("gamma_pos", "gamma_neg"), [(1, 4), (0, 2), (0, 0), (2, 3)])
def test_asymmetric_against_timm(margin, gamma_pos, gamma_neg):
    logits, _, labels = data()
    theirs = AsymmetricLossMultiLabel(gamma_neg, gamma_pos, margin, reduction="mean")(logits, labels)
    ours = L.asymmetric(logits, labels, gamma_pos=gamma_pos, gamma_neg=gamma_neg, margin=margin)
    torch.testing.assert_close(mean(ours).float(), theirs, rtol=1e-5, atol=1e-7)  # timm computes in float32


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_asymmetric_softmax_against_timm(smoothing):
    logits, indices, _ = data()
    theirs = AsymmetricLossSingleLabel(gamma_pos=1, gamma_neg=4, eps=smoothing)(logits, indices)
    torch.testing.assert_close(mean(L.asymmetric_softmax(logits, indices, smoothing=smoothing)), theirs, **CLOSE)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_poly1_against_its_formula(smoothing):
    logits, indices, _ = data()
    rows = F.one_hot(indices, K).double() * (1 - smoothing) + smoothing / K
    p = logits.softmax(1)
    naive = -(rows * p.log()).sum(1) + 2.0 * (rows * (1 - p)).sum(1)
    torch.testing.assert_close(L.poly1(logits, indices, epsilon=2.0, smoothing=smoothing).values, naive, **CLOSE)
    plain = L.cross_entropy(logits, indices, smoothing=smoothing, class_weights=WEIGHTS)
    zero = L.poly1(logits, indices, epsilon=0.0, smoothing=smoothing, class_weights=WEIGHTS)
    torch.testing.assert_close(mean(zero), mean(plain), **CLOSE)


def slow_dice(p, t, smooth, alpha=None, beta=None):
    """Of one class in one region, pixel by pixel."""
    hits = sum(a * b for a, b in zip(p, t, strict=True))
    if alpha is None:
        return 1 - (2 * hits + smooth) / (sum(p) + sum(t) + smooth)
    false_alarms = sum(a * (1 - b) for a, b in zip(p, t, strict=True))
    misses = sum((1 - a) * b for a, b in zip(p, t, strict=True))
    return 1 - (hits + smooth) / (hits + alpha * false_alarms + beta * misses + smooth)


@pytest.mark.parametrize("per_batch", [False, True])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smooth", [1.0, 0.1])
def test_dice_and_tversky_pixel_by_pixel(per_batch, weights, smooth):
    logits, indices, _ = data((2, K, 3, 3))
    p, t = logits.softmax(1), F.one_hot(indices, K).movedim(-1, 1).double()
    w = [1.0] * K if weights is None else weights.tolist()

    def naive(**options):
        regions = [slice(0, 2)] if per_batch else [slice(i, i + 1) for i in range(2)]
        found = []
        for region in regions:
            parts = [slow_dice(p[region, k].flatten().tolist(), t[region, k].flatten().tolist(), smooth, **options)
                     for k in range(K)]  # fmt: skip
            found.append(sum(a * b for a, b in zip(w, parts, strict=True)) / sum(w))
        return sum(found) / len(found)

    given = {"smooth": smooth, "class_weights": weights, "per_batch": per_batch}
    assert mean(L.dice(logits, indices, **given)).item() == pytest.approx(naive(), abs=1e-12)
    tversky = L.tversky(logits, indices, alpha=0.3, beta=0.7, **given)
    assert mean(tversky).item() == pytest.approx(naive(alpha=0.3, beta=0.7), abs=1e-12)
    jaccard = L.jaccard(logits, indices, **given)
    assert mean(jaccard).item() == pytest.approx(naive(alpha=1.0, beta=1.0), abs=1e-12)


def test_overlap_of_hard_masks_is_f1_and_iou_of_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    _, indices, _ = data((1, 3, 12, 12))
    guess = data((1, 3, 12, 12), seed=5)[1]
    sure = 1e4 * F.one_hot(guess, 3).movedim(-1, 1).double()
    truth, said = indices.flatten().numpy(), guess.flatten().numpy()
    dice, jaccard = (loss(sure, indices, smooth=0.0).values.item() for loss in (L.dice, L.jaccard))
    assert dice == pytest.approx(1 - sklearn.f1_score(truth, said, average="macro"), abs=1e-12)
    assert jaccard == pytest.approx(1 - sklearn.jaccard_score(truth, said, average="macro"), abs=1e-12)


def test_generalized_dice_against_its_formula():
    logits, _, labels = data((3, 4, 5, 5))
    labels[:, 2] = 0  # a class that is nowhere true takes the largest weight of the others
    p = logits.sigmoid()
    ours = L.generalized_dice(logits, labels, activation="sigmoid", smooth=0.0).values
    for i in range(3):
        size = labels[i].sum((1, 2))
        w = [1 / s.item() ** 2 if s > 0 else 0.0 for s in size]
        w = [x if x else max(w) for x in w]
        top = sum(w[k] * (p[i, k] * labels[i, k]).sum().item() for k in range(4))
        below = sum(w[k] * (p[i, k] + labels[i, k]).sum().item() for k in range(4))
        assert ours[i].item() == pytest.approx(1 - 2 * top / below, abs=1e-12)


@pytest.mark.parametrize("delta", [0.5, 1.0, 3.0])
def test_errors_of_numbers_against_torch(delta):
    outputs, _, _ = data((B, 3, 2))
    targets = data((B, 3, 2), seed=2)[0]
    torch.testing.assert_close(mean(L.mae(outputs, targets)), F.l1_loss(outputs, targets), **CLOSE)
    torch.testing.assert_close(mean(L.mse(outputs, targets)), F.mse_loss(outputs, targets), **CLOSE)
    huber = mean(L.huber(outputs, targets, delta=delta))
    torch.testing.assert_close(huber, F.huber_loss(outputs, targets, delta=delta), **CLOSE)


def test_penalties_against_their_formulas():
    outputs, _, _ = data((B, 3, 2))
    torch.testing.assert_close(mean(L.l1_outputs(outputs)), outputs.abs().mean(), **CLOSE)
    torch.testing.assert_close(mean(L.l2_outputs(outputs)), outputs.square().mean(), **CLOSE)
    assert L.l1_outputs(outputs).values.shape == (B,)
    weights = [outputs[0], outputs[1:]]
    torch.testing.assert_close(L.l1_norm(weights), torch.linalg.vector_norm(outputs, 1), **CLOSE)
    torch.testing.assert_close(L.l2_norm_squared(weights), torch.linalg.vector_norm(outputs) ** 2, **CLOSE)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_supervised_contrastive_pair_by_pair(temperature):
    z, _, _ = data((7, 4))
    targets = torch.tensor([0, 0, 1, 2, 1, 0, 3])  # 2 and 3 are alone
    unit = (z / z.norm(dim=1, keepdim=True)).tolist()

    def similar(a, b):
        return math.exp(sum(x * y for x, y in zip(unit[a], unit[b], strict=True)) / temperature)

    terms = L.supervised_contrastive(z, targets, temperature=temperature)
    for i in range(7):
        positives = [j for j in range(7) if j != i and targets[j] == targets[i]]
        assert terms.weights[i] == (1.0 if positives else 0.0)
        if positives:
            whole = sum(similar(i, a) for a in range(7) if a != i)
            naive = -sum(math.log(similar(i, p) / whole) for p in positives) / len(positives)
            assert terms.values[i].item() == pytest.approx(naive, abs=1e-10)


def test_binary_cross_entropy_of_masks_with_pos_weight_against_torch():
    logits, _, labels = data((3, K, 4, 4))
    ours = L.binary_cross_entropy(logits, labels, pos_weight=WEIGHTS).values
    theirs = F.binary_cross_entropy_with_logits(
        logits, labels, pos_weight=WEIGHTS.view(-1, 1, 1), reduction="none"
    ).flatten(1)
    torch.testing.assert_close(ours, theirs.mean(1), **CLOSE)
    one = L.binary_cross_entropy(logits, labels, pos_weight=torch.tensor([3.0])).values
    same = L.binary_cross_entropy(logits, labels, pos_weight=torch.full((K,), 3.0)).values
    torch.testing.assert_close(one, same, **CLOSE)


def test_class_weights_against_scikit_learn_and_the_paper():
    utils = pytest.importorskip("sklearn.utils.class_weight")
    counts = [700, 200, 90, 10]
    targets = [k for k, count in enumerate(counts) for _ in range(count)]
    balanced = utils.compute_class_weight("balanced", classes=np.arange(4), y=targets)
    assert L.weights_from_counts(counts, "inverse") == pytest.approx(balanced.tolist(), rel=1e-12)
    effective = L.weights_from_counts(counts, "effective", beta=0.99)
    paper = [(1 - 0.99) / (1 - 0.99**n) for n in counts]
    ratios = [a / b for a, b in zip(effective, paper, strict=True)]
    assert ratios == pytest.approx([ratios[0]] * 4, rel=1e-12)
    assert sum(w * n for w, n in zip(effective, counts, strict=True)) / 1000 == pytest.approx(1.0)
