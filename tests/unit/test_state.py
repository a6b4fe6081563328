"""The state of a training: all of it comes back, by name; what does not fit is listed."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_training import Batches, differing, frozen, make_state, make_step, pictures

from kiln.engine.codec import decode, encode
from kiln.engine.fit import fit
from kiln.engine.state import State, Tracker, load_model, load_optimizer_state, optimizer_state
from kiln.errors import ArtifactError
from kiln.metrics import Metric


def metric(value, *, higher_is_better=True):
    return Metric(value, None, None, 10, higher_is_better)


def through_a_file(tree):
    """What a checkpoint would give back."""
    return decode(*encode(tree))


def trained(tiny_model, *, steps=5, **options):
    state = make_state(tiny_model(), **options)
    for _ in fit(state, make_step(), Batches(*pictures(), 8), total_steps=steps):
        pass
    return state


class Counter:
    def __init__(self, value=0):
        self.value = value

    def state(self):
        return {"value": self.value, "history": (1, 2.5, "x")}

    def load_state(self, state):
        assert state["history"] == (1, 2.5, "x")
        self.value = state["value"]


@pytest.mark.parametrize("opt", ["adamw", "sgd"])
def test_everything_comes_back(tiny_model, opt):
    state = trained(tiny_model, opt=opt, ema=0.9, patience=4)
    state.parts["counter"] = Counter(41)
    state.tracker.update(metric(0.7), 3)
    state.tracker.update(metric(0.6), 5)
    state.decide("out_of_memory", micro_batch_size=4)
    state.skipped, state.skipped_in_a_row = 2, 1
    other = make_state(tiny_model(seed=9), opt=opt, ema=0.9, patience=4)
    other.parts["counter"] = Counter()
    assert differing(frozen(state), frozen(other)) != []
    other.load_state(through_a_file(state.state()))
    assert differing(frozen(state), frozen(other)) == []
    assert encode(other.state())[0] == encode(state.state())[0]
    assert other.parts["counter"].value == 41
    assert (other.step, other.epoch, other.skipped, other.skipped_in_a_row) == (5, 1, 2, 1)
    assert other.log == [{"step": 5, "what": "out_of_memory", "micro_batch_size": 4}]
    assert other.average.updates == state.average.updates == 5
    assert other.state()["progress"]["loss_sum"] > 0
    assert vars(other.tracker) == vars(state.tracker)
    assert (other.tracker.best, other.tracker.best_step, other.tracker.evaluations_since_improvement) == (0.7, 3, 1)


@pytest.mark.parametrize("opt", ["adamw", "sgd"])
def test_loaded_tensors_are_copies_and_training_goes_on_alike(tiny_model, opt):
    state, other = trained(tiny_model, opt=opt, ema=0.9), make_state(tiny_model(seed=9), opt=opt, ema=0.9)
    tree = through_a_file(state.state())
    other.load_state(tree)
    kept = encode(tree)[1]
    for training in (state, other):
        for _ in fit(training, make_step(), Batches(*pictures(), 8), total_steps=9):
            pass
    assert differing(frozen(state), frozen(other)) == []
    assert differing(kept, encode(tree)[1]) == []  # training did not write into what was loaded


def test_memory_formats_are_the_models_own(tiny_model):
    state = trained(tiny_model)
    other = make_state(tiny_model().to(memory_format=torch.channels_last))
    other.load_state(through_a_file(state.state()))
    weight = other.model[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert other.optimizer.state[weight]["exp_avg"].stride() == weight.stride()
    assert differing(frozen(state), frozen(other)) == []


def test_missing_unexpected_and_reshaped_weights_are_all_listed(tiny_model):
    tensors = dict(tiny_model().state_dict())
    del tensors["1.running_mean"]
    tensors["7.weight"] = torch.zeros(1)
    tensors["6.bias"] = torch.zeros(9)
    with pytest.raises(ArtifactError) as caught:
        load_model(tiny_model(), tensors)
    assert caught.value.code == "E304"
    for line in ("missing: 1.running_mean", "unexpected: 7.weight", "6.bias: (9,), the model has (4,)"):
        assert line in str(caught.value)


def test_weights_that_do_not_fit_leave_the_state_untouched(tiny_model):
    state, wider = trained(tiny_model, ema=0.9), make_state(tiny_model(num_classes=7), ema=0.9)
    before, progress = frozen(wider), encode(wider.state())[0]
    with pytest.raises(ArtifactError, match="do not fit the model"):
        wider.load_state(through_a_file(state.state()))
    assert differing(before, frozen(wider)) == []
    assert encode(wider.state())[0] == progress


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda tree: tree.pop("average"), "average"),
        (lambda tree: tree["parts"].pop("counter"), "counter"),
        (lambda tree: tree["parts"].update(sorter={}), "sorter"),
        (lambda tree: tree.update(scaler={}), "scaler"),
        (lambda tree: tree.pop("parts"), "parts"),
    ],
)
def test_a_tree_with_other_parts_is_refused(tiny_model, change, named):
    state = make_state(tiny_model(), ema=0.9)
    state.parts["counter"] = Counter()
    tree = through_a_file(state.state())
    change(tree)
    with pytest.raises(ArtifactError, match=r"(?s)the checkpoint holds .*expected: .*") as caught:
        state.load_state(tree)
    assert named in str(caught.value)


def test_an_optimizer_state_is_keyed_by_name_whatever_the_order_of_groups(tiny_model):
    state = trained(tiny_model)
    tree = optimizer_state(state.model, state.optimizer)
    assert set(tree["state"]) == set(dict(state.model.named_parameters()))
    other = tiny_model()
    parameters = list(other.parameters())[::-1]
    groups = [{"params": [parameter], "names": ["?"]} for parameter in parameters]
    optimizer = torch.optim.AdamW(groups, lr=0.5, fused=True)
    load_optimizer_state(other, optimizer, through_a_file(tree))
    for name, parameter in other.named_parameters():
        assert torch.equal(optimizer.state[parameter]["exp_avg"], tree["state"][name]["exp_avg"]), name
        assert torch.equal(optimizer.state[parameter]["step"], torch.tensor(5.0))


def test_an_optimizer_state_of_another_model_is_refused(tiny_model):
    state = trained(tiny_model)
    tree = optimizer_state(state.model, state.optimizer)
    tree["state"]["blocks.3.weight"] = {}
    with pytest.raises(ArtifactError, match=r"(?s)of another model.*blocks.3.weight"):
        load_optimizer_state(state.model, state.optimizer, tree)


def test_the_first_reason_to_stop_stands(tiny_model):
    state = make_state(tiny_model())
    state.request_stop("SIGTERM")
    state.request_stop("early_stop")
    assert state.stop_reason == "SIGTERM"


def test_a_reason_to_stop_is_not_kept_in_a_checkpoint(tiny_model):
    state, other = make_state(tiny_model()), make_state(tiny_model())
    state.request_stop("SIGTERM")
    other.load_state(through_a_file(state.state()))
    assert other.stop_reason is None


def test_the_average_is_what_is_evaluated_and_ships(tiny_model):
    assert make_state(model := tiny_model()).evaluated_model() is model
    state = make_state(tiny_model(), ema=0.9)
    assert state.evaluated_model() is state.average.module


def test_every_decision_is_stamped_with_its_step(tiny_model):
    state = make_state(tiny_model())
    state.step = 12
    state.decide("planned", lr=0.5)
    assert state.log == [{"step": 12, "what": "planned", "lr": 0.5}]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 6).map(lambda n: n / 2) | st.just(math.nan), min_size=1, max_size=20),
    st.booleans(),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.none() | st.integers(1, 4),
    st.integers(0, 20),
)
def test_the_tracker_follows_its_definition_and_survives_a_cut(values, higher, min_delta, patience, cut):
    tracker = Tracker("x", patience=patience, min_delta=min_delta)
    best, best_step, reference, since = None, 0, None, 0
    for step, value in enumerate(values, start=1):
        if step == cut:
            resumed = Tracker("x", patience=patience, min_delta=min_delta)
            resumed.load_state(through_a_file(tracker.state()))
            tracker = resumed
        sign, good = 1 if higher else -1, not math.isnan(value)
        is_best = good and (best is None or sign * (value - best) > 0)
        improves = good and (reference is None or sign * (value - reference) > min_delta)
        best, best_step = (value, step) if is_best else (best, best_step)
        reference, since = (value, 0) if improves else (reference, since + 1)
        assert tracker.update(metric(value, higher_is_better=higher), step) == is_best
        assert (tracker.best, tracker.best_step) == (best, best_step)
        assert tracker.evaluations_since_improvement == since
        assert tracker.exhausted == (patience is not None and since >= patience)


@pytest.mark.parametrize("cut", [None, 1, 2, 3])
def test_ties_go_to_the_lowest_loss_then_to_the_earliest(cut):
    tracker, best = Tracker("x"), []
    seen = [(0.5, 2.0), (0.5, 1.0), (0.5, 1.0), (0.5, math.nan), (0.4, 0.1), (0.5, None), (0.6, 3.0)]
    for step, (value, loss) in enumerate(seen):
        if step == cut:
            resumed = Tracker("x")
            resumed.load_state(through_a_file(tracker.state()))
            tracker = resumed
        best.append(tracker.update(metric(value), step, loss=None if loss is None else metric(loss)))
    assert best == [True, True, False, False, False, False, True]
    assert (tracker.best_step, tracker.best_loss) == (6, 3.0)
    assert tracker.evaluations_since_improvement == 0


def test_a_tie_is_no_improvement_for_patience():
    tracker = Tracker("x", patience=2)
    assert [tracker.update(0.5, step, loss=3.0 - step) for step in range(3)] == [True, True, True]
    assert tracker.exhausted


def test_a_checkpoint_of_before_keeps_its_best_on_a_tie():
    tracker = Tracker("x")
    tracker.load_state({"best": 0.5, "best_step": 3, "improved_to": 0.5, "since": 0})
    assert not tracker.update(0.5, 4, loss=0.1)
    assert tracker.best_step == 3


def test_plain_numbers_are_tracked_in_the_direction_that_was_said():
    down, up = (Tracker("loss", patience=2, higher_is_better=higher) for higher in (False, True))
    assert [down.update(loss, step) for step, loss in enumerate([3.0, 2.0, 2.5, float("nan")])] == [1, 1, 0, 0]
    assert (down.best, down.best_step, down.exhausted) == (2.0, 1, True)
    assert [up.update(score, step) for step, score in enumerate([3, 2, 4])] == [1, 0, 1]
    assert not up.exhausted


def test_a_metric_of_ones_own_needs_no_more_than_a_value():
    tracker = Tracker("x")
    own = type("Own", (), {"value": 0.25})()
    assert tracker.update(own, 1)
    assert tracker.best == 0.25


def test_a_state_without_evaluations_or_averages_keeps_none(tiny_model):
    model = tiny_model()
    groups = [{"params": [*model.parameters()], "names": [name for name, _ in model.named_parameters()]}]
    state = State(model, torch.optim.SGD(groups, lr=0.1))
    assert set(state.state()) == {"model", "optimizer", "progress", "parts"}
    state.load_state(through_a_file(state.state()))
