"""Losses: the maths against torch, gradients in float64, extreme logits, and the contract with a user's own loss."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from kiln.errors import UsageError
from kiln.losses import (
    BinaryCrossEntropy,
    CrossEntropy,
    LossTerms,
    MeanSquaredError,
    as_terms,
    binary_cross_entropy,
    cross_entropy,
    is_coupled,
    make,
    mse,
)

B, K = 7, 5


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def logits_and_targets():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(B, K, generator=generator, dtype=torch.float64)
    return logits, torch.randint(K, (B,), generator=generator)


def mean(terms):
    if terms.weights is None:
        return terms.values.mean()
    return (terms.values * terms.weights).sum() / terms.weights.sum()


def soft_targets():
    return torch.softmax(torch.randn(B, K, generator=torch.Generator().manual_seed(1), dtype=torch.float64), 1)


CLASS_WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 3.0, 0.25], dtype=torch.float64)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("class_weights", [None, CLASS_WEIGHTS])
def test_cross_entropy_of_class_indices_has_the_mean_of_torch(smoothing, class_weights):
    logits, targets = logits_and_targets()
    ours = mean(cross_entropy(logits, targets, smoothing=smoothing, class_weights=class_weights))
    torchs = F.cross_entropy(logits, targets, weight=class_weights, label_smoothing=smoothing)
    assert abs(ours - torchs) < 1e-12


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_of_soft_targets_has_the_mean_of_torch(smoothing):
    logits, _ = logits_and_targets()
    ours = mean(cross_entropy(logits, soft_targets(), smoothing=smoothing))
    assert abs(ours - F.cross_entropy(logits, soft_targets(), label_smoothing=smoothing)) < 1e-12


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("class_weights", [None, CLASS_WEIGHTS])
def test_a_one_hot_row_is_the_same_as_its_index(smoothing, class_weights):
    logits, targets = logits_and_targets()
    one_hot = F.one_hot(targets, K).double()
    by_index = cross_entropy(logits, targets, smoothing=smoothing, class_weights=class_weights)
    by_row = cross_entropy(logits, one_hot, smoothing=smoothing, class_weights=class_weights)
    torch.testing.assert_close(by_index.values, by_row.values, rtol=0, atol=1e-12)
    torch.testing.assert_close(by_index.weights, by_row.weights, rtol=0, atol=1e-12)


@pytest.mark.parametrize("cut", range(1, B))
def test_weighted_means_do_not_depend_on_how_the_batch_is_cut(cut):
    logits, targets = logits_and_targets()
    parts = [slice(0, cut), slice(cut, B)]
    terms = [cross_entropy(logits[part], targets[part], class_weights=CLASS_WEIGHTS) for part in parts]
    total = sum((t.values * t.weights).sum() for t in terms) / sum(t.weights.sum() for t in terms)
    assert abs(total - F.cross_entropy(logits, targets, weight=CLASS_WEIGHTS)) < 1e-12


def test_a_class_of_weight_zero_gives_no_loss_and_no_gradient():
    logits, targets = logits_and_targets()
    logits.requires_grad_()
    weights = torch.ones(K, dtype=torch.float64)
    weights[targets[0]] = 0.0
    terms = cross_entropy(logits, targets, class_weights=weights)
    (terms.values * terms.weights).sum().backward()
    assert torch.isfinite(terms.values).all()
    assert not logits.grad[targets == targets[0]].any()
    assert logits.grad[targets != targets[0]].all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_binary_cross_entropy_against_the_formula(smoothing):
    logits, _ = logits_and_targets()
    targets = (soft_targets() > 0.2).double()
    pos_weight = CLASS_WEIGHTS
    ours = binary_cross_entropy(logits, targets, smoothing=smoothing, pos_weight=pos_weight).values
    smooth = targets * (1 - smoothing) + smoothing / 2
    p = torch.sigmoid(logits)
    naive = -(pos_weight * smooth * p.log() + (1 - smooth) * (1 - p).log()).mean(1)
    torch.testing.assert_close(ours, naive, rtol=0, atol=1e-12)


def test_squared_error_is_averaged_over_each_sample():
    outputs, targets = torch.randn(B, 3, 2, dtype=torch.float64), torch.randn(B, 3, 2, dtype=torch.float64)
    terms = mse(outputs, targets)
    assert terms.values.shape == (B,)
    assert abs(terms.values.mean() - F.mse_loss(outputs, targets)) < 1e-12
    torch.testing.assert_close(
        mse(outputs[:, 0, 0], targets[:, 0, 0]).values.mean(), F.mse_loss(outputs[:, 0, 0], targets[:, 0, 0])
    )


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: cross_entropy(x, logits_and_targets()[1]).values,
        lambda x: cross_entropy(x, logits_and_targets()[1], smoothing=0.1, class_weights=CLASS_WEIGHTS).values,
        lambda x: cross_entropy(x, soft_targets(), smoothing=0.1, class_weights=CLASS_WEIGHTS).values,
        lambda x: binary_cross_entropy(x, soft_targets(), smoothing=0.1, pos_weight=CLASS_WEIGHTS).values,
        lambda x: mse(x, soft_targets()).values,
    ],
)
def test_gradients_in_float64(loss):
    logits = logits_and_targets()[0].requires_grad_()
    assert torch.autograd.gradcheck(loss, (logits,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_extreme_logits_stay_finite_with_their_gradients(dtype):
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], dtype=dtype, requires_grad=True)
    targets = torch.tensor([1, 0])
    rows = torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.0, 0.5]])
    for terms in (
        cross_entropy(logits, targets, smoothing=0.1, class_weights=CLASS_WEIGHTS[:3]),
        cross_entropy(logits, rows.to(logits.dtype if dtype == torch.float64 else torch.float32), smoothing=0.1),
        binary_cross_entropy(logits, rows, smoothing=0.1),
    ):
        assert terms.values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        (gradient,) = torch.autograd.grad(terms.values.sum(), logits)
        assert torch.isfinite(terms.values).all()
        assert torch.isfinite(gradient).all()
    assert abs(cross_entropy(logits, targets).values[0].item() / 2e4 - 1) < 1e-2


def test_half_precision_outputs_are_raised_before_the_sum():
    logits = torch.randn(64, 1000).bfloat16()
    targets = torch.zeros(64, dtype=torch.long)
    assert torch.equal(cross_entropy(logits, targets).values, cross_entropy(logits.float(), targets).values)


def test_modules_are_their_functions_and_carry_no_state():
    logits, targets = logits_and_targets()
    weighted = CrossEntropy(smoothing=0.1, class_weights=[0.5, 2, 1, 3, 0.25])
    expected = cross_entropy(logits, targets, smoothing=0.1, class_weights=CLASS_WEIGHTS)
    assert torch.equal(weighted(logits, targets).values, expected.values)
    assert weighted.state_dict() == {}
    assert weighted.to(torch.float64).class_weights.dtype == torch.float64
    rows = F.one_hot(targets, K)
    assert torch.equal(BinaryCrossEntropy()(logits, rows).values, binary_cross_entropy(logits, rows).values)
    assert torch.equal(MeanSquaredError()(logits, logits).values, torch.zeros(B, dtype=torch.float64))


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan")])
@pytest.mark.parametrize("module", [CrossEntropy, BinaryCrossEntropy])
def test_smoothing_out_of_range(module, smoothing):
    with pytest.raises(UsageError, match="expected: 0 <= smoothing < 1"):
        module(smoothing=smoothing)


@pytest.mark.parametrize("weights", [[1.0, -1.0], [1.0, float("inf")], [[1.0], [2.0]]])
def test_weights_that_are_none(weights):
    with pytest.raises(UsageError, match=r"class_weights = .*\n  expected: one finite number >= 0 for each class"):
        CrossEntropy(class_weights=weights)
    with pytest.raises(UsageError, match="pos_weight = "):
        BinaryCrossEntropy(pos_weight=weights)


@pytest.mark.parametrize("loss", [mse, binary_cross_entropy])
def test_nothing_is_broadcast(loss):
    with pytest.raises(UsageError, match=r"outputs have shape \(7, 1\), targets \(7,\)[\s\S]*same shape for both"):
        loss(torch.zeros(7, 1), torch.zeros(7))


def test_a_scalar_is_the_mean_over_the_samples():
    logits, targets = logits_and_targets()
    logits.requires_grad_()
    scalar = F.cross_entropy(logits, targets)
    terms = as_terms(scalar, B)
    assert terms.values.shape == (B,)
    assert terms.weights is None
    (ours,) = torch.autograd.grad(mean(terms), logits, retain_graph=True)
    (direct,) = torch.autograd.grad(scalar, logits)
    torch.testing.assert_close(ours, direct, rtol=0, atol=1e-15)


def test_terms_and_per_sample_values_pass_through():
    values = torch.rand(B)
    assert as_terms(values, B).values is values
    terms = LossTerms(values, torch.rand(B))
    assert as_terms(terms, B) is terms
    assert as_terms(LossTerms(torch.tensor(2.0)), 3).values.tolist() == [2.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (torch.zeros(B, K), r"shape \(7, 5\) for a batch of 7"),
        (torch.zeros(1), r"shape \(1,\) for a batch of 7"),
        (LossTerms(torch.zeros(3)), r"shape \(3,\) for a batch of 7"),
        (torch.zeros(B, dtype=torch.long), "torch.int64, which has no gradient"),
        (1.5, "returned float, not a tensor"),
        (None, "returned NoneType, not a tensor"),
        ((torch.zeros(B), torch.zeros(B)), "returned tuple, not a tensor"),
    ],
)
def test_other_results_are_refused_and_the_call_is_corrected(result, words):
    with pytest.raises(UsageError, match=words) as caught:
        as_terms(result, B)
    assert caught.value.code == "E107"
    assert "flatten(1).mean(1)" in str(caught.value)


def test_coupled_is_an_attribute():
    class Dice(torch.nn.Module):
        coupled = True

    assert is_coupled(Dice())
    assert not is_coupled(CrossEntropy())
    assert not is_coupled(F.cross_entropy)


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


def test_plain_cross_entropy_costs_what_torch_costs():
    logits, targets = logits_and_targets()
    with Operations() as ours:
        as_terms(CrossEntropy(smoothing=0.0)(logits.float(), targets), B)
    with Operations() as torchs:
        F.cross_entropy(logits.float(), targets, reduction="none")
    assert len(torchs.names) >= 2
    assert ours.names == torchs.names


# What a sum of losses makes of samples that one of them says nothing of.


def test_a_lone_anchor_keeps_its_cross_entropy():
    logits, targets = torch.randn(4, 3, generator=seeded(0)), torch.tensor([0, 0, 1, 2])
    both = as_terms(make("cross_entropy + 0.5*supervised_contrastive")(logits, targets), 4)
    alone = make("supervised_contrastive")(logits, targets)
    expected = F.cross_entropy(logits, targets, reduction="none") + 0.5 * alone.values * alone.weights
    assert both.weights is None
    torch.testing.assert_close(both.values, expected)
    assert alone.weights.tolist() == [1, 1, 0, 0]


def test_cross_entropy_and_dice_leave_out_the_same_positions():
    logits, targets = torch.randn(4, 3, 8, 8, generator=seeded(1)), torch.randint(3, (4, 8, 8), generator=seeded(2))
    targets[0, :2] = 255
    targets[1] = 255  # nothing counts
    both = make("cross_entropy(ignore_index=255) + 0.5*dice(ignore_index=255)")(logits, targets)
    entropy, overlap = (make(f"{name}(ignore_index=255)")(logits, targets) for name in ("cross_entropy", "dice"))
    torch.testing.assert_close(both.weights, entropy.weights)
    torch.testing.assert_close(both.values[[0, 2, 3]], (entropy.values + 0.5 * overlap.values)[[0, 2, 3]])
    assert both.weights[1] == 0


def test_a_sum_of_overlaps_leaves_out_images_of_which_nobody_says_anything():
    logits, targets = torch.randn(3, 3, 4, 4, generator=seeded(3)), torch.randint(3, (3, 4, 4), generator=seeded(4))
    targets[1] = 255
    terms = make("dice(ignore_index=255) + tversky(ignore_index=255)")(logits, targets)
    assert terms.weights.tolist() == [1, 0, 1]


@pytest.mark.parametrize("name", ["cross_entropy", "focal", "poly1", "asymmetric_softmax", "dice"])
@pytest.mark.parametrize("wrong", [-100, -1, 3, 255])
def test_an_index_that_is_no_class_is_refused(name, wrong):
    targets = torch.tensor([0, wrong, 2])
    with pytest.raises(UsageError, match=rf"a target is class {wrong}, and there are 3 classes"):
        make(name)(torch.randn(3, 3), targets)


@pytest.mark.parametrize("name", ["dice", "binary_cross_entropy", "binary_focal", "asymmetric"])
def test_masks_of_0_and_255_are_refused(name):
    mask = 255 * torch.randint(2, (2, 1, 4, 4), generator=seeded(5))
    with pytest.raises(UsageError, match="targets lie between 0 and 255") as caught:
        make(name)(torch.randn(2, 1, 4, 4), mask)
    assert "/ 255" in caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "focal(gamma='a')", "cross_entropy(smoothing='x')", "tversky(alpha='a')", "huber(delta='x')", "poly1(epsilon=-2)",
        "cross_entropy(class_weights='inverse')", "cross_entropy(ignore_index=1.5)", "dice(per_batch='false')",
        "tversky(alpha=0,beta=0)", "mse(reduction='sum')", "mae(foo=1)", "l1_outputs(weight=3)",
    ],
)  # fmt: skip
def test_a_setting_of_another_kind_or_without_effect_is_refused(text):
    with pytest.raises(UsageError):
        make(text)


def test_generalized_dice_weighs_classes():
    logits, targets = torch.randn(2, 3, 4, 4, generator=seeded(6)), torch.randint(3, (2, 4, 4), generator=seeded(7))
    plain, even, one = (
        make(f"generalized_dice{text}")(logits, targets).values
        for text in ("", "(class_weights=[2,2,2])", "(class_weights=[0,0,1])")
    )
    torch.testing.assert_close(even, plain)
    p, t = logits.softmax(1)[:, 2].flatten(1), (targets == 2).flatten(1).float()
    torch.testing.assert_close(one, 1 - 2 * (p * t).sum(1) / (p + t).sum(1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "meant"), [("ce", "cross_entropy"), ("BCE", "binary_cross_entropy"), ("supcon", "supervised_contrastive")]
)
def test_names_from_elsewhere_find_the_loss(name, meant):
    with pytest.raises(UsageError) as caught:
        make(name)
    assert caught.value.suggestion == meant


def test_weights_of_another_shape_are_refused():
    with pytest.raises(UsageError, match=r"weights of shape \(4, 1\) for 4 samples"):
        as_terms(LossTerms(torch.zeros(4), torch.ones(4, 1)), 4)
