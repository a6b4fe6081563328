"""From images to decisions: the pixel contract, a runtime, and the task's way of reading logits."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kiln.errors import DataError, UsageError
from kiln.pixels import PixelContract, PixelError, stack_padded
from kiln.tasks import Prediction, from_dict
from kiln.tasks.decision import Decision

OneImage = str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8]
BATCH_SIZE = 32
"""Images per forward pass, here and in every evaluation: the same size gives the same digits."""
OnError = Literal["keep", "raise"]


class Runtime(Protocol):
    """What runs a network. `device` and `name` are for people."""

    name: str
    device: str
    classes: tuple[str, ...]
    contract: PixelContract
    task: Mapping[str, Any]
    decision: Mapping[str, Any]
    digest: str

    def logits(self, images: NDArray[np.uint8], sizes: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Logits (B, K) for images (B, C, H, W); padded ones come with their `sizes` (B, 2)."""
        ...


class Predictor:
    """Answers for images, whatever runs the network.

    The same images in batches of the same size give the same bits; another batch size may differ in the last digits.

    Attributes:
        classes: names, in the order of the outputs.
        contract: how a file becomes the model's input.
        task: how logits become a decision.
        decision: calibration, and when an answer is withheld.
        digest: of the model file.
        runtime: what runs the network.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.classes = runtime.classes
        self.contract = runtime.contract
        self.task = from_dict(runtime.task)
        self.decision = Decision.from_dict(runtime.decision)
        self.decision.require_width(self.task.num_outputs(self.classes))
        self.digest = runtime.digest

    def __repr__(self) -> str:
        size = f"{self.contract.width}x{self.contract.height}"
        return f"Predictor({len(self.classes)} classes, {size} px, {self.runtime.name} on {self.runtime.device})"

    def logits(self, images: NDArray[np.uint8], sizes: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Logits (B, K) for images that went through the contract.

        Args:
            images: (B, C, H, W) uint8, of the contract's size.
            sizes: (B, 2) height and width of each, where the contract keeps the images' own; padded to the right and
                below, as by `kiln.pixels.stack_padded`.

        Raises: UsageError (E107): another shape or type.
        """
        if (self.contract.resize == "keep") != (sizes is not None):
            what = f"sizes = {sizes}, and the model's contract has resize = {self.contract.resize!r}"
            raise UsageError("E107", what, expected="sizes with keep, and only then")
        if sizes is not None:
            return self.runtime.logits(np.ascontiguousarray(images), sizes)
        expected = (self.contract.channels, self.contract.height, self.contract.width)
        if images.dtype != np.uint8 or images.shape[1:] != expected or images.ndim != 4:
            what = f"images are {images.dtype} of shape {images.shape}"
            raise UsageError("E107", what, expected=f"uint8 of shape (B, {', '.join(map(str, expected))})")
        if len(images) == 0:
            return np.empty((0, self.task.num_outputs(self.classes)), np.float32)
        return self.runtime.logits(np.ascontiguousarray(images))

    def probabilities(self, logits: NDArray[Any]) -> NDArray[np.float64]:
        """(N, K) calibrated probabilities for logits (N, K)."""
        return self.task.probabilities(self.decision.calibrated(logits))

    def decide(self, logits: NDArray[Any], *, top_k: int = 1) -> list[Prediction]:
        """What logits (N, K) say, one prediction for each row; some may be withheld."""
        probabilities = self.probabilities(logits)
        unfamiliarity = self.decision.unfamiliarity(probabilities)
        said = [self.task.decode(row, self.classes, top_k=top_k) for row in probabilities]
        refused = self.decision.refusals([one.probability for one in said], unfamiliarity)
        return [
            replace(
                one,
                unfamiliarity=None if unfamiliarity is None else float(unfamiliarity[row]),
                refused=reason,
                **({"label": "", "labels": ()} if reason else {}),
            )
            for row, (one, reason) in enumerate(zip(said, refused, strict=True))
        ]

    def predict(
        self,
        images: OneImage | Iterable[OneImage],
        *,
        top_k: int = 1,
        batch_size: int = BATCH_SIZE,
        on_error: OnError = "keep",
    ) -> list[Prediction]:
        """One prediction per image, in order.

        Args:
            images: a path, the bytes of a file, a PIL image, or uint8 (H, W, C); or several of them, also as an array
                (B, H, W, C).
            top_k: how many of the likeliest names each prediction lists.
            batch_size: images per forward pass.
            on_error: `keep` gives a prediction with `error` for an image that cannot be read; `raise` stops there.

        Raises: DataError (E202): an image cannot be read, with `on_error="raise"`.
        """
        single = isinstance(images, (str, os.PathLike, bytes, bytearray, Image.Image))
        if single or (isinstance(images, np.ndarray) and images.ndim < 4):
            images = [images]  # type: ignore[list-item]
        return list(self.stream(images, top_k=top_k, batch_size=batch_size, on_error=on_error))  # type: ignore[arg-type]

    def stream(
        self,
        images: Iterable[OneImage | Callable[[], OneImage]],
        *,
        top_k: int = 1,
        batch_size: int = BATCH_SIZE,
        on_error: OnError = "keep",
        workers: int | None = None,
    ) -> Iterator[Prediction]:
        """Like `predict`, for more images than fit in memory: reads a batch, answers it, reads the next.

        An image may be a function that reads it, called in one of the `workers` threads.
        """
        if top_k < 1 or batch_size < 1:
            raise UsageError("E102", f"top_k = {top_k}, batch_size = {batch_size}", expected="at least 1")
        if on_error not in ("keep", "raise"):
            raise UsageError("E101", f"on_error = {on_error!r}", got=str(on_error), choices=("keep", "raise"))
        remaining = iter(images)
        with ThreadPoolExecutor(max_workers=max(1, workers or min(8, os.cpu_count() or 1))) as readers:
            while chunk := list(islice(remaining, batch_size)):
                read = list(readers.map(self._read, chunk))
                if on_error == "raise":
                    _raise_first_failure(chunk, read)
                yield from self._answer(read, top_k)

    def _answer(self, read: list[NDArray[np.uint8] | str], top_k: int) -> Iterator[Prediction]:
        good = [pixels for pixels in read if not isinstance(pixels, str)]
        said: Iterator[Prediction] = iter(())
        if good:
            keeps = self.contract.resize == "keep"
            stacked, sizes = stack_padded(good) if keeps else (np.stack(good), None)
            said = iter(self.decide(self.logits(stacked.transpose(0, 3, 1, 2), sizes), top_k=top_k))
        for pixels in read:
            if isinstance(pixels, str):
                yield Prediction(label="", labels=(), probability=0.0, top=(), error=pixels)
            else:
                yield next(said)

    def _read(self, image: OneImage | Callable[[], OneImage]) -> NDArray[np.uint8] | str:
        """The model's input (H, W, C), or why there is none."""
        try:
            if callable(image):
                image = image()
            if isinstance(image, (str, os.PathLike)):
                image = Path(image).read_bytes()
            elif isinstance(image, bytearray):
                image = bytes(image)
            return self.contract.apply(image)
        except PixelError as error:
            return f"{error.reason}: {error}"
        except OSError as error:
            return f"unreadable: {error.strerror or error}"


def _raise_first_failure(images: Sequence[object], read: list[NDArray[np.uint8] | str]) -> None:
    for image, pixels in zip(images, read, strict=True):
        if isinstance(pixels, str):
            where = str(image) if isinstance(image, (str, os.PathLike)) else type(image).__name__
            raise DataError("E202", f"an image cannot be read: {pixels}", where=where)
