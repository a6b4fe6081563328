"""Several processes: starting them on this machine by torchrun, and telling which one we are."""

from __future__ import annotations

import io
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import psutil

from kiln.errors import DistributedError, UsageError, family_of
from kiln.jobs.training.signals import STOPS, preempted
from kiln.language import VARIABLE, current
from kiln.observe.progress import Progress
from kiln.recipe import Recipe
from kiln.recipe.duration import Duration
from kiln.run import CHECKPOINTS, DONE, FAILED, INTERRUPTED, PREEMPTED, RUNNING, Run, locked, set_status

LAUNCHED = "KILN_LAUNCHED"
"""Set in the processes that `launch` started."""


def rank() -> int:
    """The number of this process among those that torchrun started; 0 alone."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_launched() -> bool:
    """Whether `launch` started this process, and will tell the outcome."""
    return LAUNCHED in os.environ


def launch(
    place: Path,
    recipe: Recipe,
    *,
    progress: Progress,
    changes: Mapping[str, Any] | None = None,
    extend: str | None = None,
) -> Run:
    """Train in `run.processes` processes, each as `kiln resume` does, and wait for them.

    Args:
        place: the run's folder, or the checkpoint in it to go on from.
        recipe: what the run does.
        progress: is quiet or not, and has the stream to which the processes say what they say.
        changes: fields in which `recipe` differs from the one in the folder.
        extend: train this much longer.
    Raises: KilnError: what stopped them, with the code and the exit status that one process alone would have left.
    """
    if recipe.data.path is None:
        raise UsageError("E103", "several processes need data that has a path", hint="run.processes = 1, or a folder")
    folder = place.parent.parent if place.parent.name == CHECKPOINTS else place
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={recipe.run.processes}", "-m", "kiln", "resume", str(place)]
    command += [f"--set={name}={json.dumps(_plain(value))}" for name, value in (changes or {}).items()]
    command += ([f"--extend={extend}"] if extend else []) + (["--quiet"] if progress.quiet else [])
    environment = {**os.environ, LAUNCHED: "1", VARIABLE: current(), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // recipe.run.processes)))
    with locked(folder):  # only to see that it is free: the first of the processes holds the lock while it trains
        set_status(folder, RUNNING)
    # A session of its own, so that Ctrl-C in a terminal reaches the processes once, through us, and not torchrun.
    agent = subprocess.Popen(command, env=environment, stdout=_file_of(progress.stream), start_new_session=True)
    with _passing_signals_on(agent) as received:
        status = agent.wait()
    return _verdict(Run(folder), status, received)


def _verdict(run: Run, status: int, received: list[str]) -> Run:
    said, folder = run.status, str(run.path)
    if status == 0 and said["state"] == DONE:
        return run
    if said["state"] == RUNNING and received:  # before they could heed it; nothing was lost
        set_status(run.path, INTERRUPTED if received[0] == "SIGINT" else PREEMPTED, reason=received[0])
        said = run.status
    if said["state"] in (PREEMPTED, INTERRUPTED):
        reason = "SIGINT" if said["state"] == INTERRUPTED else said["reason"]
        raise preempted(reason, step=said["step"], folder=folder)
    if said["state"] == FAILED and said["code"]:
        raise family_of(said["code"])(
            said["code"], said["reason"], where=folder, hint=f"kiln resume {shlex.quote(folder)}"
        )
    raise DistributedError(
        "E501",
        f"the processes ended with status {status} and without a word",
        where=folder,
        kept="the last checkpoint, if there is one",
        hint=f"what they said is above; then kiln resume {shlex.quote(folder)}",
    )


@contextmanager
def _passing_signals_on(agent: subprocess.Popen[bytes]) -> Iterator[list[str]]:
    """Within, the signals that stop a training go to the processes that train. Gives the names of those that came."""
    received: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def pass_on(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 (the signature of a handler)
        received.append(signal.Signals(number).name)
        try:
            workers = psutil.Process(agent.pid).children()
        except psutil.Error:
            return  # all is over
        for worker in workers:
            worker.send_signal(number)
        if not workers:
            agent.terminate()  # they do not run yet

    before = {name: signal.signal(getattr(signal, name), pass_on) for name in STOPS if hasattr(signal, name)}
    try:
        yield received
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


def _plain(value: Any) -> Any:
    if isinstance(value, Duration):
        return str(value)
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _file_of(stream: TextIO) -> TextIO | None:
    """The stream, if a process can write to it."""
    try:
        stream.fileno()
    except (io.UnsupportedOperation, AttributeError):
        return None
    stream.flush()
    return stream
