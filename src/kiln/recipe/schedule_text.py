"""A schedule as text: `cosine`, `step(every=30%)`, `mine.py:decay`, also with others inside it.

`sequential(pieces=[constant(factor=0.1), cosine], milestones=[2ep])`. Nothing is evaluated: what is in parentheses are
plain values, durations, lists and such texts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from kiln.errors import UsageError
from kiln.names import SCHEDULES
from kiln.recipe.check import Problem
from kiln.recipe.duration import Duration
from kiln.recipe.load import parse_value

EXPECTED = "a name, with settings in parentheses where it needs some, such as step(every=30%, gamma=0.3)"
WITH_LOWEST_RATE = ("cosine", "cosine_restarts", "cyclic", "linear", "plateau", "polynomial", "wsd")
"""Schedules that `schedule.min_lr_fraction` reaches. A test holds their signatures to it."""
RISES_BY_ITSELF = ("cyclic", "one_cycle")
"""Schedules that begin far below the peak, so that a warmup is put before them only on demand."""

_CALL = re.compile(r"\s*([^()\[\]]+?)\s*(?:\((.*)\))?\s*", re.DOTALL)
_SETTING = re.compile(r"\s*(\w+)\s*=(.*)", re.DOTALL)


def parse_schedule(text: str) -> tuple[str, dict[str, Any]]:
    """Name and settings of a schedule.

    Raises: UsageError: not a name with settings, or a setting given twice.
    """
    call = _CALL.fullmatch(text)
    if call is None:
        raise UsageError("E102", f"schedule {text!r} cannot be read", expected=EXPECTED)
    settings: dict[str, Any] = {}
    for part in _parts(call[2] or ""):
        setting = _SETTING.fullmatch(part)
        if setting is None or setting[1] in settings:
            raise UsageError("E102", f"schedule {text!r}: {part.strip()!r}", expected=EXPECTED)
        settings[setting[1]] = _value(setting[2].strip())
    return call[1], settings


def _parts(text: str) -> list[str]:
    """What stands between commas, but not between those inside brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([") - (character in ")]")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts if text.strip() else []


def _value(text: str) -> Any:
    if text.startswith("[") and text.endswith("]"):
        return [_value(part.strip()) for part in _parts(text[1:-1])]
    return text if "(" in text else parse_value(text, None)


def schedule_of(values: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and all settings of a recipe's schedule: those in `schedule.name` and those of `schedule.args`."""
    name, settings = parse_schedule(values["schedule.name"])
    return name, {**settings, **values["schedule.args"]}


def code_in(value: Any) -> Iterator[str]:
    """The user's own code that a schedule or its settings name, as module:name."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for one in value:
            yield from code_in(one)
    elif isinstance(value, str) and ":" in value:
        try:
            name, settings = parse_schedule(value)
        except UsageError:
            name, settings = value, {}
        if ":" in name:
            yield name
        yield from code_in(settings)


def find_schedule_problems(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong with a recipe's schedule: it cannot be read, or a setting beside it has no effect."""
    try:
        name, settings = parse_schedule(values["schedule.name"])
    except UsageError as error:
        yield Problem(error.code, f"schedule.name: {error.what}", error.expected)
        return
    for twice in settings.keys() & values["schedule.args"].keys():
        yield Problem("E103", f"{twice} stands in schedule.name and in schedule.args", expected="one of them")
    lowest = values["schedule.min_lr_fraction"]
    if lowest != defaults["schedule.min_lr_fraction"]:
        said = f"schedule.min_lr_fraction = {lowest} has no effect with schedule"
        if name in SCHEDULES and name not in WITH_LOWEST_RATE:
            expected = f"schedule.name = {' or '.join(WITH_LOWEST_RATE)}, or no schedule.min_lr_fraction"
            yield Problem("E103", f"{said}.name = {name!r}", expected=expected)
        elif "min_fraction" in {**settings, **values["schedule.args"]}:
            yield Problem("E103", f"{said}.args.min_fraction, which says the same", expected="one of them")
    warmup, epochs = values["schedule.warmup"], values["training.epochs"]
    if not isinstance(warmup, Duration):
        return
    if warmup.value == 0 and values["schedule.warmup_shape"] != defaults["schedule.warmup_shape"]:
        what = f"schedule.warmup_shape = {values['schedule.warmup_shape']!r} has no effect without a warmup"
        yield Problem("E103", what, expected="schedule.warmup above 0, or no schedule.warmup_shape")
    whole = Duration(100, "%") if warmup.unit == "%" else epochs
    if warmup.unit == whole.unit and warmup.value >= whole.value:
        what = f"schedule.warmup = {warmup} lasts as long as training ({epochs})"
        yield Problem("E103", what, expected="less than it")
