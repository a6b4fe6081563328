"""A recipe's `optim`, `schedule` and averages become objects."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from kiln.jobs.resolve import Settings
from kiln.names import OPTIMIZERS, SCHEDULES, resolve
from kiln.optim.averages import Ema
from kiln.optim.groups import check_groups, parameter_groups
from kiln.optim.schedules import Schedule, with_warmup


def make_optimizer(settings: Settings, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer over every trainable parameter, in checked groups."""
    lr, name = settings["optim.lr"], settings["optim.name"]
    groups = parameter_groups(model, lr=lr, weight_decay=settings["optim.weight_decay"])
    momentum, betas, eps = settings["optim.momentum"], settings["optim.betas"], settings["optim.eps"]
    options: dict[str, Any] = {"sgd": {"momentum": momentum}, "adamw": {"betas": betas, "eps": eps}}.get(name, {})
    optimizer = resolve(OPTIMIZERS, name, kind="optimizer")(groups, lr=lr, **options)
    check_groups(model, optimizer.param_groups)
    return optimizer


def make_ema(settings: Settings, model: nn.Module) -> Ema | None:
    """The average of the weights, if one is kept."""
    decay = settings["training.ema_decay"]
    return Ema(model, decay=decay) if decay else None


def make_schedule(settings: Settings, total_steps: int, steps_per_epoch: int) -> Schedule:
    """Factor of the rates by step, warmup included."""
    name = settings["schedule.name"]
    warmup_steps = settings["schedule.warmup"].to_steps(steps_per_epoch=steps_per_epoch, total_steps=total_steps)
    make = resolve(SCHEDULES, name, kind="schedule")
    return with_warmup(make, total_steps, warmup_steps=warmup_steps, min_fraction=settings["schedule.min_lr_fraction"])
