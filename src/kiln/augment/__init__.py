"""Augmentation on the device, on whole batches, with per-sample parameters drawn on the host.

Functions on (B, C, H, W) tensors that work alone; policies that draw for them and do everything in one pass.
"""

from kiln.augment.color import (
    add_noise,
    adjust_brightness,
    adjust_contrast,
    adjust_gamma,
    adjust_hue,
    adjust_saturation,
    apply_color,
    color_matrix,
    jitter,
    to_grey,
)
from kiln.augment.compiled import backend
from kiln.augment.erasing import erase, erase_
from kiln.augment.filters import adjust_sharpness, gaussian_blur
from kiln.augment.geometry import affine_matrix, compose, crop, flip, flip_matrix, perspective_matrix, shift, warp
from kiln.augment.mixing import Mixing, cutmix, mix_targets, mixup, partners
from kiln.augment.normalized import standardize
from kiln.augment.on_device import OnDevice, Standardized
from kiln.augment.operations import AutoAugment, Rand, Trivial
from kiln.augment.photographic import Light, WarpColorErase
from kiln.augment.policies import CHOICES, Policy, policy
from kiln.augment.tone import autocontrast, equalize, invert, posterize, solarize
from kiln.augment.views import VIEWS, views

__all__ = [
    "CHOICES",
    "VIEWS",
    "AutoAugment",
    "Light",
    "Mixing",
    "OnDevice",
    "Policy",
    "Rand",
    "Standardized",
    "Trivial",
    "WarpColorErase",
    "add_noise",
    "adjust_brightness",
    "adjust_contrast",
    "adjust_gamma",
    "adjust_hue",
    "adjust_saturation",
    "adjust_sharpness",
    "affine_matrix",
    "apply_color",
    "autocontrast",
    "backend",
    "color_matrix",
    "compose",
    "crop",
    "cutmix",
    "equalize",
    "erase",
    "erase_",
    "flip",
    "flip_matrix",
    "gaussian_blur",
    "invert",
    "jitter",
    "mix_targets",
    "mixup",
    "partners",
    "perspective_matrix",
    "policy",
    "posterize",
    "shift",
    "solarize",
    "standardize",
    "to_grey",
    "views",
    "warp",
]
