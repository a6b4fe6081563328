"""Signals: the first one asks a training to stop after its step; everything is saved before the process leaves."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from kiln.engine.state import State
from kiln.errors import Preempted

STOPS = ("SIGTERM", "SIGUSR1", "SIGINT")


@contextmanager
def heeding_signals(state: State) -> Iterator[None]:
    """Within, SIGTERM, SIGUSR1 and Ctrl-C request a stop; a second Ctrl-C interrupts at once.

    Handlers only set a flag. Does nothing outside the main thread, where Python allows no handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if name == "SIGINT" and state.stop_reason == "SIGINT":
            signal.default_int_handler(number, frame)
        state.request_stop(name)

    before = {name: signal.signal(getattr(signal, name), stop) for name in STOPS if hasattr(signal, name)}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


def preempted(reason: str, *, step: int, folder: str) -> Preempted:
    """The error that leaves with status 75, or 130 after Ctrl-C."""
    error = Preempted(
        "E801", f"stopped by {reason} at step {step}", kept=f"everything, in {folder}", hint=f"kiln resume {folder}"
    )
    if reason == "SIGINT":
        error.exit_code = 130
    return error
