"""Data sets of every form for the tests of the verbs, the smallest training there is, and the command in-process.

Each image is one colour that tells its number, so that a test can see which image a model was shown.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

import kiln
from kiln.cli import main
from kiln.observe.progress import make

CLASSES = ("blue", "green", "red")
TINY = {
    "model": "kiln/small_cnn",
    "kwargs": {"widths": [4, 8]},
    "img_size": 16,
    "epochs": 1,
    "batch_size": 16,
    "workers": 0,
    "seed": 0,
    "report": False,
}
"""Settings of a training that takes a tenth of a second; `FLAGS` are the same for the command."""
FLAGS = (
    *(
        "--set",
        "run.report=false",
        "--model",
        "kiln/small_cnn",
        "--set",
        "model.kwargs.widths=[4,8]",
        "--img-size",
        "16",
        "--epochs",
        "1",
    ),
    *("-b", "16", "-j", "0", "--seed", "0"),
)


class Said(NamedTuple):
    """What the command left: its exit status and both streams."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The last line of stdout as JSON."""
        return json.loads(self.out.splitlines()[-1])


def command(*arguments: Any) -> Said:
    """Run the command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([str(argument) for argument in arguments])
    return Said(status, out.getvalue(), err.getvalue())


def train(data: Any, output: Path, **settings: Any) -> kiln.Run:
    """The smallest training, from Python, without a word."""
    return kiln.train(data, output=str(output), progress=make(quiet=True), **{**TINY, **settings})


def colour(number: int, label: int) -> tuple[int, int, int]:
    """The colour of an image: red tells the number (below 64), and one of the others is bright, by the class."""
    return 4 * number + 2, 200 if label == 1 else 40, 200 if label == 0 else 40


def number_of(red: float) -> int:
    """Which image a red value (0 to 255) belongs to."""
    return round((red - 2) / 4)


def swatch(number: int, label: int | None = None, size: tuple[int, int] = (20, 20)) -> np.ndarray:
    """(H, W, 3) uint8 in the colour of an image; without `label` it is `number` modulo three."""
    return np.full((*size, 3), colour(number, number % 3 if label is None else label), np.uint8)


def write(path: Path, image: np.ndarray | Image.Image) -> Path:
    """Write an image and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path)
    return path


def class_folders(root: Path, *, num: int = 36, names: Sequence[str] = CLASSES, first: int = 0) -> Path:
    """`CLASS/NUMBER.png`, classes in turn."""
    for number in range(first, first + num):
        label = number % len(names)
        write(root / names[label] / f"{number:02d}.png", swatch(number, label))
    return root


def split_folders(root: Path, *, val: str | None = "val", test: str | None = "test") -> Path:
    """`SPLIT/CLASS/NUMBER.png`: 24 images to train, 6 each to validate and test."""
    class_folders(root / "train", num=24)
    if val is not None:
        class_folders(root / val, num=6, first=24)
    if test is not None:
        class_folders(root / test, num=6, first=30)
    return root


def flat_images(root: Path, *, num: int = 36) -> list[tuple[str, str]]:
    """`img/NUMBER.png`, and (path, label) of each for a table."""
    for number in range(num):
        write(root / f"img/{number:02d}.png", swatch(number))
    return [(f"img/{number:02d}.png", CLASSES[number % 3]) for number in range(num)]


def fingerprint(root: Path) -> str:
    """A hash over names, bytes and times of everything below a folder."""
    state = hashlib.sha256()
    for folder, folders, files in os.walk(root):
        folders.sort()
        for name in ["", *sorted(files)]:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            state.update(os.fsencode(path) + f"{status.st_mtime_ns} {status.st_size} {status.st_mode}".encode())
            if name and os.path.isfile(path):
                state.update(Path(path).read_bytes())
    return state.hexdigest()


def spoil(path: Path, how: str = "body") -> Path:
    """Damage a file: its `header` is no image's, its `body` ends early, or it is `empty`."""
    data = path.read_bytes()
    path.write_bytes({"header": b"<html>" + data[6:], "body": data[: len(data) // 2], "empty": b""}[how])
    return path
