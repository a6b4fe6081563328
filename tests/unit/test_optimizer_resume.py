"""Every optimizer by name: trains, goes on after a resume as if nothing had happened, and survives a bad step unmoved."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_training import Batches, differing, frozen, make_step, pictures
from timm.optim import list_optimizers

from kiln.batch import Batch
from kiln.engine.checkpoint import read_checkpoint, write_checkpoint
from kiln.engine.fit import fit
from kiln.engine.state import State
from kiln.errors import ArtifactError, UsageError
from kiln.names import OPTIMIZERS
from kiln.optim.groups import parameter_groups
from kiln.optim.optimizers import create_optimizer, find_optimizer, settings_of

# Of timm's names: those that pass on another package, one of second derivatives, and one that compiles itself.
LEFT_OUT = ("bnb", "fused", "adahessian", "kron")
NAMES = [*OPTIMIZERS, *(f"timm/{name}" for name in map(str, list_optimizers()) if not name.startswith(LEFT_OUT))]


def make(model, name):
    taken = settings_of(find_optimizer(name))
    decay = 0.01 if taken is None or "weight_decay" in taken else 0.0
    return State(model, create_optimizer(name, parameter_groups(model, lr=0.01, weight_decay=decay), lr=0.01))


def go_on(state, *, until, batches=None):
    for _ in fit(state, make_step(seed=3), batches or Batches(*pictures(24), 8), total_steps=until):
        pass


@pytest.mark.parametrize("name", NAMES)
def test_a_resume_ends_as_if_nothing_had_happened(tiny_model, tmp_path, name):
    whole = make(tiny_model(), name)
    start = frozen(whole)
    go_on(whole, until=5)
    assert any(place.startswith("model/") and "running" not in place for place in differing(start, frozen(whole)))

    first = make(tiny_model(), name)
    go_on(first, until=2)
    write_checkpoint(tmp_path, 2, first.state(), about={})
    second = make(tiny_model(seed=7), name)
    second.load_state(read_checkpoint(tmp_path / "step-00000002").tree)
    go_on(second, until=5)
    assert differing(frozen(whole), frozen(second)) == []
    assert second.optimizer.param_groups[0]["lr"] == whole.optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize("name", NAMES)
def test_a_bad_step_changes_nothing_neither_as_the_first_nor_later(tiny_model, name):
    bad = pictures(8)[0]
    bad[3] = float("nan")
    state, step = make(tiny_model(), name), make_step(seed=3)
    state.model.train()
    good = Batch(*pictures(8), indices=np.arange(8))
    for batch in (Batch(bad, good.targets), good, Batch(bad, good.targets)):
        before = frozen(state)
        measured = step(state, batch)
        assert float(measured.bad) == (0 if batch is good else 1)
        moved = differing(before, frozen(state))
        assert any(place.startswith("model/") for place in moved) if batch is good else moved == []
        state.step += 1
    fresh = make(tiny_model(), name)
    fresh.step = 1
    fresh.model.train()
    step(fresh, good)
    fresh.step = state.step
    assert differing(frozen(fresh), frozen(state)) == []


class Counting(torch.optim.SGD):
    """Keeps a number beside its parameters, as an optimizer with randomness of its own would."""

    def __init__(self, params, lr):
        super().__init__(params, lr)
        self.drawn = 0

    def step(self, closure=None):
        self.drawn += 1
        return super().step(closure)

    def state_dict(self):
        return {**super().state_dict(), "drawn": self.drawn}

    def load_state_dict(self, state_dict):
        self.drawn = state_dict["drawn"]
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "drawn"})


def test_what_an_optimizer_adds_to_its_own_state_dict_is_kept(tiny_model):
    state, other = (
        State(model, create_optimizer(Counting, parameter_groups(model, lr=0.1, weight_decay=0.0), lr=0.1))
        for model in (tiny_model(), tiny_model(seed=1))
    )
    go_on(state, until=3)
    other.load_state(state.state())
    assert other.optimizer.state_dict()["drawn"] == 3


def test_state_that_belongs_to_no_parameter_is_refused(tiny_model):
    state = make(tiny_model(), "adamw")
    state.optimizer.state["k"] = {"step": 1}  # type: ignore[reportArgumentType] - what some optimizers do
    with pytest.raises(ArtifactError, match="AdamW keeps state for 'k', which is no parameter"):
        state.state()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("adamv", r"(?s)unknown optimizer 'adamv'.*did you mean: adam"),
        ("timm/liom", r"(?s)unknown optimizer 'timm/liom'"),
        ("torch/adam", "unknown optimizer"),
        ("adahessian", "adahessian needs second derivatives"),
        ("bnbadam8bit", "(?i)bnbadam8bit: .*(cuda|bitsandbytes)"),
    ],
)
def test_a_name_that_leads_nowhere_is_an_error_that_helps(name, message):
    with pytest.raises(UsageError, match=message):
        find_optimizer(name)
