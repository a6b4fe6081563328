"""Real trainings in real processes, small enough for dozens of them in one test."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from kiln.engine import checkpoint
from kiln.engine.codec import encode

HERE = Path(__file__).parent
WATCHED = f"{HERE / 'watched.py'}:watched"
SECONDS = 60.0
"""How long a command may take before a test gives up on it; a hang guard, not a measurement."""


class Child:
    """A command that runs."""

    def __init__(self, nursery: Nursery, pid: int, output: Path) -> None:
        self.nursery, self.pid, self._output = nursery, pid, output

    @property
    def output(self) -> str:
        return self._output.read_text()

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def wait(self, seconds: float = SECONDS) -> int:
        """The exit status; negative: the signal that killed it."""
        status = self.nursery.ask({"wait": self.pid, "seconds": seconds})["status"]
        if status is None:
            self.kill()
            raise TimeoutError(f"no end after {seconds} s:\n{self.output}")
        return status

    def wait_for(self, text: str, seconds: float = SECONDS) -> None:
        """Until the command has said this."""
        deadline = time.monotonic() + seconds
        while text not in self.output:
            if (
                time.monotonic() > deadline
                or self.nursery.ask({"wait": self.pid, "seconds": 0.01})["status"] is not None
            ):
                raise TimeoutError(f"{text!r} was never said:\n{self.output}")


class Nursery:
    """Forks commands from a process that has imported everything; see `nursery.py`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "small_runs.nursery"]
        self._server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=HERE.parent
        )
        self._count = 0

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(question) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def start(self, *arguments: Any, user: int | None = None, **environment: str) -> Child:
        """Start `kiln ARGUMENTS` in a process of its own."""
        self._count += 1
        output = self.folder / f"output-{self._count}.txt"
        output.touch()
        output.chmod(0o666)
        asked = {
            "arguments": [str(argument) for argument in arguments],
            "output": str(output),
            "environment": environment,
            "folder": str(self.folder),
            "user": user,
        }
        return Child(self, self.ask({"start": asked})["pid"], output)

    def run(self, *arguments: Any, expect: int = 0, user: int | None = None, **environment: str) -> str:
        """Run `kiln ARGUMENTS` to its end; what it said."""
        child = self.start(*arguments, user=user, **environment)
        status = child.wait()
        assert status == expect, f"kiln {' '.join(map(str, arguments))} ended with {status}:\n{child.output}"
        return child.output

    def close(self) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(10)
        assert self._server.stdout is not None
        self._server.stdout.close()


class Trial:
    """One run that is started, stopped and gone on with, always by the same command: `kiln train ... --resume auto`.

    54 or so training samples in batches of 8, 7 steps per epoch, 3 epochs: 21 steps, with random crops and flips,
    dropout, BatchNorm, label smoothing, AdamW, cosine after warmup, and an average of the weights that is evaluated.
    """

    steps_per_epoch, total_steps = 7, 21

    def __init__(self, nursery: Nursery, data: Path, output: Path, *settings: Any) -> None:
        self.nursery, self.data, self.output, self.settings = nursery, data, output, settings
        self.run = output / "run"
        self.num_started = 0

    @property
    def arguments(self) -> list[Any]:
        """What every one of its processes is started with."""
        return [
            *("train", self.data, "--model", WATCHED, "--output", self.output, "--name", "run", "--resume", "auto"),
            *("--epochs", 3, "--batch-size", 8, "--img-size", 32, "--lr", 0.01, "--set", "training.ema_decay=0.9"),
            *("--set", "augment.crop=resized", "--set", "run.report=false"),
            *self.settings,
        ]

    def start(self, *more: Any, workers: int = 0, **environment: str) -> Child:
        self.num_started += 1
        stream = self.output / f"stream-{self.num_started}"
        stream.mkdir(parents=True)
        return self.nursery.start(*self.arguments, "--workers", workers, *more, STREAM=str(stream), **environment)

    def go(self, *more: Any, expect: int = 0, workers: int = 0, **environment: str) -> str:
        """Run a process to its end; what it said."""
        child = self.start(*more, workers=workers, **environment)
        status = child.wait()
        assert status == expect, f"ended with {status} instead of {expect}:\n{child.output}"
        return child.output

    def resume(self, *more: Any, place: Path | None = None, expect: int = 0, **environment: str) -> str:
        """`kiln resume` of the run, or of one of its checkpoints, to its end; what it said."""
        arguments = ("resume", place or self.run, "--trust", WATCHED, *more)
        return self.nursery.run(*arguments, expect=expect, **environment)

    def fed(self, number: int, rank: int = 0) -> list[list[str]]:
        """For each training step of the process started as that number, the digests of the rows its model was fed."""
        path = self.output / f"stream-{number}" / f"{rank}.txt"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


class Group:
    """Processes that make up one training, with the environment that torchrun gives them."""

    warm_up = 2
    """Throw-away passes with which DistributedDataParallel begins; the model is fed them too."""

    def __init__(self, trial: Trial, *more: Any, size: int = 2, workers: int = 0, **environment: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        trial.num_started += 1
        stream = trial.output / f"stream-{trial.num_started}"
        stream.mkdir(parents=True)
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(size), "STREAM": str(stream)}
        arguments = [*trial.arguments, "--workers", workers, *more]
        self.children = [
            trial.nursery.start(*arguments, RANK=str(rank), LOCAL_RANK=str(rank), **shared, **environment)
            for rank in range(size)
        ]

    def codes(self) -> tuple[int, ...]:
        """The exit statuses."""
        return tuple(child.wait() for child in self.children)

    def wait(self, *expected: int) -> list[str]:
        """Wait for the end; what each of them said."""
        codes = self.codes()
        said = [child.output for child in self.children]
        assert codes == expected, f"ended with {codes}:\n" + "\n".join(said)
        return said


def outcome(run: Path) -> dict[str, Any]:
    """All that a run came to, times aside: two runs that are the same have equal outcomes, bit for bit."""
    newest = checkpoint.newest_checkpoint(run / "checkpoints")
    assert newest is not None
    parts = {name: part for name, part in newest.tree["parts"].items() if name != "metrics_log"}
    skeleton, tensors = encode({**newest.tree, "parts": parts})
    found: dict[str, Any] = {f"tensor {name}": (t.dtype, t.shape, t.numpy().tobytes()) for name, t in tensors.items()}
    found["checkpoint"] = (newest.step, skeleton)
    found["metrics.jsonl"] = metrics(run)
    for name in ("model.safetensors", "best.json", "summary.csv", "predictions.csv", "result.json", "split.csv"):
        found[name] = (run / name).read_bytes()
    found["bad_files.csv"] = (run / "bad_files.csv").read_bytes()
    status = json.loads((run / "status.json").read_text())
    found["status"] = (status["state"], status["step"], status["reason"])
    return found


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The names of what is not the same in two outcomes."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl` without their times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def status(run: Path) -> dict[str, Any]:
    return json.loads((run / "status.json").read_text())


def check_what_is_kept(trial: Trial) -> int:
    """Every committed checkpoint can be read, and none is older than what was acknowledged. Returns the newest step."""
    root = trial.run / "checkpoints"
    steps = checkpoint.committed_steps(root)
    for step in steps:
        checkpoint.read_checkpoint(checkpoint.folder_of(root, step))
    acknowledged = status(trial.run)["step"] if (trial.run / "status.json").exists() else 0
    assert (steps or [0])[-1] >= acknowledged
    return (steps or [0])[-1]


def check_the_stream(trial: Trial, undisturbed: Trial) -> None:
    """Each process was fed exactly what the undisturbed run was fed from the step on where it began."""
    whole, reached = undisturbed.fed(1), 0
    for number in range(1, trial.num_started + 1):
        fed = trial.fed(number)
        if not fed:
            continue
        begins = whole.index(fed[0])
        assert begins <= reached
        assert fed == whole[begins : begins + len(fed)]
        reached = max(reached, begins + len(fed))
    assert reached == len(whole)
