"""What holds for every loss: gradient, any cut of the batch, extremes, empty targets, half precision, autocast."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kiln import losses as L
from kiln.errors import UsageError

B, K = 8, 4
WEIGHTS = [0.5, 2.0, 1.0, 0.0]
CLASSES, MASKS, LABELS, VALUES = "classes", "masks", "labels", "values"
LOSSES = [
    ("cross_entropy(smoothing=0.1)", CLASSES), ("cross_entropy(ignore_index=1)", MASKS),
    ("cross_entropy(class_weights=[0.5, 2, 1, 0])", CLASSES), ("cross_entropy(class_weights=[0.5, 2, 1, 0])", MASKS),
    ("binary_cross_entropy(pos_weight=[3])", LABELS), ("focal(gamma=0.5)", CLASSES),
    ("focal(class_weights=[0.5, 2, 1, 0], ignore_index=2)", MASKS), ("binary_focal(smoothing=0.1)", LABELS),
    ("asymmetric", LABELS), ("asymmetric(margin=0, gamma_neg=0.5)", LABELS), ("asymmetric_softmax", CLASSES),
    ("poly1(class_weights=[0.5, 2, 1, 0], smoothing=0.1)", CLASSES), ("poly1(ignore_index=1)", MASKS),
    ("dice", CLASSES), ("dice(class_weights=[0, 1, 2, 1])", MASKS), ("dice(skip_absent=True)", MASKS),
    ("dice(activation='sigmoid')", LABELS), ("dice(ignore_index=2)", MASKS), ("tversky(alpha=0.3, beta=0.7)", MASKS),
    ("jaccard(smooth=0.1)", MASKS), ("generalized_dice", MASKS), ("mse", VALUES), ("mae", VALUES),
    ("huber(delta=0.5)", VALUES), ("l1_outputs", VALUES), ("l2_outputs", VALUES),
    ("cross_entropy(class_weights=[0.5, 2, 1, 0]) + 0.5*dice", CLASSES),
    ("0.3*dice + cross_entropy(ignore_index=0) + 2*focal(ignore_index=0)", MASKS),
]  # fmt: skip
COUPLED = [("dice(per_batch=True)", MASKS), ("generalized_dice(per_batch=True)", CLASSES),
           ("supervised_contrastive", CLASSES), ("cross_entropy + 0.1*supervised_contrastive", CLASSES)]  # fmt: skip


def data(kind, *, num=B, seed=0, dtype=torch.float64, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    shape = (num, K, 3, 2) if kind == MASKS else (num, K)
    outputs = (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)
    if kind == LABELS:
        return outputs, (torch.rand(shape, generator=generator) < 0.4).double()
    if kind == VALUES:
        return outputs, torch.randn(shape, generator=generator, dtype=torch.float64)
    return outputs, torch.randint(K, (num, *shape[2:]), generator=generator)


def sums(terms):
    values, weights = terms
    weights = torch.ones_like(values) if weights is None else weights
    return (values * weights).sum(), weights.sum()


def mean(terms):
    total, weight = sums(terms)
    return total / weight


@pytest.mark.parametrize(("text", "kind"), [*LOSSES, *COUPLED])
def test_the_gradient_is_the_derivative(text, kind):
    loss = L.make(text).double()
    outputs, targets = data(kind)
    assert torch.autograd.gradcheck(lambda x: mean(L.as_terms(loss(x, targets), B)), (outputs.requires_grad_(),))


@settings(deadline=None, max_examples=8)
@given(cuts=st.lists(st.integers(1, B - 1), max_size=4, unique=True), seed=st.integers(0, 50))
@pytest.mark.parametrize(("text", "kind"), LOSSES)
def test_any_cut_of_the_batch_has_the_same_mean(text, kind, cuts, seed):
    loss, (outputs, targets) = L.make(text).double(), data(kind, seed=seed)
    edges = [0, *sorted(cuts), B]
    parts = [sums(loss(outputs[a:b], targets[a:b])) for a, b in itertools.pairwise(edges)]
    total, weight = sum(part[0] for part in parts), sum(part[1] for part in parts)
    whole = sums(loss(outputs, targets))
    torch.testing.assert_close(weight, whole[1], rtol=0, atol=1e-12)
    torch.testing.assert_close(total, whole[0], rtol=0, atol=1e-11)


@pytest.mark.parametrize(("text", "kind"), COUPLED)
def test_a_coupled_loss_says_so_and_changes_when_cut(text, kind):
    loss, (outputs, targets) = L.make(text).double(), data(kind)
    assert L.is_coupled(loss)
    halves = [loss(outputs[half], targets[half]) for half in (slice(0, 4), slice(4, B))]
    cut = sum(sums(h)[0] for h in halves) / sum(sums(h)[1] for h in halves)
    assert abs(cut - mean(loss(outputs, targets))) > 1e-4


def test_the_others_are_not_coupled():
    assert not any(L.is_coupled(L.make(text)) for text, _ in LOSSES)


@pytest.mark.parametrize("size", [1e4, -1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("text", "kind"), [*LOSSES, *COUPLED])
def test_extreme_outputs_keep_value_and_gradient_finite(text, kind, dtype, size):
    loss, (outputs, targets) = L.make(text), data(kind)
    extreme = (size * outputs.sign()).to(dtype).requires_grad_()
    terms = L.as_terms(loss(extreme, targets), B)
    assert terms.values.dtype == torch.float32
    (gradient,) = torch.autograd.grad(sums(terms)[0], extreme)
    assert torch.isfinite(terms.values).all()
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("smooth", [0.0, 1.0])
@pytest.mark.parametrize("name", ["dice", "tversky", "jaccard", "generalized_dice"])
def test_empty_masks_cost_nothing_where_nothing_is_said(name, smooth):
    loss = L.make(f"{name}(smooth={smooth}, activation='sigmoid')")
    logits = torch.full((2, 1, 4, 4), -1e4, requires_grad=True)
    terms = loss(logits, torch.zeros(2, 1, 4, 4))
    assert terms.values.tolist() == [0.0, 0.0]
    (gradient,) = torch.autograd.grad(terms.values.sum(), logits)
    assert torch.isfinite(gradient).all()
    said = loss(-logits.detach(), torch.zeros(2, 1, 4, 4)).values
    assert (said > 0.8).all()


@pytest.mark.parametrize("text", ["cross_entropy(ignore_index=9)", "focal(ignore_index=9)", "poly1(ignore_index=9)",
                                  "dice(ignore_index=9)", "generalized_dice(ignore_index=9)"])  # fmt: skip
def test_what_is_ignored_has_no_effect_and_no_gradient(text):
    loss, (outputs, targets) = L.make(text).double(), data(MASKS)
    targets[:, 0], targets[3] = 9, 9
    outputs.requires_grad_()
    terms = loss(outputs, targets)
    (gradient,) = torch.autograd.grad(sums(terms)[0], outputs)
    assert not gradient.movedim(1, -1)[targets == 9].any()
    assert gradient.movedim(1, -1)[targets != 9].any()
    assert (terms.weights[3], (terms.weights[:3] > 0).all()) == (0, True)
    other = outputs.detach() + 5.0 * (targets == 9).unsqueeze(1) * torch.arange(K).view(1, K, 1, 1)
    torch.testing.assert_close(loss(other, targets).values, terms.values, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["dice", "tversky", "jaccard"])
def test_class_weights_of_overlap_work(name):
    outputs, targets = data(MASKS)
    each = [L.make(f"{name}(class_weights={[float(k == j) for j in range(K)]})")(outputs, targets).values
            for k in range(K)]  # fmt: skip
    expected = sum(w * part for w, part in zip(WEIGHTS, each, strict=True)) / sum(WEIGHTS)
    weighted = L.make(f"{name}(class_weights={WEIGHTS})").double()(outputs, targets).values
    torch.testing.assert_close(weighted, expected, rtol=0, atol=1e-12)
    assert not torch.allclose(weighted, L.make(name)(outputs, targets).values)


def test_absent_classes_can_be_left_out():
    outputs, _ = data(MASKS)
    targets = torch.zeros(B, 3, 2, dtype=torch.long)
    alone = L.dice(outputs, targets, class_weights=torch.tensor([1.0, 0, 0, 0])).values
    torch.testing.assert_close(L.dice(outputs, targets, skip_absent=True).values, alone)
    none = L.dice(outputs, torch.zeros(B, K, 3, 2), activation="sigmoid", skip_absent=True)
    assert none.weights.tolist() == [0.0] * B


@pytest.mark.parametrize(("text", "kind"), [*LOSSES, *COUPLED])
def test_autocast_changes_nothing(text, kind):
    """Weights and similarities are summed in float32, also where autocast would take products in bfloat16."""
    loss, (outputs, targets) = L.make(text), data(kind, dtype=torch.float32)
    plain = L.as_terms(loss(outputs, targets), B)
    with torch.autocast("cpu", torch.bfloat16):
        under = L.as_terms(loss(outputs, targets), B)
    assert torch.equal(plain.values, under.values)
    assert (plain.weights is None) == (under.weights is None)
    assert plain.weights is None or torch.equal(plain.weights, under.weights)


@pytest.mark.parametrize("name", ["focal", "poly1", "asymmetric_softmax", "dice", "tversky", "jaccard"])
def test_indices_and_one_hot_rows_are_the_same(name):
    outputs, targets = data(MASKS)
    rows = torch.nn.functional.one_hot(targets, K).movedim(-1, 1).double()
    loss = L.make(name)
    torch.testing.assert_close(loss(outputs, targets).values, loss(outputs, rows).values, rtol=0, atol=1e-14)


def test_binary_masks_with_and_without_their_channel():
    logits, masks = torch.randn(3, 1, 5, 5), (torch.rand(3, 5, 5) < 0.5).long()
    torch.testing.assert_close(L.dice(logits, masks).values, L.dice(logits, masks[:, None].float()).values)
    with pytest.raises(UsageError, match=r"outputs have shape \(3, 1, 5, 5\), targets \(3, 4, 5\)"):
        L.dice(logits, masks[:, 1:])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: L.focal(torch.zeros(2, 3), torch.zeros(2, 4)),
            r"logits have shape \(2, 3\), floating targets \(2, 4\)",
        ),
        (lambda: L.poly1(torch.zeros(2, 3), torch.zeros(3).long()), r"integer targets \(3,\)"),
        (
            lambda: L.dice(torch.zeros(2, 3), torch.zeros(2, 3), ignore_index=1),
            "ignore_index = 1 with targets that are",
        ),
        (
            lambda: L.dice(torch.zeros(2, 3), torch.zeros(2).long(), class_weights=torch.ones(2)),
            "2 class weights for 3",
        ),
        (lambda: L.supervised_contrastive(torch.zeros(2, 3), torch.zeros(2, 3)), "mixed targets"),
        (lambda: L.Dice(activation="sigmod"), "did you mean: sigmoid"),
        (lambda: L.Dice(smooth=-1), "smooth = -1"),
        (lambda: L.Huber(delta=0), "delta = 0"),
        (lambda: L.BinaryFocal(alpha=2), "alpha = 2"),
        (lambda: L.weights_from_counts([1, 2], "inverze"), "did you mean: inverse"),
        (lambda: L.weights_from_counts([0, 0], "inverse"), "some sample of some class"),
    ],
)
def test_what_does_not_fit_is_told(call, words):
    with pytest.raises(UsageError, match=words):
        call()


def test_counts_become_weights():
    assert L.weights_from_counts([1, 3, 0], "inverse") == pytest.approx((2.0, 2 / 3, 0.0))
    assert L.weights_from_counts([5, 5], "effective") == pytest.approx((1.0, 1.0))
    assert L.positive_weights([2, 0, 8], 8) == (3.0, 1.0, 1.0)
