"""Optimizers and their groups: who is decayed, who is in a group, what a skipped first step leaves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kiln.errors import UsageError
from kiln.optim.clipping import ClipAdaptive, ClipNorm, ClipValue
from kiln.optim.groups import check_groups, parameter_groups
from kiln.optim.muon import StagedMuon
from kiln.optim.optimizers import adamw, create_optimizer, sgd
from kiln.optim.sam import SharpnessAware
from kiln.optim.schedules import one_cycle, set_rates


def names_by_decay(model, **settings):
    groups = parameter_groups(model, **{"lr": 0.1, "weight_decay": 0.05, **settings})
    return {group["weight_decay"]: set(group["names"]) for group in groups}


def test_trap_biases_and_norms_are_not_decayed(tiny_model):
    decayed = {"0.weight", "6.weight"}
    undecayed = {"1.weight", "1.bias", "6.bias"}
    assert names_by_decay(tiny_model()) == {0.05: decayed, 0.0: undecayed}
    assert names_by_decay(tiny_model(norm=False)) == {0.05: decayed, 0.0: {"0.bias", *undecayed}}


def test_the_decay_pulls_matrices_and_leaves_biases_where_they_are(tiny_model):
    model = tiny_model()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = adamw(parameter_groups(model, lr=0.1, weight_decay=0.05), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        shrunk = before[name] * (1 - 0.1 * 0.05) if name in ("0.weight", "6.weight") else before[name]
        assert torch.allclose(parameter, shrunk), name


def test_names_and_parameters_stand_in_one_order(tiny_model):
    model = tiny_model()
    by_name = dict(model.named_parameters())
    for group in parameter_groups(model, lr=0.3, weight_decay=0.05):
        assert all(by_name[name] is p for name, p in zip(group["names"], group["params"], strict=True))
        assert (group["lr"], group["base_lr"]) == (0.3, 0.3)


def test_frozen_parameters_are_in_no_group(tiny_model):
    model = tiny_model()
    model[0].requires_grad_(False)
    model[6].bias.requires_grad_(False)
    assert names_by_decay(model) == {0.05: {"6.weight"}, 0.0: {"1.weight", "1.bias"}}
    check_groups(model, parameter_groups(model, lr=0.1, weight_decay=0.05))


def test_shared_parameters_are_in_a_group_once():
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    model = nn.Sequential(first, second)
    groups = parameter_groups(model, lr=0.1, weight_decay=0.05)
    assert [group["names"] for group in groups] == [["0.weight"], ["0.bias", "1.bias"]]
    check_groups(model, groups)


def test_a_model_without_trainable_parameters_is_an_error(tiny_model):
    with pytest.raises(UsageError, match="no trainable parameter"):
        parameter_groups(tiny_model().requires_grad_(False), lr=0.1, weight_decay=0.0)


def test_trap_an_unfrozen_layer_in_no_group_and_a_frozen_one_in_a_group_are_named(tiny_model):
    model = tiny_model()
    model[0].requires_grad_(False)
    groups = parameter_groups(model, lr=0.1, weight_decay=0.05)
    model[0].requires_grad_(True)  # unfrozen after the optimizer was made
    with pytest.raises(UsageError, match=r"(?s)1 parameters do not fit.*trainable, but in no group: 0\.weight"):
        check_groups(model, groups)
    model[0].requires_grad_(False)
    model[6].requires_grad_(False)
    with pytest.raises(UsageError, match=r"(?s)frozen, but in a group: 6\.bias.*frozen, but in a group: 6\.weight"):
        check_groups(model, groups)


def test_a_parameter_in_two_groups_or_of_another_model_is_named(tiny_model):
    model = tiny_model()
    groups = parameter_groups(model, lr=0.1, weight_decay=0.05)
    groups.append({"params": [model[6].weight, nn.Parameter(torch.ones(1))], "names": ["a", "b"]})
    with pytest.raises(UsageError, match=r"(?s)a parameter of another model.*in 2 groups: 6\.weight"):
        check_groups(model, groups)


@pytest.mark.parametrize("make", [sgd, adamw])
def test_the_kernels_are_fused_so_that_a_bad_step_skips_itself(tiny_model, make):
    optimizer = make(parameter_groups(tiny_model(), lr=0.1, weight_decay=0.05), lr=0.1)
    assert optimizer.defaults["fused"] is True


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_momentum_after_a_skipped_first_step_is_that_of_a_fresh_start(tiny_model, momentum):
    def made():
        model = tiny_model()
        return model, sgd(parameter_groups(model, lr=0.1, weight_decay=0.05), lr=0.1, momentum=momentum)

    def step(model, optimizer, value, bad):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, value)
        optimizer.grad_scale, optimizer.found_inf = None, torch.tensor(float(bad))
        optimizer.step()

    filler = [torch.full((64, 64), 1e30) for _ in range(50)]  # so that memory that nobody has set holds something
    del filler
    (skipped, first), (clean, second) = made(), made()
    before = [parameter.detach().clone() for parameter in skipped.parameters()]
    step(skipped, first, float("nan"), bad=True)
    assert all(torch.equal(a, b) for a, b in zip(before, skipped.parameters(), strict=True))
    for model, optimizer in ((skipped, first), (clean, second)):
        step(model, optimizer, 0.5, bad=False)
        step(model, optimizer, -0.25, bad=False)
    assert all(torch.equal(a, b) for a, b in zip(skipped.parameters(), clean.parameters(), strict=True))


def test_trap_a_cycle_moves_the_momentum_of_muon_and_not_only_the_betas_beside_it(tiny_model):
    groups = parameter_groups(tiny_model(), lr=0.1, weight_decay=0.05)
    for name in ("muon", "timm/muon"):
        optimizer = create_optimizer(name, groups, lr=0.1)
        moved = [group for group in optimizer.param_groups if "momentum" in group]
        set_rates(optimizer, one_cycle(100)(29))
        assert moved
        assert {group["momentum"] for group in moved} == {0.85}
        assert {group["betas"][0] for group in optimizer.param_groups} == {0.85}


@pytest.mark.parametrize("clip", [ClipNorm(0.1), ClipValue(1e-3), ClipAdaptive(1e-3)])
def test_trap_a_generator_of_parameters_is_clipped_as_a_list_is(tiny_model, clip):
    model = tiny_model()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    clip(model.parameters())
    assert all(not torch.equal(parameter.grad, torch.ones_like(parameter)) for parameter in model.parameters())


@pytest.mark.parametrize("settings", [{"momentum": 0.0}, {"dampening": 0.5}])
def test_nesterov_is_refused_where_there_is_no_momentum_to_look_ahead_with(tiny_model, settings):
    model = tiny_model()

    def plain():
        return parameter_groups(model, lr=0.1, weight_decay=0.0)

    with pytest.raises(UsageError, match=r"(?s)nesterov = True with momentum.*or no nesterov"):
        sgd(plain(), lr=0.1, nesterov=True, **settings)
    assert sgd(plain(), lr=0.1, **settings).param_groups[0]["nesterov"] is False  # where only the default was Kiln's
    assert sgd(plain(), lr=0.1).param_groups[0]["nesterov"] is True


@pytest.mark.parametrize("rho", [-1.0, 0.0, float("nan"), float("inf")])
def test_a_look_uphill_goes_uphill(rho):
    with pytest.raises(UsageError, match=r"(?s)rho = .*a finite number > 0"):
        SharpnessAware(rho)


def test_muon_may_be_without_a_hidden_matrix_where_that_is_said(tiny_model):
    model = tiny_model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("6"))
    groups = parameter_groups(model, lr=0.1, weight_decay=0.05)
    with pytest.raises(UsageError, match=r"(?s)muon finds no hidden matrix.*other not_hidden"):
        create_optimizer("muon", groups, lr=0.1, not_hidden=("6",))
    optimizer = StagedMuon(groups, lr=0.1, not_hidden=("6",))
    own = torch.optim.AdamW(
        [{**group, "params": [p.detach().clone() for p in group["params"]]} for group in groups], lr=0.1
    )
    before = [group["params"][0].detach().clone() for group in optimizer.param_groups]
    for each in (optimizer, own):
        for parameter in [p for group in each.param_groups for p in group["params"]]:
            parameter.grad = torch.ones_like(parameter)
        each.step()
    for mine, theirs, was in zip(optimizer.param_groups, own.param_groups, before, strict=True):
        assert not torch.equal(mine["params"][0], was)
        assert torch.allclose(mine["params"][0], theirs["params"][0], atol=1e-6)
