"""Optimizers by name: torch's, timm's, and the user's own, fused where torch has such a kernel.

Every maker takes parameter groups, `lr=`, and settings by name; `create_optimizer` checks the settings against the
maker's own signature.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from kiln.errors import UsageError
from kiln.names import OPTIMIZERS, resolve
from kiln.optim.groups import GROUP_KEYS

Groups = list[dict[str, Any]]
Make = Callable[..., torch.optim.Optimizer]

TIMM_MOMENTUM = 0.9
"""What timm's own factory gives those that take one."""
FUSED_DEVICES = ("cpu", "cuda", "xpu", "mps")


def create_optimizer(name: str | Make, groups: Groups, *, lr: float, **settings: Any) -> torch.optim.Optimizer:
    """Make an optimizer over parameter groups.

    Args:
        name: a name of `kiln.names.OPTIMIZERS`, a name of timm's (`lion`, or `timm/muon` where torch has one of that
            name), `module:name`, or a class or function (groups, lr=..., settings) -> torch.optim.Optimizer.
        groups: as `parameter_groups` makes them.
        lr: the base rate.
        **settings: further arguments of the optimizer.
    Raises:
        UsageError: an unknown name or setting, a setting out of range, or groups with settings that the optimizer does
            not keep by group.
    """
    make = find_optimizer(name) if isinstance(name, str) else name
    shown = name if isinstance(name, str) else getattr(make, "__qualname__", repr(make))
    taken = settings_of(make)
    if taken is not None:
        _check_settings(shown, settings, taken)
        if taken.get("fused", False) is None and not {"fused", "foreach", "differentiable"} & set(settings):
            settings["fused"] = fusible(groups, make)
        if "weight_decay" not in taken and any(group.get("weight_decay") for group in groups):
            raise UsageError("E103", f"weight_decay has no effect: {shown} does not decay weights", expected="0")
        _check_num_betas(shown, settings, groups, taken.get("betas"))
    kept = [dict(group) for group in groups]
    try:
        optimizer = make(kept, lr=lr, **settings)
    except (ArithmeticError, AssertionError, AttributeError, LookupError) as error:
        raise UsageError("E102", f"{shown} refuses its settings: {type(error).__name__}: {error}") from error
    except (TypeError, ValueError) as error:
        raise UsageError("E102", f"{shown} refuses its settings: {error}") from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        what = f"{shown} made a {type(optimizer).__name__}"
        raise UsageError("E107", what, expected="a torch.optim.Optimizer over the groups that it is given")
    _check_group_settings(shown, optimizer, groups)
    prime_momentum(optimizer)
    return optimizer


def find_optimizer(name: str) -> Make:
    """What a name stands for; torch's own before timm's.

    Raises: UsageError: an unknown name, or an optimizer that needs second derivatives or a package that is missing.
    """
    if name in OPTIMIZERS or ":" in name:
        return resolve(OPTIMIZERS, name, kind="optimizer")
    from timm.optim import get_optimizer_class, get_optimizer_info, list_optimizers

    family, _, plain = name.rpartition("/")
    listed = [str(other) for other in list_optimizers()]
    if family not in ("", "timm") or plain not in listed:
        choices = [*OPTIMIZERS, *(f"timm/{other}" if other in OPTIMIZERS else other for other in listed)]
        raise UsageError(
            "E108", f"unknown optimizer {name!r}", got=name, choices=choices, hint="or your own, as module:name"
        )
    about = get_optimizer_info(plain)
    if about.second_order:
        raise UsageError("E103", f"{name} needs second derivatives", expected="an optimizer of the gradient alone")
    try:
        make = get_optimizer_class(plain, bind_defaults=True)
    except (ImportError, AssertionError) as error:  # apex and bitsandbytes, which timm only passes on
        raise UsageError("E104", f"{name}: {error}") from error
    return functools.partial(make, momentum=TIMM_MOMENTUM) if about.has_momentum else make


def reads_rate_once(name: str) -> bool:
    """Whether an optimizer looks at the learning rate at its first step only, as torch's Rprop, which then adapts its own."""
    make = find_optimizer(name)
    return isinstance(make, type) and issubclass(make, torch.optim.Rprop)


def settings_of(make: Make) -> dict[str, Any] | None:
    """What a maker takes beside the parameters, with the defaults; None where it takes anything."""
    parameters = list(inspect.signature(make).parameters.values())[1:]
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return {parameter.name: parameter.default for parameter in parameters}


def sgd(
    groups: Groups,
    *,
    lr: float,
    momentum: float = 0.9,
    nesterov: bool | None = None,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    fused: bool | None = None,
) -> torch.optim.Optimizer:
    """Stochastic gradient descent with momentum, Nesterov's unless told otherwise or damped; `momentum=0` is plain descent.

    Raises: UsageError: Nesterov's momentum is asked for where there is none, or where it is damped.
    """
    if nesterov and (momentum == 0 or dampening != 0):
        what = f"nesterov = True with momentum = {momentum:g} and dampening = {dampening:g}"
        raise UsageError("E103", what, expected="a momentum above 0 and no dampening, or no nesterov")
    optimizer = torch.optim.SGD(
        groups,
        lr=lr,
        momentum=momentum,
        nesterov=momentum > 0 and dampening == 0 if nesterov is None else nesterov,
        dampening=dampening,
        weight_decay=weight_decay,
        # A damped first step is undamped in torch, which no primed buffer can stand for: see prime_momentum.
        fused=fusible(groups) and dampening == 0 if fused is None else fused,
    )
    prime_momentum(optimizer)
    return optimizer


def adamw(
    groups: Groups,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    amsgrad: bool = False,
    fused: bool | None = None,
) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay. Source: Loshchilov and Hutter 2019, arXiv:1711.05101."""
    fused = fusible(groups) if fused is None else fused
    return torch.optim.AdamW(
        groups, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, amsgrad=amsgrad, fused=fused
    )


def prime_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Give fused SGD its momentum buffers before the first step.

    The fused kernel leaves a buffer uninitialised when the guard skips the very first step. Starting from zeros gives the
    same first step, bit for bit.
    """
    if not isinstance(optimizer, torch.optim.SGD):
        return
    for group in optimizer.param_groups:
        if group["fused"] and group["momentum"] > 0 and group["dampening"] == 0:
            for parameter in group["params"]:
                if optimizer.state[parameter].get("momentum_buffer") is None:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter, requires_grad=False)


def fusible(groups: Sequence[Mapping[str, Any]], make: Make | None = None) -> bool:
    """Whether fused kernels take these parameters: floating ones on the right device."""
    devices = ("cpu",) if make is torch.optim.Adagrad else FUSED_DEVICES
    return all(p.is_floating_point() and p.device.type in devices for g in groups for p in g["params"])


def _check_settings(shown: str, settings: Mapping[str, Any], taken: Mapping[str, Any]) -> None:
    choices = [name for name in taken if name != "lr"]
    for name in settings:
        if name not in choices:
            raise UsageError("E101", f"{shown} takes no {name!r}", got=name, choices=choices)
    missing = [name for name in choices if taken[name] is inspect.Parameter.empty and name not in settings]
    if missing:
        raise UsageError("E102", f"{shown} needs {', '.join(missing)}", hint="give it in optim.args")


def _check_num_betas(shown: str, settings: Mapping[str, Any], groups: Groups, own: Any) -> None:
    """Hold that betas, in the settings and in groups, are as many as the optimizer's own: torch counts none of them."""
    if not isinstance(own, tuple | list):
        return
    said = [("betas", settings.get("betas"))]
    said += [(f"betas of the group {group.get('name', '?')!r}", group.get("betas")) for group in groups]
    for place, betas in said:
        if betas is not None and not (isinstance(betas, tuple | list) and len(betas) == len(own)):
            shown_betas = list(betas) if isinstance(betas, tuple) else betas
            expected = f"{len(own)} numbers, such as {list(own)}"
            raise UsageError("E102", f"{place} = {shown_betas!r} for {shown}", expected=expected)


def _check_group_settings(shown: str, optimizer: torch.optim.Optimizer, groups: Groups) -> None:
    """Hold that the optimizer keeps by group what the groups set."""
    for group in groups:
        for key in group.keys() - set(GROUP_KEYS) - optimizer.defaults.keys():
            what = f"{key} has no effect in the group {group.get('name', '?')!r}: {shown} keeps no such setting"
            raise UsageError("E103", what, got=key, choices=sorted(optimizer.defaults))
