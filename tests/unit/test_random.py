"""Random numbers: published known answers, uniformity, independence, no dependence on how they are asked for."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiln import random
from kiln.random import Purpose

seeds = st.integers(-(2**63), 2**64)
samples = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=40)

# Random123 1.09, tests/kat_vectors, the lines "philox4x32 10": counter, key, result.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text):
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_known_answers(counter, key, result):
    assert random.philox(np.array(words(counter), np.uint64), tuple(words(key))).tolist() == words(result)


def test_known_answers_at_once():
    counters = np.array([words(counter) for counter, _, _ in KNOWN_ANSWERS], np.uint64)
    for row, (_, key, result) in enumerate(KNOWN_ANSWERS):
        assert random.philox(counters, tuple(words(key)))[row].tolist() == words(result)


def test_numbers_are_part_of_the_format():
    # A changed number would silently give every recorded run other data: this may only change with a format version.
    assert random.bits(0, Purpose.ORDER, sample=1, num_draws=2).tolist() == [14937042565392218313, 7298815068142483894]
    assert random.permutation(7, 3, random.keys_of([f"{i}.jpg" for i in range(8)])).tolist() == [2, 6, 1, 3, 5, 7, 4, 0]
    assert random.key_of("cats/ä.jpg") == 13510891743429260233
    assert {purpose.name: purpose.value for purpose in Purpose}["BOOTSTRAP"] == 9


@settings(max_examples=60, deadline=None)
@given(seeds, samples, st.integers(0, 2**32 - 1), st.integers(1, 9), st.data())
def test_same_numbers_for_any_split_and_order(seed, keys, epoch, num_draws, data):
    keys = np.array(keys, np.uint64)
    whole = random.bits(seed, Purpose.CROP, epoch=epoch, sample=keys, num_draws=num_draws)
    assert whole.shape == (len(keys), num_draws)
    assert whole.dtype == np.uint64
    order = np.array(data.draw(st.permutations(range(len(keys)))))
    cut = data.draw(st.integers(0, len(keys)))
    shuffled = np.concatenate(
        [
            random.bits(seed, Purpose.CROP, epoch=epoch, sample=keys[part], num_draws=num_draws)
            for part in (order[:cut], order[cut:])
            if len(part)
        ]
    )
    assert np.array_equal(shuffled, whole[order])
    fewer = data.draw(st.integers(1, num_draws))
    one = random.bits(seed, Purpose.CROP, epoch=epoch, sample=int(keys[0]), num_draws=fewer)
    assert one.tolist() == whole[0, :fewer].tolist()


def test_epochs_and_samples_broadcast():
    keys = np.arange(6, dtype=np.uint64)
    table = random.bits(1, Purpose.NOISE, epoch=np.arange(4)[:, None], sample=keys, num_draws=3)
    assert table.shape == (4, 6, 3)
    assert np.array_equal(table[2], random.bits(1, Purpose.NOISE, epoch=2, sample=keys, num_draws=3))


def chi2_is_likely(counts, expected):
    """Whether chi-square lies within five sigma of its mean: far out it would be a broken generator."""
    degrees = counts.size - 1
    chi2 = np.square(counts - expected).sum() / expected
    return abs(chi2 - degrees) < 5 * math.sqrt(2 * degrees)


@pytest.mark.parametrize("purpose", list(Purpose))
def test_uniform_over_samples_epochs_and_draws(purpose):
    for arguments in (
        {"sample": np.arange(40_000)},
        {"sample": random.keys_of([f"class/{i}.png" for i in range(40_000)])},
        {"epoch": np.arange(40_000)},
        {"num_draws": 40_000},
    ):
        values = random.uniform(3, purpose, **arguments).ravel()
        assert values.size == 40_000
        assert values.min() >= 0
        assert values.max() < 1
        assert chi2_is_likely(np.bincount((values * 256).astype(int), minlength=256), 40_000 / 256)


def test_low_bits_are_as_good_as_high_ones():
    raw = random.bits(5, Purpose.FLIP, sample=np.arange(50_000))[:, 0]
    for bit in range(64):
        ones = int(((raw >> np.uint64(bit)) & np.uint64(1)).sum())
        assert abs(ones - 25_000) < 5 * math.sqrt(50_000 / 4)


def test_purposes_seeds_and_epochs_are_independent():
    keys = np.arange(20_000, dtype=np.uint64)
    streams = [random.uniform(0, purpose, sample=keys)[:, 0] for purpose in Purpose]
    streams += [random.uniform(seed, Purpose.ORDER, sample=keys)[:, 0] for seed in (1, 2, -1, 2**32)]
    streams += [random.uniform(0, Purpose.ORDER, epoch=epoch, sample=keys)[:, 0] for epoch in (1, 2, 3)]
    streams += [random.uniform(0, Purpose.ORDER, sample=keys, num_draws=3)[:, draw] for draw in (1, 2)]
    correlations = np.corrcoef(streams) - np.eye(len(streams))
    assert len(streams) >= 20
    assert np.abs(correlations).max() < 5.5 / math.sqrt(len(keys))
    pairs = (streams[0] * 16).astype(int) * 16 + (streams[1] * 16).astype(int)
    assert chi2_is_likely(np.bincount(pairs, minlength=256), len(keys) / 256)


def test_no_number_is_shared_between_purposes_or_blocks():
    seen = np.concatenate(
        [random.bits(0, purpose, epoch=[[0], [1]], sample=np.arange(500), num_draws=20).ravel() for purpose in Purpose]
    )
    assert len(seen) == len(Purpose) * 2 * 500 * 20
    assert len(np.unique(seen)) == len(seen)


@settings(max_examples=200, deadline=None)
@given(seeds, st.integers(0, 2**32 - 1), st.integers(0, 2000))
def test_permutations_are_exact(seed, epoch, n):
    order = random.permutation(seed, epoch, np.arange(n, dtype=np.uint64))
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), np.arange(n))


@settings(max_examples=60, deadline=None)
@given(seeds, st.lists(st.text(min_size=1), min_size=1, max_size=60, unique=True), st.data())
def test_the_order_of_an_epoch_follows_the_samples_not_their_indices(seed, names, data):
    shuffled = data.draw(st.permutations(names))
    ordered = [names[i] for i in random.permutation(seed, 4, random.keys_of(names))]
    assert [shuffled[i] for i in random.permutation(seed, 4, random.keys_of(shuffled))] == ordered
    without_first = shuffled[1:]
    assert [without_first[i] for i in random.permutation(seed, 4, random.keys_of(without_first))] == [
        name for name in ordered if name != shuffled[0]
    ]


def test_duplicates_keep_their_order():
    keys = np.array([9, 4, 9, 4, 9], np.uint64)
    order = random.permutation(0, 0, keys)
    assert sorted(order) == [0, 1, 2, 3, 4]
    for key in (4, 9):
        places = [i for i in order if keys[i] == key]
        assert places == sorted(places)


def test_every_place_is_equally_likely():
    keys = np.arange(6, dtype=np.uint64)
    counts = np.zeros((6, 6))
    for epoch in range(3000):
        counts[random.permutation(0, epoch, keys), np.arange(6)] += 1
    assert chi2_is_likely(counts, 3000 / 6)


def test_keys_come_from_text_alone():
    assert random.keys_of(["a", "b"]).tolist() == [random.key_of("a"), random.key_of("b")]
    assert random.keys_of([]).shape == (0,)
    assert random.key_of("\udcff.jpg") != random.key_of("ÿ.jpg")  # a file name that is no UTF-8
    assert len({random.key_of(f"{i}.jpg") for i in range(20_000)}) == 20_000


@given(seeds, st.integers(0, 2**32 - 1), st.integers(0, 2**20), st.integers(0, 2**20))
@settings(max_examples=60, deadline=None)
def test_torch_seeds_are_valid_and_distinct(seed, step, micro, rank):
    value = random.torch_seed(seed, Purpose.DROPOUT, step=step, micro=micro, rank=rank)
    assert 0 <= value < 2**63
    assert value == random.torch_seed(seed, Purpose.DROPOUT, step=step, micro=micro, rank=rank)
    others = {
        random.torch_seed(seed, Purpose.DROPOUT, step=step, micro=micro + 1, rank=rank),
        random.torch_seed(seed, Purpose.DROPOUT, step=step, micro=micro, rank=rank + 1),
        random.torch_seed(seed, Purpose.INIT, step=step, micro=micro, rank=rank),
    }
    assert len(others | {value}) == 4
