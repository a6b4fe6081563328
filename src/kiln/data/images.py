"""From a sample to the pixels that a batch holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kiln import pixels
from kiln.data.cache import StoredSource
from kiln.data.decode import Array, Box, contract_image, crop_resize, open_jpeg
from kiln.errors import DataError
from kiln.random import Purpose, uniform


class ImageSource(Protocol):
    """What images are read from: a `kiln.data.source.Source`, or one that keeps reduced copies."""

    @property
    def transformed(self) -> bool:
        """Whether items are float (C, H, W) tensors that need no augmentation."""
        ...

    def read(self, index: int) -> Any:
        """File bytes, uint8 (H, W, C), or float (C, H, W)."""
        ...


NUM_CROP_DRAWS = 4
"""Area, aspect ratio, x and y."""


class Images(Protocol):
    """What a batch is made of: the image of each sample, by what was drawn for it."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one image."""
        ...

    def draw(self, seed: int, epoch: int, keys: NDArray[np.uint64]) -> NDArray[np.float64] | None:
        """(B, D) in [0, 1), pure functions of (seed, epoch, sample); None where nothing is random."""
        ...

    def load(self, index: int, draws: NDArray[np.float64] | None = None, out: Array | None = None) -> Any:
        """(H, W, C) uint8 in `out` or anew, or the float (C, H, W) tensor of a source that transforms by itself.

        Raises: BadSample: it cannot be read.
        """
        ...

    def many(self, indices: NDArray[np.int64], draws: NDArray[np.float64] | None) -> Array | None:
        """(B, H, W, C), what `load` gives for each, where all can be had at once; else None."""
        ...


class BadSample(Exception):  # noqa: N818 - an event that the loader counts, not a fault of the program
    """A sample that cannot be read; `reason` is one of `kiln.pixels.PixelError.reason`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def read(source: ImageSource, index: int) -> Any:
    """What a source holds at an index; a file that cannot be read is a `BadSample`."""
    try:
        return source.read(index)
    except (OSError, DataError) as error:
        raise BadSample("unreadable", (str(error) or type(error).__name__).splitlines()[0]) from error
    except pixels.PixelError as error:
        raise BadSample(error.reason, str(error)) from error


@dataclass(frozen=True)
class ContractImages:
    """Each sample as the pixel contract makes it: for validation, test and prediction, and for training without crops.

    Args:
        source: of the samples.
        contract: of the model.
        fast: let the faster decoder serve, in training.
    """

    source: ImageSource
    contract: pixels.PixelContract
    fast: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one image."""
        return self.contract.height, self.contract.width, self.contract.channels

    def draw(self, seed: int, epoch: int, keys: NDArray[np.uint64]) -> NDArray[np.float64] | None:  # noqa: ARG002
        """No parameters: there is nothing random in the contract."""
        return None

    def load(self, index: int, draws: NDArray[np.float64] | None = None, out: Array | None = None) -> Any:  # noqa: ARG002
        """(H, W, C) uint8 in `out` or anew, or the float (C, H, W) tensor of a source that transforms by itself.

        Raises: BadSample: it cannot be read.
        """
        item = read(self.source, index)
        if self.source.transformed:
            return item
        try:
            made = contract_image(item, self.contract) if self.fast else self.contract.apply(item)
            return _placed(made, out)
        except pixels.PixelError as error:
            raise BadSample(error.reason, str(error)) from error

    def many(self, indices: NDArray[np.int64], draws: NDArray[np.float64] | None) -> Array | None:  # noqa: ARG002
        """See `Images`."""
        return None if self.source.transformed else _stacked(self, indices)


@dataclass(frozen=True)
class KeptImages:
    """The same images, out of a store that keeps them as the pixel contract made them."""

    source: StoredSource
    contract: pixels.PixelContract

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one image."""
        return self.contract.height, self.contract.width, self.contract.channels

    def draw(self, seed: int, epoch: int, keys: NDArray[np.uint64]) -> NDArray[np.float64] | None:  # noqa: ARG002
        """No parameters."""
        return None

    def load(self, index: int, draws: NDArray[np.float64] | None = None, out: Array | None = None) -> Any:  # noqa: ARG002
        """See `Images`."""
        return _placed(read(self.source, index), out)

    def many(self, indices: NDArray[np.int64], draws: NDArray[np.float64] | None) -> Array | None:  # noqa: ARG002
        """See `Images`."""
        found = None if self.source.store is None else self.source.store.many(indices, self.shape)
        return _stacked(self, indices) if found is None else found


@dataclass(frozen=True)
class PaddedCropImages:
    """Each image moved by up to `padding` pixels in each direction; what comes in from outside is black.

    The usual geometry for small images of one size. Source: He et al. 2015, arXiv:1512.03385, section 4.2.
    """

    images: ContractImages | KeptImages
    padding: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one image."""
        return self.images.shape

    def draw(self, seed: int, epoch: int, keys: NDArray[np.uint64]) -> NDArray[np.float64]:
        """(B, 2) in [0, 1): down and across."""
        return uniform(seed, Purpose.CROP, epoch=epoch, sample=keys, num_draws=2)

    def load(self, index: int, draws: NDArray[np.float64] | None = None, out: Array | None = None) -> Any:
        """See `Images`."""
        if draws is None:
            return self.images.load(index, None, out)
        moved = self._moved(self.images.load(index)[None], draws[None])
        return _placed(moved[0], out)

    def many(self, indices: NDArray[np.int64], draws: NDArray[np.float64] | None) -> Array | None:
        """See `Images`."""
        found = self.images.many(indices, None)
        return found if found is None or draws is None else self._moved(found, draws)

    def offsets(self, draws: NDArray[np.float64]) -> NDArray[np.int64]:
        """(B, 2), down and across: where the window begins in the image with its border, 0 to twice the padding."""
        return (draws * (2 * self.padding + 1)).astype(np.int64)

    def _moved(self, images: Array, draws: NDArray[np.float64]) -> Array:
        count, height, width, channels = images.shape
        pad = self.padding
        canvas = np.zeros((count, height + 2 * pad, width + 2 * pad, channels), np.uint8)
        canvas[:, pad : pad + height, pad : pad + width] = images
        windows = np.lib.stride_tricks.sliding_window_view(canvas, (height, width), axis=(1, 2))
        down, across = self.offsets(draws).T
        return np.ascontiguousarray(windows[np.arange(count), down, across].transpose(0, 2, 3, 1))


@dataclass(frozen=True)
class RandomCropImages:
    """Each sample as a random crop, resized once with antialiasing: the geometry of light augmentation.

    The area is uniform in `scale`, the aspect ratio log-uniform in `ratio`, both cut to what fits. With `resize` crop
    the crop has that ratio in pixels; with pad and stretch the ratio is relative to the image's own, so that the model
    sees the proportions that it will see in validation.
    Source: Szegedy et al. 2014, arXiv:1409.4842, section 6; differs: one draw cut to fit, where torchvision tries ten.
    """

    source: ImageSource
    contract: pixels.PixelContract
    scale: tuple[float, float] = (0.35, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one image."""
        return self.contract.height, self.contract.width, self.contract.channels

    def draw(self, seed: int, epoch: int, keys: NDArray[np.uint64]) -> NDArray[np.float64]:
        """(B, 4) in [0, 1): pure functions of (seed, epoch, sample)."""
        return uniform(seed, Purpose.CROP, epoch=epoch, sample=keys, num_draws=NUM_CROP_DRAWS)

    def load(self, index: int, draws: NDArray[np.float64] | None = None, out: Array | None = None) -> Any:
        """(H, W, C) uint8 in `out` or anew, or the float (C, H, W) tensor of a source that transforms by itself.

        Raises: BadSample: it cannot be read.
        """
        item = read(self.source, index)
        if self.source.transformed:
            return item
        try:
            if draws is None or (isinstance(item, np.ndarray) and item.shape[2] != self.contract.channels):
                return _placed(self.contract.apply(item), out)  # which also says what is wrong with it
            image, box = self._opened(item, draws)
            left, top, right, bottom = box
            if self.contract.resize == "pad":
                return _placed(self.contract.apply(np.ascontiguousarray(image[top:bottom, left:right])), out)
            out = np.empty(self.shape, np.uint8) if out is None else out
            crop_resize(image, box, out, interpolation=self.contract.interpolation)
            return out
        except pixels.PixelError as error:
            raise BadSample(error.reason, str(error)) from error

    def many(self, indices: NDArray[np.int64], draws: NDArray[np.float64] | None) -> None:
        """See `Images`."""

    def _opened(self, item: bytes | Array, draws: NDArray[np.float64]) -> tuple[Array, Box]:
        """The decoded image, perhaps reduced by the decoder, and the crop in it."""
        contract = self.contract
        if not isinstance(item, bytes):
            height, width = item.shape[:2]
            return item, _whole(self._box(height, width, draws), height, width)
        encoded = open_jpeg(item, max_pixels=contract.max_pixels) if contract.channels == 3 else None
        if encoded is None:
            smallest = int(max(contract.height, contract.width) / self.scale[0] ** 0.5) + 1
            image = pixels.decode(
                item, channels=contract.channels, max_pixels=contract.max_pixels, at_least_px=smallest
            )
            height, width = image.shape[:2]
            return image, _whole(self._box(height, width, draws), height, width)
        height, width = encoded.height, encoded.width
        left, top, right, bottom = self._box(height, width, draws)
        rows, columns = contract.height / (bottom - top), contract.width / (right - left)
        image = encoded.decode(at_least=(height * rows, width * columns))
        down, across = image.shape[0] / height, image.shape[1] / width
        return image, _whole((left * across, top * down, right * across, bottom * down), *image.shape[:2])

    def _box(self, height: int, width: int, draws: NDArray[np.float64]) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the crop."""
        area_draw, ratio_draw, x_draw, y_draw = draws.tolist()
        share = self.scale[0] + area_draw * (self.scale[1] - self.scale[0])
        ratio = self.ratio[0] * (self.ratio[1] / self.ratio[0]) ** ratio_draw
        across, down = (share * ratio) ** 0.5, (share / ratio) ** 0.5
        if self.contract.resize == "crop":
            side = (width * height) ** 0.5
            wanted = (
                across * side * (self.shape[1] / self.shape[0]) ** 0.5,
                down * side * (self.shape[0] / self.shape[1]) ** 0.5,
            )
        else:
            wanted = (across * width, down * height)
        w, h = min(max(wanted[0], 1.0), float(width)), min(max(wanted[1], 1.0), float(height))
        left, top = x_draw * (width - w), y_draw * (height - h)
        return left, top, left + w, top + h


def _whole(box: tuple[float, float, float, float], height: int, width: int) -> Box:
    """The box in whole pixels, at least one of them."""
    left, top = min(round(box[0]), width - 1), min(round(box[1]), height - 1)
    return left, top, min(max(round(box[2]), left + 1), width), min(max(round(box[3]), top + 1), height)


def _stacked(images: ContractImages | KeptImages, indices: NDArray[np.int64]) -> Array | None:
    """The images one after the other, (B, H, W, C); None when one cannot be read, which `load` will then say."""
    out = np.empty((len(indices), *images.shape), np.uint8)
    try:
        for row, index in zip(out, indices.tolist(), strict=True):
            images.load(index, None, row)
    except BadSample:
        return None
    return out


def _placed(image: Array, out: Array | None) -> Array:
    if out is None:
        return image
    out[...] = image
    return out
