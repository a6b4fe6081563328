"""Killed without warning, at any step and in the middle of saving, a run goes on from what it had promised to keep."""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from small_runs import Trial, check_the_stream, check_what_is_kept, differing, metrics, outcome, status


@pytest.fixture(scope="module")
def undisturbed(nursery, image_folder, tmp_path_factory):
    trial = Trial(nursery, image_folder, tmp_path_factory.mktemp("undisturbed"))
    trial.go()
    return trial


@pytest.fixture
def trial(nursery, image_folder, tmp_path):
    return Trial(nursery, image_folder, tmp_path / "runs")


def test_killed_in_mid_epoch_the_steps_since_the_last_checkpoint_are_taken_again(undisturbed, trial):
    trial.go(SIGNAL_AT="10:SIGKILL", expect=-9)
    assert status(trial.run)["state"] == "running"
    assert check_what_is_kept(trial) == 7
    trial.go("--set", "checkpoint.every=2steps", workers=2, SIGNAL_AT="9:SIGKILL", expect=-9)
    assert check_what_is_kept(trial) == 14
    trial.go()
    assert (len(trial.fed(1)), len(trial.fed(2)), len(trial.fed(3))) == (10, 9, 7)
    check_the_stream(trial, undisturbed)
    assert differing(outcome(trial.run), outcome(undisturbed.run)) == []


def test_killed_before_the_first_step_nothing_is_in_the_way(undisturbed, trial):
    for operation in (1, 2, 4, 6, 9):
        trial.go(DIE_BEFORE_OPERATION=str(operation), expect=-9)
    trial.go()
    assert differing(outcome(trial.run), outcome(undisturbed.run)) == []
    assert [path.name for path in trial.run.iterdir() if path.name.startswith(".")] == []


def die_before(operation, trial):
    """Be killed before a file operation, counted from the start of the process, then come to the end."""
    trial.go("--set", "checkpoint.every=3steps", DIE_BEFORE_OPERATION=str(operation), expect=-9)
    check_what_is_kept(trial)
    trial.go(workers=operation % 3)


# A process begins with a dozen file operations; then each save takes 6 to 15, with the best model and the status.
@pytest.mark.parametrize("operation", [21, 26])
def test_killed_between_file_operations_of_a_save(undisturbed, trial, operation):
    die_before(operation, trial)
    check_the_stream(trial, undisturbed)
    assert differing(outcome(trial.run), outcome(undisturbed.run)) == []
    assert [path.name for path in (trial.run / "checkpoints").glob(".*")] == []


@pytest.mark.slow
@pytest.mark.parametrize("first", [1, 7, 13])
def test_killed_between_file_operations_of_a_whole_run(nursery, image_folder, tmp_path, undisturbed, first):
    """Every sixth of its 210 or so operations; `make chaos` takes them all."""
    for operation in range(first, 200, 18):
        trial = Trial(nursery, image_folder, tmp_path / str(operation))
        die_before(operation, trial)
        assert differing(outcome(trial.run), outcome(undisturbed.run)) == []


@pytest.mark.slow
def test_killed_ten_times_at_random_with_other_workers_each_time(undisturbed, trial):
    """Step after step is saved, so that the process dies in the middle of it as often as not."""
    draw = random.Random(0)
    for _ in range(10):
        child = trial.start("--set", "checkpoint.every=1steps", workers=draw.choice([0, 1, 2]))
        time.sleep(draw.uniform(0.3, 0.8))
        child.kill()
        child.wait()
        check_what_is_kept(trial)
    trial.go()
    check_the_stream(trial, undisturbed)
    assert differing(outcome(trial.run), outcome(undisturbed.run)) == []


# Signals that ask.


@pytest.mark.parametrize(
    ("name", "state", "code"),
    [("SIGTERM", "preempted", 75), ("SIGUSR1", "preempted", 75), ("SIGINT", "interrupted", 130)],
)
def test_a_signal_saves_and_leaves_with_its_status(trial, name, state, code):
    said = trial.go(SIGNAL_AT=f"3:{name}", expect=code)
    assert f"error E801: stopped by {name} at step 3\n" in said
    assert f"next: kiln resume {trial.run}" in said
    assert (status(trial.run)["state"], status(trial.run)["step"], status(trial.run)["reason"]) == (state, 3, name)
    assert check_what_is_kept(trial) == 3


@pytest.mark.slow
def test_the_command_itself_heeds_a_signal_from_outside(nursery, image_folder, tmp_path):
    """As people run it: a process of its own, a signal whenever it comes."""
    trial = Trial(nursery, image_folder, tmp_path / "runs", "--epochs", 300)
    command = [sys.executable, "-m", "kiln", *map(str, trial.arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert any("epoch    2/300" in line for line in process.stdout)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 75
    assert "Traceback" not in said
    assert status(trial.run)["state"] == "preempted"
    assert check_what_is_kept(trial) == status(trial.run)["step"] >= 14


def test_a_second_signal_during_the_save_changes_nothing(undisturbed, trial):
    """The first asks to stop after the step; the others come while its checkpoint is written."""
    trial.go(SIGNAL_AT="9:SIGTERM", SIGNALS_WHILE_SAVING="SIGTERM", expect=75)
    assert (status(trial.run)["state"], status(trial.run)["step"]) == ("preempted", 9)
    assert check_what_is_kept(trial) == 9
    trial.go()
    assert differing(outcome(trial.run), outcome(undisturbed.run)) == []


def test_a_second_ctrl_c_interrupts_at_once_and_discards_the_half_saved(undisturbed, trial):
    trial.go(SIGNAL_AT="9:SIGINT", SIGNALS_WHILE_SAVING="SIGINT", expect=130)
    assert status(trial.run)["state"] == "interrupted"
    assert check_what_is_kept(trial) == 7
    trial.go()
    assert differing(outcome(trial.run), outcome(undisturbed.run)) == []
    assert [path.name for path in (trial.run / "checkpoints").glob(".*")] == []


@pytest.mark.parametrize(("name", "state", "code"), [("SIGTERM", "preempted", 75), ("SIGINT", "interrupted", 130)])
def test_a_signal_after_the_last_step_leaves_a_run_that_only_needs_its_end(undisturbed, trial, name, state, code):
    trial.go(SIGNAL_AT_WORD=f"measuring:{name}", expect=code)
    assert (status(trial.run)["state"], status(trial.run)["step"]) == (state, 21)
    assert not (trial.run / "result.json").exists()
    trial.go()
    assert trial.fed(2) == []
    assert differing(outcome(trial.run), outcome(undisturbed.run)) == []


def test_a_signal_before_the_first_step_leaves_a_run_that_begins_anew(undisturbed, trial):
    trial.go(SIGNAL_AT_WORD="exactness:SIGTERM", expect=75)
    assert (status(trial.run)["state"], status(trial.run)["step"]) == ("preempted", 0)
    trial.go()
    assert trial.fed(1) == []
    assert differing(outcome(trial.run), outcome(undisturbed.run)) == []


# One at a time.


def test_a_second_trainer_is_refused_and_told_who_has_the_run(nursery, image_folder, tmp_path):
    trial = Trial(nursery, image_folder, tmp_path / "runs", "--epochs", 300)
    first = trial.start()
    first.wait_for("epoch    1/300")
    said = trial.go(expect=2)
    assert f"error E105: {trial.run} is in use by process {first.pid}" in said
    assert status(trial.run)["pid"] == first.pid
    first.kill(signal.SIGTERM)
    assert first.wait() == 75
    assert check_what_is_kept(trial) == status(trial.run)["step"]
    trial.go(SIGNAL_AT="1:SIGTERM", expect=75)  # and whoever comes next may


def test_two_runs_of_one_name_are_refused(nursery, image_folder, tmp_path):
    trial = Trial(nursery, image_folder, tmp_path / "runs")
    trial.go("--epochs", "1steps")
    anew = [argument for argument in trial.arguments if argument not in ("--resume", "auto")]
    said = nursery.run(*anew, expect=2)
    assert f"error E105: {trial.run} holds a run already" in said


# Places that cannot be written, and disks that fill up.

NOBODY = 65534 if os.geteuid() == 0 else None


def test_an_output_that_cannot_be_is_an_error_before_training(nursery, image_folder, tmp_path):
    (tmp_path / "file").write_text("")
    trial = Trial(nursery, image_folder, tmp_path / "file" / "runs")
    said = nursery.run(*trial.arguments, expect=5)
    assert "error E401: cannot make a run folder in" in said
    assert "next: another --output" in said


@pytest.fixture
def public_folder():
    """A folder that everybody may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_an_output_that_is_read_only_is_an_error_before_training(nursery, image_folder, public_folder):
    shutil.copytree(image_folder, public_folder / "pictures")
    trial = Trial(nursery, public_folder / "pictures", public_folder / "runs")
    trial.data.chmod(0o755)
    trial.output.mkdir(mode=0o555)
    said = nursery.run(*trial.arguments, user=NOBODY, expect=5)
    assert f"error E401: cannot make a run folder in {trial.output}: Permission denied" in said
    trial.output.chmod(0o755)
    trial.go(SIGNAL_AT="2:SIGTERM", expect=75)
    trial.run.chmod(0o555)
    said = nursery.run(*trial.arguments, user=NOBODY, expect=5)
    assert f"error E401: cannot write in {trial.run}: Permission denied" in said
    assert status(trial.run)["state"] == "preempted"
    trial.run.chmod(0o755)


def test_a_full_disk_stops_the_run_and_keeps_the_checkpoint_before(undisturbed, trial):
    trial.go(SIGNAL_AT="9:SIGTERM", expect=75)
    said = trial.go(LARGEST_FILE="20000", expect=5)
    assert "error E401: cannot save a checkpoint of 0." in said
    assert "kept: the checkpoints of steps 7, 9" in said
    assert (status(trial.run)["state"], status(trial.run)["code"]) == ("failed", "E401")
    assert [path.name for path in (trial.run / "checkpoints").glob(".*")] == []
    trial.go()
    assert differing(outcome(trial.run), outcome(undisturbed.run)) == []


@pytest.mark.slow
def test_a_full_disk_for_the_log_is_told_as_such(trial):
    """The checkpoints of SGD without an average are smaller than what 30 epochs write into the log."""
    smaller = ("--opt", "sgd", "--set", "training.ema_decay=0", "--epochs", 40)
    said = trial.go(*smaller, LARGEST_FILE="30000", expect=5)
    assert "error E401: cannot write metrics.jsonl: File too large" in said
    assert check_what_is_kept(trial) > 70
    assert status(trial.run)["code"] == "E401"
    trial.go(*smaller)
    assert [line["step"] for line in metrics(trial.run) if line["event"] == "step"] == list(range(1, 281))
