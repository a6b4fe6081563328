"""What is gained by not answering: the risk (share of wrong answers) when only the surest samples are answered.

Samples are answered from the surest down; those that are equally sure are answered together. Source: El-Yaniv and Wiener
2010, JMLR 11; the area is that of Geifman and El-Yaniv 2017, arXiv:1705.08500.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MOST_POINTS = 101
_ROUNDING = 1e-9  # 0.29 * 100 is a little less than 29


class Answered:
    """Samples in the order in which they are answered.

    Args:
        sure: (N,) how sure each answer is.
        right: (N,) whether it is right.
    """

    def __init__(self, sure: Floats, right: NDArray) -> None:
        self._order = np.argsort(-sure, kind="stable")
        ordered = sure[self._order]
        self._last = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)
        self._first = np.append(0, self._last[:-1] + 1)
        self._wrong = ~np.asarray(right, bool)[self._order]
        self.thresholds = ordered[self._last]
        self._harmonic = np.append(0.0, np.cumsum(1.0 / np.arange(1, len(sure) + 1)))

    def steps(self, drawn: NDArray[np.int64] | None = None) -> tuple[NDArray, NDArray]:
        """Samples answered, and wrong ones among them, after each step of equally sure ones.

        Args:
            drawn: (R, N) how often each sample counts, in each of R resamples; once, without it.
        Returns: two of (R, S).
        """
        if drawn is None:
            return self._last[None] + 1, np.cumsum(self._wrong)[None, self._last]
        drawn = drawn[:, self._order]
        answered = np.cumsum(np.add.reduceat(drawn, self._first, axis=1), axis=1)
        return answered, np.cumsum(np.add.reduceat(drawn * self._wrong, self._first, axis=1), axis=1)

    def coverage(self, drawn: NDArray[np.int64] | None = None, *, risk: float) -> Floats:
        """The largest share of samples that can be answered so that at most `risk` of the answers are wrong. (R,)."""
        answered, wrong = self.steps(drawn)
        return np.where(wrong <= risk * answered + _ROUNDING, answered, 0).max(axis=1) / answered[:, -1]

    def area(self, drawn: NDArray[np.int64] | None = None) -> Floats:
        """The mean risk over all coverages 1/N, 2/N ... 1 (AURC); equally sure samples in any order. (R,)."""
        answered, wrong = self.steps(drawn)
        before, wrong_before = (np.pad(part[:, :-1], ((0, 0), (1, 0))) for part in (answered, wrong))
        new = answered - before
        rate = (wrong - wrong_before) / np.maximum(new, 1)
        harmonic = self._harmonic_to(int(answered.max()))
        # Within a step the risk after i answers is (wrong_before + (i - before) * rate) / i, in the mean over orders.
        area = new * rate + (wrong_before - before * rate) * (harmonic[answered] - harmonic[before])
        return area.sum(axis=1) / answered[:, -1]

    def curve(self) -> dict[str, Any]:
        """Risk by coverage in at most 101 points, ready for JSON: `coverage`, `risk`, and `confidence`, the threshold."""
        answered, wrong = (part[0] for part in self.steps())
        steps = np.unique(np.linspace(0, len(answered) - 1, min(MOST_POINTS, len(answered))).round().astype(np.int64))
        return {
            "coverage": (answered[steps] / answered[-1]).tolist(),
            "risk": (wrong[steps] / answered[steps]).tolist(),
            "confidence": self.thresholds[steps].tolist(),
        }

    def _harmonic_to(self, most: int) -> Floats:
        """Harmonic numbers; groups of unequal size make resamples larger than the data."""
        if most >= len(self._harmonic):
            more = np.cumsum(1.0 / np.arange(len(self._harmonic), most + 1))
            self._harmonic = np.append(self._harmonic, self._harmonic[-1] + more)
        return self._harmonic
