"""`demo`: the main job on real handwritten digits, written as image files and read back the way all data are."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from kiln.errors import MissingExtraError
from kiln.jobs.train import train
from kiln.observe.progress import Progress
from kiln.recipe.presets import preset
from kiln.run import Run


def demo(output: str = "runs", *, progress: Progress | None = None) -> Run:
    """Train a small network on scikit-learn's 1,797 digits (8x8 pixels, ten classes).

    The images are written to `OUTPUT/digits-images` as PNG files in class folders, and stay there to be looked at.

    Raises: MissingExtraError: scikit-learn, which brings the data, is not installed.
    """
    data = Path(output) / "digits-images"
    write_digits(data)
    return train(data, recipe=preset("digits").override({"run.output": output}), progress=progress)


def write_digits(folder: Path) -> Path:
    """Write the digits as PNG files, one folder per class; does nothing where they are already. Returns: the folder."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("scikit-learn", extra="demo", purpose="the demonstration") from error
    if folder.is_dir():
        return folder
    digits: Any = load_digits()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".digits-") as staged:
        whole = Path(staged) / "images"
        for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
            place = whole / str(label)
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray((pixels * (255 / 16)).round().astype("uint8")).save(place / f"{number:04d}.png")
        whole.rename(folder)
    return folder
