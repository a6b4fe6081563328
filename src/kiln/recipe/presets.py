"""Starting points: named recipes, each with what it is for. Every value can still be overridden."""

from __future__ import annotations

from collections.abc import Callable

from kiln.errors import UsageError
from kiln.recipe.recipe import Recipe


def default() -> Recipe:
    """From scratch: AdamW, cosine with 10 % warmup, mild crops, label smoothing 0.1, 10 epochs."""
    return Recipe()


def fine_tune() -> Recipe:
    """From pretrained weights: AdamW at 1e-4, mild crops, no smoothing, an average of the weights, early stopping."""
    return Recipe().with_(
        model={"weights": "pretrained"},
        augment={"crop_scale": (0.5, 1.0)},
        loss={"smoothing": 0.0},
        optim={"lr": 1e-4, "weight_decay": 0.05, "clip_norm": 1.0},
        training={"epochs": "20ep", "ema_decay": 0.99, "patience": "5ep"},
    )


def quick() -> Recipe:
    """A first look within minutes on a CPU: small images, 3 epochs, plain flips."""
    return Recipe().with_(model={"img_size": 96}, training={"epochs": "3ep"})


def digits() -> Recipe:
    """Small grey handwriting, as `kiln demo` trains it: no mirroring, because a mirrored 2 is no digit."""
    return Recipe().with_(
        data={"channels": 1, "test_fraction": 0.2},
        model={"name": "kiln/small_cnn", "img_size": 16},
        augment={"crop_scale": (0.8, 1.0), "hflip": 0.0},
        optim={"lr": 3e-3},
        training={"epochs": "15ep", "batch_size": 64},
    )


PRESETS: dict[str, Callable[[], Recipe]] = {
    "default": default,
    "fine-tune": fine_tune,
    "quick": quick,
    "digits": digits,
}


def preset(name: str) -> Recipe:
    """The recipe that a preset name stands for.

    Raises: UsageError: no such preset; the closest is suggested.
    """
    if name not in PRESETS:
        raise UsageError("E101", f"unknown preset {name!r}", got=name, choices=tuple(PRESETS))
    return PRESETS[name]()
