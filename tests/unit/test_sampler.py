"""The order of samples: each once per epoch, for any cut, any number of processes, any way of accumulating."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kiln.data.sampler import (
    Balanced,
    Cut,
    Foreign,
    Remembered,
    Repeated,
    Sequential,
    Shuffle,
    Weighted,
    class_weights,
    take_fraction,
)
from kiln.errors import UsageError
from kiln.random import keys_of


def shuffle_of(num, seed=0):
    indices = np.arange(num) * 3 + 1  # samples of a larger source
    return Shuffle(indices, keys_of([f"{index}.jpg" for index in indices]), seed=seed)


def ids(shuffle, cut, step):
    epoch, positions, _ = cut.positions(step)
    return shuffle.epoch(epoch).indices[positions].tolist()


shapes = st.tuples(st.integers(1, 2000), st.integers(1, 300), st.integers(1, 9), st.booleans())


@settings(max_examples=1000, deadline=None)
@given(shapes, st.integers(0, 2**64 - 1), st.data())
def test_an_epoch_is_exact_for_any_world_size_and_cut(shape, seed, data):
    """Every epoch is a permutation or the prefix of one; the ranks' union is the global slice; a cut changes nothing."""
    num, batch_size, world_size, drop_last = shape
    assume(num >= batch_size or not drop_last)
    # Keys from numbers: naming 2,000 files for each of 1,000 examples would be most of the test's time.
    shuffle = Shuffle(np.arange(num), np.arange(num, dtype=np.uint64), seed=seed)
    cuts = [Cut(num, batch_size, drop_last, rank, world_size) for rank in range(world_size)]
    alone = Cut(num, batch_size, drop_last)
    steps = alone.steps_per_epoch
    assert {cut.steps_per_epoch for cut in cuts} == {steps}  # nobody waits for a step that another has not
    epoch = data.draw(st.integers(0, 3))
    seen = []
    for step in range(epoch * steps, (epoch + 1) * steps):
        of, positions, size = alone.positions(step)
        assert of == epoch
        assert len(positions) == size
        shares = [cut.positions(step) for cut in cuts]
        assert {(e, s) for e, _, s in shares} == {(epoch, size)}
        assert np.array_equal(np.concatenate([p for _, p, _ in shares]), positions)  # in order of ranks, none twice
        assert max(len(p) for _, p, _ in shares) - min(len(p) for _, p, _ in shares) <= 1
        seen.append(positions)
    order = shuffle.epoch(epoch).indices
    taken = order[np.concatenate(seen)]
    assert np.array_equal(taken, order[: len(taken)])
    assert len(taken) == (num - num % batch_size if drop_last else num)
    assert np.array_equal(np.sort(order), np.arange(num))
    assert len(np.unique(taken)) == len(taken)


@settings(max_examples=150, deadline=None)
@given(
    st.tuples(st.integers(1, 200), st.integers(1, 60), st.integers(1, 5), st.booleans()), st.integers(1, 40), st.data()
)
def test_nothing_is_missing_or_twice_across_a_cut_even_with_another_number_of_processes(shape, micro, data):
    """Killed after any step and resumed with other processes and micro-batches: the stream of samples is one."""
    num, batch_size, world_size, drop_last = shape
    assume(num >= batch_size or not drop_last)
    whole, steps = Cut(num, batch_size, drop_last), Cut(num, batch_size, drop_last).steps_per_epoch
    assume(steps <= 40)
    stop = data.draw(st.integers(0, 2 * steps))

    def stream(first, last, world_size):
        shuffle = shuffle_of(num, seed=3)  # a new process: nothing is remembered
        for step in range(first, last):
            for rank in range(world_size):
                share = ids(shuffle, Cut(num, batch_size, drop_last, rank, world_size), step)
                for start in range(0, len(share), micro):
                    yield from share[start : start + micro]

    resumed = [*stream(0, stop, world_size), *stream(stop, 2 * steps, 1 + world_size % 3)]
    assert resumed == [index for step in range(2 * steps) for index in ids(shuffle_of(num, seed=3), whole, step)]


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {(seed, epoch): tuple(shuffle_of(50, seed).epoch(epoch).indices) for seed in (0, 1) for epoch in range(3)}
    assert len(set(orders.values())) == 6
    assert {tuple(sorted(order)) for order in orders.values()} == {tuple(np.arange(50) * 3 + 1)}


def test_epochs_can_be_asked_for_in_any_order():
    shuffle = shuffle_of(40)
    first, second = shuffle.epoch(0).indices.copy(), shuffle.epoch(1).indices.copy()
    assert np.array_equal(shuffle.epoch(0).indices, first)
    assert np.array_equal(shuffle.epoch(1).indices, second)
    assert len(shuffle) == 40


def test_a_new_file_keeps_the_order_of_the_old_ones():
    names = [f"{n}.jpg" for n in range(30)]
    longer = ["0a.jpg", *names]
    few = Shuffle(np.arange(30), keys_of(names), seed=1).epoch(2).indices
    many = Shuffle(np.arange(31), keys_of(longer), seed=1).epoch(2).indices
    assert [names[i] for i in few] == [longer[i] for i in many if longer[i] != "0a.jpg"]


def test_trap_not_every_rank_reads_the_whole_data():
    cuts = [Cut(64, 16, rank=rank, world_size=4) for rank in range(4)]
    shares = [set(np.concatenate([cut.positions(step)[1] for step in range(4)]).tolist()) for cut in cuts]
    assert [len(share) for share in shares] == [16] * 4
    assert set.union(*shares) == set(range(64))


@pytest.mark.parametrize(
    ("num", "drop_last", "steps"), [(10, False, 3), (10, True, 2), (8, False, 2), (8, True, 2), (3, False, 1)]
)
def test_steps_per_epoch(num, drop_last, steps):
    assert Cut(num, 4, drop_last).steps_per_epoch == steps


def test_more_processes_than_samples_leave_some_with_nothing_to_do_in_every_step():
    shares = [Cut(2, 2, rank=rank, world_size=5).positions(7) for rank in range(5)]
    assert sorted(np.concatenate([positions for _, positions, _ in shares]).tolist()) == [0, 1]
    assert {size for _, _, size in shares} == {2}


STRATA = ["cat"] * 60 + ["dog"] * 30 + ["eel"] * 10
INDICES = np.arange(100) * 2
KEYS = keys_of([f"{index}.jpg" for index in INDICES])


def every_sampler(seed=0):
    return {
        "sequential": Sequential(INDICES),
        "shuffle": Shuffle(INDICES, KEYS, seed=seed),
        "weighted": Weighted(INDICES, class_weights(STRATA, "inverse"), seed=seed),
        "balanced": Balanced(INDICES, KEYS, STRATA, seed=seed),
        "repeated": Repeated(Shuffle(INDICES, KEYS, seed=seed), 3),
        "repeated balanced": Repeated(Balanced(INDICES, KEYS, STRATA, seed=seed), 2),
        "foreign": Foreign(INDICES, list(range(99, -1, -1)), seed=seed),
    }


@pytest.mark.parametrize("name", every_sampler())
def test_an_order_is_a_pure_function_of_seed_and_epoch(name):
    first, again = every_sampler()[name], every_sampler()[name]
    again.epoch(7)
    for epoch in (3, 0, 3):
        one, other = first.epoch(epoch), again.epoch(epoch)
        assert np.array_equal(one.indices, other.indices)
        assert len(one.indices) == len(first) == 100
        assert set(one.indices) <= set(INDICES)
    differs = [name not in ("sequential", "foreign")] * 2
    orders = [every_sampler(seed)[name].epoch(epoch).indices for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert [not np.array_equal(orders[0], order) for order in orders[1:]] == differs


@pytest.mark.parametrize("name", every_sampler())
def test_a_sample_that_comes_again_is_augmented_otherwise(name):
    order = every_sampler()[name].epoch(1)
    keys = np.zeros(300, np.uint64)
    keys[INDICES] = KEYS
    drawn = order.draw_keys(np.arange(100), keys)
    assert len(set(drawn.tolist())) == 100
    first = dict(reversed(list(zip(order.indices.tolist(), drawn.tolist(), strict=True))))
    assert all(keys[index] == key for index, key in first.items())  # the first time as if it were the only one


def test_weights_decide_how_often():
    counts = np.zeros(3)
    weighted = Weighted(INDICES, class_weights(STRATA, "inverse"), seed=0)
    for epoch in range(60):
        chosen = weighted.epoch(epoch).indices // 2
        counts += np.bincount(np.searchsorted([60, 90], chosen, side="right"), minlength=3)
    assert counts.sum() == 6000
    assert (np.abs(counts - 2000) < 150).all()  # three standard deviations are 110
    never = Weighted(INDICES, np.r_[np.zeros(99), 1.0], seed=0)
    assert set(never.epoch(0).indices) == {198}


def test_trap_weights_that_are_equal_are_no_balance():
    equal = Weighted(INDICES, np.ones(100), seed=0)
    cats = np.mean([np.mean(equal.epoch(epoch).indices < 120) for epoch in range(40)])
    assert 0.55 < cats < 0.65  # as in the data: one weight per sample, not one per class


@pytest.mark.parametrize("how", ["inverse", "sqrt", "effective"])
def test_class_weights(how):
    weights = class_weights(STRATA, how)
    cat, dog, eel = weights[0], weights[60], weights[90]
    assert len(weights) == 100
    expected = {"inverse": (0.5, 1 / 6), "sqrt": (0.5**0.5, (1 / 6) ** 0.5)}.get(how)
    if expected:
        assert (cat / dog, cat / eel) == pytest.approx(expected)
    else:
        number = {n: (1 - 0.999**n) / (1 - 0.999) for n in (60, 30, 10)}
        assert cat / eel == pytest.approx(number[10] / number[60])
    with pytest.raises(UsageError, match="choices: inverse"):
        class_weights(STRATA, "invers")


def test_balanced_gives_each_class_its_share_and_each_sample_before_one_twice():
    balanced = Balanced(INDICES, KEYS, STRATA, seed=0)
    totals = np.zeros(3)
    for epoch in range(3):
        places = balanced.epoch(epoch).indices // 2
        counts = [np.bincount(places, minlength=100)[part] for part in (slice(60), slice(60, 90), slice(90, 100))]
        shares = [int(count.sum()) for count in counts]
        assert sorted(shares) == [33, 33, 34]
        assert all(count.max() - count.min() <= 1 for count in counts)
        totals += shares
    assert totals.tolist() == [100, 100, 100]
    assert len(Balanced(INDICES[:3], KEYS[:3], ["a", "b", "c"], seed=0).epoch(0).indices) == 3


def test_repeated_augmentation_repeats_in_a_row():
    order = Repeated(Shuffle(INDICES, KEYS, seed=0), 3).epoch(0)
    assert np.array_equal(order.indices[:9].reshape(3, 3).min(1), order.indices[:9].reshape(3, 3).max(1))
    assert order.repeats[:6].tolist() == [0, 1, 2, 0, 1, 2]
    assert len(set(order.indices)) == 34


def test_fractions_are_nested_and_stratified():
    quarter = take_fraction(INDICES, KEYS, STRATA, 0.25, seed=0)
    half = take_fraction(INDICES, KEYS, STRATA, 0.5, seed=0)
    assert set(quarter) < set(half)
    assert [np.sum((half // 2 >= low) & (half // 2 < high)) for low, high in ((0, 60), (60, 90), (90, 100))] == [
        30,
        15,
        5,
    ]
    tiny = take_fraction(INDICES, KEYS, STRATA, 0.001, seed=0)
    assert len(tiny) == 3
    assert take_fraction(INDICES, KEYS, STRATA, 1.0, seed=0) is INDICES
    assert not np.array_equal(take_fraction(INDICES, KEYS, STRATA, 0.25, seed=1), quarter)


class Odd:
    """As torch's DistributedSampler: it must be told the epoch."""

    epoch = None

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        return iter([(self.epoch + place) % 100 for place in range(50)])


def test_a_sampler_of_the_users_own():
    sampler = Foreign(INDICES, Odd(), seed=0)
    assert len(sampler) == 50
    assert sampler.epoch(3).indices[:2].tolist() == [6, 8]
    for places in ([], [100], [-1]):
        with pytest.raises(UsageError, match="places from 0 to 99"):
            Foreign(INDICES, places, seed=0)


class Growing(Odd):
    def __iter__(self):
        return iter(range(10 + self.epoch))


def test_a_sampler_whose_length_changes_is_refused_with_both_lengths():
    sampler = Foreign(INDICES, Growing(), seed=0)
    with pytest.raises(UsageError, match=r"11 places in epoch 1\n.*10 as in the first"):
        sampler.epoch(1)


def test_an_order_is_remembered_and_not_for_ever():
    asked = []

    class Counted(Shuffle):
        def epoch(self, epoch):
            asked.append(epoch)
            return super().epoch(epoch)

    remembered = Remembered(Counted(INDICES, KEYS, seed=0))
    for epoch in (0, 1, 0, 1, 2, 1, 0):
        remembered.epoch(epoch)
    assert asked == [0, 1, 2, 0]


@pytest.mark.parametrize("weights", [np.zeros(100), -np.ones(100), np.full(100, np.nan), np.ones(99)])
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(UsageError, match="100 numbers >= 0"):
        Weighted(INDICES, weights, seed=0)


@given(st.integers(1, 60), st.integers(1, 17), st.integers(1, 5), st.integers(0, 9))
def test_pairs_stay_in_one_share(num, batch_size, world_size, step):
    cuts = [Cut(num, batch_size, rank=rank, world_size=world_size, pairs=True) for rank in range(world_size)]
    shares = [cut.positions(step)[1].tolist() for cut in cuts]
    assert [place for share in shares for place in share] == Cut(num, batch_size).positions(step)[1].tolist()
    rank_of = {place: rank for rank, share in enumerate(shares) for place in share}
    assert all(rank_of.get(place ^ 1, rank) == rank for place, rank in rank_of.items())
