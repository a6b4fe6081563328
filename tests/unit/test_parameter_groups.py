"""Groups by pattern, depth and head: who falls where, and what has no effect."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import nn

from kiln.errors import UsageError
from kiln.optim.groups import describe_groups, matches, parameter_groups
from kiln.optim.layers import layer_ids, undecayed_names
from kiln.optim.optimizers import create_optimizer, find_optimizer, settings_of
from kiln.recipe import Recipe
from kiln.recipe.optim_problems import TAKEN_BY


def grouped(model, **settings):
    return parameter_groups(model, **{"lr": 1.0, "weight_decay": 0.1, **settings})


def rates(groups):
    return {name: group["lr"] for group in groups for name in group["names"]}


def decays(groups):
    return {name: group["weight_decay"] for group in groups for name in group["names"]}


@pytest.mark.parametrize(
    ("pattern", "fits", "misses"),
    [
        ("layer1", ["layer1.0.weight", "layer1"], ["layer10.weight", "a.layer1.weight"]),
        ("fc.bias", ["fc.bias"], ["fc.weight"]),
        ("*.attn.*", ["blocks.0.attn.qkv"], ["blocks.0.mlp.fc1"]),
        ("*bias", ["bias", "a.bias"], ["bias.a"]),
        ("re:layer[12]", ["layer1.w", "x.layer2.w"], ["layer3.w"]),
    ],
)
def test_patterns(pattern, fits, misses):
    assert all(matches(pattern, name) for name in fits)
    assert not any(matches(pattern, name) for name in misses)


def test_rules_factors_and_the_head_multiply_and_a_stated_rate_stands_alone(tiny_model):
    rules = {"0": {"lr_factor": 0.1}, "6.bias": {"lr": 0.7, "betas": [0.5, 0.6]}}
    groups = grouped(tiny_model(), rules=rules, head=("6",), head_lr=3.0)
    assert rates(groups) == {"0.weight": 0.1, "1.weight": 1.0, "1.bias": 1.0, "6.weight": 3.0, "6.bias": 0.7}
    assert [group["betas"] for group in groups if "betas" in group] == [(0.5, 0.6)]
    assert all(group["lr"] == group["base_lr"] for group in groups)
    optimizer = create_optimizer("adamw", groups, lr=1.0, betas=(0.9, 0.99))
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.99), (0.5, 0.6)}


def test_the_first_pattern_that_fits_counts(tiny_model):
    groups = grouped(tiny_model(), rules={"6.bias": {"lr_factor": 2.0}, "6": {"lr_factor": 5.0}})
    assert rates(groups)["6.bias"] == 2.0
    assert rates(groups)["6.weight"] == 5.0


def test_a_rules_decay_leaves_biases_and_norms_alone(tiny_model):
    found = decays(grouped(tiny_model(), rules={"6": {"weight_decay": 0.5}}))
    assert found == {"0.weight": 0.1, "1.weight": 0.0, "1.bias": 0.0, "6.weight": 0.5, "6.bias": 0.0}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rules": {"layer9": {"lr": 1.0}}}, "the group 'layer9' has no effect: it fits no trainable parameter"),
        ({"rules": {"*": {"lr": 1}, "6": {"lr": 2}}}, "'6' has no effect: an earlier pattern takes all"),
        ({"rules": {"6": {}}}, r"the group '6' = \{\}"),
        ({"rules": {"6": {"lr": 1, "lr_factor": 2}}}, "lr and lr_factor in the group '6'"),
        ({"rules": {"6": {"lr": -1}}}, "lr = -1 in the group '6'"),
        ({"rules": {"6": {"lr": float("nan")}}}, "lr = nan in the group '6'"),
        ({"rules": {"6": {"weight_decay": float("inf")}}}, "weight_decay = inf in the group '6'"),
        ({"rules": {"6": {"momentum": -3}}}, "(?s)momentum = -3 in the group '6'.*below 1"),
        ({"rules": {"6": {"momentum": True}}}, "momentum = True in the group '6'"),
        ({"rules": {"6": {"betas": "x"}}}, "(?s)betas = 'x' in the group '6'.*such as"),
        ({"rules": {"6": {"betas": [1.5, 0.9]}}}, r"betas = \[1.5, 0.9\] in the group '6'"),
        ({"rules": {"6": {"betas": [float("nan"), 0.9]}}}, "betas = .* in the group '6'"),
        ({"rules": {"6": {"params": []}}}, "the group '6' sets 'params'"),
        ({"rules": {"re:(": {"lr": 1}}}, r"the group 're:\(' is not a regular expression"),
        ({"rules": {"1": {"weight_decay": 0.5}}}, "weight_decay = 0.5 has no effect in the group '1'"),
        ({"layer_decay": 1.5}, "(?s)layer_decay = 1.5.*above 0, at most 1"),
        ({"head": ("5",), "head_lr": 2.0}, "head_lr = 2.0 has no effect"),
    ],
)
def test_what_is_wrong_or_has_no_effect_is_an_error(tiny_model, settings, message):
    with pytest.raises(UsageError, match=message):
        grouped(tiny_model(), **settings)


def test_a_setting_that_the_optimizer_does_not_keep_by_group_is_an_error(tiny_model):
    groups = grouped(tiny_model(), rules={"6": {"betas": (0.5, 0.9)}})
    with pytest.raises(UsageError, match="betas has no effect in the group '6'"):
        create_optimizer("sgd", groups, lr=1.0)


class Odd(nn.Module):
    """Norms of any shape, tokens, a two-dimensional bias."""

    def __init__(self):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, 4, 8))
        self.plane_norm = nn.LayerNorm([4, 8])
        self.mix = nn.Linear(8, 1)
        self.bias = nn.Parameter(torch.zeros(2, 2))


def test_trap_norms_are_told_by_type_and_embeddings_by_name_whatever_their_shape():
    assert undecayed_names(Odd()) == {"pos_embed", "plane_norm.weight", "plane_norm.bias", "mix.bias", "bias"}
    vit = timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=2)
    found = undecayed_names(vit)
    assert {"cls_token", "pos_embed"} == {name for name in found if "." not in name}
    assert "blocks.0.norm1.weight" in found
    assert "blocks.0.attn.qkv.weight" not in found


def test_layers_without_a_matcher_follow_the_order_of_modules():
    ids = layer_ids(torchvision.models.resnet18())
    assert (ids["conv1.weight"], ids["bn1.weight"], ids["layer1.0.bn2.bias"], ids["layer1.1.conv1.weight"]) == (
        0,
        0,
        1,
        2,
    )
    assert (ids["layer4.1.conv2.weight"], ids["fc.weight"], ids["fc.bias"]) == (8, 9, 9)
    vit = layer_ids(torchvision.models.vit_b_16())
    assert vit["class_token"] == vit["conv_proj.weight"] == 0
    blocks = [vit[f"encoder.layers.encoder_layer_{number}.ln_1.weight"] for number in range(12)]
    assert blocks == [*range(1, 13)]
    assert vit["encoder.ln.weight"] == 12
    assert vit["heads.head.weight"] == 13


def test_layer_decay_gives_the_top_layer_the_full_rate(tiny_model):
    found = rates(grouped(tiny_model(), layer_decay=0.5))
    assert found == {"0.weight": 0.5, "1.weight": 0.5, "1.bias": 0.5, "6.weight": 1.0, "6.bias": 1.0}


def test_the_description_adds_up(tiny_model):
    model = tiny_model()
    rows = describe_groups(grouped(model, head=("6",), head_lr=2.0, rules={"1": {"momentum": 0.5}}))
    assert sum(row["parameters"] for row in rows) == sum(p.numel() for p in model.parameters())
    assert [(row["group"], row["lr"], row["weight_decay"], row["names"]) for row in rows] == [
        ("all", 1.0, 0.1, "0.weight"),
        ("1, no decay", 1.0, 0.0, "1.weight, 1.bias"),
        ("head", 2.0, 0.1, "6.weight"),
        ("head, no decay", 2.0, 0.0, "6.bias"),
    ]
    assert rows[1]["settings"] == {"momentum": 0.5}


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("adamw", {"beta": 0.9}, "(?s)adamw takes no 'beta'.*did you mean: betas"),
        ("adamw", {"betas": (0.9,)}, r"(?s)betas = \[0.9\] for adamw.*2 numbers, such as \[0.9, 0.999\]"),
        ("adan", {"betas": (0.9, 0.99)}, r"(?s)betas = \[0.9, 0.99\] for adan.*3 numbers"),
        ("sgd", {"momentum": -1.0}, "sgd refuses its settings: Invalid momentum"),
        ("rprop", {"weight_decay": 0.1}, "rprop takes no 'weight_decay'"),
        (lambda groups, lr: lr, {}, "(?s)made a float.*torch.optim.Optimizer"),
        ("muon", {"adjust_lr_fn": "rms"}, "(?s)adjust_lr_fn = 'rms'.*match_rms_adamw"),
        ("muon", {"not_hidden": ("*",)}, "muon finds no hidden matrix"),
    ],
)
def test_settings_are_checked_against_the_optimizers_own(tiny_model, name, settings, message):
    with pytest.raises(UsageError, match=message):
        create_optimizer(name, grouped(tiny_model(), weight_decay=0.0), lr=0.1, **settings)


def test_betas_of_a_group_are_as_many_as_the_optimizers(tiny_model):
    groups = grouped(tiny_model(), rules={"6": {"betas": [0.9]}})
    with pytest.raises(UsageError, match=r"(?s)betas of the group '6' = \[0.9\] for adamw.*2 numbers"):
        create_optimizer("adamw", groups, lr=1.0)


def test_an_optimizer_that_fails_is_told_by_its_name(tiny_model):
    def broken(groups, lr):
        return {}["momentum"]

    with pytest.raises(UsageError, match="broken refuses its settings: KeyError: 'momentum'"):
        create_optimizer(broken, grouped(tiny_model(), weight_decay=0.0), lr=1.0)


def test_decay_or_groups_where_an_optimizer_has_none_are_errors(tiny_model):
    with pytest.raises(UsageError, match="weight_decay has no effect: lbfgs does not decay"):
        create_optimizer("lbfgs", grouped(tiny_model()), lr=1.0)
    groups = grouped(tiny_model(), weight_decay=0.0, rules={"6": {"lr": 0.5}})
    with pytest.raises(UsageError, match=r"(?s)lbfgs refuses its settings.*parameter groups"):
        create_optimizer("lbfgs", groups, lr=1.0)


def test_an_optimizer_of_ones_own_by_class_and_by_name(tiny_model):
    groups = grouped(tiny_model(), weight_decay=0.0)
    assert isinstance(create_optimizer(torch.optim.Adam, groups, lr=0.1, eps=1e-3), torch.optim.Adam)
    assert isinstance(create_optimizer("torch.optim:Adamax", groups, lr=0.1), torch.optim.Adamax)


def test_the_recipes_table_of_settings_is_what_the_optimizers_take():
    visited = 0
    for key, names in TAKEN_BY.items():
        for name in {other for others in TAKEN_BY.values() for other in others}:
            takes = key in (settings_of(find_optimizer(name)) or {})
            assert takes == (name in names) or (key, name) == ("eps", "adafactor"), (key, name)
            visited += 1
    assert visited >= 40


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"optim.name": "lbfgs", "optim.layer_decay": 0.5},
            "optim.layer_decay = 0.5 has no effect with optim.name = 'lbfgs'",
        ),
        ({"optim.name": "lbfgs", "optim.clip_norm": 1.0}, "would mislead the line search"),
        ({"optim.name": "rprop", "optim.weight_decay": 0.1}, "optim.weight_decay = 0.1 has no effect"),
        ({"optim.sam_adaptive": True}, "optim.sam_adaptive = True has no effect with optim.sam = 0"),
        (
            {"optim.clip_norm": 1.0, "optim.clip_value": 1.0},
            "(?s)clip_norm = 1.0 and optim.clip_value.*one way to clip",
        ),
        ({"optim.betas": [0.9, 0.99], "optim.name": "sgd"}, r"optim.betas = \(0.9, 0.99\) has no effect"),
    ],
)
def test_contradictions_of_the_section(changes, message):
    with pytest.raises(UsageError, match=message):
        Recipe().override(changes)
