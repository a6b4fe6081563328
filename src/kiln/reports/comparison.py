"""What a comparison found: plain facts, for the command, the page and other programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from kiln.measure.paired import SIGNIFICANCE, ShareDifference
from kiln.measure.paired_metrics import ClassChange, MetricDifference
from kiln.measure.seeds import MeanDifference
from kiln.measure.side_by_side import SpeedRatio

BETTER, WORSE, NONE = "better", "worse", "none"
"""How the second stands to the first; `none` where no difference was shown."""
ACCURACY = "accuracy"


@dataclass(frozen=True)
class ModelFacts:
    """One of the models compared.

    Attributes:
        name: its own among them.
        path: of its run or file.
        metrics: on the common samples.
        left_out: its samples that not all models have.
        bytes_on_disk: of its file.
        num_parameters: None where that cannot be told.
        images_per_second: of the network alone; None where it was not measured.
        runtime: what computed it then, and where.
    """

    name: str
    path: str
    metrics: Mapping[str, float]
    left_out: int = 0
    bytes_on_disk: int | None = None
    num_parameters: int | None = None
    images_per_second: float | None = None
    runtime: str = ""


@dataclass(frozen=True)
class Flip:
    """A sample that one of two models got right, and the other did not.

    Attributes:
        key: of the sample.
        label: the truth.
        first: what the first model said.
        second: what the second said.
        gained: the second is right.
    """

    key: str
    label: str
    first: str
    second: str
    gained: bool


@dataclass(frozen=True)
class Pair:
    """The second model against the first, on the same samples.

    Attributes:
        first: its name.
        second: its name.
        accuracy: the difference in samples that are wholly right.
        p: of that, after Holm's correction where there are several pairs.
        metrics: the other metrics.
        classes: recall of each class.
        agreement: share of samples of which both say the same.
        flips: samples that one of them alone got right: first what was gained, then what was lost.
        speed: time by the first's time; None where it was not measured.
    """

    first: str
    second: str
    accuracy: ShareDifference
    p: float
    metrics: Mapping[str, MetricDifference]
    classes: tuple[ClassChange, ...]
    agreement: float
    flips: tuple[Flip, ...]
    speed: SpeedRatio | None = None

    @property
    def verdict(self) -> str:
        """`better`, `worse` or `none`."""
        return _verdict(self.accuracy.value, self.p)


@dataclass(frozen=True)
class Comparison:
    """Models against the first of them.

    Attributes:
        split: of the samples.
        n: samples in common.
        classes: names.
        models: in the order given.
        pairs: the first and each other.
        notes: what to know of the numbers.
    """

    split: str
    n: int
    classes: tuple[str, ...]
    models: tuple[ModelFacts, ...]
    pairs: tuple[Pair, ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; classes by name."""
        pairs = []
        for pair in self.pairs:
            rows = [
                {"class": self.classes[row.index], "value": row.value, **_without(asdict(row), "index")}
                for row in pair.classes
            ]
            metrics = {name: {"value": row.value, **asdict(row)} for name, row in pair.metrics.items()}
            pairs.append({**asdict(pair), "verdict": pair.verdict, "metrics": metrics, "classes": rows})
        return {"kind": "models", **asdict(self), "pairs": pairs}


@dataclass(frozen=True)
class RecipeFacts:
    """One of the recipes compared: several trainings that differ in their seed only.

    Attributes:
        name: of the group.
        runs: paths.
        seeds: of each run.
        metrics: a value for each run, by name.
    """

    name: str
    runs: tuple[str, ...]
    seeds: tuple[int, ...]
    metrics: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class RecipePair:
    """The second recipe against the first: means over trainings.

    Attributes:
        first: its name.
        second: its name.
        metrics: difference of means by Welch's interval, by name.
        by_seed: difference of runs of the same seed, by name; empty where fewer than three seeds are shared.
        p: of the accuracy by Welch, after Holm's correction where there are several pairs.
        differs: the settings in which they differ: name -> (first, second).
    """

    first: str
    second: str
    metrics: Mapping[str, MeanDifference]
    by_seed: Mapping[str, MeanDifference]
    p: float
    differs: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """`better`, `worse` or `none`."""
        return _verdict(self.metrics[ACCURACY].value, self.p)


@dataclass(frozen=True)
class RecipeComparison:
    """Recipes against the first of them.

    Attributes:
        split: of the samples.
        recipes: in the order given.
        pairs: the first and each other.
        notes: what to know of the numbers.
    """

    split: str
    recipes: tuple[RecipeFacts, ...]
    pairs: tuple[RecipePair, ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        pairs = [{**asdict(pair), "verdict": pair.verdict} for pair in self.pairs]
        return {"kind": "recipes", **asdict(self), "pairs": pairs}


def _verdict(value: float, p: float) -> str:
    if p >= SIGNIFICANCE or value == 0:
        return NONE
    return BETTER if value > 0 else WORSE


def _without(values: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != name}
