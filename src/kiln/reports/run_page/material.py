"""Everything a report is made from, read from the run's folder and given as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kiln.observe.outputs import KeptOutputs
from kiln.reports.run_page.pictures import Photographs

Explain = Callable[[Sequence[str], Sequence[int]], Mapping[str, tuple[NDArray[np.uint8], NDArray[np.float32]]]]
"""Keys and an output for each -> for each key its (C, H, W) image as the model takes it, and where the model looked."""


@dataclass(frozen=True, eq=False)
class Material:
    """What is known of a run.

    Attributes:
        name: of the run.
        folder: where it lies.
        result: `result.json`.
        resolved: `resolved.yaml`.
        environment: `environment.json`; empty where there is none.
        lines: of `metrics.jsonl`.
        bad_files: rows of `bad_files.csv`.
        outputs: what the model said; None where it was not kept.
        photographs: where pictures come from.
        no_pictures: why there are none, as a sentence; empty where there are.
        properties: for each sample of the split, by name (`size`, `aspect`, `brightness`, `contrast`), NaN where unknown.
        explain: tells where the model looked; None where it cannot.
        no_saliency: why, as a sentence.
        speed: `speed.json`; empty where there is none.
    """

    name: str
    folder: str
    result: Mapping[str, Any]
    resolved: Mapping[str, Any]
    environment: Mapping[str, Any]
    lines: Sequence[Mapping[str, Any]]
    bad_files: Sequence[Mapping[str, str]]
    outputs: KeptOutputs | None
    photographs: Photographs
    no_pictures: str = ""
    properties: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    explain: Explain | None = None
    no_saliency: str = ""
    speed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def values(self) -> Mapping[str, Any]:
        """The settings as they were decided, by field."""
        return self.resolved.get("values", {})

    @property
    def facts(self) -> Mapping[str, Any]:
        """What was found of the data, and counted."""
        return self.resolved.get("facts", {})

    def split(self, asked: str | None = None) -> str:
        """The split that the report is about: the one asked for, else test, else validation; empty without any."""
        there = list(self.result.get("metrics", {}))
        return asked if asked in there and asked is not None else (there[-1] if there else "")
