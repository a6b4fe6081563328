"""From the rates of stages to the one that holds up the others, and what to try about it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import quantiles

from kiln.measure.rates import Rate

READ_FIRST = "read, first time"

EVEN = 1.15
"""Rates that differ by less than this factor count as even."""
WORTH_IT = 1.2
"""What is tried should be at least this much faster."""
SCALES = 0.7
"""Threads that reach less than this share of what they would alone hold each other up."""


@dataclass(frozen=True)
class Stage:
    """A stage of the data path and how fast it is alone.

    Attributes:
        name: what it does.
        rate: images per second.
        threads: that did it.
        in_plan: whether training goes through it, in every epoch, this way; others are there for comparison.
        device: whether it runs where the model is.
        whole: whether it is the whole path.
        model: whether it is the model's step.
        tries: the flag with which training would go this way.
    """

    name: str
    rate: Rate
    threads: int = 1
    in_plan: bool = True
    device: bool = False
    whole: bool = False
    model: bool = False
    tries: str = ""


@dataclass(frozen=True)
class Wall:
    """What holds training up.

    Attributes:
        stage: name of the slowest stage that the plan goes through.
        data_per_second: images per second of the whole data path.
        model_per_second: of the model's step, if it was measured.
        says: it in a sentence.
        next: what to try, with numbers; nothing where the data keeps up.
    """

    stage: str
    data_per_second: float
    model_per_second: float | None
    says: str
    next: tuple[str, ...]


def find_wall(stages: Sequence[Stage], *, workers: int, cores: int, shares_cores: bool) -> Wall:
    """Tell which stage is the slowest, whether the model or its data is, and what to try.

    Args:
        stages: what was measured, the whole path (`whole`) among them.
        workers: threads that decode; 0 is the main thread.
        cores: of the processor.
        shares_cores: whether the model computes on the cores that decode.
    """
    data = next(stage for stage in stages if stage.whole).rate.per_second
    model = next((stage.rate.per_second for stage in stages if stage.model), None)
    candidates = [stage for stage in stages if stage.in_plan and not stage.whole and not stage.model]
    slowest = min(candidates, key=lambda stage: stage.rate.per_second)
    if model is not None and data > model * EVEN:
        says = f"the model is the wall: {_number(model)} images/s against the data's {_number(data)}"
        return Wall("the model's step", data, model, says + _together(data, model, shares_cores), ())
    if model is None:
        says = f"the slowest stage of the data is: {slowest.name}, {_number(slowest.rate.per_second)} images/s alone"
    elif model <= data * EVEN:
        says = f"model and data are even: {_number(model)} and {_number(data)} images/s"
    else:
        says = f"the data is the wall: {_number(data)} images/s against the model's {_number(model)}; most of it is: {slowest.name}"
    says += "" if model is None else _together(data, model, shares_cores)
    return Wall(slowest.name, data, model, says, tuple(_try_next(stages, slowest, workers, cores)))


def _together(data: float, model: float, shares_cores: bool) -> str:
    """What both reach at once where they share the cores: their times add up."""
    return f" (both on the same cores: about {_number(1 / (1 / data + 1 / model))})" if shares_cores else ""


def _try_next(stages: Sequence[Stage], slowest: Stage, workers: int, cores: int) -> Iterator[str]:
    now = slowest.rate.per_second
    if slowest.device:
        yield "augmentation and normalisation take the time: --aug light or none, a faster --device, a smaller --img-size"
        return
    others = [stage for stage in stages if stage.tries and not stage.in_plan and stage.name != slowest.name]
    best = max(others, key=_per_second, default=None)
    if best is not None and _per_second(best) > WORTH_IT * now:
        yield f"{best.tries}: {best.name} gives {_number(_per_second(best))} images/s, after a first epoch that decodes"
    alone = next((stage for stage in stages if stage.name == slowest.name and stage.threads == 1), slowest)
    if max(workers, 1) < cores:
        yield f"--workers {cores}: there are {cores} cores; {cores} x {_number(_per_second(alone))} images/s if it scales"
    elif slowest.threads > 1 and now < SCALES * slowest.threads * _per_second(alone):
        ideal = _number(slowest.threads * _per_second(alone))
        yield f"{slowest.threads} threads reach {_number(now)} of {ideal} images/s: other work on these cores?"
    first = next((stage for stage in stages if stage.name == READ_FIRST), None)
    if first is not None and _per_second(first) < now:
        yield f"reading for the first time gives {_number(_per_second(first))} images/s: a local disk, or one archive"


def read_first_time(reads: Iterator[int], *, chunk: int) -> Rate:
    """The rate at which something is read that can be read for the first time only once.

    Args:
        reads: reads one after the other; yields how many could be read each time.
        chunk: reads per repeat.
    """
    rates = []
    while True:
        begun = time.perf_counter()
        part = list(islice(reads, chunk))
        took = max(time.perf_counter() - begun, 1e-9)
        if not part:
            break
        rates.append(sum(part) / took)
    low, median, high = quantiles(rates * 2, n=4, method="inclusive")  # twice: one alone has no quartiles
    return Rate(median, low, high, len(rates))


def _per_second(stage: Stage) -> float:
    return stage.rate.per_second


def _number(rate: float) -> str:
    """A rate as people say it: three digits count."""
    return f"{float(f'{rate:.3g}'):,.0f}" if rate >= 10 else f"{rate:.2g}"
