"""Telling how a training goes: a live bar on a terminal, plain lines elsewhere, nothing when asked to be quiet."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from kiln.events import EpochDone, Evaluated, Event, Skipped, StageBegan, StepDone, Stopped
from kiln.language import tr, word
from kiln.language.patterns import translated
from kiln.observe.records import plain
from kiln.observe.wording import describe_metric, headline
from kiln.redact import redact
from kiln.run import LOG, writing

REFRESH_SECONDS = 0.2


def make(*, quiet: bool = False, json: bool = False) -> Progress:
    """The progress for a call: quiet, or on stderr when stdout is kept for one JSON object."""
    return Progress(sys.stderr if json else sys.stdout, quiet=quiet)


class Progress:
    """Consumes events and says in words what happens.

    Everything but the live line also goes to `log.txt`, without the secrets that it may hold.

    Args:
        stream: where to write.
        quiet: write only to `log.txt`.
    """

    def __init__(self, stream: TextIO, *, quiet: bool = False) -> None:
        self.stream, self.quiet = stream, quiet
        self._live = stream.isatty() and not quiet
        self._log: TextIO | None = None
        self._held: list[str] = []
        self._shown_at, self._line_is_live = 0.0, False
        self._began, self._first_step, self._samples = time.monotonic(), 0, 0
        self._total_steps, self._steps_per_epoch = 1, 1
        self._names: Sequence[str] = ()
        self._epoch: EpochDone | None = None  # not told yet: an evaluation at the same step says it on its own line

    def open_log(self, folder: Path) -> None:
        """Keep what is said in the run's `log.txt` from now on, and what was said before."""
        with writing(folder / LOG):
            self._log = (folder / LOG).open("a", encoding="utf-8", errors="backslashreplace")
        held, self._held = self._held, []
        for line in held:
            self.note_down(line)

    def note_down(self, line: str) -> None:
        """One line for `log.txt` alone."""
        if self._log is None:
            self._held.append(line)
        else:
            with writing(Path(self._log.name)):
                self._log.write(redact(line) + "\n")
                self._log.flush()

    def say(self, line: str) -> None:
        """One line for people."""
        self.note_down(line)
        if not self.quiet:
            self._clear()
            coding = self.stream.encoding or "utf-8"  # of the terminal, which may not know every letter of a name
            self.stream.write(line.encode(coding, "backslashreplace").decode(coding) + "\n")
            self.stream.flush()

    def start(self, *, total_steps: int, steps_per_epoch: int, first_step: int, names: Sequence[str] = ()) -> None:
        """The loop begins. `names` are those of the samples, by index."""
        self._total_steps, self._steps_per_epoch, self._first_step = total_steps, steps_per_epoch, first_step
        self._names, self._began, self._samples = names, time.monotonic(), 0

    def __call__(self, event: Event) -> None:
        """Tell an event."""
        if self._epoch is not None and not isinstance(event, Evaluated):
            self.say(self._line(self._epoch))
            self._epoch = None
        match event:
            case StepDone():
                self._samples += event.num_samples
                if self._live and time.monotonic() - self._shown_at > REFRESH_SECONDS:
                    self._show(event)
            case EpochDone():
                self._epoch = event
            case Evaluated():
                self.say(self._line(event))
                self._epoch = None
            case Skipped():
                shown = ", ".join(self._names[i] if i < len(self._names) else str(i) for i in event.indices[:10])
                line = tr("step {step} skipped: {reason}", step=event.step, reason=translated(event.reason))
                self.say(line + (tr(" (samples {shown})", shown=shown) if shown else ""))
            case StageBegan():
                told = "step {step}: {part} is trained now, {trained:,} of {total:,} parameters; the frozen rest had not moved"
                trained, total = event.num_trainable, event.num_parameters
                self.say(tr(told, step=event.step, part=translated(event.trains), trained=trained, total=total))
            case Stopped() if event.reason == "early_stop":
                told = "stopped early at step {step}: no better validation for as long as patience allows"
                self.say(tr(told, step=event.step))
            case _:
                pass

    def stop(self) -> None:
        """Leave the terminal in order, and close the log."""
        self._clear()
        if self._log is not None:
            self._log.close()
            self._log = None

    def _show(self, event: StepDone) -> None:
        """The live line. Reading the loss waits for the device, so it is read only here, a few times a second."""
        rate, eta = self._rate(), self._eta(event.step)
        done = event.step / self._total_steps
        full, empty = "█░" if "utf" in (self.stream.encoding or "utf-8").lower() else "#."
        bar = full * int(24 * done) + empty * (24 - int(24 * done))
        line = tr(
            "{bar} {done:4.0%}  epoch {epoch:.2f}/{epochs:g}  loss {loss:.4f}  lr {lr:.2e}  {rate:,.0f} img/s  {eta} left",
            bar=bar,
            done=done,
            epoch=event.step / self._steps_per_epoch,
            epochs=self._total_steps / self._steps_per_epoch,
            loss=float(event.loss),
            lr=event.lr,
            rate=rate,
            eta=eta,
        )
        self.stream.write("\r\x1b[K" + line[: _columns(self.stream) - 1])
        self.stream.flush()
        self._shown_at, self._line_is_live = time.monotonic(), True

    def _clear(self) -> None:
        if self._line_is_live:
            self.stream.write("\r\x1b[K")
            self._line_is_live = False

    def _line(self, event: EpochDone | Evaluated) -> str:
        """The end of an epoch, an evaluation, or both in one."""
        epoch, epochs = event.step / self._steps_per_epoch, self._total_steps / self._steps_per_epoch
        parts = [tr("epoch {epoch:4.4g}/{epochs:g}", epoch=epoch, epochs=epochs)]
        if self._epoch is not None:
            parts.append(tr("train loss {loss:.4f}", loss=self._epoch.train_loss))
        if isinstance(event, Evaluated):
            shown = {name: plain(event.metrics[name]) for name in headline(event.metrics)}
            said = [
                describe_metric(name, metric["value"] if name == "loss" else metric) for name, metric in shown.items()
            ]
            parts.append(f"{word(event.split)} {tr(', ').join(said)}")
        parts += [tr("{rate:,.0f} img/s", rate=self._rate()), tr("{eta} left", eta=self._eta(event.step))]
        if isinstance(event, Evaluated) and event.is_best:
            parts.append(tr("best"))
        return "  ".join(parts)

    def _rate(self) -> float:
        return self._samples / max(time.monotonic() - self._began, 1e-9)

    def _eta(self, step: int) -> str:
        taken = step - self._first_step
        if not taken:
            return "?"
        return duration((time.monotonic() - self._began) / taken * (self._total_steps - step))


def _columns(stream: TextIO) -> int:
    try:
        return max(os.get_terminal_size(stream.fileno()).columns or 120, 40)
    except OSError:
        return 120


def duration(seconds: float) -> str:
    """`45s`, `3m20s`, `2h05m`."""
    seconds = int(seconds + 0.5)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
