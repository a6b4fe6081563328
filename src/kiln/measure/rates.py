"""How many of something are done per second: medians of short repeats, after a warm-up."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import quantiles

REPEATS = 5
FEWEST_REPEATS = 3
LONGEST = 3.0
"""When a single call is slow: how many times the asked-for seconds a measurement may take in all."""

GROWTH = 4
"""Calls per repeat grow by at most this factor at a time: the first ones may only take what was made ahead."""


@dataclass(frozen=True)
class Rate:
    """Things per second.

    Attributes:
        per_second: the median over the repeats.
        low: the lower quartile.
        high: the upper quartile.
        repeats: how many there were.
    """

    per_second: float
    low: float
    high: float
    repeats: int


def measure_rate(
    work: Callable[[], int],
    *,
    seconds: float,
    warm_up: bool = True,
    wait: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Rate:
    """Call `work` again and again and tell how much it gets done.

    Args:
        work: does some of it, and says how many things that were.
        seconds: to measure for, about; a warm-up and slow calls come on top, up to `LONGEST` times as much.
        warm_up: call it once before, without counting. Without, the first call counts as well.
        wait: until the device has finished what was asked of it.
        clock: in seconds.
    Raises: ValueError: `work` never did anything.
    """
    begun = clock()
    if warm_up:
        work()
        wait()
    rates: list[float] = []
    calls = 1
    while len(rates) < REPEATS:
        started = clock()
        done = sum(work() for _ in range(calls))
        wait()
        took = max(clock() - started, 1e-9)
        if not rates and warm_up and took * REPEATS < seconds / 2:  # too short to be a repeat: take more calls at once
            wanted = calls * seconds / (REPEATS * took)
            calls = int(min(wanted, GROWTH * calls)) + 1
            continue
        rates.append(done / took)
        if len(rates) >= FEWEST_REPEATS and clock() - begun > LONGEST * seconds:
            break
    if not any(rates):
        raise ValueError("nothing was done in any repeat")
    low, median, high = quantiles(rates, n=4, method="inclusive")
    return Rate(median, low, high, len(rates))
