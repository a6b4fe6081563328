"""Nothing grows into a giant: lines of a file, lines of a function (its docstring not counted), parameters."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
from source_tree import ROOT, Module, modules, parse

MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 8

LONGER = {"kiln.engine.fit:fit": (100, "the loop is read as one piece")}
MORE_PARAMETERS = {
    "kiln.errors:KilnError.__init__": "one named part of the message each",
    "kiln.models.create:create_model": "one choice of the user's each, as in timm.create_model",
    "kiln.losses.overlap:tversky": "its two weights, besides what dice takes",
    "kiln.jobs.compare:compare": "a verb: its parameters are its flags",
    "kiln.jobs.evaluate:evaluate": "a verb: its parameters are its flags",
    "kiln.jobs.pack:pack": "a verb: its parameters are its flags",
    "kiln.jobs.predict:predict": "a verb: its parameters are its flags",
}
# Commands of the command line take one parameter per flag; typer reads them from the signature.
FLAG_MODULES = ("kiln.cli.",)

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions_of(module: Module) -> Iterator[tuple[str, Function]]:
    """Qualified name and node of every function, nested ones too."""

    def walk(node: ast.AST, prefix: str) -> Iterator[tuple[str, Function]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, Function):
                yield f"{module.name}:{prefix}{child.name}", child
            inner = f"{prefix}{child.name}." if isinstance(child, Function | ast.ClassDef) else prefix
            yield from walk(child, inner)

    yield from walk(module.tree, "")


def num_lines(function: Function) -> int:
    """Lines from `def` to the end, without the docstring."""
    first = function.body[0]
    is_docstring = (
        isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    )
    docstring_lines = (first.end_lineno or 0) - first.lineno + 1 if is_docstring else 0
    return (function.end_lineno or 0) - function.lineno + 1 - docstring_lines


def num_parameters(function: Function) -> int:
    """All parameters but self and cls."""
    names = [a.arg for a in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def size_problems(module: Module) -> list[str]:
    """Functions that are too long or take too much."""
    problems = []
    for name, function in functions_of(module):
        limit, _ = LONGER.get(name, (MAX_FUNCTION_LINES, ""))
        if num_lines(function) > limit:
            problems.append(f"{name}: {num_lines(function)} lines, at most {limit}")
        is_command = module.name.startswith(FLAG_MODULES)
        if num_parameters(function) > MAX_PARAMETERS and name not in MORE_PARAMETERS and not is_command:
            problems.append(f"{name}: {num_parameters(function)} parameters, at most {MAX_PARAMETERS}")
    return problems


def test_files():
    paths = [p for folder in ("src", "tests", "examples", "benchmarks") for p in sorted((ROOT / folder).rglob("*.py"))]
    lines = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    assert len(lines) >= 90
    assert {name: count for name, count in lines.items() if count > MAX_FILE_LINES} == {}


def test_functions():
    visited = [name for module in modules() for name, _ in functions_of(module)]
    assert len(visited) >= 600
    assert [problem for module in modules() for problem in size_problems(module)] == []


def test_exceptions_are_still_needed():
    functions = {name: function for module in modules() for name, function in functions_of(module)}
    assert set(LONGER) | set(MORE_PARAMETERS) <= functions.keys()
    for name in MORE_PARAMETERS:
        assert num_parameters(functions[name]) > MAX_PARAMETERS


def test_no_file_is_named_after_nothing():
    names = [part for module in modules() for part in module.name.split(".")]
    assert len(names) >= 100
    assert [name for name in names if name in ("utils", "util", "helpers", "helper", "misc", "common", "manager")] == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def long():\n" + "    x = 1\n" * 60, "kiln.x:long: 61 lines, at most 60"),
        ("class A:\n    async def long(self):\n" + "        x = 1\n" * 60, "kiln.x:A.long: 61 lines"),
        ("def f():\n    def g(a, b, c, d, e, *, f, g, h, i): ...", "kiln.x:f.g: 9 parameters, at most 8"),
    ],
)
def test_the_size_check_can_fail(text, words):
    problems = size_problems(parse("kiln.x", text))
    assert len(problems) == 1
    assert words in problems[0]


def test_docstrings_and_self_do_not_count():
    text = (
        'class A:\n    def f(self, a, b, c, d, *, e, f, g, h):\n        """'
        + "word\n" * 80
        + '"""\n'
        + "        x = 1\n" * 59
    )
    assert size_problems(parse("kiln.x", text)) == []
