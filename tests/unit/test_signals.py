"""Signals: a wish that the loop heeds after its step; the handlers that were there come back."""

from __future__ import annotations

import os
import signal
import threading

import pytest
from small_training import Batches, make_state, make_step, pictures

from kiln.engine.checkpoint import read_checkpoint, write_checkpoint
from kiln.engine.fit import fit
from kiln.events import Stopped
from kiln.jobs.training.signals import STOPS, heeding_signals, preempted

SIGNALS = [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT]


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_asks_for_a_stop_and_the_old_handlers_come_back(tiny_model, number):
    state = make_state(tiny_model())
    before = [signal.getsignal(which) for which in SIGNALS]
    with heeding_signals(state):
        assert state.stop_reason is None
        send(number)
        assert state.stop_reason == number.name
    assert [signal.getsignal(which) for which in SIGNALS] == before
    assert number.name in STOPS


def test_a_second_ctrl_c_interrupts_at_once(tiny_model):
    state = make_state(tiny_model())
    before = signal.getsignal(signal.SIGINT)
    with heeding_signals(state):
        send(signal.SIGINT)
        assert state.stop_reason == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


def test_a_second_sigterm_changes_nothing(tiny_model):
    state = make_state(tiny_model())
    with heeding_signals(state):
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        send(signal.SIGUSR1)
    assert state.stop_reason == "SIGTERM"


def test_a_signal_in_mid_step_or_mid_save_is_heeded_after_it(tiny_model, tmp_path):
    state, step = make_state(tiny_model()), make_step()
    inner = step.forward_loss

    def forward_loss(state, batch):
        if state.step == 2:
            send(signal.SIGTERM)
        return inner(state, batch)

    def save(state):
        send(signal.SIGTERM)
        return write_checkpoint(tmp_path, state.step, state.state())

    step.forward_loss = forward_loss
    with heeding_signals(state):
        events = list(fit(state, step, Batches(*pictures(), 5), total_steps=50, save=save))
    assert events[-1] == Stopped(3, 0, "SIGTERM")
    assert read_checkpoint(tmp_path / "step-00000003").tree["progress"]["step"] == 3


def test_outside_the_main_thread_nothing_is_touched(tiny_model):
    before, seen = [signal.getsignal(which) for which in SIGNALS], []

    def run():
        with heeding_signals(make_state(tiny_model())):
            seen.append([signal.getsignal(which) for which in SIGNALS])

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.parametrize(("reason", "status"), [("SIGTERM", 75), ("SIGUSR1", 75), ("SIGINT", 130)])
def test_leaving_says_what_is_kept_and_how_to_go_on(reason, status):
    error = preempted(reason, step=12, folder="runs/photos")
    assert (error.code, error.exit_code, error.retryable) == ("E801", status, True)
    for line in (
        f"stopped by {reason} at step 12",
        "kept: everything, in runs/photos",
        "next: kiln resume runs/photos",
    ):
        assert line in str(error)
