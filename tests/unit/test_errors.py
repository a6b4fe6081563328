"""Errors: what a message holds, exit codes, and that nothing is lost between processes."""

import pickle

import pytest

from kiln import errors
from kiln.errors import CODES, KilnError, MissingExtraError, UsageError, closest

EXIT_CODES = {
    "UsageError": 2,
    "MissingExtraError": 2,
    "DataError": 3,
    "ArtifactError": 4,
    "ResourceError": 5,
    "DistributedError": 6,
    "NumericError": 7,
    "SecurityError": 8,
    "Preempted": 75,
    "KilnError": 70,
}


def full():
    return UsageError(
        "E101",
        "model = 'resnt18'",
        where="recipe.yaml, line 3",
        expected="a model name",
        got="resnt18",
        choices=("resnet18", "vit"),
        details=("a line",),
        kept="checkpoint of step 40",
        hint="kiln models resnet",
    )


def test_a_message_says_one_fact_a_line():
    assert str(full()).splitlines() == [
        "model = 'resnt18'",
        "  where: recipe.yaml, line 3",
        "  expected: a model name",
        "  did you mean: resnet18",
        "  choices: resnet18, vit",
        "  a line",
        "  kept: checkpoint of step 40",
        "  next: kiln models resnet",
    ]


def test_a_short_error_is_one_line():
    assert str(UsageError("E102", "lr = -1")) == "lr = -1"


def test_long_choices_are_cut_and_counted():
    text = str(UsageError("E101", "x", choices=[f"name{i}" for i in range(100)]))
    assert text.endswith("name29 ... (100 in all)")
    assert "name30" not in text


@pytest.mark.parametrize("error", [full(), MissingExtraError("onnx", extra="deploy", purpose="export")])
def test_errors_travel_between_processes_whole(error):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


def test_a_missing_extra_says_what_to_install():
    error = MissingExtraError("onnxruntime", extra="deploy", purpose="running an .onnx file")
    assert error.code == "E104"
    assert "running an .onnx file needs the package 'onnxruntime'" in str(error)
    assert "pip install 'torchkiln[deploy]'" in str(error)


def test_an_unlisted_code_is_our_own_bug():
    with pytest.raises(KeyError, match="E999"):
        KilnError("E999", "x")


def test_exit_codes_are_those_promised():
    classes = {c.__name__: c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, KilnError)}
    assert {name: cls.exit_code for name, cls in classes.items()} == EXIT_CODES
    assert all(400 <= cls.http_status < 600 for cls in classes.values())


def test_codes_are_unique_and_have_a_sentence():
    assert len(CODES) >= 30
    assert len(set(CODES.values())) == len(CODES)
    assert list(CODES) == sorted(CODES)
    assert all(text and not text.endswith(".") for text in CODES.values())


@pytest.mark.parametrize(
    ("word", "choices", "expected"),
    [
        ("epoch", ["epochs", "batch_size"], "epochs"),
        ("LR", ["lr", "wd"], "lr"),
        ("qqqq", ["epochs", "batch_size"], None),
        ("x", [], None),
    ],
)
def test_closest(word, choices, expected):
    assert closest(word, choices) == expected
