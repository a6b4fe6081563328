"""A recipe's `schedule` becomes a function of the step: names, settings checked against signatures, durations."""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from numbers import Real
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from kiln.errors import KilnError, UsageError
from kiln.jobs.assembly.resolve import Settings
from kiln.names import SCHEDULES, load_object, resolve
from kiln.optim.optimizers import reads_rate_once
from kiln.optim.schedules import Maker, Plateau, Schedule, as_rates, constant, with_warmup
from kiln.recipe import FIELDS
from kiln.recipe.duration import Duration
from kiln.recipe.schedule_text import parse_schedule, schedule_of


@dataclass(frozen=True)
class Clock:
    """What the durations in a schedule are counted in.

    Attributes:
        total_steps: what percents are of.
        steps_per_epoch: optimizer steps in an epoch.
        eval_every_steps: optimizer steps between two evaluations.
    """

    total_steps: int
    steps_per_epoch: int
    eval_every_steps: int

    def steps(self, duration: Any) -> int:
        """A duration, as a recipe writes it, in optimizer steps.

        Percents are rounded up: five periods of 20% are then never less than all, and no sixth begins at the last step.
        """
        length = Duration.parse(duration)
        if length.unit == "%":
            return math.ceil(round(length.value * self.total_steps / 100, 9))
        return length.to_steps(steps_per_epoch=self.steps_per_epoch, total_steps=self.total_steps)

    def evaluations(self, duration: Any) -> int:
        """A duration in evaluations, rounded up."""
        return -(-self.steps(duration) // self.eval_every_steps)


def make_schedule(settings: Settings, clock: Clock, *, validates: bool) -> tuple[Schedule, Plateau | None]:
    """Rates by step, warmup included, and what reduces them when evaluations stop improving, if the recipe says so.

    Args:
        settings: of the run.
        clock: of the whole run.
        validates: whether there are evaluations.
    Raises: UsageError: no such schedule, settings that it does not take, lengths that outlast the run, a first step at
        rate 0, a momentum that the schedule would overwrite, or an optimizer that does not look at its rate.
    """
    name, given = schedule_of({field: settings[field] for field in ("schedule.name", "schedule.args")})
    lowest = settings["schedule.min_lr_fraction"]
    found = resolve(SCHEDULES, name, kind="schedule")
    if "min_fraction" in _parameters(found) and "min_fraction" not in given:
        given = {**given, "min_fraction": lowest}
    warmup, shape = settings["schedule.warmup"], settings["schedule.warmup_shape"]
    plateau, make = None, constant
    if isinstance(found, type) and issubclass(found, Plateau):
        if not validates:
            hint = "another schedule, or set data.val_fraction or a folder called val apart"
            raise UsageError("E103", f"schedule.name = {name!r} without effect: nothing to validate on", hint=hint)
        plateau = found(**bound(found, name, given, clock))
    else:
        make = maker(name, given, clock)
    warmup_steps = warmup.to_steps(steps_per_epoch=clock.steps_per_epoch, total_steps=clock.total_steps)
    if warmup_steps == 0 and shape != FIELDS["schedule.warmup_shape"].default:
        what = f"schedule.warmup_shape = {shape!r} has no effect: {name} has no warmup"
        raise UsageError("E103", what, expected="schedule.warmup above 0, or no schedule.warmup_shape")
    schedule = with_warmup(make, clock.total_steps, warmup_steps=warmup_steps, shape=shape)
    first, momentum = as_rates(schedule(0))
    if not (any(first) if isinstance(first, tuple) else first):
        raise UsageError("E103", f"schedule.name = {name!r}: the first step has rate 0", expected="a rate above 0")
    if momentum is not None:
        _check_momentum(settings, momentum)
    if reads_rate_once(settings["optim.name"]):
        moves = plateau is not None or any(as_rates(schedule(at)).lr != first for at in range(clock.total_steps))
        _check_constant(settings["optim.name"], name, moves)
    return schedule, plateau


def _check_momentum(settings: Settings, moved: float) -> None:
    """Hold that no momentum is asked for that the schedule sets otherwise before the first step.

    Raises: UsageError: one is, of all parameters or of a group.
    """
    keys = ("momentum", "betas")
    said = [(f"optim.{key}", settings[f"optim.{key}"]) for key in keys if f"optim.{key}" not in settings.reasons]
    for pattern, rule in settings["optim.groups"].items():
        if isinstance(rule, Mapping):
            said += [(f"{key} of the group {pattern!r}", rule[key]) for key in keys if key in rule]
    for place, value in said:
        first = value[0] if isinstance(value, list | tuple) and value else value
        if isinstance(first, Real) and abs(float(first) - moved) > 1e-9:
            shown = list(value) if isinstance(value, tuple) else value
            raise UsageError(
                "E103",
                f"{place} = {shown!r} has no effect: the schedule sets momentum (the first beta), to {moved:g} at first",
                expected=f"{moved:g} there, or a schedule that leaves momentum alone",
                hint="momentum=null among the schedule's settings, as in one_cycle(momentum=null)",
            )


def _check_constant(optimizer: str, name: str, moves: bool) -> None:
    """Raises: UsageError: rates that move, for an optimizer that would not see it."""
    if moves:
        what = f"schedule.name = {name!r} has no effect: {optimizer} looks at its rate at the first step only"
        raise UsageError("E103", what, expected="schedule.name = constant (--sched constant), without a warmup")


def maker(name: str, given: Mapping[str, Any], clock: Clock) -> Maker:
    """What makes the schedule of a name for a number of steps, of which percents in its settings are.

    A function whose first parameter is `total_steps` makes a schedule; any other one of the user's is one.

    Raises: UsageError: no such schedule, or it must be the only one.
    """
    found = resolve(SCHEDULES, name, kind="schedule")
    if isinstance(found, type) and issubclass(found, Plateau):
        raise UsageError("E103", f"{name!r} cannot be part of another schedule", hint="it multiplies: name it alone")

    def make(total_steps: int) -> Schedule:
        settings = bound(found, name, given, replace(clock, total_steps=total_steps))
        if name in SCHEDULES:
            return found(total_steps, **settings)
        return guarded(_own(found, name, total_steps, settings), name)

    return make


def _own(found: Any, name: str, total_steps: int, settings: Mapping[str, Any]) -> Schedule:
    """A schedule of the user's: what their function makes, their object, or the function itself.

    Raises: UsageError: it fails.
    """
    try:
        if _makes_schedules(found):
            return found(total_steps, **settings)
        return found(**settings) if isinstance(found, type) else partial(found, **settings) if settings else found
    except KilnError:
        raise
    except Exception as error:
        what = f"the schedule {name!r} fails when it is made: {type(error).__name__}: {error}"
        raise UsageError("E107", what) from error


def guarded(function: Callable[[int], Any], name: str, *, is_factor: bool = False) -> Callable[[int], Any]:
    """A user's function of the step; whatever it raises names it and the step, and so does a result that is none.

    Args:
        function: of the 0-based step.
        name: as the recipe has it.
        is_factor: it gives a number for one group, of any sign, and not what a schedule gives.
    """

    def at(step: int) -> Any:
        try:
            asked: Any = function(step)
        except KilnError:
            raise
        except Exception as error:
            what = f"the schedule {name!r} fails at its step {step}: {type(error).__name__}: {error}"
            expected = "a function of the step, from 0 on, that gives a factor of the rate"
            raise UsageError("E107", what, expected=expected) from error
        if is_factor:
            if not isinstance(asked, Real):
                what = f"the schedule gives the factor {asked!r}"
                raise UsageError("E107", what, expected="a number", where=_at(name, step))
            return asked
        try:
            as_rates(asked)
        except UsageError as error:
            raise UsageError(error.code, error.what, expected=error.expected, where=_at(name, step)) from error
        return asked

    return at


def _at(name: str, step: int) -> str:
    return f"{name}, step {step}"


def _makes_schedules(function: Any) -> bool:
    return next(iter(_parameters(function)), "") == "total_steps"


def _parameters(function: Any) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function).parameters)


def bound(function: Any, name: str, given: Mapping[str, Any], clock: Clock) -> dict[str, Any]:
    """Settings as a function takes them: those of its keyword-only signature and no others, durations as steps.

    Raises: UsageError: an unknown setting, one that is missing, or a wrong value.
    """
    takes = {key: one for key, one in _parameters(function).items() if one.kind is one.KEYWORD_ONLY}
    for key in given:
        if key not in takes:
            what = f"unknown setting {key!r} of the schedule {name!r}"
            raise UsageError("E101", what, got=key, choices=tuple(takes), expected="" if takes else "no settings")
    hints = _hints(function)
    for key, one in takes.items():
        if one.default is one.empty and key not in given:
            example = _expected(hints.get(key))
            hint = f"--set schedule.args.{key}=... or {name}({key}=...)"
            raise UsageError("E102", f"the schedule {name!r} needs {key}", expected=example, hint=hint)
    return {key: _converted(hints.get(key), value, clock, f"{name}: {key}") for key, value in given.items()}


def _hints(function: Any) -> dict[str, Any]:
    try:
        return get_type_hints(function.__init__ if isinstance(function, type) else function, include_extras=True)
    except (NameError, TypeError, AttributeError):  # a function of the user's whose hints cannot be read
        return {}


def _converted(hint: Any, value: Any, clock: Clock, place: str) -> Any:
    """A plain value as a parameter with this hint takes it."""
    wrong = UsageError("E102", f"{place} = {value!r}", expected=_expected(hint))
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _marked(inner[1], value, clock, wrong)
    if origin in (Union, types.UnionType):
        for part in inner:
            try:
                return _converted(part, value, clock, place)
            except UsageError as error:
                wrong = error if error.code != "E102" else wrong
        raise wrong
    if origin is Literal and value not in inner:
        raise UsageError("E102", f"{place} = {value!r}", got=str(value), choices=tuple(map(str, inner)))
    if origin is Sequence or origin is tuple:
        several = list(value) if isinstance(value, list | tuple) else [value]
        kinds = inner if origin is tuple else inner * len(several)
        if len(kinds) != len(several):
            raise wrong
        return tuple(_converted(kind, one, clock, place) for kind, one in zip(kinds, several, strict=True))
    plain: dict[Any, tuple[type, ...]] = {
        float: (int, float),
        int: (int,),
        str: (str,),
        types.NoneType: (types.NoneType,),
    }
    if hint is bool and not isinstance(value, bool):
        raise wrong
    if hint in plain and (not isinstance(value, plain[hint]) or isinstance(value, bool)):
        raise wrong
    return value


def _marked(mark: str, value: Any, clock: Clock, wrong: UsageError) -> Any:
    """A value of one of the kinds that schedules mark in their signatures."""
    if mark in ("steps", "evaluations"):
        if not isinstance(value, str | int | float):
            raise wrong
        return clock.steps(value) if mark == "steps" else clock.evaluations(value)
    if not isinstance(value, str):
        raise wrong
    if mark == "function":
        return guarded(load_object(value), value, is_factor=True)
    return maker(*parse_schedule(value), clock)


WORDS = {
    "steps": "a duration, such as 3ep, 200steps or 30%",
    "evaluations": "a duration, such as 3ep",
    "function": "your own function of the step, as module:name",
    "maker": "a schedule, such as cosine or step(every=30%)",
}


def _expected(hint: Any) -> str:
    """What a parameter takes, in words."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return WORDS[inner[1]]
    if origin in (Union, types.UnionType):
        return " or ".join(map(_expected, inner))
    if origin is Literal:
        return " or ".join(map(str, inner))
    if origin is tuple:
        return f"[{', '.join(map(_expected, inner))}]"
    if origin is Sequence:
        return f"a list, each {_expected(inner[0])}"
    words = {float: "a number", int: "a whole number", bool: "true or false", str: "text", types.NoneType: "null"}
    return words.get(hint, "a value")
