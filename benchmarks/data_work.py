"""The images that the data benchmarks read, and how rates are taken: arms take turns, round after round."""

from __future__ import annotations

import io
import statistics
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

NUM_CLASSES = 4


def synthetic(number: int, height: int, width: int) -> Image.Image:
    """Soft shapes with grain: about as many bytes as a photo has."""
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 256, (6, 8, 3), np.uint8)
    soft = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.int16)
    return Image.fromarray((soft + rng.normal(0, 14, soft.shape)).clip(0, 255).astype(np.uint8))


def photos_of(archive: Path, count: int) -> list[bytes]:
    """JPEG files out of a zip, evenly spread."""
    with zipfile.ZipFile(archive) as opened:
        names = sorted(name for name in opened.namelist() if name.lower().endswith((".jpg", ".jpeg")))
        return [opened.read(name) for name in names[:: max(1, len(names) // count)][:count]]


def encode(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def write_folder(root: Path, files: Sequence[bytes]) -> list[Path]:
    """Class folders of JPEG files; returns their paths in order."""
    paths = []
    for number, content in enumerate(files):
        path = root / f"class{number % NUM_CLASSES}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        paths.append(path)
    return paths


@dataclass
class Arm:
    """Something that yields batches for ever.

    Attributes:
        name: in tables.
        batches: opens it; each item has a length, the images in it.
        warm_up_batches: that are dropped at the begin of each turn, being made ahead while others had theirs.
        rates: images per second, a number for each round.
    """

    name: str
    batches: Callable[[], Iterator[Any]]
    warm_up_batches: int = 8
    rates: list[float] = field(default_factory=list)
    _open: Iterator[Any] | None = None

    def take_turn(self, seconds: float) -> None:
        """Measure for about so long."""
        if self._open is None:
            self._open = self.batches()
            next(self._open)
        for _ in range(self.warm_up_batches):
            next(self._open)
        images, begun = 0, time.perf_counter()
        while (spent := time.perf_counter() - begun) < seconds:
            images += _count(next(self._open))
        self.rates.append(images / spent)

    def close(self) -> None:
        """End its workers."""
        if self._open is not None and hasattr(self._open, "close"):
            self._open.close()
        self._open = None


def _count(batch: Any) -> int:
    return batch if isinstance(batch, int) else len(batch)


def take_turns(arms: Sequence[Arm], *, rounds: int, seconds: float) -> None:
    """Every arm once per round, in an order that moves on by one each time."""
    for number in range(rounds):
        for place in range(len(arms)):
            arms[(place + number) % len(arms)].take_turn(seconds)
    for arm in arms:
        arm.close()


def ratios(ours: Arm, other: Arm) -> list[float]:
    """Ours over theirs, round by round."""
    return [mine / theirs for mine, theirs in zip(ours.rates, other.rates, strict=True)]


def middle(values: Sequence[float]) -> tuple[float, float, float]:
    """Median and the quartiles."""
    low, median, high = (float(np.quantile(values, share)) for share in (0.25, 0.5, 0.75))
    return median, low, high


def best_median(arms: Sequence[Arm]) -> Arm:
    """The arm with the highest median."""
    return max(arms, key=lambda arm: statistics.median(arm.rates))


def table(arms: Sequence[Arm], reference: Arm) -> list[tuple[str, ...]]:
    """Rows of name, median, middle half, ratio of the reference to it, n."""
    rows = []
    for arm in arms:
        median, low, high = middle(arm.rates)
        ratio = middle(ratios(reference, arm))[0]
        rows.append((arm.name, f"{median:,.0f}", f"{low:,.0f} to {high:,.0f}", f"{ratio:.2f}", str(len(arm.rates))))
    return rows


def raw_rows(arms: Sequence[Arm], work: str) -> list[dict[str, Any]]:
    """A row for each arm and round."""
    return [
        {"work": work, "arm": arm.name, "round": number, "images_per_second": rate}
        for arm in arms
        for number, rate in enumerate(arm.rates)
    ]
