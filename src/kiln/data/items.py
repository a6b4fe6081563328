"""What one item of a data set is: its image in the form that a source hands on, and its target as label text."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

from kiln.errors import DataError

Item = bytes | np.ndarray | torch.Tensor


def item_at(dataset: Any, index: int) -> Any:
    """One item. Raises: DataError: the data set fails."""
    try:
        return dataset[index]
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise DataError("E202", f"item {index} of {type(dataset).__name__} cannot be read: {why}") from error


def image_of(item: Any) -> Any:
    """The image of a pair, a dict or a bare image."""
    if isinstance(item, Mapping):
        image = next((item[name] for name in ("image", "img", "pixel_values", "jpg", "png") if name in item), None)
        if image is None:
            raise DataError("E209", f"an item is a dict without an image: {sorted(map(str, item))}", expected="'image'")
        return image
    return item[0] if isinstance(item, tuple | list) and item else item


def target_of(item: Any) -> Any:
    """The target of a pair or a dict. Raises: DataError: there is none."""
    if isinstance(item, Mapping):
        target = next((item[name] for name in ("label", "target", "labels", "fine_label", "cls") if name in item), None)
    else:
        target = item[1] if isinstance(item, tuple | list) and len(item) > 1 else None
    if target is None:
        raise DataError("E209", "an item of the data set has no label", expected="(image, label)")
    return target


def label_text(target: Any, classes: tuple[str, ...] | None) -> str:
    """A target as label text: a class index becomes its name, a 0/1 vector or a list its labels with commas."""
    if isinstance(target, torch.Tensor | np.ndarray):
        target = target.tolist()
    if isinstance(target, str):
        return target
    if isinstance(target, int | np.integer):
        index = int(target)
        return classes[index] if classes and 0 <= index < len(classes) else str(index)
    if isinstance(target, list | tuple):
        if len(target) == 1 and not isinstance(target[0], str):
            return label_text(target[0], classes)
        if all(not isinstance(value, str) and value in (0, 1) for value in target):
            target = [index for index, value in enumerate(target) if value]
        if all(isinstance(value, str | int) for value in target):
            return ",".join(label_text(value, classes) for value in target)
    raise DataError(
        "E209",
        f"a target of the data set is {target!r} ({type(target).__name__})",
        expected="an integer, a name, a list of names, or a vector of 0 and 1",
    )


def form_of(dataset: Any, index: int, notes: list[str]) -> tuple[str, Callable[[Any], Item]]:
    """What the item at `index` is decides how all are read: `bytes`, `uint8` or `float`."""
    image = image_of(item_at(dataset, index))
    if isinstance(image, bytes | bytearray | memoryview):
        return "bytes", bytes
    if isinstance(image, str | os.PathLike):
        return "bytes", _read_file
    if isinstance(image, Image.Image):
        return "uint8", _from_pil
    if isinstance(image, torch.Tensor | np.ndarray):
        array = np.asarray(image)
        if array.dtype == np.uint8 and array.ndim in (2, 3):
            channels_first = array.ndim == 3 and _channels_first(array.shape, isinstance(image, torch.Tensor))
            notes.append(f"items are uint8 of shape {array.shape}, read as {'CHW' if channels_first else 'HWC'}")
            return "uint8", _from_chw if channels_first else _from_hwc
        if array.dtype.kind == "f" and array.ndim == 3 and _channels_first(array.shape, True):
            notes.append(
                f"items of shape {array.shape} come already transformed ({array.dtype}, CHW): augmentation on the "
                "device is off, and any randomness inside the data set is its own (exactness E0)"
            )
            return "float", _from_float
    shape = f" {image.dtype} of shape {tuple(image.shape)}" if isinstance(image, torch.Tensor | np.ndarray) else ""
    raise DataError(
        "E209",
        f"items of {type(dataset).__name__} are {type(image).__name__}{shape}, which is no image",
        expected="a PIL image, uint8 (H, W, C) or (C, H, W), float (C, H, W), encoded bytes, or a path",
    )


def _channels_first(shape: tuple[int, ...], tensor: bool) -> bool:
    """Tensors are CHW and arrays HWC, unless the shape says otherwise beyond doubt."""
    first, last = shape[0] in (1, 3, 4), shape[2] in (1, 3, 4)
    if first != last:
        return first
    return tensor


def _read_file(path: str | os.PathLike[str]) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise DataError("E202", f"cannot read {os.fspath(path)!r}: {error.strerror}") from error


def _from_pil(image: Image.Image) -> Item:
    """Grey and colour as they are; every other mode as lossless bytes, so that the pixel contract converts it."""
    if not isinstance(image, Image.Image):
        raise _changed_form(image)
    if image.mode in ("L", "RGB"):
        array = np.asarray(image)
        return array[..., None] if array.ndim == 2 else array
    buffer = io.BytesIO()
    image.save(buffer, format="PNG" if image.mode in ("1", "LA", "P", "RGBA", "I;16") else "TIFF")
    return buffer.getvalue()


def _from_hwc(image: Any) -> np.ndarray:
    array = np.asarray(image)
    if array.dtype != np.uint8:
        raise _changed_form(image)
    return array[..., None] if array.ndim == 2 else array


def _from_chw(image: Any) -> np.ndarray:
    return np.ascontiguousarray(_from_hwc(image).transpose(1, 2, 0))


def _from_float(image: Any) -> torch.Tensor:
    tensor = torch.as_tensor(image)
    if not tensor.is_floating_point() or tensor.ndim != 3:
        raise _changed_form(image)
    return tensor.float()


def _changed_form(image: Any) -> DataError:
    what = getattr(image, "dtype", type(image).__name__)
    return DataError("E209", f"an item is {what}, unlike the first one", expected="items of one form")
