"""Nobody outside `tasks/` asks which task it is: what differs by task is a method of the task."""

from __future__ import annotations

import ast

import pytest
from source_tree import Module, modules, parse

from kiln.names import TASKS

CLASSES = {target.partition(":")[2] for target in TASKS.values()}


def holds_task_name(node: ast.AST) -> bool:
    """Whether a literal in an expression is the name of a task."""
    return any(isinstance(part, ast.Constant) and part.value in TASKS for part in ast.walk(node))


def names_task_class(node: ast.AST) -> bool:
    """Whether an expression names the class of a task."""
    names = {getattr(part, "id", getattr(part, "attr", "")) for part in ast.walk(node)}
    return bool(names & CLASSES)


def asks_for_name(node: ast.AST) -> bool:
    """`task.name`, `self.task.name`, `model_file.task["name"]`, or a plain `task`."""
    text = ast.unparse(node)
    return text in ("task", "task_name") or text.endswith(("task.name", "task['name']", ".task_name"))


def branch_problems(module: Module) -> list[str]:
    """Comparisons, matches, type checks and look-ups by task."""
    problems = []
    for node in ast.walk(module.tree):
        found = ""
        if isinstance(node, ast.Compare):
            sides = (node.left, *node.comparators)
            same = any(isinstance(operator, ast.Eq | ast.NotEq) for operator in node.ops)
            by_name = same and any(asks_for_name(side) for side in sides) and "None" not in map(ast.unparse, sides)
            found = "comparison" if by_name or any(holds_task_name(side) for side in sides) else ""
        elif isinstance(node, ast.match_case):
            found = "match" if holds_task_name(node.pattern) or names_task_class(node.pattern) else ""
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
            found = "type check" if names_task_class(node.args[1]) else ""
        elif isinstance(node, ast.Dict):
            found = "table" if any(key is not None and holds_task_name(key) for key in node.keys) else ""
        elif isinstance(node, ast.Subscript):
            found = "look-up" if asks_for_name(node.slice) and ast.unparse(node.value) != "TASKS" else ""
        if found:
            line = getattr(node, "lineno", getattr(getattr(node, "pattern", None), "lineno", 0))
            problems.append(f"{module.path}:{line}: a {found} by task; make it a method of the task")
    return problems


def outside_tasks() -> list[Module]:
    """All but the tasks themselves, the table of names, and catalogues: those say a task's name and decide nothing."""
    apart = ("kiln.tasks", "kiln.language.zh_")
    return [m for m in modules() if not m.name.startswith(apart) and m.name != "kiln.names"]


def test_nobody_asks_which_task_it_is():
    visited = outside_tasks()
    assert len(visited) >= 60
    assert sum(isinstance(n, ast.Compare | ast.match_case) for m in visited for n in ast.walk(m.tree)) >= 300
    assert {"kiln.engine.fit", "kiln.data.source"} <= {module.name for module in visited}
    assert [problem for module in visited for problem in branch_problems(module)] == []


@pytest.mark.parametrize(
    "text",
    [
        "if task == 'multilabel': f()",
        "if task.name == 'multilabel': f()",
        "x = 1 if self.task.name != other else 2",
        "if name in ('classification', 'ordinal'): f()",
        "match task.name:\n    case 'multilabel': f()",
        "match task:\n    case Multilabel(): f()",
        "if isinstance(task, tasks.Multilabel): f()",
        "loss = {'classification': a, 'multilabel': b}",
        "loss = LOSSES[task.name]",
        "if model_file.task['name'] == wanted: f()",
    ],
)
def test_the_branch_check_can_fail(text):
    assert branch_problems(parse("kiln.engine.x", text))


@pytest.mark.parametrize(
    "text",
    ["if task is None: f()", "task = tasks.get(name)", "loss = make(task.loss)", "name: str = 'classification'"],
)
def test_the_branch_check_lets_the_right_through(text):
    assert branch_problems(parse("kiln.engine.x", text)) == []
