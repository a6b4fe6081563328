from __future__ import annotations

import ast
import hashlib
import io
import json
import pickle
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile
from tests.zoo import colour, encode, exif, grey, npy, oriented, png
from timm.data.transforms_factory import transforms_imagenet_eval
from torchvision.transforms import v2 as torchvision_transforms

from kiln import pixels
from kiln.pixels import PixelContract, PixelError, decode, decode_image, probe, resize

SHAPES = [(375, 500), (500, 375), (224, 224), (97, 300), (31, 17), (640, 641), (256, 256)]


def textured(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Smooth shapes under noise, so that neither resampling nor rounding can hide."""
    noise = np.random.default_rng(height * 1000 + width).integers(-60, 60, (height, width, channels))
    base = np.resize(colour(height, width), (height, width, channels))
    return np.clip(base + noise, 0, 255).astype(np.uint8)


# --- the file itself ---------------------------------------------------------------------------------------------


def test_the_file_depends_on_numpy_pillow_and_the_standard_library_only():
    tree = ast.parse(Path(pixels.__file__).read_text("utf-8"))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(str(node.module).split(".")[0])
    assert {"numpy", "PIL"} <= imported
    assert imported - {"numpy", "PIL", "__future__"} <= set(sys.stdlib_module_names)


def test_the_code_on_the_page_about_pixels_runs():
    page = Path(__file__).parents[2] / "docs" / "pixels.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    assert len(blocks) >= 4
    exec(compile("\n".join(blocks), str(page), "exec"), {})


# --- probe -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", range(1, 9))
def test_probe_tells_the_upright_size_without_decoding(turn, tmp_path, monkeypatch):
    stored = oriented(colour(20, 30), turn)
    for kind, options in (("PNG", {"exif": exif(turn)}), ("TIFF", {"tiffinfo": {0x0112: turn}})):
        data = encode(stored, kind, **options)
        path = tmp_path / "image"
        path.write_bytes(data)
        with monkeypatch.context() as patch:
            patch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("the image was decoded"))
            headers = {probe(data), probe(path), probe(str(path))}
        assert headers == {pixels.Header(30, 20, "RGB", kind, 1, turn)}


@pytest.mark.parametrize(("kind", "frames"), [("PNG", 3), ("WEBP", 3), ("MPO", 3), ("GIF", 2), ("TIFF", 2)])
def test_probe_counts_frames_as_far_as_the_header_tells(kind, frames):
    first, *more = (Image.fromarray(pixels) for pixels in (colour(), 255 - colour(), colour() // 2))
    assert probe(encode(first, kind, save_all=True, append_images=more)).frames == frames
    assert probe(encode(colour(), kind)).frames == 1


def test_probe_of_arrays_and_deep_images_names_what_is_stored():
    assert probe(npy(np.zeros((4, 6, 5), np.uint16))) == pixels.Header(6, 4, "uint16x5", "NPY", 1, 1)
    assert probe(encode(grey().astype(np.uint16), "PNG")).mode == "I;16"
    assert probe(encode(Image.fromarray(colour()).convert("CMYK"), "JPEG")).mode == "CMYK"


def test_probe_of_a_path_that_cannot_be_opened(tmp_path):
    with pytest.raises(PixelError, match="cannot be read: No such file") as caught:
        probe(tmp_path / "missing.jpg")
    assert caught.value.reason == "unreadable"
    with pytest.raises(PixelError, match="cannot be read: Is a directory"):
        probe(tmp_path)


def test_the_pixel_limit_counts_pixels_and_names_both_numbers():
    data = encode(colour(100, 100), "PNG")
    assert decode(data, max_pixels=10_000).shape == (100, 100, 3)
    for read in (probe, decode):
        with pytest.raises(PixelError, match=r"100 x 100 is 10,000 pixels, more than max_pixels=9,999") as caught:
            read(data, max_pixels=9_999)
        assert caught.value.reason == "too_many_pixels"


# --- decode ------------------------------------------------------------------------------------------------------


def test_a_global_wish_for_truncated_images_is_not_followed(monkeypatch):
    data = encode(textured(64, 64), "JPEG")
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(PixelError, match="ends before its image does") as caught:
        decode(data[: len(data) // 2])
    assert caught.value.reason == "truncated"


def test_warnings_of_pillow_neither_reject_an_image_nor_change_the_filters():
    pages = encode(colour(), "TIFF", tiffinfo={305: "x" * 100})
    at = pages.index(b"x" * 100)
    entry = pages.index((305).to_bytes(2, "little") + b"\x02\0")
    damaged = pages[: entry + 8] + (at + 10**6).to_bytes(4, "little") + pages[entry + 12 :]  # a value beyond the end
    with pytest.warns(UserWarning, match="Truncated File Read"):
        Image.open(io.BytesIO(damaged)).load()
    before = list(warnings.filters)
    assert np.array_equal(decode(damaged), colour())  # the filters of this test run turn warnings into errors
    assert warnings.filters == before


def test_messages_hold_no_text_and_no_address_of_pillow():
    for data in (b"x" * 100, encode(textured(64, 64), "PNG")[:5000], encode(colour(), "JPEG")[:150]):
        with pytest.raises(PixelError) as caught:
            decode(data)
        assert "0x" not in str(caught.value)
        assert "BytesIO" not in str(caught.value)
        assert str(caught.value.__cause__) not in str(caught.value)


def test_errors_survive_the_way_between_processes():
    error = pickle.loads(pickle.dumps(PixelError("empty", "the file is empty")))
    assert (error.reason, str(error), isinstance(error, ValueError)) == ("empty", "the file is empty", True)


def test_channels_one_three_and_four():
    rgb = colour()
    assert decode(encode(grey(), "PNG"), channels=1).shape == (*grey().shape, 1)
    assert np.array_equal(decode(encode(grey(), "PNG"), channels=1)[..., 0], grey())
    luma = np.asarray(Image.fromarray(rgb).convert("L"))
    assert np.array_equal(decode(encode(rgb, "PNG"), channels=1)[..., 0], luma)
    opaque = decode(encode(rgb, "PNG"), channels=4)
    assert np.array_equal(opaque[..., :3], rgb)
    assert (opaque[..., 3] == 255).all()
    rgba = np.dstack([rgb, grey()])
    assert np.array_equal(decode(encode(rgba, "PNG"), channels=4), rgba)


def test_arrays_of_any_channel_count_stay_as_they_are():
    for channels in (1, 2, 3, 4, 5, 13):
        array = textured(9, 7, channels)
        assert np.array_equal(decode(npy(array), channels=channels), array)
    assert np.array_equal(decode(npy(colour()), channels=1), decode(encode(colour(), "PNG"), channels=1))
    with pytest.raises(PixelError, match=r"4 channels, but channels=3; only 1 \(grey\) and 3 \(RGB\) convert"):
        decode(npy(textured(9, 7, 4)))
    with pytest.raises(PixelError, match=r"channels=5: image files hold 1, 3 or 4; \.npy files hold any number"):
        decode(encode(colour(), "PNG"), channels=5)


def test_sixteen_bits_and_floats_are_scaled_not_clipped():
    ramp = np.linspace(0, 65535, 256 * 64).reshape(64, 256)
    reference = np.rint(ramp / 257)
    for data in (
        encode(ramp.astype(np.uint16), "PNG"),
        encode(ramp.astype(np.uint16), "TIFF"),
        encode((ramp / 65535).astype(np.float32), "TIFF"),
        encode((ramp / 257).astype(np.float32), "TIFF"),
        npy(ramp.astype(np.uint16)),
        npy((ramp / 65535).astype(np.float16)),
    ):
        found = decode(data, channels=1)[..., 0]
        assert np.abs(found - reference).mean() <= 1
        assert (found == 255).mean() < 0.01


def test_scaled_decoding_keeps_the_shorter_side_and_touches_nothing_else():
    photo = textured(480, 640)
    data = encode(photo, "JPEG", exif=exif(6))
    assert decode(data).shape == (640, 480, 3)
    for at_least, expected in ((480, (640, 480, 3)), (240, (320, 240, 3)), (200, (320, 240, 3)), (60, (80, 60, 3))):
        assert decode(data, at_least_px=at_least).shape == expected
    assert decode(encode(photo, "PNG"), at_least_px=60).shape == photo.shape


def test_pil_images_go_the_same_way_as_files():
    stored = Image.open(io.BytesIO(encode(oriented(colour(), 6), "PNG", exif=exif(6))))
    assert np.array_equal(np.asarray(decode_image(stored)), colour())
    deep = Image.fromarray(grey().astype(np.uint16) * 257)
    assert np.array_equal(np.asarray(decode_image(deep, channels=1)), grey())
    with pytest.raises(PixelError, match="'LAB' are not read; save the image as RGB"):
        decode_image(Image.new("LAB", (4, 4)))
    with pytest.raises(PixelError, match="more than max_pixels=100"):
        decode_image(Image.new("RGB", (40, 40)), max_pixels=100)


# --- resize ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("interpolation", sorted(pixels.INTERPOLATIONS))
def test_resize_treats_every_channel_alone(channels, interpolation):
    image = textured(50, 70, channels)
    box = (3.5, 2.0, 60.25, 49.0)
    found = resize(image, (20, 33), interpolation=interpolation, box=box)
    assert found.shape == (20, 33, channels)
    for channel in range(channels):
        plane = Image.fromarray(image[..., channel]).resize((33, 20), pixels.INTERPOLATIONS[interpolation], box=box)
        assert np.array_equal(found[..., channel], np.asarray(plane))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_resize_of_an_image_and_of_its_array_agree(channels):
    image = decode_image(encode(textured(50, 70, channels).squeeze(), "PNG"), channels=channels)
    box = (3.5, 2.0, 60.25, 49.0)
    assert np.array_equal(resize(image, (20, 33), box=box), resize(np.asarray(image), (20, 33), box=box))


def test_resize_does_not_weight_colour_by_alpha():
    hidden = np.zeros((8, 8, 4), np.uint8)
    hidden[..., 0] = 200
    assert (resize(hidden, (4, 4))[..., 0] == 200).all()
    assert (resize(Image.fromarray(hidden), (4, 4))[..., 0] == 200).all()


# --- the contract ------------------------------------------------------------------------------------------------

PEERS = [
    ("crop", 224, 0.875, "bicubic"),
    ("crop", 224, 0.95, "bilinear"),
    ("crop", 96, 1.0, "lanczos"),
    ("crop", (160, 224), 1.0, "bicubic"),
    ("crop", (128, 63), 0.9, "bicubic"),
    ("stretch", 224, 0.875, "bicubic"),
    ("stretch", (65, 130), 1.0, "bicubic"),
]


@pytest.mark.parametrize(("mode", "size", "fraction", "interpolation"), PEERS)
def test_contract_equals_timms_evaluation_bit_for_bit(mode, size, fraction, interpolation):
    height, width = size if isinstance(size, tuple) else (size, size)
    contract = PixelContract(height, width, resize=mode, crop_fraction=fraction, interpolation=interpolation)
    timm_mode = {"crop": "center", "stretch": "squash"}[mode]
    peer = transforms_imagenet_eval(
        size, crop_pct=fraction, crop_mode=timm_mode, interpolation=interpolation, normalize=False
    )
    for shape in SHAPES:
        image = textured(*shape)
        expected = np.asarray(peer(Image.fromarray(image))).transpose(1, 2, 0)
        assert np.array_equal(contract.apply(image), expected), shape


def test_contract_equals_torchvisions_evaluation_bit_for_bit():
    peer = torchvision_transforms.Compose(
        [
            torchvision_transforms.Resize(256),
            torchvision_transforms.CenterCrop(224),
            torchvision_transforms.PILToTensor(),
        ]
    )
    contract = PixelContract(224, 224, crop_fraction=0.875, interpolation="bilinear")
    for shape in SHAPES:
        image = textured(*shape)
        expected = np.asarray(peer(Image.fromarray(image))).transpose(1, 2, 0)
        assert np.array_equal(contract.apply(image), expected), shape


@pytest.mark.parametrize(("size", "fraction"), [(224, 1.0), ((128, 200), 0.9)])
def test_pad_equals_timms_border_mode_but_for_the_colour_of_the_border(size, fraction):
    height, width = size if isinstance(size, tuple) else (size, size)
    contract = PixelContract(height, width, resize="pad", crop_fraction=fraction, fill=7)
    peer = transforms_imagenet_eval(
        size, crop_pct=fraction, crop_mode="border", interpolation="bicubic", normalize=False
    )
    peer.transforms[1].fill = [7, 7, 7]  # timm takes the mean of the model, one value per channel
    for shape in SHAPES:
        image = textured(*shape)
        assert np.array_equal(contract.apply(image), np.asarray(peer(Image.fromarray(image))).transpose(1, 2, 0)), shape


def test_long_stripes_cost_no_gigabytes_and_stay_within_one_level():
    stripe = textured(40, 1000)
    contract = PixelContract(32, 32)
    expected = np.asarray(Image.fromarray(stripe).resize((800, 32), Image.Resampling.BICUBIC).crop((384, 0, 416, 32)))
    assert np.abs(contract.apply(stripe).astype(int) - expected).max() <= 1
    for mode in ("crop", "pad", "stretch"):
        for shape in ((1, 65500), (65500, 1), (1, 1)):
            contract = PixelContract(64, 48, resize=mode, crop_fraction=0.9)
            assert contract.apply(np.full((*shape, 3), 9, np.uint8)).shape == (64, 48, 3)


@pytest.mark.parametrize("mode", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("channels", [1, 3, 4, 5])
def test_bytes_arrays_and_images_give_the_same_pixels(mode, channels):
    contract = PixelContract(48, 40, channels=channels, resize=mode, crop_fraction=0.9)
    image = textured(90, 61, channels)
    found = contract.apply(npy(image))
    assert found.shape == (48, 40, channels)
    assert found.dtype == np.uint8
    assert found.flags.writeable
    assert np.array_equal(found, contract.apply(image))
    if channels <= 4:
        data = encode(image.squeeze(), "PNG")
        assert np.array_equal(found, contract.apply(data))
        assert np.array_equal(found, contract.apply(Image.open(io.BytesIO(data))))


def test_grey_and_colour_arrays_convert_as_their_files_do():
    for image, channels in ((grey(), 3), (grey(), 4), (colour(), 1), (colour(), 4)):
        contract = PixelContract(16, 16, channels=channels)
        assert np.array_equal(contract.apply(image), contract.apply(encode(image, "PNG")))


@pytest.mark.parametrize("turn", range(1, 9))
def test_all_eight_orientations_give_identical_pixels(turn):
    contract = PixelContract(20, 20, crop_fraction=0.9)
    data = encode(oriented(colour(), turn), "PNG", exif=exif(turn))
    assert np.array_equal(contract.apply(data), contract.apply(colour()))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros(4, np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((1, 2, 3, 4), np.uint8),
    ],
)
def test_other_arrays_are_refused(array):
    with pytest.raises(PixelError, match=r"array of .* and shape .*; expected uint8 \(H, W, C\)"):
        PixelContract(8, 8).apply(array)


def test_the_contract_keeps_its_pixel_limit():
    with pytest.raises(PixelError, match="max_pixels=100"):
        PixelContract(8, 8, max_pixels=100).apply(encode(colour(), "PNG"))


GOLDEN = {
    "crop": "138ac68084c68cc8",
    "pad": "998ba9b99d442b8d",
    "stretch": "c0c907568aa5139a",
    "grey": "34a24f0aaecd6caf",
    "deep": "5784d77d2e7a005d",
}


def test_golden_hashes():
    """The same bytes give the same pixels, today and in a year. A change here needs a new contract version."""
    photo = encode(oriented(colour(231, 173), 6), "PNG", exif=exif(6))
    alpha = encode(np.dstack([colour(231, 173), colour(231, 173)[..., 0]]), "PNG")
    ramp = (np.arange(231 * 173, dtype=np.uint32) * 1640 % 65536).astype(">u2").tobytes()
    deep = png(ramp, 173, 231, bits=16, colour_type=0)
    found = {
        "crop": PixelContract(64, 64, crop_fraction=0.875).apply(photo),
        "pad": PixelContract(64, 80, resize="pad", interpolation="bilinear").apply(alpha),
        "stretch": PixelContract(32, 64, resize="stretch", interpolation="lanczos").apply(photo),
        "grey": PixelContract(64, 64, channels=1).apply(alpha),
        "deep": PixelContract(64, 64).apply(deep),
    }
    assert {name: hashlib.sha256(image.tobytes()).hexdigest()[:16] for name, image in found.items()} == GOLDEN


def test_contracts_travel_as_json():
    contract = PixelContract(224, 192, channels=1, resize="pad", crop_fraction=0.95, fill=0)
    assert PixelContract.from_dict(json.loads(json.dumps(contract.to_dict()))) == contract


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "pixel contract of version 2; this Kiln knows 1"),
        ({"version": None}, "pixel contract of version None"),
        ({"mean": 0.5}, "unknown or missing fields: mean"),
        ({"height": 0}, "height=0; expected a whole number from 1"),
        ({"width": "224"}, "width='224'; expected a whole number from 1"),
        ({"channels": 0}, "channels=0; expected"),
        ({"resize": "squash"}, "resize='squash'; expected crop, pad, stretch or keep"),
        ({"interpolation": "cubic"}, "interpolation='cubic'; expected nearest, box, bilinear"),
        ({"crop_fraction": 1.2}, "crop_fraction=1.2; expected 0.1 to 1"),
        ({"fill": 256}, "fill=256; expected a whole number from 0 to 255"),
        ({"max_pixels": 0}, "max_pixels=0; expected"),
    ],
)
def test_a_contract_that_cannot_be_kept_is_refused(change, message):
    with pytest.raises(PixelError, match=message) as caught:
        PixelContract.from_dict({**PixelContract(8, 8).to_dict(), **change})
    assert caught.value.reason == "contract"


def test_a_contract_that_lacks_a_field_is_refused():
    values = PixelContract(8, 8).to_dict()
    del values["fill"]
    with pytest.raises(PixelError, match="unknown or missing fields: fill"):
        PixelContract.from_dict(values)
