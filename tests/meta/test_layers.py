"""The arrow of imports: docs/architecture.md as a test. Reads every import, also inside functions."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator

import pytest
from source_tree import SRC, Module, modules, parse, type_checking_nodes

from kiln import __all__ as PUBLIC_NAMES

LAYERS = [
    {"errors", "random", "batch", "events", "names", "pixels", "run", "recipe", "redact", "language"},
    {"losses", "metrics", "optim", "augment", "data", "models"},
    {"tasks", "runtimes"},
    {"engine"},
    {"measure", "observe"},
    {"compression", "deployment", "reports", "planning"},
    {"jobs"},
    {"search", "serving", "cli", "__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}

# Who may import a room of the same layer. A pair is a decision: say here why it cannot be avoided.
SIBLINGS = {
    ("names", "errors"): "an unknown name is a KilnError",
    ("language", "errors"): "an unknown language is a KilnError",
    ("errors", "language"): "an error is said in the reader's language",
    ("recipe", "errors"): "a wrong recipe is a KilnError",
    ("recipe", "names"): "the choices of a field are the names that exist",
    ("run", "errors"): "a wrong run folder is a KilnError",
    ("run", "names"): "a Run reaches its verbs without importing them",
    ("run", "recipe"): "a run holds its recipe",
    ("runtimes", "tasks"): "a predictor says what its task makes of the logits",
    ("__main__", "cli"): "python -m kiln is the command",
}

ONLY_NUMPY_AND_PILLOW = {"numpy", "PIL"}
LIGHT_ROOMS = LAYERS[0]


def named_module(node: ast.AST) -> str:
    """A module of ours named in a string, for load_object or importlib: an import too. names.py is the one table."""
    if isinstance(node, ast.Constant) and re.fullmatch(r"kiln(\.\w+)+:\w+", str(node.value)):
        return str(node.value).replace(":", ".")
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
        literals = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
        return next((str(text) for text in literals if str(text).startswith("kiln.")), "")
    return ""


def imports_of(module: Module, *, with_type_checking: bool = True) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything that a module imports, in any place, relative names resolved."""
    guarded = set() if with_type_checking else type_checking_nodes(module.tree)
    package = module.name if module.is_package else module.name.rpartition(".")[0]
    for node in ast.walk(module.tree):
        if node in guarded:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join(parents[: len(parents) - node.level + 1] + ([base] if base else []))
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif module.name != "kiln.names" and (named := named_module(node)):
            yield node.lineno, named


def room_of(dotted: str) -> str:
    parts = dotted.split(".")
    return parts[1] if len(parts) > 1 else ""


def layer_problems(module: Module) -> list[str]:
    """Imports that go up, sideways without leave, or through the public face."""
    if module.name == "kiln":
        own = [name for _, name in imports_of(module, with_type_checking=False) if name.startswith("kiln")]
        more = [name for name in own if room_of(name) != "names"]
        return [f"{module.path}: the public face imports {name}, more than kiln.names" for name in more]
    here = room_of(module.name)
    if here not in LEVEL:
        return [f"{module.path}: the room {here!r} has no layer; give it one in LAYERS"]
    problems = []
    for line, name in imports_of(module):
        there = room_of(name)
        if not name.startswith("kiln") or (name.startswith("kiln.") and there in ("__version__", here)):
            continue
        place = f"{module.path}:{line}: {here} imports {name}"
        if there in PUBLIC_NAMES or there == "":
            problems.append(f"{place}: name the module itself, not the public face")
        elif there not in LEVEL:
            problems.append(f"{place}: the room {there!r} has no layer")
        elif LEVEL[there] > LEVEL[here]:
            problems.append(f"{place}: layer {LEVEL[here]} must not import layer {LEVEL[there]}")
        elif LEVEL[there] == LEVEL[here] and (here, there) not in SIBLINGS:
            problems.append(f"{place}: siblings of layer {LEVEL[here]}; not an allowed pair")
    return problems


def weight_problems(module: Module) -> list[str]:
    """Layer 0 runs without torch; pixels.py runs with NumPy and Pillow alone, because bundles carry a copy of it."""
    problems = []
    for line, name in imports_of(module, with_type_checking=False):
        top = name.split(".")[0]
        if room_of(module.name) in LIGHT_ROOMS and top in ("torch", "torchvision", "timm"):
            problems.append(f"{module.path}:{line}: imports {top}")
        if module.name == "kiln.pixels" and top not in ONLY_NUMPY_AND_PILLOW | sys.stdlib_module_names:
            problems.append(f"{module.path}:{line}: the pixel contract imports {top}")
    return problems


def test_imports_never_go_up():
    visited = [module for module in modules() if list(imports_of(module))]
    assert len(visited) >= 60
    assert sum(len(list(imports_of(module))) for module in visited) >= 400
    assert {room_of(module.name) for module in visited} >= set().union(*LAYERS[:4]) - {"runtimes", "redact"}
    assert [problem for module in visited for problem in layer_problems(module)] == []


def test_low_rooms_stay_light():
    visited = [module for module in modules() if room_of(module.name) in LIGHT_ROOMS]
    assert len(visited) >= 15
    assert "kiln.pixels" in {module.name for module in visited}
    assert [problem for module in visited for problem in weight_problems(module)] == []


def test_every_layer_room_and_pair_is_real():
    assert len(LEVEL) == sum(map(len, LAYERS))  # no room stands twice
    for here, there in SIBLINGS:
        assert LEVEL[here] == LEVEL[there]
    rooms = {path.stem for path in SRC.iterdir() if path.suffix == ".py"} | {p.parent.name for p in SRC.glob("*/*.py")}
    assert rooms - {"__init__", "kiln"} <= set(LEVEL)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("kiln.losses.x", "from kiln.engine.fit import fit", "layer 1 must not import layer 3"),
        ("kiln.losses.x", "def f():\n    import kiln.jobs.train", ":2: losses imports kiln.jobs.train"),
        ("kiln.losses.x", "if TYPE_CHECKING:\n    from kiln.tasks import Task", "layer 1 must not import layer 2"),
        ("kiln.losses.x", "from ..engine import fit", "layer 1 must not import layer 3"),
        ("kiln.losses.x", "load('kiln.engine.fit:fit')", "layer 1 must not import layer 3"),
        ("kiln.losses.x", "importlib.import_module('kiln.engine')", "layer 1 must not import layer 3"),
        ("kiln.losses.x", "from kiln import engine", "layer 1 must not import layer 3"),
        ("kiln.losses.x", "from kiln.metrics import wilson", "not an allowed pair"),
        ("kiln.engine.x", "import kiln", "not the public face"),
        ("kiln.engine.x", "from kiln import train", "not the public face"),
        ("kiln.engine.x", "from kiln.utils import thing", "the room 'utils' has no layer"),
        ("kiln.utils", "import os", "the room 'utils' has no layer"),
        ("kiln.pixels", "from kiln.errors import DataError", "not an allowed pair"),
        ("kiln.recipe.x", "from kiln.models import create", "layer 0 must not import layer 1"),
    ],
)
def test_the_layer_check_can_fail(name, text, words):
    problems = layer_problems(parse(name, text))
    assert len(problems) == 1
    assert words in problems[0]


def test_the_layer_check_lets_the_right_through():
    text = (
        "from kiln.losses import mse\nfrom kiln import errors, __version__\nimport kiln.engine.state\nKIND = 'kiln.x'"
    )
    assert layer_problems(parse("kiln.engine.x", text)) == []
    assert layer_problems(parse("kiln.x", "from kiln.names import VERBS", "src/kiln/x.py")) != []
    face = parse("kiln", "from kiln.jobs import train", "src/kiln/__init__.py")
    assert "more than kiln.names" in layer_problems(face)[0]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("kiln.batch", "import torch"),
        ("kiln.recipe.x", "def f():\n    from torch import nn"),
        ("kiln.pixels", "import cv2"),
        ("kiln.pixels", "from kiln.errors import KilnError"),
    ],
)
def test_the_weight_check_can_fail(name, text):
    assert len(weight_problems(parse(name, text))) == 1
    guarded = "if TYPE_CHECKING:\n    from torch import Tensor"
    assert weight_problems(parse("kiln.batch", guarded)) == []
