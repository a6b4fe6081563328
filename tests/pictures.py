"""Pictures with as much in them as a photograph, made on the spot, and the ways in which copies of them differ."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter


def picture(seed: int, size: tuple[int, int] = (160, 128), backdrop: int | None = None) -> Image.Image:
    """(width, height): soft shapes, hard shapes and some texture; another seed is another picture.

    Args:
        backdrop: the seed of what surrounds the middle, where several pictures are to share that.
    """
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    scene = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    fine = Image.fromarray(rng.integers(60, 196, (32, 40, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    scene = Image.blend(scene, fine, 0.35)
    for _ in range(6):
        width, height = rng.integers(size[0] // 10, size[0] // 3), rng.integers(size[1] // 10, size[1] // 3)
        colour = tuple(int(value) for value in rng.integers(0, 256, 3))
        scene.paste(colour, (left := int(rng.integers(0, size[0] - width)), top := int(rng.integers(0, size[1] - height)),
                             left + int(width), top + int(height)))  # fmt: skip
    scene = scene.filter(ImageFilter.GaussianBlur(0.7))
    if backdrop is None:
        return scene
    behind = picture(backdrop, size)
    box = (size[0] // 4, size[1] // 4, 3 * size[0] // 4, 3 * size[1] // 4)
    behind.paste(scene.crop(box), box[:2])
    return behind


def jpeg_of(image: Image.Image, quality: int = 92) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def png_of(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _cropped(image: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    width, height = image.size
    return image.crop((round(left * width), round(top * height), round(right * width), round(bottom * height)))


ALTERED = {
    "q50": lambda image: jpeg_of(image, 50),
    "scale": lambda image: jpeg_of(image.resize((int(0.7 * image.width), int(0.7 * image.height)))),
    "crop": lambda image: jpeg_of(_cropped(image, 0.05, 0.05, 0.95, 0.95)),
    "crop_left": lambda image: jpeg_of(_cropped(image, 0.05, 0, 1, 1)),
    "crop_corner": lambda image: jpeg_of(_cropped(image, 0, 0.05, 0.95, 1)),
    "bright": lambda image: jpeg_of(ImageEnhance.Brightness(image).enhance(1.1)),
    "dark": lambda image: jpeg_of(ImageEnhance.Brightness(image).enhance(0.9)),
    "all": lambda image: jpeg_of(ImageEnhance.Brightness(_cropped(image, 0.03, 0.02, 0.98, 0.97)).enhance(1.1), 60),
}
"""The bytes of a near copy of an image, by what was done to it."""


def put(root: Path, files: dict[str, bytes]) -> Path:
    """Write files, and the folders above them."""
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root
