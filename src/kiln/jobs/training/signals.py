"""Signals: the first one asks a training to stop after its step; everything is saved before the process leaves."""

from __future__ import annotations

import shlex
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType

from kiln.engine.state import State
from kiln.errors import Preempted

STOPS = ("SIGTERM", "SIGUSR1", "SIGINT")


class Interrupted(KeyboardInterrupt):
    """A signal came while there was no step to finish. `signal` is its name."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.signal = name


def heeding_signals(state: State) -> AbstractContextManager[None]:
    """Within, SIGTERM, SIGUSR1 and Ctrl-C request a stop; a second Ctrl-C interrupts at once.

    Handlers only set a flag. Does nothing outside the main thread, where Python allows no handlers.
    """

    def stop(name: str) -> None:
        if name == "SIGINT" and state.stop_reason == "SIGINT":
            raise Interrupted(name)
        state.request_stop(name)

    return _handling(stop)


def stopping_at_once() -> AbstractContextManager[None]:
    """Within, the same signals raise `Interrupted`: before the first step and after the last there is nothing to save."""

    def stop(name: str) -> None:
        raise Interrupted(name)

    return _handling(stop)


@contextmanager
def _handling(handle: Callable[[str], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 (the signature of a handler)
        handle(signal.Signals(number).name)

    before = {name: signal.signal(getattr(signal, name), handler) for name in STOPS if hasattr(signal, name)}
    try:
        yield
    finally:
        for name, previous in before.items():
            signal.signal(getattr(signal, name), previous)


def preempted(reason: str, *, step: int, folder: str, fold: int = 0) -> Preempted:
    """The error that leaves with status 75, or 130 after Ctrl-C.

    Args:
        reason: the signal's name.
        step: that was reached.
        folder: of the run.
        fold: the one that was trained, where it is a run of folds.
    """
    what = f"stopped by {reason} at step {step} of fold {fold}" if fold else f"stopped by {reason} at step {step}"
    error = Preempted(
        "E801",
        what,
        kept=f"everything, in {folder}",
        hint=f"kiln resume {shlex.quote(folder)}",
    )
    if reason == "SIGINT":
        error.exit_code = 130
    return error
