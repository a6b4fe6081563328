"""The contact sheet: every pixel of small images, any text, any number of samples."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, features

from kiln.errors import UsageError
from kiln.reports import contact_sheet as contact_sheet_module
from kiln.reports.contact_sheet import (
    LARGEST_PX,
    Frame,
    contact_sheet,
    encode_sheet,
    font_for,
    load_font,
    missing_glyphs,
    printable,
    shortened,
    wrapped,
)

WHITE = (255, 255, 255)


def image(colour=(200, 30, 40), height=100, width=100):
    return np.full((height, width, len(colour)), colour, np.uint8)


def colours(sheet):
    return {colour for _, colour in sheet.getcolors(1 << 24)}


def test_images_stand_side_by_side_with_their_pixels_unchanged():
    noise = np.random.default_rng(0).integers(0, 256, (120, 110, 3)).astype(np.uint8)
    sheet = np.asarray(contact_sheet([Frame((image((0, 200, 0), 120, 110), noise), "cat", "a/b.jpg")]))
    inside = noise[1:-1, 1:-1]  # a frame lies on the border
    places = [
        (y, x)
        for y in range(sheet.shape[0] - 117)
        for x in range(sheet.shape[1] - 107)
        if np.array_equal(sheet[y : y + 3, x : x + 3], inside[:3, :3])
    ]
    ((y, x),) = places
    assert np.array_equal(sheet[y : y + 118, x : x + 108], inside)
    assert np.all(sheet[y : y + 118, x - 112 : x - 4] == (0, 200, 0))


@pytest.mark.parametrize(("channels", "shown"), [(1, (7, 7, 7)), (2, (7, 7, 7)), (4, (7, 8, 9)), (6, (7, 8, 9))])
def test_any_number_of_channels(channels, shown):
    frame = Frame((image(tuple(range(7, 7 + channels))),), "", "")
    assert shown in colours(contact_sheet([frame]))


def test_small_images_are_enlarged_by_whole_pixels_and_large_ones_reduced():
    checks = np.tile(np.array([[0, 255], [255, 0]], np.uint8), (4, 4))[..., None]
    sheet = contact_sheet([Frame((checks,), "", "")])
    crop = np.asarray(sheet)[17 : 17 + 94, 17 : 17 + 94]
    assert set(np.unique(crop)) == {0, 255}, "no pixel is mixed with its neighbour"
    assert np.all(crop[11:23, 11:23] == 0)  # the second pixel of the second row: 12 px of the sheet
    assert np.all(crop[:11, 11:23] == 255)
    large = contact_sheet([Frame((image(height=1000, width=2000),), "", "")])
    assert large.width == LARGEST_PX + 32
    one = contact_sheet([Frame((image(height=1, width=400),), "", "")])
    assert one.width == LARGEST_PX + 32


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 16, 17])
def test_every_sample_is_there(count):
    frames = [Frame((image((10 * number + 5, 1, 2)),), "", "") for number in range(count)]
    sheet = contact_sheet(frames)
    assert {(10 * number + 5, 1, 2) for number in range(count)} <= colours(sheet)
    assert 0.4 < sheet.width / sheet.height < 4


def test_text_never_leaves_its_place():
    plain = contact_sheet([Frame((image(),), "cat", "a.jpg")] * 4, heading=["one"])
    long = "an endless name " * 40
    odd = contact_sheet([Frame((image(),), long, long.replace(" ", "/"))] * 4, heading=["one"])
    assert odd.size == plain.size
    font = font_for([])
    assert font.getlength(shortened(long, 200, font, keep_end=0)) <= 200
    assert shortened(long, 200, font, keep_end=0).startswith("an endless")
    assert shortened("folder/" * 30 + "last.jpg", 200, font, keep_end=0.7).endswith("/last.jpg")
    assert shortened("short", 200, font, keep_end=0) == "short"
    assert shortened("mmmm", 1, font, keep_end=0) == "..."
    lines = wrapped("word " * 60 + "w" * 500, 300, font)
    assert len(lines) > 3
    assert all(font.getlength(line) <= 300 for line in lines)
    assert " ".join(lines).startswith("word " * 60)


def test_odd_characters_are_drawn_or_escaped():
    assert printable("a\nb\tc\udcff\u200b") == "a\\nb\\tc\\udcff\\u200b"
    frames = [Frame((image(),), text, text) for text in ("日本語", "футболка", "a\nb", "\udcff", "👕", "", "é")]
    assert contact_sheet(frames, heading=["日本語\n"]).size[0] > 0


@pytest.mark.skipif(not features.check("freetype2"), reason="Pillow was built without fonts")
def test_characters_without_a_glyph_are_named_once():
    font = font_for([])
    assert missing_glyphs(["日本", "日 cat-1"], font) == "日本"
    assert missing_glyphs([bytes(range(32, 127)).decode(), "·", "a\nb"], font) == ""


class NoGlyphs:
    """Another font of the system."""

    def __init__(self, lacking):
        self.lacking = lacking


def test_the_font_that_lacks_least_is_taken(monkeypatch):
    fonts = {"DejaVuSans.ttf": NoGlyphs("日"), "arial.ttf": NoGlyphs("日本é"), "NotoSansCJK-Regular.ttc": NoGlyphs("")}

    def load(name, size):
        if name not in fonts:
            raise OSError("cannot open resource")
        return fonts[name]

    monkeypatch.setattr(contact_sheet_module.ImageFont, "truetype", load)
    monkeypatch.setattr(
        contact_sheet_module, "missing_glyphs", lambda texts, font: getattr(font, "lacking", "日本") if texts else ""
    )
    assert font_for(["日本"]) is fonts["NotoSansCJK-Regular.ttc"]
    del fonts["NotoSansCJK-Regular.ttc"]
    assert font_for(["日本"]) is fonts["DejaVuSans.ttf"]
    assert font_for([]) not in fonts.values()


def test_a_font_that_is_none_is_refused(tmp_path):
    (tmp_path / "font.ttf").write_bytes(b"no font")
    for wrong in (tmp_path / "font.ttf", tmp_path / "nowhere.ttf"):
        with pytest.raises(UsageError, match=r"E101|a \.ttf or \.otf file"):
            load_font(wrong)


@pytest.mark.parametrize(("suffix", "kind"), [(".png", "PNG"), (".jpg", "JPEG"), (".JPEG", "JPEG")])
def test_files(suffix, kind):
    sheet = contact_sheet([Frame((image(),), "cat", "a.jpg")])
    with Image.open(io.BytesIO(encode_sheet(sheet, suffix))) as read:
        assert (read.format, read.size) == (kind, sheet.size)
        assert read.getpixel((0, 0)) == WHITE


@pytest.mark.parametrize("suffix", [".gif", ""])
def test_other_files_are_refused(suffix):
    with pytest.raises(UsageError, match=r"choices: \.png, \.jpg, \.jpeg"):
        encode_sheet(Image.new("RGB", (2, 2)), suffix)
