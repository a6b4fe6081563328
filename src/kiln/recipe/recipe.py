"""The recipe: what was asked for, in typed sections that never change once made."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kiln.errors import ArtifactError, closest
from kiln.recipe import sections as s
from kiln.recipe.aliases import MAPPED, kebab
from kiln.recipe.check import Problem, find_problems, raise_problems
from kiln.recipe.contradictions import find_contradictions
from kiln.recipe.duration import Duration
from kiln.recipe.fields import Field, fields_of
from kiln.recipe.load import KIND, VERSION, parse_assignment, parse_value, read_recipe_file, to_yaml
from kiln.recipe.schema import schema

FIELDS: dict[str, Field] = {
    field.name: field for name, section in s.SECTIONS.items() for field in fields_of(section, name).values()
}
_DEFAULTS = {name: field.default for name, field in FIELDS.items()}


@dataclasses.dataclass(frozen=True, init=False)
class Recipe:
    """What to do, completely: `Recipe()` is valid, every field has a default.

    A section is given as its own class or as a mapping of what differs from the defaults:
    `Recipe(training={"epochs": 5}, optim=Optim(lr=0.001))`.

    Raises: UsageError: unknown sections or fields, wrong values, settings that contradict each other; all at once.
    """

    data: s.Data
    model: s.Model
    task: s.Task
    augment: s.Augment
    loss: s.Loss
    optim: s.Optim
    schedule: s.Schedule
    training: s.Training
    answers: s.Answers
    checkpoint: s.Checkpoint
    run: s.RunPlace

    def __init__(self, **sections: s.Section | Mapping[str, Any]) -> None:
        for name, made in _checked(sections, where="").items():
            object.__setattr__(self, name, made)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, over: Recipe | None = None) -> Recipe:
        """Read a recipe from a YAML file; fields that it does not name are those of `over`, or the defaults.

        Raises: UsageError: no such file, not YAML, unknown or doubled keys, wrong values.
        Raises: ArtifactError: written by a newer Kiln, or another kind of file.
        """
        tree = _without_kind(read_recipe_file(Path(path)), str(path))
        if over is not None:
            tree = {name: _values(getattr(over, name)) for name in s.SECTIONS} | {
                name: _values(getattr(over, name)) | part if name in s.SECTIONS and isinstance(part, dict) else part
                for name, part in tree.items()
                if part is not None
            }
        return cls._of(tree, str(path))

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any], *, where: str = "") -> Recipe:
        """The recipe that `to_dict` (or a parsed YAML file) describes; `where` names it in errors."""
        return cls._of(_without_kind(tree, where), where)

    @classmethod
    def _of(cls, tree: Mapping[str, Any], where: str = "") -> Recipe:
        recipe = cls.__new__(cls)
        for name, made in _checked(tree, where=where).items():
            object.__setattr__(recipe, name, made)
        return recipe

    def to_dict(self) -> dict[str, Any]:
        """Sections of plain values (durations as text, lists for tuples), as YAML and JSON take them."""
        tree: dict[str, Any] = {"kind": KIND, "version": VERSION}
        for name, field in FIELDS.items():
            tree.setdefault(name.partition(".")[0], {})[field.key] = _plain(self[name])
        return tree

    def to_yaml(self) -> str:
        """The whole recipe as YAML text."""
        return to_yaml(self.to_dict())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the recipe where `load` can read it."""
        Path(path).write_text(self.to_yaml(), encoding="utf-8")

    def __getitem__(self, name: str) -> Any:
        """The value of a field by its full name, such as `training.epochs`."""
        return _value(vars(self), name)

    def override(self, changes: Mapping[str, Any] | Iterable[str]) -> Recipe:
        """A recipe with some fields changed, later changes over earlier ones.

        Args:
            changes: values by full field name, `{"training.epochs": 5}`, or texts as `--set` takes them,
                `["training.epochs=5"]`, whose values are YAML. `model.kwargs.NAME` reaches one argument.
        Raises: UsageError: unknown fields or wrong values, all at once.
        """
        pairs = changes if isinstance(changes, Mapping) else parse_changes(changes)
        tree: dict[str, Any] = {name: _values(getattr(self, name)) for name in s.SECTIONS}
        unknown: dict[str, Any] = {}
        for name, value in pairs.items():
            section, _, key = name.partition(".")
            key, _, inner = key.partition(".")
            field = FIELDS.get(f"{section}.{key}")
            if field is not None and inner and field.accepts(dict):
                tree[section][key] = {**tree[section][key], inner: value}
            elif field is not None and not inner:
                tree[section][key] = value
            else:
                unknown[name] = value
        return self._of({**tree, **unknown})

    def with_(self, **sections: Mapping[str, Any]) -> Recipe:
        """A recipe with some fields changed, by section: `recipe.with_(training={"epochs": 5})`."""
        return self.override({f"{name}.{key}": value for name, part in sections.items() for key, value in part.items()})

    def differences(self, other: Recipe) -> dict[str, tuple[Any, Any]]:
        """The fields in which two recipes differ: full name -> (here, there)."""
        return {name: (self[name], other[name]) for name in FIELDS if self[name] != other[name]}

    @staticmethod
    def schema() -> dict[str, Any]:
        """The JSON schema (draft 2020-12) of a recipe file, for editors and other programs."""
        return schema()

    @staticmethod
    def how_fields() -> frozenset[str]:
        """The fields that say how the work is done, never what comes out; a resumed run may change them."""
        return frozenset(name for name, field in FIELDS.items() if field.how)


def meant_by(name: str) -> str | None:
    """The field (by its full name) or section that an unknown one was probably meant to be."""
    section, _, key = name.rpartition(".")
    same_key = [full for full, field in FIELDS.items() if field.key == key]
    if same_key:
        return closest(name, same_key) or same_key[0]
    if kebab(key) in MAPPED:
        return MAPPED[kebab(key)].field
    if section:
        within = closest(key, [field.key for full, field in FIELDS.items() if full.startswith(f"{section}.")])
        return f"{section}.{within}" if within else closest(name, FIELDS)
    keys = {field.key: full for full, field in FIELDS.items()}
    meant = closest(name, [*s.SECTIONS, *keys])
    return keys.get(meant, meant) if meant else None


def _checked(tree: Mapping[str, Any], *, where: str) -> dict[str, s.Section]:
    problems: list[Problem] = []
    values: dict[str, Mapping[str, Any]] = {name: {} for name in s.SECTIONS}
    for name, part in tree.items():
        if name not in s.SECTIONS:
            problems.append(_unknown(str(name)))
        elif isinstance(part, s.SECTIONS[name]):
            values[name] = _values(part)
        elif isinstance(part, Mapping):
            known = {key: value for key, value in part.items() if f"{name}.{key}" in FIELDS}
            problems += [_unknown(f"{name}.{key}") for key in part if key not in known]
            values[name] = known
        elif part is not None:  # an empty section of a YAML file
            problems.append(Problem("E102", f"{name} = {part!r}", expected="field: value pairs below it"))
    made: dict[str, s.Section] = {}
    for name, section in s.SECTIONS.items():
        checked, wrong = find_problems(section, values[name], name)
        problems += wrong
        made[name] = section.from_checked(checked)
    if not problems:
        problems = find_contradictions({name: _value(made, name) for name in FIELDS}, _DEFAULTS)
    if problems:
        raise_problems(problems, where=where)
    return made


def _unknown(name: str) -> Problem:
    meant, section = meant_by(name) or "", name.partition(".")[0]
    kind = "field" if "." in name or meant in FIELDS else "section"
    choices = [full for full in FIELDS if full.startswith(f"{section}.")] or list(s.SECTIONS)
    if meant and meant not in choices:
        choices.append(meant)
    return Problem("E101", f"unknown recipe {kind} {name!r}", meant=meant, choices=tuple(choices))


def parse_changes(assignments: Iterable[str]) -> dict[str, Any]:
    """Texts as `--set` takes them (`training.epochs=5`) as values by field name; of two for one field the later.

    Raises: UsageError: a text without a name or `=`.
    """
    changes = {}
    for assignment in assignments:
        name, text = parse_assignment(assignment)
        changes[name] = parse_value(text, FIELDS.get(name))
    return changes


def _without_kind(tree: Mapping[str, Any], where: str) -> dict[str, Any]:
    kind, version = tree.get("kind", KIND), tree.get("version", VERSION)
    if kind != KIND:
        hint = "name the run folder, or its recipe.yaml" if kind == "kiln.resolved" else ""
        raise ArtifactError("E303", f"kind = {kind!r}", where=where, expected=f"a file of kind {KIND!r}", hint=hint)
    if not isinstance(version, int) or version > VERSION:
        raise ArtifactError(
            "E303", f"version = {version!r}", where=where, expected=f"a recipe of version {VERSION}", hint="update Kiln"
        )
    return {name: part for name, part in tree.items() if name not in ("kind", "version")}


def _value(sections: Mapping[str, s.Section], name: str) -> Any:
    section, _, key = name.partition(".")
    return getattr(sections[section], key)


def _values(section: s.Section) -> dict[str, Any]:
    return {field.name: getattr(section, field.name) for field in dataclasses.fields(section)}


def _plain(value: Any) -> Any:
    if isinstance(value, Duration):
        return str(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
