from __future__ import annotations

import os
import subprocess
import sys
import zipfile

import pytest
from small_images import plant, png, snapshot

from kiln.data.fingerprint import compare_fingerprint, record
from kiln.data.layout import wrapping_folder
from kiln.data.source import open_source
from kiln.errors import ArtifactError, DataError, UsageError


def zip_of(root, path):
    with zipfile.ZipFile(path, "w") as file:
        for folder, _, names in os.walk(root):
            for name in names:
                whole = os.path.join(folder, name)
                file.write(whole, os.path.relpath(whole, root.parent))
    return path


def test_class_folders(tmp_path):
    source = open_source(plant(tmp_path, ["dog/b.png", "cat/a.png", "dog/deep/er/c.png", "Zebra/d.png"]))
    assert source.keys == ("Zebra/d.png", "cat/a.png", "dog/b.png", "dog/deep/er/c.png")
    assert source.labels == ("Zebra", "cat", "dog", "dog")
    assert source.splits is None
    assert source.groups is None
    assert source.class_names is None
    assert source.read(2) == png(0)
    assert source.size_of(2) == len(png(0))
    assert source.header(2).width == 8
    assert len(source) == 4


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_split_folders(tmp_path, val):
    source = open_source(plant(tmp_path, ["train/cat/1.png", "train/dog/2.png", f"{val}/cat/3.png", "test/dog/4.png"]))
    by_key = dict(zip(source.keys, zip(source.labels, source.splits, strict=True), strict=True))
    assert by_key == {
        "train/cat/1.png": ("cat", "train"),
        "train/dog/2.png": ("dog", "train"),
        f"{val}/cat/3.png": ("cat", "val"),
        "test/dog/4.png": ("dog", "test"),
    }


def test_a_wrapping_folder_and_stray_files_are_looked_through(tmp_path):
    names = ["photos/train/cat/1.png", "photos/test/cat/2.png", "photos/LICENSE", "photos/README.txt", "photos/.git/x"]
    source = open_source(plant(tmp_path, names))
    assert source.keys == ("test/cat/2.png", "train/cat/1.png")
    assert source.splits == ("test", "train")
    assert "1 hidden file ignored" in source.notes
    assert "2 files without an image's suffix ignored (no suffix 1, .txt 1)" in source.notes


@pytest.mark.parametrize(
    ("names", "wrapper"),
    [
        (["a/cat/1.png", "a/dog/2.png"], "a/"),
        (["cat/1.png", "cat/2.png"], ""),
        (["a/b/train/cat/1.png"], "a/b/"),
        (["train/cat/1.png"], ""),
        (["cat/1.png", "cat/deep/2.png"], ""),
        (["cat/1.png", "cat/deep/2.png", "cat/old/3.png"], ""),
        (["a/cover.png", "a/train/cat/1.png", "a/train/dog/2.png"], "a/"),
        (["cover.png", "a/train/cat/1.png"], "a/"),
        (["cover.png", *(f"a/{name}/{i}.png" for name in ("cat", "dog") for i in range(5))], "a/"),
        (["a/cover.png", *(f"a/{name}/{i}.png" for name in ("cat", "dog") for i in range(5))], "a/"),
        (["a/cover.png", *(f"a/cat/{i}.png" for i in range(20))], ""),
        (["1.png"], ""),
        ([], ""),
    ],
)
def test_what_wraps(names, wrapper):
    assert wrapping_folder(names) == wrapper


def test_a_zip_and_its_folder_are_the_same_samples(tmp_path):
    root = plant(tmp_path / "photos", ["train/cat/1.png", "train/dog/2.png", "test/cat/3.png"])
    inside = open_source(zip_of(root, tmp_path / "photos.zip"))
    outside = open_source(root)
    assert (inside.keys, inside.labels, inside.splits) == (outside.keys, outside.labels, outside.splits)
    assert [inside.read(i) for i in range(3)] == [outside.read(i) for i in range(3)]
    assert inside.header(0) == outside.header(0)


def test_classes_called_train_are_classes_when_images_lie_in_them(tmp_path):
    source = open_source(plant(tmp_path, ["train/1.png", "plane/2.png"]))
    assert set(source.labels) == {"train", "plane"}
    assert source.splits is None


def test_what_is_left_out_is_said(tmp_path):
    names = ["train/cat/1.png", "train/dog/2.png", "train/loose.png", "test/3.png", "extra/4.png"]
    plant(tmp_path, names)
    (tmp_path / "train/bird").mkdir()
    (tmp_path / "extra/none").mkdir()
    source = open_source(tmp_path)
    assert source.keys == ("train/cat/1.png", "train/dog/2.png")
    assert "3 images outside class folders ignored, in 'train', 'test', 'extra'" in source.notes
    assert "1 class folder without images: 'train/bird'" in source.notes


def test_empty_class_folders_of_a_zip_and_a_wrapper(tmp_path):
    root = plant(tmp_path / "photos", ["cat/1.png", "dog/2.png"])
    (root / "bird").mkdir()
    assert "1 class folder without images: 'bird'" in open_source(root).notes
    assert "1 class folder without images: 'bird'" in open_source(tmp_path).notes


def test_names_that_others_would_mix_up(tmp_path):
    source = open_source(plant(tmp_path, ["Cat/1.png", "cat/1.png", "d/e\u0301.png", "d/\u00e9.png"]))
    assert len(source) == 4
    assert sorted(set(source.labels)) == ["Cat", "cat", "d"]
    assert "1 name like another but for case: they collide on macOS and Windows" in source.notes
    assert "classes that differ only in case or blanks are kept apart: 'Cat', 'cat'" in source.notes
    assert "1 name like another but for the Unicode form (NFC, NFD): both are kept" in source.notes


def test_a_class_in_two_unicode_forms_is_one_class(tmp_path):
    source = open_source(plant(tmp_path, ["train/caf\u00e9/1.png", "val/cafe\u0301/2.png", "train/x/3.png"]))
    assert sorted(set(source.labels)) == ["caf\u00e9", "x"]


def test_odd_names_are_keys_in_code_point_order(tmp_path):
    names = [
        "c/\U0001f600.png",
        "c/new\nline.png",
        "c/\u05d0.png",
        "c/" + "x" * 251 + ".png",
        "c/ blank .png",
        "c/B.png",
        "d/a.png",
    ]
    source = open_source(plant(tmp_path, names))
    assert source.keys == tuple(sorted(names))
    assert [source.read(i) for i in range(len(source))] == [png(names.index(key)) for key in source.keys]


def test_order_depends_on_neither_locale_nor_listing(tmp_path):
    names = [f"c{i % 3}/{name}.png" for i, name in enumerate("Zz\u00e4aAb9_-")]
    first = open_source(plant(tmp_path / "a", names))
    second = open_source(plant(tmp_path / "b", list(reversed(names))))
    assert first.keys == second.keys
    script = f"from kiln.data.source import open_source; print(ascii(open_source({str(tmp_path / 'a')!r}).keys))"
    for locale in ("C", "C.UTF-8"):
        env = os.environ | {"LC_ALL": locale, "PYTHONHASHSEED": "7"}
        printed = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
        assert printed.stdout.strip() == ascii(first.keys)


def test_flat_images_for_prediction(tmp_path):
    plant(tmp_path, ["1.png", "deep/2.PNG", "note.txt"])
    source = open_source(tmp_path, labelled=False)
    assert source.keys == ("1.png", "deep/2.PNG")
    assert source.labels is None
    assert source.splits is None


def test_globs_lists_and_single_files_for_prediction(tmp_path, monkeypatch):
    plant(tmp_path, ["a/1.png", "a/2.png", "b/3.png", "b/.4.png"])
    monkeypatch.chdir(tmp_path)
    assert open_source("*/*.png", labelled=False).keys == ("a/1.png", "a/2.png", "b/3.png")
    assert open_source("**/*.png", labelled=False).keys == ("a/1.png", "a/2.png", "b/3.png")
    assert open_source("a/1.png", labelled=False).keys == ("a/1.png",)
    listed = open_source(["b/3.png", "a/1.png", "b/3.png"], labelled=False)
    assert listed.keys == ("b/3.png", "a/1.png")
    assert listed.read(0) == png(2)
    assert "1 path given more than once, read once" in listed.notes
    mixed = open_source(["b/3.png", tmp_path / "a"], labelled=False)
    assert mixed.keys == ("b/3.png", str(tmp_path / "a/1.png"), str(tmp_path / "a/2.png"))
    with pytest.raises(UsageError, match="a list of bytes is no source"):
        open_source([png(1)], labelled=False)
    with pytest.raises(DataError, match="no file matches"):
        open_source("*.jpg", labelled=False)
    with pytest.raises(DataError, match=r"there is no a/9\.png"):
        open_source(["a/9.png"], labelled=False)
    with pytest.raises(DataError, match="no files were given"):
        open_source([], labelled=False)


def test_lists_and_globs_have_no_labels(tmp_path):
    with pytest.raises(UsageError, match=r"'.*\*.png' carries no labels"):
        open_source(str(plant(tmp_path, ["1.png"]) / "*.png"))
    with pytest.raises(UsageError, match="a list of 1 file carries no labels"):
        open_source([tmp_path / "1.png"])


def test_nothing_there(tmp_path):
    plant(tmp_path, ["photos/cat/1.png"])
    with pytest.raises(DataError, match=r"there is no .*photo\n  next: did you mean .*photos\?"):
        open_source(tmp_path / "photo")
    with pytest.raises(DataError) as caught:
        open_source(f"{tmp_path}/photo/")
    assert caught.value.hint == f"did you mean {tmp_path / 'photos'}?"  # and not what lies in a folder called photo
    with pytest.raises(DataError, match="the name of the data is empty"):
        open_source("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no images in .*\n.*\n  found: nothing"):
        open_source(tmp_path / "empty")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/a.pdf").touch()
    zip_of(tmp_path / "photos", tmp_path / "docs/b.zip")
    with pytest.raises(
        DataError, match=r"found: 2 other files: \.pdf 1, \.zip 1\n  next: give the archive itself: .*b\.zip"
    ):
        open_source(tmp_path / "docs")
    with pytest.raises(DataError, match=r"expected: .* in folders named after their class"):
        open_source(tmp_path / "empty")
    with pytest.raises(DataError, match=r"expected: files such as .* \.bmp\n"):  # labels are not asked for
        open_source(tmp_path / "empty", labelled=False)
    with pytest.raises(DataError, match=r"a\.pdf is nothing that holds labelled images"):
        open_source(tmp_path / "docs/a.pdf")


def test_images_without_class_folders_cannot_be_learned_from(tmp_path):
    plant(tmp_path, ["1.png", "2.png"])
    with pytest.raises(
        DataError, match=r"2 images in .*, but none in a class folder\n  expected: CLASS/image.jpg"
    ) as caught:
        open_source(tmp_path)
    assert caught.value.code == "E201"
    assert caught.value.exit_code == 3


def test_one_class_and_one_image_are_no_fault_of_the_data(tmp_path):
    assert open_source(plant(tmp_path, ["cat/1.png"])).labels == ("cat",)


def test_columns_without_a_table_are_an_error(tmp_path):
    with pytest.raises(UsageError, match=r"have no effect on .*: no table was found"):
        open_source(plant(tmp_path, ["cat/1.png", "dog/2.png"]), label_column="label")


def test_the_data_folder_is_never_written_to(tmp_path):
    plant(tmp_path, ["train/cat/1.png", "train/dog/2.png", "test/cat/3.png"])
    before = snapshot(tmp_path)
    source = open_source(tmp_path)
    for index in range(len(source)):
        source.read(index)
        source.header(index)
    record(source)
    assert snapshot(tmp_path) == before


def test_fingerprint_changes_with_time_size_name_and_label(tmp_path):
    plant(tmp_path, ["cat/1.png", "dog/2.png"])
    first = open_source(tmp_path)
    assert open_source(tmp_path).fingerprint == first.fingerprint
    kept = record(first)
    assert compare_fingerprint(kept, open_source(tmp_path)) == []

    # the same size, other bytes: only the time tells
    (tmp_path / "cat/1.png").write_bytes((tmp_path / "cat/1.png").read_bytes()[::-1])
    os.utime(tmp_path / "cat/1.png", ns=(5, 5))
    touched = open_source(tmp_path)
    assert touched.fingerprint != first.fingerprint
    assert compare_fingerprint(kept, touched) == [
        "names, labels and sizes are the same, but modification times, checksums or groups differ"
    ]
    (tmp_path / "cat/1.png").write_bytes(b"longer")
    assert compare_fingerprint(kept, open_source(tmp_path)) == ["names are the same, but some files have another size"]
    (tmp_path / "bird").mkdir()
    (tmp_path / "dog/2.png").rename(tmp_path / "bird/2.png")
    assert compare_fingerprint(kept, open_source(tmp_path)) == ["classes gone: 'dog'", "classes new: 'bird'"]
    plant(tmp_path, ["train/cat/1.png", "train/dog/2.png", "test/dog/3.png"])
    assert compare_fingerprint(kept, open_source(tmp_path)) == [
        "2 samples were recorded, 3 are here",
        "the split 'test' had 0 samples and has 1",
        "the split 'train' had 0 samples and has 2",
    ]
    with pytest.raises(ArtifactError, match="version 99"):
        compare_fingerprint(kept | {"version": 99}, first)


def test_opening_a_folder_needs_no_torch(tmp_path):
    plant(tmp_path, ["cat/1.png", "dog/2.png"])
    script = (
        "import sys; from kiln.data.source import open_source; open_source(sys.argv[1]); print('torch' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == "False"
