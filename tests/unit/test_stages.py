"""Stages: what trains keeps its optimizer state, what joins is in it from then on, and a resume in any stage is exact."""

import pytest
import torch
from small_training import Batches, differing, make_step, pictures
from small_training import frozen as picture_of

from kiln.engine.codec import decode, encode
from kiln.engine.fit import fit
from kiln.engine.stages import Stage, Stages
from kiln.engine.state import State
from kiln.errors import ArtifactError, UsageError
from kiln.events import StageBegan, Stopped
from kiln.models.freeze import set_frozen
from kiln.optim.averages import Ema
from kiln.optim.groups import check_groups, parameter_groups
from kiln.optim.optimizers import adamw, sgd

HEAD_THEN_ALL = (Stage(("head",), rate=10.0), Stage(("all",), first_step=4, rate=1.0, layer_decay=0.5))
MAKE = {"adamw": adamw, "sgd": sgd}


def staged(tiny_model, *, stages=HEAD_THEN_ALL, opt="adamw", ema=0.0, **options):
    model = tiny_model()

    def make_optimizer(model, stage):
        groups = parameter_groups(model, lr=0.01 * stage.rate, weight_decay=0.01, layer_decay=stage.layer_decay)
        made = MAKE[opt](groups, lr=0.01)
        check_groups(model, made.param_groups)
        return made

    plan = Stages(model, stages, make_optimizer, **options)
    state = State(model, plan.make_optimizer(), average=Ema(model, decay=ema) if ema else None)
    state.stages = plan
    return state


def run(state, total, *, seed=3):
    step, batches = make_step(seed=seed), Batches(*pictures(20), 5)
    return list(fit(state, step, batches, total_steps=total))


def optimizer_tensors(state):
    return {name: values for name, values in picture_of(state).items() if name.startswith("optimizer/")}


def rates(state):
    return {name: group["base_lr"] for group in state.optimizer.param_groups for name in group["names"]}


@pytest.mark.parametrize("opt", ["adamw", "sgd"])
def test_what_trained_keeps_its_state_and_what_joins_begins_anew(tiny_model, opt):
    state = staged(tiny_model, opt=opt)
    assert rates(state) == {"6.weight": 0.1, "6.bias": 0.1}
    run(state, 4)
    before, weights = optimizer_tensors(state), picture_of(state)
    state.stages.enter(state)
    after = optimizer_tensors(state)
    assert before
    assert [name for name in differing(before, after) if name in before] == []  # the bytes of momentum
    assert [name for name in differing(weights, picture_of(state)) if name in weights] == []
    assert rates(state) == {
        "6.weight": 0.01,
        "6.bias": 0.01,
        "0.weight": 0.005,
        "1.weight": 0.005,
        "1.bias": 0.005,
    }
    run(state, 6)
    moment = {"adamw": "exp_avg", "sgd": "momentum_buffer"}[opt]
    assert f"optimizer/state/0.weight/{moment}" in optimizer_tensors(state)
    assert {name for name in differing(weights, picture_of(state)) if name.startswith("model/")} > {"model/0.weight"}
    if opt == "adamw":
        steps = {name: float(values) for name, values in optimizer_tensors(state).items() if name.endswith("/step")}
        assert steps["optimizer/state/0.weight/step"] == 2
        assert steps["optimizer/state/6.weight/step"] == 6


def test_the_first_stage_moves_the_head_alone_and_proves_it(tiny_model):
    state = staged(tiny_model, ema=0.9)
    before = picture_of(state)
    run(state, 4)
    moved = {name for name in differing(before, picture_of(state)) if name.startswith(("model/", "average/model"))}
    assert moved == {f"{place}/6.{part}" for place in ("model", "average/model") for part in ("weight", "bias")}
    assert [entry["what"] for entry in state.log] == ["frozen_unchanged"]
    assert state.log[0]["tensors"] == 6
    assert len(state.log[0]["sha256"]) == 64


def test_the_loop_tells_of_the_stage(tiny_model):
    events = run(staged(tiny_model), 6)
    began = [event for event in events if isinstance(event, StageBegan)]
    total = sum(parameter.numel() for parameter in tiny_model().parameters())
    assert began == [StageBegan(4, "all", total, total)]
    assert isinstance(events[-1], Stopped)


def test_something_frozen_that_moved_is_an_error(tiny_model):
    state = staged(tiny_model)
    run(state, 2)
    with torch.no_grad():
        state.model[1].running_mean += 1e-3
    with pytest.raises(ArtifactError, match=r"1 of 6 frozen tensors have changed") as raised:
        run(state, 6)
    assert raised.value.details == ("1.running_mean",)
    assert state.step == 4


@pytest.mark.parametrize("opt", ["adamw", "sgd"])
@pytest.mark.parametrize("cut", [2, 4, 6, 9])
def test_a_resume_in_any_stage_is_exact(tiny_model, opt, cut):
    stages = (*HEAD_THEN_ALL[:1], Stage(("top(1)",), first_step=4), Stage(("all",), first_step=8, layer_decay=0.5))
    undisturbed = staged(tiny_model, stages=stages, opt=opt, ema=0.9)
    run(undisturbed, 12)
    first = staged(tiny_model, stages=stages, opt=opt, ema=0.9)
    run(first, cut)
    first.log = [entry for entry in first.log if entry["step"] < cut or entry["what"] == "stage"]  # as in a checkpoint
    tree = decode(*encode(first.state()))
    second = staged(tiny_model, stages=stages, opt=opt, ema=0.9)
    second.load_state(tree)
    run(second, 12)
    assert differing(picture_of(undisturbed), picture_of(second)) == []
    assert encode(undisturbed.state())[0] == encode(second.state())[0]


def test_a_stage_may_freeze_again(tiny_model):
    stages = (Stage(("all",)), Stage(("head",), first_step=3))
    state = staged(tiny_model, stages=stages)
    run(state, 3)
    before = picture_of(state)
    run(state, 6)
    moved = {name for name in differing(before, picture_of(state)) if name.startswith("model/")}
    assert moved == {"model/6.weight", "model/6.bias"}
    assert set(rates(state)) == {"6.weight", "6.bias"}
    assert [entry["what"] for entry in state.log] == ["stage", "frozen_unchanged"]


def test_statistics_may_stay_frozen_throughout(tiny_model):
    state = staged(tiny_model, also_frozen=["1.running_*", "1.num_batches_tracked"])
    before = picture_of(state)
    run(state, 8)
    moved = {name for name in differing(before, picture_of(state)) if name.startswith("model/")}
    assert moved == {"model/0.weight", "model/1.weight", "model/1.bias", "model/6.weight", "model/6.bias"}
    assert not state.model[1].training
    assert state.log[-1]["tensors"] == 3


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ((), "no stages"),
        ((Stage(("head",), first_step=2),), "the first stage begins at step 2"),
        ((Stage(("head",)), Stage(("all",), 5), Stage(("top(1)",), 5)), r"top\(1\) from step 5 after all from step 5"),
        ((Stage(("haed",)),), "'haed' names nothing in the model"),
        ((Stage(("top(7)",)),), r"top\(7\): the model has 1 blocks before its head"),
        ((Stage(("2",)),), "a stage that trains 2 leaves nothing to train"),
    ],
)
def test_stages_that_cannot_be(tiny_model, stages, message):
    with pytest.raises(UsageError, match=message):
        staged(tiny_model, stages=stages)


def test_another_freeze_of_the_users_own_is_found_by_the_groups(tiny_model):
    state = staged(tiny_model)
    set_frozen(state.model, ())
    with pytest.raises(UsageError, match="parameters do not fit the optimizer's groups"):
        check_groups(state.model, state.optimizer.param_groups)


def test_lbfgs_forgets_its_history_where_what_it_trains_changes(tiny_model):
    def make_optimizer(model, stage):
        groups = parameter_groups(model, lr=stage.rate, weight_decay=0.0)
        return torch.optim.LBFGS(groups, lr=0.1, max_iter=3)

    model = tiny_model(drop=0.0, norm=False)
    stages = (
        Stage(("0", "head")),
        Stage(("all",), first_step=2),
    )  # both begin with the parameter that holds the history
    plan = Stages(model, stages, make_optimizer)
    state = State(model, plan.make_optimizer(), stages=plan)
    before = picture_of(state)
    run(state, 4)
    moved = {name for name in differing(before, picture_of(state)) if name.startswith("model/")}
    assert moved == {f"model/{name}" for name, _ in model.named_parameters()}
