"""Metrics as pure functions over counts, and the intervals that go with them."""

from kiln.metrics import classification, multilabel
from kiln.metrics.intervals import Metric, bootstrap, bootstrap_mean, wilson

__all__ = ["Metric", "bootstrap", "bootstrap_mean", "classification", "multilabel", "wilson"]
