"""A head that is fitted to the frozen backbone's features before the first step: by the real command, and what it leaves."""

import pytest
import torch
from safetensors.torch import load_file, save_file

import kiln
from kiln.errors import UsageError
from kiln.observe.progress import make
from kiln.run import Run
from small_runs import HERE, Trial, differing, outcome

FITTED = ("--set", "finetune.mode=staged")


@pytest.fixture(scope="module")
def start(image_folder, tmp_path_factory):
    """A network that has learnt these classes."""
    return train(image_folder, tmp_path_factory.mktemp("start"), epochs=3).model_file


def train(data, output, *, epochs=1, **settings):
    overrides = {name.replace("__", "."): value for name, value in settings.items()}
    return kiln.train(
        data,
        model="kiln/small_cnn",
        img_size=32,
        epochs=epochs,
        batch_size=8,
        output=str(output),
        progress=make(quiet=True),
        overrides={"run.report": False, "augment.policy": "none", **overrides},
    )


@pytest.fixture(scope="module")
def weights(start, tmp_path_factory):
    """Its backbone alone, so that every head on it is new."""
    path = tmp_path_factory.mktemp("weights") / "backbone.safetensors"
    save_file({name: value for name, value in load_file(start).items() if not name.startswith("head.")}, path)
    return str(path)


def first_loss(run):
    return next(line["loss"] for line in run.metrics() if line["event"] == "step")


def test_staged_begins_with_a_fitted_head(image_folder, tmp_path, weights):
    settings = {"model__weights": weights, "optim__lr": 1e-9, "optim__weight_decay": 0.0}
    random = train(image_folder, tmp_path, finetune__mode="full", **settings)
    fitted = train(image_folder, tmp_path, finetune__mode="staged", **settings)
    values = fitted.resolved["values"]
    assert values["finetune.head_start"] == "fitted"
    assert list(values["finetune.stages"]) == ["all decay 0.75"]
    assert random.resolved["values"]["finetune.head_start"] == "random"
    reached = [run.result["metrics"]["val"]["loss"]["value"] for run in (fitted, random)]
    assert reached[0] < 0.8 * reached[1]
    old, new = load_file(weights), load_file(fitted.model_file)
    for name, value in old.items():  # the rate is next to nothing: what fitting does to the backbone would show
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(new[name], value, atol=1e-6, rtol=0, msg=name)


def test_stopped_and_resumed_it_is_not_fitted_again(nursery, image_folder, tmp_path):
    options = (*FITTED, "--model", f"{HERE / 'watched_head.py'}:watched_head", "--set", "finetune.head_start=fitted")
    whole = Trial(nursery, image_folder, tmp_path / "whole", *options)
    whole.go()
    trial = Trial(nursery, image_folder, tmp_path / "cut", *options)
    trial.go(SIGNAL_AT="7:SIGTERM", expect=75)
    assert "resumed at step 7; exactness E2" in trial.go()
    assert differing(outcome(trial.run), outcome(whole.run)) == []


def test_a_head_that_the_weights_hold_is_kept(image_folder, tmp_path, start):
    run = train(image_folder, tmp_path, model__weights=str(start), finetune__mode="staged")
    assert run.resolved["values"]["finetune.head_start"] == "random"
    assert run.resolved["reasons"]["finetune.head_start"] == "the weights hold a head for these classes"
    assert list(run.resolved["values"]["finetune.stages"]) == ["all decay 0.75"]


def test_full_can_have_it_too(image_folder, tmp_path, weights):
    run = train(image_folder, tmp_path, model__weights=weights, finetune__head_start="fitted")
    plain = train(image_folder, tmp_path, model__weights=weights)
    assert first_loss(run) < first_loss(plain)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"finetune__head_start": "fitted"}, "would keep random weights as they are"),
        ({"finetune__head_start": "fitted", "model__weights": "START"}, "the weights hold a head for these classes"),
    ],
)
def test_it_is_refused_where_there_is_nothing_to_fit(image_folder, tmp_path, start, settings, message):
    settings = {name: str(start) if value == "START" else value for name, value in settings.items()}
    with pytest.raises(UsageError, match=message):
        train(image_folder, tmp_path, **settings)


def test_views_that_are_asked_for_keep_the_stage_of_the_head(image_folder, tmp_path, weights):
    run = train(image_folder, tmp_path, epochs=5, model__weights=weights, finetune__mode="staged", finetune__views=1)
    assert isinstance(run, Run)
    assert list(run.resolved["values"]["finetune.stages"]) == ["head at 10", "all from 20% decay 0.75"]


def test_it_is_fitted_to_features_as_training_will_make_them(image_folder, tmp_path, weights):
    """Statistics of quite other images: a head fitted to features by those would begin far off."""
    state = {name: value * 9 if name.endswith("running_var") else value for name, value in load_file(weights).items()}
    path = tmp_path / "other.safetensors"
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    settings = {"finetune__mode": "staged", "optim__lr": 1e-9, "optim__weight_decay": 0.0, "loss__smoothing": 0.0}
    there, other = (
        train(image_folder, tmp_path, model__weights=str(one), finetune__freeze_norm="none", **settings)
        for one in (weights, path)
    )
    assert first_loss(other) == pytest.approx(first_loss(there), rel=0.02)
    held = train(image_folder, tmp_path, model__weights=str(path), finetune__freeze_norm="statistics", **settings)
    kept = load_file(held.model_file)
    assert all(torch.equal(value, kept[name]) for name, value in state.items() if name.endswith("running_var"))


def test_a_loss_that_takes_mixed_targets_alone_is_given_such(image_folder, tmp_path, weights):
    settings = {"loss__name": "mse", "augment__mixup": 0.2, "finetune__mode": "staged"}
    run = train(image_folder, tmp_path, model__weights=weights, **settings)
    assert run.resolved["values"]["finetune.head_start"] == "fitted"
    plain = train(image_folder, tmp_path, model__weights=weights, finetune__head_start="random", **settings)
    assert first_loss(run) < first_loss(plain)
