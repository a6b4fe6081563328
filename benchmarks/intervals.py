"""95 % intervals that are right 95 times of 100, and a thousand resamples in a moment.

Coverage: from a population (a fixed table of what is predicted of each class, with classes of unequal size) many data sets
are drawn; the truth of every metric is exact, from the table itself. An interval should hold it in 93 to 97 of 100 data
sets. Macro F1 by percentiles of resamples stands beside it, for comparison: it falls short where classes are small.

Average precision depends on the order of scores, which no table holds: its data sets are scores drawn from normal
distributions, its truth that of 100,000 samples. Percentiles of resamples stand beside it as well.

Speed: 1,000 resamples of 10,000 predictions of 100 classes, accuracy and macro F1, against a loop over scikit-learn.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import record
from sklearn.metrics import accuracy_score, f1_score

from kiln.metrics import bootstrap, counts, ranking, wilson
from kiln.metrics.intervals import jackknife, percentiles, resample_samples

PACKAGES = ("torchkiln", "numpy", "scikit-learn")
SIZES, NUM_CLASSES, ACCURACIES = (100, 300, 1000, 2000), (3, 10), (0.6, 0.8, 0.95)
RANKED = ((2, 1.5, 100), (2, 3.0, 200), (10, 2.0, 100), (10, 4.0, 100), (10, 2.0, 400), (20, 2.5, 1000))
"""Classes, distance between the scores of a class and the others, samples."""
LOW, HIGH = 0.93, 0.97
MOST_SECONDS = 2.0
CLAIMED = ("accuracy", "macro F1")
STATISTICS: dict[str, tuple[counts.Statistic, float]] = {
    "balanced accuracy": (counts.balanced_accuracy, 0.0),
    "macro F1": (counts.f_beta, 0.0),
    "macro precision": (counts.precision, 0.0),
    "MCC": (counts.matthews, -1.0),
    "kappa": (counts.kappa, -1.0),
}


def population(num_classes: int, accuracy: float) -> np.ndarray:
    """(K, K) probabilities that sum to 1: row = true class. The largest class is three times as frequent as the smallest,
    recalls are spread around the accuracy, and mistakes fall unevenly on the other classes."""
    draws = np.random.default_rng(num_classes)
    frequency = np.linspace(1, 3, num_classes)
    frequency /= frequency.sum()
    mistakes = draws.dirichlet(np.ones(num_classes), num_classes)
    np.fill_diagonal(mistakes, 0)
    mistakes /= mistakes.sum(axis=1, keepdims=True)
    recalls = accuracy + 0.5 * (1 - accuracy) * np.linspace(-1, 1, num_classes)
    table = mistakes * (1 - recalls)[:, None] + np.diag(recalls)
    return table * frequency[:, None]


def intervals_of(confusion: np.ndarray) -> Iterator[tuple[str, float, float]]:
    """Name and ends of the interval of every metric, as `kiln evaluate` gives them."""
    low, high = wilson(np.trace(confusion), confusion.sum())
    yield "accuracy", float(low), float(high)
    whole, (units, times) = counts.of_confusion(confusion), counts.cells(confusion)
    without = counts.without_one(whole, units)
    for name, (statistic, least) in STATISTICS.items():
        yield name, *jackknife(times, statistic(without), float(statistic(whole)), least=least)


def by_percentiles(confusion: np.ndarray, seed: int) -> tuple[float, float]:
    """Macro F1 from 1,000 resamples within each true class."""
    units, times = counts.cells(confusion)

    def statistic(drawn: np.ndarray) -> np.ndarray:
        return counts.f_beta(counts.Counts(*(drawn @ part for part in units)))

    return bootstrap(times, statistic, strata=units.actual.argmax(axis=1), seed=seed)


def coverage(given: argparse.Namespace) -> tuple[list[record.Claim], list[dict[str, Any]]]:
    """How often the truth lies within."""
    rows = []
    for num_classes in NUM_CLASSES:
        for accuracy in ACCURACIES:
            table = population(num_classes, accuracy)
            whole = counts.of_confusion(table)
            truth = {
                "accuracy": np.trace(table),
                **{name: f(whole) for name, (f, _) in STATISTICS.items()},
            }
            rows += [
                _covered(table, n, truth, given) | {"classes": num_classes, "about": accuracy, "n": n}
                for n in (SIZES[:1] if given.quick else SIZES)
            ]
    names = ["accuracy", *STATISTICS, "macro F1, percentiles"]
    record.show(
        f"Data sets of 100 whose interval holds the truth ({given.datasets:,} data sets each; percentiles: {given.slow:,})",
        ["classes, accuracy, n", *names],
        [
            [f"{row['classes']}, {row['about']}, {row['n']}", *(f"{100 * row[name]:.1f}" for name in names)]
            for row in rows
        ],
    )
    claims = []
    for name in CLAIMED:
        for which, value in (("least", min(row[name] for row in rows)), ("most", max(row[name] for row in rows))):
            title = f"{which} often that an interval of {name} holds the truth, of {len(rows)} populations and sizes"
            claims.append(record.Claim(title, value, f"{LOW} to {HIGH}", LOW <= value <= HIGH))
    return claims, rows


def _covered(table: np.ndarray, n: int, truth: dict[str, Any], given: argparse.Namespace) -> dict[str, float]:
    drawn = np.random.default_rng(n).multinomial(n, table.ravel(), size=given.datasets)
    held = dict.fromkeys([*truth, "macro F1, percentiles"], 0)
    for seed, cells in enumerate(drawn.reshape(-1, *table.shape)):
        for name, low, high in intervals_of(cells):
            held[name] += int(low <= truth[name] <= high)
        if seed < given.slow:
            low, high = by_percentiles(cells, seed)
            held["macro F1, percentiles"] += int(low <= truth["macro F1"] <= high)
    times = {name: given.slow if name.endswith("percentiles") else given.datasets for name in held}
    return {name: count / times[name] for name, count in held.items()}


def ranked(given: argparse.Namespace) -> list[dict[str, Any]]:
    """The same of average precision."""
    rows = []
    for num_classes, shift, n in RANKED:
        draws = np.random.default_rng(num_classes)

        def drawn(
            size: int, draws: np.random.Generator = draws, num_classes: int = num_classes, shift: float = shift
        ) -> tuple[np.ndarray, np.ndarray]:
            truth = draws.integers(0, num_classes, size)[:, None] == np.arange(num_classes)
            logits = draws.standard_normal(truth.shape) + shift * truth
            return truth, logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))

        whole = ranking.mean_known(ranking.average_precisions(*drawn(100_000)))
        held = np.zeros(2)
        for seed in range(given.slow):
            truth, scores = drawn(n)

            def resampled(times: np.ndarray, truth: np.ndarray = truth, scores: np.ndarray = scores) -> np.ndarray:
                return ranking.average_precisions(truth, scores, times).mean(axis=1)

            strata = truth.argmax(axis=1)
            ends = (
                ranking.mean_average_precision_interval(truth, scores),
                percentiles(resample_samples(n, resampled, strata=strata, seed=seed)),
            )
            held += [low <= whole <= high for low, high in ends]
        share = held / given.slow
        rows.append(
            {"classes": num_classes, "n": n, "average precision": whole, "held": share[0], "percentiles": share[1]}
        )
    record.show(
        f"Average precision: intervals of 100 that hold the truth ({given.slow:,} data sets each)",
        ["classes, n, average precision", "ours", "percentiles"],
        [
            [
                f"{row['classes']}, {row['n']}, {row['average precision']:.3f}",
                f"{100 * row['held']:.1f}",
                f"{100 * row['percentiles']:.1f}",
            ]
            for row in rows
        ],
    )
    return rows


def speed(given: argparse.Namespace) -> tuple[list[record.Claim], list[dict[str, Any]]]:
    """A thousand resamples, by multinomial counts of cells and one prediction at a time."""
    n, num_classes = 10_000, 100
    draws = np.random.default_rng(0)
    targets = draws.integers(0, num_classes, n)
    predictions = np.where(draws.random(n) < 0.6, targets, draws.integers(0, num_classes, n))
    confusion = np.bincount(targets * num_classes + predictions, minlength=num_classes**2).reshape(num_classes, -1)

    def ours() -> Any:
        units, times = counts.cells(confusion)
        values = counts.resample_counts(units, times, [counts.accuracy, counts.f_beta])
        return [percentiles(column) for column in values.T]

    def alone() -> Any:
        classes = np.arange(num_classes)
        said, truth = predictions[:, None] == classes, targets[:, None] == classes
        units = counts.Counts(said & truth, said, truth)
        return counts.resample_counts(units, np.ones(n, np.int64), [counts.accuracy, counts.f_beta])

    few = 5 if given.quick else 40

    def theirs() -> Any:
        for rows in draws.integers(0, n, (few, n)):
            accuracy_score(targets[rows], predictions[rows])
            f1_score(targets[rows], predictions[rows], average="macro")

    rounds = 1 if given.quick else 5
    taken = {
        "cells": _seconds(ours, rounds),
        "each prediction a group of its own": _seconds(alone, rounds),
        f"scikit-learn in a loop, from {few} resamples": [1000 / few * t for t in _seconds(theirs, rounds)],
    }
    ours_s, peer_s = (statistics.median(taken[name]) for name in (next(iter(taken)), list(taken)[-1]))
    record.show(
        f"Seconds for 1,000 resamples of {n:,} predictions of {num_classes} classes, accuracy and macro F1 ({rounds} rounds)",
        ["way", "median", "least", "most"],
        [[name, f"{statistics.median(t):.2f}", f"{min(t):.2f}", f"{max(t):.2f}"] for name, t in taken.items()],
    )
    print(f"{peer_s / ours_s:.0f} times as fast as the loop")
    title = "seconds for 1,000 resamples of 10,000 predictions of 100 classes, accuracy and macro F1"
    rows = [{"way": name, "seconds": seconds} for name, seconds in taken.items()]
    return [record.Claim(title, ours_s, f"< {MOST_SECONDS}", ours_s < MOST_SECONDS)], rows


def _seconds(work: Callable[[], Any], rounds: int) -> list[float]:
    taken = []
    for _ in range(rounds):
        begun = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begun)
    return taken


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--json", type=Path, help="write machine, versions, raw rows and claims here")
    parser.add_argument("--quick", action="store_true", help="prove in under a minute that the script works")
    parser.add_argument("--datasets", type=int, default=2000, help="data sets of each population and size")
    parser.add_argument("--slow", type=int, default=500, help="of these, how many get percentiles of resamples too")
    given = parser.parse_args()
    if given.quick:
        given.datasets, given.slow = 200, 20
    claims, rows = coverage(given)
    rows += ranked(given)
    more_claims, more_rows = speed(given)
    status = record.finish([*claims, *more_claims], [*rows, *more_rows], packages=PACKAGES, path=given.json)
    return 0 if given.quick else status


if __name__ == "__main__":
    sys.exit(main())
