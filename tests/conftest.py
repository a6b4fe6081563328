"""What tests of every kind share: one thread, a generated folder of images, a tiny network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from small_runs import Nursery

torch.set_num_threads(1)  # bitwise equality holds at equal thread counts, and the machines are shared

CLASSES = ("bars", "checks", "dots", "rings")


def _picture(name: str, rng: np.random.Generator) -> np.ndarray:
    """(32, 32, 3) uint8: a pattern that tells the class, in random colours and with some noise."""
    down, across = np.mgrid[:32, :32]
    period, phase = rng.integers(4, 8), rng.integers(0, 8)
    pattern = {
        "bars": (across + phase) // period % 2,
        "checks": ((across + phase) // period + (down + phase) // period) % 2,
        "dots": ((across + phase) % period < 2) & ((down + phase) % period < 2),
        "rings": np.hypot(across - 16, down - 16).astype(int) // period % 2,
    }[name]
    dark, bright = rng.integers(0, 90, 3), rng.integers(160, 256, 3)
    picture = np.where(pattern[..., None] > 0, bright, dark) + rng.normal(0, 6, (32, 32, 3))
    return picture.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what runs cache out of the user's own cache folder; commands that tests start inherit it."""
    patch = pytest.MonkeyPatch()
    patch.setenv("KILN_CACHE", str(tmp_path_factory.mktemp("kiln-cache")))
    yield
    patch.undo()


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders with 64 images of 32 px, half of them PNG and half JPEG. Read it only; copy it to change it."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (root / name).mkdir()
        for number in range(16):
            suffix = "png" if number % 2 else "jpg"
            Image.fromarray(_picture(name, rng)).save(root / name / f"{number:02d}.{suffix}")
    return root


@pytest.fixture
def tiny_model() -> Callable[..., nn.Module]:
    """Makes a seeded convolutional network for 8 px images with everything that has state: norm, dropout, head."""

    def make(*, num_classes: int = 4, drop: float = 0.2, norm: bool = True, seed: int = 0) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return nn.Sequential(
                nn.Conv2d(3, 8, 3, padding=1, bias=not norm),
                nn.BatchNorm2d(8) if norm else nn.GroupNorm(2, 8),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d(2),
                nn.Flatten(),
                nn.Dropout(drop),
                nn.Linear(32, num_classes),
            )

    return make


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Starts commands in processes of their own, a fork each; see tests/small_runs."""
    nursery = Nursery(tmp_path_factory.mktemp("nursery"))
    yield nursery
    nursery.close()
