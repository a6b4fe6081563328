"""A zoo of odd image files, made on the spot: every kind that people really have, and the hostile ones.

`specimens()` are files with what must become of them; `bombs()` are small files that would cost gigabytes or minutes.
"""

from __future__ import annotations

import functools
import io
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

HEIGHT, WIDTH = 24, 36


@dataclass(frozen=True)
class Specimen:
    """One file.

    Attributes:
        name: file name; the ending may lie on purpose.
        data: the bytes.
        reasons: the `PixelError.reason`s that are right; empty when the file must decode.
        pixels: what `decode(data)` must return, (H, W, 3).
        tolerance: the largest difference from `pixels` on any sample; 0 for lossless files.
    """

    name: str
    data: bytes
    reasons: tuple[str, ...] = ()
    pixels: np.ndarray | None = None
    tolerance: int = 0


def colour(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A smooth image that no flip or rotation maps onto itself. Returns: (H, W, 3) uint8."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [255 * x / max(1, width - 1), 255 * y / max(1, height - 1), 40 + 60 * x / width + 120 * y / height]
    return np.stack(planes, axis=-1).round().astype(np.uint8)


def grey() -> np.ndarray:
    """A horizontal gradient, (H, W) uint8."""
    return colour()[..., 0]


def encode(image: Image.Image | np.ndarray, kind: str, **options: Any) -> bytes:
    """The bytes of a file of `kind`, written by Pillow."""
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def npy(array: np.ndarray, **options: Any) -> bytes:
    """The bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    rows: bytes, width: int, height: int, *, bits: int, colour_type: int, before: bytes = b"", after: bytes = b""
) -> bytes:
    """A PNG written by hand; `rows` are unfiltered scan lines, or empty for an image that is all zero."""
    stride = (width * bits * {0: 1, 2: 3, 3: 1, 6: 4}[colour_type] + 7) // 8
    packer = zlib.compressobj(9)
    lines = (b"\0" + (rows[y * stride : (y + 1) * stride] or bytes(stride)) for y in range(height))
    packed = b"".join(packer.compress(line) for line in lines) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + before + chunk(b"IDAT", packed) + after + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tiff(tags: dict[int, tuple[int, int]], strip: bytes, *, next_ifd: int = 0) -> bytes:
    """A little-endian TIFF of one uncompressed strip, written by hand. `tags`: number -> (type, value)."""
    size = 8 + 2 + 12 * (len(tags) + 2) + 4
    tags = {**tags, 273: (4, size), 279: (4, len(strip))}
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, (kind, value) in sorted(tags.items()))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + struct.pack("<I", next_ifd) + strip


def deep_tiff(bits: int, photometric: int, strip: bytes) -> bytes:
    """A grey TIFF of `bits` per sample."""
    tags = {
        256: (3, WIDTH),
        257: (3, HEIGHT),
        258: (3, bits),
        259: (3, 1),
        262: (3, photometric),
        277: (3, 1),
        278: (3, HEIGHT),
    }
    return tiff(tags, strip)


def oriented(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """How a camera stores an upright image under an EXIF orientation: the inverse of what a reader does."""
    store = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.swapaxes(0, 1),
        6: np.rot90,
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: lambda a: np.rot90(a, 3),
    }
    return np.ascontiguousarray(store[orientation](pixels))


def exif(orientation: int) -> Image.Exif:
    """EXIF data that holds only an orientation."""
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def over_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """The composite, computed in float. alpha: (H, W) uint8."""
    share = alpha[..., None] / 255
    return np.rint(pixels * share + 255 * (1 - share)).astype(np.uint8)


def as_rgb(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=2)


def ycck_jpeg() -> bytes:
    """A JPEG in YCCK, as Photoshop writes: inks as YCbCr, all samples inverted, Adobe marker with transform 2."""
    inks = Image.fromarray(255 - colour()).convert("YCbCr")
    planes = [*(band.point(lambda v: 255 - v) for band in inks.split()), Image.new("L", inks.size, 0)]
    data = bytearray(encode(Image.merge("CMYK", planes), "JPEG", quality=100, subsampling=0))
    data[data.index(b"Adobe") + 11] = 2
    return bytes(data)


def _cut_short() -> list[Specimen]:
    # A photograph is mostly entropy-coded data; noise makes the small stand-in alike.
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    broken = ("truncated", "corrupt")
    jpeg = encode(noise, "JPEG", quality=90)
    found = [
        Specimen(f"jpeg-cut-{at}.jpg", jpeg[: max(3, len(jpeg) * at // 100)], broken)
        for at in (0, 1, 3, 5, 10, 25, 50, 75, 90, 99)
    ]
    found.append(Specimen("jpeg-progressive-cut.jpg", encode(noise, "JPEG", progressive=True)[:-900], broken))
    for kind in ("PNG", "BMP", "TIFF", "PPM", "GIF", "WEBP"):
        data = encode(noise, kind)
        found.append(Specimen(f"{kind.lower()}-cut.{kind.lower()}", data[: len(data) * 3 // 4], broken))
    found.append(
        Specimen("tiff-lzw-cut.tif", (d := encode(noise, "TIFF", compression="tiff_lzw"))[: len(d) // 2], broken)
    )
    found.append(Specimen("array-cut.npy", npy(noise)[:-1], ("truncated",)))
    return found


def _not_images() -> list[Specimen]:
    return [
        Specimen("empty.jpg", b"", ("empty",)),
        Specimen("page.jpg", b"<!DOCTYPE html><html><body>404 Not Found</body></html>", ("not_an_image",)),
        Specimen("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", ("not_an_image",)),
        Specimen("notes.png", b"just some text in a file with the wrong name", ("not_an_image",)),
        Specimen(
            "pointer.jpg", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", ("not_an_image",)
        ),
        Specimen("zeros.jpg", bytes(4096), ("not_an_image",)),
        Specimen("phone.heic", struct.pack(">I", 24) + b"ftypheic" + bytes(200), ("unsupported",)),
        Specimen("pickle.npy", npy(np.array([[{}]], dtype=object), allow_pickle=True), ("unsupported",)),
        Specimen("vector.npy", npy(np.zeros(9, np.uint8)), ("unsupported",)),
        Specimen("int64.npy", npy(np.zeros((9, 9), np.int64)), ("unsupported",)),
        Specimen("five.npy", npy(np.zeros((9, 9, 5), np.uint8)), ("unsupported",)),
        Specimen("hole.npy", npy(np.zeros((9, 0, 3), np.uint8)), ("corrupt",)),
        Specimen("lab.tif", encode(Image.new("LAB", (9, 9)), "TIFF"), ("unsupported",)),
        Specimen("nan.tif", encode(np.full((9, 9), np.nan, np.float32), "TIFF"), ("unsupported",)),
        Specimen("float-wide.tif", encode(np.full((9, 9), 4095, np.float32), "TIFF"), ("unsupported",)),
        Specimen("negative.tif", encode(np.full((9, 9), -1, np.int32), "TIFF"), ("unsupported",)),
    ]


def _plain() -> list[Specimen]:
    pixels, photo = colour(), Image.fromarray(colour())
    line = np.zeros((65500, 1, 3), np.uint8)
    fine: dict[str, Any] = {"quality": 98, "subsampling": 0}
    return [
        Specimen("rgb.png", encode(pixels, "PNG"), pixels=pixels),
        Specimen("png-named.jpg", encode(pixels, "PNG"), pixels=pixels),
        Specimen("rgb.bmp", encode(pixels, "BMP"), pixels=pixels),
        Specimen("rgb.ppm", encode(pixels, "PPM"), pixels=pixels),
        Specimen("raw.tif", encode(pixels, "TIFF"), pixels=pixels),
        Specimen("lzw.tif", encode(pixels, "TIFF", compression="tiff_lzw"), pixels=pixels),
        Specimen("lossless.webp", encode(pixels, "WEBP", lossless=True), pixels=pixels),
        Specimen("lossy.webp", encode(pixels, "WEBP", quality=95), pixels=pixels, tolerance=16),
        Specimen("baseline.jpg", encode(pixels, "JPEG", **fine), pixels=pixels, tolerance=8),
        Specimen("progressive.jpg", encode(pixels, "JPEG", progressive=True, **fine), pixels=pixels, tolerance=8),
        Specimen("grey.jpg", encode(grey(), "JPEG", quality=98), pixels=as_rgb(grey()), tolerance=6),
        Specimen("grey.png", encode(grey(), "PNG"), pixels=as_rgb(grey())),
        Specimen("cmyk.jpg", encode(photo.convert("CMYK"), "JPEG", quality=98), pixels=pixels, tolerance=10),
        Specimen("ycck.jpg", ycck_jpeg(), pixels=pixels, tolerance=10),
        Specimen("cmyk.tif", encode(photo.convert("CMYK"), "TIFF"), pixels=pixels),
        Specimen("one.png", encode(pixels[:1, :1], "PNG"), pixels=pixels[:1, :1]),
        Specimen("line.png", encode(line, "PNG"), pixels=line),
        Specimen("icc.png", encode(photo, "PNG", icc_profile=_profile()), pixels=pixels),
        Specimen("icc.jpg", encode(photo, "JPEG", **fine, icc_profile=_profile()), pixels=pixels, tolerance=8),
        Specimen("text.png", encode(photo, "PNG", pnginfo=_text(3_000_000)), pixels=pixels),
        Specimen("array.npy", npy(pixels), pixels=pixels),
        Specimen("array-fortran.npy", npy(np.asfortranarray(pixels)), pixels=pixels),
        Specimen("array-grey.npy", npy(grey()), pixels=as_rgb(grey())),
    ]


def _profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


def _text(length: int) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * length)
    return info


def _deep() -> list[Specimen]:
    """More than 8 bits: each shows the same gradient, the 8-bit one times 257 or over 255."""
    levels, target = grey(), as_rgb(grey())
    wide = levels.astype(np.uint16) * 257
    twelve = wide.ravel().astype(np.uint32) >> 4
    packed = ((twelve[0::2] << 12) | twelve[1::2]).astype(">u4").view(np.uint8).reshape(-1, 4)[:, 1:].tobytes()
    rgb16 = (colour().astype(">u2") * 257).astype(">u2").tobytes()
    return [
        Specimen("16.png", encode(wide, "PNG"), pixels=target),
        Specimen("16.tif", encode(wide, "TIFF"), pixels=target),
        Specimen("16-big-endian.tif", encode(Image.fromarray(wide.astype(">u2")), "TIFF"), pixels=target),
        Specimen("16-white-is-zero.tif", deep_tiff(16, 0, (65535 - wide).astype("<u2").tobytes()), pixels=target),
        Specimen("12.tif", deep_tiff(12, 1, packed), pixels=target),
        Specimen("16-rgb.png", png(rgb16, WIDTH, HEIGHT, bits=16, colour_type=2), pixels=colour()),
        Specimen("16.pgm", b"P5 %d %d 65535\n" % (WIDTH, HEIGHT) + wide.astype(">u2").tobytes(), pixels=target),
        Specimen("32-integer.tif", encode(wide.astype(np.int32), "TIFF"), pixels=target),
        Specimen("float-unit.tif", encode((levels / np.float32(255)).astype(np.float32), "TIFF"), pixels=target),
        Specimen("float-255.tif", encode(levels.astype(np.float32), "TIFF"), pixels=target),
        Specimen("16.npy", npy(wide), pixels=target),
        Specimen("16-big-endian.npy", npy(wide.astype(">u2")), pixels=target),
        Specimen("float.npy", npy(levels / 255), pixels=target),
        Specimen("bool.npy", npy(levels > 127), pixels=as_rgb((levels > 127).astype(np.uint8) * 255)),
    ]


def _palettes_and_alpha() -> list[Specimen]:
    pixels, bilevel = colour(), grey() > 127
    alpha = np.linspace(0, 255, HEIGHT).round().astype(np.uint8)[:, None].repeat(WIDTH, axis=1)
    rgba = Image.fromarray(np.dstack([pixels, alpha]))
    grey_alpha = Image.merge("LA", (Image.fromarray(grey()), Image.fromarray(alpha)))
    few = Image.fromarray(pixels).quantize(16)
    few_rgb, index = np.asarray(few.convert("RGB")), np.asarray(few)
    keyed = np.where(index[..., None] == 3, 255, few_rgb).astype(np.uint8)
    fading = bytes(range(0, 256, 17))  # one alpha per palette entry
    faded = over_white(few_rgb, np.frombuffer(fading, np.uint8)[index])
    white_key = np.where((pixels == pixels[5, 5]).all(axis=2)[..., None], 255, pixels).astype(np.uint8)
    hidden = Image.fromarray(np.dstack([pixels, np.zeros_like(alpha)]))
    return [
        Specimen("palette.png", encode(few, "PNG"), pixels=few_rgb),
        Specimen("palette.bmp", encode(few, "BMP"), pixels=few_rgb),
        Specimen("palette-key.png", encode(few, "PNG", transparency=3), pixels=keyed),
        Specimen("palette-alpha.png", encode(few, "PNG", transparency=fading), pixels=faded, tolerance=1),
        Specimen("palette-alpha.tif", encode(few.convert("PA"), "TIFF"), pixels=few_rgb),
        Specimen("key.gif", encode(few, "GIF", transparency=3), pixels=keyed),
        Specimen("rgb-key.png", encode(pixels, "PNG", transparency=tuple(map(int, pixels[5, 5]))), pixels=white_key),
        Specimen(
            "grey-key.png", encode(grey(), "PNG", transparency=0), pixels=as_rgb(np.where(grey() == 0, 255, grey()))
        ),
        Specimen("rgba.png", encode(rgba, "PNG"), pixels=over_white(pixels, alpha), tolerance=1),
        Specimen(
            "rgba.webp", encode(rgba, "WEBP", lossless=True, exact=True), pixels=over_white(pixels, alpha), tolerance=1
        ),
        Specimen("rgba.tif", encode(rgba, "TIFF"), pixels=over_white(pixels, alpha), tolerance=1),
        Specimen("hidden.png", encode(hidden, "PNG"), pixels=np.full_like(pixels, 255)),
        Specimen("grey-alpha.png", encode(grey_alpha, "PNG"), pixels=over_white(as_rgb(grey()), alpha), tolerance=1),
        Specimen("bilevel.png", encode(Image.fromarray(bilevel), "PNG"), pixels=as_rgb(bilevel * np.uint8(255))),
        Specimen(
            "bilevel.tif",
            encode(Image.fromarray(bilevel), "TIFF", compression="group4"),
            pixels=as_rgb(bilevel * np.uint8(255)),
        ),
    ]


def _turned() -> list[Specimen]:
    pixels = colour()
    found = [
        Specimen(f"exif-{turn}.png", encode(oriented(pixels, turn), "PNG", exif=exif(turn)), pixels=pixels)
        for turn in range(1, 9)
    ]
    found += [
        Specimen(
            f"exif-{turn}.jpg",
            encode(oriented(pixels, turn), "JPEG", quality=98, subsampling=0, exif=exif(turn)),
            pixels=pixels,
            tolerance=8,
        )
        for turn in range(1, 9)
    ]
    for turn in (3, 6):
        stored = oriented(pixels, turn)
        found.append(Specimen(f"exif-{turn}.tif", encode(stored, "TIFF", tiffinfo={0x0112: turn}), pixels=pixels))
        found.append(
            Specimen(
                f"exif-{turn}-lzw.tif",
                encode(stored, "TIFF", tiffinfo={0x0112: turn}, compression="tiff_lzw"),
                pixels=pixels,
            )
        )
        found.append(
            Specimen(f"exif-{turn}.webp", encode(stored, "WEBP", lossless=True, exif=exif(turn)), pixels=pixels)
        )
    nonsense = encode(pixels, "PNG", exif=exif(99))
    garbage = encode(pixels, "PNG", exif=b"Exif\0\0not a TIFF header at all")
    return [
        *found,
        Specimen("exif-99.png", nonsense, pixels=pixels),
        Specimen("exif-garbage.png", garbage, pixels=pixels),
    ]


def _several() -> list[Specimen]:
    pixels = colour()
    first, second = Image.fromarray(pixels), Image.fromarray(255 - pixels)
    few, other = first.quantize(16), second.quantize(16)
    more: dict[str, Any] = {"save_all": True, "append_images": [second]}
    return [
        Specimen(
            "moving.gif",
            encode(few, "GIF", save_all=True, append_images=[other]),
            pixels=np.asarray(few.convert("RGB")),
        ),
        Specimen("moving.png", encode(first, "PNG", **more), pixels=pixels),
        Specimen("moving.webp", encode(first, "WEBP", lossless=True, **more), pixels=pixels),
        Specimen("pages.tif", encode(first, "TIFF", **more), pixels=pixels),
        Specimen("stereo.mpo", encode(first, "MPO", quality=98, subsampling=0, **more), pixels=pixels, tolerance=8),
    ]


@functools.cache
def specimens() -> tuple[Specimen, ...]:
    """All files of the zoo."""
    rooms = (_cut_short, _not_images, _plain, _deep, _palettes_and_alpha, _turned, _several)
    return tuple(specimen for room in rooms for specimen in room())


@functools.cache
def bombs() -> tuple[Specimen, ...]:
    """Files that must be refused from their header, in no time and no memory."""
    inflating = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(1_000_000), 9))
    jpeg = bytearray(encode(colour(), "JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", 65500, 65500)
    canvas = struct.pack("<I", 16382)[:3]
    webp = b"VP8X" + struct.pack("<I", 10) + bytes(4) + canvas + canvas
    waves = encode(colour(512, 512), "JPEG", progressive=True)
    scan = waves[waves.rindex(b"\xff\xda") : -2]
    links = 20_000  # a chain of directories that hold nothing; the last leads back to the first
    ring = b"".join(struct.pack("<HI", 0, 8 + 6 * ((link + 1) % links)) for link in range(links))
    big = ("too_many_pixels",)
    return (
        Specimen("13300-bilevel.png", png(b"", 13300, 13300, bits=1, colour_type=0), big),
        Specimen("9000-bilevel.png", png(b"", 9000, 9000, bits=1, colour_type=0), big),
        Specimen("claims-65500.jpg", bytes(jpeg), big),
        Specimen("claims-16383.webp", b"RIFF" + struct.pack("<I", len(webp) + 4) + b"WEBP" + webp, big),
        Specimen("claims-65535.gif", b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x08\0;", big),
        Specimen("claims.npy", npy(np.zeros((1, 1), np.uint8)).replace(b"(1, 1), }      ", b"(99999, 99999)}"), big),
        Specimen("text-packed.png", png(b"", 8, 8, bits=8, colour_type=0, before=inflating * 60), ("unsupported",)),
        Specimen("text-behind.png", png(b"", 8, 8, bits=8, colour_type=0, after=inflating * 60), ("unsupported",)),
        Specimen("scans.jpg", waves[:-2] + scan * 200 + waves[-2:], ("unsupported",)),
        Specimen("run-length.bmp", run_length_bmp(7000, 7000), ("unsupported",)),
        Specimen("ring.tif", b"II*\0" + struct.pack("<I", 8) + ring, ("corrupt",)),
    )


def run_length_bmp(width: int, height: int) -> bytes:
    """A BMP of nothing but ends of lines."""
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, 0, 0, 0, 256, 0)
    body = header + bytes(range(256)) * 4 + b"\x01\0\0\0" * height
    return b"BM" + struct.pack("<IHHI", len(body) + 14, 0, 0, 14 + 40 + 1024) + body
