"""The inside of an ordinary step: images through the model, outputs against targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from kiln.batch import Batch
from kiln.engine.out_of_memory import is_out_of_memory
from kiln.engine.state import State
from kiln.errors import KilnError, UsageError
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

    own = _names_of_own(loss)

    def said(state: State, outputs: Any, batch: Batch) -> Any:
        """What the loss says; where the user's own raises, it is named, with the step."""
        try:
            return loss(outputs, batch.targets)
        except KilnError:
            raise
        except Exception as error:
            if not own or is_out_of_memory(error):
                raise
            what = f"the loss {' and '.join(own)} fails at step {state.step + 1}: {type(error).__name__}: {error}"
            hint = "kiln check-loss tries a loss on made-up data before it costs a training"
            raise UsageError("E107", what, hint=hint) from error

    def forward_loss(state: State, batch: Batch) -> Any:
        if batch.features and head is not None:
            return said(state, head(state.model, batch.images), batch)
        main, auxiliary = main_and_auxiliary(state.forward(batch.images, **extra_inputs(batch)))
        result = said(state, main, batch)
        for weight, outputs in auxiliary:
            terms = as_terms(result, len(batch))
            more = as_terms(said(state, outputs, batch), len(batch))
            result = terms._replace(values=terms.values + weight * more.values)
        return result

    forward_loss.coupled = is_coupled(loss)  # pyright: ignore[reportFunctionMemberAccess]
    return forward_loss


def _names_of_own(loss: Callable[[Any, Any], Any]) -> list[str]:
    """The names of what in a loss is not ours."""
    parts = [getattr(part, "function", part) for part in loss.modules()] if isinstance(loss, nn.Module) else [loss]
    named = [part if hasattr(part, "__qualname__") else type(part) for part in parts]
    others = [one for one in named if not str(one.__module__).startswith("kiln.")]
    mine = [one for one in others if not str(one.__module__).startswith("torch.")]
    return [str(one.__qualname__) for one in mine or others if one is not nn.ModuleList]
