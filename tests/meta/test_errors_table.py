"""Every code that is used is listed, stands for its family, and is in the documentation; nothing is caught blindly."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest
from source_tree import ROOT, Module, modules, parse

from kiln import errors
from kiln.errors import CODES

FAMILY = {
    "UsageError": "E1",
    "MissingExtraError": "E1",
    "DataError": "E2",
    "ArtifactError": "E3",
    "ResourceError": "E4",
    "DistributedError": "E5",
    "NumericError": "E6",
    "SecurityError": "E7",
    "Preempted": "E8",
}
TITLES = {
    "E1": "UsageError (exit 2)",
    "E2": "DataError (exit 3)",
    "E3": "ArtifactError (exit 4)",
    "E4": "ResourceError (exit 5)",
    "E5": "DistributedError (exit 6)",
    "E6": "NumericError (exit 7)",
    "E7": "SecurityError (exit 8)",
    "E8": "Preempted (exit 75, or 130 for Ctrl-C)",
}


def codes_in(module: Module) -> Iterator[tuple[int, str]]:
    """Line and code of every string that is an error code, wherever it stands."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"E\d+", node.value):
            yield node.lineno, node.value


def calls_in(module: Module) -> Iterator[tuple[int, str, str]]:
    """Line, class and code of every error that is made with a literal code."""
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        made = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        first = node.args[0]
        if made in FAMILY and isinstance(first, ast.Constant) and re.fullmatch(r"E\d+", str(first.value)):
            yield node.lineno, made, str(first.value)


def code_problems(module: Module) -> list[str]:
    """Codes that are not listed, or that belong to another family than the class that carries them."""
    unlisted = [f"{module.path}:{line}: {code} is not in CODES" for line, code in codes_in(module) if code not in CODES]
    return unlisted + [
        f"{module.path}:{line}: {made} with {code}; its codes start with {FAMILY[made]}"
        for line, made, code in calls_in(module)
        if not code.startswith(FAMILY[made])
    ]


def catch_problems(module: Module) -> list[str]:
    """`except:`, and `except Exception: pass`, which hide our own bugs."""
    problems = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ExceptHandler):
            silent = all(isinstance(statement, ast.Pass) for statement in node.body)
            if node.type is None:
                problems.append(f"{module.path}:{node.lineno}: a bare except")
            elif silent and ast.unparse(node.type) in ("Exception", "BaseException"):
                problems.append(f"{module.path}:{node.lineno}: everything is caught and nothing is done")
    return problems


def document() -> str:
    """What docs/errors.md must be."""
    lines = [
        "# Error codes",
        "",
        "Every error that Kiln raises on purpose has one of these codes; they keep their meaning between versions.",
        "The first digit is the family, and the family is the exit status of the command and the class in Python",
        "(`kiln.errors`). Anything else that ends a command is a bug of ours: exit status 70 and a report file.",
        "Written from `kiln.errors.CODES`; a test compares the two.",
    ]
    for digit, title in TITLES.items():
        lines += ["", f"## {digit}xx: {title}", "", "| code | cause |", "| --- | --- |"]
        lines += [f"| {code} | {cause} |" for code, cause in CODES.items() if code.startswith(digit)]
    return "\n".join(lines) + "\n"


def test_codes_are_listed_and_stand_for_their_family():
    assert sum(len(list(codes_in(module))) for module in modules()) >= len(CODES) + 100
    assert sum(len(list(calls_in(module))) for module in modules()) >= 100
    assert [problem for module in modules() for problem in code_problems(module)] == []


def test_every_family_has_codes_and_every_code_a_family():
    assert {code[:2] for code in CODES} == set(FAMILY.values()) == set(TITLES)
    for name, digit in FAMILY.items():
        exit_code = getattr(errors, name).exit_code
        assert f"exit {exit_code}" in TITLES[digit]


def test_nothing_is_caught_blindly():
    handlers = [n for m in modules() for n in ast.walk(m.tree) if isinstance(n, ast.ExceptHandler)]
    assert len(handlers) >= 50
    assert [problem for module in modules() for problem in catch_problems(module)] == []


def test_the_documentation_is_written_from_the_table():
    assert (ROOT / "docs" / "errors.md").read_text(encoding="utf-8") == document()
    assert document().count("| E") == len(CODES)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('raise DataError("E299", "x")', "E299 is not in CODES"),
        ('Problem("E12", "x")', "E12 is not in CODES"),
        ('raise errors.UsageError("E203", "x")', "UsageError with E203; its codes start with E1"),
        ('def f():\n    return Preempted("E401", "x")', ":2: Preempted with E401"),
    ],
)
def test_the_code_check_can_fail(text, words):
    (problem,) = code_problems(parse("kiln.x", text))
    assert words in problem


@pytest.mark.parametrize("catch", ["except:", "except Exception:", "except BaseException:"])
def test_the_catch_check_can_fail(catch):
    assert len(catch_problems(parse("kiln.x", f"try:\n    f()\n{catch}\n    pass"))) == 1
    assert catch_problems(parse("kiln.x", "try:\n    f()\nexcept OSError:\n    pass")) == []
