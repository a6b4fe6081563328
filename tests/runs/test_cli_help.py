"""The command from outside: what help costs, what errors look like, which status they leave."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import kiln.cli
from kiln.cli import VERBS, main
from kiln.errors import DataError
from kiln.recipe import FIELDS, Recipe
from kiln.recipe.reference import to_markdown
from kiln.redact import HIDDEN

HEAVY = ("torch", "torchvision", "timm", "numpy", "PIL", "pydantic", "yaml", "rich")


def imported_by(*arguments):
    code = (
        "import sys, kiln.cli\n"
        f"status = kiln.cli.main({list(arguments)!r})\n"
        "sys.stderr.write(f'{status} ' + repr(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    status, _, modules = done.stderr.partition(" ")
    return int(status), set(ast.literal_eval(modules)), done.stdout


def command(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "kiln", *arguments], capture_output=True, text=True, timeout=60, cwd=cwd, check=False
    )


@pytest.mark.parametrize("arguments", [["--help"], [], ["-h"], ["help"], ["--version"]])
def test_the_overview_imports_next_to_nothing(arguments):
    status, modules, output = imported_by(*arguments)
    assert status == 0
    assert not modules & {*HEAVY, "typer", "kiln.recipe"}
    assert all(verb in output for verb in VERBS) or "kiln 0." in output


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_imports_nothing_heavy(verb):
    status, modules, output = imported_by(verb, "--help")
    assert status == 0
    assert not modules & set(HEAVY)
    assert output.startswith(f"Usage: kiln {verb} ")


def test_help_of_train_speaks_the_fields_help():
    words = " ".join(command("train", "--help").stdout.split())
    assert FIELDS["training.batch_size"].help in words
    assert "-b, --batch-size N" in words
    assert command("help", "train").stdout.startswith("Usage: kiln train ")


def test_every_verb_has_a_module_and_a_line():
    modules = {path.stem for path in Path(kiln.cli.__file__).parent.glob("*.py")}
    assert len(VERBS) == 24
    assert {verb.replace("-", "_") for verb in VERBS} <= modules


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "unknown verb 'trian'\n  did you mean: train"),
        (["."], "'.' is not a verb\n  next: kiln train ."),
        (["train", "--epoch", "3"], "did you mean --epochs?"),
        (["train", ".", "--set", "training.epoch=3"], "did you mean: training.epochs"),
        (["train", ".", "--preset", "finetune"], "did you mean: fine-tune"),
        (["train", ".", "data=elsewhere"], "two data sets: '.' and 'elsewhere'"),
        (["recipe", "epochs"], "did you mean: training.epochs"),
        (["evaluate"], "Missing argument 'RUN_OR_MODEL'"),
        (["predict", "m", "x", "--format", "xml"], "choices: csv, json, parquet"),
        (["export", "m", "--opset", "x"], "Invalid value for '--opset'"),
    ],
)
def test_usage_errors_teach_and_leave_2(arguments, message, capfd):
    assert main(arguments) == 2
    out, err = capfd.readouterr()
    assert message in err
    assert out == ""


def test_all_problems_of_a_command_at_once(capfd):
    assert main(["train", "x", "--lr", "fast", "-b", "0", "--epochs", "10m", "--json"]) == 2
    out, err = capfd.readouterr()
    assert "3 problems in the recipe" in err
    error = json.loads(out.splitlines()[-1])["error"]
    assert (error["code"], error["message"]) == ("E102", "3 problems in the recipe")
    assert "optim.lr = 'fast': expected auto or a number > 0" in error["details"]


def test_json_also_where_the_parser_gives_up(capfd):
    assert main(["evaluate", "--json"]) == 2
    assert json.loads(capfd.readouterr().out)["error"]["code"] == "E101"


def test_a_recipe_that_names_code_leaves_8(tmp_path, capfd):
    path = tmp_path / "r.yaml"
    path.write_text(f"run: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']\n")
    assert main(["train", "x", "--recipe", str(path)]) == 8
    assert not (tmp_path / "made").exists()
    assert "error E701" in capfd.readouterr().err


class Verb:
    """A verb that ends as told."""

    def __init__(self, ending):
        self.ending = ending

    def run(self, arguments):
        raise self.ending


def test_each_family_leaves_its_status(monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "kiln.cli.demo", Verb(DataError("E201", "no images", hint="look elsewhere")))
    assert main(["demo"]) == 3
    assert capfd.readouterr().err == "error E201: no images\n  next: look elsewhere\n"
    monkeypatch.setitem(sys.modules, "kiln.cli.demo", Verb(KeyboardInterrupt()))
    assert main(["demo"]) == 130
    monkeypatch.setitem(sys.modules, "kiln.cli.demo", Verb(SystemExit(5)))
    assert main(["demo"]) == 5


def test_a_bug_leaves_70_and_a_report_without_secrets(monkeypatch, tmp_path, capfd):
    monkeypatch.setattr("kiln.cli.crash._log_folder", lambda: tmp_path / "logs")
    monkeypatch.setenv("HF_TOKEN", "plainsecret123")
    monkeypatch.setitem(sys.modules, "kiln.cli.demo", Verb(RuntimeError("with plainsecret123 inside")))
    assert main(["demo", "--hub-token", "othersecret"]) == 70
    err = capfd.readouterr().err
    (report,) = (tmp_path / "logs").iterdir()
    assert str(report) in err
    assert len(err.splitlines()) == 1
    text = report.read_text()
    assert "secret123" not in text
    assert "othersecret" not in text
    assert f"command: kiln demo --hub-token {HIDDEN}" in text
    assert "RuntimeError: with" in text
    assert "torch " in text


def test_a_report_goes_elsewhere_when_its_folder_cannot_be_written(monkeypatch, tmp_path):
    from kiln.cli.crash import write_report

    (tmp_path / "file").write_text("")
    monkeypatch.setattr("kiln.cli.crash._log_folder", lambda: tmp_path / "file" / "logs")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert write_report(ValueError("x"), []).parent == tmp_path


def test_the_working_folder_is_not_on_the_import_path(tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('imported from the working folder')")
    (tmp_path / "yaml.py").write_text("raise SystemExit('imported from the working folder')")
    done = command("recipe", "quick", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "epochs: 3ep" in done.stdout
    code = f"import runpy, sys; sys.argv = ['kiln', '--version']; sys.path.insert(0, {str(tmp_path)!r})\n"
    code += "try: runpy.run_module('kiln', run_name='__main__')\nexcept SystemExit: pass\nprint(sys.path[0])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.splitlines()[-1] != str(tmp_path)


def test_a_reader_that_leaves_early_is_no_error(tmp_path):
    shell = f"'{sys.executable}' -m kiln recipe --schema | head -c 10; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stdout == '{"$schema"'
    assert done.stderr == ""


def test_recipe_shows_presets_fields_and_schema(capfd):
    from kiln.recipe.load import read_yaml

    assert main(["recipe"]) == 0
    assert Recipe.from_dict(read_yaml(capfd.readouterr().out, where="stdout")) == Recipe()
    assert main(["recipe", "training.micro_batch_size"]) == 0
    out = capfd.readouterr().out
    assert "auto or a whole number >= 1" in out
    assert "--micro-batch-size" in out
    assert "may change it" in out
    assert main(["recipe", "optim"]) == 0
    assert capfd.readouterr().out.splitlines()[1].startswith("optim.name")
    assert main(["recipe", "--schema"]) == 0
    assert json.loads(capfd.readouterr().out) == Recipe.schema()
    assert main(["recipe", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == Recipe().to_dict()


def test_the_page_on_recipes_is_what_the_fields_say():
    page = Path(__file__).parents[2] / "docs" / "recipe.md"
    assert page.read_text(encoding="utf-8") == to_markdown(), f"run: kiln recipe --markdown > {os.path.relpath(page)}"
    assert sum(f"`{name}`" in page.read_text(encoding="utf-8") for name in FIELDS) == len(FIELDS)
