"""Which of several is faster: measured in turns, so that what else the machine does meets all of them alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

ROUNDS = 15
FEWEST_ROUNDS = 5
MOST_CALLS = 100
LEAST_SECONDS = 0.02
"""A turn lasts at least so long, by calling quick work several times: a shorter one measures the clock and the scheduler."""


@dataclass(frozen=True, slots=True)
class SpeedRatio:
    """How much longer the second takes than the first.

    Attributes:
        value: the median over rounds of the second's time by the first's; below 1 the second is faster.
        low: the lower quartile.
        high: the upper quartile.
        num_rounds: how many there were.
    """

    value: float
    low: float
    high: float
    num_rounds: int


def take_turns(
    works: Sequence[Callable[[], object]],
    *,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> list[list[float]]:
    """Seconds that each of several works took, round by round; every second round goes the other way about.

    Args:
        works: each returns when it is done.
        seconds: no new round begins after so long, unless there are fewer than `FEWEST_ROUNDS`.
        clock: in seconds.
    Returns: for each work, the seconds of one call in each round; at most `ROUNDS`.
    """
    calls = 1
    for work in works:
        work()  # warm-up
        started = clock()
        work()
        calls = max(calls, math.ceil(LEAST_SECONDS / max(clock() - started, LEAST_SECONDS / MOST_CALLS)))
    begun, times = clock(), [[] for _ in works]
    order = list(enumerate(works))
    for number in range(ROUNDS):
        for index, work in order if number % 2 == 0 else reversed(order):
            started = clock()
            for _ in range(calls):
                work()
            times[index].append(max(clock() - started, 1e-9) / calls)
        if number + 1 >= FEWEST_ROUNDS and clock() - begun > seconds:
            break
    return times


def speed_ratio(first: Sequence[float], second: Sequence[float]) -> SpeedRatio:
    """The ratio of two works' times, as from `take_turns`."""
    ratios = [b / a for a, b in zip(first, second, strict=True)]
    low, _, high = quantiles(ratios, n=4, method="inclusive")
    return SpeedRatio(median(ratios), low, high, len(ratios))
