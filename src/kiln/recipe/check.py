"""Checking of recipe values: every problem of a recipe is found before the first is reported."""

from __future__ import annotations

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
    got: str = ""
    choices: tuple[str, ...] = ()

    def __str__(self) -> str:
        meant = closest(self.got, self.choices) if self.got else None
        hints = [f"expected {self.expected}"] if self.expected else []
        hints += [f"did you mean {meant}?"] if meant else []
        return f"{self.what}: {'; '.join(hints)}" if hints else self.what


def raise_problems(problems: Sequence[Problem], *, where: str = "") -> NoReturn:
    """Report problems as one error: in full where there is one, a line each where there are several."""
    if len(problems) == 1:
        only = problems[0]
        raise UsageError(
            only.code, only.what, where=where, expected=only.expected, got=only.got, choices=only.choices
        )
    code = min(problem.code for problem in problems)
    raise UsageError(
        code, f"{len(problems)} problems in the recipe", where=where, details=[str(problem) for problem in problems]
    )


def check_section(section: type, values: Mapping[str, Any], section_name: str = "") -> dict[str, Any]:
    """All values of a section, defaults filled in.

    Raises: UsageError: unknown fields or wrong values, all at once.
    """
    checked, problems = find_problems(section, values, section_name or section.__name__.lower())
    if problems:
        raise_problems(problems)
    return checked


def find_problems(
    section: type, values: Mapping[str, Any], section_name: str
) -> tuple[dict[str, Any], list[Problem]]:
    """The checked values of a section (complete if nothing is wrong) and what is wrong with them."""
    fields = fields_of(section, section_name)
    checked = {key: field.default for key, field in fields.items()}
    problems = [
        Problem("E101", f"unknown recipe field {section_name}.{key}", got=str(key), choices=tuple(fields))
        for key in values
        if key not in fields
    ]
    given = {key: _listed(fields[key], value) for key, value in values.items() if key in fields}
    if given:
        valid, wrong = _validate(section, given, fields)
        checked.update(valid)
        problems += wrong
    problems += [
        problem for key in given if key not in {p.got for p in problems} for problem in _wrong_units(fields[key], checked[key])
    ]
    return checked, problems


def _listed(field: Field, value: Any) -> Any:
    """YAML has lists, recipes have tuples; a single value stands for a list of one."""
    if not field.is_list:
        return value
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _validate(
    section: type, given: dict[str, Any], fields: dict[str, Field]
) -> tuple[dict[str, Any], list[Problem]]:
    from pydantic import ValidationError

    try:
        model = model_of(section).model_validate(given)
    except ValidationError as error:
        wrong = dict.fromkeys(str(part["loc"][0]) for part in error.errors(include_url=False))
        return {}, [_wrong_value(fields[key], given[key]) for key in wrong]
    return {key: getattr(model, key) for key in given}, []


def _wrong_value(field: Field, value: Any) -> Problem:
    shown = list(value) if isinstance(value, tuple) else value
    if isinstance(value, str) and field.choices:
        return Problem("E102", f"{field.name} = {value!r}", got=value, choices=field.choices)
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

    entries: dict[str, Any] = {}
    for field in dataclasses.fields(section):
        described = fields_of(section, section.__name__.lower())[field.name]
        entries[field.name] = (described.annotation, pydantic.Field(default=described.default, **field.metadata))
    config = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    return pydantic.create_model(section.__name__, __config__=config, __doc__=section.__doc__, **entries)
