from __future__ import annotations

import os
import tarfile
import zipfile

import pytest
from small_images import jpeg, plant, png, snapshot

from kiln.data.audit import BadFile, check_headers
from kiln.data.source import open_source


@pytest.fixture
def photos(tmp_path):
    """Good images of two classes, and one of each kind of bad file."""
    root = plant(tmp_path / "photos", [f"train/{label}/{i}.png" for label in ("cat", "dog") for i in range(5)])
    (root / "test/cat").mkdir(parents=True)
    bad = {
        "train/cat/empty.jpg": b"",
        "train/cat/page.jpg": b"<html><body>404</body></html>",
        "train/dog/short.jpg": jpeg(9)[:300],
        "train/dog/huge.png": png(0, (70, 70)),
        "test/cat/text.png": b"not an image at all",
    }
    for name, data in bad.items():
        (root / name).write_bytes(data)
    (root / "test/cat/gif_really.jpg").write_bytes(png(3))  # a wrong suffix is no fault: content decides
    return root


EXPECTED = {
    "test/cat/text.png": ("test", "not_an_image"),
    "train/cat/empty.jpg": ("train", "empty"),
    "train/cat/page.jpg": ("train", "not_an_image"),
    "train/dog/huge.png": ("train", "too_many_pixels"),
    "train/dog/short.jpg": ("train", "corrupt"),
}


def found_in(where, **options):
    source = open_source(where)
    bad = check_headers(source, range(len(source)), max_pixels=70 * 70 - 1, **options)
    return {file.key: (file.split, file.reason) for file in bad}, bad


def test_every_bad_file_of_a_folder_is_named(photos):
    before = snapshot(photos)
    found, bad = found_in(photos)
    assert found == EXPECTED
    assert [file.key for file in bad] == sorted(EXPECTED)
    assert all(file.detail and "\n" not in file.detail for file in bad)
    assert "<html>" in next(file.detail for file in bad if file.key.endswith("page.jpg"))
    assert snapshot(photos) == before


def test_and_of_archives(photos, tmp_path):
    with (
        zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file,
        tarfile.open(tmp_path / "a.tgz", "w:gz") as tar,
    ):
        for folder, _, names in os.walk(photos):
            for name in names:
                whole = os.path.join(folder, name)
                file.write(whole, os.path.relpath(whole, photos))
                tar.add(whole, os.path.relpath(whole, photos))
    assert found_in(tmp_path / "a.zip")[0] == EXPECTED
    assert found_in(tmp_path / "a.tgz")[0] == EXPECTED


def test_a_header_that_lies_behind_much_else_in_an_archive(tmp_path):
    """A long text chunk stands before the size: the first bytes are not enough, the whole member is."""
    comment = b"\xff\xfe" + (60_002).to_bytes(2, "big") + bytes(60_000)
    image = jpeg(5)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("cat/1.jpg", image[:2] + comment * 4 + image[2:])
        file.writestr("dog/2.jpg", image)
    source = open_source(tmp_path / "a.zip")
    assert check_headers(source, range(2)) == []
    assert source.header(0).width == 8


def test_the_result_does_not_depend_on_the_number_of_threads(photos):
    assert found_in(photos, workers=1)[1] == found_in(photos, workers=7)[1]


def test_some_indices_and_a_given_split(photos):
    source = open_source(photos)
    place = source.keys.index("train/cat/empty.jpg")
    assert check_headers(source, [0], max_pixels=10**6) == []
    bad = check_headers(source, [place], split="val")
    assert bad == [BadFile("train/cat/empty.jpg", "val", "empty", bad[0].detail)]
    assert check_headers(source, []) == []


def test_files_that_may_not_be_read_and_files_that_vanished(tmp_path):
    root = plant(tmp_path, ["cat/1.png", "cat/2.png", "dog/3.png"])
    source = open_source(root)
    (root / "cat/1.png").unlink()
    os.chmod(root / "cat/2.png", 0)
    if os.geteuid() == 0:  # root may read everything: give that right up for a moment
        for folder in (root, *root.parents):
            if folder.owner() == "root" and os.access(folder, os.W_OK) and "pytest" in folder.name:
                os.chmod(folder, 0o755)
        for folder in (root, root / "cat", root / "dog"):
            os.chmod(folder, 0o755)
        os.seteuid(65534)
        try:
            bad = check_headers(source, range(3))
        finally:
            os.seteuid(0)
    else:
        bad = check_headers(source, range(3))
    assert [(file.key, file.reason) for file in bad] == [("cat/1.png", "unreadable"), ("cat/2.png", "unreadable")]


def test_a_damaged_member_is_a_bad_file(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("cat/1.png", png(1))
        file.writestr("dog/2.png", png(2))
    data = bytearray(path.read_bytes())
    data[0:4] = b"XXXX"
    path.write_bytes(data)
    source = open_source(path)
    bad = check_headers(source, range(2))
    assert [(file.key, file.reason) for file in bad] == [("cat/1.png", "unreadable")]
    assert "no member where the archive says" in bad[0].detail
