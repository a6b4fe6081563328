"""How a report names and writes things, in the language of the moment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import markupsafe

from kiln.language import current, tr
from kiln.language.patterns import translated
from kiln.observe import wording

NO_BREAK = "\u00a0"


def percent(share: float, digits: int = 1) -> str:
    """A share as people read it."""
    return f"{100 * share:.{digits}f}{'' if current() == 'zh' else NO_BREAK}%"


def points(difference: float) -> str:
    """A difference of shares, in percentage points."""
    return f"{100 * difference:+.1f}".replace("-", "\u2212")


def between(metric: Mapping[str, Any], *, share: bool = True) -> str:
    """The 95 % interval of a metric; empty where it has none."""
    low, high = metric.get("low"), metric.get("high")
    if low is None or high is None:
        return ""
    low, high = (percent(end) if share else f"{end:.3f}" for end in (low, high))
    return tr("{low} to {high}", low=low, high=high)


def metric_name(name: str) -> str:
    """What a metric is called; one of the user's own by its own name."""
    known = {
        "accuracy": tr("accuracy"),
        "top5_accuracy": tr("top-5 accuracy"),
        "balanced_accuracy": tr("balanced accuracy"),
        "label_accuracy": tr("label accuracy"),
        "f1_macro": tr("macro F1"),
        "f1_micro": tr("micro F1"),
        "f1_weighted": tr("weighted F1"),
        "mean_average_precision": tr("mean average precision"),
        "loss": tr("log loss"),
        "mcc": tr("Matthews correlation"),
        "kappa": tr("Cohen's kappa"),
        "roc_auc": tr("area under the ROC curve"),
        "pr_auc": tr("area under the precision-recall curve"),
        "brier": tr("Brier score"),
        "ece": tr("calibration error"),
        "ece_adaptive": tr("calibration error, equal bins"),
    }
    return known.get(name) or wording.metric_name(name)


def is_share(name: str) -> bool:
    """Whether a metric is read as a percentage."""
    return name not in wording.NO_SHARES and not name.startswith("log_")


def shown_value(name: str, value: float | None) -> str:
    """A metric's value as people read it."""
    if value is None:
        return "-"
    return percent(value) if is_share(name) else f"{value:.3f}"


def split_name(split: str) -> str:
    """What a split is called."""
    known = {"train": tr("training"), "val": tr("validation"), "test": tr("test")}
    return known.get(split, split)


def said(text: str) -> markupsafe.Markup:
    """A sentence that another part made in English, translated where that is known, marked as English where not."""
    found = translated(text)
    escaped = markupsafe.escape(found)
    if current() == "en" or found != text:
        return escaped
    return markupsafe.Markup('<span lang="en">{}</span>').format(found)


def seconds_text(seconds: float) -> str:
    """A span of time."""
    if seconds < 60:
        return tr("{n} s", n=f"{seconds:.1f}")
    if seconds < 3600:
        return tr("{m} min {s} s", m=int(seconds // 60), s=int(seconds % 60))
    return tr("{h} h {m} min", h=int(seconds // 3600), m=int(seconds % 3600 // 60))
