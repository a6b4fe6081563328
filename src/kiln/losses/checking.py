"""`check`: whether a loss does what a loss must, on made-up data, before it costs a training."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kiln.errors import UsageError
from kiln.losses.contract import as_terms, is_coupled
from kiln.losses.examples import CLASSES, EMBEDDINGS, LABELS, MASKS, SHAPES, SHARES, VALUES, Example, make_example
from kiln.losses.faults import FAIL, OK, WARN, Finding, falls, look
from kiln.losses.modules import Loss
from kiln.losses.sums import as_module

KINDS = (CLASSES, LABELS, VALUES, MASKS, SHARES)


@dataclass(frozen=True)
class LossReport:
    """What a check of a loss found.

    Attributes:
        loss: its name.
        targets: the kind of targets that it was tried with.
        findings: one per check.
    """

    loss: str
    targets: str
    findings: tuple[Finding, ...]

    @property
    def failed(self) -> tuple[str, ...]:
        """The checks that it failed."""
        return tuple(finding.check for finding in self.findings if finding.verdict == FAIL)

    @property
    def passed(self) -> bool:
        """Whether none failed; warnings are no failures."""
        return not self.failed

    def __str__(self) -> str:
        width = max(len(finding.check) for finding in self.findings)
        lines = [f"{finding.check:<{width}}  {finding.verdict:<4}  {finding.detail}" for finding in self.findings]
        return "\n".join([f"{self.loss} on {self.targets}", *lines, self.verdict])

    @property
    def verdict(self) -> str:
        """The findings in one line."""
        if self.failed:
            return f"FAIL: {', '.join(self.failed)}"
        warned = [finding.check for finding in self.findings if finding.verdict == WARN]
        return f"passes; know about: {', '.join(warned)}" if warned else "passes"


def check(loss: Any, *, targets: str = "auto", shape: tuple[int, ...] | None = None, seed: int = 0) -> LossReport:
    """Try a loss on made-up data: gradient, direction, extremes, scale, half precision, speed.

    Args:
        loss: a function `(outputs, targets)`, a module or its class, or a text as `kiln.losses.make` takes.
        targets: `classes` (B,) indices; `shares` (B, K) rows that sum to 1; `labels` (B, K) of 0 and 1; `values` (B, K);
            `masks` (B, H, W) indices; `embeddings`, outputs (B, D) of (B,) indices; or `auto`: what the loss says, else
            the first that it works with.
        shape: of one sample's outputs, classes first, such as (1, 16, 16).
        seed: of the data.
    Returns: the findings; `print` shows them as a table.
    Raises: UsageError: no loss, or it works with no targets at all.
    """
    module = as_module(loss)
    for part in module.modules():
        attach: Any = getattr(part, "attach", None)
        if attach is not None:
            attach(nn.Linear(3, 2).double())  # weights for a penalty to look at
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        example = _example(module, targets, shape, seed)
        returned = Finding("returns", OK, _returned(module, example))
        findings = tuple(look(module, example))
    return LossReport(_name(loss), example.kind, (returned, *findings))


def _example(loss: nn.Module, kind: str, shape: tuple[int, ...] | None, seed: int) -> Example:
    """What to try the loss on.

    Raises: UsageError: it fails on that, or on everything.
    """
    if kind != "auto" and kind not in SHAPES:
        raise UsageError("E101", f"targets = {kind!r}", got=kind, choices=("auto", *SHAPES))
    kinds = _declared(loss) if kind == "auto" else [kind]
    working, problems = [], []
    for one in kinds:
        example = make_example(one, shape=shape, seed=seed)
        try:
            as_terms(loss(example.outputs.clone(), example.targets.clone()), len(example.outputs))
        except Exception as error:  # noqa: BLE001 (whatever a user's loss raises is told)
            problems.append(f"{one}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        else:
            working.append(example)
    if not working:
        raise UsageError(
            "E107",
            "the loss fails on every kind of targets" if kind == "auto" else f"the loss fails on {kind}",
            details=problems,
            hint="--targets and --shape say what it is made for",
        )
    return next((example for example in working if _learns(loss, example)), working[0])


def _declared(loss: nn.Module) -> list[str]:
    """The kinds that all of Kiln's losses in it take; a position's class counts as a class."""
    parts = [part for part in loss.modules() if isinstance(part, Loss)]
    if any(part.embeds for part in parts):
        return [EMBEDDINGS]
    return [kind for kind in KINDS if all((CLASSES if kind == MASKS else kind) in part.takes for part in parts)]


def _learns(loss: nn.Module, example: Example) -> bool:
    try:
        return falls(loss, example)
    except Exception:  # noqa: BLE001 (a user's loss; another kind is tried)
        return False


def _returned(loss: nn.Module, example: Example) -> str:
    result = loss(example.outputs.clone(), example.targets.clone())
    values = result[0] if isinstance(result, tuple) else result
    what = "a scalar, which counts as the mean over the batch" if values.ndim == 0 else "a value per sample"
    return f"{what}; coupled" if is_coupled(loss) else what


def _name(loss: Any) -> str:
    return loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
