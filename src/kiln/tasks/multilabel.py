"""Any number of labels per image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kiln.errors import UsageError
from kiln.metrics import Metric
from kiln.metrics import multilabel as metrics
from kiln.metrics.calibration import Calibration, Method, fit_sigmoid
from kiln.metrics.measures import Groups, How
from kiln.metrics.pooling import pool_sigmoid
from kiln.metrics.reliability import reliability
from kiln.tasks import label_metrics
from kiln.tasks.labels import check_number, sort_names, to_names, unknown_labels
from kiln.tasks.prediction import Prediction, likeliest
from kiln.tasks.scoring import Names, counted, curve_row, measured, table_row

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Multilabel:
    """Each image has any of K labels, or none; a label is given from a probability of one half.

    Args:
        separator: what stands between the labels of one image. Spaces around labels are dropped, and empty
            text is no label.
    """

    separator: str = ","
    name: ClassVar[str] = "multilabel"
    activation: ClassVar[str] = "sigmoid"
    loss: ClassVar[str] = "binary_cross_entropy"
    monitor: ClassVar[str] = "accuracy"

    def __post_init__(self) -> None:
        if not self.separator:
            raise UsageError("E102", "task.separator = ''", expected="one or more characters, such as , or | or ;")

    def pieces(self, label: str) -> tuple[str, ...]:
        """The labels that a text holds, in its order."""
        return tuple(piece for part in label.split(self.separator) if (piece := part.strip()))

    def class_names(self, labels: Sequence[str], given: tuple[str, ...] | None = None) -> tuple[str, ...]:
        """The labels that occur, in the order of the model's outputs.

        Args:
            labels: the label text of every sample, of all splits.
            given: names in index order; they are then the classes, in that order. Otherwise the distinct labels, by
                code point, or by value when all are integers.
        Raises: DataError: a label that is none of the given, or no label at all. One label is enough: has it or not.
        """
        names = to_names([piece for label in labels for piece in self.pieces(label)], given)
        return check_number(given if given is not None else sort_names(names), 1)

    def occurring(self, labels: Sequence[str], given: tuple[str, ...] | None = None) -> frozenset[str]:
        """The names that some label holds; arguments as for `class_names`. Raises: DataError: one that is not given."""
        return frozenset(to_names([piece for label in labels for piece in self.pieces(label)], given))

    def encode(
        self, labels: Sequence[str], classes: tuple[str, ...], *, given: tuple[str, ...] | None = None
    ) -> NDArray[np.float32]:
        """A 1 for each label that a sample has, matched by name.

        Args:
            labels: label texts.
            classes: the classes of the model.
            given: names in index order, where these data have their own list.
        Returns: (N, K).
        Raises: DataError: labels that are no class, with the differences.
        """
        index = {name: number for number, name in enumerate(classes)}
        split = [self.pieces(label) for label in labels]
        names = to_names([piece for pieces in split for piece in pieces], given)
        if not index.keys() >= set(names):
            raise unknown_labels(names, classes)
        targets = np.zeros((len(labels), len(classes)), np.float32)
        rows = np.repeat(np.arange(len(labels)), [len(pieces) for pieces in split])
        targets[rows, [index[name] for name in names]] = 1.0
        return targets

    def strata(self, labels: Sequence[str]) -> tuple[str, ...]:
        """The text within which samples are split: the rarest label of each, so that rare ones reach every split."""
        split = [self.pieces(label) for label in labels]
        counts = Counter(piece for pieces in split for piece in set(pieces))
        return tuple(min(pieces, key=lambda piece: (counts[piece], piece), default="") for pieces in split)

    def num_outputs(self, classes: Sequence[str]) -> int:
        """The width of the model's head."""
        return len(classes)

    def soften(self, targets: Tensor, num_outputs: int) -> Tensor:  # noqa: ARG002 - they are rows already
        """Rows (B, K) of 0 and 1 as float32, which can be mixed."""
        return targets.float()

    def target_kind(self, *, mixed: bool) -> str:  # noqa: ARG002 - mixed labels are labels between 0 and 1
        """What a loss is given, in the words of `kiln.losses.modules`: rows of yes and no."""
        return "labels"

    def class_counts(self, targets: NDArray[Any], num_outputs: int) -> NDArray[np.int64]:  # noqa: ARG002 - K of (N, K)
        """(K,) how many of the targets (N, K) have each label."""
        return np.asarray(targets).astype(np.int64).sum(axis=0)

    def prior_logits(self, counts: NDArray[np.int64], num_samples: int) -> NDArray[np.float64]:
        """(K,) outputs of a model that knows nothing but how often each label is set; see classification's."""
        return np.log((counts + 1) / (num_samples - counts + 1))

    def probabilities(self, logits: NDArray) -> NDArray[np.float64]:
        """Sigmoid of each, in float64."""
        return metrics.sigmoid(logits)

    def calibrate(self, logits: NDArray, targets: NDArray, *, method: Method = "temperature") -> Calibration:
        """Fit a scale (and bias) of logits (N, K) on held-out samples; see `kiln.metrics.calibration`."""
        return fit_sigmoid(logits, targets, method=method)

    def pooled(self, logits: NDArray, weights: NDArray) -> NDArray[np.float64]:
        """(N, K) logits of the weighted mean of the probabilities of several models; see `kiln.metrics.pooling`."""
        return pool_sigmoid(logits, weights)

    def log_likelihoods(self, logits: NDArray, targets: NDArray) -> NDArray[np.float64]:
        """(N x K,) log of the probability that calibrated logits (N, K) give to what is true of each label."""
        return -np.logaddexp(0.0, (1.0 - 2.0 * np.asarray(targets, np.float64)) * logits).ravel()

    def confidence(self, probabilities: NDArray) -> NDArray[np.float64]:
        """(N,) how sure the least certain part of each decision is."""
        return np.maximum(probabilities, 1.0 - probabilities).min(axis=1)

    def correct(self, probabilities: NDArray, targets: NDArray) -> NDArray[np.bool_]:
        """(N,) whether all labels of each decision are right."""
        return metrics.exact_matches(targets, probabilities >= 0.5)

    def given_labels(self, probabilities: NDArray) -> NDArray[np.bool_]:
        """(N, K) which labels each decision gives."""
        return probabilities >= 0.5

    def true_labels(self, targets: NDArray, num_outputs: int) -> NDArray[np.bool_]:  # noqa: ARG002 - K of (N, K)
        """(N, K) which labels are true."""
        return np.asarray(targets) > 0.5

    def sample_scores(self, logits: NDArray, targets: NDArray) -> dict[str, NDArray[np.float64]]:
        """The metrics that are means over samples, by name: (N,) of each, for calibrated logits (N, K)."""
        probabilities, truth = self.probabilities(logits), np.asarray(targets) > 0.5
        return {
            "label_accuracy": metrics.label_shares(targets, probabilities >= 0.5),
            "loss": metrics.binary_log_losses(logits, targets),
            "brier": np.square(probabilities - truth).mean(axis=1),
        }

    def metric_names(self, num_classes: int) -> tuple[str, ...]:  # noqa: ARG002 - the same for any number of labels
        """All metrics that have a name of their own; see docs/metrics.md."""
        return tuple(label_metrics.TABLE)

    def metrics(
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
    ) -> dict[str, Metric]:
        """Accuracy (all labels of a sample right), label accuracy, F1 (macro, micro), mean average precision, log loss.

        Args:
            logits: (N, K).
            targets: (N, K), 0 or 1.
            classes: K names.
            weights: (N,); samples of weight 0, such as unreadable files, are left out; all others count 1.
            seed: of the bootstrap.
            intervals: False saves the resampling and leaves `low` and `high` empty.
            names: which metrics, instead; see `kiln.tasks.classification.Classification.metrics`.
            groups: (N,) values; samples of equal ones belong together, and intervals draw groups as a whole.
        Raises: DataError: no samples. NumericError: logits that are not finite. UsageError: no such metric.
        """
        logits, targets, groups = counted(logits, targets, weights, groups)
        return measured(
            label_metrics.LabelAnswers(logits, targets, classes),
            names,
            default=label_metrics.DEFAULT_NAMES,
            every=tuple(label_metrics.TABLE),
            find=lambda name: label_metrics.find(name, classes),
            how=How(seed, None if groups is None else Groups(groups), intervals),
        )

    def details(
        self, logits: NDArray, targets: NDArray, classes: tuple[str, ...], *, weights: NDArray | None = None
    ) -> dict[str, Any]:
        """What a report shows per label, ready for JSON.

        Returns: `per_class`: a row per label with precision, recall (and its 95 % interval), f1, support, auc and
            average_precision (None where they do not exist); `confusion`: per label [[tn, fp], [fn, tp]]; `calibration`
            of all labels of all samples, and `risk_coverage` of whole samples, as for classification.
        """
        logits, targets, _ = counted(logits, targets, weights)
        answers = label_metrics.LabelAnswers(logits, targets, classes)
        hits, predicted, actual = answers.counts
        rows = [table_row(*row) for row in zip(classes, hits, predicted, actual, strict=True)]
        neither = len(targets) - actual - predicted + hits
        tables = np.stack([neither, predicted - hits, actual - hits, hits], axis=1).reshape(-1, 2, 2)
        return {
            "per_class": [row | curve_row(answers, index) for index, row in enumerate(rows)],
            "confusion": tables.tolist(),
            "calibration": reliability(answers.probabilities.ravel(), answers.truth.ravel()),
            "risk_coverage": answers.answered.curve(),
        }

    def decode(self, probabilities: NDArray, classes: tuple[str, ...], *, top_k: int = 1) -> Prediction:
        """The labels with a probability of at least one half. `probabilities` is (K,)."""
        labels = tuple(name for name, share in zip(classes, probabilities, strict=True) if share >= 0.5)
        least_certain = float(np.maximum(probabilities, 1.0 - np.asarray(probabilities)).min())
        top = likeliest(probabilities, classes, max(top_k, 1))
        return Prediction(self.separator.join(labels), labels, least_certain, top)

    def to_dict(self) -> dict[str, Any]:
        """What `kiln.tasks.from_dict` reads."""
        return {"name": self.name, "separator": self.separator}
