"""The words of fine-tuning: what can be read, what contradicts, what would have no effect."""

import pytest

from kiln.errors import UsageError
from kiln.recipe import Recipe
from kiln.recipe.duration import Duration
from kiln.recipe.finetune_text import StageText, parse_stage


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("head", StageText(("head",), Duration(0, "steps"))),
        ("head at 10", StageText(("head",), Duration(0, "steps"), 10.0)),
        ("all from 20%", StageText(("all",), Duration(20, "%"))),
        ("top(2) + norms from 3ep at 0.5 decay 0.8", StageText(("top(2)", "norms"), Duration(3, "ep"), 0.5, 0.8)),
        (
            "  layer4.* + head   from 100steps  decay .75 ",
            StageText(("layer4.*", "head"), Duration(100, "steps"), 1, 0.75),
        ),
    ],
)
def test_stages_are_read(text, expected):
    assert parse_stage(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "stage ''"),
        ("head and layer4", "stage 'head and layer4'"),
        ("head + ", "stage 'head \\+ '"),
        ("all from", "stage 'all from'"),
        ("all from soon", "duration = 'soon'"),
        ("all from 10m", "begins at a time"),
        ("all at 0", "expected: a rate above 0"),
        ("all decay 1.5", "a decay above 0 and at most 1"),
    ],
)
def test_stages_that_cannot_be_read(text, message):
    with pytest.raises(UsageError, match=message):
        parse_stage(text)


TRAINED = {"model.weights": "pretrained"}
STAGED = {**TRAINED, "finetune.mode": "staged"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"finetune.mode": "haed"}, r"finetune.mode = 'haed'[\s\S]*did you mean: head"),
        ({"finetune.mode": "top(0)"}, r"finetune.mode = 'top\(0\)'"),
        ({**TRAINED, "finetune.stages": ["head"]}, "finetune.stages has no effect with finetune.mode = 'full'"),
        ({**TRAINED, "finetune.mode": "head", "finetune.lora_rank": 4}, "finetune.lora_rank has no effect"),
        ({**TRAINED, "finetune.l2_head": 0.1}, "finetune.l2_head has no effect without finetune.l2_sp"),
        ({**TRAINED, "finetune.mode": "head", "finetune.l2_sp": 0.1}, "finetune.l2_sp = 0.1 has no effect"),
        ({**TRAINED, "finetune.mode": "head", "optim.layer_decay": 0.8}, "optim.layer_decay = 0.8 has no effect"),
        ({**TRAINED, "finetune.mode": "lora", "finetune.freeze_norm": "all"}, "finetune.freeze_norm has no effect"),
        ({"finetune.mode": "head"}, "finetune.mode = 'head' with model.weights = 'none' would keep random weights"),
        ({"finetune.freeze_norm": "statistics"}, "finetune.freeze_norm = 'statistics' with model.weights = 'none'"),
        ({**TRAINED, "finetune.random_weights": True}, "finetune.random_weights has no effect"),
        ({"finetune.random_weights": True}, "finetune.random_weights has no effect"),
        ({**STAGED, "finetune.stages": ["head from 1ep", "all from 2ep"]}, "expected: a first stage without from"),
        ({**STAGED, "finetune.stages": ["head", "all from 5ep", "top(2) from 2ep"]}, "stages out of order: 'top"),
        ({**STAGED, "finetune.stages": ["head", "all"]}, "stages out of order: 'all' after 'head'"),
        ({**STAGED, "finetune.stages": ["head", "all soon"]}, "finetune.stages: stage 'all soon'"),
    ],
)
def test_what_is_wrong_between_fields_is_refused(values, message):
    with pytest.raises(UsageError, match=message):
        Recipe().override(values)


@pytest.mark.parametrize(
    "values",
    [
        {"finetune.mode": "head", "model.name": "my/net.py:net"},  # which may load weights of its own
        {"finetune.mode": "head", "finetune.random_weights": True},
        {**TRAINED, "finetune.mode": "top(3)", "finetune.l2_sp": 0.1, "finetune.l2_head": 0.01},
        {**STAGED, "finetune.stages": ["head at 10", "top(2) from 10%", "all from 3ep decay 0.8"]},
        {**TRAINED, "finetune.freeze_norm": "all"},
    ],
)
def test_what_fits_is_taken(values):
    recipe = Recipe().override(values)
    assert all(recipe[name] == (tuple(value) if isinstance(value, list) else value) for name, value in values.items())
