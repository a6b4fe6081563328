"""Checking of recipe values: every problem of a recipe is found before the first is reported."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from kiln.errors import UsageError, closest
from kiln.recipe.duration import Duration
from kiln.recipe.fields import Field, fields_of


@dataclasses.dataclass(frozen=True)
class Problem:
    """One thing that is wrong in a recipe."""

    code: str
    what: str
    expected: str = ""
    meant: str = ""
    choices: tuple[str, ...] = ()

    def __str__(self) -> str:
        hints = [f"expected {self.expected}"] if self.expected else []
        hints += [f"did you mean {self.meant}?"] if self.meant else []
        hints += [f"choices: {', '.join(self.choices)}"] if self.choices and not self.meant else []
        return f"{self.what}: {'; '.join(hints)}" if hints else self.what


def raise_problems(problems: Sequence[Problem], *, where: str = "") -> NoReturn:
    """Report problems as one error: in full where there is one, a line each where there are several."""
    if len(problems) == 1:
        only = problems[0]
        raise UsageError(
            only.code, only.what, where=where, expected=only.expected, got=only.meant, choices=only.choices
        )
    code = min(problem.code for problem in problems)
    lines = [str(problem) for problem in problems]
    raise UsageError(code, f"{len(problems)} problems in the recipe", where=where, details=lines)


def check_section(section: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """All values of a section, defaults filled in.

    Raises: UsageError: unknown fields or wrong values, all at once.
    """
    name = section.__name__.lower()
    fields = fields_of(section, name)
    unknown = [
        Problem("E101", f"unknown recipe field '{name}.{key}'", meant=closest(key, fields) or "", choices=tuple(fields))
        for key in values
        if key not in fields
    ]
    known = {key: value for key, value in values.items() if key in fields}
    checked, wrong = find_problems(section, known, name)
    if unknown or wrong:
        raise_problems([*unknown, *wrong])
    return checked


def find_problems(section: type, values: Mapping[str, Any], section_name: str) -> tuple[dict[str, Any], list[Problem]]:
    """Check values of known fields; defaults stand in for what is not given or wrong.

    Returns: the value of every field of the section, and what is wrong with the given ones.
    """
    fields = fields_of(section, section_name)
    given = {key: _listed(fields[key], value) for key, value in values.items()}
    valid = _validated(section, given) if given else {}
    problems = [_wrong_value(fields[key], given[key]) for key in given if key not in valid]
    problems += [problem for key, value in valid.items() for problem in _wrong_units(fields[key], value)]
    return {key: copy.copy(field.default) for key, field in fields.items()} | valid, problems


def _listed(field: Field, value: Any) -> Any:
    """YAML has lists, recipes have tuples; a single value stands for a list of one."""
    if not field.is_list:
        return value
    only = value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else value
    if isinstance(only, str) and only in field.words:
        return only
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _validated(section: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the values that pass, converted."""
    from pydantic import ValidationError

    try:
        made = model_of(section).model_validate(given)
    except ValidationError as error:
        wrong = {part["loc"][0] for part in error.errors(include_url=False)}
        return _validated(section, {key: value for key, value in given.items() if key not in wrong})
    return {key: getattr(made, key) for key in given}


def _wrong_value(field: Field, value: Any) -> Problem:
    if isinstance(value, str) and field.choices:
        meant = closest(value, field.choices) or ""
        return Problem("E102", f"{field.name} = {value!r}", meant=meant, choices=field.choices)
    shown = list(value) if isinstance(value, tuple) else value
    return Problem("E102", f"{field.name} = {shown!r}", expected=field.expects)


def _wrong_units(field: Field, value: Any) -> list[Problem]:
    durations = value if isinstance(value, tuple) else (value,)
    return [
        Problem("E102", f"{field.name} = {str(duration)!r}", expected=field.expects)
        for duration in durations
        if isinstance(duration, Duration) and duration.unit not in field.units
    ]


@functools.cache
def model_of(section: type) -> Any:
    """The strict pydantic model that checks a section; also the source of its JSON schema."""
    import pydantic

    fields = fields_of(section, section.__name__.lower())
    entries: dict[str, Any] = {
        field.name: (
            fields[field.name].annotation,
            pydantic.Field(default=fields[field.name].default, **field.metadata),
        )
        for field in dataclasses.fields(section)
    }
    config = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    return pydantic.create_model(section.__name__, __config__=config, __doc__=section.__doc__, **entries)
