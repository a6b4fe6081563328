"""How a model's outputs become an answer, or none: calibration and refusal. It travels inside the model file.

All of it is computed from logits in NumPy, so that every runtime, here and wherever the model is shipped to, decides alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kiln.errors import ArtifactError

Floats = NDArray[np.float64]

UNSURE, UNFAMILIAR = "unsure", "unfamiliar"
"""Why a question was not answered."""


@dataclass(frozen=True)
class Decision:
    """What stands between logits and an answer. `Decision()` changes nothing and answers always.

    Attributes:
        scale: factor of the logits: one number (1 / temperature), one for each output, or none.
        bias: added to each output after that; none, or one for each.
        least_probability: below it the answer is withheld as `unsure`.
        entropies: quantiles, in even steps from 0 to 1, of the generalised entropy of validation samples; see `unfamiliarity`.
        most_unfamiliar: above it the answer is withheld as `unfamiliar`.
        fitted: how these were found, for people: method, split, n, what was wanted, what was reached.
    """

    scale: tuple[float, ...] = ()
    bias: tuple[float, ...] = ()
    least_probability: float | None = None
    entropies: tuple[float, ...] = ()
    most_unfamiliar: float | None = None
    fitted: Mapping[str, Any] = field(default_factory=dict)

    def calibrated(self, logits: ArrayLike) -> Floats:
        """(N, K) logits whose probabilities can be believed, in float64."""
        values = np.asarray(logits, np.float64)
        if self.scale:
            values = values * np.asarray(self.scale)
        return values + np.asarray(self.bias) if self.bias else values

    def unfamiliarity(self, probabilities: ArrayLike) -> Floats | None:
        """How little each sample is like what the model knows: the share of validation samples that were more familiar.

        Args:
            probabilities: (N, K), of calibrated logits.
        Returns: (N,) from 0 to 1; None where nothing was kept to rank them by.
        """
        if not self.entropies:
            return None
        shares = np.linspace(0, 1, len(self.entropies))
        return np.interp(generalized_entropy(probabilities), self.entropies, shares)

    def refusals(self, probability: ArrayLike, unfamiliarity: ArrayLike | None) -> tuple[str, ...]:
        """Why each answer is withheld: `unfamiliar`, `unsure`, or empty where it stands.

        Args:
            probability: (N,) of each answer.
            unfamiliarity: (N,), as from `unfamiliarity`.
        """
        sure = np.atleast_1d(np.asarray(probability, np.float64))
        reasons = np.full(len(sure), "", object)
        if self.least_probability is not None:
            reasons[sure < self.least_probability] = UNSURE
        if self.most_unfamiliar is not None and unfamiliarity is not None:
            reasons[np.asarray(unfamiliarity) > self.most_unfamiliar] = UNFAMILIAR
        return tuple(reasons)

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` reads: plain values; empty where nothing was decided."""
        return {} if self == Decision() else {**asdict(self), "fitted": dict(self.fitted)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any] | None) -> Decision:
        """Read what a file says.

        Raises: ArtifactError (E303): unknown fields, or values of another kind.
        """
        values = dict(values or {})
        numbers = {name: values.get(name, ()) for name in ("scale", "bias", "entropies")}
        bounds = {name: values.get(name) for name in ("least_probability", "most_unfamiliar")}
        fits = (
            set(values) <= {*numbers, *bounds, "fitted"}
            and all(isinstance(value, Sequence) and all(map(_is_finite, value)) for value in numbers.values())
            and all(value is None or _is_finite(value) for value in bounds.values())
            and isinstance(values.get("fitted", {}), Mapping)
        )
        if not fits:
            raise ArtifactError("E303", "the file's calibration is of another kind", hint="pip install -U torchkiln")
        scale, bias, entropies = (tuple(map(float, value)) for value in numbers.values())
        return cls(
            scale, bias, bounds["least_probability"], entropies, bounds["most_unfamiliar"], values.get("fitted", {})
        )

    def require_width(self, num_outputs: int) -> None:
        """Hold that the numbers fit a model with so many outputs. Raises: ArtifactError (E304)."""
        if len(self.scale) not in (0, 1, num_outputs) or len(self.bias) not in (0, num_outputs):
            what = f"a calibration of {max(len(self.scale), len(self.bias))} outputs in a model of {num_outputs}"
            raise ArtifactError("E304", what)


def generalized_entropy(probabilities: ArrayLike, *, gamma: float = 0.1) -> Floats:
    """(N,) high for what a model does not recognise: also small doubts among unlikely classes count.

    Source: Liu, Lochman and Zach 2023, "GEN", CVPR, eq. 3 with its gamma, over all classes.

    Args:
        probabilities: (N, K).
        gamma: between 0 and 1; lower counts small doubts more.
    """
    shares = np.clip(np.asarray(probabilities, np.float64), 0.0, 1.0)
    return ((shares * (1.0 - shares)) ** gamma).sum(axis=-1)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))
