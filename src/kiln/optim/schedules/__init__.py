"""Schedules: pure functions of the step, so that nothing has to be saved and a resume cannot drift.

A schedule maps a 0-based optimizer step to what the optimizer is set to before that step is taken: a factor of each
group's base rate, or `Rates` where groups differ or momentum moves too. Every function here takes the number of steps
that its schedule has, and returns one. All lengths are in optimizer steps.

    schedule = with_warmup(cosine, total_steps, warmup_steps=100, min_fraction=0.01)
    for step, batch in enumerate(batches):
        set_rates(optimizer, schedule(step))
        ...
        optimizer.step()

`Plateau` alone needs memory: it is told each evaluation, and multiplies whatever schedule there is.
"""

from kiln.optim.schedules.combine import chained, lambda_, multiplicative, sequential, with_warmup
from kiln.optim.schedules.cycles import cosine_restarts, cyclic, one_cycle
from kiln.optim.schedules.decays import (
    constant,
    cosine,
    exponential,
    inverse_sqrt,
    linear,
    multistep,
    polynomial,
    step,
    wsd,
)
from kiln.optim.schedules.plateau import Plateau
from kiln.optim.schedules.rates import Evaluations, Factor, Maker, Rates, Schedule, Steps, as_rates, blend, set_rates

__all__ = [
    "Evaluations",
    "Factor",
    "Maker",
    "Plateau",
    "Rates",
    "Schedule",
    "Steps",
    "as_rates",
    "blend",
    "set_rates",
    "constant",
    "cosine",
    "cosine_restarts",
    "cyclic",
    "exponential",
    "inverse_sqrt",
    "linear",
    "multistep",
    "one_cycle",
    "polynomial",
    "step",
    "wsd",
    "chained",
    "lambda_",
    "multiplicative",
    "sequential",
    "with_warmup",
]
