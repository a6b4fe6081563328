"""Initial values by the names of parameters, each drawn from its own seed: another rule changes no other parameter."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kiln.errors import UsageError
from kiln.models.surgery import head_names
from kiln.random import Purpose, bits, keys_of

RESIDUAL_NORMS = "residual_norms"
"""In place of a pattern: the scale of the last normalisation in each residual block."""
PRIOR = "class_prior"

SCHEMES: dict[str, tuple[Callable[..., Any], int]] = {
    "xavier_uniform": (nn.init.xavier_uniform_, 0),
    "xavier_normal": (nn.init.xavier_normal_, 0),
    "kaiming_uniform": (lambda p, generator: nn.init.kaiming_uniform_(p, nonlinearity="relu", generator=generator), 0),
    "kaiming_normal": (
        lambda p, generator: nn.init.kaiming_normal_(p, mode="fan_out", nonlinearity="relu", generator=generator),
        0,
    ),
    "orthogonal": (nn.init.orthogonal_, 0),
    "normal": (lambda p, std, generator: nn.init.normal_(p, 0.0, std, generator=generator), 1),
    "trunc_normal": (
        lambda p, std, generator: nn.init.trunc_normal_(p, 0.0, std, -2 * std, 2 * std, generator=generator),
        1,
    ),
    "uniform": (lambda p, low, high, generator: nn.init.uniform_(p, low, high, generator=generator), 2),
    "constant": (lambda p, value, generator: nn.init.constant_(p, value), 1),  # noqa: ARG005 - one signature for all
    "zeros": (lambda p, generator: nn.init.zeros_(p), 0),  # noqa: ARG005
    "ones": (lambda p, generator: nn.init.ones_(p), 0),  # noqa: ARG005
}
"""Name -> what fills a parameter, and how many numbers it takes. kaiming_normal is He's, by the fan-out, as for ResNets."""
MOST = 1e30
"""Larger numbers than this overflow in float32 on the way."""
_NEED_MATRICES = ("xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal", "orthogonal")
_SCHEME = re.compile(r"\s*(\w+)\s*(?:\(([^()]*)\))?\s*")


def initialise(
    model: nn.Module, rules: Mapping[str, str], *, seed: int = 0, prior: Sequence[float] | Tensor | None = None
) -> dict[str, str]:
    """Give parameters new values, by the first rule that fits their name; what no rule fits stays as it is.

    Args:
        model: is changed in place.
        rules: pattern -> scheme, as in `{"*.conv?.weight": "kaiming_normal", "head.bias": "class_prior"}`. A pattern is a
            name with `*` and `?`, or `residual_norms`; a scheme is one of `SCHEMES` with its numbers, as in
            `normal(0.02)`, or `class_prior`.
        seed: of all draws; each parameter's own depends on its name besides.
        prior: (K,) values of the head's bias under `class_prior`, such as the logarithm of each class's share.
    Returns: what each parameter was given, by its name.
    Raises: UsageError: an unknown scheme, wrong numbers, a rule that fits nothing, or a scheme that does not fit.
    Source: Glorot and Bengio 2010; He et al. 2015, arXiv:1502.01852; Saxe et al. 2013, arXiv:1312.6120; for zeros in
        `residual_norms` Goyal et al. 2017, arXiv:1706.02677; for the prior Lin et al. 2017, arXiv:1708.02002.
    """
    parameters = dict(model.named_parameters())
    given: dict[str, str] = {}
    for pattern, scheme in rules.items():
        fitting = _fitting(model, pattern, parameters)
        if not fitting:
            hint = f"names are such as {', '.join(list(parameters)[:3])}"
            raise UsageError("E101", f"model.init: {pattern!r} fits no parameter", hint=hint)
        for name in fitting:
            if name not in given:
                _fill(model, name, parameters[name], scheme, seed=seed, prior=prior)
                given[name] = scheme
    return given


def _fitting(model: nn.Module, pattern: str, names: Iterable[str]) -> list[str]:
    if pattern == RESIDUAL_NORMS:
        return _residual_norms(model)
    return [name for name in names if fnmatchcase(name, pattern)]


def _residual_norms(model: nn.Module) -> list[str]:
    """Scales of the last norm of each block that adds its input: timm's say which, torchvision's are `bn2` and `bn3`."""
    found = []
    for name, module in model.named_modules():
        if not hasattr(module, "zero_init_last") and type(module).__name__ not in ("BasicBlock", "Bottleneck"):
            continue
        last = next((norm for norm in ("bn3", "bn2") if hasattr(module, norm)), None)
        if last is not None and isinstance(getattr(getattr(module, last), "weight", None), Tensor):
            found.append(f"{name}.{last}.weight")
    return found


@torch.no_grad()
def _fill(
    model: nn.Module, name: str, parameter: Tensor, scheme: str, *, seed: int, prior: Sequence[float] | Tensor | None
) -> None:
    if scheme.strip() == PRIOR:
        _fill_prior(model, name, parameter, prior)
        return
    fill, numbers = parse_scheme(scheme)
    if parameter.ndim < 2 and _name_of(scheme) in _NEED_MATRICES:
        what = f"model.init: {scheme} for {name}, which has shape {tuple(parameter.shape)}"
        raise UsageError("E102", what, expected="at least 2 dimensions", hint="zeros, or a pattern such as '*.weight'")
    number = bits(seed, Purpose.INIT, sample=keys_of([name]))[0, 0]
    generator = torch.Generator().manual_seed(int(number >> np.uint64(1)))
    values = torch.empty_like(parameter, device="cpu", memory_format=torch.contiguous_format)
    fill(values, *numbers, generator=generator)
    parameter.copy_(values)


def parse_scheme(text: str) -> tuple[Callable[..., Any], list[float]]:
    """What fills a parameter, and the numbers it takes.

    Raises: UsageError: an unknown name, other numbers than it takes, or numbers out of range.
    """
    found = _SCHEME.fullmatch(text)
    name = found[1] if found else text
    if found is None or name not in SCHEMES:
        raise UsageError("E101", f"model.init: {text!r}", got=name, choices=[*SCHEMES, PRIOR])
    fill, count = SCHEMES[name]
    try:
        numbers = [float(number) for number in found[2].split(",")] if (found[2] or "").strip() else []
    except ValueError:
        numbers = [float("nan")]
    if len(numbers) != count or any(number != number for number in numbers):
        expected = {0: name, 1: f"{name}(NUMBER)", 2: f"{name}(LOW,HIGH)"}[count]
        raise UsageError("E102", f"model.init: {text!r}", expected=expected)
    if any(abs(number) > MOST for number in numbers):
        raise UsageError("E102", f"model.init: {text!r}", expected="finite numbers, none beyond 1e30")
    if name in ("normal", "trunc_normal") and numbers[0] <= 0:
        raise UsageError("E102", f"model.init: {text!r}", expected=f"{name}(NUMBER), above 0", hint="zeros for zeros")
    if name == "uniform" and numbers[0] >= numbers[1]:
        raise UsageError("E102", f"model.init: {text!r}", expected="uniform(LOW,HIGH), LOW below HIGH")
    return fill, numbers


def _name_of(scheme: str) -> str:
    """A scheme's name, without its numbers: `xavier_uniform()` is `xavier_uniform`."""
    found = _SCHEME.fullmatch(scheme)
    return found[1] if found else scheme


def _fill_prior(model: nn.Module, name: str, bias: Tensor, prior: Sequence[float] | Tensor | None) -> None:
    heads = {f"{head}.bias" for head in head_names(model)}
    values = None if prior is None else torch.as_tensor(prior, dtype=bias.dtype, device=bias.device)
    if name not in heads or values is None or values.shape != bias.shape:
        what = f"model.init: {PRIOR} for {name}"
        expected = f"the bias of the head, {' or '.join(sorted(heads)) or 'which this model has none of'}"
        raise UsageError("E102", what, expected=expected)
    bias.copy_(values)
