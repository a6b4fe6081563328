"""Fast decoding and resizing for training: JPEG by simplejpeg, resizing by torch's kernel for uint8; else Pillow.

Validation, prediction and serving never come here: they see what `kiln.pixels.PixelContract` makes. On one build of
libjpeg-turbo the pixels of a whole decoded file are Pillow's own, and the resized ones within one level of Pillow's.
`benchmarks/decoders.py` measures the choices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL
import torch
from numpy.typing import NDArray

from kiln import pixels

try:
    import simplejpeg
except ImportError:  # no wheel for this platform: Pillow decodes everything, more slowly
    simplejpeg: Any = None

Array = NDArray[np.uint8]
Box = tuple[int, int, int, int]

DECODER = f"simplejpeg {simplejpeg.__version__}" if simplejpeg else f"Pillow {PIL.__version__}"
RESIZER = f"torch {torch.__version__}"

_JPEG = b"\xff\xd8\xff"
_COLORSPACES = {"YCbCr", "Gray", "RGB"}
_ORIENTED = (b"Exif\0\0", b"http://ns.adobe.com/xap/")
_MAX_SCANS = 100
_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
# What torch.nn.functional.interpolate(antialias=True) calls; only here can the result go where it belongs.
_nn: Any = torch._C._nn  # type: ignore[attr-defined]
_KERNELS = {"bilinear": _nn._upsample_bilinear2d_aa, "bicubic": _nn._upsample_bicubic2d_aa}

# What brings an image of EXIF orientation 1 to 8 upright: swap rows and columns, then reverse rows, reverse columns.
_TURNS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


@dataclass(frozen=True, slots=True)
class Encoded:
    """A JPEG whose header has been read.

    Attributes:
        data: the file.
        height: of the upright image, as is `width`.
        width: see `height`.
        orientation: of EXIF, 1 to 8.
    """

    data: bytes
    height: int
    width: int
    orientation: int

    def decode(self, *, at_least: tuple[float, float] = (math.inf, math.inf)) -> Array:
        """The upright image, (H, W, 3); it may be a view with negative strides.

        Args:
            at_least: height and width that must be left; where the file has many times more, the decoder itself
                reduces it, which is faster and for training good enough.
        Raises: PixelError: damaged; Pillow says how.
        """
        swapped, up, left = _TURNS[self.orientation]
        height, width = at_least[::-1] if swapped else at_least
        reduce = 2 * height <= (self.width if swapped else self.height)
        try:
            image = simplejpeg.decode_jpeg(
                self.data,
                min_height=math.ceil(height) if reduce else 0,
                min_width=math.ceil(width) if reduce else 0,
                min_factor=2 if reduce else 1,
            )
        except ValueError:  # damaged, or merely odd: Pillow decides, as it does for validation
            return pixels.decode(self.data, channels=3, max_pixels=self.height * self.width)
        if swapped:
            image = image.transpose(1, 0, 2)
        return image[:: -1 if up else 1, :: -1 if left else 1]


def open_jpeg(data: bytes, *, max_pixels: int) -> Encoded | None:
    """Read the header of a JPEG that the fast path takes; None for everything else, which is Pillow's.

    Raises: PixelError: its metadata is such that Pillow refuses it.
    """
    if simplejpeg is None or not data.startswith(_JPEG):
        return None
    try:
        head: tuple[Any, ...] = simplejpeg.decode_jpeg_header(data)
        progressive, oriented = _read_markers(data)
    except (ValueError, IndexError):
        return None
    height, width, colorspace, _ = head
    if colorspace not in _COLORSPACES or height * width > max_pixels:
        return None
    if progressive and data.count(b"\xff\xda") > _MAX_SCANS:
        return None
    if not oriented:
        return Encoded(data, height, width, 1)
    header = pixels.probe(data, max_pixels=max_pixels)
    return Encoded(data, header.height, header.width, header.orientation)


def _read_markers(data: bytes) -> tuple[bool, bool]:
    """Whether the file is progressive, and whether it has metadata that may turn the image; reads up to the first scan.

    Raises: ValueError, IndexError: no such file.
    """
    progressive = oriented = False
    place = 2
    while True:
        if data[place] != 0xFF:
            raise ValueError("no marker")
        marker = data[place + 1]
        if marker == 0xDA:
            return progressive, oriented
        if marker == 0xFF:  # a byte to fill up
            place += 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # stands alone
            place += 2
            continue
        progressive = progressive or marker in _PROGRESSIVE
        oriented = oriented or (marker == 0xE1 and data.startswith(_ORIENTED, place + 4))
        place += 2 + (data[place + 2] << 8) + data[place + 3]


def decode(data: bytes, *, channels: int, max_pixels: int) -> Array:
    """A whole file as (H, W, channels) uint8, upright; it may be read-only or a view.

    Raises: PixelError: see `kiln.pixels.PixelError.reason`.
    """
    encoded = open_jpeg(data, max_pixels=max_pixels) if channels == 3 else None
    if encoded is not None:
        return encoded.decode()
    return pixels.decode(data, channels=channels, max_pixels=max_pixels)


def contract_image(item: bytes | Array, contract: pixels.PixelContract) -> Array:
    """What the pixel contract makes of a sample, decoded the fast way: for training.

    Raises: PixelError: it cannot be read.
    """
    if isinstance(item, bytes) and contract.channels == 3:
        encoded = open_jpeg(item, max_pixels=contract.max_pixels)
        item = item if encoded is None else encoded.decode()
    if isinstance(item, bytes):
        return contract.apply(item)
    as_it_is = contract.crop_fraction == 1 and item.shape == (contract.height, contract.width, contract.channels)
    return np.ascontiguousarray(item) if as_it_is else contract.apply(np.ascontiguousarray(item))


def crop_resize(image: Array, box: Box, out: Array, *, interpolation: str) -> None:
    """Resize a part of an image with antialiasing, as Pillow does to within one level.

    Args:
        image: (H, W, C).
        box: left, top, right, bottom, in whole pixels.
        out: (height, width, C), contiguous; written.
        interpolation: a key of `kiln.pixels.INTERPOLATIONS`.
    """
    left, top, right, bottom = box
    part = image[top:bottom, left:right]
    if part.shape == out.shape:
        out[...] = part
        return
    kernel = _KERNELS.get(interpolation)
    if kernel is None:
        out[...] = pixels.resize(np.ascontiguousarray(part), out.shape[:2], interpolation=interpolation)
        return
    kernel(_as_tensor(_tame(part)), out.shape[:2], False, out=_as_tensor(out))


def _tame(part: Array) -> Array:
    """The same pixels as torch takes them: no negative strides, and not marked as read-only (they are only read)."""
    if min(part.strides) < 0:
        return np.ascontiguousarray(part)
    if not part.flags.writeable:
        try:
            part.flags.writeable = True  # of this view alone
        except ValueError:  # the memory itself is read-only
            return part.copy()
    return part


def _as_tensor(image: Array) -> torch.Tensor:
    """(1, C, H, W) of (H, W, C), the same memory."""
    return torch.from_numpy(image).permute(2, 0, 1)[None]
