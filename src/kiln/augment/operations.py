"""One operation after another on uint8 images: TrivialAugment, RandAugment, and AutoAugment's published policies.

Operations, ranges and probabilities are torchvision's, warps take the nearest pixel as there. Colour is rounded where
torchvision cuts off, so single levels differ. Rows with the same operation go through it together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kiln.augment import color, compiled, filters, geometry, tone
from kiln.augment.chunks import chunk_rows, pieces_of
from kiln.augment.normalized import Output, normalized
from kiln.augment.photographic import Params
from kiln.augment.published import PUBLISHED
from kiln.augment.recycled import recycled_like
from kiln.augment.values import check_images, is_channels_last
from kiln.random import Purpose, uniform

Operation = Callable[[Tensor, Tensor], Tensor]
"""uint8 images (B, C, H, W) and float64 magnitudes (B,) on the host -> new uint8 images."""


def _shear(magnitudes: Tensor, *, size: tuple[int, int], along: int) -> Tensor:
    """Shear from the upper left corner: a step of one row (column) moves pixels by `magnitudes` columns (rows)."""
    matrix = torch.eye(3, dtype=torch.float64).repeat(len(magnitudes), 1, 1)
    matrix[:, along, 1 - along] = magnitudes
    matrix[:, along, 2] = magnitudes * size[along] / 2
    return matrix


MATRICES: dict[str, Callable[..., Tensor]] = {
    "ShearX": lambda m, size: _shear(m, size=size, along=0),
    "ShearY": lambda m, size: _shear(m, size=size, along=1),
    "Rotate": lambda m, size: geometry.affine_matrix(len(m), angle=-m),  # noqa: ARG005 -- about the middle
}
"""Warps by the nearest pixel: magnitudes (B,) and the images' height and width -> (B, 3, 3)."""

SHIFTS = {"TranslateX": (1.0, 0.0), "TranslateY": (0.0, 1.0)}
"""To the right and down, of whole pixels."""

FACTORS = {"Brightness": "brightness", "Color": "saturation", "Contrast": "contrast"}
"""Steps of colour whose factor is 1 and the magnitude."""


def _warp(images: Tensor, magnitudes: Tensor, *, name: str) -> Tensor:
    matrix = MATRICES[name](magnitudes, size=(images.shape[-2], images.shape[-1]))
    return geometry.warp(images, matrix, interpolation="nearest")


def _translate(images: Tensor, magnitudes: Tensor, *, along: int) -> Tensor:
    px = magnitudes.to(torch.int64)  # cut off, like torchvision
    zero = torch.zeros_like(px)
    return geometry.shift(images, zero if along else px, px if along else zero)


OPERATIONS: dict[str, Operation] = {
    "Identity": lambda images, _: images.clone(),
    "ShearX": lambda images, m: _warp(images, m, name="ShearX"),
    "ShearY": lambda images, m: _warp(images, m, name="ShearY"),
    "TranslateX": lambda images, m: _translate(images, m, along=0),
    "TranslateY": lambda images, m: _translate(images, m, along=1),
    "Rotate": lambda images, m: _warp(images, m, name="Rotate"),
    "Brightness": lambda images, m: color.adjust_brightness(images, 1 + m),
    "Color": lambda images, m: color.adjust_saturation(images, 1 + m),
    "Contrast": lambda images, m: color.adjust_contrast(images, 1 + m),
    "Sharpness": lambda images, m: filters.adjust_sharpness(images, 1 + m),
    "Posterize": tone.posterize,
    "Solarize": lambda images, m: tone.solarize(images, 255 * m),
    "AutoContrast": lambda images, _: tone.autocontrast(images),
    "Equalize": lambda images, _: tone.equalize(images),
    "Invert": lambda images, _: tone.invert(images),
}
NAMES = tuple(OPERATIONS)
SIGNED = tuple(NAMES.index(n) for n in NAMES[1:10])  # the magnitude is as often negative


@dataclass(frozen=True)
class Ranges:
    """How magnitudes grow from the first bin to the last.

    Attributes:
        shear: largest, as a tangent.
        translate: largest, in `translate_unit`.
        translate_unit: pixels, or shares of width and height.
        rotate: largest, degrees.
        enhance: largest distance from 1 of the factors of brightness, colour, contrast and sharpness.
        posterize: how many of 8 bits are lost at most.
        num_bins: how many magnitudes there are.
    """

    shear: float = 0.3
    translate: float = 150.0 / 331.0
    translate_unit: str = "share"
    rotate: float = 30.0
    enhance: float = 0.9
    posterize: int = 4
    num_bins: int = 31

    def table(self) -> NDArray[np.float64]:
        """Magnitude of each operation, in the order of `NAMES`, at each bin: (15, num_bins)."""
        rise = np.linspace(0.0, 1.0, self.num_bins)
        enhance = dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), self.enhance * rise)
        known = {
            **enhance,
            "ShearX": self.shear * rise,
            "ShearY": self.shear * rise,
            "TranslateX": self.translate * rise,
            "TranslateY": self.translate * rise,
            "Rotate": self.rotate * rise,
            "Posterize": np.round(8 - self.posterize * rise),
            "Solarize": 1.0 - rise,
        }
        return np.stack([known.get(name, np.zeros_like(rise)) for name in NAMES])


WIDE = Ranges(shear=0.99, translate=32.0, translate_unit="px", rotate=135.0, enhance=0.99, posterize=6)


class Operations(ABC):
    """Flips, then one operation after another. What was drawn: (B, 2 + 2 * slots), flips as uniform numbers, then the
    index in `NAMES` and the magnitude of each operation. Index 0 does nothing.

    Args:
        hflip: probability of mirroring left to right.
        vflip: probability of mirroring top to bottom.
        ranges: magnitudes.
        num_slots: how many operations an image can go through.
    """

    def __init__(self, *, hflip: float, vflip: float, ranges: Ranges, num_slots: int) -> None:
        self.hflip, self.vflip, self.ranges, self.num_slots = hflip, vflip, ranges, num_slots
        self._table = ranges.table()

    @abstractmethod
    def choose(self, draws: Params) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Operations and bins, both (B, slots), from uniform numbers (B, 1 + 3 * slots), of which the last third
        (a sign for each slot) is used here and not there.
        """

    def draw(self, seed: int, epoch: int, keys: NDArray[np.uint64]) -> Params:
        """(B, 2 + 2 * slots): pure functions of (seed, epoch, sample). `keys` is (B,) uint64."""
        flipped = uniform(seed, Purpose.FLIP, epoch=epoch, sample=keys, num_draws=2)
        num_draws = 1 + 3 * self.num_slots
        draws = uniform(seed, Purpose.POLICY, epoch=epoch, sample=keys, num_draws=num_draws)
        chosen, bins = self.choose(draws)
        signs = np.where((draws[:, num_draws - self.num_slots :] < 0.5) & np.isin(chosen, SIGNED), -1.0, 1.0)
        pairs = np.stack([chosen, self._table[chosen, bins] * signs], axis=-1)
        return np.concatenate([flipped, pairs.reshape(len(keys), 2 * self.num_slots)], axis=1, dtype=np.float64)

    def __call__(
        self,
        images: Tensor,
        params: Params,
        *,
        mean: Tensor | None = None,
        std: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Augment whole batches.

        Args:
            images: (B, 1 or 3, H, W) uint8.
            params: (B, 2 + 2 * slots) from `draw`.
            mean: (C,) in 0..1; None keeps levels.
            std: (C,) in 0..1; None keeps levels.
            dtype: of normalised images.
        Returns: a new tensor, normalised, or uint8 without `mean` and `std`.
        """
        check_images(images, channels=(1, 3))
        across, down = params[:, 0] < self.hflip, params[:, 1] < self.vflip
        # As planes: with the channels of a pixel side by side, every factor for a channel would cost ten times as much.
        levels = recycled_like(images, torch.uint8, planes=True)
        if compiled.takes(images):
            _mirror(images, across, down, levels)
        else:
            for rows in pieces_of(images):
                levels[rows] = geometry.flips(images[rows], across[rows], down[rows])
        for slot in range(self.num_slots):
            self._apply_(levels, params[:, 2 + 2 * slot], params[:, 3 + 2 * slot])
        output = Output(mean, std, dtype)
        return normalized(levels, output, out=output.empty_like(images))

    def _apply_(self, levels: Tensor, chosen: Params, magnitudes: Params) -> None:
        """Each row through its operation; rows with the same one together, in pieces."""
        for index in np.unique(chosen).astype(int).tolist():
            name, alike = NAMES[index], np.flatnonzero(chosen == index)
            magnitude = torch.from_numpy(magnitudes[alike])
            if self.ranges.translate_unit == "share" and name in SHIFTS:
                magnitude = magnitude * levels.shape[-1 if name == "TranslateX" else -2]
            if name in IN_PLACE and compiled.takes(levels):
                _operate_(levels, alike, name, magnitude)
            elif name != "Identity":
                _operate_in_pieces_(levels, alike, name, magnitude)


def _operate_in_pieces_(levels: Tensor, rows: NDArray[np.int64], name: str, magnitudes: Tensor) -> None:
    """One operation on some rows, by torch."""
    size = chunk_rows(levels)
    for start in range(0, len(rows), size):
        there = torch.from_numpy(rows[start : start + size]).to(levels.device)
        changed = OPERATIONS[name](levels.index_select(0, there), magnitudes[start : start + size])
        levels.index_copy_(0, there, changed)


def _mirror(images: Tensor, across: NDArray[np.bool_], down: NDArray[np.bool_], levels: Tensor) -> None:
    """Mirror images into planes (B, 3, H, W)."""
    from kiln.augment import level_kernels
    from kiln.augment.kernels import memory

    work = level_kernels.Mirrored(
        compiled.as_stored(images), is_channels_last(images), across=across, down=down, planes=levels.numpy()
    )
    size = (images.shape[-2], images.shape[-1])
    compiled.in_threads(level_kernels.mirror, work, slice(0, len(images)), size=size, memory=memory)


IN_PLACE = tuple(name for name in NAMES if name not in ("Identity", "Invert"))
"""What `level_kernels.py` does; the other two cost torch next to nothing."""


def _operate_(levels: Tensor, rows: NDArray[np.int64], name: str, magnitudes: Tensor) -> None:
    """One operation on some rows of (B, 3, H, W) levels."""
    from kiln.augment import level_kernels
    from kiln.augment.kernels import memory

    size, num = (levels.shape[-2], levels.shape[-1]), len(rows)
    matrix = torch.eye(3, dtype=torch.float64).repeat(num, 1, 1)
    if name in MATRICES:
        matrix = MATRICES[name](magnitudes, size=size)
    elif name in SHIFTS:
        matrix[:, :2, 2] = -magnitudes.trunc().unsqueeze(1) * matrix.new_tensor(SHIFTS[name])
    steps = color.color_steps(num, 3, **({FACTORS[name]: 1 + magnitudes} if name in FACTORS else {}))
    kernels = {
        **dict.fromkeys((*MATRICES, *SHIFTS), level_kernels.nearest),
        **dict.fromkeys(FACTORS, level_kernels.recolor),
        "Sharpness": level_kernels.sharpen,
        "Posterize": level_kernels.mask_bits,
        "Solarize": level_kernels.invert_from,
        "AutoContrast": level_kernels.stretch,
        "Equalize": level_kernels.equalize,
    }
    amounts = {"Sharpness": 1 + magnitudes, "Solarize": 255 * magnitudes, "Posterize": 256 - 2 ** (8 - magnitudes)}
    work = level_kernels.Levels(
        levels=levels.numpy(),
        rows=rows,
        matrices=geometry.Places(matrix, size=size, device=levels.device).matrix.contiguous().numpy(),
        linear=steps[0].contiguous().numpy(),
        of_mean=steps[1].contiguous().numpy(),
        magnitudes=amounts.get(name, magnitudes).to(torch.float32).numpy(),
    )
    compiled.in_threads(kernels[name], work, slice(0, num), size=size, memory=memory)


class Trivial(Operations):
    """One operation of 14 at one of 31 magnitudes, all equally likely.

    Source: Müller and Hutter 2021, "TrivialAugment", arXiv:2103.10158, its wide space, as torchvision's
    `TrivialAugmentWide`.
    """

    def __init__(self, *, hflip: float = 0.5, vflip: float = 0.0) -> None:
        super().__init__(hflip=hflip, vflip=vflip, ranges=WIDE, num_slots=1)

    def choose(self, draws: Params) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Any operation but `Invert`, any bin."""
        return _below(draws[:, 1:2], len(NAMES) - 1), _below(draws[:, 2:3], self.ranges.num_bins)


class Rand(Operations):
    """`num_ops` operations of 14, all equally likely, all at one magnitude of 31.

    Source: Cubuk et al. 2020, "RandAugment", arXiv:1909.13719, as torchvision's `RandAugment`.

    Args:
        num_ops: operations one after another.
        magnitude: bin, 0 to 30.
        hflip: probability of mirroring left to right.
        vflip: probability of mirroring top to bottom.
    """

    def __init__(self, num_ops: int = 2, magnitude: int = 9, *, hflip: float = 0.5, vflip: float = 0.0) -> None:
        super().__init__(hflip=hflip, vflip=vflip, ranges=Ranges(), num_slots=num_ops)
        self.magnitude = magnitude

    def choose(self, draws: Params) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Any operation but `Invert`, the one bin."""
        chosen = _below(draws[:, 1 : 1 + self.num_slots], len(NAMES) - 1)
        return chosen, np.full_like(chosen, self.magnitude)


class AutoAugment(Operations):
    """One of 25 published pairs of operations, each with its own probability and magnitude.

    Source: Cubuk et al. 2019, "AutoAugment", arXiv:1805.09501, as torchvision's `AutoAugment`.

    Args:
        data: `imagenet`, `cifar10` or `svhn`, for which the pairs were found.
        hflip: probability of mirroring left to right.
        vflip: probability of mirroring top to bottom.
    """

    def __init__(self, data: str = "imagenet", *, hflip: float = 0.5, vflip: float = 0.0) -> None:
        super().__init__(hflip=hflip, vflip=vflip, ranges=Ranges(num_bins=10), num_slots=2)
        self.data = data
        steps = [[(NAMES.index(name), p, magnitude) for name, p, magnitude in pair] for pair in PUBLISHED[data]]
        self._pairs = np.array(steps, np.float64)  # (25, 2, 3): operation, probability, bin

    def choose(self, draws: Params) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """A pair, and which of the two are done."""
        pair = self._pairs[_below(draws[:, 0], len(self._pairs))]
        chosen = np.where(draws[:, 1:3] < pair[..., 1], pair[..., 0], 0).astype(np.int64)
        return chosen, pair[..., 2].astype(np.int64)


def _below(draws: Params, num: int) -> NDArray[np.int64]:
    """0 to num - 1, equally likely, from numbers in [0, 1)."""
    return (draws * num).astype(np.int64)
