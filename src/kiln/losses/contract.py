"""What a loss gives back: a value and a weight per sample, so that any grouping of samples has one exact mean.

The step divides the sum of `values * weights` by the sum of weights over all micro-batches and processes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from kiln.errors import UsageError


class LossTerms(NamedTuple):
    """The loss of a batch, one entry per sample.

    Attributes:
        values: (B,), floating, with gradient.
        weights: (B,), >= 0, without gradient; None when every sample counts 1.
    """

    values: Tensor
    weights: Tensor | None = None


def as_terms(result: Any, num_samples: int) -> LossTerms:
    """Take what any loss function returned.

    Args:
        result: `LossTerms`; a tensor of one value per sample; or a scalar tensor, which counts as the mean over the
            samples of the batch.
        num_samples: B.
    Returns: values of shape (B,); a scalar is repeated, so that its weighted mean over the batch is the scalar itself.
    Raises: UsageError: anything else, such as a sum over classes, a list, or an integer tensor.
    """
    terms = result if isinstance(result, LossTerms) else LossTerms(result)
    values = terms.values
    if not isinstance(values, torch.Tensor):
        raise _unfit(f"the loss returned {type(values).__name__}, not a tensor", num_samples)
    if not values.is_floating_point():
        raise _unfit(f"the loss returned a tensor of {values.dtype}, which has no gradient", num_samples)
    if terms.weights is not None and terms.weights.shape not in ((num_samples,), ()):
        raise _unfit(
            f"the loss returned weights of shape {tuple(terms.weights.shape)} for {num_samples} samples", num_samples
        )
    if values.ndim == 0:
        return LossTerms(values.expand(num_samples), terms.weights)
    if values.shape == (num_samples,):
        return terms
    raise _unfit(f"the loss returned a tensor of shape {tuple(values.shape)} for a batch of {num_samples}", num_samples)


def is_coupled(loss: Any) -> bool:
    """Whether a loss looks at the batch as a whole (`coupled = True` on it), so that a batch must not be cut."""
    return bool(getattr(loss, "coupled", False))


def _unfit(what: str, num_samples: int) -> UsageError:
    return UsageError(
        "E107",
        what,
        expected=f"a scalar (the mean over the samples), shape ({num_samples},), or kiln.losses.LossTerms",
        hint="with reduction='none', average what each sample has: loss(outputs, targets).flatten(1).mean(1)",
    )
