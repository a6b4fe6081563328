"""Schedules in real runs: what is recorded, and that a killed and resumed run ends the same, bit for bit."""

import pytest

from kiln.engine import checkpoint
from kiln.optim import schedules
from kiln.run import Run
from small_runs import Trial, differing, outcome

PLATEAU = ("--sched", "plateau(patience=0ep, reduce=0.5, cooldown=2steps)", "--set", "training.eval_every=2steps")


def rates_of(run):
    return {line["step"]: line["lr"] for line in Run(run).metrics() if line["event"] == "step"}


def trial_with(nursery, image_folder, output, *settings):
    return Trial(nursery, image_folder, output, *settings)


@pytest.fixture(scope="module")
def undisturbed(nursery, image_folder, tmp_path_factory):
    trial = trial_with(nursery, image_folder, tmp_path_factory.mktemp("plateau"), *PLATEAU)
    trial.go()
    return trial


def test_a_plateau_reduces_the_rate_after_its_evaluation_and_says_so(undisturbed):
    found = checkpoint.newest_checkpoint(undisturbed.run / "checkpoints").tree
    reductions = [entry for entry in found["progress"]["log"] if entry["what"] == "plateau"]
    assert len(reductions) >= 2
    assert [entry["factor"] for entry in reductions] == [0.5 ** (n + 1) for n in range(len(reductions))]
    assert found["plateau"]["factor"] == reductions[-1]["factor"]
    assert [entry["what"] for entry in Run(undisturbed.run).resolved["log"]] == ["plateau"] * len(reductions)
    values = {
        line["step"]: line["metrics"]["accuracy"]["value"]
        for line in Run(undisturbed.run).metrics()
        if line["event"] == "val"
    }
    assert {entry["step"] for entry in reductions} < values.keys()
    warm = schedules.with_warmup(schedules.constant, 21, warmup_steps=2)
    for step, rate in rates_of(undisturbed.run).items():
        reduced = 0.5 ** sum(entry["step"] < step for entry in reductions)
        assert rate == pytest.approx(0.01 * warm(step - 1) * reduced, rel=1e-12)


@pytest.mark.parametrize("end", ["9:SIGKILL", "12:SIGTERM", pytest.param("17:SIGKILL", marks=pytest.mark.slow)])
def test_a_plateau_that_was_killed_and_resumed_ends_the_same(undisturbed, nursery, image_folder, tmp_path, end):
    trial = trial_with(nursery, image_folder, tmp_path / "runs", *PLATEAU, "--checkpoint-every", "5steps")
    trial.go(SIGNAL_AT=end, expect=75 if "TERM" in end else -9)
    trial.go()
    found, wanted = outcome(trial.run), outcome(undisturbed.run)
    assert differing(found, wanted) == []
    assert len(found) > 10


def test_one_cycle_moves_the_first_beta_and_resumes_exactly(nursery, image_folder, tmp_path):
    whole = trial_with(nursery, image_folder, tmp_path / "whole", "--sched", "one_cycle")
    cut = trial_with(nursery, image_folder, tmp_path / "cut", "--sched", "one_cycle")
    plain = trial_with(nursery, image_folder, tmp_path / "plain", "--sched", "one_cycle(momentum=null)")
    whole.go()
    plain.go()
    cut.go(SIGNAL_AT="10:SIGTERM", expect=75)
    cut.go()
    assert differing(outcome(cut.run), outcome(whole.run)) == []
    assert any(name.endswith("exp_avg") for name in differing(outcome(plain.run), outcome(whole.run)))
    curve = schedules.one_cycle(21)
    assert rates_of(whole.run) == {step: pytest.approx(0.01 * curve(step - 1).lr, rel=1e-12) for step in range(1, 22)}
    assert Run(whole.run).resolved["values"]["schedule.warmup"] == "0%"


def test_an_extended_run_goes_on_along_the_curve(nursery, image_folder, tmp_path):
    trial = trial_with(nursery, image_folder, tmp_path / "runs", "--sched", "wsd(decay=50%)", "--warmup", "0")
    trial.go(SIGNAL_AT="8:SIGTERM", expect=75)
    said = trial.resume("--extend", "2ep")
    assert "resumed at step 8" in said
    rates = rates_of(trial.run)
    assert sorted(rates) == list(range(1, 36))
    first = schedules.wsd(21, decay=10, min_fraction=0.01)
    assert rates[8] == pytest.approx(0.01 * first(7))
    assert rates[9] == pytest.approx(0.01 * first(8))
    assert rates[35] == pytest.approx(0.01 * first(20))
    falling = [rates[step] for step in range(9, 36)]
    assert falling == sorted(falling, reverse=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("--sched", "step(every=5ep)"), "every = 35 steps\n  expected: 1 to 20: the schedule has no more"),
        (("--sched", "plateau", "--set", "data.val_fraction=0"), "without effect: nothing to validate on"),
        (("--sched", "plateau(monitor=acuracy)"), "did you mean: accuracy"),
        (("--warmup", "21steps"), "a warmup of 21 steps in a training of 21"),
        (("--sched", "cyclic(up=1ep)", "--opt", "adagrad"), "momentum = None (null in a recipe) leaves it alone"),
    ],
)
def test_what_cannot_be_is_told_before_the_first_step(nursery, image_folder, tmp_path, settings, message):
    trial = trial_with(nursery, image_folder, tmp_path / "runs", *settings)
    assert message in trial.go(expect=2)
    assert not (trial.run / "metrics.jsonl").exists() or not (trial.run / "metrics.jsonl").read_text()
