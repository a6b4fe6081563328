"""Policies: what was drawn belongs to samples, what is done does not depend on pieces, threads or company."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kiln.augment import CHOICES, Mixing, chunks, mix_targets, partners, policy
from kiln.augment.operations import NAMES
from kiln.augment.photographic import COLUMNS, NUM_COLUMNS
from kiln.augment.recycled import recycled_like
from kiln.errors import UsageError

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
NAMED = (*CHOICES, "rand(3,30)")


def keys(num):
    return np.arange(num, dtype=np.uint64) * 9176


def levels(num=24, channels=3, size=(40, 36)):
    return torch.from_numpy(np.random.default_rng(3).integers(0, 256, (num, channels, *size), np.uint8))


@pytest.mark.parametrize("text", NAMED)
@pytest.mark.parametrize("normalised", [True, False])
def test_any_cut_and_any_number_of_threads_give_the_same_bits(text, normalised, monkeypatch):
    chosen, images = policy(text, vflip=0.3), levels()
    before, params = images.clone(), chosen.draw(1, 2, keys(24))
    how: dict[str, Any] = {"mean": MEAN, "std": STD} if normalised else {}
    whole = chosen(images, params, **how).clone()
    assert whole.dtype == (torch.float32 if normalised else torch.uint8)
    assert torch.equal(images, before)
    threads = torch.get_num_threads()
    try:
        for num_threads, num_values in ((1, 1), (2, 5000), (3, 10**7)):
            torch.set_num_threads(num_threads)
            monkeypatch.setattr(chunks, "CHUNK_VALUES", num_values)
            assert torch.equal(chosen(images, params, **how), whole)
            parts = [chosen(images[rows], params[rows], **how) for rows in (slice(0, 7), slice(7, 24))]
            assert torch.equal(torch.cat(parts), whole)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("text", NAMED)
def test_one_channel_other_dtypes_and_empty_batches(text):
    chosen, images = policy(text), levels(channels=1)
    params = chosen.draw(1, 2, keys(24))
    exact = chosen(images, params, mean=MEAN[:1], std=STD[:1])
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(chosen(images, params, mean=MEAN[:1], std=STD[:1], dtype=dtype), exact.to(dtype))
    if text not in ("standard", "strong"):  # these erase with another colour
        back = exact * (255 * STD[0]) + 255 * MEAN[0]
        torch.testing.assert_close(chosen(images, params).float(), back, rtol=0, atol=1e-3)
    empty = chosen(images[:0], params[:0], mean=MEAN[:1], std=STD[:1])
    assert (empty.shape, empty.dtype) == ((0, 1, 40, 36), torch.float32)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(NAMED), st.integers(0, 2**63), st.integers(0, 1000), st.integers(1, 30), st.integers(0, 30))
def test_parameters_belong_to_samples_not_to_batches(text, seed, epoch, num, cut):
    chosen, cut = policy(text), min(cut, num)
    whole = chosen.draw(seed, epoch, keys(num))
    assert (len(whole), whole.dtype) == (num, np.float64)
    assert np.array_equal(
        np.concatenate([chosen.draw(seed, epoch, k) for k in (keys(num)[:cut], keys(num)[cut:])]), whole
    )
    assert text == "none" or not np.array_equal(chosen.draw(seed, epoch + 1, keys(num)), whole)


def test_without_anything_drawn_the_warp_and_colour_policy_changes_nothing():
    chosen, images = policy("strong", hflip=0.0), levels()
    params = np.zeros((24, NUM_COLUMNS))
    for name in ("scale", "brightness", "contrast", "saturation", "gamma"):
        params[:, COLUMNS[name]] = 1.0
    assert torch.equal(chosen(images, params), images)


def test_how_often_standard_does_what():
    params = policy("standard").draw(0, 0, keys(4000))
    for name, share in (("angle", 0.5), ("brightness", 1.0), ("hue", 0.0), ("blur", 0.0)):
        idle = 1.0 if name == "brightness" else 0.0
        assert (params[:, COLUMNS[name]] != idle).mean() == pytest.approx(share, abs=0.03)
    assert (params[:, COLUMNS["box"]][:, 2] > 0).mean() == pytest.approx(0.25, abs=0.03)
    area = params[:, COLUMNS["box"]][:, 2:].prod(1)
    assert area.max() < 0.34
    assert np.abs(params[:, COLUMNS["angle"]]).max() == pytest.approx(10.0, abs=0.1)
    assert np.abs(params[:, COLUMNS["contrast"]] - 1).max() == pytest.approx(0.3, abs=0.01)


def test_how_often_operations_come():
    trivial = policy("trivial").draw(0, 0, keys(14000))[:, 2]
    counts = np.bincount(trivial.astype(int), minlength=15)
    assert counts[NAMES.index("Invert")] == 0
    assert counts[:14] == pytest.approx(1000, abs=150)
    rotations = policy("rand(1,30)").draw(0, 0, keys(14000))[:, 2:]
    rotations = rotations[rotations[:, 0] == NAMES.index("Rotate"), 1]
    assert set(rotations) == {-30.0, 30.0}
    assert (rotations < 0).mean() == pytest.approx(0.5, abs=0.06)
    done = (policy("autoaugment(svhn)").draw(0, 0, keys(4000))[:, [2, 4]] > 0).mean(0)
    assert done == pytest.approx([0.704, 0.572], abs=0.06)  # the mean probabilities of the table


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("standart", "augment.policy = 'standart'.*did you mean: standard"),
        ("rand(0,9)", "rand.n,m.: 1 to 10 operations"),
        ("rand(2,31)", "from 0 to 30"),
        ("rand(2,9,1)", "rand.n,m."),
        ("rand(two)", "rand.n,m."),
        ("autoaugment(cifar)", "did you mean: cifar10"),
        ("light(3)", "light, which takes no arguments"),
        ("", "choices: none, light"),
    ],
)
def test_unknown_policies(text, words):
    with pytest.raises(UsageError, match="(?s)" + words):
        policy(text)


def test_mean_and_std_come_together_and_fit():
    chosen, images = policy("light"), levels(2)
    params = chosen.draw(0, 0, keys(2))
    with pytest.raises(UsageError, match="only one of mean and std"):
        chosen(images, params, mean=MEAN)
    with pytest.raises(UsageError, match="mean and std have 2 and 3 values"):
        chosen(images, params, mean=MEAN[:2], std=STD)


def test_output_memory_is_used_again_only_when_nobody_looks_at_it():
    images = torch.zeros(4, 3, 512, 512, dtype=torch.uint8)
    first = recycled_like(images, torch.float32)
    first.fill_(1.0)
    part, place = first[2, :, 5:], first.data_ptr()
    del first
    gc.collect()
    second = recycled_like(images, torch.float32).fill_(2.0)
    assert second.data_ptr() != place
    assert torch.equal(part, torch.ones_like(part))
    del part
    gc.collect()
    assert recycled_like(images, torch.float32).data_ptr() == place
    last = images.to(memory_format=torch.channels_last)
    assert recycled_like(last, torch.bfloat16).stride() == last.stride()


def test_partners_are_positions_xor_one_wherever_the_batch_was_cut():
    assert partners(np.array([4, 5, 6, 7, 9])).tolist() == [1, 0, 3, 2, 4]
    assert partners(np.array([7, 2, 6, 3])).tolist() == [2, 3, 0, 1]
    assert partners(np.array([], np.int64)).tolist() == []


@pytest.mark.parametrize("mixing", [Mixing(), Mixing(0.0, 1.0), Mixing(0.8, 1.0, p=0.7), Mixing(0.0, 0.0)])
def test_mixed_images_and_targets_agree(mixing):
    num, positions = 64, np.arange(64) + 10
    positions = np.delete(np.arange(66), [20, 31])
    # each image is one level everywhere, so its mean tells how much of each it holds
    images = torch.arange(num).float().view(-1, 1, 1, 1).expand(-1, 3, 50, 50).contiguous()
    params = mixing.draw(5, 1, keys(num))
    mixed, partner, lam = mixing(images, params, positions)
    targets = mix_targets(torch.eye(num), partner, lam)
    torch.testing.assert_close(mixed.mean((1, 2, 3)), targets @ torch.arange(num).float(), rtol=0, atol=1e-3)
    torch.testing.assert_close(targets.sum(1), torch.ones(num))
    alone = (partner == torch.arange(num)).nonzero()[:, 0].tolist()
    assert [int(positions[row]) for row in alone] == [21, 30]
    assert torch.equal(mixed[alone], images[alone])
    assert bool((lam < 1).any()) == (mixing.mixup_alpha + mixing.cutmix_alpha > 0)
    even = slice(0, 20)
    again = mixing(images[even], params[even], positions[even])[0]
    assert torch.equal(again, mixed[even])


@pytest.mark.parametrize("alpha", [0.2, 0.4, 1.0, 3.0])
def test_lambda_is_beta_distributed(alpha):
    lam = Mixing(alpha).draw(0, 0, keys(20000))[:, 0]
    expected = np.random.default_rng(0).beta(alpha, alpha, 20000)
    levels = np.linspace(0.05, 0.95, 19)
    assert np.quantile(lam, levels) == pytest.approx(np.quantile(expected, levels), abs=0.025)


def test_mixing_refuses_what_it_cannot():
    with pytest.raises(UsageError, match="mixup_alpha = -1"):
        Mixing(-1)
    with pytest.raises(UsageError, match=r"p = 2"):
        Mixing(p=2)
    with pytest.raises(UsageError, match=r"(?s)targets are torch.int64.*one_hot"):
        mix_targets(torch.arange(3), torch.arange(3), torch.ones(3))
