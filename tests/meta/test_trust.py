"""Loading is safe: nothing but the convert module opens a pickle, and nothing evaluates text (RELIABILITY S01)."""

from __future__ import annotations

import ast

import pytest
from source_tree import Module, modules, parse

PICKLES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "jsonpickle"}
LOADERS = ("torch.load", "torch.jit.load", "torch.package.PackageImporter")
DOWNLOADS = ("load_state_dict_from_url", "model_zoo.load_url", "torch.hub.load", "hub.load")
CONVERT = "kiln.models.convert"


def trust_problems(module: Module) -> list[str]:
    """Ways to run what a file holds."""
    problems = []
    for node in ast.walk(module.tree):
        found = ""
        if isinstance(node, ast.Import | ast.ImportFrom):
            tops = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found = next((top for top in tops if top.split(".")[0] in PICKLES and module.name != CONVERT), "")
        elif isinstance(node, ast.Attribute):
            dotted = ast.unparse(node)
            found = dotted if dotted in LOADERS and module.name != CONVERT else ""
            found = dotted if dotted.endswith(DOWNLOADS) else found
        elif isinstance(node, ast.keyword):
            setting = f"{node.arg}={ast.unparse(node.value)}"
            found = setting if setting in ("weights_only=False", "allow_pickle=True", "shell=True") else ""
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            unsafe_yaml = called in (
                "yaml.load",
                "yaml.full_load",
                "yaml.unsafe_load",
            ) and "Loader=" not in ast.unparse(node)
            found = called if called in ("eval", "exec", "os.system") or unsafe_yaml else ""
        if found:
            problems.append(f"{module.path}:{getattr(node, 'lineno', 0)}: {found}")
    return problems


def test_only_the_convert_module_opens_a_pickle():
    assert len(modules()) >= 60
    assert sum(isinstance(n, ast.Import | ast.ImportFrom) for m in modules() for n in ast.walk(m.tree)) >= 300
    assert [problem for module in modules() for problem in trust_problems(module)] == []


def test_the_convert_module_is_the_one_that_does():
    (convert,) = (module for module in modules() if module.name == CONVERT)
    elsewhere = parse("kiln.engine.x", convert.text)
    assert len(trust_problems(elsewhere)) >= 2
    calls = [node for node in ast.walk(convert.tree) if isinstance(node, ast.Call)]
    loads = [call for call in calls if ast.unparse(call.func) == "torch.load"]
    assert loads
    assert all("weights_only=True" in ast.unparse(call) for call in loads)


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "def f():\n    from pickle import loads",
        "import joblib.numpy_pickle",
        "torch.load(path)",
        "load = torch.load",
        "torch.hub.load_state_dict_from_url(url)",
        "np.load(path, allow_pickle=True)",
        "f(path, weights_only=False)",
        "subprocess.run(text, shell=True)",
        "eval(text)",
        "yaml.load(text)",
    ],
)
def test_the_trust_check_can_fail(text):
    assert trust_problems(parse("kiln.engine.x", text))


def test_the_trust_check_lets_the_right_through():
    text = (
        "import json\nmodel.eval()\nnp.load(path)\nyaml.load(text, Loader=Safe)\nyaml.safe_load(text)\nload_file(path)"
    )
    assert trust_problems(parse("kiln.engine.x", text)) == []
    assert trust_problems(parse(CONVERT, "import pickle\ntorch.load(p, weights_only=True)")) == []
    assert trust_problems(parse(CONVERT, "torch.load(p, weights_only=False)"))
