"""Several processes: the same samples as one, the same losses, and nobody waits for the dead."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from kiln.engine import checkpoint
from small_runs import SECONDS, Group, Trial, differing, metrics, outcome, status

pytestmark = pytest.mark.ddp

EXACT = ("--set", "model.kwargs={norm: group, drop: 0}", "--set", "training.ema_decay=0", "--opt", "sgd")
"""Equality across process counts is claimed without dropout and BatchNorm. And not by Adam here: where a gradient is 0 but
for rounding, its division makes whole steps of the rounding."""
WARM_UP = Group.warm_up


@pytest.fixture(scope="module")
def alone(nursery, image_folder, tmp_path_factory):
    """What one process does, to compare with."""
    trial = Trial(nursery, image_folder, tmp_path_factory.mktemp("alone"), *EXACT)
    trial.go()
    return trial


@pytest.fixture
def trial(nursery, image_folder, tmp_path):
    return Trial(nursery, image_folder, tmp_path / "runs", *EXACT)


def shared(trial, number, size=2):
    """The stream of a group: per step the rows of all its processes, in the order of ranks."""
    ranks = [trial.fed(number, rank)[WARM_UP:] for rank in range(size)]
    return [[row for part in step for row in part] for step in zip(*ranks, strict=True)]


def losses(trial):
    return {line["step"]: line["loss"] for line in metrics(trial.run) if line["event"] == "step"}


def gap(trial, other):
    """The largest difference between the losses of two runs at any step that neither skipped."""
    pairs = [(losses(trial)[step], loss) for step, loss in losses(other).items()]
    assert losses(trial).keys() == losses(other).keys()
    assert [math.isnan(one) for one, _ in pairs] == [math.isnan(two) for _, two in pairs]
    return max(abs(one - two) for one, two in pairs if not math.isnan(one))


def test_two_processes_see_the_samples_and_losses_of_one(alone, trial):
    first, second = Group(trial).wait(0, 0)
    assert shared(trial, 1) == alone.fed(1)
    assert gap(trial, alone) < 1e-6
    values = [[line["metrics"] for line in metrics(t.run) if line["event"] == "val"] for t in (trial, alone)]
    for two, one in zip(*values, strict=True):
        assert {name: metric["n"] for name, metric in two.items()} == {
            name: metric["n"] for name, metric in one.items()
        }
        assert two["loss"]["value"] == pytest.approx(one["loss"]["value"], abs=1e-6)
        assert two["accuracy"] == one["accuracy"]
    assert "next   kiln evaluate" in first
    assert second == ""  # one of them speaks


def test_the_process_count_may_change_at_each_resume(alone, trial):
    trial.go(SIGNAL_AT="4:SIGTERM", expect=75)
    first, _ = Group(trial, SIGNAL_AT=f"{WARM_UP + 6}:SIGTERM").wait(75, 75)
    assert "resumed at step 4; exactness E1 (these differ: world_size)" in first
    stop = status(trial.run)["step"]
    assert "resumed at step" in trial.go()
    assert trial.fed(1) + shared(trial, 2) + trial.fed(3) == alone.fed(1)
    assert (len(trial.fed(1)), len(trial.fed(1)) + len(shared(trial, 2))) == (4, stop)
    assert gap(trial, alone) < 1e-6


def test_two_processes_resume_bit_for_bit(nursery, image_folder, tmp_path):
    """With BatchNorm, dropout and an average: equal at equal process counts."""
    whole, cut = (Trial(nursery, image_folder, tmp_path / name) for name in ("whole", "cut"))
    Group(whole).wait(0, 0)
    Group(cut, SIGNAL_AT=f"{WARM_UP + 10}:SIGTERM", SIGNAL_RANK="1").wait(75, 75)
    first, _ = Group(cut).wait(0, 0)
    assert "exactness E2, bit for bit" in first
    assert differing(outcome(cut.run), outcome(whole.run)) == []
    assert shared(cut, 1) + shared(cut, 2) == shared(whole, 1)


@pytest.mark.parametrize(
    ("batch_size", "size"), [(1, 2), (2, 3), (3, 2)], ids=["empty-shards", "fewer-than-processes", "uneven"]
)
def test_shards_of_one_sample_and_of_none(nursery, image_folder, tmp_path, batch_size, size):
    settings = (*EXACT, "--batch-size", batch_size, "--epochs", "12steps", "--opt", "sgd")
    one, several = (Trial(nursery, image_folder, tmp_path / name, *settings) for name in ("one", "several"))
    one.go()
    Group(several, size=size).wait(*(0,) * size)
    assert gap(several, one) < 1e-6
    weights = [checkpoint.newest_checkpoint(trial.run / "checkpoints").tree["model"] for trial in (one, several)]
    assert max(float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0]) < 1e-6
    counts = [line["metrics"]["loss"]["n"] for line in metrics(several.run) if line["event"] == "val"]
    assert set(counts) == {9}  # each sample once, though nine do not go into two


def with_white_images(image_folder, tmp_path, *, per_class):
    """The pictures, with more in each class that the model cannot take."""
    data = tmp_path / "poisoned"
    shutil.copytree(image_folder, data)
    white = Image.fromarray(np.full((32, 32, 3), 255, np.uint8))
    for name in sorted(path.name for path in data.iterdir())[: max(1, int(per_class * 4))]:
        for number in range(max(1, int(per_class))):
            white.save(data / name / f"white-{number}.png")
    return data


def test_one_poisoned_sample_is_skipped_by_all_and_named(nursery, image_folder, tmp_path):
    data = with_white_images(image_folder, tmp_path, per_class=0.25)
    one, two = (Trial(nursery, data, tmp_path / name, *EXACT) for name in ("one", "two"))
    alone = one.go()
    first, _ = Group(two).wait(0, 0)
    for said in (alone, first):
        assert said.count("skipped: the loss or a gradient is not finite (samples bars/white-0.png)") == 3
    skipped = [[line for line in metrics(trial.run) if line["event"] == "skipped"] for trial in (one, two)]
    assert skipped[0] == skipped[1]
    assert len(skipped[0]) == 3
    assert sum(map(math.isnan, losses(two).values())) == 3
    assert gap(two, one) < 1e-6


def test_a_process_without_samples_is_not_poisoned_by_those_of_other_steps(nursery, image_folder, tmp_path):
    """Seed 22 puts the poison first in the order of the epoch."""
    data = with_white_images(image_folder, tmp_path, per_class=0.25)
    trial = Trial(nursery, data, tmp_path / "runs", *EXACT, "-b", 1, "--epochs", "8steps", "--seed", 22)
    Group(trial).wait(0, 0)
    assert [line["step"] for line in metrics(trial.run) if line["event"] == "skipped"] == [1]


def test_poison_in_every_step_stops_all_with_the_samples_named(nursery, image_folder, tmp_path):
    trial = Trial(nursery, with_white_images(image_folder, tmp_path, per_class=16), tmp_path / "runs")
    said = Group(trial).wait(7, 7)
    for text in said:
        assert "error E601: 4 steps in a row had a loss or gradient that is not finite" in text
        assert "/white-" in text
    assert (status(trial.run)["state"], status(trial.run)["code"]) == ("failed", "E601")


def test_a_save_that_fails_on_the_first_fails_on_all_alike(trial):
    first, second = Group(trial, LARGEST_FILE="10000", ONLY_RANK="0").wait(5, 5)
    assert "error E401: cannot save a checkpoint of 0." in first
    assert second == first[first.index("error E401") :]
    assert status(trial.run)["code"] == "E401"


def test_the_death_of_one_process_ends_the_others(trial):
    group = Group(trial, SIGNAL_AT=f"{WARM_UP + 10}:SIGKILL", SIGNAL_RANK="1")
    first, _ = group.wait(6, -9)
    assert "error E501: " in first
    assert checkpoint.newest_checkpoint(trial.run / "checkpoints").step == 7


def test_only_one_group_may_have_a_run(nursery, image_folder, tmp_path):
    trial = Trial(nursery, image_folder, tmp_path / "runs", *EXACT, "--epochs", 300)
    running = Group(trial)
    running.children[0].wait_for("epoch    1/300")
    said = trial.go(expect=2)
    assert f"is in use by process {running.children[0].pid}" in said
    running.children[1].kill(signal.SIGTERM)
    running.wait(75, 75)
    assert status(trial.run)["reason"] == "SIGTERM"


# As people start them: the launcher, and torchrun itself.


def command(*arguments, stream, **environment):
    """A command in processes of its own, that import everything anew."""
    stream.mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "STREAM": str(stream), **environment},
    )


def finished(process, *, expect):
    try:
        said, complained = process.communicate(timeout=3 * SECONDS)
    finally:
        process.kill()
    assert process.returncode == expect, said + complained
    return said, complained


TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m")


@pytest.mark.slow
def test_the_launcher_trains_and_tells_the_outcome_once(alone, trial):
    trial.num_started = 1
    process = command("kiln", *trial.arguments, "--processes", 2, "--json", stream=trial.output / "stream-1")
    said, complained = finished(process, expect=0)
    (line,) = said.splitlines()  # one object and nothing else
    assert json.loads(line)["state"] == "done"
    assert complained.count("epoch    3/3") == 1
    assert "Traceback" not in complained
    assert shared(trial, 1) == alone.fed(1)
    assert gap(trial, alone) < 1e-6
    assert status(trial.run)["state"] == "done"


@pytest.mark.slow
def test_torchrun_starts_a_run_and_goes_on_with_it(alone, trial):
    trial.num_started = 2
    stop = f"{WARM_UP + 10}:SIGTERM"
    first = command(*TORCHRUN, "kiln", *trial.arguments, stream=trial.output / "stream-1", SIGNAL_AT=stop)
    _, complained = finished(first, expect=1)  # torchrun's own status, whatever its processes left with
    assert "exitcode  : 75" in complained
    assert (status(trial.run)["state"], status(trial.run)["reason"]) == ("preempted", "SIGTERM")
    said, _ = finished(command(*TORCHRUN, "kiln", *trial.arguments, stream=trial.output / "stream-2"), expect=0)
    assert "exactness E2, bit for bit" in said
    assert said.count(f"run    {trial.run}") == 1
    assert shared(trial, 1) + shared(trial, 2) == alone.fed(1)
    assert gap(trial, alone) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("starter", "name", "state", "code"),
    [
        ("torchrun", "SIGTERM", "preempted", 1),
        ("launcher", "SIGTERM", "preempted", 75),
        ("launcher", "SIGUSR1", "preempted", 75),
        ("launcher", "SIGINT", "interrupted", 130),
    ],
)
def test_a_signal_to_the_starter_saves_on_all(nursery, image_folder, tmp_path, starter, name, state, code):
    trial = Trial(nursery, image_folder, tmp_path / "runs", "--epochs", 300)
    start = (*TORCHRUN, "kiln", *trial.arguments)
    if starter == "launcher":
        start = ("kiln", *trial.arguments, "--processes", 2)
    process = command(*start, stream=trial.output / "stream")
    assert any("epoch    1/300" in line for line in process.stdout)
    process.send_signal(getattr(signal, name))
    _, complained = finished(process, expect=code)
    assert (status(trial.run)["state"], status(trial.run)["reason"]) == (state, name)
    assert checkpoint.newest_checkpoint(trial.run / "checkpoints").step == status(trial.run)["step"] >= 7
    if starter == "launcher":
        assert complained.count("E801") == 1
        assert "Traceback" not in complained


@pytest.mark.slow
def test_the_launcher_leaves_with_the_error_of_its_processes(nursery, image_folder, tmp_path):
    trial = Trial(nursery, with_white_images(image_folder, tmp_path, per_class=16), tmp_path / "runs", "--processes", 2)
    _, complained = finished(command("kiln", *trial.arguments, stream=trial.output / "stream"), expect=7)
    last = complained[complained.rindex("error E601: ") :]
    assert last.startswith("error E601: 4 steps in a row had a loss or gradient that is not finite\n")
    assert f"next: kiln resume {trial.run}" in last
    assert "torch" not in last  # whose own report comes before
    assert status(trial.run)["code"] == "E601"


@pytest.mark.slow
def test_the_launcher_passes_on_what_was_said_differently(trial):
    trial.go(SIGNAL_AT="5:SIGTERM", expect=75)
    more = ("--processes", 2, "--extend", "1ep", "--set", "checkpoint.every=2steps,1ep", "--set", "checkpoint.keep=50")
    finished(command("kiln", *trial.arguments, *more, stream=trial.output / "stream-2"), expect=0)
    assert status(trial.run)["step"] == 28
    assert checkpoint.committed_steps(trial.run / "checkpoints")[:6] == [5, 6, 7, 8, 10, 12]
    fed = shared(trial, 2)
    assert len(fed) == 23
