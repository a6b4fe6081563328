"""The public face: one list, in three places that agree; lazy; and every name leads somewhere."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest
from source_tree import modules, type_checking_nodes

import kiln
from kiln.names import VERBS

HEAVY = ("torch", "torchvision", "timm", "numpy", "PIL", "pydantic", "yaml", "typer", "rich")
WITHOUT_TORCH = (
    "kiln", "kiln.errors", "kiln.names", "kiln.random", "kiln.batch", "kiln.events", "kiln.pixels", "kiln.run",
    "kiln.recipe", "kiln.metrics", "kiln.tasks", "kiln.cli",
)  # fmt: skip


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, check=False)


def face_imports() -> dict[str, str]:
    """Name -> module, of the imports that only type checkers see."""
    (face,) = (module for module in modules() if module.name == "kiln")
    guarded = type_checking_nodes(face.tree)
    imports = [node for node in guarded if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


def test_the_lists_agree():
    assert len(kiln.__all__) >= 14
    assert len(set(kiln.__all__)) == len(kiln.__all__)
    assert set(kiln.__all__) == set(VERBS) == set(face_imports())
    assert {name: target.partition(":")[0] for name, target in VERBS.items()} == face_imports()
    assert all(target.partition(":")[2] == name for name, target in VERBS.items())
    assert set(dir(kiln)) == set(kiln.__all__)


def imported(log: str) -> set[str]:
    """The top-level modules in a log of -X importtime."""
    return {line.rpartition("|")[2].strip().split(".")[0] for line in log.splitlines() if "|" in line}


def test_importing_the_package_imports_nothing_heavy():
    done = python("-X", "importtime", "-c", "import kiln")
    assert done.returncode == 0, done.stderr
    found = imported(done.stderr)
    assert "kiln" in found
    assert len(found) >= 10
    assert found & set(HEAVY) == set()


def test_the_import_log_can_show_something_heavy():
    assert "numpy" in imported(python("-X", "importtime", "-c", "import kiln.random").stderr)


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_what_must_not_import_torch(module):
    done = python("-c", f"import sys, {module}; sys.exit('torch' in sys.modules)")
    assert done.returncode == 0, done.stderr or f"{module} imports torch"


@pytest.mark.parametrize("name", sorted(VERBS))
def test_every_name_resolves(name):
    found = getattr(kiln, name)
    assert callable(found)
    assert found.__name__ == name
    assert found.__doc__


def test_other_names_are_refused():
    with pytest.raises(AttributeError, match="module 'kiln' has no attribute 'trian'"):
        kiln.trian  # noqa: B018
