"""Losses as modules: each holds the settings of one function, checked when it is made.

`takes` says which targets a loss is made for: `classes` (indices), `shares` (rows over classes that sum to 1, as mixing
makes them), `labels` (rows of yes or no), `values` (numbers); `embeds`, that its outputs are embeddings and no logits;
`skips_samples`, that its weights are 0 or 1 and only tell of which samples it says anything.
Weights move with `.to(device)` and are no part of the state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from kiln.errors import UsageError
from kiln.losses import classification, contrastive, overlap, penalties, regression
from kiln.losses.contract import LossTerms
from kiln.losses.settings import index, not_negative, number, positive, share, switch, vector, within_one

Weights = Tensor | Sequence[float] | None
CLASSES, SHARES, LABELS, VALUES = "classes", "shares", "labels", "values"


class Loss(nn.Module):
    """Base of the losses: remembers the settings that its function is called with."""

    takes: frozenset[str] = frozenset({CLASSES, SHARES, LABELS, VALUES})
    coupled = False
    embeds = False
    skips_samples = False
    class_weights: Tensor | None
    pos_weight: Tensor | None

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings = settings

    def extra_repr(self) -> str:
        """The settings, as they would be written."""
        return ", ".join(f"{name}={value!r}" for name, value in self.settings.items())


class CrossEntropy(Loss):
    """`cross_entropy` with its settings."""

    takes = frozenset({CLASSES, SHARES})

    def __init__(
        self, *, smoothing: float = 0.0, class_weights: Weights = None, ignore_index: int | None = None
    ) -> None:
        super().__init__(smoothing=share("smoothing", smoothing), ignore_index=index("ignore_index", ignore_index))
        self.register_buffer("class_weights", vector("class_weights", class_weights), persistent=False)

    def forward(self, logits: Tensor, targets: Tensor) -> LossTerms:
        """One value per sample. `logits` is (B, K, ...), `targets` (B, ...) integers or (B, K, ...)."""
        return classification.cross_entropy(logits, targets, class_weights=self.class_weights, **self.settings)


class BinaryCrossEntropy(Loss):
    """`binary_cross_entropy` with its settings."""

    takes = frozenset({LABELS, SHARES})

    def __init__(self, *, smoothing: float = 0.0, pos_weight: Weights = None) -> None:
        super().__init__(smoothing=share("smoothing", smoothing))
        self.register_buffer("pos_weight", vector("pos_weight", pos_weight), persistent=False)

    def forward(self, logits: Tensor, targets: Tensor) -> LossTerms:
        """One value per sample. `logits` and `targets` are (B, K, ...)."""
        return classification.binary_cross_entropy(logits, targets, pos_weight=self.pos_weight, **self.settings)


class Focal(Loss):
    """`focal` with its settings."""

    takes = frozenset({CLASSES, SHARES})

    def __init__(self, *, gamma: float = 2.0, class_weights: Weights = None, ignore_index: int | None = None) -> None:
        super().__init__(gamma=not_negative("gamma", gamma), ignore_index=index("ignore_index", ignore_index))
        self.register_buffer("class_weights", vector("class_weights", class_weights), persistent=False)

    def forward(self, logits: Tensor, targets: Tensor) -> LossTerms:
        """One value per sample; shapes as for `CrossEntropy`."""
        return classification.focal(logits, targets, class_weights=self.class_weights, **self.settings)


class BinaryFocal(Loss):
    """`binary_focal` with its settings."""

    takes = frozenset({LABELS, SHARES})

    def __init__(self, *, gamma: float = 2.0, alpha: float | None = 0.25, smoothing: float = 0.0) -> None:
        alpha = None if alpha is None else within_one("alpha", alpha)
        super().__init__(gamma=not_negative("gamma", gamma), alpha=alpha, smoothing=share("smoothing", smoothing))

    def forward(self, logits: Tensor, targets: Tensor) -> LossTerms:
        """One value per sample. `logits` and `targets` are (B, K, ...)."""
        return classification.binary_focal(logits, targets, **self.settings)


class Asymmetric(Loss):
    """`asymmetric` with its settings."""

    takes = frozenset({LABELS, SHARES})

    def __init__(
        self, *, gamma_pos: float = 1.0, gamma_neg: float = 4.0, margin: float = 0.05, smoothing: float = 0.0
    ) -> None:
        super().__init__(
            gamma_pos=not_negative("gamma_pos", gamma_pos),
            gamma_neg=not_negative("gamma_neg", gamma_neg),
            margin=share("margin", margin),
            smoothing=share("smoothing", smoothing),
        )

    def forward(self, logits: Tensor, targets: Tensor) -> LossTerms:
        """One value per sample. `logits` and `targets` are (B, K, ...)."""
        return classification.asymmetric(logits, targets, **self.settings)


class AsymmetricSoftmax(Loss):
    """`asymmetric_softmax` with its settings."""

    takes = frozenset({CLASSES, SHARES})

    def __init__(self, *, gamma_pos: float = 1.0, gamma_neg: float = 4.0, smoothing: float = 0.1) -> None:
        super().__init__(
            gamma_pos=not_negative("gamma_pos", gamma_pos),
            gamma_neg=not_negative("gamma_neg", gamma_neg),
            smoothing=share("smoothing", smoothing),
        )

    def forward(self, logits: Tensor, targets: Tensor) -> LossTerms:
        """One value per sample; shapes as for `CrossEntropy`."""
        return classification.asymmetric_softmax(logits, targets, **self.settings)


class Poly1(Loss):
    """`poly1` with its settings."""

    takes = frozenset({CLASSES, SHARES})

    def __init__(
        self,
        *,
        epsilon: float = 1.0,
        smoothing: float = 0.0,
        class_weights: Weights = None,
        ignore_index: int | None = None,
    ) -> None:
        if number("epsilon", epsilon) < -1 or not math.isfinite(epsilon):
            raise UsageError("E102", f"epsilon = {epsilon}", expected="a finite number >= -1")
        super().__init__(
            epsilon=float(epsilon),
            smoothing=share("smoothing", smoothing),
            ignore_index=index("ignore_index", ignore_index),
        )
        self.register_buffer("class_weights", vector("class_weights", class_weights), persistent=False)

    def forward(self, logits: Tensor, targets: Tensor) -> LossTerms:
        """One value per sample; shapes as for `CrossEntropy`."""
        return classification.poly1(logits, targets, class_weights=self.class_weights, **self.settings)


class _Overlap(Loss):
    """What the losses of overlap share: their settings, and that a region of the whole batch couples it."""

    skips_samples = True

    def __init__(
        self,
        *,
        class_weights: Weights,
        per_batch: bool,
        activation: str,
        smooth: float,
        ignore_index: int | None,
        **settings: Any,
    ) -> None:
        if activation not in overlap.ACTIVATIONS:
            raise UsageError("E102", f"activation = {activation!r}", got=str(activation), choices=overlap.ACTIVATIONS)
        super().__init__(
            smooth=not_negative("smooth", smooth),
            per_batch=switch("per_batch", per_batch),
            activation=activation,
            ignore_index=index("ignore_index", ignore_index),
            **settings,
        )
        self.coupled = per_batch
        self.takes = frozenset({LABELS, SHARES}) if activation == "sigmoid" else frozenset({CLASSES, SHARES})
        self.register_buffer("class_weights", vector("class_weights", class_weights), persistent=False)


class Dice(_Overlap):
    """`dice` with its settings; coupled with `per_batch`."""

    def __init__(
        self,
        *,
        smooth: float = 1.0,
        class_weights: Weights = None,
        per_batch: bool = False,
        activation: str = "auto",
        skip_absent: bool = False,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(
            smooth=smooth,
            class_weights=class_weights,
            per_batch=per_batch,
            activation=activation,
            skip_absent=switch("skip_absent", skip_absent),
            ignore_index=ignore_index,
        )

    def forward(self, logits: Tensor, targets: Tensor) -> LossTerms:
        """One value per sample. `logits` is (B, K, ...), `targets` (B, ...) integers or (B, K, ...)."""
        return overlap.dice(logits, targets, class_weights=self.class_weights, **self.settings)


class Tversky(_Overlap):
    """`tversky` with its settings; coupled with `per_batch`."""

    def __init__(
        self,
        *,
        alpha: float = 0.5,
        beta: float = 0.5,
        smooth: float = 1.0,
        class_weights: Weights = None,
        per_batch: bool = False,
        activation: str = "auto",
        skip_absent: bool = False,
        ignore_index: int | None = None,
    ) -> None:
        if alpha == beta == 0:
            raise UsageError(
                "E102", "alpha = beta = 0", expected="one of them above 0: nothing wrong would cost anything"
            )
        super().__init__(
            alpha=not_negative("alpha", alpha),
            beta=not_negative("beta", beta),
            smooth=smooth,
            class_weights=class_weights,
            per_batch=per_batch,
            activation=activation,
            skip_absent=switch("skip_absent", skip_absent),
            ignore_index=ignore_index,
        )

    def forward(self, logits: Tensor, targets: Tensor) -> LossTerms:
        """One value per sample; shapes as for `Dice`."""
        return overlap.tversky(logits, targets, class_weights=self.class_weights, **self.settings)


class Jaccard(Dice):
    """`jaccard` with its settings, which are those of `Dice`."""

    def forward(self, logits: Tensor, targets: Tensor) -> LossTerms:
        """One value per sample; shapes as for `Dice`."""
        return overlap.jaccard(logits, targets, class_weights=self.class_weights, **self.settings)


class GeneralizedDice(_Overlap):
    """`generalized_dice` with its settings; coupled with `per_batch`."""

    def __init__(
        self,
        *,
        smooth: float = 1e-6,
        class_weights: Weights = None,
        per_batch: bool = False,
        activation: str = "auto",
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(
            smooth=smooth,
            class_weights=class_weights,
            per_batch=per_batch,
            activation=activation,
            ignore_index=ignore_index,
        )

    def forward(self, logits: Tensor, targets: Tensor) -> LossTerms:
        """One value per sample; shapes as for `Dice`."""
        return overlap.generalized_dice(logits, targets, class_weights=self.class_weights, **self.settings)


class _Plain(Loss):
    """A loss without settings."""

    def __init__(self) -> None:
        super().__init__()


class MeanSquaredError(_Plain):
    """`mse` as a module."""

    takes = frozenset({VALUES, LABELS, SHARES})

    def forward(self, outputs: Tensor, targets: Tensor) -> LossTerms:
        """One value per sample. `outputs` and `targets` have one shape, (B, ...)."""
        return regression.mse(outputs, targets)


class MeanAbsoluteError(_Plain):
    """`mae` as a module."""

    takes = frozenset({VALUES, LABELS, SHARES})

    def forward(self, outputs: Tensor, targets: Tensor) -> LossTerms:
        """One value per sample; shapes as for `MeanSquaredError`."""
        return regression.mae(outputs, targets)


class Huber(Loss):
    """`huber` with its `delta`."""

    takes = frozenset({VALUES, LABELS, SHARES})

    def __init__(self, *, delta: float = 1.0) -> None:
        super().__init__(delta=positive("delta", delta))

    def forward(self, outputs: Tensor, targets: Tensor) -> LossTerms:
        """One value per sample; shapes as for `MeanSquaredError`."""
        return regression.huber(outputs, targets, **self.settings)


class SupervisedContrastive(Loss):
    """`supervised_contrastive` with its temperature; coupled."""

    takes = frozenset({CLASSES})
    coupled = True
    embeds = True
    skips_samples = True

    def __init__(self, *, temperature: float = 0.1) -> None:
        super().__init__(temperature=positive("temperature", temperature))

    def forward(self, embeddings: Tensor, targets: Tensor) -> LossTerms:
        """One value per anchor. `embeddings` is (B, D), `targets` (B,) integers."""
        return contrastive.supervised_contrastive(embeddings, targets, **self.settings)


class _WeightPenalty(Loss):
    """A penalty on the weights of a model: on matrices and kernels; biases and the scales of norms are left alone."""

    def __init__(self) -> None:
        super().__init__()
        self._model: tuple[nn.Module, ...] = ()  # in a tuple, so that it is no submodule of the loss

    def attach(self, model: nn.Module) -> None:
        """Say whose weights; a training does, a loop of one's own must."""
        self._model = (model,)

    def parameters_held(self) -> list[Tensor]:
        """The weights that are penalised now; frozen ones are not.

        Raises: UsageError: no model was attached.
        """
        if not self._model:
            raise UsageError("E107", f"{type(self).__name__} knows no model", hint="loss.attach(model)")
        return [p for p in self._model[0].parameters() if p.requires_grad and p.ndim > 1]


class L1Weights(_WeightPenalty):
    """The sum of |w| over the weights of the model."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: ARG002 (a loss is called with both)
        """A scalar: the same for every sample."""
        return penalties.l1_norm(self.parameters_held())


class L2Weights(_WeightPenalty):
    """The sum of w^2 over the weights of the model."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: ARG002 (a loss is called with both)
        """A scalar: the same for every sample."""
        return penalties.l2_norm_squared(self.parameters_held())


class L1Outputs(_Plain):
    """`l1_outputs` as a module."""

    def forward(self, outputs: Tensor, targets: Tensor) -> LossTerms:  # noqa: ARG002 (a loss is called with both)
        """One value per sample. `outputs` is (B, ...)."""
        return penalties.l1_outputs(outputs)


class L2Outputs(_Plain):
    """`l2_outputs` as a module."""

    def forward(self, outputs: Tensor, targets: Tensor) -> LossTerms:  # noqa: ARG002 (a loss is called with both)
        """One value per sample. `outputs` is (B, ...)."""
        return penalties.l2_outputs(outputs)
