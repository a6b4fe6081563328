"""What a run writes down as it goes: `metrics.jsonl`, `summary.csv`, `log.txt`."""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kiln.events import EpochDone, Evaluated, Event, Skipped, StageBegan, StepDone
from kiln.run import METRICS, SUMMARY, write_atomically, writing


class MetricsLog:
    """Writes `metrics.jsonl`. A part of the checkpoint: a resume cuts off what was written after it.

    Lines are the same in every undisturbed or resumed run, but for `seconds`.

    Args:
        folder: of the run.
        every_steps: how often the loss of a single step is recorded; reading it waits for the device.
    """

    def __init__(self, folder: Path, *, every_steps: int) -> None:
        self._path, self._every_steps = folder / METRICS, every_steps
        with writing(self._path):
            self._file = self._path.open("ab")
        self._started = time.monotonic()

    def __call__(self, event: Event) -> None:
        """Record an event."""
        match event:
            case StepDone() if event.step % self._every_steps == 0:
                self._write("step", step=event.step, epoch=event.epoch, loss=float(event.loss), lr=event.lr)
            case EpochDone():
                self._write("epoch", step=event.step, epoch=event.epoch, train_loss=event.train_loss)
            case Evaluated():
                values = {name: plain(metric) for name, metric in event.metrics.items()}
                self._write(event.split, step=event.step, epoch=event.epoch, best=event.is_best, metrics=values)
            case Skipped():
                self._write("skipped", step=event.step, reason=event.reason, indices=list(event.indices))
            case StageBegan():
                self._write("stage", step=event.step, trains=event.trains, trainable=event.num_trainable)
            case _:
                pass

    def _write(self, event: str, **facts: Any) -> None:
        line = {"event": event, **facts, "seconds": round(time.monotonic() - self._started, 3)}
        with writing(self._path):
            self._file.write(json.dumps(line).encode() + b"\n")

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: how much of the file belongs to it, safe on disk."""
        with writing(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
        return {"bytes": self._file.tell()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Cut the file to what the checkpoint knew. Where it is shorter than that, what is missing is not made up."""
        size = self._file.seek(0, os.SEEK_END)
        self._file.truncate(min(size, state["bytes"]))
        self._file.seek(0, os.SEEK_END)

    def close(self) -> None:
        """Write what is left."""
        with writing(self._path):
            self._file.close()


def plain(metric: Any) -> dict[str, Any]:
    """A metric for JSON, which knows no NaN: the value is None where it does not exist."""
    value = None if metric.value != metric.value else metric.value
    return {"value": value, "low": metric.low, "high": metric.high, "n": metric.n}


def write_summary(folder: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write `summary.csv`: one row per evaluation, made from the lines of `metrics.jsonl`."""
    train_loss: dict[int, float] = {line["step"]: line["train_loss"] for line in lines if line["event"] == "epoch"}
    rows = [
        {
            "step": line["step"],
            "epoch": line["epoch"],
            "train_loss": train_loss.get(line["step"], ""),
            **{f"val_{name}": metric["value"] for name, metric in line["metrics"].items()},
            "best": int(line["best"]),
        }
        for line in lines
        if line["event"] == "val"
    ]
    if rows:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(folder / SUMMARY, text.getvalue().encode())
