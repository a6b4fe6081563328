"""Losses by name, and sums of losses: `kiln.losses.make("cross_entropy + 0.5*dice(smooth=1)")`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kiln.errors import UsageError
from kiln.losses.contract import LossTerms, as_terms, is_coupled
from kiln.names import LOSSES, resolve
from kiln.recipe.loss_text import TAKES, Term, parse_loss


class WeightedSum(nn.Module):
    """A sum of losses, each times its factor; one value and one weight per sample.

    Where a term weighs samples (class weights, ignored positions), those weights are the sample's own, and count for all
    terms: the mean of the sum is that of its parts under the same weights, and the batch may be cut anywhere. A term that
    says nothing of some samples (`skips_samples`: an image without any counted position, an anchor without a partner)
    adds 0 for those, and leaves them to the others.

    Args:
        terms: losses, as modules.
        factors: one for each.
    """

    def __init__(self, terms: Sequence[nn.Module], factors: Sequence[float]) -> None:
        super().__init__()
        self.terms, self.factors = nn.ModuleList(terms), tuple(factors)
        self.coupled = any(map(is_coupled, terms))

    def forward(self, outputs: Tensor, targets: Tensor) -> LossTerms:
        """The sum for each sample.

        Raises: UsageError: two terms that weigh the samples differently, so that there is no one mean.
        """
        results = [as_terms(term(outputs, targets), len(outputs)) for term in self.terms]
        skips = [bool(getattr(term, "skips_samples", False)) for term in self.terms]
        values = sum(
            factor * (_where_said(terms) if skip else terms.values)
            for factor, terms, skip in zip(self.factors, results, skips, strict=True)
        )
        weighing = [
            terms.weights for terms, skip in zip(results, skips, strict=True) if terms.weights is not None and not skip
        ]
        said = [terms.weights for terms in results if terms.weights is not None]
        if len(said) == len(results) and not weighing:  # nobody says anything of some samples
            weighing = [torch.stack(said).amax(0)]
        for other in weighing[1:]:
            if not torch.equal(other, weighing[0]):  # on an accelerator this waits; only with two weighing terms
                raise UsageError(
                    "E103",
                    "two losses of a sum weigh the samples differently",
                    expected="the same class weights and ignore_index for both, or for one of them only",
                )
        return LossTerms(torch.as_tensor(values), weighing[0] if weighing else None)


def _where_said(terms: LossTerms) -> Tensor:
    return terms.values if terms.weights is None else terms.values * terms.weights


class FunctionLoss(nn.Module):
    """A loss function of the user's own as a module.

    Args:
        function: called with outputs and targets.
        settings: further arguments, by name.
    """

    def __init__(self, function: Callable[..., Any], settings: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.function, self.settings = function, dict(settings or {})
        self.coupled = is_coupled(function)

    def forward(self, outputs: Any, targets: Any) -> Any:
        """Whatever the function returns."""
        return self.function(outputs, targets, **self.settings)


def make(text: str, **options: Any) -> nn.Module:
    """The loss that a text stands for, such as `focal(gamma=1.5)` or `cross_entropy + 0.5*dice(smooth=1)`.

    Args:
        text: names of `kiln.names.LOSSES`, or the user's own as module:name.
        **options: settings for each of Kiln's losses that takes them and does not say otherwise: `smoothing`,
            `class_weights`, `pos_weight`.
    Raises: UsageError: an unknown name or setting, a value out of range, an option that reaches no term.
    """
    terms = parse_loss(text)
    for name in options:
        if not any(_takes(term, name) for term in terms):
            raise UsageError(
                "E103", f"loss.{name} has no effect with {text!r}", expected=f"one of {', '.join(TAKES.get(name, ()))}"
            )
    made = [_make_term(term, {n: v for n, v in options.items() if _takes(term, n)}) for term in terms]
    return made[0] if len(made) == 1 and terms[0].factor == 1 else WeightedSum(made, [t.factor for t in terms])


def as_module(loss: Any, settings: Mapping[str, Any] | None = None) -> nn.Module:
    """A loss in any of its forms as a module: a text, a class, a module, a function `(outputs, targets)`.

    Raises: UsageError: settings that it does not take, or something that cannot be called.
    """
    settings = settings or {}
    if isinstance(loss, str):
        return make(loss)
    if isinstance(loss, nn.Module):
        if settings:
            raise UsageError("E103", f"{type(loss).__name__} is made already and takes no {', '.join(settings)}")
        return loss
    if not callable(loss):
        raise UsageError(
            "E107", f"{type(loss).__name__} is no loss", expected="loss(outputs, targets), or an nn.Module"
        )
    _check_settings(loss, settings)
    if not isinstance(loss, type):
        return FunctionLoss(loss, settings)
    made = loss(**settings)
    return made if isinstance(made, nn.Module) else FunctionLoss(made)


def _takes(term: Term, name: str) -> bool:
    return term.name in TAKES.get(name, ()) and name not in term.settings


def _make_term(term: Term, options: Mapping[str, Any]) -> nn.Module:
    return as_module(resolve(LOSSES, term.name, kind="loss"), {**options, **term.settings})


def _check_settings(loss: Any, settings: Mapping[str, Any]) -> None:
    parameters = inspect.signature(loss).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    known = [name for name in parameters if name not in ("outputs", "targets")]
    for name in settings:
        if name not in known:
            raise UsageError(
                "E101", f"{getattr(loss, '__name__', loss)} has no setting {name!r}", got=name, choices=known
            )
