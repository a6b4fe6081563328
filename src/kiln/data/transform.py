"""The user's own transform, on each image in the loader's threads: torchvision's, albumentations', or any callable."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kiln.data.decode import Array
from kiln.data.images import Images
from kiln.errors import UsageError
from kiln.random import Purpose, uniform


class TransformedImages:
    """Images as a callable of the user's changes them, after the crop and before everything on the device.

    The callable gets a PIL image ("L" or "RGB"; an array (H, W, C) for other channel counts), or, being one of
    albumentations, `image=` an array. It returns a PIL image, an array (H, W, C) or a tensor (C, H, W), uint8 and of the
    same size. One with a parameter `rng` gets a `numpy.random.Generator` that follows from (seed, epoch, sample), so its
    training stays exact; one with randomness of its own makes it class E0.

    Args:
        images: what is changed.
        transform: the callable.
    """

    def __init__(self, images: Images, transform: Callable[..., Any]) -> None:
        self.images, self.transform = images, transform
        self._takes_rng = takes_rng(transform)
        self._by_keyword = type(transform).__module__.partition(".")[0] == "albumentations"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one image."""
        return self.images.shape

    def draw(self, seed: int, epoch: int, keys: NDArray[np.uint64]) -> NDArray[np.float64]:
        """(B, D): what the images need, and a column that the transform's generator starts from."""
        own = uniform(seed, Purpose.USER_TRANSFORM, epoch=epoch, sample=keys, num_draws=1)
        inner = self.images.draw(seed, epoch, keys)
        return own if inner is None else np.concatenate([inner, own], axis=1)

    def load(self, index: int, draws: NDArray[np.float64] | None = None, out: Array | None = None) -> Any:
        """The changed image, (H, W, C) uint8 in `out` or anew. Without draws the image is left as it is.

        Raises: BadSample: it cannot be read. UsageError: the transform returns something else.
        """
        if draws is None:
            return self.images.load(index, None, out)
        image = np.asarray(self.images.load(index, draws[:-1] if len(draws) > 1 else None))
        rng = np.random.default_rng(int(draws[-1] * 2**53)) if self._takes_rng else None
        changed = self._checked(self._call(image, rng))
        if out is None:
            return changed
        out[...] = changed
        return out

    def many(self, indices: NDArray[np.int64], draws: NDArray[np.float64] | None) -> None:
        """See `Images`."""

    def _call(self, image: Array, rng: np.random.Generator | None) -> Any:
        more = {} if rng is None else {"rng": rng}
        if self._by_keyword:
            return self.transform(image=image, **more)["image"]
        channels = image.shape[2]
        if channels not in (1, 3):
            return self.transform(image, **more)
        return self.transform(Image.fromarray(image[..., 0] if channels == 1 else image), **more)

    def _checked(self, changed: Any) -> Array:
        if isinstance(changed, Mapping):
            changed = changed.get("image")
        array = changed.permute(1, 2, 0).numpy() if hasattr(changed, "permute") else np.asarray(changed)
        array = array[..., None] if array.ndim == 2 else array
        if array.dtype != np.uint8 or array.shape != self.shape:
            raise UsageError(
                "E107",
                f"the transform {getattr(self.transform, '__name__', type(self.transform).__name__)} returned "
                f"{type(changed).__name__} of {array.dtype} and shape {array.shape}",
                expected=f"uint8 of shape {self.shape} (H, W, C), or a tensor (C, H, W)",
                hint="leave out ToTensor and Normalize: scaling and normalisation are part of the model",
            )
        return array


def takes_rng(transform: Callable[..., Any]) -> bool:
    """Whether a callable wants a generator of random numbers."""
    try:
        return "rng" in inspect.signature(transform).parameters
    except (TypeError, ValueError):
        return False
