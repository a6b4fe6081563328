"""A run that was stopped and gone on with in another process ends as if nothing had happened, bit for bit."""

import pytest

from kiln.run import Run
from small_runs import Trial, differing, outcome, status


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
    assert len({row for step in fed for row in step}) == sum(map(len, fed))  # each row was augmented in its own way
    losses = [line["loss"] for line in run.metrics() if line["event"] == "step"]
    assert len(losses) == undisturbed.total_steps
    assert len(set(losses)) == undisturbed.total_steps
    found = outcome(undisturbed.run)
    moments = [name for name in found if name.startswith("tensor optimizer/state/") and name.endswith("exp_avg_sq")]
    assert len(moments) == 8
    assert "tensor ema/model/body.1.running_var" in found
    assert found["status"] == ("done", 21, "done")
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
