"""One class per image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kiln.errors import DataError
from kiln.metrics import Metric
from kiln.metrics import classification as metrics
from kiln.metrics.calibration import Calibration, Method, fit_softmax
from kiln.metrics.measures import Groups, How
from kiln.metrics.pooling import pool_softmax
from kiln.metrics.reliability import reliability
from kiln.tasks import class_metrics
from kiln.tasks.labels import check_number, sort_names, to_names, unknown_labels
from kiln.tasks.prediction import Prediction, likeliest
from kiln.tasks.scoring import Names, counted, curve_row, measured, table_row

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Classification:
    """Each image belongs to exactly one of K classes."""

    name: ClassVar[str] = "classification"
    monitor: ClassVar[str] = "accuracy"
    activation: ClassVar[str] = "softmax"
    loss: ClassVar[str] = "cross_entropy"

    def class_names(self, labels: Sequence[str], given: tuple[str, ...] | None = None) -> tuple[str, ...]:
        """The classes, in the order of the model's outputs.

        Args:
            labels: the label text of every sample, of all splits.
            given: class names in index order; they are then the classes, in that order, whether or not the data hold
                each of them. Otherwise the distinct labels, by code point, or by value when all are integers.
        Raises: DataError: a label that is empty or no class, or fewer than two classes.
        """
        names = to_names(self._filled(labels), given)
        return check_number(given if given is not None else sort_names(names), 2)

    def occurring(self, labels: Sequence[str], given: tuple[str, ...] | None = None) -> frozenset[str]:
        """The names that some label says; arguments as for `class_names`. Raises: DataError: a label that is no class."""
        return frozenset(to_names(labels, given))

    def encode(
        self, labels: Sequence[str], classes: tuple[str, ...], *, given: tuple[str, ...] | None = None
    ) -> NDArray[np.int64]:
        """Class indices, matched by name.

        Args:
            labels: label texts.
            classes: the classes of the model.
            given: class names in index order, where these data have their own list; see `class_names`.
        Returns: (N,).
        Raises: DataError: labels that are no class, with the differences.
        """
        index = {name: number for number, name in enumerate(classes)}
        names = to_names(self._filled(labels), given)
        if not index.keys() >= set(names):
            raise unknown_labels(names, classes)
        return np.fromiter((index[name] for name in names), np.int64, count=len(names))

    def strata(self, labels: Sequence[str]) -> tuple[str, ...]:
        """The text within which samples are split: the label."""
        return tuple(labels)

    def num_outputs(self, classes: Sequence[str]) -> int:
        """The width of the model's head."""
        return len(classes)

    def soften(self, targets: Tensor, num_outputs: int) -> Tensor:
        """Class indices (B,) as one-hot rows (B, K) float32, which can be mixed."""
        from torch.nn.functional import one_hot

        return one_hot(targets, num_outputs).float()

    def target_kind(self, *, mixed: bool) -> str:
        """What a loss is given, in the words of `kiln.losses.modules`: class indices; mixed, shares of classes."""
        return "shares" if mixed else "classes"

    def class_counts(self, targets: NDArray[Any], num_outputs: int) -> NDArray[np.int64]:
        """(K,) how many of the targets (N,) are of each class."""
        return np.bincount(targets, minlength=num_outputs)

    def prior_logits(self, counts: NDArray[np.int64], num_samples: int) -> NDArray[np.float64]:
        """(K,) outputs of a model that knows nothing but how often each class occurs; one sample of each is added.

        Args:
            counts: as from `class_counts`.
            num_samples: that were counted.
        """
        return np.log((counts + 1) / (num_samples + len(counts)))

    def probabilities(self, logits: NDArray) -> NDArray[np.float64]:
        """Softmax over the last axis, in float64."""
        return metrics.softmax(logits)

    def calibrate(self, logits: NDArray, targets: NDArray, *, method: Method = "temperature") -> Calibration:
        """Fit a scale (and bias) of logits (N, K) on held-out samples; see `kiln.metrics.calibration`."""
        return fit_softmax(logits, targets, method=method)

    def pooled(self, logits: NDArray, weights: NDArray) -> NDArray[np.float64]:
        """(N, K) logits of the weighted mean of the probabilities of several models; see `kiln.metrics.pooling`."""
        return pool_softmax(logits, weights)

    def log_likelihoods(self, logits: NDArray, targets: NDArray) -> NDArray[np.float64]:
        """(N,) log of the probability that calibrated logits (N, K) give to the truth."""
        return -metrics.log_losses(logits, targets)

    def confidence(self, probabilities: NDArray) -> NDArray[np.float64]:
        """(N,) how sure each decision is: the highest probability of each row (N, K)."""
        return probabilities.max(axis=1)

    def correct(self, probabilities: NDArray, targets: NDArray) -> NDArray[np.bool_]:
        """(N,) whether each decision is right."""
        return probabilities.argmax(axis=1) == targets

    def given_labels(self, probabilities: NDArray) -> NDArray[np.bool_]:
        """(N, K) which labels each decision gives: one for each row (N, K)."""
        return self.true_labels(probabilities.argmax(axis=1), probabilities.shape[1])

    def true_labels(self, targets: NDArray, num_outputs: int) -> NDArray[np.bool_]:
        """(N, K) which labels are true, for targets (N,)."""
        return np.asarray(targets)[:, None] == np.arange(num_outputs)

    def sample_scores(self, logits: NDArray, targets: NDArray) -> dict[str, NDArray[np.float64]]:
        """The metrics that are means over samples, by name: (N,) of each, for calibrated logits (N, K)."""
        ranks, truth = metrics.ranks(logits, targets), self.true_labels(targets, logits.shape[1])
        top5 = {"top5_accuracy": (ranks < 5).astype(np.float64)} if logits.shape[1] > 5 else {}
        brier = np.square(self.probabilities(logits) - truth).sum(axis=1)
        return {**top5, "loss": metrics.log_losses(logits, targets), "brier": brier}

    def metric_names(self, num_classes: int) -> tuple[str, ...]:
        """All metrics that have a name of their own for so many classes; see docs/metrics.md."""
        return class_metrics.all_names(num_classes)

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
        """Accuracy, top-5 accuracy (of more than 5 classes), balanced accuracy, macro F1 and log loss; or others.

        Args:
            logits: (N, K).
            targets: (N,) class indices.
            classes: K names.
            weights: (N,); samples of weight 0, such as unreadable files, are left out; all others count 1.
            seed: of the bootstrap.
            intervals: False saves the resampling and leaves `low` and `high` empty.
            names: which metrics, instead: `all` of `metric_names` that these data have, or some; also `recall[CLASS]`
                and its like, and the user's own as module:name.
            groups: (N,) values; samples of equal ones belong together, and intervals draw groups as a whole.
        Raises: DataError: no samples. NumericError: logits that are not finite. UsageError: no such metric.
        """
        logits, targets, groups = counted(logits, targets, weights, groups)
        return measured(
            class_metrics.ClassAnswers(logits, targets, classes),
            names,
            default=class_metrics.default_names(len(classes)),
            every=class_metrics.all_names(len(classes)),
            find=lambda name: class_metrics.find(name, classes),
            how=How(seed, None if groups is None else Groups(groups), intervals),
        )

    def details(
        self, logits: NDArray, targets: NDArray, classes: tuple[str, ...], *, weights: NDArray | None = None
    ) -> dict[str, Any]:
        """What a report shows per class, ready for JSON.

        Returns: `per_class`: a row per class with precision, recall (and its 95 % interval), f1, support, auc and
            average_precision (None where they do not exist); `confusion`: K rows (true class) of K counts (predicted
            class); `calibration`: see `kiln.metrics.reliability.reliability`; `risk_coverage`: see
            `kiln.metrics.selective.Answered.curve`.
        """
        logits, targets, _ = counted(logits, targets, weights)
        answers = class_metrics.ClassAnswers(logits, targets, classes)
        rows = [table_row(*row) for row in zip(classes, *answers.counts, strict=True)]
        return {
            "per_class": [row | curve_row(answers, index) for index, row in enumerate(rows)],
            "confusion": answers.confusion.tolist(),
            "calibration": reliability(answers.sure, answers.right),
            "risk_coverage": answers.answered.curve(),
        }

    def decode(self, probabilities: NDArray, classes: tuple[str, ...], *, top_k: int = 1) -> Prediction:
        """The likeliest class. `probabilities` is (K,)."""
        top = likeliest(probabilities, classes, max(top_k, 1))
        label, probability = top[0]
        return Prediction(label, (label,), probability, top)

    def to_dict(self) -> dict[str, Any]:
        """What `kiln.tasks.from_dict` reads."""
        return {"name": self.name}

    @staticmethod
    def _filled(labels: Sequence[str]) -> Sequence[str]:
        if "" in labels:
            empty = [row for row, label in enumerate(labels) if not label]
            raise DataError(
                "E203",
                f"{len(empty)} of {len(labels)} samples have no label",
                where=f"sample {', '.join(map(str, empty[:20]))}",
                hint="label them or leave them out; where no label means 'none of them', the task is multilabel",
            )
        return labels
