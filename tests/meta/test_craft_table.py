"""docs/craft.md says the truth: nothing with a name is missing, and every test that it names exists and speaks of it."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest
from source_tree import ROOT

from kiln.engine.precision import PRECISIONS
from kiln.names import LOSSES, OPTIMIZERS, SCHEDULES
from kiln.recipe import FIELDS
from kiln.recipe.finetune_text import MODES

PAGE = ROOT / "docs" / "craft.md"
NAMES = {
    "loss": [*LOSSES],
    "schedule": [*SCHEDULES],
    "optimizer": [*OPTIMIZERS],
    "fine-tuning": [*MODES],
    "precision": [*PRECISIONS],
    "regulariser": [
        *("model.drop", "model.drop_path", "model.init", "optim.weight_decay", "l1_weights", "l2_weights"),
        *(
            "finetune.l2_sp",
            "loss.smoothing",
            "augment.mixup",
            "augment.cutmix",
            "augment.first_px",
            "training.patience",
        ),
        *("training.ema_decay", "training.swa_start", "optim.sam", "optim.clip_norm", "optim.clip_value"),
        "optim.clip_adaptive",
    ],
}
CODES = ("N01", "N02", "N03", "N04", "N05", "N06", "N07", "N08", "N09", "N12", "N16")
FIELD = re.compile(r"[a-z]+\.[a-z_0-9]+")
TEST = re.compile(r"`(test_\w+\.py)::(test_\w+)`")


def rows(page: str, columns: int) -> list[list[str]]:
    """The cells of all rows of the tables with so many columns, heads left out."""
    lines = [line for line in page.splitlines() if line.startswith("|")]
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    body = [
        row for row, after in zip(found, [*found[1:], [""]], strict=True) if not is_rule(row) and not is_rule(after)
    ]
    return [row for row in body if len(row) == columns]


def is_rule(row: list[str]) -> bool:
    return set("".join(row)) <= set("- ") and row != [""]


@cache
def functions_by_file() -> dict[str, set[str]]:
    """Names of the test functions of each file; file names are unique across folders."""
    found = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found[path.name] = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    return found


def named_in(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def problems_of(page: str) -> list[str]:
    """What a page says that is not so, and what it does not say."""
    table, numbers, traps = rows(page, 4), rows(page, 3), rows(page, 2)
    problems = [
        f"no row for the {kind} {name}"
        for kind, names in NAMES.items()
        for name in names
        if not any(row[0] == kind and name in named_in(row[1]) for row in table)
    ]
    problems += [f"no row for {code}" for code in CODES if code not in {row[0] for row in numbers}]
    for name, held in [*((row[1], row[3]) for row in table), *((row[1], row[2]) for row in numbers), *traps]:
        tests = TEST.findall(held)
        if not tests or TEST.sub("", held).strip():
            problems.append(f"{name}: held by {held!r}")
        problems += [
            f"{name}: no {file}::{test}" for file, test in tests if test not in functions_by_file().get(file, ())
        ]
    for kind, cell, _, held in table:
        problems += [
            f"{field} is no field" for field in named_in(cell) if FIELD.fullmatch(field) and field not in FIELDS
        ]
        if kind in ("loss", "schedule", "optimizer"):
            texts = [text_of(file) for file, _ in TEST.findall(held)]
            problems += [
                f"{name} is not in the files of its tests"
                for name in named_in(cell)
                if name in NAMES[kind] and not any(re.search(rf"\b{name}_?\b", text) for text in texts)
            ]
    return problems


@cache
def text_of(file: str) -> str:
    return "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob(file))


def test_nothing_is_missing_and_every_test_exists():
    page = PAGE.read_text(encoding="utf-8")
    assert len(rows(page, 4)) >= 60
    assert len(rows(page, 3)) == len(CODES)
    assert len(rows(page, 2)) >= 20
    assert problems_of(page) == []


@pytest.mark.parametrize(
    ("right", "wrong", "problem"),
    [
        ("| `focal` |", "| `vocal` |", "no row for the loss focal"),
        ("::test_swa_agrees_with_torch`", "::test_swa_is_best`", "no test_averages.py::test_swa_is_best"),
        ("`optim.sam` ", "`optim.sem` ", "optim.sem is no field"),
        (" `test_sampler.py::test_trap_weights_that_are_equal_are_no_balance` |", " |", "Equal weights .*: held by ''"),
        (
            "`test_schedules_torch.py::test_polynomial`",
            "`test_lora.py::test_targets_are_ends_of_names`",
            "polynomial is not in the",
        ),
    ],
)
def test_the_check_can_fail(right, wrong, problem):
    page = PAGE.read_text(encoding="utf-8")
    assert right in page
    assert any(re.search(problem, found) for found in problems_of(page.replace(right, wrong)))


def test_file_names_of_tests_are_unique():
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names)) > 50
