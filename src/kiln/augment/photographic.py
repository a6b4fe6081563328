"""Flips, one warp, colour, erasing: the policies `light`, `standard` and `strong`, which differ in numbers only.

Here is what is drawn and what it means; `rendering.py` does it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kiln.augment.color import color_steps
from kiln.augment.erasing import boxes, windows
from kiln.augment.geometry import Places, affine_matrix, compose, flip_matrix, flips, moves, perspective_matrix
from kiln.augment.normalized import Output, normalized
from kiln.augment.rendering import Plan, render
from kiln.augment.values import check_images
from kiln.random import Purpose, uniform

Params = NDArray[np.float64]


@dataclass(frozen=True)
class Light:
    """Random mirroring, each direction with its own probability."""

    hflip: float = 0.5
    vflip: float = 0.0

    def draw(self, seed: int, epoch: int, keys: NDArray[np.uint64]) -> Params:
        """(B, 2) in [0, 1): pure functions of (seed, epoch, sample). `keys` is (B,) uint64."""
        return uniform(seed, Purpose.FLIP, epoch=epoch, sample=keys, num_draws=2)

    def __call__(
        self,
        images: Tensor,
        params: Params,
        *,
        mean: Tensor | None = None,
        std: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Mirror (B, C, H, W) images by what was drawn for them; normalise them when `mean` and `std` are given."""
        across, down = mirrored(self, params)
        if mean is None and std is None:
            return flips(images, across, down)
        return normalized(images, Output(mean, std, dtype), across, down)


def mirrored(policy: Light | WarpColorErase, params: Params) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Who is mirrored left to right, and top to bottom, by the first two columns of what was drawn."""
    return params[:, 0] < policy.hflip, params[:, 1] < policy.vflip


COLUMNS = {
    "flips": slice(0, 2),  # uniform in [0, 1), compared with the probabilities
    "angle": 2,  # degrees
    "translate": slice(3, 5),  # shares of width and height
    "scale": 5,
    "shear": slice(6, 8),  # degrees
    "corners": slice(8, 16),  # shares of width and height, x and y of four corners
    "brightness": 16,  # the three factors, 1 changes nothing
    "contrast": 17,
    "saturation": 18,
    "grey": 19,  # 0 or 1
    "hue": 20,  # share of the circle
    "gamma": 21,
    "blur": 22,  # sigma, 0 for none
    "noise": 23,  # sigma, 0 for none
    "noise_seed": 24,  # below 2**53
    "box": slice(25, 29),  # top, left, height, width as shares, 0 for none
}
NUM_COLUMNS = 29
FACTORS = ("brightness", "contrast", "saturation", "grey")
RARE = {"blur": 0.0, "noise": 0.0, "hue": 0.0, "gamma": 1.0}
"""Steps that are not affine in the pixel, in their order, and the value at which each does nothing."""


@dataclass(frozen=True)
class WarpColorErase:
    """Flips, at most one warp, colour, one erased rectangle. Ranges are uniform; `p_` are probabilities.

    Attributes:
        hflip: probability of mirroring left to right.
        vflip: probability of mirroring top to bottom.
        p_warp: of rotation, translation, scale and shear, together.
        degrees: largest rotation either way.
        translate: largest move either way, as a share of width and height.
        scale: smallest and largest size.
        shear_degrees: largest shear either way, along both.
        p_perspective: of moving the corners.
        perspective: how far a corner moves inwards at most, as a share of half the side.
        jitter: largest distance from 1 of the factors of brightness, contrast and saturation.
        hue: largest turn either way.
        gamma: largest power; its inverse is the smallest.
        p_grey: of losing the colours.
        p_blur: of a blur with sigma between 0.1 and 2.
        p_noise: of noise with sigma up to `noise`.
        noise: largest standard deviation as a share of the range.
        p_erase: of one erased rectangle.
    """

    hflip: float = 0.5
    vflip: float = 0.0
    p_warp: float = 0.5
    degrees: float = 10.0
    translate: float = 0.1
    scale: tuple[float, float] = (0.9, 1.1)
    shear_degrees: float = 0.0
    p_perspective: float = 0.0
    perspective: float = 0.0
    jitter: float = 0.3
    hue: float = 0.0
    gamma: float = 1.0
    p_grey: float = 0.0
    p_blur: float = 0.0
    p_noise: float = 0.0
    noise: float = 0.0
    p_erase: float = 0.25

    def draw(self, seed: int, epoch: int, keys: NDArray[np.uint64]) -> Params:
        """(B, 29) as `COLUMNS` says: pure functions of (seed, epoch, sample). `keys` is (B,) uint64."""

        def drawn(purpose: Purpose, num: int) -> Params:
            return uniform(seed, purpose, epoch=epoch, sample=keys, num_draws=num)

        def around(draws: Params, reach: float) -> Params:
            return (2.0 * draws - 1.0) * reach

        params = np.zeros((len(keys), NUM_COLUMNS))
        params[:, COLUMNS["flips"]] = drawn(Purpose.FLIP, 2)
        u = drawn(Purpose.AFFINE, 16)
        warped, tilted = u[:, 0] < self.p_warp, u[:, 1] < self.p_perspective
        params[:, COLUMNS["angle"]] = np.where(warped, around(u[:, 2], self.degrees), 0.0)
        params[:, COLUMNS["translate"]] = around(u[:, 3:5], self.translate) * warped[:, None]
        low, high = self.scale
        params[:, COLUMNS["scale"]] = np.where(warped, low + (high - low) * u[:, 5], 1.0)
        params[:, COLUMNS["shear"]] = around(u[:, 6:8], self.shear_degrees) * warped[:, None]
        inwards = np.array([1, 1, -1, 1, -1, -1, 1, -1])
        params[:, COLUMNS["corners"]] = u[:, 8:] * inwards * (self.perspective / 2) * tilted[:, None]
        u = drawn(Purpose.COLOR, 8)
        params[:, [COLUMNS[name] for name in ("brightness", "contrast", "saturation")]] = 1 + around(
            u[:, :3], self.jitter
        )
        params[:, COLUMNS["hue"]] = around(u[:, 3], self.hue)
        params[:, COLUMNS["gamma"]] = self.gamma ** around(u[:, 4], 1.0)
        params[:, COLUMNS["grey"]] = u[:, 5] < self.p_grey
        params[:, COLUMNS["blur"]] = np.where(u[:, 6] < self.p_blur, 0.1 + 1.9 * u[:, 7], 0.0)
        u = drawn(Purpose.NOISE, 3)
        params[:, COLUMNS["noise"]] = np.where(u[:, 0] < self.p_noise, self.noise * u[:, 1], 0.0)
        params[:, COLUMNS["noise_seed"]] = u[:, 2] * 2.0**53
        u = drawn(Purpose.ERASE, 5)
        params[:, COLUMNS["box"]] = boxes(u[:, 1:]) * (u[:, :1] < self.p_erase)
        return params

    def matrices(self, params: Params, *, size: tuple[int, int]) -> Tensor:
        """Flips and warp of each image as one matrix, (B, 3, 3) float64; flips alone are the identity here."""
        height, width = size
        side = np.array([width, height])
        table = {name: torch.from_numpy(params[:, column]) for name, column in COLUMNS.items()}
        x_px, y_px = (torch.from_numpy(params[:, COLUMNS["translate"]] * side)).unbind(1)
        shear_x, shear_y = table["shear"].unbind(1)
        matrix = affine_matrix(
            len(params), angle=table["angle"], translate=(x_px, y_px), scale=table["scale"], shear=(shear_x, shear_y)
        )
        corners = params[:, COLUMNS["corners"]].reshape(-1, 4, 2) * side
        if corners.any():
            matrix = compose(perspective_matrix(torch.from_numpy(corners), size=size), matrix)
        across, down = (torch.from_numpy(mask) for mask in mirrored(self, params))
        warped = moves(matrix)
        signs = torch.diagonal(flip_matrix(across & warped, down & warped), dim1=1, dim2=2)
        return signs.unsqueeze(-1) * matrix  # `compose`, without a matrix product's threads

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
            params: (B, 29) from `draw`.
            mean: (C,) in 0..1; None keeps levels.
            std: (C,) in 0..1; None keeps levels.
            dtype: of normalised images.
        Returns: a new tensor, normalised, or uint8 without `mean` and `std`.
        """
        check_images(images, channels=(1, 3))
        return render(images, self._plan(images, params, Output(mean, std, dtype)))

    def _plan(self, images: Tensor, params: Params, output: Output) -> Plan:
        size, device = (images.shape[-2], images.shape[-1]), images.device
        matrices = self.matrices(params, size=size)
        warped = moves(matrices).numpy()
        across, down = mirrored(self, params)
        scale, offset = (values.flatten() for values in output.scale_and_offset(images))
        factors = {name: torch.from_numpy(params[:, COLUMNS[name]]) for name in FACTORS}
        linear, of_mean = (part.to(device) for part in color_steps(len(images), images.shape[1], **factors))
        drawn = {name: params[:, COLUMNS[name]] for name in RARE}
        rare = {name: np.where(values == RARE[name], np.nan, values) for name, values in drawn.items()}
        return Plan(
            across=across & ~warped,
            down=down & ~warped,
            warped=warped,
            rare=rare,
            noise_seeds=params[:, COLUMNS["noise_seed"]].astype(np.int64),
            places=Places(matrices, size=size, device=device),
            linear=linear * scale.view(-1, 1),
            of_mean=of_mean * scale.view(-1, 1),
            offset=offset,
            limits=torch.stack([offset, offset + 255.0 * scale], dim=1),
            boxes=windows(params[:, COLUMNS["box"]], size=size),
            output=output,
        )
