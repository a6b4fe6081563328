"""Losses: pure functions by subject, thin modules, and the contract that lets a step average them exactly."""

from __future__ import annotations

from kiln.losses.checking import LossReport, check
from kiln.losses.class_weights import positive_weights, weights_from_counts
from kiln.losses.classification import (
    asymmetric,
    asymmetric_softmax,
    binary_cross_entropy,
    binary_focal,
    cross_entropy,
    focal,
    poly1,
)
from kiln.losses.contract import LossTerms, as_terms, is_coupled
from kiln.losses.contrastive import supervised_contrastive
from kiln.losses.modules import (
    Asymmetric,
    AsymmetricSoftmax,
    BinaryCrossEntropy,
    BinaryFocal,
    CrossEntropy,
    Dice,
    Focal,
    GeneralizedDice,
    Huber,
    Jaccard,
    L1Outputs,
    L1Weights,
    L2Outputs,
    L2Weights,
    MeanAbsoluteError,
    MeanSquaredError,
    Poly1,
    SupervisedContrastive,
    Tversky,
)
from kiln.losses.overlap import dice, generalized_dice, jaccard, tversky
from kiln.losses.penalties import l1_norm, l1_outputs, l2_norm_squared, l2_outputs
from kiln.losses.regression import huber, mae, mse
from kiln.losses.sums import FunctionLoss, WeightedSum, as_module, make

__all__ = [
    "Asymmetric", "AsymmetricSoftmax", "BinaryCrossEntropy", "BinaryFocal", "CrossEntropy", "Dice", "Focal",
    "FunctionLoss", "GeneralizedDice", "Huber", "Jaccard", "L1Outputs", "L1Weights", "L2Outputs", "L2Weights",
    "LossReport", "LossTerms", "MeanAbsoluteError", "MeanSquaredError", "Poly1", "SupervisedContrastive", "Tversky", "WeightedSum",
    "as_module", "as_terms", "asymmetric", "asymmetric_softmax", "binary_cross_entropy", "binary_focal", "check",
    "cross_entropy", "dice", "focal", "generalized_dice", "huber", "is_coupled", "jaccard", "l1_norm", "l1_outputs",
    "l2_norm_squared", "l2_outputs", "mae", "make", "mse", "poly1", "positive_weights", "supervised_contrastive",
    "tversky", "weights_from_counts",
]  # fmt: skip
