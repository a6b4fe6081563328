"""Reading and writing recipes as YAML: plain values only, every key once.

Words and numbers are read as YAML 1.2 does: `1e-4` is a number, `no` and `off` are words, only `true` and `false` are
switches. Plain PyYAML reads the first as text and the second as false, which has spoilt many a training run.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

from kiln.errors import SecurityError, UsageError
from kiln.recipe.fields import Field

KIND, VERSION = "kiln.recipe", 1

_SCALARS = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "null": (r"~|null|Null|NULL|", "~nN\0"),
    "int": (r"[-+]?[0-9]+", "-+0123456789"),
    "float": (r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan", "-+0123456789."),
}


def read_recipe_file(path: Path) -> dict[str, Any]:
    """The content of a recipe file, unchecked but for its form.

    Raises: UsageError: no such file, not YAML, a key given twice, not sections of fields.
    Raises: SecurityError: a tag that would run code.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UsageError("E102", f"cannot read the recipe {path}: {reason}") from error
    tree = read_yaml(text, where=str(path))
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UsageError("E102", "not a recipe", where=str(path), expected="sections, such as training:\n  epochs: 10")
    return tree


def read_yaml(text: str, *, where: str) -> Any:
    """Plain values from YAML text; `where` names it in errors.

    Raises: UsageError: not YAML, or a key given twice.
    Raises: SecurityError: a tag that would run code.
    """
    import yaml

    try:
        return yaml.load(text, Loader=_loader())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}, line {mark.line + 1}" if mark else where
        problem = getattr(error, "problem", None) or str(error)
        if "python/" in problem:
            raise SecurityError(
                "E701", problem, where=place, expected="plain values: no tags that name code"
            ) from error
        raise UsageError("E102", f"not YAML: {problem}", where=place) from error
    except (ValueError, TypeError, AttributeError) as error:  # what PyYAML lets through of `!!int x` and the like
        raise UsageError("E102", f"not YAML: {error}", where=where) from error
    except RecursionError as error:
        raise UsageError("E102", "not a recipe: nested too deeply", where=where) from error


@functools.cache
def _loader() -> Any:
    import yaml

    class PlainLoader(yaml.SafeLoader):
        """SafeLoader with YAML 1.2 scalars, without doubled keys and references."""

        yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (the name is PyYAML's)

        def compose_node(self, parent: Any, index: Any) -> Any:
            """Refuse references: a few lines of them can stand for gigabytes."""
            if self.check_event(yaml.AliasEvent):
                mark = self.peek_event().start_mark
                raise yaml.MarkedYAMLError(None, None, "a recipe takes no references (*name)", mark)
            return super().compose_node(parent, index)

    def mapping(loader: Any, node: Any) -> dict[str, Any]:
        seen = set()
        for key, _ in node.value:
            written = str(key.value)
            if written in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {written!r} is given twice", key.start_mark
                )
            seen.add(written)
        return loader.construct_mapping(node, deep=True)

    def number(loader: Any, node: Any) -> int:
        return int(loader.construct_scalar(node))

    PlainLoader.add_constructor("tag:yaml.org,2002:map", mapping)
    PlainLoader.add_constructor("tag:yaml.org,2002:int", number)
    _know_scalars(PlainLoader)
    return PlainLoader


def _know_scalars(resolver: Any) -> None:
    for kind, (pattern, first) in _SCALARS.items():
        first_characters = [character.strip("\0") for character in first]
        resolver.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(rf"(?:{pattern})\Z"), first_characters)


def parse_assignment(text: str) -> tuple[str, str]:
    """Name and value of `section.field=value`.

    Raises: UsageError: no `=`, or no name before it.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise UsageError("E101", f"--set {text!r}", expected="section.field=value, such as training.epochs=5")
    return name.strip(), value.strip()


def parse_value(text: str, field: Field | None) -> Any:
    """The value that a text on the command line stands for: YAML, or the text itself where the field takes text.

    A list may be written without its brackets: `augment.crop_scale=0.5,1`.
    """
    try:
        value = read_yaml(text, where="the command line")
    except UsageError:
        return text
    if field is not None and field.is_list and isinstance(value, str):
        return [parse_value(part.strip(), None) for part in value.split(",")]
    if field is not None and field.accepts(str) and value is not None and text[:1] not in ("'", '"'):
        return text  # also where YAML would see a comment or a block in it: "runs #2", "|"
    return value


def to_yaml(tree: dict[str, Any]) -> str:
    """YAML text, lists on one line, in the order given.

    Raises: UsageError: a value that YAML cannot hold.
    """
    import yaml

    try:
        return yaml.dump(tree, Dumper=_dumper(), sort_keys=False, allow_unicode=True, width=120)
    except yaml.representer.RepresenterError as error:
        raise UsageError("E107", f"a recipe cannot hold {error.args[-1]!r}", expected="text, numbers, lists") from error


@functools.cache
def _dumper() -> Any:
    import yaml

    class PlainDumper(yaml.SafeDumper):
        """SafeDumper that keeps lists on one line, and quotes what YAML 1.1 or 1.2 would not read as text."""

        def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 (the signature is PyYAML's)
            """Write equal values out instead of linking them."""
            return True

    def one_line(dumper: Any, values: Any) -> Any:
        return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=True)

    def text(dumper: Any, value: str) -> Any:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if value.isprintable() else '"')

    _know_scalars(PlainDumper)
    PlainDumper.add_representer(str, text)
    PlainDumper.add_representer(list, one_line)
    PlainDumper.add_representer(tuple, one_line)
    return PlainDumper
