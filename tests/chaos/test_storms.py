"""Kill storms: `make chaos`. What they find goes into docs/reliability.md."""

import random
import time
from collections import Counter

import pytest

from small_runs import Group, Trial, check_the_stream, check_what_is_kept, differing, outcome, status

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]

SEED = 0
"""Of all storms. Another seed is another storm."""


def one_way_to_die(draw, trial):
    """Start a process that does not live long, and wait for its end. Says how it died."""
    how = draw.choice(["at a step", "at a step", "at a file operation", "at any time"])
    every = draw.choice(["1steps", "2steps", "5steps", "1ep"])
    more = ("--set", f"checkpoint.every={every}", "--set", f"data.prefetch={draw.randint(1, 6)}")
    environment = {}
    if how == "at a step":
        environment["SIGNAL_AT"] = f"{draw.randint(1, 16)}:SIGKILL"
    elif how == "at a file operation":
        environment["DIE_BEFORE_OPERATION"] = str(draw.randint(1, 120))
    child = trial.start(*more, workers=draw.choice([0, 1, 2]), **environment)
    if how == "at any time":
        time.sleep(draw.uniform(0.1, 0.8))
        child.kill()
    assert child.wait() in (-9, 0), child.output
    return how


def test_fifty_kills(nursery, image_folder, tmp_path):
    """At random steps, file operations and times, the number of workers changing each time; then bit for bit."""
    draw = random.Random(SEED)
    whole, killed = (Trial(nursery, image_folder, tmp_path / name, "--epochs", 60) for name in ("whole", "killed"))
    whole.go()
    ways, saving = Counter(), 0
    while ways.total() < 50:
        ways[one_way_to_die(draw, killed)] += 1
        saving += any((killed.run / "checkpoints").glob(".tmp-*"))
        assert status(killed.run)["state"] == "running", "too few epochs for so many kills"
        check_what_is_kept(killed)
    killed.go()
    check_the_stream(killed, whole)
    assert differing(outcome(killed.run), outcome(whole.run)) == []
    again = sum(len(killed.fed(number)) for number in range(1, killed.num_started + 1)) - 420
    print(f"\n{ways.total()} kills ({', '.join(f'{n} {how}' for how, n in ways.items())}), {saving} of them in a save;")
    print(f"{again} steps taken again; all of {len(outcome(whole.run))} things compared are equal")


def test_two_hundred_kills_while_saving(nursery, image_folder, tmp_path):
    """A process that saves after each step, and is killed at a random time."""
    draw = random.Random(SEED)
    trial = Trial(nursery, image_folder, tmp_path / "run", "--epochs", 20_000, "--set", "checkpoint.every=1steps")
    saving = acknowledged = 0
    for _ in range(200):
        child = trial.start(workers=draw.choice([0, 2]))
        time.sleep(draw.uniform(0.3, 0.9))
        child.kill()
        assert child.wait() == -9, child.output
        saving += any((trial.run / "checkpoints").glob(".tmp-*"))
        newest = check_what_is_kept(trial)
        assert newest >= acknowledged
        acknowledged = newest
    assert saving > 20
    print(f"\n200 kills, {saving} of them with a checkpoint half written, over {acknowledged} saves:")
    print("0 unloadable, 0 older than the last acknowledged")


def test_a_kill_before_each_file_operation_of_a_run(nursery, image_folder, tmp_path):
    whole = Trial(nursery, image_folder, tmp_path / "whole")
    whole.go()
    operation = 0
    while True:
        operation += 1
        trial = Trial(nursery, image_folder, tmp_path / str(operation))
        if trial.start("--set", "checkpoint.every=3steps", DIE_BEFORE_OPERATION=str(operation)).wait() == 0:
            break
        check_what_is_kept(trial)
        trial.go(workers=operation % 3)
        assert differing(outcome(trial.run), outcome(whole.run)) == [], operation
    assert operation > 100
    print(f"\nkilled before each of {operation - 1} file operations: every run ends equal")


def test_damaged_checkpoints_are_passed_over_by_the_command(nursery, image_folder, tmp_path):
    """Random flips and cuts of the newest checkpoint of a stopped run, then to the end."""
    draw = random.Random(SEED)
    whole = Trial(nursery, image_folder, tmp_path / "whole")
    whole.go()
    for number in range(50):
        trial = Trial(nursery, image_folder, tmp_path / str(number), "--set", "checkpoint.every=2steps")
        stop = draw.randint(5, 20)
        trial.go(SIGNAL_AT=f"{stop}:SIGTERM", expect=75)
        file = draw.choice(sorted((trial.run / "checkpoints" / f"step-{stop:08d}").iterdir()))
        data = bytearray(file.read_bytes())
        if draw.random() < 0.5:
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        else:
            del data[draw.randrange(len(data)) :]
        file.write_bytes(data)
        assert f"damaged checkpoint set aside: step-{stop:08d}: {file.name} " in trial.go()
        assert differing(outcome(trial.run), outcome(whole.run)) == [], (number, file.name)
    print("\n50 damaged newest checkpoints: 50 found, named and passed over; every run ends equal")


@pytest.mark.ddp
def test_twenty_kills_of_one_of_two_processes(nursery, image_folder, tmp_path):
    draw = random.Random(SEED)
    settings = ("--epochs", 20, "--set", "checkpoint.every=2steps")
    whole, killed = (Trial(nursery, image_folder, tmp_path / name, *settings) for name in ("whole", "killed"))
    Group(whole).wait(0, 0)
    for _ in range(20):
        died = draw.randint(0, 1)
        step = Group.warm_up + draw.randint(1, 10)
        group = Group(killed, SIGNAL_AT=f"{step}:SIGKILL", SIGNAL_RANK=str(died), workers=draw.choice([0, 2]))
        codes = group.codes()
        assert codes[died] == -9
        assert codes[1 - died] == 6, group.children[1 - died].output
        check_what_is_kept(killed)
    Group(killed).wait(0, 0)
    assert differing(outcome(killed.run), outcome(whole.run)) == []
    print("\n20 kills of one of two processes: the other left with 6 each time, and the run ends equal")
