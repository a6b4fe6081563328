"""Where the time of a training goes, told from its events alone."""

from __future__ import annotations

import time
from typing import Any

import torch

from kiln.events import Evaluated, Event, Saved, StepDone
from kiln.observe.memory import peak_memory_mib


class Stopwatch:
    """Adds up the time between events by what the later one says was done. Of this session: a resume starts anew."""

    def __init__(self) -> None:
        self._began = self._last = time.monotonic()
        self._seconds = {"training": 0.0, "evaluating": 0.0, "saving": 0.0}
        self._first_step_ended: float | None = None
        self._samples = 0

    def __call__(self, event: Event) -> None:
        """Take note of an event when it comes."""
        now = time.monotonic()
        match event:
            case StepDone():
                self._seconds["training"] += now - self._last
                if self._first_step_ended is None:  # the first step waits for threads, kernels and files
                    self._first_step_ended, self._first_seconds = now, self._seconds["training"]
                else:
                    self._samples += event.num_samples
            case Evaluated():
                self._seconds["evaluating"] += now - self._last
            case Saved():
                self._seconds["saving"] += now - self._last
            case _:
                pass
        self._last = now

    def facts(self, device: torch.device) -> dict[str, Any]:
        """Seconds by part, training's images per second after the first step, and the peak of memory."""
        first = self._first_seconds if self._first_step_ended is not None else 0.0
        rest = self._seconds["training"] - first
        return {
            "seconds_total": round(time.monotonic() - self._began, 3),
            "seconds_first_step": round(first, 3),
            **{f"seconds_{part}": round(seconds, 3) for part, seconds in self._seconds.items()},
            "train_images_per_second": round(self._samples / rest, 1) if rest > 0 else None,
            "peak_memory_mib": peak_memory_mib(device),
        }
