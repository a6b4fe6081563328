"""One class per image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kiln.errors import DataError
from kiln.metrics import Metric, bootstrap_mean, mean_of_shares, wilson
from kiln.metrics import classification as metrics
from kiln.tasks.labels import check_number, sort_names, to_names, unknown_labels
from kiln.tasks.prediction import Prediction, likeliest
from kiln.tasks.scoring import counted, score, table_row

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Classification:
    """Each image belongs to exactly one of K classes."""

    name: ClassVar[str] = "classification"
    monitor: ClassVar[str] = "accuracy"
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

    def metrics(
        self,
        logits: NDArray,
        targets: NDArray,
        classes: tuple[str, ...],
        *,
        weights: NDArray | None = None,
        seed: int = 0,
        intervals: bool = True,
    ) -> dict[str, Metric]:
        """Accuracy, top-5 accuracy (of more than 5 classes), balanced accuracy, macro F1 and log loss.

        Args:
            logits: (N, K).
            targets: (N,) class indices.
            classes: K names.
            weights: (N,); samples of weight 0, such as unreadable files, are left out; all others count 1.
            seed: of the bootstrap.
            intervals: False saves the resampling and leaves `low` and `high` empty.
        Raises: DataError: no samples. NumericError: logits that are not finite.
        """
        logits, targets = counted(logits, targets, weights)
        n, num_classes = len(targets), len(classes)
        confusion = metrics.confusion_matrix(targets, logits.argmax(axis=1), num_classes)
        hits, support = np.diag(confusion), confusion.sum(axis=1)
        present = support > 0
        ranks, losses = metrics.ranks(logits, targets), metrics.log_losses(logits, targets)

        found = {"accuracy": score((ranks < 1).mean(), n, intervals, lambda: wilson((ranks < 1).sum(), n))}
        if num_classes > 5:
            found["top5_accuracy"] = score((ranks < 5).mean(), n, intervals, lambda: wilson((ranks < 5).sum(), n))
        found["balanced_accuracy"] = score(
            metrics.balanced_accuracy(confusion), n, intervals, lambda: mean_of_shares(hits[present], support[present])
        )
        found["f1_macro"] = score(
            metrics.f1_macro(confusion), n, intervals, lambda: metrics.f1_macro_interval(confusion, seed=seed)
        )
        found["loss"] = score(
            losses.mean(), n, intervals, lambda: bootstrap_mean(losses, seed=seed), higher_is_better=False
        )
        return found

    def details(
        self, logits: NDArray, targets: NDArray, classes: tuple[str, ...], *, weights: NDArray | None = None
    ) -> dict[str, Any]:
        """What a report shows per class, ready for JSON.

        Returns: `per_class`: a row per class with precision, recall (and its 95 % interval), f1, support;
            `confusion`: K rows (true class) of K counts (predicted class).
        """
        logits, targets = counted(logits, targets, weights)
        confusion = metrics.confusion_matrix(targets, logits.argmax(axis=1), len(classes))
        hits, predicted, support = np.diag(confusion), confusion.sum(axis=0), confusion.sum(axis=1)
        rows = [table_row(*row) for row in zip(classes, hits, predicted, support, strict=True)]
        return {"per_class": rows, "confusion": confusion.tolist()}

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
