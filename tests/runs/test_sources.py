"""Every accepted form of data through the real verbs: trained on, measured again to the last digit, never written to."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from albums import (
    CLASSES,
    FLAGS,
    class_folders,
    colour,
    command,
    fingerprint,
    flat_images,
    split_folders,
    swatch,
    train,
    write,
)
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset
from torchvision import datasets
from torchvision.transforms import v2

import kiln
from kiln.errors import DataError, UsageError


def table(path: Path, rows, *, header=("path", "label"), separator=",") -> Path:
    lines = [separator.join(map(str, row)) for row in ([header, *rows] if header else rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def folders(root):
    return class_folders(root), ()


def train_val_test(root):
    return split_folders(root), ()


def train_valid(root):
    return split_folders(root, val="valid", test=None), ()


def train_validation_test(root):
    return split_folders(root, val="validation"), ()


def train_test(root):
    return split_folders(root, val=None), ()


def wrapped_with_strays(root):
    split_folders(root / "photos-v2")
    for stray in ("README.md", "photos-v2/Thumbs.db", "photos-v2/train/.DS_Store", "photos-v2/train/red/notes.txt"):
        (root / stray).write_text("stray")
    write(root / "photos-v2/cover.png", swatch(40))
    return root, ()


def csv_with_header(root):
    return table(root / "labels.csv", flat_images(root)), ()


def csv_without_header(root):
    return table(root / "labels.csv", flat_images(root), header=None), ()


def folder_around_a_csv(root):
    table(root / "labels.csv", flat_images(root))
    return root, ()


def tsv(root):
    return table(root / "labels.tsv", flat_images(root), separator="\t"), ()


def txt_of_path_and_integer(root):
    """The lists that many published data sets ship: `path, label`, one per split, and the names in a file."""
    rows = [(path, CLASSES.index(name)) for path, name in flat_images(root)]
    for split, part in (("train", rows[:24]), ("val", rows[24:30]), ("test", rows[30:])):
        table(root / f"{split}.txt", part, header=None, separator=", ")
    (root / "names").write_text("\n".join(CLASSES) + "\n")
    return root, ("--set", f"data.class_names={root / 'names'}")


def csv_with_split_and_group(root):
    rows = flat_images(root)
    split = ["train"] * 30 + ["test"] * 6
    rows = [(*row, split[i], f"p{i // 6}") for i, row in enumerate(rows)]
    return table(root / "labels.csv", rows, header=("path", "label", "split", "patient")), ()


def named_columns(root):
    rows = [(i, path, name) for i, (path, name) in enumerate(flat_images(root))]
    flags = ("--set", "data.path_column=which", "--set", "data.label_column=what")
    return table(root / "t.csv", rows, header=("row", "which", "what")), flags


def table_beside_its_root(root):
    rows = [(Path(path).name, name) for path, name in flat_images(root / "store")]
    return table(root / "labels.csv", rows), ("--root", root / "store/img")


def zip_of_folders(root):
    class_folders(root / "tree/photos")
    return Path(shutil.make_archive(str(root / "photos"), "zip", root / "tree")), ()


def zip_of_splits(root):
    split_folders(root / "tree")
    return Path(shutil.make_archive(str(root / "photos"), "zip", root / "tree")), ()


def zip_with_a_table(root):
    table(root / "tree/labels.csv", flat_images(root / "tree"))
    return Path(shutil.make_archive(str(root / "photos"), "zip", root / "tree")), ()


def table_into_a_zip(root):
    rows = flat_images(root / "tree")
    where = shutil.make_archive(str(root / "photos"), "zip", root / "tree")
    return table(root / "labels.csv", rows), ("--root", where)


def tar_of_folders(root):
    class_folders(root / "tree")
    return Path(shutil.make_archive(str(root / "photos"), "tar", root / "tree")), ()


def compressed_tar_of_splits(root):
    split_folders(root / "tree")
    return Path(shutil.make_archive(str(root / "photos"), "gztar", root / "tree")), ()


# form -> samples in all, in val, in test; None where the hash decides how many are cut for validation
FORMS = {
    folders: (36, None, 0),
    train_val_test: (36, 6, 6),
    train_valid: (30, 6, 0),
    train_validation_test: (36, 6, 6),
    train_test: (30, None, 6),
    wrapped_with_strays: (36, 6, 6),
    csv_with_header: (36, None, 0),
    csv_without_header: (36, None, 0),
    folder_around_a_csv: (36, None, 0),
    tsv: (36, None, 0),
    txt_of_path_and_integer: (36, 6, 6),
    csv_with_split_and_group: (36, None, 6),
    named_columns: (36, None, 0),
    table_beside_its_root: (36, None, 0),
    zip_of_folders: (36, None, 0),
    zip_of_splits: (36, 6, 6),
    zip_with_a_table: (36, None, 0),
    table_into_a_zip: (36, None, 0),
    tar_of_folders: (36, None, 0),
    compressed_tar_of_splits: (36, 6, 6),
}


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_every_form_trains_and_its_numbers_repeat(form, tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    where, flags = form(root)
    before = fingerprint(root)
    said = command("train", where, *flags, *FLAGS, "--output", tmp_path / "runs", "--name", "run", "--quiet")
    assert said.status == 0, said.err
    run = kiln.Run(tmp_path / "runs/run")
    facts = run.resolved["facts"]
    counts, (total, num_val, num_test) = facts["samples"], FORMS[form]
    assert facts["classes"] == list(CLASSES)
    assert sum(counts.values()) == total
    assert (counts["val"] if num_val is None else num_val) == counts["val"] > 0
    assert counts["test"] == num_test
    for split in ("val", "test") if num_test else ("val",):
        said = command("evaluate", run.path, "--split", split, "--json")
        assert said.status == 0, said.err
        trained = run.result["metrics"][split]
        assert {name: said.json[name] for name in trained} == {name: m["value"] for name, m in trained.items()}
        assert said.json["intervals"] == {name: [m["low"], m["high"]] for name, m in trained.items()}
        assert said.json["n"] == counts[split]
        assert said.json["notes"] == []
    assert fingerprint(root) == before


def test_keys_and_labels_stand_in_predictions_and_split(tmp_path):
    run = train(split_folders(tmp_path / "data"), tmp_path / "runs")
    rows = run.predictions()
    assert [row["key"] for row in rows] == [f"test/{CLASSES[i % 3]}/{i:02d}.png" for i in (30, 33, 31, 34, 32, 35)]
    assert [row["label"] for row in rows] == [row["key"].split("/")[1] for row in rows]
    assert {row["predicted"] for row in rows} <= set(CLASSES)
    split = (run.path / "split.csv").read_text().splitlines()
    assert split[1] == "key,split,label"
    assert Counter(line.split(",")[1] for line in split[2:]) == {"train": 24, "val": 6, "test": 6}


def test_groups_are_never_parted(tmp_path):
    where, flags = csv_with_split_and_group(tmp_path)
    assert command("train", where, *flags, *FLAGS, "--output", tmp_path / "runs", "--name", "run", "-q").status == 0
    places = {}
    for row in (tmp_path / "runs/run/split.csv").read_text().splitlines()[2:]:
        _, split, _, group = row.split(",")
        places.setdefault(group, set()).add(split)
    assert len(places) == 6
    assert all(len(splits) == 1 for splits in places.values())


def test_strays_and_cut_validation_are_told(tmp_path):
    (tmp_path / "data").mkdir()
    where, _ = wrapped_with_strays(tmp_path / "data")
    said = command("train", where, *FLAGS, "--output", tmp_path / "runs")
    assert "note       2 files without an image's suffix ignored (.md 1, .txt 1)" in said.out
    assert "note       1 image outside class folders ignored, in '.'" in said.out
    assert "cut by the hash" not in said.out
    shutil.rmtree(where / "photos-v2/val")
    said = command("train", where, *FLAGS, "--output", tmp_path / "runs")
    assert "split      cut by the hash of names, so roughly: train " in said.out


def test_a_class_that_one_split_lacks_shifts_no_label(tmp_path):
    """With classes numbered per split, `green` would be 0 in val and `red` 1."""
    split_folders(tmp_path / "data", test=None)
    shutil.rmtree(tmp_path / "data/val/blue")
    run = train(tmp_path / "data", tmp_path / "runs")
    details = run.result["details"]["val"]
    assert [row["class"] for row in details["per_class"]] == list(CLASSES)
    assert [row["support"] for row in details["per_class"]] == [0, 2, 2]
    assert kiln.evaluate(run, split="val")["notes"] == ["1 class of the model without a sample here: 'blue'"]


def test_a_class_that_was_never_trained_on_is_told(tmp_path):
    split_folders(tmp_path / "data", test=None)
    write(tmp_path / "data/val/violet/01.png", swatch(50))
    said = command("train", tmp_path / "data", *FLAGS, "--output", tmp_path / "runs")
    assert said.status == 0
    assert "note       1 class held out but never trained on: 'violet'" in said.out


# Data sets of the user's own.


def tensors(num=36, *, dtype=torch.uint8):
    images = torch.stack([torch.from_numpy(swatch(i)).permute(2, 0, 1) for i in range(num)])
    return images if dtype == torch.uint8 else images.to(dtype) / 255


LABELS = torch.arange(36) % 3


class Cifar(Dataset):
    """Data in memory the way torchvision's CIFAR10 has them."""

    def __init__(self, num=36):
        self.data = np.stack([swatch(i) for i in range(num)])
        self.targets = [i % 3 for i in range(num)]
        self.classes = list(CLASSES)
        self.transform = None

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return Image.fromarray(self.data[index]), self.targets[index]


class Dicts(Dataset):
    """Items as Hugging Face data sets give them."""

    def __len__(self):
        return 36

    def __getitem__(self, index):
        return {"image": Image.fromarray(swatch(index)), "label": index % 3}


def image_folder(root):
    return datasets.ImageFolder(str(class_folders(root)))


def float_image_folder(root):
    resized = v2.Compose([v2.Resize(16), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    return datasets.ImageFolder(str(class_folders(root)), transform=resized)


DATASETS = {
    "uint8 tensors": lambda root: TensorDataset(tensors(), LABELS),
    "float tensors": lambda root: TensorDataset(tensors(dtype=torch.float32), LABELS),
    "like CIFAR10": lambda root: Cifar(),
    "dicts": lambda root: Dicts(),
    "ImageFolder": image_folder,
    "ImageFolder with a transform to PIL": lambda root: datasets.ImageFolder(
        str(class_folders(root)), transform=v2.Resize(18)
    ),
    "ImageFolder with a transform to float": float_image_folder,
    "part of a whole": lambda root: Subset(Cifar(), range(36)),
    "two joined": lambda root: ConcatDataset([TensorDataset(tensors(), LABELS), TensorDataset(tensors(), LABELS)]),
}


@pytest.mark.parametrize("name", DATASETS)
def test_every_kind_of_dataset_trains_and_its_numbers_repeat(name, tmp_path):
    dataset = DATASETS[name](tmp_path / "data")
    num = len(dataset)
    run = train(dataset, tmp_path / "runs")
    facts = run.resolved["facts"]
    assert sum(facts["samples"].values()) == num
    expected = list(CLASSES) if hasattr(dataset, "classes") or "part" in name else ["0", "1", "2"]
    assert facts["classes"] == expected
    again = kiln.evaluate(run, dataset, split="val")
    assert again["n"] == facts["samples"]["val"]
    for metric, value in run.result["metrics"]["val"].items():
        assert again[metric] == value["value"]


def test_float_items_are_not_augmented_and_it_is_said(tmp_path, capsys):
    data = TensorDataset(tensors(dtype=torch.float32), LABELS)
    settings = {"model": "kiln/small_cnn", "kwargs": {"widths": [4, 8]}, "output": str(tmp_path), "epochs": 1}
    run = kiln.train(data, **settings)
    said = capsys.readouterr().out
    assert said.count("augmentation on the device is off") == 1
    assert "exactness  E0, best effort: a Dataset object may hold randomness of its own" in said
    assert run.summary()["next"][0] == f"kiln evaluate {run.path} DATA"
    with pytest.raises(UsageError, match="trained on objects, which it cannot open again"):
        kiln.evaluate(run)


def test_a_dict_of_datasets_keeps_its_splits_and_matches_classes_by_name(tmp_path):
    """ImageFolder numbers the classes of each folder by itself: without `blue`, `green` is 0 in the test folder."""
    class_folders(tmp_path / "train", num=30)
    class_folders(tmp_path / "test", num=6, first=30)
    shutil.rmtree(tmp_path / "test/blue")
    data = {name: datasets.ImageFolder(str(tmp_path / name)) for name in ("train", "test")}
    run = train(data, tmp_path / "runs")
    assert run.resolved["facts"]["samples"]["test"] == 4
    assert [row["support"] for row in run.result["details"]["test"]["per_class"]] == [0, 2, 2]
    assert kiln.evaluate(run, data)["loss"] == run.result["metrics"]["test"]["loss"]["value"]
    with pytest.raises(UsageError, match="'exam' is no split"):
        train({"train": data["train"], "exam": data["test"]}, tmp_path / "runs")


@pytest.mark.slow
def test_a_dataset_of_floats_needs_the_torch_runtime_to_be_measured(tmp_path):
    data = TensorDataset(tensors(dtype=torch.float32), LABELS)
    run = train(data, tmp_path / "runs")
    file = kiln.export(run)
    with pytest.raises(UsageError, match="these data come transformed"):
        kiln.evaluate(file, data)
    with pytest.raises(UsageError, match="already transformed"):
        kiln.predict(run, data)


# Pixels of other kinds.


def of_pixels(root: Path, make) -> Path:
    """Class folders whose files `make(path, number)` writes."""
    for number in range(24):
        path = root / CLASSES[number % 2] / f"{number:02d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        make(path, number)
    return root


def grey8(path, number):
    Image.fromarray(np.full((20, 20), 10 * number, np.uint8)).save(path.with_suffix(".png"))


def grey16(path, number):
    Image.fromarray(np.full((20, 20), 2_560 * number, np.uint16)).save(path.with_suffix(".png"))


def rgba(path, number):
    image = np.full((20, 20, 4), (*colour(number, number % 3), 128), np.uint8)
    Image.fromarray(image).save(path.with_suffix(".png"))


def five_channels(path, number):
    np.save(path.with_suffix(".npy"), np.full((20, 22, 5), 10 * number, np.uint8))


@pytest.mark.parametrize(
    ("make", "flags", "channels"),
    [
        (grey8, (), 1),
        (grey16, (), 1),
        (grey8, ("--channels", "3"), 3),
        (rgba, (), 3),
        (rgba, ("--channels", "4"), 4),
        (five_channels, (), 5),
    ],
    ids=["grey stays grey", "16-bit grey", "grey as colour", "alpha composited", "alpha kept", "five channels"],
)
def test_channels_end_to_end(make, flags, channels, tmp_path):
    data = of_pixels(tmp_path / "data", make)
    said = command("train", data, *FLAGS, *flags, "--output", tmp_path / "runs", "--name", "run")
    assert said.status == 0, said.err
    assert f"{channels} channel" in said.out
    run = kiln.Run(tmp_path / "runs/run")
    predictor = run.model()
    assert predictor.contract.channels == channels
    assert kiln.evaluate(run, split="val")["loss"] == run.result["metrics"]["val"]["loss"]["value"]
    rows = kiln.predict(run, data)
    assert [row["error"] for row in rows] == [None] * 24


def test_sixteen_bits_are_scaled_and_not_cut(tmp_path):
    """Cut at 255, every image but the darkest would be white, and all would look the same to the model."""
    run = train(of_pixels(tmp_path / "data", grey16), tmp_path / "runs")
    contract = run.model().contract
    source = kiln.open_source(tmp_path / "data")
    seen = {int(contract.apply(source.read(index)).mean()): key for index, key in enumerate(source.keys)}
    assert len(seen) == 24
    assert max(seen) == pytest.approx(2_560 * 23 / 257, abs=1)


def test_five_channels_need_files_that_hold_them(tmp_path):
    said = command("train", class_folders(tmp_path / "data"), *FLAGS, "--channels", "5", "--output", tmp_path / "runs")
    assert said.status == 3
    assert "E206" in said.err or "E202" in said.err
    assert "5 channels" in said.err or "channels" in said.err


@pytest.mark.parametrize("resize", ["crop", "pad", "stretch"])
def test_each_way_of_resizing_goes_from_training_to_prediction(resize, tmp_path):
    for number in range(24):
        image = np.zeros((16, 32, 3), np.uint8)
        image[:, 8:24] = colour(number, number % 3)  # what a crop keeps; the rest is black
        write(tmp_path / "data" / CLASSES[number % 3] / f"{number:02d}.png", image)
    said = command("train", tmp_path / "data", *FLAGS, "--resize", resize, "--output", tmp_path / "runs", "--name", "r")
    assert said.status == 0, said.err
    run = kiln.Run(tmp_path / "runs/r")
    contract = run.model().contract
    assert contract.resize == resize
    seen = contract.apply((tmp_path / "data/red/05.png").read_bytes())
    black, border = (seen.max(axis=2) == 0).mean(), (seen == contract.fill).all(axis=2).mean()
    assert (black == 0) == (resize == "crop")
    assert (border == 0.5) == (resize == "pad")
    assert kiln.evaluate(run, split="val")["loss"] == run.result["metrics"]["val"]["loss"]["value"]


# Names of other kinds.


def test_unicode_long_and_awkward_class_names(tmp_path):
    names = ("кошка", 'a b, c"d', "x" * 200, "狗🐕", "-minus", "1e5")
    class_folders(tmp_path / "data", num=48, names=names)
    said = command("train", tmp_path / "data", *FLAGS, "--output", tmp_path / "runs", "--name", "run")
    assert said.status == 0, said.err
    run = kiln.Run(tmp_path / "runs/run")
    assert run.resolved["facts"]["classes"] == sorted(names)
    assert {row["label"] for row in run.predictions()} == set(names)
    assert set(run.model().classes) == set(names)
    said = command("evaluate", run.path, "--split", "val")
    assert said.status == 0, said.err
    assert all(name in said.out for name in names)


def test_names_are_composed_unicode_whatever_the_file_system_says(tmp_path):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    class_folders(tmp_path / "data/train", names=(composed, "tea"))
    class_folders(tmp_path / "data/val", names=(decomposed, "tea"), num=6)
    run = train(tmp_path / "data", tmp_path / "runs")
    assert run.resolved["facts"]["classes"] == [composed, "tea"]
    assert run.result["metrics"]["val"]["accuracy"]["n"] == 6


def test_a_folder_that_is_read_only_is_enough(tmp_path):
    data = class_folders(tmp_path / "data")
    for folder, _, files in os.walk(data, topdown=False):
        for name in files:
            os.chmod(os.path.join(folder, name), 0o444)
        os.chmod(folder, 0o555)
    try:
        assert train(data, tmp_path / "runs").status["state"] == "done"
    finally:
        for folder, _, _ in os.walk(data):
            os.chmod(folder, 0o755)


# Tables that are wrong: every row is named, and the status is 3.


@pytest.mark.parametrize(
    ("rows", "messages"),
    [
        (["img/00.png,red", "gone.png,blue", "img/01.png,blue"], ["row 3: no file 'gone.png'"]),
        (["img/00.png,red", "img/01.png,blue", "img/00.png,red"], ["row 4: 'img/00.png' again"]),
        (["img/00.png,red", "img/00.png,blue"], ["row 3: 'img/00.png' again, now 'blue'; it is 'red' in row 2"]),
        (["img/00.png,red", "img/01.png,", "img/02.png,blue"], ["labels.csv row 3"]),
        (["img/00.png,red", "img/01.png", "img/02.png,blue,extra"], ["row 3", "row 4"]),
        (["../secret.png,red", "img/01.png,blue"], ["row 2"]),
    ],
    ids=["missing file", "duplicate", "conflict", "empty label", "too few and too many cells", "outside"],
)
def test_wrong_rows_are_all_named(rows, messages, tmp_path):
    flat_images(tmp_path, num=4)
    where = table(tmp_path / "labels.csv", [(row,) for row in rows], separator="")
    where.write_text("path,label\n" + "\n".join(rows) + "\n")
    said = command("train", where, *FLAGS, "--output", tmp_path / "runs")
    assert said.status == 3
    assert said.err.startswith("error E203: ")
    for message in messages:
        assert message in said.err
    assert not (tmp_path / "runs").exists() or os.listdir(tmp_path / "runs") == []


@pytest.mark.parametrize(
    ("write_as", "flags"),
    [
        (lambda text: b"\xef\xbb\xbf" + text.encode(), ()),
        (lambda text: text.replace("\n", "\r\n").encode(), ()),
        (lambda text: text.replace(",", ";").encode(), ()),
        (lambda text: text.replace("img/", '"img/').replace(".png", '.png"').encode(), ()),
        (lambda text: text.encode("utf-16"), ()),
        (lambda text: text.replace("img/", "img\\").encode(), ()),
    ],
    ids=["byte order mark", "Windows line ends", "semicolons", "quotes", "UTF-16", "backslashes"],
)
def test_tables_as_spreadsheets_write_them(write_as, flags, tmp_path):
    where = table(tmp_path / "labels.csv", flat_images(tmp_path))
    where.write_bytes(write_as(where.read_text()))
    said = command("train", where, *FLAGS, *flags, "--output", tmp_path / "runs", "--name", "run", "-q")
    assert said.status == 0, said.err
    assert kiln.Run(tmp_path / "runs/run").resolved["facts"]["classes"] == list(CLASSES)


def test_many_wrong_rows_are_counted_and_the_first_twenty_shown(tmp_path):
    rows = [*flat_images(tmp_path, num=6), *((f"gone/{i}.png", "red") for i in range(100))]
    said = command("train", table(tmp_path / "labels.csv", rows), *FLAGS, "--output", tmp_path / "runs")
    assert said.status == 3
    assert "row 8: no file 'gone/0.png'" in said.err
    assert "gone/19.png" in said.err
    assert "gone/20.png" not in said.err
    assert "80 more" in said.err


def test_an_integer_label_without_a_name_is_named(tmp_path):
    rows = [(path, index % 4) for index, (path, _) in enumerate(flat_images(tmp_path))]
    (tmp_path / "names.txt").write_text("blue\ngreen\nred\n")
    flags = ("--set", f"data.class_names={tmp_path / 'names.txt'}", "--output", tmp_path / "runs")
    said = command("train", table(tmp_path / "labels.csv", rows), *FLAGS, *flags)
    assert said.status == 3
    assert "row 5: '3' is no class" in said.err
    assert "expected: 'blue', 'green', 'red', or a number from 0 to 2" in said.err


def test_a_damaged_archive_and_an_unsafe_one(tmp_path):
    where, _ = zip_of_folders(tmp_path)
    data = bytearray(where.read_bytes())
    where.write_bytes(data[: len(data) // 2])
    said = command("train", where, *FLAGS, "--output", tmp_path / "runs")
    assert said.status == 3
    assert said.err.startswith("error E207: ")
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("../../evil.png", b"x")
    assert command("train", tmp_path / "evil.zip", *FLAGS).status in (3, 8)
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    said = command("train", tmp_path / "empty.tar", *FLAGS)
    assert said.status == 3
    assert "no images" in said.err


def test_json_tells_errors_to_programs_too(tmp_path):
    said = command("train", tmp_path / "nothing-here", *FLAGS, "--json")
    assert said.status == 3
    assert said.json["error"]["code"] == "E201"
    assert json.dumps(said.json)


def test_an_item_that_fails_is_an_error_with_its_index(tmp_path):
    class Broken(Cifar):
        def __getitem__(self, index):
            if index == 7:
                raise OSError("the disk is on fire")
            return super().__getitem__(index)

    with pytest.raises(DataError, match="item 7 of Broken cannot be read: OSError: the disk is on fire"):
        train(Broken(), tmp_path / "runs", epochs=1)
