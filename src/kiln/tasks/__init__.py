"""Tasks: what a target is. Each answers the same few questions, and nobody else asks which task it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kiln.errors import ArtifactError
from kiln.metrics import Metric
from kiln.metrics.calibration import Calibration, Method
from kiln.names import TASKS, load_object, resolve
from kiln.tasks.prediction import Prediction
from kiln.tasks.scoring import Names

__all__ = ["Prediction", "Task", "choose", "detect", "from_dict", "get"]


class Task(Protocol):
    """What a task answers; `kiln.tasks.classification.Classification` documents each."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def monitor(self) -> str: ...  # noqa: D102
    @property
    def loss(self) -> str: ...  # noqa: D102
    @property
    def activation(self) -> str: ...  # noqa: D102
    def class_names(self, labels: Sequence[str], given: tuple[str, ...] | None = None) -> tuple[str, ...]: ...  # noqa: D102
    def occurring(self, labels: Sequence[str], given: tuple[str, ...] | None = None) -> frozenset[str]: ...  # noqa: D102
    def encode(  # noqa: D102
        self, labels: Sequence[str], classes: tuple[str, ...], *, given: tuple[str, ...] | None = None
    ) -> NDArray[Any]: ...
    def strata(self, labels: Sequence[str]) -> tuple[str, ...]: ...  # noqa: D102
    def num_outputs(self, classes: Sequence[str]) -> int: ...  # noqa: D102
    def soften(self, targets: Any, num_outputs: int) -> Any: ...  # noqa: D102
    def target_kind(self, *, mixed: bool) -> str: ...  # noqa: D102
    def class_counts(self, targets: NDArray[Any], num_outputs: int) -> NDArray[np.int64]: ...  # noqa: D102
    def prior_logits(self, counts: NDArray[np.int64], num_samples: int) -> NDArray[np.float64]: ...  # noqa: D102
    def probabilities(self, logits: NDArray) -> NDArray[np.float64]: ...  # noqa: D102
    def calibrate(self, logits: NDArray, targets: NDArray, *, method: Method = "temperature") -> Calibration: ...  # noqa: D102
    def pooled(self, logits: NDArray, weights: NDArray) -> NDArray[np.float64]: ...  # noqa: D102
    def log_likelihoods(self, logits: NDArray, targets: NDArray) -> NDArray[np.float64]: ...  # noqa: D102
    def confidence(self, probabilities: NDArray) -> NDArray[np.float64]: ...  # noqa: D102
    def correct(self, probabilities: NDArray, targets: NDArray) -> NDArray[np.bool_]: ...  # noqa: D102
    def given_labels(self, probabilities: NDArray) -> NDArray[np.bool_]: ...  # noqa: D102
    def true_labels(self, targets: NDArray, num_outputs: int) -> NDArray[np.bool_]: ...  # noqa: D102
    def sample_scores(self, logits: NDArray, targets: NDArray) -> dict[str, NDArray[np.float64]]: ...  # noqa: D102
    def metric_names(self, num_classes: int) -> tuple[str, ...]: ...  # noqa: D102
    def metrics(  # noqa: D102
        self,
        logits: NDArray,
        targets: NDArray,
        classes: tuple[str, ...],
        *,
        weights: NDArray | None = None,
        seed: int = 0,
        intervals: bool = True,
        names: Names = None,
        groups: NDArray | None = None,
    ) -> dict[str, Metric]: ...
    def details(  # noqa: D102
        self, logits: NDArray, targets: NDArray, classes: tuple[str, ...], *, weights: NDArray | None = None
    ) -> dict[str, Any]: ...
    def decode(self, probabilities: NDArray, classes: tuple[str, ...], *, top_k: int = 1) -> Prediction: ...  # noqa: D102
    def to_dict(self) -> dict[str, Any]: ...  # noqa: D102


def get(name: str, **options: Any) -> Task:
    """The task of that name, or the user's own as `module:name`.

    Args:
        name: `classification` or `multilabel`.
        **options: of the task, such as `separator` of multilabel.
    Raises: UsageError: no such task.
    """
    return resolve(TASKS, name, kind="task")(**options)


def choose(labels: Sequence[str], *, name: str = "auto", separator: str = ",") -> Task:
    """The task to train for.

    Args:
        labels: the label texts of the data.
        name: as for `get`, or `auto`: what `detect` says of the labels.
        separator: for the tasks that take one.
    Raises: UsageError: no such task.
    """
    task = resolve(TASKS, detect(labels, separator) if name == "auto" else name, kind="task")
    takes_one = "separator" in signature(task).parameters
    return task(separator=separator) if takes_one else task()


def from_dict(values: Mapping[str, Any]) -> Task:
    """The task that `to_dict` wrote. Only Kiln's own: a file cannot name code that would run.

    Raises: ArtifactError: a task or an option that this version does not know.
    """
    options = dict(values)
    name = options.pop("name", None)
    if name not in TASKS:
        raise ArtifactError(
            "E303", f"the file holds a model for the task {name!r}", choices=sorted(TASKS), hint="update torchkiln"
        )
    try:
        return load_object(TASKS[name])(**options)
    except TypeError as error:
        raise ArtifactError("E303", f"the task {name!r} has other options: {error}", hint="update torchkiln") from error


def detect(labels: Sequence[str], separator: str = ",") -> str:
    """The name of the task that label texts look like.

    It is `multilabel` when some label holds the separator and at least half of the distinct pieces of such labels
    occur in another label as well, alone or in company; otherwise `classification`. So "red,round" beside "red" and
    "blue,round" is two labels, while a class called "knife, small" is one name with a comma in it.
    """
    split = {label: {part.strip() for part in label.split(separator)} - {""} for label in set(labels)}
    uses = Counter(piece for pieces in split.values() for piece in pieces)
    pieces = {piece for label, parts in split.items() if separator in label for piece in parts}
    recurring = sum(uses[piece] > 1 for piece in pieces)
    return "multilabel" if pieces and 2 * recurring >= len(pieces) else "classification"
