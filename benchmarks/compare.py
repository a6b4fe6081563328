"""Is "different" said of equal models in 1 of 20 cases, and of better ones almost always? Simulated pairs of models.

    python benchmarks/compare.py [--json PATH] [--quick]

A pair is two models asked the same n samples. They are right together on most; a share of the samples, the discordance, is
told right by one alone, each as likely where the models are exchangeable. The claims are made for accuracy 80 %,
discordance 10 %, n = 5,000; the table holds other populations.

Beside it, what people do without pairing: two Wilson intervals, one for each model, that do not overlap. It is blind to
what the models share, so it hardly ever finds anything.

Claims: of 1,000 exchangeable pairs 3.5 to 6.5 % are called different; a planted difference of 3 points is found in at least
95 of 100; intervals of the difference cover 93 to 97 %, of accuracy, of accuracy in groups, of macro F1 and of log loss; a
difference as large as `detectable` says is found in 75 to 88 of 100; Welch's interval over 3 + 3 seeds covers 93 to 97.5 %.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")

import numpy as np
import record

from kiln.measure.paired import compare_shares, detectable_difference, mcnemar, score_interval
from kiln.measure.paired_metrics import Answers, compare_metrics
from kiln.measure.seeds import welch
from kiln.metrics import wilson

PACKAGES = ("torchkiln", "numpy")
ACCURACY, DISCORDANCE, N = 0.8, 0.1, 5000
POPULATIONS = [(n, share) for n in (500, 5000) for share in (0.02, 0.05, 0.1, 0.2)]
NUM_CLASSES = 10


def counts(rng: np.random.Generator, n: int, discordance: float, gain: float, num_pairs: int) -> np.ndarray:
    """(R, 4) samples that both got right, the first alone, the second alone, none: `gain` is the second's lead."""
    alone = (discordance - gain) / 2, (discordance + gain) / 2
    both = ACCURACY - alone[0]
    return rng.multinomial(n, [both, *alone, 1 - both - sum(alone)], size=num_pairs)


def called_different(drawn: np.ndarray) -> float:
    """The share of pairs with a mid-p below 0.05."""
    return float(np.mean([mcnemar(first, second) < 0.05 for _, first, second, _ in drawn.tolist()]))


def called_unpaired(drawn: np.ndarray, n: int) -> float:
    """The share of pairs whose own intervals do not overlap."""
    low, high = wilson(drawn[:, 0] + drawn[:, 1], n)
    other_low, other_high = wilson(drawn[:, 0] + drawn[:, 2], n)
    return float(np.mean((high < other_low) | (other_high < low)))


def covered(drawn: np.ndarray, n: int, gain: float) -> float:
    """The share of pairs whose interval holds the true difference."""
    low, high = score_interval(drawn[:, 1], drawn[:, 2], n)
    return float(np.mean((low <= gain) & (gain <= high)))


def population(rng: np.random.Generator, n: int, discordance: float, num_pairs: int) -> dict[str, Any]:
    """Everything there is to tell of one population."""
    equal = counts(rng, n, discordance, 0.0, num_pairs)
    gain = min(0.03, 0.9 * discordance)
    better = counts(rng, n, discordance, gain, num_pairs)
    seen = detectable_difference(discordance * n, n)
    at_reach = counts(rng, n, discordance, seen, num_pairs) if seen < 0.9 * discordance else None
    return {
        "n": n,
        "discordance": discordance,
        "called_different": called_different(equal),
        "unpaired_called": called_unpaired(equal, n),
        "gain": gain,
        "found": called_different(better),
        "unpaired_found": called_unpaired(better, n),
        "coverage_equal": covered(equal, n, 0.0),
        "coverage_gain": covered(better, n, gain),
        "detectable": seen,
        "found_at_detectable": called_different(at_reach) if at_reach is not None else None,
    }


def two_models(rng: np.random.Generator, n: int, sharper: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets and logits of two models that see the same evidence, each with a disturbance of its own."""
    shares = np.linspace(1, 3, NUM_CLASSES)
    targets = rng.choice(NUM_CLASSES, n, p=shares / shares.sum())
    evidence = rng.normal(size=(n, NUM_CLASSES)) * 1.2
    evidence[np.arange(n), targets] += 2.7
    first, second = (evidence + rng.normal(size=evidence.shape) * noise for noise in (0.8, 0.8 * sharper))
    return targets, first, second


def answers(logits: np.ndarray, targets: np.ndarray) -> Answers:
    """What a model says, with its log loss."""
    classes, highest = np.arange(NUM_CLASSES), logits.max(axis=1)
    losses = highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1)) - logits[np.arange(len(logits)), targets]
    return Answers(logits.argmax(1)[:, None] == classes, targets[:, None] == classes, {"loss": losses})


def metric_coverage(rng: np.random.Generator, num_pairs: int, n: int, truth_n: int) -> dict[str, float]:
    """How often the bootstrap's interval holds the true difference, which a very large sample tells."""
    targets, *logits = two_models(rng, truth_n, 0.7)
    names = {"f1_macro": True, "balanced_accuracy": True, "loss": False}
    big = [answers(one, targets) for one in logits]
    truth = {name: row.value for name, row in compare_metrics(*big, names).items()}
    hits = dict.fromkeys(names, 0)
    for _ in range(num_pairs):
        targets, *logits = two_models(rng, n, 0.7)
        for name, row in compare_metrics(*(answers(one, targets) for one in logits), names).items():
            hits[name] += row.low <= truth[name] <= row.high
    return {name: count / num_pairs for name, count in hits.items()}


def grouped(rng: np.random.Generator, num_pairs: int, *, num_groups: int, size: int) -> dict[str, float]:
    """Groups of samples that are alike: how often equal models are called different, with the groups known and not."""
    groups = np.repeat(np.arange(num_groups), size)
    called, blind, held = 0, 0, 0
    for _ in range(num_pairs):
        same = rng.normal(size=num_groups)[groups]  # how hard a group is, for both
        own = rng.normal(size=(2, num_groups))[:, groups]  # and for each model, of all its samples
        first, second = (same + part + rng.normal(size=len(groups)) < 1.5 for part in own)
        with_groups, without = compare_shares(first, second, groups), compare_shares(first, second)
        called += with_groups.p < 0.05
        blind += without.p < 0.05
        held += with_groups.low <= 0 <= with_groups.high
    return {
        "groups": num_groups,
        "size": size,
        "called_different": called / num_pairs,
        "called_without_groups": blind / num_pairs,
        "coverage": held / num_pairs,
    }


def seeds_coverage(rng: np.random.Generator, num_pairs: int, num_seeds: int) -> float:
    """How often Welch's interval of means over seeds holds the truth; the recipes scatter by 0.5 and 1 points."""
    held = 0
    for _ in range(num_pairs):
        found = welch(rng.normal(0.8, 0.005, num_seeds), rng.normal(0.82, 0.01, num_seeds))
        held += found.low <= 0.02 <= found.high
    return held / num_pairs


def claims_of(
    rows: list[dict[str, Any]], metrics: dict[str, float], groups: dict[str, float], seeds: float
) -> list[record.Claim]:
    """What is claimed, for the stated population."""
    stated = next(row for row in rows if row["n"] == N and row["discordance"] == DISCORDANCE)

    def within(name: str, value: float, low: float, high: float) -> record.Claim:
        return record.Claim(name, value, f"{low} to {high}", low <= value <= high)

    called = stated["called_different"]
    return [
        within("exchangeable pairs called different", called, 0.035, 0.065),
        record.Claim("planted 3 points found", stated["found"], "at least 0.95", stated["found"] >= 0.95),
        within("interval of accuracy covers, equal models", stated["coverage_equal"], 0.93, 0.97),
        within("interval of accuracy covers, 3 points", stated["coverage_gain"], 0.93, 0.97),
        *(within(f"interval of {name} covers", value, 0.93, 0.97) for name, value in metrics.items()),
        within("in groups, equal models called different", groups["called_different"], 0.035, 0.065),
        within("in groups, interval of accuracy covers", groups["coverage"], 0.93, 0.97),
        within("found at the detectable difference", stated["found_at_detectable"], 0.75, 0.88),
        within("Welch's interval over 3 + 3 seeds covers", seeds, 0.93, 0.975),
    ]


def main() -> int:
    """Simulate, print, and write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument(
        "--quick", action="store_true", help="to see that it works; the margins are wider than the claims"
    )
    options = parser.parse_args()
    started, rng = time.perf_counter(), np.random.default_rng(5)
    quick = options.quick
    rows = [population(rng, n, share, 1000) for n, share in POPULATIONS]
    record.show(
        "pairs of models, 1,000 of each population",
        ("n, discordance", "equal: called", "unpaired", "gain", "found", "unpaired", "covers (equal)", "covers (gain)",
         "detectable", "found there"),
        [
            (f"{row['n']:,}, {row['discordance']:.0%}", f"{row['called_different']:.1%}", f"{row['unpaired_called']:.1%}",
             f"{row['gain']:.1%}", f"{row['found']:.1%}", f"{row['unpaired_found']:.1%}",
             f"{row['coverage_equal']:.1%}", f"{row['coverage_gain']:.1%}", f"{row['detectable']:.2%}",
             "-" if row["found_at_detectable"] is None else f"{row['found_at_detectable']:.1%}")
            for row in rows
        ],
    )  # fmt: skip
    metrics = metric_coverage(rng, 60 if quick else 1000, 1000, 200_000 if quick else 2_000_000)
    groups = grouped(rng, 200 if quick else 1000, num_groups=100, size=20)
    seeds = seeds_coverage(rng, 300 if quick else 2000, 3)
    record.show(
        "paired bootstrap of 1,000 samples, 10 classes of unequal size",
        ("interval", "covers"),
        [(name, f"{value:.1%}") for name, value in metrics.items()],
    )
    record.show(
        f"{groups['groups']} groups of {groups['size']} samples, equal models",
        ("", "called different"),
        [
            ("with groups", f"{groups['called_different']:.1%}"),
            ("as if without", f"{groups['called_without_groups']:.1%}"),
        ],
    )
    all_rows = [*rows, {"metric_coverage": metrics}, groups, {"welch_coverage": seeds}]
    print(f"\n{time.perf_counter() - started:.0f} s")
    status = record.finish(claims_of(rows, metrics, groups, seeds), all_rows, packages=PACKAGES, path=options.json)
    return 0 if quick else status


if __name__ == "__main__":
    sys.exit(main())
