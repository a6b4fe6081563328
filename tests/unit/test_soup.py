"""The average of weights: exact, with counters, tied weights and models that do not go together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from kiln.errors import ArtifactError, UsageError
from kiln.models.create import create_model
from kiln.models.soup import average_states, moving_norms, require_alike


def test_the_average_is_the_mean_of_all(tiny_model):
    states = [tiny_model(seed=seed).state_dict() for seed in range(5)]
    made = average_states(iter(states))
    assert list(made) == list(states[0])
    for name, value in made.items():
        assert value.dtype == states[0][name].dtype
        if value.is_floating_point():
            expected = torch.stack([state[name].double() for state in states]).mean(0)
            assert torch.equal(value, expected.to(value.dtype))


def test_the_average_of_copies_is_the_copy(tiny_model):
    state = tiny_model().state_dict()
    made = average_states([state, state, state])
    assert all(torch.equal(value, state[name]) for name, value in made.items())
    assert all(value.data_ptr() != state[name].data_ptr() for name, value in made.items())


def test_counters_take_the_largest_and_other_whole_numbers_must_agree():
    one = {"n.num_batches_tracked": torch.tensor(3), "index": torch.tensor([1, 2])}
    two = {"n.num_batches_tracked": torch.tensor(7), "index": torch.tensor([1, 2])}
    assert average_states([one, two])["n.num_batches_tracked"] == 7
    with pytest.raises(ArtifactError, match="index holds whole numbers that differ"):
        average_states([one, {**two, "index": torch.tensor([1, 3])}])


def test_tied_weights_are_tied_again():
    class Tied(nn.Module):
        def __init__(self, seed):
            super().__init__()
            torch.manual_seed(seed)
            self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
            self.second.weight = self.first.weight

    with torch.random.fork_rng():
        models = [Tied(seed) for seed in range(3)]
        into = Tied(9)
    into.load_state_dict(average_states(model.state_dict() for model in models))
    assert into.second.weight is into.first.weight
    assert torch.allclose(into.first.weight, torch.stack([model.first.weight for model in models]).mean(0))


def test_other_architectures_and_nothing_at_all_are_refused(tiny_model):
    with pytest.raises(ArtifactError, match="another architecture"):
        average_states([tiny_model().state_dict(), tiny_model(norm=False).state_dict()])
    with pytest.raises(ArtifactError, match="another architecture"):
        average_states([tiny_model().state_dict(), tiny_model(num_classes=5).state_dict()])
    with pytest.raises(UsageError, match="no states"):
        average_states([])


def test_specs_must_agree_but_for_dropout():
    spec = create_model("kiln/small_cnn", num_classes=3, img_size=16, kwargs={"widths": [4, 8]}).spec
    require_alike(spec, replace(spec, kwargs={"widths": [4, 8], "drop": 0.3}), names=("a", "b"))
    with pytest.raises(ArtifactError, match="a and b are of different architectures"):
        require_alike(spec, replace(spec, kwargs={"widths": [4, 16]}), names=("a", "b"))
    with pytest.raises(ArtifactError, match=r"img_size: 16 and 32(.|\n)*kiln ensemble"):
        require_alike(spec, replace(spec, img_size=32), names=("a", "b"))


def test_layers_whose_statistics_moved_are_told_from_those_that_were_held():
    def state(a, b):
        return {
            "a.running_mean": torch.tensor([a]),
            "a.running_var": torch.ones(1),
            "b.running_mean": torch.tensor([b]),
        }

    assert moving_norms([state(0.0, 1.0), state(0.5, 1.0)]) == ({"a"}, {"b"})
    assert moving_norms([state(0.0, 1.0), state(0.0, 1.0)]) == (set(), {"a", "b"})
    assert moving_norms([{"weight": torch.ones(1)}]) == (set(), set())
