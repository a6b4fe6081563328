"""State as JSON and flat tensors: what goes in comes out, and what cannot be kept is refused by its place."""

from __future__ import annotations

import enum
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kiln.engine.codec import decode, encode, require_encodable
from kiln.errors import ArtifactError

numbers = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
names = st.text(min_size=1).filter(lambda key: not key.startswith("$") and "/" not in key)
tensors = st.builds(
    lambda shape, dtype: torch.arange(math.prod(shape)).reshape(shape).to(dtype),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool]),
)
arrays = st.builds(
    lambda n, dtype: np.arange(n).astype(dtype),
    st.integers(0, 4),
    st.sampled_from(["i8", "u8", "f4", "f8", "?", "u1"]),
)
trees = st.recursive(
    numbers | tensors | arrays,
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(names, inner, max_size=3)
    ),
    max_leaves=12,
)


def same(a, b):
    """Equal in value and type, NaN included, -0.0 apart from 0.0."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return repr(a) == repr(b)
    return a == b


@settings(max_examples=300, deadline=None)
@given(trees)
def test_round_trip_through_real_json(tree):
    require_encodable(tree)
    skeleton, held = encode(tree)
    assert same(decode(json.loads(json.dumps(skeleton, allow_nan=False)), held), tree)
    assert all(tensor.is_contiguous() and tensor.device.type == "cpu" for tensor in held.values())


def test_tensors_are_named_by_their_place():
    skeleton, held = encode({"model": {"head.weight": torch.ones(2)}, "rows": [1, (torch.zeros(1), "x")]})
    assert sorted(held) == ["model/head.weight", "rows/1/0"]
    assert skeleton == {
        "model": {"head.weight": {"$tensor": "model/head.weight"}},
        "rows": [1, {"$tuple": [{"$tensor": "rows/1/0"}, "x"]}],
    }


def test_copies_are_safe_from_later_changes():
    weights, counts = torch.ones(3), np.ones(3)
    _, held = encode({"w": weights, "c": counts})
    weights.fill_(5)
    counts.fill(5)
    assert held["w"].tolist() == held["c"].tolist() == [1, 1, 1]


def test_memory_layouts_are_made_plain_and_parameters_lose_their_graph():
    leaf = torch.nn.Parameter(torch.arange(24.0).view(1, 2, 3, 4).to(memory_format=torch.channels_last))
    _, held = encode({"t": leaf, "s": torch.arange(6).view(2, 3).t(), "r": np.arange(4)[::-1], "b": np.ones(2, ">f4")})
    assert torch.equal(held["t"], leaf)
    assert not held["t"].requires_grad
    assert held["s"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert held["r"].tolist() == [3, 2, 1, 0]
    assert held["b"].tolist() == [1.0, 1.0]


def test_numpy_numbers_become_plain_ones():
    skeleton, _ = encode({"i": np.int64(3), "f": np.float64(0.5), "b": np.bool_(True), "n": np.float32("nan")})
    assert json.dumps(skeleton) == '{"i": 3, "f": 0.5, "b": true, "n": {"$float": "nan"}}'


class Colour(enum.IntEnum):
    RED = 1


@pytest.mark.parametrize(
    ("leaf", "called"),
    [
        (object(), "builtins.object"),
        ({1, 2}, "builtins.set"),
        (b"bytes", "builtins.bytes"),
        (1j, "builtins.complex"),
        (Colour.RED, "test_codec.Colour"),
        (np.longdouble(1), "numpy.longdouble"),
        (np.array(["a"]), "an array of <U1"),
        (np.array([object()]), "an array of object"),
        (torch.zeros(2, dtype=torch.complex128), "a tensor of torch.complex128"),
        (torch.eye(2).to_sparse(), "a sparse or quantised tensor"),
        (torch.zeros(2, device="meta"), "a meta tensor"),
        (torch.nn.Linear(1, 1), "Linear"),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse")
def test_an_unknown_leaf_is_refused_by_its_place(leaf, called):
    tree = {"parts": {"sorter": [0, {"seen": leaf}]}}
    for refuse in (encode, require_encodable):
        with pytest.raises(ArtifactError, match=r"parts/sorter/1/seen is an? ") as caught:
            refuse(tree)
        assert called in str(caught.value)
        assert caught.value.code == "E306"


@pytest.mark.parametrize("key", [1, None, "$tensor", "", ("a",)])
def test_a_key_that_json_would_change_is_refused(key):
    with pytest.raises(ArtifactError, match=r"parts has the key .*"):
        encode({"parts": {key: 1}})


def test_two_tensors_of_one_name_are_refused_rather_than_one_lost():
    with pytest.raises(ArtifactError, match="two tensors of the state are both called a/b"):
        encode({"a": {"b": torch.ones(1)}, "a/b": torch.zeros(1)})


def test_a_dry_run_copies_nothing():
    big = torch.empty(1, dtype=torch.uint8).expand(1 << 44)  # 16 TiB, were it copied
    require_encodable({"w": big})
