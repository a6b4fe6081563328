"""A run that was stopped and gone on with in another process ends as if nothing had happened, bit for bit."""

import os
import shutil

import pytest
import torch
from torch.utils.data import TensorDataset

import kiln
from kiln.engine import checkpoint
from kiln.errors import UsageError
from kiln.observe.progress import make
from kiln.run import Run
from small_runs import WATCHED, Trial, differing, metrics, outcome, status

SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def undisturbed(nursery, image_folder, tmp_path_factory):
    """A run that nothing ever disturbed, to compare with."""
    trial = Trial(nursery, image_folder, tmp_path_factory.mktemp("undisturbed"))
    trial.go()
    return trial


@pytest.fixture
def trial(nursery, image_folder, tmp_path):
    return Trial(nursery, image_folder, tmp_path / "runs")


def test_the_undisturbed_run_is_worth_comparing_with(undisturbed):
    run, fed = Run(undisturbed.run), undisturbed.fed(1)
    assert len(fed) == undisturbed.total_steps
    rows = [row for step in fed for row in step]
    assert len(set(rows)) > 0.97 * len(rows)  # augmented in its own way; crops of 32 px images may be cut alike
    losses = [line["loss"] for line in run.metrics() if line["event"] == "step"]
    assert len(losses) == undisturbed.total_steps
    assert len(set(losses)) == undisturbed.total_steps
    found = outcome(undisturbed.run)
    moments = [name for name in found if name.startswith("tensor optimizer/state/") and name.endswith("exp_avg_sq")]
    assert len(moments) == 8
    assert "tensor average/model/body.1.running_var" in found
    assert found["status"] == ("done", 21, "done")
    step, tree = found["checkpoint"]
    assert (step, tree["average"]["updates"], tree["progress"]["epoch"]) == (21, 21, 3)
    assert tree["tracker"]["best"] == run.result["metrics"]["val"]["accuracy"]["value"]
    assert tree["tracker"]["best_step"] in (7, 14, 21)
    assert run.result["metrics"]["val"]["accuracy"]["value"] > 0.3


def test_the_same_command_twice_gives_the_same_run(undisturbed, trial):
    trial.go(workers=2)
    assert differing(outcome(trial.run), outcome(undisturbed.run)) == []
    assert trial.fed(1) == undisturbed.fed(1)


@pytest.mark.parametrize("cut", [1, 6, 7, 8, 10], ids=["first", "before-epoch-end", "epoch-end", "after-it", "middle"])
def test_stopped_by_a_signal_and_resumed_in_a_new_process(undisturbed, trial, cut):
    said = trial.go(SIGNAL_AT=f"{cut}:SIGTERM", expect=75)
    assert f"stopped by SIGTERM at step {cut}\n" in said
    assert (status(trial.run)["state"], status(trial.run)["step"]) == ("preempted", cut)
    assert f"resumed at step {cut}; exactness E2" in trial.go()
    assert differing(outcome(trial.run), outcome(undisturbed.run)) == []
    assert (trial.fed(1), trial.fed(2)) == (undisturbed.fed(1)[:cut], undisturbed.fed(1)[cut:])


def test_workers_may_change_at_each_resume(undisturbed, trial):
    trial.go(workers=2, SIGNAL_AT="4:SIGTERM", expect=75)
    trial.go(workers=1, SIGNAL_AT="5:SIGUSR1", expect=75)
    trial.go(workers=0, SIGNAL_AT="8:SIGTERM", expect=75)
    trial.go("--set", "data.prefetch=7", workers=2)
    assert differing(outcome(trial.run), outcome(undisturbed.run)) == []
    assert [step for number in range(1, 5) for step in trial.fed(number)] == undisturbed.fed(1)


# Which checkpoint.


def stopped(trial, step=10):
    """A run with several checkpoints that stopped there."""
    trial.go("--set", "checkpoint.every=1steps", SIGNAL_AT=f"{step}:SIGTERM", expect=75)
    assert checkpoint.committed_steps(trial.run / "checkpoints")[-2:] == [step - 1, step]


DAMAGES = {
    "a flipped bit": lambda path: flip_a_bit(path / "model.safetensors"),
    "a flipped bit in the manifest": lambda path: flip_a_bit(path / "manifest.json"),
    "cut short": lambda path: os.truncate(path / "optimizer.safetensors", 100),
    "emptied": lambda path: os.truncate(path / "state.json", 0),
    "deleted": lambda path: (path / "average.safetensors").unlink(),
}


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage", [*list(DAMAGES)[:1], *(pytest.param(name, marks=SLOW) for name in list(DAMAGES)[1:])]
)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_taken(undisturbed, trial, damage):
    stopped(trial)
    DAMAGES[damage](trial.run / "checkpoints" / "step-00000010")
    said = trial.go()
    assert "damaged checkpoint set aside: step-00000010: " in said
    assert "resumed at step 9; exactness E2" in said
    assert (trial.run / "checkpoints" / ".bad-step-00000010").is_dir()
    assert differing(outcome(trial.run), outcome(undisturbed.run)) == []
    assert trial.fed(2) == undisturbed.fed(1)[9:]


def test_a_damaged_checkpoint_takes_its_best_model_with_it(nursery, image_folder, tmp_path, undisturbed):
    """The newest checkpoint is that of a new best; the one before it knows another best, whose weights must be there."""
    best = next(line["step"] for line in reversed(metrics(undisturbed.run)) if line.get("best"))
    assert best > 7
    trial = Trial(nursery, image_folder, tmp_path / "runs", "--set", "checkpoint.every=1steps")
    trial.go(SIGNAL_AT=f"{best}:SIGTERM", expect=75)
    flip_a_bit(trial.run / "checkpoints" / f"step-{best:08d}" / "model.safetensors")
    assert f"resumed at step {best - 1};" in trial.go(SIGNAL_AT="1:SIGTERM", expect=75)
    trial.go()
    assert differing(outcome(trial.run), outcome(undisturbed.run)) == []


def test_with_every_checkpoint_damaged_nothing_is_made_up(trial):
    stopped(trial)
    for path in (trial.run / "checkpoints").iterdir():
        flip_a_bit(path / "state.json")
    said = trial.go(expect=4)
    assert "error E302: no checkpoint in" in said
    assert said.count("state.json does not match its checksum") == 3
    assert (status(trial.run)["state"], status(trial.run)["code"]) == ("failed", "E302")


def test_a_checkpoint_named_by_its_path_is_that_one_or_an_error(undisturbed, trial):
    stopped(trial)
    newest, older = (trial.run / "checkpoints" / f"step-{step:08d}" for step in (10, 9))
    said = trial.resume(place=older, expect=2)
    assert "is not the newest checkpoint of its run" in said
    assert f"newer: {newest}" in said
    flip_a_bit(newest / "model.safetensors")
    said = trial.resume(place=newest, expect=4)
    assert "error E302: model.safetensors does not match its checksum" in said
    assert newest.is_dir()
    shutil.rmtree(newest)
    assert "resumed at step 9;" in trial.resume(place=older)
    assert differing(outcome(trial.run), outcome(undisturbed.run)) == []


def test_auto_without_a_run_starts_one(trial):
    said = trial.go("--epochs", "1steps")
    assert "resumed at" not in said
    assert status(trial.run)["step"] == 1


# What may be said differently.


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (["--lr", "0.02"], "optim.lr: the run has 0.01, now given 0.02"),
        (["--epochs", "10"], "training.epochs: the run has 3ep, now given 10ep"),  # though it is the default
        (["--set", "loss.smoothing=0", "--seed", "0"], "loss.smoothing: the run has 0.1, now given 0.0"),
    ],
)
def test_other_settings_are_refused_with_the_difference(nursery, trial, change, difference):
    trial.go(SIGNAL_AT="3:SIGTERM", expect=75)
    before = outcome_of_stopped(trial)
    said = nursery.run("train", "--resume", trial.run, *change, expect=2)
    assert "error E106: the run was started with other settings: " in said
    assert f"\n  {difference}\n" in said
    said = trial.go(*change, expect=2)  # of a flag said twice the later counts
    assert f"\n  {difference}\n" in said
    assert outcome_of_stopped(trial) == before


def outcome_of_stopped(trial):
    return {path: path.read_bytes() for path in trial.run.rglob("*") if path.is_file()}


def test_how_the_work_is_done_may_change_also_back_to_the_default(undisturbed, trial):
    trial.go("--set", "checkpoint.keep=9", "--set", "checkpoint.every=1steps", SIGNAL_AT="9:SIGTERM", expect=75)
    assert len(checkpoint.committed_steps(trial.run / "checkpoints")) == 9
    trial.resume("--set", "checkpoint.keep=2", "--set", "data.workers=1")
    kept = checkpoint.committed_steps(trial.run / "checkpoints")
    assert kept[-2:] == [20, 21]
    assert len(kept) <= 4  # with the best, and the best that the one before knows
    assert differing(outcome(trial.run), outcome(undisturbed.run)) == []


def test_other_micro_batches_and_memory_formats_are_close_and_said_to_be(nursery, image_folder, tmp_path):
    exact = ("--set", "model.kwargs={norm: group, drop: 0}")
    whole, cut = (Trial(nursery, image_folder, tmp_path / name, *exact) for name in ("whole", "cut"))
    whole.go()
    cut.go(SIGNAL_AT="10:SIGTERM", expect=75)
    said = cut.go("--set", "training.micro_batch_size=3", "--set", "run.memory_format=contiguous")
    assert "exactness E1 (these differ: memory_format, micro_batch_size)" in said
    losses = [[line["loss"] for line in metrics(trial.run) if line["event"] == "step"] for trial in (whole, cut)]
    assert losses[0][:10] == losses[1][:10]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert losses[0] != losses[1]


def test_extend_goes_on_after_the_end_and_is_logged(undisturbed, trial):
    trial.go()
    trial.resume("--extend", "2ep")
    run = Run(trial.run)
    assert run.status["step"] == 35
    assert run.resolved["log"] == [{"step": 21, "what": "extended", "from_steps": 21, "to_steps": 35}]
    steps = [line for line in metrics(trial.run) if line["event"] == "step"]
    assert [line["step"] for line in steps] == list(range(1, 36))
    before = metrics(undisturbed.run)
    assert metrics(trial.run)[: len(before)] == before
    assert steps[20]["lr"] == steps[-1]["lr"] > 0  # a run that had ended goes on at its last rate
    assert "training   5 epochs of 7 steps, 8 images a step" in trial.resume()  # and remembers


def test_an_extended_run_survives_a_stop_too(nursery, image_folder, tmp_path):
    whole, cut = (Trial(nursery, image_folder, tmp_path / name) for name in ("whole", "cut"))
    for trial in (whole, cut):
        trial.go(SIGNAL_AT="12:SIGTERM", expect=75)
    whole.resume("--extend", "1ep")
    cut.resume("--extend", "1ep", SIGNAL_AT="4:SIGTERM", expect=75)
    assert status(cut.run)["step"] == 16
    cut.resume()
    assert differing(outcome(cut.run), outcome(whole.run)) == []
    assert outcome(cut.run)["status"] == ("done", 28, "done")


def test_changed_data_are_refused_with_the_difference(nursery, image_folder, tmp_path):
    data = tmp_path / "pictures"
    shutil.copytree(image_folder, data)
    trial = Trial(nursery, data, tmp_path / "runs")
    trial.go(SIGNAL_AT="3:SIGTERM", expect=75)
    (data / "bars" / "03.png").rename(tmp_path / "03.png")
    said = trial.go(expect=3)
    assert "error E208: the data changed since the run began" in said
    assert "64 samples were recorded, 63 are here" in said
    shutil.copy(image_folder / "bars" / "05.png", data / "bars" / "03.png")
    assert "some files have another size" in trial.go(expect=3)
    (tmp_path / "03.png").rename(data / "bars" / "03.png")
    shutil.copystat(image_folder / "bars" / "03.png", data / "bars" / "03.png")
    trial.go()
    assert status(trial.run)["state"] == "done"


def test_data_that_moved_are_the_same_data(nursery, image_folder, tmp_path, undisturbed):
    trial = Trial(nursery, image_folder, tmp_path / "runs")
    trial.go(SIGNAL_AT="10:SIGTERM", expect=75)
    shutil.copytree(image_folder, tmp_path / "moved")
    trial.resume("--data", tmp_path / "moved")
    assert differing(outcome(trial.run), outcome(undisturbed.run)) == []


def test_what_early_stopping_counts_survives(nursery, image_folder, tmp_path):
    settings = ("--epochs", 9, "--set", "training.patience=2ep", "--set", "training.ema_decay=0", "--lr", 1e-7)
    whole, cut = (Trial(nursery, image_folder, tmp_path / name, *settings) for name in ("whole", "cut"))
    said = whole.go()
    end = status(whole.run)["step"]
    assert f"stopped early at step {end}: " in said
    assert 7 < end < 63
    cut.go(SIGNAL_AT=f"{end - 5}:SIGTERM", expect=75)  # between the evaluations that count
    assert f"stopped early at step {end}: " in cut.go()
    assert differing(outcome(cut.run), outcome(whole.run)) == []
    tree = checkpoint.newest_checkpoint(cut.run / "checkpoints").tree
    assert (tree["tracker"]["best_step"], tree["tracker"]["since"]) == (end - 14, 2)
    cut.go()  # a resume of it trains no further
    assert outcome(cut.run)["status"] == ("done", end, "early_stop")


def test_a_metrics_log_that_was_cut_is_said_and_not_filled_with_noughts(trial):
    trial.go(SIGNAL_AT="10:SIGTERM", expect=75)
    os.truncate(trial.run / "metrics.jsonl", 0)
    assert "metrics.jsonl is shorter than it was at step 10" in trial.go()
    assert [line["step"] for line in metrics(trial.run) if line["event"] == "step"] == list(range(11, 22))


# From Python.


def test_python_gives_the_same_run(undisturbed, image_folder, tmp_path):
    settings = {"epochs": 3, "batch_size": 8, "img_size": 32, "lr": 0.01, "ema_decay": 0.9, "workers": 1}
    settings["crop"] = "resized"
    run = kiln.train(image_folder, model=WATCHED, output=tmp_path, name="run", progress=quiet(), **settings)
    assert differing(outcome(run.path), outcome(undisturbed.run)) == []


def test_a_dataset_object_is_gone_on_with_when_it_is_given_again(tmp_path):
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(40, 3, 8, 8, generator=generator), torch.arange(40) % 2)
    settings = {
        "model": "kiln/small_cnn",
        "overrides": {"model.kwargs": {"widths": [8]}},
        "batch_size": 8,
        "output": tmp_path,
    }
    whole = kiln.train(data, name="whole", epochs="9steps", progress=quiet(), **settings)
    cut = kiln.train(data, name="cut", epochs="5steps", progress=quiet(), **settings)
    again = kiln.train(data, resume=cut.path, extend="4steps", progress=quiet())
    assert again.status["step"] == whole.status["step"] == 9
    assert metrics(again.path)[0] == metrics(whole.path)[0]
    with pytest.raises(UsageError, match="objects"):
        kiln.train(resume=cut.path, progress=quiet())


def quiet():
    return make(quiet=True)
