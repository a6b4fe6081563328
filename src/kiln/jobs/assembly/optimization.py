"""A recipe's `optim` and averages become objects."""

from __future__ import annotations

import torch
from torch import nn

from kiln.errors import UsageError
from kiln.jobs.assembly.resolve import OWN_SETTINGS, Settings
from kiln.models.surgery import head_names
from kiln.optim.averages import Average, Ema, Swa
from kiln.optim.clipping import Clip, ClipAdaptive, ClipNorm, ClipValue
from kiln.optim.groups import check_groups, matches, parameter_groups
from kiln.optim.layers import undecayed_names
from kiln.optim.muon import Muon, is_hidden
from kiln.optim.optimizers import create_optimizer, find_optimizer, settings_of
from kiln.optim.sam import SharpnessAware
from kiln.recipe import FIELDS


def make_optimizer(
    settings: Settings,
    model: nn.Module,
    *,
    rate: float = 1.0,
    layer_decay: float = 1.0,
    rules_may_wait: bool = False,
) -> torch.optim.Optimizer:
    """The optimizer over every trainable parameter, in checked groups.

    Args:
        settings: the section `optim`.
        model: its frozen parameters are in no group.
        rate: factor of the learning rate, in a stage of fine-tuning.
        layer_decay: the stage's own, times that of the settings.
        rules_may_wait: leave out rules for what is frozen now, because another stage trains it.
    Raises: UsageError: a setting that the optimizer does not take, or that has no effect on this model.
    """
    name, args = settings["optim.name"], settings["optim.args"]
    for key in args:
        if f"optim.{key}" in FIELDS:
            raise UsageError("E101", f"optim.args.{key} = {args[key]!r}", expected=f"optim.{key}, the field of its own")
    head = head_names(model)
    lr, rules = settings["optim.lr"] * rate, settings["optim.groups"]
    if rules_may_wait:
        frozen = [key for key, parameter in model.named_parameters() if not parameter.requires_grad]
        trained = [key for key, parameter in model.named_parameters() if parameter.requires_grad]
        waiting = [rule for rule in rules if _fits(rule, frozen) and not _fits(rule, trained)]
        rules = {rule: own for rule, own in rules.items() if rule not in waiting}
    groups = parameter_groups(
        model,
        lr=lr,
        weight_decay=settings["optim.weight_decay"],
        rules=rules,
        layer_decay=settings["optim.layer_decay"] * layer_decay,
        head=head,
        head_lr=settings["optim.head_lr"],
    )
    given = {key: settings[f"optim.{key}"] for key in OWN_SETTINGS}
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    options = {key: value for key, value in options.items() if value is not None} | args
    if "not_hidden" in (settings_of(find_optimizer(name)) or {}):
        options.setdefault("not_hidden", (*head, *sorted(undecayed_names(model))))
        hidden = (is_hidden(key, p, options["not_hidden"]) for key, p in model.named_parameters())
        # A stage may train the head alone, if the others have something for Muon.
        if find_optimizer(name) is Muon and rules_may_wait and any(hidden):
            name = "kiln.optim.muon:StagedMuon"
    optimizer = create_optimizer(name, groups, lr=lr, **options)
    check_groups(model, optimizer.param_groups)
    return optimizer


def _fits(rule: str, names: list[str]) -> bool:
    return any(matches(rule, name) for name in names)


def make_clip(settings: Settings, model: nn.Module) -> Clip | None:
    """How gradients are bounded, if they are."""
    norm, value, adaptive = (settings[f"optim.clip_{kind}"] for kind in ("norm", "value", "adaptive"))
    if norm is not None:
        return ClipNorm(norm)
    if value is not None:
        return ClipValue(value)
    if adaptive is None:
        return None
    head = head_names(model)
    last = [p for name, p in model.named_parameters() if any(matches(part, name) for part in head)]
    return ClipAdaptive(adaptive, except_for=last)


def make_sam(settings: Settings) -> SharpnessAware | None:
    """The look uphill, if there is one."""
    rho, adaptive = settings["optim.sam"], settings["optim.sam_adaptive"]
    return SharpnessAware(rho, adaptive=adaptive) if rho else None


def make_average(settings: Settings, model: nn.Module, *, total_steps: int, steps_per_epoch: int) -> Average | None:
    """The average of the weights, if one is kept.

    The plain mean is of weights at the ends of epochs: its start is rounded up to one, so that the last epoch's is in.

    Raises: UsageError: no epoch ends between its start and the end of the run.
    """
    decay, start = settings["training.ema_decay"], settings["training.swa_start"]
    if decay:
        return Ema(model, decay=decay)
    if start is None:
        return None
    wanted = start.to_steps(steps_per_epoch=steps_per_epoch, total_steps=total_steps)
    first = max(1, -(-wanted // steps_per_epoch)) * steps_per_epoch
    if first > total_steps:
        what = (
            f"training.swa_start = {start} has no effect: the run ends at step {total_steps:,}, before step {first:,}"
        )
        hint = "the mean is of the weights at the ends of epochs, and begins at the first from there on"
        raise UsageError("E103", what, expected="a start within the run, such as 75%", hint=hint)
    return Swa(model, start=first, every=steps_per_epoch)
