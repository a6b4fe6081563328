"""Decoding for training: the pixels of Pillow's decoder, and its resizing to within one level."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kiln import pixels
from kiln.data import decode
from kiln.data.decode import crop_resize, open_jpeg

MANY = 10**8


def photo(height=123, width=97, *, seed=0) -> Image.Image:
    """Smooth colours with edges: noise would hide what a resize does."""
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / (5 + k + seed)) + np.cos(columns / (7 - k)) for k in range(3)]
    image = np.stack(waves, -1) * 55 + 128
    image[height // 3 : height // 2, width // 4 : width // 2] = (250, 10, 90)
    return Image.fromarray(image.clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **{"quality": 90, **options})
    return buffer.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x112] = orientation
    return jpeg(photo(), exif=exif)


VARIANTS = {
    "plain": jpeg(photo()),
    "odd size": jpeg(photo(17, 31)),
    "444": jpeg(photo(), subsampling=0),
    "422": jpeg(photo(), subsampling=1),
    "grey": jpeg(photo().convert("L")),
    "progressive": jpeg(photo(), progressive=True),
    "restarts": jpeg(photo(), restart_marker_blocks=3),
    "cmyk": jpeg(photo().convert("CMYK")),
    **{f"orientation {number}": turned(number) for number in range(1, 9)},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_jpeg_decodes_to_the_pixels_of_pillow(name):
    data = VARIANTS[name]
    expected = pixels.decode(data)
    assert np.array_equal(decode.decode(data, channels=3, max_pixels=MANY), expected)
    encoded = open_jpeg(data, max_pixels=MANY)
    assert (encoded is None) == (name == "cmyk")
    if encoded is not None:
        assert (encoded.height, encoded.width) == expected.shape[:2]
        assert np.array_equal(encoded.decode(), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_decoder_may_reduce_but_never_below_what_is_needed(orientation):
    encoded = open_jpeg(turned(orientation), max_pixels=MANY)
    whole = encoded.decode()
    reduced = encoded.decode(at_least=(encoded.height / 3, encoded.width / 3))
    assert encoded.height / 3 <= reduced.shape[0] <= encoded.height / 2 + 1
    assert encoded.width / 3 <= reduced.shape[1] <= encoded.width / 2 + 1
    expected = pixels.resize(np.ascontiguousarray(whole), reduced.shape[:2])
    others = [expected[::-1], expected[:, ::-1], expected[::-1, ::-1]]
    away, *far = (np.abs(image.astype(int) - reduced).mean() for image in (expected, *others))
    assert away < 10
    assert away < min(far) / 3  # the same way up
    slightly = encoded.decode(at_least=(encoded.height * 0.6, encoded.width * 0.6))
    assert slightly.shape == whole.shape


def test_what_pillow_must_judge_is_left_to_pillow():
    assert open_jpeg(VARIANTS["plain"], max_pixels=100) is None
    assert open_jpeg(b"\xff\xd8\xff nothing", max_pixels=MANY) is None
    assert open_jpeg(b"\x89PNG", max_pixels=MANY) is None
    scans = VARIANTS["progressive"] + b"\xff\xda" * 200
    assert open_jpeg(scans, max_pixels=MANY) is None
    assert open_jpeg(VARIANTS["plain"][:40], max_pixels=MANY) is None


def test_metadata_is_found_wherever_it_stands():
    """A segment before it may hold any bytes, those of a scan too."""
    data = turned(6)
    misleading = b"\xff\xe4\x00\x08" + b"\xff\xda\xff\xd9\x00\x00"
    assert open_jpeg(data[:2] + misleading + data[2:], max_pixels=MANY).orientation == 6
    filled = data[:2] + b"\xff\xff\xff" + data[2:]
    assert open_jpeg(filled, max_pixels=MANY).orientation == 6


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9, 0.99])
def test_a_truncated_file_is_the_same_error_as_in_validation(keep):
    data = VARIANTS["plain"]
    data = data[: int(len(data) * keep)]
    with pytest.raises(pixels.PixelError) as expected:
        pixels.decode(data)
    with pytest.raises(pixels.PixelError) as found:
        decode.decode(data, channels=3, max_pixels=MANY)
    assert (found.value.reason, str(found.value)) == (expected.value.reason, str(expected.value))


@settings(max_examples=150, deadline=None)
@given(position=st.floats(0.02, 0.98), value=st.integers(0, 255))
def test_a_damaged_file_is_good_or_bad_as_pillow_says(position, value):
    data = bytearray(VARIANTS["plain"])
    data[int(position * len(data))] = value
    data = bytes(data)

    def seen(decoded):
        try:
            return decoded().tobytes()
        except pixels.PixelError as error:
            return error.reason

    assert seen(lambda: decode.decode(data, channels=3, max_pixels=MANY)) == seen(lambda: pixels.decode(data))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos", "nearest"])
@pytest.mark.parametrize("channels", [1, 3, 4, 5])
@pytest.mark.parametrize("size", [(64, 48), (150, 200), (1, 1)])
def test_resizing_is_pillows_to_within_one_level(interpolation, channels, size):
    image = np.random.default_rng(0).integers(0, 256, (100, 130, channels), np.uint8)
    out = np.empty((*size, channels), np.uint8)
    crop_resize(image, (10, 5, 110, 95), out, interpolation=interpolation)
    expected = pixels.resize(np.ascontiguousarray(image[5:95, 10:110]), size, interpolation=interpolation)
    assert np.abs(out.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("view", ["read-only", "bytes", "reversed", "turned"])
def test_any_view_can_be_read_and_none_is_written(view):
    image = np.asarray(photo()).copy()
    seen = {"reversed": image[::-1], "turned": image.transpose(1, 0, 2)[:, ::-1], "read-only": image[:]}.get(view)
    if view == "bytes":
        seen = np.frombuffer(image.tobytes(), np.uint8).reshape(image.shape)
    if view == "read-only":
        seen.flags.writeable = False
    before = seen.copy()
    out = np.empty((40, 30, 3), np.uint8)
    crop_resize(seen, (3, 4, 90, 90), out, interpolation="bilinear")
    expected = pixels.resize(np.ascontiguousarray(before[4:90, 3:90]), (40, 30), interpolation="bilinear")
    assert np.abs(out.astype(int) - expected).max() <= 1
    assert np.array_equal(seen, before)
    assert seen.flags.writeable == (view in ("reversed", "turned"))


def test_a_part_of_the_right_size_is_copied():
    image = np.asarray(photo())
    out = np.empty((20, 30, 3), np.uint8)
    crop_resize(image, (5, 6, 35, 26), out, interpolation="bicubic")
    assert np.array_equal(out, image[6:26, 5:35])
