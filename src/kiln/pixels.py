"""The pixel contract: from the bytes of a file to the uint8 image that a model sees, the same everywhere.

Validation, evaluation, prediction, serving and every bundle go through `PixelContract.apply`. So this file depends on
NumPy and Pillow alone, imports nothing else of Kiln, and is copied byte for byte into bundles. Its result is exact on
one version of Pillow and within one level between versions.

What is done with each kind of file is on one page, docs/pixels.md. A file that is damaged or hostile is a `PixelError`,
never grey pixels.
"""

from __future__ import annotations

import functools
import io
import math
import os
import struct
import threading
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO, ParamSpec, TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

MAX_PIXELS = 50_000_000
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # none of Pillow's other forty parsers is ever called
INTERPOLATIONS = {resampling.name.lower(): resampling for resampling in Image.Resampling}

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # how Pillow names the channel counts that it can hold
_READABLE = {"1", "L", "P", "PA", "LA", "La", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "I", "I;16", "I;16B", "F"}
_NPY = b"\x93NUMPY"
_MAX_TEXT_BYTES = 16 << 20  # what the text chunks of a PNG may unpack to
_MAX_SCANS = 100  # of a progressive JPEG; encoders write about ten
_MAX_RLE_PIXELS = 4_000_000  # Pillow unpacks a run-length BMP in Python, byte by byte
_MAX_ENLARGED = 16  # times the model's input; see PixelContract._middle

# How to turn an image of EXIF orientation 2 to 8 upright.
_TURNS = "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90"
_UPRIGHT = {orientation: Image.Transpose[turn] for orientation, turn in enumerate(_TURNS.split(), start=2)}

_MAGIC = {b"\xff\xd8\xff": "JPEG", b"\x89PNG": "PNG", b"RIFF": "WebP", b"BM": "BMP", b"GIF8": "GIF"}
_MAGIC |= {b"II*\0": "TIFF", b"MM\0*": "TIFF"}

_P = ParamSpec("_P")
_T = TypeVar("_T")
_quiet = threading.Lock()


class PixelError(ValueError):
    """A file or an array that cannot become an image, or a contract that cannot be kept.

    `reason` is `empty`, `not_an_image`, `truncated`, `too_many_pixels`, `unsupported`, `corrupt`, `unreadable` (the
    file system refused) or `contract`. The message holds no text of Pillow's; the cause is chained.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason

    def __str__(self) -> str:
        return self.args[1]


@dataclass(frozen=True, slots=True)
class Header:
    """What the head of a file says, before anything is decoded."""

    width: int  # of the upright image, as `decode` will return it
    height: int
    mode: str  # Pillow's name for what is stored ("RGB", "P", "I;16"), or an array's type and channels ("uint16x5")
    format: str  # "JPEG", "MPO", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM" or "NPY"
    frames: int  # GIF and TIFF do not say how many, so there 2 stands for several; only the first is used
    orientation: int  # of EXIF, 1 (upright) to 8


def _only_pixel_errors(work: Callable[_P, _T]) -> Callable[_P, _T]:
    """Let nothing but `PixelError` out of a function that calls Pillow's parsers.

    Where warnings are errors, a remark of Pillow's about odd metadata would reject a sound image. Then the work is done
    again with those remarks off; under a lock, because Python's warning filters belong to all threads.
    """

    @functools.wraps(work)
    def guarded(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            try:
                return work(*args, **kwargs)
            except Warning:
                with _quiet, warnings.catch_warnings():
                    warnings.filterwarnings("ignore", module=r"PIL\.")
                    return work(*args, **kwargs)
        except (PixelError, MemoryError):  # too little memory is no fault of the file
            raise
        except Exception as error:  # a damaged file raises any of a dozen types out of Pillow's parsers
            raise _explained(error) from error

    return guarded


def _explained(error: Exception) -> PixelError:
    if isinstance(error, OSError) and error.errno:  # of the file system; Pillow's own have no number
        return PixelError("unreadable", f"the file cannot be read: {error.strerror}")
    if isinstance(error, Image.DecompressionBombError):
        return PixelError("too_many_pixels", "more pixels than Pillow's own MAX_IMAGE_PIXELS lets it open")
    if isinstance(error, EOFError) or "truncated" in str(error):
        return PixelError("truncated", "the file ends before its image does; copy it again")
    return PixelError("corrupt", "the file is damaged: its image cannot be decoded")


def _check_size(height: int, width: int, max_pixels: int) -> None:
    if height < 1 or width < 1:
        raise PixelError("corrupt", f"an image of {width} x {height} pixels")
    if height * width > max_pixels:
        size = f"{width} x {height} is {height * width:,} pixels, more than max_pixels={max_pixels:,}"
        raise PixelError("too_many_pixels", f"{size}; if the file is meant to be so large, raise the limit")


def _check_header(image: Image.Image, max_pixels: int) -> None:
    """Refuse what must not be decoded."""
    _check_size(image.height, image.width, max_pixels)
    if image.mode not in _READABLE:
        raise PixelError("unsupported", f"pixels of the form {image.mode!r} are not read; save the image as RGB")
    run_length = image.format == "BMP" and image.info.get("compression") in (1, 2)
    if run_length and image.height * image.width > _MAX_RLE_PIXELS:
        raise PixelError("unsupported", f"a run-length BMP of more than {_MAX_RLE_PIXELS:,} pixels; save it as PNG")


def _check_png_text(file: BinaryIO) -> None:
    """Bound what the text chunks of a PNG unpack to, before Pillow unpacks them: 60 kB can hold 60 MB."""
    unpacked = 0
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind in (b"zTXt", b"iTXt"):
            unpacked += min(1032 * length, 1 << 20)  # the best ratio of deflate; Pillow's own limit for one chunk
        elif kind == b"tEXt":
            unpacked += length
        if unpacked > _MAX_TEXT_BYTES:
            raise PixelError("unsupported", f"a PNG with more than {_MAX_TEXT_BYTES >> 20} MiB of text in its metadata")
        file.seek(length + 4, io.SEEK_CUR)


def _unidentified(head: bytes) -> PixelError:
    """Say what a file is that Pillow does not open."""
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            return PixelError("corrupt", f"a {kind} file, but its header is cut short, damaged, or of a form not read")
    read = "JPEG, PNG, WebP, BMP, GIF, TIFF, PPM and .npy are read"
    if head[4:8] in (b"ftyp", b"jP  "):
        return PixelError("unsupported", f"HEIC, AVIF, JPEG 2000 or a video; {read}")
    return PixelError("not_an_image", f"not an image, whatever its name says: it starts with {head[:24]!r}; {read}")


def _open_image(file: BinaryIO, max_pixels: int) -> Image.Image:
    """Read the header with Pillow, and no further."""
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # whoever turned it on: a file padded with grey is a wrong image
    head = file.read(32)
    if not head:
        raise PixelError("empty", "the file is empty (0 bytes)")
    if head.startswith(b"\x89PNG"):
        _check_png_text(file)
    try:
        image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise _unidentified(head) from error
    _check_header(image, max_pixels)
    return image


def _orientation(image: Image.Image) -> int:
    """The EXIF (or XMP) orientation, 1 to 8; metadata that makes no sense counts as upright."""
    try:
        # Not image.getexif(): a PNG would decode its pixels to look for metadata behind them.
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
    except Warning:
        raise
    except Exception:  # noqa: BLE001 - broken metadata is no reason to refuse sound pixels
        return 1
    return value if value in _UPRIGHT else 1


def _npy_layout(file: BinaryIO, max_pixels: int) -> tuple[tuple[int, int, int], bool, np.dtype]:
    """Shape (H, W, C), Fortran order and type of a .npy file; leaves the file where the values start."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, fortran_order, dtype = readers[np.lib.format.read_magic(file)](file)
    if len(shape) not in (2, 3) or dtype.name not in ("uint8", "uint16", "bool", "float16", "float32", "float64"):
        expected = "uint8, uint16, bool or floats of shape (H, W) or (H, W, C)"
        raise PixelError("unsupported", f"an array of {dtype.name} and shape {shape}; expected {expected}")
    height, width, channels = shape if len(shape) == 3 else (*shape, 1)
    _check_size(height, width * min(channels, 1), max_pixels)
    return (height, width, channels), fortran_order, dtype


def _decode_npy(data: bytes, max_pixels: int) -> np.ndarray:
    """The values of a .npy file as (H, W, C) uint8; nothing is unpickled."""
    file = io.BytesIO(data)
    shape, fortran_order, dtype = _npy_layout(file, max_pixels)
    if len(data) - file.tell() < math.prod(shape) * dtype.itemsize:
        raise PixelError("truncated", f"the file ends before its {math.prod(shape):,} values do; copy it again")
    values = np.frombuffer(data, dtype, math.prod(shape), offset=file.tell())
    return _to_uint8(values.reshape(shape, order="F" if fortran_order else "C"))


def _to_uint8(values: np.ndarray) -> np.ndarray:
    """Scale numbers to 0..255; nothing is clipped.

    Wide integers are 16-bit samples and keep their high byte, which is what Pillow does to 16-bit colour.
    Floats lie in 0..1 or, if one of them is above 1, in 0..255.
    """
    if values.dtype == np.uint8:
        return values
    low, high = values.min(), values.max()
    is_float = values.dtype.kind == "f"
    if not (low >= 0 and high <= (255 if is_float else 65535)):  # a NaN fails both
        wanted = "0..1 or 0..255" if is_float else "0..65535"
        raise PixelError("unsupported", f"values from {low} to {high}, expected {wanted}; scale all files alike")
    if is_float or values.dtype == np.bool_:
        return np.rint(np.multiply(values, 255 if high <= 1 else 1, dtype=np.float64)).astype(np.uint8)
    return (values >> 8).astype(np.uint8)


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    """A loaded image as "L", "RGB" or "RGBA"; alpha is laid over white unless it is kept."""
    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if image.mode == "I;16":  # two things that Pillow leaves undone in TIFF
            tags = getattr(image, "tag_v2", {})
            values = values << (16 - tags.get(258, (16,))[0])  # BitsPerSample is 12
            values = 65535 - values if tags.get(262) == 0 else values  # white is zero
        image = Image.fromarray(_to_uint8(values))
    if image.has_transparency_data:
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        if mode == "RGBA":
            return image
        canvas = Image.new("RGB", image.size, "white")
        canvas.paste(image, mask=image)
        image = canvas
    return image if image.mode == mode else image.convert(mode)


def _as_array(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _checked_array(pixels: np.ndarray, channels: int) -> np.ndarray:
    """An array as (H, W, channels): grey and colour convert as in files, any other count must fit."""
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or not pixels.size:
        raise PixelError("unsupported", f"array of {pixels.dtype} and shape {pixels.shape}; expected uint8 (H, W, C)")
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    have = pixels.shape[2]
    if have == channels:
        return pixels
    if have in (1, 3) and channels in _MODES:
        return _as_array(Image.fromarray(pixels[..., 0] if have == 1 else pixels).convert(_MODES[channels]))
    raise PixelError("unsupported", f"{have} channels, but channels={channels}; only 1 (grey) and 3 (RGB) convert")


@_only_pixel_errors
def probe(data: bytes | str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> Header:
    """Read the header of a file, given by its bytes or its path; nothing is decoded.

    Raises: PixelError: no image that `decode` would start on.
    """
    with Path(data).open("rb") if isinstance(data, (str, os.PathLike)) else io.BytesIO(data) as file:
        if file.read(6) == _NPY:
            file.seek(0)
            (height, width, channels), _, dtype = _npy_layout(file, max_pixels)
            return Header(width, height, f"{dtype.name}x{channels}", "NPY", 1, 1)
        file.seek(0)
        image = _open_image(file, max_pixels)
        orientation = _orientation(image)
        # Pillow tells the size of a TIFF as it is upright, of all others as it is stored.
        width, height = image.size[::-1] if orientation >= 5 and image.format != "TIFF" else image.size
        counted = image.format not in ("GIF", "TIFF")
        frames = getattr(image, "n_frames", 1) if counted else 1 + getattr(image, "is_animated", False)
        return Header(width, height, image.mode, str(image.format), frames, orientation)


@_only_pixel_errors
def decode_image(
    data: bytes | Image.Image, *, channels: int = 3, max_pixels: int = MAX_PIXELS, at_least_px: int | None = None
) -> Image.Image | np.ndarray:
    """Decode a whole file into what `resize` takes, without a detour through NumPy.

    Args:
        data: the bytes of a file, or an image that Pillow opened or made, whose EXIF orientation counts too.
        channels: 1 (grey), 3 (RGB) or 4 (RGBA); any other number only for .npy files that hold as many.
        max_pixels: refuse a larger image before decoding it.
        at_least_px: let a JPEG be decoded at 1/2, 1/4 or 1/8 as long as its shorter side keeps so many pixels.
            Faster and slightly different, so for training only.
    Returns: a PIL image of mode "L", "RGB" or "RGBA"; for a .npy file a uint8 array (H, W, channels).
    Raises: PixelError: see `PixelError.reason`.
    """
    if isinstance(data, Image.Image):
        image = data
        _check_header(image, max_pixels)
    elif data[:6] == _NPY:
        return _checked_array(_decode_npy(data, max_pixels), channels)
    else:
        image = _open_image(io.BytesIO(data), max_pixels)
        if image.info.get("progressive") and data.count(b"\xff\xda") > _MAX_SCANS:
            raise PixelError("unsupported", f"a JPEG of more than {_MAX_SCANS} scans, which would take long to decode")
    if channels not in _MODES:
        raise PixelError("unsupported", f"channels={channels}: image files hold 1, 3 or 4; .npy files hold any number")
    orientation = _orientation(image)  # before load(), which turns a TIFF by itself
    if at_least_px:
        image.draft(None, (at_least_px, at_least_px))
    image.load()
    decoded = _to_mode(image, _MODES[channels])
    return decoded if orientation == 1 or image.format == "TIFF" else decoded.transpose(_UPRIGHT[orientation])


def decode(
    data: bytes, *, channels: int = 3, max_pixels: int = MAX_PIXELS, at_least_px: int | None = None
) -> np.ndarray:
    """Decode a whole file to pixels. Arguments and errors as for `decode_image`.

    Returns: (H, W, channels) uint8, upright; it may be read-only, being Pillow's own bytes.
    """
    image = decode_image(data, channels=channels, max_pixels=max_pixels, at_least_px=at_least_px)
    return _as_array(image) if isinstance(image, Image.Image) else image


def resize(
    image: Image.Image | np.ndarray,
    size: tuple[int, int],
    *,
    interpolation: str = "bicubic",
    box: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
    """Resize with antialiasing, each channel by itself (so alpha is a channel like any other).

    Args:
        image: uint8 (H, W) or (H, W, C) of any number of channels, or what `decode_image` returned.
        size: (height, width) of the result.
        interpolation: a key of `INTERPOLATIONS`.
        box: (left, top, right, bottom), the part to read, in pixels and fractions of them; all of it by default.
    Returns: (height, width, C) uint8; it may be read-only.
    """
    if isinstance(image, Image.Image):
        planes = image.split() if image.mode == "RGBA" else (image,)
    elif image.ndim == 2 or image.shape[2] == 3:
        planes = (Image.fromarray(image),)
    else:
        planes = [Image.fromarray(image[..., channel]) for channel in range(image.shape[2])]
    (height, width), resampling = size, INTERPOLATIONS[interpolation]
    resized = [_as_array(plane.resize((width, height), resampling, box=box)) for plane in planes]
    return resized[0] if len(resized) == 1 else np.concatenate(resized, axis=2)


def _centred(have: int, want: int) -> tuple[slice, slice]:
    """Which of `have` pixels to take, and where they go among `want`: the centre crop and padding of torchvision."""
    if have >= want:
        start = round((have - want) / 2)
        return slice(start, start + want), slice(0, want)
    start = (want - have) // 2
    return slice(0, have), slice(start, start + have)


def stack_padded(images: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Images of different sizes as one batch: black to the right of each and below it, up to the largest.

    Args:
        images: each (H, W, C) uint8, at least one.
    Returns: (B, H, W, C) uint8, and the sizes (B, 2) int64: height and width of each.
    """
    sizes = np.array([image.shape[:2] for image in images], np.int64)
    height, width = sizes.max(axis=0)
    batch = np.zeros((len(images), height, width, images[0].shape[2]), np.uint8)
    for place, image in zip(batch, images, strict=True):
        place[: image.shape[0], : image.shape[1]] = image
    return batch, sizes


@dataclass(frozen=True, slots=True)
class PixelContract:
    """What happens between a file and a model; it travels inside every model file and bundle."""

    height: int  # of the model's input, as is width
    width: int
    channels: int = 3  # 1 (grey), 3 (RGB), 4 (RGBA), or as many as the .npy files hold
    resize: str = "crop"  # crop: shorter side to size / crop_fraction, then the centre; pad: longer side; stretch; or
    # keep: the image's own size, its longer side reduced to the larger of height and width where it is longer
    interpolation: str = "bicubic"  # a key of INTERPOLATIONS
    crop_fraction: float = 1.0  # the share of the resized image that is kept, per side; timm's crop_pct
    fill: int = 128  # the grey level of the borders that pad adds
    max_pixels: int = MAX_PIXELS  # larger files are refused before they are decoded
    version: int = 1  # of these rules; a contract of another version is refused

    def __post_init__(self) -> None:
        counts = ("height", "width", "channels", "max_pixels")
        allowed = {
            name: (isinstance(getattr(self, name), int) and getattr(self, name) >= 1, "a whole number from 1")
            for name in counts
        } | {
            "resize": (self.resize in ("crop", "pad", "stretch", "keep"), "crop, pad, stretch or keep"),
            "interpolation": (self.interpolation in INTERPOLATIONS, ", ".join(INTERPOLATIONS)),
            "crop_fraction": (0.1 <= self.crop_fraction <= 1, "0.1 to 1"),
            "fill": (self.fill in range(256), "a whole number from 0 to 255"),
            "version": (self.version == 1, "1; a newer Kiln wrote this contract, so update this one"),
        }
        for name, (holds, expected) in allowed.items():
            if not holds:
                raise PixelError("contract", f"pixel contract: {name}={getattr(self, name)!r}; expected {expected}")

    def apply(self, data: bytes | np.ndarray | Image.Image) -> np.ndarray:
        """Make the model's input of one image.

        Args:
            data: the bytes of a file; or uint8 (H, W, C), upright; or an image of Pillow's.
        Returns: (height, width, channels) uint8, writable; with `keep` of the image's own size.
        Raises: PixelError: see `PixelError.reason`.
        """
        if isinstance(data, np.ndarray):
            image, (height, width) = _checked_array(data, self.channels), data.shape[:2]
        else:
            image = decode_image(data, channels=self.channels, max_pixels=self.max_pixels)
            height, width = image.shape[:2] if isinstance(image, np.ndarray) else image.size[::-1]
        if self.resize == "keep":
            size = self.kept_size(height, width)
            return np.array(resize(image, size, interpolation=self.interpolation))
        new_height, new_width = self._resized(height, width)
        if self.resize == "crop" and new_height * new_width > _MAX_ENLARGED * self.height * self.width:
            box, size = self._middle(height, width), (self.height, self.width)
            return np.array(resize(image, size, interpolation=self.interpolation, box=box))
        pixels = resize(image, (new_height, new_width), interpolation=self.interpolation)
        (rows, to_rows), (columns, to_columns) = _centred(new_height, self.height), _centred(new_width, self.width)
        result = np.full((self.height, self.width, self.channels), self.fill, np.uint8)
        result[to_rows, to_columns] = pixels[rows, columns]
        return result

    def kept_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that `keep` gives an image of this size."""
        ratio = max(1.0, max(height, width) / max(self.height, self.width))
        return max(1, round(height / ratio)), max(1, round(width / ratio))

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """The size of the whole image before its centre is taken; the roundings are those of timm and torchvision."""
        rows, columns = math.floor(self.height / self.crop_fraction), math.floor(self.width / self.crop_fraction)
        if self.resize == "stretch":
            return rows, columns
        if self.resize == "crop" and rows == columns:
            shorter = min(height, width)
            return int(rows * height / shorter), int(columns * width / shorter)
        ratio = (min if self.resize == "crop" else max)(height / rows, width / columns)
        return max(1, round(height / ratio)), max(1, round(width / ratio))

    def _middle(self, height: int, width: int) -> tuple[float, float, float, float]:
        """The part that a crop keeps. Resized whole, a line of 1 x 65,500 pixels would become gigabytes."""
        scale = self.crop_fraction * min(height / self.height, width / self.width)
        rows, columns = min(height, self.height * scale), min(width, self.width * scale)
        left, top = (width - columns) / 2, (height - rows) / 2
        return left, top, left + columns, top + rows

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PixelContract:
        """The contract that `to_dict` described.

        Raises: PixelError: another version, a missing or unknown field, or a value that cannot be.
        """
        if values.get("version") != 1:
            raise PixelError("contract", f"pixel contract of version {values.get('version')!r}; this Kiln knows 1")
        if odd := {field.name for field in fields(cls)} ^ values.keys():
            raise PixelError("contract", f"pixel contract with unknown or missing fields: {', '.join(sorted(odd))}")
        return cls(**values)
