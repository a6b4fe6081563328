"""What the source says to people: every text given to `tr` and to `t` of the templates, found by reading the code."""

from __future__ import annotations

import ast
import re
import string
from collections.abc import Iterator

from source_tree import ROOT, SRC, Module, modules

from kiln.cli import VERBS
from kiln.cli.bench import SUBJECTS
from kiln.errors import CODES

OUT_OF_TABLES = {*VERBS.values(), *SUBJECTS.values(), *CODES.values()}
"""Texts that reach `tr` from a table."""
_IN_TEMPLATE = re.compile(r"""\bt\(\s*("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')""")


def texts_of(module: Module) -> Iterator[tuple[int, str]]:
    """Line and text of each literal that `tr` is given, itself or by a variable of the same file.

    Raises: ValueError: `tr` is given something whose text cannot be found.
    """
    for node in ast.walk(module.tree):
        if not (isinstance(node, ast.Call) and node.args):
            continue
        called, arguments = ast.unparse(node.func), list(node.args)
        if called == "partial" and ast.unparse(arguments[0]) == "tr":
            called, arguments = "tr", arguments[1:]
        if called in ("tr", "language.tr"):
            yield from ((node.lineno, text) for text in _texts(arguments[0], module))


def _texts(given: ast.expr, module: Module) -> list[str]:
    if isinstance(given, ast.Constant):
        return [str(given.value)]
    if isinstance(given, ast.IfExp):
        return [*_texts(given.body, module), *_texts(given.orelse, module)]
    if isinstance(given, ast.Name):
        return [text for value in _assigned(given.id, module) for text in _texts(value, module)]
    return []


def _assigned(name: str, module: Module) -> list[ast.expr]:
    return [
        node.value
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == name for to in node.targets)
    ]


def spoken() -> dict[str, str]:
    """Every text that is said -> where."""
    found = dict.fromkeys(OUT_OF_TABLES, "a table")
    for module in modules():
        found |= {text: f"{module.path}:{line}" for line, text in texts_of(module)}
    for path in SRC.rglob("*.jinja"):
        text = path.read_text(encoding="utf-8")
        found |= {ast.literal_eval(one): str(path.relative_to(ROOT)) for one in _IN_TEMPLATE.findall(text)}
    return found


def skeletons() -> set[tuple[str, ...]]:
    """The fixed parts of every text in the source: what stands between the gaps of an f-string, or all of a constant.

    The catalogues themselves do not count.
    """
    found: set[tuple[str, ...]] = set()
    for module in modules():
        if module.name.startswith("kiln.language."):
            continue
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add((node.value,))
            elif isinstance(node, ast.JoinedStr):
                found.add(_parts(node))
    return found


def _parts(node: ast.JoinedStr) -> tuple[str, ...]:
    parts = [""]
    for value in node.values:
        if isinstance(value, ast.Constant):
            parts[-1] += str(value.value)
        else:
            parts.append("")
    return tuple(parts)


def parts_of(pattern: str) -> tuple[str, ...]:
    """The fixed parts of a pattern."""
    parts = [""]
    for literal, name, _, _ in string.Formatter().parse(pattern):
        parts[-1] += literal
        if name is not None:
            parts.append("")
    return tuple(parts)


def fields_of(text: str) -> set[str]:
    """The names of a text's fields."""
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
