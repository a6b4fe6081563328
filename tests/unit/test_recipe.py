"""Recipes: defaults, checking, overriding, files."""

import dataclasses
import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiln.errors import ArtifactError, SecurityError, UsageError
from kiln.recipe import FIELDS, SECTIONS, Duration, Optim, Recipe, Training
from kiln.recipe.contradictions import EFFECTIVE_ONLY, POSITIVE
from kiln.recipe.load import read_yaml, to_yaml
from kiln.recipe.presets import PRESETS, preset


def test_the_default_recipe_is_valid_and_needs_no_heavy_import():
    code = (
        "import sys, kiln.recipe; kiln.recipe.Recipe(); "
        "print([name for name in ('torch', 'numpy', 'pydantic', 'yaml') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_default_passes_its_own_check():
    tree = Recipe().to_dict()
    assert Recipe.from_dict(tree) == Recipe()
    for name, section in SECTIONS.items():
        assert section(**tree[name]) == section()


def test_a_recipe_never_changes():
    recipe = Recipe()
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.training = Training(epochs="1ep")
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.training.seed = 3
    first, second = Recipe().model.kwargs, Recipe().model.kwargs
    assert first == second == {}
    assert first is not second


def test_every_field_has_one_sentence_of_help():
    assert len(FIELDS) >= 60
    for name, field in FIELDS.items():
        assert field.help.endswith("."), name
        assert len(field.help) <= 100, name
        assert field.expects, name


def test_sections_as_objects_or_mappings():
    recipe = Recipe(training={"epochs": 5}, optim=Optim(lr=1e-3))
    assert recipe.training.epochs == Duration(5, "ep")
    assert recipe["optim.lr"] == 1e-3
    assert recipe.differences(Recipe()) == {
        "training.epochs": (Duration(5, "ep"), Duration(10, "ep")),
        "optim.lr": (1e-3, "auto"),
    }


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("training.epoch", "training.epochs"),
        ("training.lr", "optim.lr"),
        ("epochs", "training.epochs"),
        ("trainig.epochs", "training.epochs"),
        ("imgsz", "model.img_size"),
        ("optin", "optim"),
        ("data.val_fracton", "data.val_fraction"),
        ("label_smoothing", "loss.smoothing"),
    ],
)
def test_unknown_names_are_refused_with_the_closest(wrong, meant):
    with pytest.raises(UsageError, match=f"did you mean: {meant}\n") as caught:
        Recipe().override({wrong: 1})
    assert caught.value.code == "E101"
    assert repr(wrong) in str(caught.value)


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("training.batch_size=x", "auto or all or a whole number >= 1"),
        ("training.batch_size=0", "auto or all or a whole number >= 1"),
        ("training.batch_size=true", "auto or all or a whole number >= 1"),
        ("training.batch_size=1.5", "auto or all or a whole number >= 1"),
        ("optim.lr=0", "auto or a number > 0"),
        ("optim.lr=.nan", "auto or a number > 0"),
        ("optim.lr=.inf", "auto or a number > 0"),
        ("loss.smoothing=1", "a number >= 0 and < 1"),
        ("augment.hflip=1.5", "a number >= 0 and <= 1"),
        ("optim.betas=fast", r"auto or \[a number >= 0 and < 1, \.\.\.\]"),
        ("optim.clip_norm=-1", "a number > 0 or null"),
        ("training.epochs=10m", "a duration such as 10ep, 10steps"),
        ("training.epochs=10%", "a duration such as 10ep, 10steps"),
        ("training.patience=1h", "a duration such as 10ep, 10steps, 10% or null"),
        ("checkpoint.every=[1ep, 5q]", r"\[a duration such as .*10m, 10s, ...\]"),
        ("checkpoint.keep=1", "a whole number >= 2"),
        ("training.epochs=0", "more than nothing"),
        ("checkpoint.every=[]", "more than nothing"),
        ("model.kwargs=3", "name: value pairs"),
        ("training=5", "field: value pairs below it"),
        ("training.seed=-1", "a whole number >= 0"),
        ("augment.crop_scale=1,0.5", "the smaller number first"),
        ("augment.crop_scale=0.5,2", "shares up to 1"),
    ],
)
def test_wrong_values_are_told_with_what_was_expected(assignment, expected):
    with pytest.raises(UsageError, match=f"expected: {expected}") as caught:
        Recipe().override([assignment])
    assert caught.value.code == "E102"


def test_a_choice_is_corrected():
    with pytest.raises(
        UsageError, match=r"run.determinism = 'strikt'\n  did you mean: strict\n  choices: off, seeded, strict"
    ):
        Recipe().override({"run.determinism": "strikt"})


def test_all_problems_at_once():
    with pytest.raises(UsageError, match=r"^5 problems in the recipe") as caught:
        Recipe().override(["epochs=5", "training.batch_size=x", "training.seed=-1", "optim.lr=0", "bogus.field=1"])
    lines = caught.value.details
    assert len(lines) == 5
    assert "did you mean training.epochs?" in lines[0]
    assert any("training.seed = -1: expected a whole number >= 0" in line for line in lines)
    assert caught.value.code == "E101"


def test_sections_check_themselves():
    with pytest.raises(UsageError, match="2 problems") as caught:
        Training(batch_sise=3, seed=-1)
    assert "did you mean batch_size?" in caught.value.details[0]
    assert Training(batch_size=8).batch_size == 8


def test_texts_are_read_as_yaml_1_2():
    recipe = Recipe().override(
        ["optim.lr=1e-4", "run.name=2024", "model.name=no", "checkpoint.every=5steps,10m", "augment.crop_scale=0.2,1",
         "model.kwargs.depth=3", "model.kwargs.flag=true", "training.drop_last=True",
         "optim.clip_norm=null", "data.path="]
    )  # fmt: skip
    assert recipe.optim.lr == 1e-4
    assert recipe.run.name == "2024"
    assert recipe.model.name == "no"
    assert recipe.checkpoint.every == (Duration(5, "steps"), Duration(10, "m"))
    assert recipe.augment.crop_scale == (0.2, 1.0)
    assert recipe.model.kwargs == {"depth": 3, "flag": True}
    assert recipe.training.drop_last is True
    assert recipe.data.path is None


@pytest.mark.parametrize("text", ["runs #2", "|", "a: b", "- x", "*", "no", "1e5", "{a}", "a 'b'"])
def test_text_stays_what_was_typed(text):
    assert Recipe().override([f"run.output={text}"]).run.output == text


def test_later_overrides_win():
    assert Recipe().override(["training.seed=1", "training.seed=2"]).training.seed == 2
    with pytest.raises(UsageError, match=r"section.field=value"):
        Recipe().override(["training.seed"])


def test_with_changes_only_what_it_names():
    recipe = Recipe().override({"training.seed": 3}).with_(training={"epochs": "2ep"}, optim={"name": "sgd"})
    assert (recipe.training.seed, recipe.training.epochs, recipe.optim.name) == (3, Duration(2, "ep"), "sgd")
    assert recipe.data == Recipe().data


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"augment.policy": "none", "augment.hflip": 0.1},
            "augment.hflip = 0.1 has no effect with augment.policy = 'none'",
        ),
        ({"optim.momentum": 0.8}, "optim.momentum = 0.8 has no effect with optim.name = 'adamw'"),
        ({"optim.name": "sgd", "optim.eps": 1e-4}, "optim.eps = 0.0001 has no effect"),
        ({"data.val_fraction": 0.6, "data.test_fraction": 0.4}, "val_fraction .* = 1\n.*samples remain"),
        (
            {"training.batch_size": 8, "training.micro_batch_size": 16},
            "micro_batch_size = 16 > training.batch_size = 8",
        ),
        ({"schedule.warmup": "10ep"}, "schedule.warmup = 10ep lasts as long as training"),
        ({"schedule.warmup": "100%"}, "lasts as long as training"),
        ({"run.strategy": "single", "run.processes": 2}, "run.processes = 2 with run.strategy = 'single'"),
    ],
)
def test_contradictions(changes, message):
    with pytest.raises(UsageError, match=message) as caught:
        Recipe().override(changes)
    assert caught.value.code == "E103"


def test_the_table_of_effects_names_fields():
    visited = [name for pair in EFFECTIVE_ONLY.items() for name in (pair[0], pair[1][0])] + list(POSITIVE)
    assert len(visited) >= 12
    assert set(visited) <= set(FIELDS)


def test_a_users_own_optimizer_may_take_anything():
    assert Recipe().override({"optim.name": "mine:make", "optim.momentum": 0.5}).optim.momentum == 0.5


def test_files_read_back(tmp_path):
    recipe = Recipe().override(
        [
            "training.epochs=20steps",
            "model.kwargs={a: [1, 2], b: no}",
            "data.path=ä ö/ü: 'x'",
            "run.name='1e-4'",
            "optim.lr=1e-30",
        ]
    )
    recipe.save(tmp_path / "recipe.yaml")
    assert Recipe.load(tmp_path / "recipe.yaml") == recipe
    assert (tmp_path / "recipe.yaml").read_text(encoding="utf-8").startswith("kind: kiln.recipe\nversion: 1\n")


@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(
        st.text(min_size=1), st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False)
    )
)
def test_any_arguments_read_back(kwargs):
    recipe = Recipe(model={"kwargs": kwargs})
    assert Recipe.from_dict(read_yaml(to_yaml(recipe.to_dict()), where="text")) == recipe


def test_a_file_names_only_what_differs(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("﻿training:\n  epochs: 3\naugment:\n", encoding="utf-8")
    assert Recipe.load(path) == Recipe(training={"epochs": 3})
    assert Recipe.load(path, over=preset("fine-tune")).model.weights == "pretrained"
    assert Recipe.load(path, over=preset("fine-tune")).training.epochs == Duration(3, "ep")
    assert Recipe.load(path, over=preset("fine-tune")).training.ema_decay == preset("fine-tune").training.ema_decay
    path.write_text("")
    assert Recipe.load(path) == Recipe()


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("training:\n  epochs: 3\n  epochs: 4\n", UsageError, "key 'epochs' is given twice\n  where: .*r.yaml, line 3"),
        ("training: {epochs: 3\n", UsageError, "not YAML.*\n  where: .*r.yaml, line 2"),
        ("- 1\n- 2\n", UsageError, "not a recipe"),
        ("model:\n  name: !!python/object/apply:os.system ['true']\n", SecurityError, "no tags that name code"),
        ("!!python/object:object {}\n", SecurityError, "no tags that name code"),
        ("model:\n  name: !local x\n", UsageError, "could not determine a constructor"),
        ("kind: kiln.resolved\n", ArtifactError, "expected: a file of kind 'kiln.recipe'"),
        ("version: 99\n", ArtifactError, "a recipe of version 1\n  next: update Kiln"),
        ("trainng:\n  epochs: 3\n", UsageError, "unknown recipe section 'trainng'\n.*r.yaml\n  did you mean: training"),
        ("lr0: 3\n", UsageError, "did you mean: optim.lr"),
        ("training:\n  5: 3\n", UsageError, "unknown recipe field 'training.5'"),
        ("model:\n  name: 50\n", UsageError, "model.name = 50\n.*\n  expected: text"),
        ("training:\n  seed: !!int x\n", UsageError, "not YAML: invalid literal"),
        ("training:\n  seed: " + "9" * 5000, UsageError, "not YAML: Exceeds the limit"),
        ("training:\n  ? [a, b]\n  : 3\n", UsageError, "not YAML: found unhashable key"),
        ("model: {kwargs: {a: &x [1], b: *x}}\n", UsageError, "takes no references"),
        ("[" * 1500, UsageError, "nested too deeply|not YAML"),
        ("model: ${HOME}\n", UsageError, r"model = '\${HOME}'"),
    ],
)
def test_bad_files(tmp_path, text, error, message):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(error, match=message):
        Recipe.load(path)


def test_unreadable_files(tmp_path):
    with pytest.raises(UsageError, match=r"cannot read the recipe .*absent.yaml: No such file"):
        Recipe.load(tmp_path / "absent.yaml")
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not UTF-8"):
        Recipe.load(tmp_path / "x.yaml")


def test_what_yaml_cannot_hold():
    with pytest.raises(UsageError, match="a recipe cannot hold <object"):
        Recipe(model={"kwargs": {"x": object()}}).to_yaml()


def test_how_fields():
    how = Recipe.how_fields()
    assert {
        "data.workers",
        "data.prefetch",
        "training.micro_batch_size",
        "run.memory_format",
        "checkpoint.every",
    } <= how
    assert not how & {
        "training.batch_size",
        "training.epochs",
        "optim.lr",
        "training.precision",
        "training.seed",
        "model.name",
    }
    assert how <= set(FIELDS)


def test_the_schema_describes_every_field():
    schema = Recipe.schema()
    json.dumps(schema)
    described = [
        f"{section}.{key}" for section, part in schema["properties"].items() for key in part.get("properties", ())
    ]
    assert described == list(FIELDS)
    batch = schema["properties"]["training"]["properties"]["batch_size"]
    assert batch["anyOf"] == [{"enum": ["auto", "all"], "type": "string"}, {"minimum": 1, "type": "integer"}]
    assert batch["description"] == FIELDS["training.batch_size"].help
    assert schema["properties"]["data"]["properties"]["workers"]["how"] is True
    assert schema["properties"]["training"]["additionalProperties"] is False


def test_presets_are_valid_and_documented():
    assert len(PRESETS) >= 4
    for name, make in PRESETS.items():
        assert Recipe.from_dict(make().to_dict()) == make(), name
        assert make.__doc__, name
    with pytest.raises(UsageError, match="did you mean: fine-tune"):
        preset("finetune")
