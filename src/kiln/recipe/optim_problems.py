"""What of a recipe's `optim` section would have no effect, as far as names tell; the rest is seen when it is made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kiln.names import OPTIMIZERS
from kiln.recipe.check import Problem

_ADAMS = ("adam", "adamw", "nadam", "radam", "adamax", "muon")
TAKEN_BY = {
    "momentum": ("sgd", "rmsprop", "muon"),
    "betas": _ADAMS,
    "eps": (*_ADAMS, "adagrad", "adadelta", "rmsprop"),
    "weight_decay": tuple(name for name in OPTIMIZERS if name not in ("lbfgs", "rprop")),
}
"""Which of our own names take a setting. timm's and the user's own are asked when they are made."""
ONE_GROUP = ("groups", "layer_decay", "head_lr")
CLIPS = ("clip_norm", "clip_value", "clip_adaptive")


def find_optim_problems(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> Iterator[Problem]:
    """What contradicts within the section.

    Args:
        values: every field of a recipe by its full name, each valid alone.
        defaults: the same for a recipe that says nothing.
    """
    name = values["optim.name"]
    said = {key for key in _keys(values) if values[f"optim.{key}"] != defaults[f"optim.{key}"]}
    for key, takers in TAKEN_BY.items():
        if key in said and values[f"optim.{key}"] != 0 and name in OPTIMIZERS and name not in takers:
            yield _without_effect(values, key, f"optim.name = {name!r}", f"optim.name = {' or '.join(takers)}")
    if name == "lbfgs":
        for key in said.intersection(ONE_GROUP):
            yield _without_effect(values, key, "optim.name = 'lbfgs', which has one rate for all", "another optim.name")
        for key in sorted(said.intersection((*CLIPS, "sam"))):
            what = f"optim.{key} = {values[f'optim.{key}']!r} would mislead the line search of optim.name = 'lbfgs'"
            yield Problem("E103", what, expected=f"another optim.name, or no optim.{key}")
    if "sam_adaptive" in said and not values["optim.sam"]:
        yield _without_effect(values, "sam_adaptive", "optim.sam = 0", "optim.sam above 0")
    clips = [f"optim.{key} = {values[f'optim.{key}']}" for key in CLIPS if values[f"optim.{key}"] is not None]
    if len(clips) > 1:
        yield Problem("E103", " and ".join(clips), expected="one way to clip")


def _keys(values: Mapping[str, Any]) -> list[str]:
    return [name.partition(".")[2] for name in values if name.startswith("optim.")]


def _without_effect(values: Mapping[str, Any], key: str, why: str, expected: str) -> Problem:
    what = f"optim.{key} = {values[f'optim.{key}']!r} has no effect with {why}"
    return Problem("E103", what, expected=f"{expected}, or no optim.{key}")
