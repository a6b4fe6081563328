"""Making things ahead: same results and order for any number of workers, errors at their turn, nothing left running."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiln.data.prefetch import prefetched
from kiln.errors import ResourceError


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(), max_size=30), st.integers(0, 4), st.integers(1, 8))
def test_results_come_in_order_whatever_the_workers(items, workers, ahead):
    made = prefetched(lambda item: (item, item * 2), items, workers=workers, ahead=ahead)
    assert list(made) == [(item, item * 2) for item in items]


def test_slow_items_do_not_overtake():
    def make(number):
        time.sleep(0.02 if number % 4 == 0 else 0)
        return number

    assert list(prefetched(make, range(20), workers=4, ahead=8)) == list(range(20))


@pytest.mark.parametrize(("workers", "ahead", "most"), [(0, 4, 0), (2, 4, 4), (3, 1, 3)])
def test_no_more_is_made_than_was_asked_for(workers, ahead, most):
    started = []
    made = prefetched(lambda n: started.append(n) or n, itertools.count(), workers=workers, ahead=ahead)
    assert [next(made) for _ in range(5)] == [0, 1, 2, 3, 4]
    time.sleep(0.05)
    made.close()
    assert 5 <= len(started) <= 5 + most
    assert sorted(started) == list(range(len(started)))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_comes_at_its_items_turn(workers):
    def make(number):
        if number == 3:
            raise ValueError("item 3 is broken")
        return number

    made = prefetched(make, range(9), workers=workers, ahead=6)
    assert [next(made) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="item 3 is broken"):
        next(made)


def test_a_timeout_of_the_items_own_is_not_taken_for_ours():
    def make(number):
        raise TimeoutError("the server is silent")

    with pytest.raises(TimeoutError, match="the server is silent"):
        next(prefetched(make, range(3), workers=1, ahead=2))


def test_an_item_that_never_comes_is_an_error_and_no_hang():
    release = threading.Event()
    made = prefetched(lambda n: release.wait(20), range(3), workers=1, ahead=2, timeout_seconds=0.1)
    with pytest.raises(ResourceError, match=r"(?s)a batch was not ready after 0 s.*--workers 0") as caught:
        next(made)
    assert caught.value.exit_code == 5
    release.set()


STUCK = """
from threading import Event
from kiln.data.prefetch import prefetched
next(prefetched(lambda n: Event().wait(600), range(3), workers=2, ahead=2, timeout_seconds=0.1))
"""


def test_a_process_whose_worker_is_stuck_can_still_end():
    done = subprocess.run([sys.executable, "-c", STUCK], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "a batch was not ready" in done.stderr


def test_leaving_early_ends_the_threads():
    before = threading.active_count()
    made = prefetched(lambda n: n, itertools.count(), workers=3, ahead=6)
    next(made)
    assert threading.active_count() > before
    made.close()
    for _ in range(200):
        if threading.active_count() == before:
            break
        time.sleep(0.01)
    assert threading.active_count() == before
