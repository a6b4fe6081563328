"""Losses as text: sums, settings, the user's own; read without evaluating anything, with errors that name the closest."""

import contextlib
import inspect

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kiln import losses as L
from kiln.errors import UsageError
from kiln.names import LOSSES, load_object, name_of
from kiln.recipe import Recipe
from kiln.recipe.loss_text import TAKES, Term, code_in, parse_loss
from kiln.recipe.trust import code_names


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("cross_entropy", [Term("cross_entropy")]),
        (" dice(smooth=1) ", [Term("dice", 1.0, {"smooth": 1})]),
        ("cross_entropy + 0.5*dice(smooth=1)", [Term("cross_entropy"), Term("dice", 0.5, {"smooth": 1})]),
        ("mse + mae*2 + 1e-3*huber", [Term("mse"), Term("mae", 2.0), Term("huber", 1e-3)]),
        ("2*3*mse", [Term("mse", 6.0)]),
        ("dice(class_weights=[0, 1.5], per_batch=True)", [Term("dice", 1.0, {"class_weights": [0, 1.5], "per_batch": True})]),
        ("my.module:Loss", [Term("my.module:Loss")]),
        ("my.module:Loss(alpha=-2, name='a:b')", [Term("my.module:Loss", 1.0, {"alpha": -2, "name": "a:b"})]),
        ("mse + 0.1*some/path-1/mine.py:f(x=None)", [Term("mse"), Term("some/path-1/mine.py:f", 0.1, {"x": None})]),
        ("/a path/with spaces/mine.py:f", [Term("/a path/with spaces/mine.py:f")]),
        (r"mse + C:\code\mine.py:f", [Term("mse"), Term(r"C:\code\mine.py:f")]),
    ],
)  # fmt: skip
def test_what_a_text_says(text, terms):
    assert parse_loss(text) == tuple(terms)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cross_entrpy", "did you mean: cross_entropy"),
        ("cross_entropy + 0.5*dise", "did you mean: dice"),
        ("cross_entropy +", "cannot be read"),
        ("cross_entropy - dice", "expected: a sum such as"),
        ("dice * mse", "'dice \\* mse'\n  expected: a number times a loss"),
        ("-1*dice", "'-1 \\* dice'\n  expected: a number times a loss"),
        ("0*dice", "the factor 0"),
        ("1e999*dice", "the factor inf"),
        ("dice(1)", "settings by name"),
        ("dice(smooth=open('x'))", "expected: a number, text"),
        ("dice(**x)", "by name, not"),
        ("__import__('os').system('true')", "settings by name"),
        ("__import__('os').system()", "expected: a sum such as"),
        ("(lambda: 1)()", "expected: a sum such as"),
        ("", "cannot be read"),
        ("5", "expected: a number times a loss"),
        ("my:f.g(x).h", "expected: a sum such as"),
    ],
)
def test_what_cannot_be_read_is_told(text, words):
    with pytest.raises(UsageError, match=words):
        parse_loss(text)


@given(st.text(max_size=40))
def test_no_text_does_anything_but_fail_politely(text):
    with contextlib.suppress(UsageError):
        assert parse_loss(text)


def test_the_table_of_settings_is_what_the_losses_take():
    visited = 0
    for name, target in LOSSES.items():
        parameters = inspect.signature(load_object(target)).parameters
        for setting, takers in TAKES.items():
            assert (setting in parameters) == (name in takers), (name, setting)
            visited += 1
    assert visited >= 50


def test_a_sum_is_the_sum():
    logits, targets = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    both = L.make("cross_entropy + 0.5*dice(smooth=2)", smoothing=0.1)(logits, targets)
    parts = L.cross_entropy(logits, targets, smoothing=0.1).values + 0.5 * L.dice(logits, targets, smooth=2).values
    torch.testing.assert_close(both.values, parts)
    assert both.weights is None
    own = L.make("2*cross_entropy(smoothing=0)")
    torch.testing.assert_close(own(logits, targets).values, 2 * L.cross_entropy(logits, targets).values)


def test_weights_of_one_term_count_for_all_and_of_two_must_agree():
    logits, targets = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    terms = L.make("cross_entropy + dice", class_weights=[1.0, 2.0, 3.0])(logits, targets)
    assert terms.weights.tolist() == [1, 2, 3, 1, 2, 3]
    same = "cross_entropy(class_weights=[1, 2, 3]) + focal(class_weights=[1, 2, 3])"
    assert L.make(same)(logits, targets).weights.tolist() == [1, 2, 3, 1, 2, 3]
    other = "cross_entropy(class_weights=[1, 2, 3]) + focal(class_weights=[3, 2, 3])"
    with pytest.raises(UsageError, match="two losses of a sum weigh the samples differently"):
        L.make(other)(logits, targets)


@pytest.mark.parametrize("text", ["cross_entropy + 0.01*l1_weights", "0.5*l2_weights + cross_entropy"])
def test_penalties_reach_the_weights_but_not_biases_or_frozen_ones(text):
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    model[0].weight.requires_grad_(False)
    loss = L.make(text)
    (penalty,) = (part for part in loss.modules() if hasattr(part, "attach"))
    with pytest.raises(UsageError, match="knows no model"):
        loss(torch.zeros(2, 3), torch.tensor([0, 1]))
    penalty.attach(model)
    assert list(loss.parameters()) == []
    logits, targets = torch.randn(2, 3), torch.tensor([0, 1])
    weight = model[2].weight.detach()
    expected = 0.01 * weight.abs().sum() if "l1" in text else 0.5 * weight.square().sum()
    terms = loss(logits, targets)
    torch.testing.assert_close(terms.values.mean(), L.cross_entropy(logits, targets).values.mean() + expected)
    terms.values.mean().backward()
    torch.testing.assert_close(model[2].weight.grad, 0.01 * weight.sign() if "l1" in text else weight)
    assert model[2].bias.grad is None
    assert model[0].weight.grad is None


def test_the_users_own_in_a_sum(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "import torch\n"
        "def scaled(outputs, targets, scale=1.0):\n    return scale * outputs.mean()\n"
        "class Module(torch.nn.Module):\n"
        "    def __init__(self, power=1):\n        super().__init__(); self.power = power\n"
        "    def forward(self, outputs, targets):\n        return outputs.flatten(1).mean(1) ** self.power\n"
        "made = Module()\n"
    )
    outputs, targets = torch.rand(4, 3), torch.rand(4, 3)
    plain = L.mse(outputs, targets).values
    summed = L.make(f"mse + 2*{path}:scaled(scale=3)")(outputs, targets)
    torch.testing.assert_close(summed.values, plain + 6 * outputs.mean())
    module = L.make(f"{path}:Module(power=2)")(outputs, targets)
    torch.testing.assert_close(module, outputs.mean(1) ** 2)
    torch.testing.assert_close(L.make(f"{path}:made")(outputs, targets), outputs.mean(1))
    with pytest.raises(UsageError, match="Module is made already and takes no power"):
        L.make(f"{path}:made(power=2)")
    with pytest.raises(UsageError, match="has no setting 'powr'\n  did you mean: power"):
        L.make(f"{path}:Module(powr=2)")


def test_an_option_that_reaches_no_term_is_an_error():
    with pytest.raises(UsageError, match=r"loss\.pos_weight has no effect with .dice."):
        L.make("dice", pos_weight=[1.0])
    with pytest.raises(UsageError, match="no effect"):
        L.make("cross_entropy(smoothing=0.2)", smoothing=0.1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss.name": "cross_entropyy"}, "did you mean: cross_entropy"),
        ({"loss.name": "dice + ("}, "cannot be read"),
        ({"loss.name": "focal", "loss.smoothing": 0.2}, "loss.smoothing = 0.2 has no effect with loss.name = 'focal'"),
        ({"loss.name": "mse", "loss.class_weights": "inverse"}, "loss.class_weights = 'inverse' has no effect"),
        ({"loss.name": "cross_entropy", "loss.pos_weight": [2.0]}, r"loss.pos_weight = \[2.0\] has no effect"),
        ({"loss.class_weights": "inverse", "data.sampler": "weighted"}, "makes up for small classes twice"),
        ({"loss.class_weights": "inverze"}, r"expected: none or inverse or effective or \[a number"),
        ({"loss.class_weights": [-1.0, 2.0]}, "loss.class_weights"),
    ],
)
def test_a_recipe_holds_its_loss_to_its_settings(changes, words):
    with pytest.raises(UsageError, match=words):
        Recipe().override(changes)


def test_a_recipe_takes_sums_and_weights():
    recipe = Recipe().override(["loss.name=cross_entropy + 0.5*dice(smooth=1)", "loss.class_weights=1,2,0.5"])
    assert recipe.loss.name == "cross_entropy + 0.5*dice(smooth=1)"
    assert recipe.loss.class_weights == (1.0, 2.0, 0.5)
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_code_in_a_sum_is_code():
    assert code_in("mse + a.b:f + 2*c.py:g(x=1)") == ("a.b:f", "c.py:g")
    assert code_in("mse + dice") == ()
    assert code_in("half(( a:b") == ("half(( a:b",)
    recipe = Recipe().override({"loss.name": "mse + a.b:f + 2*c.py:g"})
    assert code_names(recipe) == {"loss.name": "a.b:f", "loss.name[1]": "c.py:g"}
    assert code_names(Recipe().override({"loss.name": "object:Mine"})) == {}


def test_objects_have_names():
    assert name_of(nn.CrossEntropyLoss) == "torch.nn.modules.loss:CrossEntropyLoss"
    assert name_of(L.mse) == "kiln.losses.regression:mse"
    made = nn.CrossEntropyLoss()
    assert name_of(made) == "object:CrossEntropyLoss"
    assert load_object("object:CrossEntropyLoss") is made
    local = lambda outputs, targets: outputs.mean()  # noqa: E731
    assert load_object(name_of(local)) is local
    assert parse_loss(f"mse + 0.5*{name_of(local)}")[1].name == name_of(local)
    with pytest.raises(UsageError, match="was an object given from Python, in another process\n  next: give it again"):
        load_object("object:Gone")
