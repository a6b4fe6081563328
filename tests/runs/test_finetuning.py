"""Fine-tuning by the real command: stages that resume to the bit, in one process and two; adapters that leave no trace."""

import pytest
import yaml
from safetensors.torch import load_file, save_file

import kiln
from kiln.errors import ArtifactError
from kiln.models.create import create_model
from kiln.observe.progress import make
from kiln.run import Run
from small_runs import WATCHED, Group, Trial, differing, metrics, outcome

STAGES = ("--set", "finetune.mode=staged", "--set", "finetune.stages=[head at 5, all from 10steps decay 0.5]")
STAGES += ("--set", "optim.groups={body.0: {lr_factor: 0.5}}")  # of what is frozen at first
OPTIONS = {"num_classes": 4, "img_size": 32, "seed": 0, "drop": 0.0}


def log_of(trial):
    content = yaml.safe_load((trial.run / "resolved.yaml").read_text())
    return [(entry["step"], entry["what"]) for entry in content["log"]], content


@pytest.fixture(scope="module")
def undisturbed(nursery, image_folder, tmp_path_factory):
    trial = Trial(nursery, image_folder, tmp_path_factory.mktemp("staged"), *STAGES)
    trial.said = trial.go()
    return trial


@pytest.fixture
def trial(nursery, image_folder, tmp_path):
    return Trial(nursery, image_folder, tmp_path / "runs", *STAGES)


def test_a_staged_run_says_what_is_trained_and_proves_the_rest(undisturbed):
    log, content = log_of(undisturbed)
    assert log == [(10, "frozen_unchanged"), (10, "stage")]
    assert content["log"][0]["tensors"] == 12
    assert "training   head: 516 of 5,652 parameters; 12 tensors frozen, statistics among them" in undisturbed.said
    assert "training   all from step 10 of 21 on, at 1 times the rate" in undisturbed.said
    assert "step 10: all is trained now, 5,652 of 5,652 parameters; the frozen rest had not moved" in undisturbed.said
    stages = [line for line in metrics(undisturbed.run) if line["event"] == "stage"]
    assert stages == [{"event": "stage", "step": 10, "trains": "all", "trainable": 5652}]


@pytest.mark.parametrize("cut", [4, 10, 15], ids=["first-stage", "boundary", "second-stage"])
def test_stopped_in_any_stage_and_resumed(undisturbed, trial, cut):
    trial.go(SIGNAL_AT=f"{cut}:SIGTERM", expect=75)
    assert f"resumed at step {cut}; exactness E2" in trial.go()
    assert differing(outcome(trial.run), outcome(undisturbed.run)) == []
    assert log_of(trial)[0] == log_of(undisturbed)[0]


@pytest.mark.parametrize("cut", [11, pytest.param(13, marks=pytest.mark.slow)])
def test_killed_and_resumed_from_a_checkpoint_before(undisturbed, trial, cut):
    trial.go("--set", "checkpoint.every=5steps", SIGNAL_AT=f"{cut}:SIGKILL", expect=-9)
    assert "resumed at step 10; exactness E2" in trial.go()
    assert differing(outcome(trial.run), outcome(undisturbed.run)) == []


@pytest.mark.ddp
def test_two_processes_change_their_stage_together(nursery, image_folder, tmp_path):
    exact = ("--set", "model.kwargs={norm: group, drop: 0}", "--set", "training.ema_decay=0", "--opt", "sgd", *STAGES)
    alone = Trial(nursery, image_folder, tmp_path / "alone", *exact)
    alone.go()
    both = Trial(nursery, image_folder, tmp_path / "both", *exact)
    Group(both, SIGNAL_AT=f"{2 * Group.warm_up + 13}:SIGTERM").wait(75, 75)
    said, _ = Group(both).wait(0, 0)
    assert "exactness E2" in said
    whole = Trial(nursery, image_folder, tmp_path / "whole", *exact)
    Group(whole).wait(0, 0)
    assert differing(outcome(both.run), outcome(whole.run)) == []
    losses = [[line["loss"] for line in metrics(t.run) if line["event"] == "step"] for t in (alone, whole)]
    assert len(losses[0]) == 21
    assert max(abs(one - two) for one, two in zip(*losses, strict=True)) < 1e-6


def train(image_folder, tmp_path, **overrides):
    return kiln.train(
        image_folder,
        model=WATCHED,
        epochs=2,
        batch_size=8,
        img_size=32,
        lr=0.01,
        output=tmp_path / "runs",
        overrides={name.replace("__", "."): value for name, value in overrides.items()},
        progress=make(quiet=True),
    )


def said(run):
    return (run.path / "log.txt").read_text()


def weights_of(run):
    return load_file(run.path / "model.safetensors")


def start():
    return create_model(WATCHED, **OPTIONS).model.state_dict()


def changed(run):
    found, before = weights_of(run), start()
    assert found.keys() == before.keys()
    return {name for name, tensor in found.items() if not tensor.equal(before[name])}


def test_the_head_alone(image_folder, tmp_path):
    run = train(image_folder, tmp_path, finetune__mode="head", training__ema_decay=0.9)
    assert changed(run) == {"head.weight", "head.bias"}
    assert [entry["what"] for entry in run.resolved["log"]] == ["frozen_unchanged"]
    assert (
        f"frozen     12 tensors are as they were when head began: SHA-256 {run.resolved['log'][0]['sha256']}"
        in said(run)
    )
    assert run.resolved["reasons"]["finetune.freeze_norm"] == "norms are frozen with the rest"


def test_the_top_with_norms_frozen(image_folder, tmp_path):
    overrides = {"finetune__mode": "top(1)", "finetune__freeze_norm": "statistics", "finetune__l2_sp": 0.1}
    run = train(image_folder, tmp_path, **overrides)
    assert changed(run) == {"body.3.weight", "body.4.weight", "body.4.bias", "head.weight", "head.bias"}
    assert run.resolved["values"]["optim.weight_decay"] == 0.0


def test_adapters_leave_a_plain_model_file(image_folder, tmp_path):
    pytest.importorskip("peft")
    run = train(image_folder, tmp_path, finetune__mode="lora", finetune__lora_rank=2)
    assert changed(run) == {"body.0.weight", "body.3.weight", "head.weight", "head.bias"}
    again = kiln.evaluate(run.path, split="val", trust=(WATCHED,))
    assert again["accuracy"] == Run(run.path).result["metrics"]["val"]["accuracy"]["value"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"finetune__mode": "top(9)"}, r"top\(9\): the model has 2 blocks before its head"),
        (
            {"finetune__mode": "staged", "finetune__stages": ["head", "all from 99ep"]},
            "begins at step 693, and the run ends",
        ),
        ({"finetune__mode": "staged", "finetune__stages": ["haed"]}, "'haed' names nothing in the model"),
        ({"finetune__mode": "staged", "finetune__stages": ["all", "body + head from 1ep", "2 from 90%"]}, "'2' names"),
        (
            {"finetune__mode": "head", "optim__groups": {"body.0": {"lr_factor": 0.5}}},
            "the group 'body.0' has no effect",
        ),
        ({"finetune__freeze_norm": "all", "model__kwargs": {"norm": "group"}}, "no layer keeps running statistics"),
    ],
)
def test_what_does_not_fit_the_model_or_the_run_is_refused(image_folder, tmp_path, overrides, message):
    with pytest.raises(kiln.KilnError, match=message):
        train(image_folder, tmp_path, **overrides)


def test_a_frozen_part_that_the_weights_do_not_have_is_refused(image_folder, tmp_path):
    file = tmp_path / "some.safetensors"
    save_file({name: tensor for name, tensor in start().items() if not name.startswith("body.3")}, file)
    kept = {"model__weights": str(file)}
    with pytest.raises(ArtifactError, match="1 tensors that fine-tuning keeps frozen are not in") as raised:
        train(image_folder, tmp_path, finetune__mode="head", **kept)
    assert raised.value.details == ("body.3.weight",)
