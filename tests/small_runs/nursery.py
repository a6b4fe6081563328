"""A process that has imported everything and computed nothing. It forks a fresh process for each command.

Importing torch takes seconds, a fork some milliseconds; so dozens of real processes can be started, killed and resumed
in one test. Talks JSON lines over stdin and stdout: `{"start": {...}}` -> `{"pid": n}`, `{"wait": pid, "seconds": s}`
-> `{"status": n or None}`.
"""

from __future__ import annotations

import gc
import io
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

import torch
from PIL import Image

import kiln.cli
import kiln.cli.train
import kiln.jobs.train
import kiln.jobs.training.save
import kiln.optim.optimizers
import kiln.runtimes.torch
import kiln.tasks.classification
from kiln.models.create import create_model


def serve() -> None:
    torch.set_num_threads(1)
    Image.init()
    "".encode("utf-8-sig")
    create_model("kiln/small_cnn", num_classes=2)  # its dry run brings torch's compiler
    with redirect_stdout(io.StringIO()):
        kiln.cli.main(["recipe", "training.epochs"])  # brings the parser and pydantic
    gc.freeze()
    commands, answers = sys.stdin, sys.stdout
    for line in commands:
        asked = json.loads(line)
        answer = {"pid": start(**asked["start"])} if "start" in asked else wait(asked["wait"], asked["seconds"])
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def start(*, arguments: list[str], output: str, environment: dict[str, str], folder: str, user: int | None) -> int:
    """Fork a process that runs `kiln ARGUMENTS`, its output in a file."""
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        os.setpgid(0, 0)
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(folder)
        if user is not None:
            os.setuid(user)
        os.environ.update(environment)
        disturb(environment)
        code = kiln.cli.main(arguments)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(pid: int, seconds: float) -> dict[str, Any]:
    """The exit status of a process (negative: the signal that killed it), or None when it still runs."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return {"status": os.waitstatus_to_exitcode(status)}
        time.sleep(0.002)
    return {"status": None}


def disturb(environment: dict[str, str]) -> None:
    """What a test wants to happen to the process.

    DIE_BEFORE_OPERATION: `n`, be killed before the n-th file operation.
    SIGNALS_WHILE_SAVING: a signal that comes with each write of the checkpoint of a step that was asked to stop.
    SIGNAL_AT_WORD: `word:signal`, a signal that comes when a line with that word was said.
    LARGEST_FILE: in bytes; a file that would be larger is a full disk.
    ONLY_RANK: of several processes, the one to which it happens.
    """
    if environment.get("RANK") != environment.get("ONLY_RANK", environment.get("RANK")):
        return
    if "DIE_BEFORE_OPERATION" in environment:
        die_before(int(environment["DIE_BEFORE_OPERATION"]))
    if "SIGNALS_WHILE_SAVING" in environment:
        signal_while_saving(getattr(signal, environment["SIGNALS_WHILE_SAVING"]))
    if "SIGNAL_AT_WORD" in environment:
        word, _, name = environment["SIGNAL_AT_WORD"].partition(":")
        sys.stdout = Listening(sys.stdout, word, getattr(signal, name))
    if "LARGEST_FILE" in environment:
        largest = int(environment["LARGEST_FILE"])
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))


class Listening:
    """A stream that sends this process a signal after a word was written to it."""

    def __init__(self, stream: Any, word: str, number: int) -> None:
        self.stream, self.word, self.number = stream, word, number

    def write(self, text: str) -> int:
        written = self.stream.write(text)
        if self.word in text:
            os.kill(os.getpid(), self.number)
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def signal_while_saving(number: int) -> None:
    write, fsync = kiln.jobs.training.save.checkpoint.write_checkpoint, os.fsync

    def interrupted_fsync(handle: int) -> None:
        os.kill(os.getpid(), number)
        fsync(handle)

    def write_checkpoint(root: Any, step: int, *args: Any, **kwargs: Any) -> Any:
        if step % 7:  # not at the end of an epoch: it is the save of the stop that was asked for
            os.fsync = interrupted_fsync
        try:
            return write(root, step, *args, **kwargs)
        finally:
            os.fsync = fsync

    kiln.jobs.training.save.checkpoint.write_checkpoint = write_checkpoint


def die_before(number: int) -> None:
    """Be killed just before the file operation of that number, counted from 1: a crash between any two of them."""
    done = 0

    def counted(operation: Callable[..., Any]) -> Callable[..., Any]:
        def operate(*args: Any, **kwargs: Any) -> Any:
            nonlocal done
            done += 1
            if done == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*args, **kwargs)

        return operate

    for name in ("fsync", "rename", "replace", "mkdir", "rmdir", "unlink"):
        setattr(os, name, counted(getattr(os, name)))


if __name__ == "__main__":
    serve()
