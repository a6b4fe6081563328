"""The parts of the check: copies, backdrops, odd files, classes, and what a training is told of them."""

import numpy as np
import pytest
from PIL import Image

from kiln.data.checks import aligned, similar
from kiln.data.checks.classes import class_findings, group_findings
from kiln.data.checks.confirm import Pictures
from kiln.data.checks.duplicates import copy_findings, empty_pictures, find_backdrops, find_copies
from kiln.data.checks.files import file_findings
from kiln.data.checks.findings import KINDS, Finding, Findings, Place, by_severity
from kiln.data.checks.grouping import joined
from kiln.data.checks.looks import look_at_all
from kiln.data.checks.quick import equal_files, quick_check, quick_notes
from kiln.data.source import open_source
from kiln.data.split import split_source
from pictures import ALTERED, jpeg_of, picture, png_of, put


def looked_at(root):
    source = open_source(root)
    return source, look_at_all(source, max_pixels=10_000_000, workers=2)


def copies_in(root):
    source, looks = looked_at(root)
    copies = find_copies(source, looks, pictures=Pictures(source, max_pixels=10_000_000), workers=2)
    return source, copies


def names(source, indices):
    return {source.keys[index].rpartition("/")[2] for index in indices}


@pytest.mark.parametrize("how", ALTERED)
def test_every_near_copy_is_found_and_nothing_else(tmp_path, how):
    files = {f"a/{seed:02d}.jpg": jpeg_of(picture(seed)) for seed in range(24)}
    altered = {f"b/copy{seed:02d}.jpg": ALTERED[how](picture(seed)) for seed in range(0, 24, 2)}
    source, copies = copies_in(put(tmp_path, files | altered))
    found = {frozenset(names(source, pair[:2])) for pair in copies.near}
    assert found == {frozenset({f"{seed:02d}.jpg", f"copy{seed:02d}.jpg"}) for seed in range(0, 24, 2)}
    assert all(similarity >= 0.88 for _, _, similarity in copies.near)
    assert copies.exact == []
    assert copies.left_out == 0


def test_exact_copies_by_bytes_and_by_pixels(tmp_path):
    image = picture(1)
    decoded = Image.open(put(tmp_path, {"a/one.jpg": jpeg_of(image)}) / "a/one.jpg").convert("RGB")
    retouched = decoded.copy()
    retouched.putpixel((80, 64), (255, 0, 255))
    others = {
        "a/two.jpg": jpeg_of(image),
        "b/three.png": png_of(decoded),
        "b/other.jpg": jpeg_of(picture(2)),
        "b/retouched.png": png_of(retouched),
    }
    source, copies = copies_in(put(tmp_path, others))
    assert [names(source, group) for group in copies.exact] == [{"one.jpg", "two.jpg", "three.png"}]
    assert [names(source, pair[:2]) for pair in copies.near] == [{"one.jpg", "retouched.png"}]


def test_empty_pictures_are_copies_only_by_their_bytes(tmp_path):
    flat = {
        f"a/flat{level}.png": png_of(Image.new("RGB", (64, 48), (level, level, level))) for level in range(200, 210)
    }
    dots = {}
    for place in range(8):
        pixels = np.full((48, 64, 3), 255, np.uint8)
        pixels[4 + 4 * place : 8 + 4 * place, 7 * place : 7 * place + 4] = 0
        dots[f"b/dot{place}.png"] = png_of(Image.fromarray(pixels))
    same = {"b/flat-again.png": flat["a/flat200.png"]}
    source, copies = copies_in(put(tmp_path, flat | dots | same))
    assert [names(source, group) for group in copies.exact] == [{"flat200.png", "flat-again.png"}]
    assert copies.near == []


def test_alike_is_not_the_same(tmp_path):
    """One shape on white, as in a catalogue: outlines correlate strongly, what is printed on them does not."""
    files = {}
    for seed in range(12):
        sheet = Image.new("RGB", (128, 128), "white")
        sheet.paste(picture(seed, (64, 80)), (32, 24))
        files[f"{'ab'[seed % 2]}/{seed}.jpg"] = jpeg_of(sheet)
    _, copies = copies_in(put(tmp_path, files))
    assert copies.near == []


def test_other_colours_are_another_picture(tmp_path):
    image = picture(5)
    red, green, blue = image.split()
    grey = Image.merge("RGB", [image.convert("L")] * 3)
    files = {
        "a/x.png": png_of(image),
        "b/y.png": png_of(Image.merge("RGB", (blue, red, green))),
        "b/z.png": png_of(grey),
    }
    source, copies = copies_in(put(tmp_path, files))
    assert {"x.png", "y.png"} not in [names(source, pair[:2]) for pair in copies.near]


@pytest.mark.parametrize("seed", range(3))
def test_alignment_recovers_the_part_that_was_cut_out(seed):
    """Against the obvious way: the box is known, because the test cut it."""
    image = picture(seed, (400, 400)).convert("L")
    box = np.array([0.06, 0.02, 0.91, 0.93])
    cut = image.crop(tuple(400 * np.array([box[0], box[1], box[0] + box[2], box[1] + box[3]])))
    whole, part = (
        np.asarray(one.resize((64, 64), Image.Resampling.BILINEAR), np.float32)[None] for one in (image, cut)
    )
    start = np.array([[0.05, 0.05, 0.9, 0.9]], np.float32)
    score, found = aligned.aligned_thumbs(whole, part, start)
    assert score[0] > 0.9
    np.testing.assert_allclose(found[0], box, atol=0.01)


def test_correlation_is_pearsons():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 3, 8, 8)).astype(np.float32)
    known = rng.random((3, 8, 8)) > 0.3
    expected = [np.corrcoef(a[i][known[i]], b[i][known[i]])[0, 1] for i in range(3)]
    np.testing.assert_allclose(aligned.correlation(a, b, known), expected, atol=1e-5)
    assert aligned.correlation(np.ones_like(a), b, known).tolist() == [0, 0, 0]


def test_pairs_are_those_of_the_slow_way():
    rng = np.random.default_rng(1)
    hashes = rng.integers(0, 2**63, 300, dtype=np.uint64)
    hashes[200:] = hashes[:100] ^ np.uint64(0b1011)
    found = similar.near_pairs(hashes, hashes, most_bits=20, workers=2)
    slow = {
        (i, j) for i in range(300) for j in range(300) if i != j and (int(hashes[i]) ^ int(hashes[j])).bit_count() <= 20
    }
    assert set(zip(found.i.tolist(), found.j.tolist(), strict=True)) == slow
    assert len(slow) > 200
    parts = np.arange(300) // 200
    across = similar.near_pairs(hashes, hashes, most_bits=20, parts=parts, workers=1)
    assert set(zip(across.i.tolist(), across.j.tolist(), strict=True)) == {
        p for p in slow if parts[p[0]] != parts[p[1]]
    }


def test_pairs_of_images_that_are_all_alike_are_bounded_and_counted():
    found = similar.near_pairs(np.zeros(500, np.uint64), np.zeros(500, np.uint64), most_bits=3, workers=1)
    assert len(found.i) + found.left_out == 500 * 499
    assert len(found.i) == 16 * 500


def test_a_shared_backdrop_is_found_across_splits_and_is_no_copy(tmp_path):
    files = {f"train/a/{seed}.jpg": jpeg_of(picture(seed)) for seed in range(8)}
    files |= {f"val/a/{seed}.jpg": jpeg_of(picture(seed + 50)) for seed in range(8)}
    files["train/a/before.jpg"] = jpeg_of(picture(101, backdrop=77))
    files["val/a/behind.jpg"] = jpeg_of(picture(102, backdrop=77))
    files["val/a/beside.jpg"] = jpeg_of(picture(103, backdrop=77))
    source, looks = looked_at(put(tmp_path, files))
    pictures = Pictures(source, max_pixels=10_000_000)
    copies = find_copies(source, looks, pictures=pictures, workers=1)
    assert copies.near == []
    groups = find_backdrops(looks, list(source.splits), copies=copies, pictures=pictures, workers=1)
    assert [names(source, group) for group in groups] == [{"before.jpg", "behind.jpg", "beside.jpg"}]
    assert find_backdrops(looks, ["train"] * len(source), copies=copies, pictures=pictures, workers=1) == []


def test_odd_files_are_named(tmp_path):
    files = {f"a/{seed}.jpg": jpeg_of(picture(seed)) for seed in range(12)}
    files["a/grey.png"] = png_of(picture(20).convert("L"))
    files["a/clear.png"] = png_of(picture(21).convert("RGBA"))
    files["a/deep.png"] = png_of(Image.fromarray(np.arange(0, 51_200, 5, dtype=np.uint16).reshape(80, 128)))
    files["a/strip.jpg"] = jpeg_of(picture(22, (600, 40)))
    files["a/tiny.png"] = png_of(picture(23, (12, 12)))
    files["a/cut.jpg"] = jpeg_of(picture(24))[:-900]
    files["a/text.jpg"] = b"<html>no image</html>"
    files["a/flat.png"] = png_of(Image.new("RGB", (90, 90), "white"))
    turned = Image.Exif()
    turned[0x0112] = 6
    put(tmp_path, files)
    picture(25).save(tmp_path / "a/turned.jpg", exif=turned)
    source, looks = looked_at(tmp_path)
    found = {
        (finding.code, finding.keys[0].removeprefix("a/")): finding
        for finding in file_findings(source.keys, looks, empty_pictures(looks))
    }
    assert set(found) == {
        ("odd_mode", "grey.png"), ("odd_mode", "clear.png"), ("odd_mode", "deep.png"), ("odd_size", "strip.jpg"),
        ("odd_size", "tiny.png"), ("unreadable", "cut.jpg"), ("unreadable", "text.jpg"), ("empty", "flat.png"),
        ("rotated", "turned.jpg"),
    }  # fmt: skip
    assert found["odd_mode", "grey.png"].detail == "grey among colour images"
    assert found["unreadable", "cut.jpg"].detail.startswith("truncated: the file ends before its image does")
    assert found["unreadable", "cut.jpg"].decisions == ("drop",)
    assert found["rotated", "turned.jpg"].detail == "EXIF orientation 6"


def decided(splits, labels, *, exact=(), near=(), own_splits=True):
    from kiln.data.checks.duplicates import Copies

    keys = [f"k{number}" for number in range(len(splits))]
    places = [Place(split, label) for split, label in zip(splits, labels, strict=True)]
    copies = Copies([list(group) for group in exact], [(*pair, 0.95) for pair in near], 0)
    return copy_findings(keys, places, copies, own_splits=own_splits)


@pytest.mark.parametrize(
    ("splits", "labels", "copies", "code", "decisions"),
    [
        (["train", "train"], "aa", {"exact": [(0, 1)]}, "duplicate", ("keep", "drop")),
        (["train", "val"], "aa", {"exact": [(0, 1)]}, "duplicate_across", ("drop", "keep")),
        (["test", "train"], "aa", {"near": [(0, 1)]}, "near_duplicate_across", ("keep", "drop")),
        (["train", "train"], "aa", {"near": [(0, 1)]}, "near_duplicate", ("keep", "keep")),
        (["train", "val"], "aa", {"near": [(0, 1)], "own_splits": False}, "near_duplicate_across", ("keep", "keep")),
        (["train", "train"], "ab", {"exact": [(0, 1)]}, "conflict", ("drop", "drop")),
        (["train"] * 3, "aba", {"exact": [(0, 1, 2)]}, "conflict", ("keep", "drop", "drop")),
        (["train", "test", "test"], "aaa", {"exact": [(0, 1, 2)]}, "duplicate_across", ("drop", "keep", "drop")),
    ],
)
def test_what_is_suggested_for_copies(splits, labels, copies, code, decisions):
    (finding,) = decided(splits, labels, **copies)
    assert (finding.code, finding.decisions, finding.group) == (code, decisions, 1)


def test_a_near_copy_of_the_smaller_part_is_to_be_relabelled():
    findings = decided(["train"] * 3, "aab", near=[(0, 1), (1, 2)])
    assert [finding.code for finding in findings] == ["near_duplicate", "conflict"]
    assert findings[1].decisions == ("keep", "relabel:a")
    assert {finding.group for finding in findings} == {1}


def test_classes_that_are_missing_small_or_lopsided():
    members = [frozenset({"cat"})] * 200 + [frozenset({"dog"})] * 9 + [frozenset({"cat"})] * 5 + [frozenset({"eel"})]
    splits = ["train"] * 209 + ["val"] * 6
    found = class_findings(members, splits, ("cat", "dog", "eel", "fox"))
    assert [(one.code, one.detail) for one in found] == [
        ("class_missing", "'dog' is missing from val: it occurs in train only"),
        ("class_missing", "'eel' is missing from train: it occurs in val only"),
        ("class_missing", "'fox' has no image at all"),
        ("class_small", "'dog' has 9 images to train on"),
        ("imbalance", "'cat' has 200 training images and 'dog' 9: 22 times as many"),
    ]
    assert class_findings([frozenset({"a"})] * 10 + [frozenset({"b"})] * 10, ["train"] * 20, ("a", "b")) == []


def test_groups_on_both_sides_move_to_the_larger_part():
    (found,) = group_findings(["k0", "k1", "k2", "k3"], ["g", "g", "g", ""], ["train", "train", "val", "val"])
    assert found.detail == "the group 'g' has 2 in train, 1 in val"
    assert found.decisions == ("keep", "keep", "move:train")
    assert group_findings(["a"], None, ["train"]) == []


def test_the_quick_check_compares_content_only_where_sizes_agree(tmp_path):
    one, other = png_of(picture(1)), png_of(picture(2))
    files = {"train/a/1.png": one, "val/a/2.png": one, "train/b/3.png": other, "train/b/4.png": other,
             "val/b/5.png": png_of(picture(3)), "train/a/6.png": png_of(picture(4))}  # fmt: skip
    files["train/b/7.png"] = files["train/a/8.png"] = png_of(picture(5))
    source = open_source(put(tmp_path, files))
    read = []
    reader = source._reader
    original = reader.read
    reader.read = lambda name: read.append(name) or original(name)
    split = split_source(source, source.labels)
    found = quick_check(source, split, ("a", "b"), [frozenset({label}) for label in source.labels])
    kinds = {finding.code: names(source, [source.keys.index(key) for key in finding.keys]) for finding in found}
    assert kinds["conflict"] == {"7.png", "8.png"}
    assert kinds["duplicate_across"] == {"1.png", "2.png"}
    assert kinds["duplicate"] == {"3.png", "4.png"}
    assert {name.rpartition("/")[2] for name in read} <= {f"{n}.png" for n in (1, 2, 3, 4, 7, 8)}
    assert "2 files are exact copies in several splits, which makes the numbers too good: 'train/a/1.png', " \
        "'val/a/2.png'" in quick_notes(found, where="my data")  # fmt: skip
    assert quick_notes(found, where="my data")[-1] == "to see them: kiln check 'my data' --output FOLDER"
    assert equal_files(source, most_bytes=2 * len(one) - 1)[0] != equal_files(source)[0]
    assert equal_files(source, most_bytes=0) == ([], 6)


def test_an_archive_tells_checksums_without_reading(tmp_path):
    import zipfile

    data = png_of(picture(1))
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name, content in {"a/1.png": data, "b/2.png": data, "b/3.png": data[:-1] + b"x"}.items():
            archive.writestr(name, content)
    source = open_source(tmp_path / "x.zip")
    groups, left_out = equal_files(source)
    assert ([names(source, group) for group in groups], left_out) == ([{"1.png", "2.png"}], 0)


def test_findings_say_what_they_hold():
    findings = by_severity([
        Finding("empty", "nearly one colour", ("a",), ("keep",)),
        Finding("conflict", "two labels", ("a", "b"), ("drop", "keep"), group=3, similarity=0.98765),
    ])  # fmt: skip
    found = Findings("here", 2, {"train": 2}, findings, {"a": Place("train", "x"), "b": Place("train", "y")})
    assert found.counts == {"conflict": 1, "empty": 1}
    assert found.serious
    assert len(found) == 2
    rows = list(found.rows())
    assert [row["key"] for row in rows] == ["a", "b", "a"]
    assert rows[0] == {
        "key": "a", "split": "train", "class": "x", "finding": "conflict", "severity": "serious", "partner": "b",
        "group": "3", "similarity": "0.9877", "decision": "drop", "detail": "two labels",
    }  # fmt: skip
    assert found.to_csv().splitlines()[0] == '# {"kind": "kiln.check", "version": 1}'
    assert not Findings("here", 1, {}, (), {}).serious
    assert {kind.severity for kind in KINDS.values()} == {"serious", "warning", "info"}


def test_joined_are_the_connected_parts():
    assert joined([(1, 2), (3, 4), (2, 3), (8, 9)]) == [[1, 2, 3, 4], [8, 9]]
    assert joined([]) == []
