"""The order of samples: each once per epoch, for any cut, any number of processes, any way of accumulating."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kiln.data.sampler import Cut, Shuffle
from kiln.random import keys_of


def shuffle_of(num, seed=0):
    indices = np.arange(num) * 3 + 1  # samples of a larger source
    return Shuffle(indices, keys_of([f"{index}.jpg" for index in indices]), seed=seed)


def ids(shuffle, cut, step):
    epoch, positions, _ = cut.positions(step)
    return shuffle.epoch(epoch)[positions].tolist()


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
    order = shuffle.epoch(epoch)
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
    orders = {(seed, epoch): tuple(shuffle_of(50, seed).epoch(epoch)) for seed in (0, 1) for epoch in range(3)}
    assert len(set(orders.values())) == 6
    assert {tuple(sorted(order)) for order in orders.values()} == {tuple(np.arange(50) * 3 + 1)}


def test_epochs_can_be_asked_for_in_any_order():
    shuffle = shuffle_of(40)
    first, second = shuffle.epoch(0).copy(), shuffle.epoch(1).copy()
    assert np.array_equal(shuffle.epoch(0), first)
    assert np.array_equal(shuffle.epoch(1), second)
    assert len(shuffle) == 40


def test_a_new_file_keeps_the_order_of_the_old_ones():
    names = [f"{n}.jpg" for n in range(30)]
    longer = ["0a.jpg", *names]
    few = Shuffle(np.arange(30), keys_of(names), seed=1).epoch(2)
    many = Shuffle(np.arange(31), keys_of(longer), seed=1).epoch(2)
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
