"""Metrics of the user's own: a function of probabilities and targets, or any `torchmetrics.Metric`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from inspect import isclass, signature
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kiln.errors import KilnError, UsageError
from kiln.metrics.intervals import Metric, percentiles, resample_samples
from kiln.metrics.measures import Answers, How
from kiln.names import load_object

NUM_RESAMPLES = 200
_WIDTHS = ("num_classes", "num_labels")


@dataclass(frozen=True)
class Own:
    """A metric that the user named as module:name.

    A function is called as `function(probabilities (N, K), targets)` with NumPy arrays and gives a number; its interval
    is a bootstrap of 200 calls. A `torchmetrics.Metric` gets both as tensors, once, and has no interval; a class of them is
    made with `num_classes` or `num_labels` where it takes one. Either may say `higher_is_better`.
    """

    name: str

    def __call__(self, answers: Answers, how: How) -> Metric:
        """Measure.

        Raises: UsageError (E107): it fails, or gives something else than one number.
        """
        part: Any = load_object(self.name)
        if not callable(part):
            raise UsageError("E107", f"the metric {self.name!r} is {type(part).__name__}, which cannot be called")
        accumulates = all(hasattr(part, step) for step in ("update", "compute", "reset"))
        if isclass(part) and not accumulates:
            part = part()
        evaluate = _accumulated(self._made(part, answers), self.name) if accumulates else self._checked(part)
        better = getattr(part, "higher_is_better", True)
        value = evaluate(answers.probabilities, answers.targets)
        if accumulates:
            return Metric(value, None, None, answers.n, better is not False)
        return how.finish(
            value, lambda: _interval(evaluate, answers, how), answers.n, higher_is_better=better is not False
        )

    def _made(self, part: Any, answers: Answers) -> Any:
        if not isclass(part):
            return part
        taken = signature(part).parameters
        widths = {name: answers.probabilities.shape[1] for name in _WIDTHS if name in taken}
        try:
            return part(**widths)
        except Exception as error:
            raise self._failure(error, "name an instance of it, such as a variable of a module") from error

    def _checked(self, function: Callable[..., Any]) -> Callable[[NDArray, NDArray], float]:
        def evaluate(probabilities: NDArray, targets: NDArray) -> float:
            try:
                found = function(probabilities, targets)
            except KilnError:
                raise
            except Exception as error:
                shapes = f"it was given probabilities {probabilities.shape} and targets {targets.shape}"
                raise self._failure(error, shapes) from error
            return as_number(found, self.name)

        return evaluate

    def _failure(self, error: Exception, hint: str) -> UsageError:
        return UsageError("E107", f"the metric {self.name!r} fails: {type(error).__name__}: {error}", hint=hint)


def as_number(found: Any, name: str) -> float:
    """One number, as a float, array or tensor. Raises: UsageError (E107): something else."""
    try:
        values = np.asarray(found.detach().cpu() if hasattr(found, "detach") else found, np.float64)
    except (TypeError, ValueError):
        values = np.empty(0)
    if values.size != 1:
        shape = f"of shape {values.shape}" if values.size else repr(found)[:60]
        hint = "average over classes, or name one metric for each"
        raise UsageError(
            "E107", f"the metric {name!r} gives {type(found).__name__} {shape}", expected="one number", hint=hint
        )
    return float(values.reshape(()))


def _accumulated(metric: Any, name: str) -> Callable[[NDArray, NDArray], float]:
    """A torchmetrics metric as a function, which leaves no state behind."""

    def evaluate(probabilities: NDArray, targets: NDArray) -> float:
        import torch

        said, truth = (
            torch.from_numpy(np.ascontiguousarray(probabilities)),
            torch.from_numpy(np.asarray(targets).astype(np.int64)),
        )
        metric.reset()
        try:
            metric.update(said, truth)
            return as_number(metric.compute(), name)
        except KilnError:
            raise
        except Exception as error:
            shapes = f"it was given probabilities {probabilities.shape} and targets {truth.numpy().shape}"
            raise UsageError(
                "E107", f"the metric {name!r} fails: {type(error).__name__}: {error}", hint=shapes
            ) from error
        finally:
            metric.reset()

    return evaluate


def _interval(evaluate: Callable[[NDArray, NDArray], float], answers: Answers, how: How) -> tuple[float, float]:
    groups = how.groups
    num_units = answers.n if groups is None else groups.num

    def values(drawn: NDArray[np.int64]) -> NDArray[np.float64]:
        times = drawn if groups is None else drawn[:, groups.of]
        picked = [np.repeat(np.arange(answers.n), row) for row in times]
        return np.array([evaluate(answers.probabilities[rows], answers.targets[rows]) for rows in picked])

    strata = answers.strata if groups is None else None
    return percentiles(resample_samples(num_units, values, strata=strata, seed=how.seed, num_resamples=NUM_RESAMPLES))
