"""Initial values by pattern: torch's own fillers, one seed per parameter, and rules that fit or are refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from kiln.errors import UsageError
from kiln.models.create import create_model
from kiln.models.initialise import SCHEMES, initialise
from kiln.tasks import get


def network():
    return create_model("resnet10t", num_classes=7, img_size=32, seed=1).model


def values(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


WITH_NUMBERS = {
    "normal": "normal(0.5)",
    "trunc_normal": "trunc_normal(0.02)",
    "uniform": "uniform(-1, 2)",
    "constant": "constant(3)",
}
EXPECTED_STD = {
    "xavier_uniform": lambda fan_in, fan_out: math.sqrt(2 / (fan_in + fan_out)),
    "xavier_normal": lambda fan_in, fan_out: math.sqrt(2 / (fan_in + fan_out)),
    "kaiming_uniform": lambda fan_in, fan_out: math.sqrt(2 / fan_in),
    "kaiming_normal": lambda fan_in, fan_out: math.sqrt(2 / fan_out),
    "normal": lambda fan_in, fan_out: 0.5,
    "trunc_normal": lambda fan_in, fan_out: 0.02 * 0.8796,  # of a normal cut at two deviations
    "uniform": lambda fan_in, fan_out: 3 / math.sqrt(12),
}


@pytest.mark.parametrize("scheme", EXPECTED_STD)
def test_spread_is_what_the_scheme_says(scheme):
    model = nn.Sequential(nn.Conv2d(32, 64, 3))
    initialise(model, {"*.weight": WITH_NUMBERS.get(scheme, scheme)}, seed=3)
    weight = model[0].weight.detach()
    assert float(weight.std()) == pytest.approx(EXPECTED_STD[scheme](32 * 9, 64 * 9), rel=0.03)
    assert float(weight.mean()) == pytest.approx(
        0.5 if scheme == "uniform" else 0.0, abs=0.02 + 0.01 * float(weight.std())
    )


def test_every_scheme_fills_and_repeats():
    for name in SCHEMES:
        scheme = WITH_NUMBERS.get(name, name)
        one, other, another = network(), network(), network()
        for model, seed in ((one, 0), (other, 0), (another, 1)):
            assert set(initialise(model, {"layer?.*.conv1.weight": scheme}, seed=seed).values()) == {scheme}
        a, b, c = values(one), values(other), values(another)
        assert all(torch.equal(a[key], b[key]) for key in a)
        drawn = name not in ("constant", "zeros", "ones")
        assert torch.equal(a["layer1.0.conv1.weight"], c["layer1.0.conv1.weight"]) != drawn
    matrix = values(one)["layer1.0.conv1.weight"]
    assert float(matrix.min()) == float(matrix.max()) == 1.0
    initialise(one, {"*.conv1.weight": "orthogonal"})
    rows = one.layer1[0].conv1.weight.flatten(1)
    assert torch.allclose(rows @ rows.T, torch.eye(len(rows)), atol=1e-5)


def test_another_rule_changes_no_other_parameter():
    alone, beside = network(), network()
    initialise(alone, {"layer1.0.conv1.weight": "normal(1)"})
    before = values(beside)
    initialise(beside, {"*.bias": "zeros", "layer1.*.conv?.weight": "normal(1)"})
    assert torch.equal(values(alone)["layer1.0.conv1.weight"], values(beside)["layer1.0.conv1.weight"])
    assert torch.equal(before["layer2.0.conv1.weight"], values(beside)["layer2.0.conv1.weight"])


def test_first_rule_that_fits_counts():
    model = network()
    given = initialise(model, {"fc.bias": "ones", "*.bias": "zeros"})
    assert given["fc.bias"] == "ones"
    assert set(given.values()) == {"ones", "zeros"}
    assert float(model.fc.bias.detach().sum()) == 7


@pytest.mark.parametrize("name", ["resnet10t", "resnet50", "torchvision/resnet18"])
def test_residual_norms_make_each_block_the_identity_at_first(name):
    model = create_model(name, num_classes=3, img_size=32).model
    given = initialise(model, {"residual_norms": "zeros"})
    assert len(given) == {"resnet10t": 4, "resnet50": 16, "torchvision/resnet18": 8}[name]
    for block in given:
        assert not model.get_parameter(block).any()


@pytest.mark.parametrize("task", ["classification", "multilabel"])
def test_class_prior_is_what_the_model_says_at_first(task):
    task = get(task)
    targets = np.array([0] * 70 + [1] * 20 + [2] * 10)
    if task.name == "multilabel":
        targets = np.eye(3)[targets]
    prior = task.prior_logits(task.class_counts(targets, 3), 100)
    model = create_model("kiln/small_cnn", num_classes=3, img_size=16).model
    head = next(name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    initialise(model, {f"{head}.weight": "zeros", f"{head}.bias": "class_prior"}, prior=prior.tolist())
    probabilities = task.probabilities(model.eval()(torch.rand(2, 3, 16, 16)).detach().numpy())
    assert probabilities == pytest.approx(np.array([[0.7, 0.2, 0.1]] * 2), abs=0.02)


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"*.wieght": "zeros"}, r"'\*\.wieght' fits no parameter"),
        ({"*.weight": "kaiming"}, "did you mean: kaiming_normal"),
        ({"*.weight": "normal"}, r"expected: normal\(NUMBER\)"),
        ({"*.weight": "uniform(1)"}, r"expected: uniform\(LOW,HIGH\)"),
        ({"*.weight": "normal(wide)"}, r"expected: normal\(NUMBER\)"),
        ({"*.bias": "orthogonal"}, "at least 2 dimensions"),
        ({"fc.bias": "xavier_uniform()"}, "at least 2 dimensions"),
        ({"fc.bias": " kaiming_normal "}, "at least 2 dimensions"),
        ({"fc.weight": "normal(-1)"}, r"(?s)'normal\(-1\)'.*above 0"),
        ({"fc.weight": "trunc_normal(0)"}, r"(?s)expected: trunc_normal\(NUMBER\), above 0.*zeros"),
        ({"fc.weight": "uniform(1,-1)"}, "LOW below HIGH"),
        ({"fc.weight": "uniform(0,1e39)"}, "finite numbers"),
        ({"fc.bias": "constant(inf)"}, "finite numbers, none beyond 1e30"),
        ({"layer1.0.bn1.bias": "class_prior"}, "the bias of the head, fc.bias"),
        ({"fc.bias": "class_prior"}, "class_prior for fc.bias"),
    ],
)
def test_what_does_not_fit_is_refused(rules, words):
    with pytest.raises(UsageError, match=words):
        initialise(network(), rules)
