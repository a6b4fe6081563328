"""What is known about the fields of the sections: name, help, default, what they accept."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Interval, Le, Lt

from kiln.recipe.duration import Duration

_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", dict: "name: value pairs"}


@dataclasses.dataclass(frozen=True)
class Field:
    """One setting of a recipe, as help, docs and error messages show it."""

    name: str  # section.field
    help: str
    default: Any
    annotation: Any
    how: bool
    units: tuple[str, ...]

    @property
    def key(self) -> str:
        """The name within its section."""
        return self.name.rpartition(".")[2]

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that the field accepts; empty where it accepts something else than words."""
        parts = tuple(_alternatives(self.annotation))
        return tuple(get_args(parts[0])) if len(parts) == 1 and get_origin(parts[0]) is Literal else ()

    @property
    def expects(self) -> str:
        """What a value may be, in words."""
        return " or ".join(_in_words(part, self.units) for part in _alternatives(self.annotation))

    def accepts(self, kind: type) -> bool:
        """Whether values of a plain Python type are among what the field takes."""
        return any(_bare(part) is kind for part in _alternatives(self.annotation))

    @property
    def words(self) -> tuple[str, ...]:
        """Words that may stand for a value, such as `auto`."""
        literals = (part for part in _alternatives(self.annotation) if get_origin(part) is Literal)
        return tuple(word for part in literals for word in get_args(part))

    @property
    def is_list(self) -> bool:
        """Whether the field holds several values."""
        return any(get_origin(_bare(part)) is tuple for part in _alternatives(self.annotation))

    @property
    def is_open_list(self) -> bool:
        """Whether the field holds any number of values."""
        return self.is_list and Ellipsis in get_args(self.annotation)


@functools.cache
def fields_of(section: type, section_name: str) -> dict[str, Field]:
    """The fields of one section, in the order in which they are written there."""
    hints = typing.get_type_hints(section, include_extras=True)
    found = {}
    for field in dataclasses.fields(section):
        default = field.default if field.default is not dataclasses.MISSING else _made(field)
        extra = field.metadata["json_schema_extra"]
        found[field.name] = Field(
            name=f"{section_name}.{field.name}",
            help=field.metadata["description"],
            default=default,
            annotation=hints[field.name],
            how=bool(extra.get("how")),
            units=tuple(extra.get("units", ())),
        )
    return found


def _made(field: dataclasses.Field) -> Any:
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else None


def _alternatives(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) in (Union, types.UnionType):
        yield from get_args(annotation)
    else:
        yield annotation


def _bare(annotation: Any) -> Any:
    bare = get_args(annotation)[0] if get_origin(annotation) is typing.Annotated else annotation
    return dict if get_origin(bare) is dict else bare


def _in_words(annotation: Any, units: tuple[str, ...]) -> str:
    bare = _bare(annotation)
    if bare is type(None):
        return "null"
    if bare is Duration:
        return f"a duration such as {', '.join('10' + unit for unit in units)}"
    if get_origin(bare) is Literal:
        return " or ".join(str(choice) for choice in get_args(bare))
    if get_origin(bare) is tuple:
        parts = [part for part in get_args(bare) if part is not Ellipsis]
        word = _in_words(parts[0], units)
        return f"[{word}, ...]" if Ellipsis in get_args(bare) else f"[{', '.join([word] * len(parts))}]"
    limits = [text for part in get_args(annotation)[1:] for text in _limits(part)] if bare is not annotation else []
    return f"{_WORDS[bare]} {' and '.join(limits)}".rstrip()


def _limits(constraint: Any) -> Iterator[str]:
    if isinstance(constraint, Interval):
        for part in constraint:
            yield from _limits(part)
    elif isinstance(constraint, Ge):
        yield f">= {constraint.ge}"
    elif isinstance(constraint, Gt):
        yield f"> {constraint.gt}"
    elif isinstance(constraint, Le):
        yield f"<= {constraint.le}"
    elif isinstance(constraint, Lt):
        yield f"< {constraint.lt}"
