"""Rates by a clock of the test's own, and what the rates of stages say."""

from __future__ import annotations

import pytest

from kiln.measure.rates import LONGEST, Rate, measure_rate
from kiln.measure.wall import READ_FIRST, Stage, find_wall, read_first_time


class Clock:
    """Time goes on when work is done."""

    def __init__(self, costs):
        self.now, self.costs, self.calls = 0.0, iter(costs), 0

    def __call__(self):
        return self.now

    def work(self):
        self.calls += 1
        self.now += next(self.costs)
        return 10


def every(cost):
    while True:
        yield cost


def slow_start(first, cost):
    yield first
    yield from every(cost)


def test_the_median_without_the_warm_up():
    clock = Clock([5.0, 1.0, 0.5, 0.5, 2.0, 1.0])
    rate = measure_rate(clock.work, seconds=5, clock=clock)
    assert rate == Rate(per_second=10.0, low=10.0, high=20.0, repeats=5)


def test_short_work_is_repeated_until_the_time_is_used():
    clock = Clock(every(0.001))
    rate = measure_rate(clock.work, seconds=2, clock=clock)
    assert rate.per_second == pytest.approx(10_000)
    assert 0.5 < clock.now < 2 * LONGEST


def test_what_was_made_ahead_does_not_mislead():
    made_ahead = iter([0.1, *[1e-7] * 8])
    clock = Clock(cost for part in (made_ahead, every(0.1)) for cost in part)
    rate = measure_rate(clock.work, seconds=2, clock=clock)
    assert rate.per_second == pytest.approx(100, rel=0.05)
    assert clock.now < 20 * 2, "a few calls that cost nothing must not lead to a million that do"


def test_slow_work_ends_early_and_idle_work_is_an_error():
    clock = Clock(slow_start(10.0, 10.0))
    assert measure_rate(clock.work, seconds=1, clock=clock).repeats == 3
    with pytest.raises(ValueError, match="nothing was done"):
        measure_rate(lambda: 0, seconds=0.001)


def test_first_reads_are_counted_once():
    read = []

    def reads():
        for number in range(10):
            read.append(number)
            yield number % 2

    rate = read_first_time(reads(), chunk=4)
    assert (len(read), rate.repeats) == (10, 3)
    assert rate.low <= rate.per_second <= rate.high


def stage(name, per_second, **about):
    return Stage(name, Rate(per_second, per_second, per_second, 5), **about)


def path(*, decode=500.0, kept=5000.0, device=3000.0, keeps=False, whole=450.0, model=None, first=9000.0):
    stages = [
        stage(READ_FIRST, first, in_plan=False),
        stage("decode", decode / 2, in_plan=False),
        stage("decode", decode, threads=2, in_plan=not keeps),
        stage("kept", kept, threads=2, in_plan=keeps, tries="--cache disk"),
        stage("device", device, device=True),
        stage("all together", whole, threads=2, whole=True),
    ]
    return stages if model is None else [*stages, stage("the model's step", model, device=True, model=True)]


def wall(stages, *, workers=2, cores=2, shares_cores=False):
    return find_wall(stages, workers=workers, cores=cores, shares_cores=shares_cores)


def test_the_data_is_the_wall_and_what_would_help():
    found = wall(path(model=1900.0), cores=8)
    assert found.stage == "decode"
    assert "the data is the wall: 450 images/s against the model's 1,900" in found.says
    assert found.next[0].startswith("--cache disk: kept gives 5,000 images/s")
    assert found.next[1] == "--workers 8: there are 8 cores; 8 x 250 images/s if it scales"


def test_the_model_is_the_wall():
    found = wall(path(model=100.0), shares_cores=True)
    assert found.stage == "the model's step"
    assert "the model is the wall: 100 images/s against the data's 450" in found.says
    assert "both on the same cores: about 81.8" in found.says or "about 82" in found.says
    assert found.next == ()


def test_even_and_without_a_model():
    assert wall(path(model=450.0)).says.startswith("model and data are even")
    assert "the slowest stage of the data is: decode, 500 images/s alone" in wall(path()).says


def test_what_is_in_the_plan_already_is_not_advised():
    found = wall(path(keeps=True, whole=2900.0, model=9000.0))
    assert found.stage == "device"
    assert not any("--cache" in line for line in found.next)
    assert "augmentation" in found.next[0]


def test_slow_disks_and_threads_in_each_others_way_are_told():
    assert any("reading for the first time gives 80 images/s" in line for line in wall(path(first=80.0)).next)
    stages = [one if one.threads == 1 else stage(one.name, 260.0, threads=2) for one in path()[1:3]]
    found = wall([*stages, *path()[4:]])
    assert any("2 threads reach 260 of 500 images/s" in line for line in found.next)
