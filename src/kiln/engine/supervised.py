"""The inside of an ordinary step: images through the model, outputs against targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from kiln.batch import Batch
from kiln.engine.state import State
from kiln.losses.contract import as_terms, is_coupled
from kiln.models.outputs import main_and_auxiliary


def extra_inputs(batch: Batch) -> dict[str, Any]:
    """What a model is called with besides images: `mask` (B, H, W) where they were padded to one size."""
    return {} if batch.sizes is None else {"mask": batch.mask}


def supervised(
    loss: Callable[[Any, Any], Any], *, head: Callable[[nn.Module, Tensor], Tensor] | None = None
) -> Callable[[State, Batch], Any]:
    """Make a `forward_loss` of a loss `(outputs, targets)`; it is coupled if the loss is.

    Auxiliary outputs (inception_v3, googlenet) add their weighted loss, in training only.

    Args:
        loss: of outputs and targets.
        head: makes logits of a model and of features, for batches that hold features instead of images.
    """

    def forward_loss(state: State, batch: Batch) -> Any:
        if batch.features and head is not None:
            return loss(head(state.model, batch.images), batch.targets)
        main, auxiliary = main_and_auxiliary(state.forward(batch.images, **extra_inputs(batch)))
        result = loss(main, batch.targets)
        for weight, outputs in auxiliary:
            terms = as_terms(result, len(batch))
            more = as_terms(loss(outputs, batch.targets), len(batch))
            result = terms._replace(values=terms.values + weight * more.values)
        return result

    forward_loss.coupled = is_coupled(loss)  # pyright: ignore[reportFunctionMemberAccess]
    return forward_loss
