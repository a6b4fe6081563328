from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_images import jpeg, plant, png
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset, TensorDataset
from torchvision import datasets
from torchvision.transforms import v2

from kiln import pixels
from kiln.data.audit import check_headers
from kiln.data.fingerprint import compare_fingerprint, record
from kiln.data.source import open_source
from kiln.errors import DataError, UsageError


class Items(Dataset):
    """A list of items, which counts how often it is asked."""

    def __init__(self, items, **attributes):
        self.items, self.asked = items, 0
        vars(self).update(attributes)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        self.asked += 1
        item = self.items[index]
        if isinstance(item, Exception):
            raise item
        return item


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(png(), 0)])


def colour(size=(5, 6)):
    height, width = size
    return np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3)


def test_pil_items_become_arrays():
    source = open_source(Items([(Image.fromarray(colour()), 0), (Image.fromarray(colour()[..., 0]), 1)]))
    assert np.array_equal(source.read(0), colour())
    assert source.read(1).shape == (5, 6, 1)
    assert source.labels == ("0", "1")
    assert source.keys == ("000000000", "000000001")
    assert not source.transformed
    assert source.header(0) == pixels.Header(6, 5, "RGB", "array", 1, 1)
    assert check_headers(source, range(2)) == []


@pytest.mark.parametrize("mode", ["1", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"])
def test_other_pil_modes_go_through_the_pixel_contract(mode):
    image = Image.fromarray(np.full((4, 6), 200, np.uint8)).convert("RGB" if mode == "YCbCr" else "L")
    image = image.convert(mode) if mode != "I;16" else Image.fromarray(np.full((4, 6), 51_400, np.uint16))
    found = open_source(Items([(image, 0)])).read(0)
    assert isinstance(found, bytes)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG" if mode in ("1", "LA", "P", "RGBA", "I;16") else "TIFF")
    assert np.array_equal(pixels.decode(found), pixels.decode(buffer.getvalue()))


@pytest.mark.parametrize(
    "image",
    [
        colour(),
        np.ascontiguousarray(colour().transpose(2, 0, 1)),
        torch.from_numpy(colour()).permute(2, 0, 1),
        torch.from_numpy(colour()),
    ],
    ids=["array HWC", "array CHW", "tensor CHW", "tensor HWC"],
)
def test_uint8_items_in_either_layout(image):
    source = open_source(Items([(image, 0)]))
    assert np.array_equal(source.read(0), colour())
    assert any("items are uint8 of shape" in note for note in source.notes)


def test_grey_and_many_channels():
    assert open_source(Items([(np.zeros((5, 7), np.uint8), 0)])).read(0).shape == (5, 7, 1)
    assert open_source(Items([(torch.zeros(12, 5, 7, dtype=torch.uint8), 0)])).read(0).shape == (5, 7, 12)
    assert open_source(Items([(np.zeros((5, 7, 12), np.uint8), 0)])).read(0).shape == (5, 7, 12)


def test_bytes_paths_and_dicts(tmp_path):
    plant(tmp_path, ["1.png"])
    assert open_source(Items([(png(3), 0)])).read(0) == png(3)
    assert open_source(Items([(tmp_path / "1.png", 0)])).read(0) == png(0)
    assert open_source(Items([(str(tmp_path / "1.png"), 0)])).header(0).width == 8
    source = open_source(Items([{"image": Image.fromarray(colour()), "label": 4}]))
    assert np.array_equal(source.read(0), colour())
    assert source.labels == ("4",)


def test_float_items_are_already_transformed():
    source = open_source(Items([(torch.rand(3, 4, 6, dtype=torch.float64), 0)]))
    assert source.transformed
    assert source.read(0).dtype == torch.float32
    assert source.read(0).shape == (3, 4, 6)
    assert any("augmentation on the device is off" in note and "E0" in note for note in source.notes)
    assert open_source(Items([(np.zeros((3, 4, 6), np.float32), 0)])).transformed


def test_tensor_dataset_is_not_read_item_by_item():
    images = torch.randint(0, 256, (50, 3, 4, 6), dtype=torch.uint8)
    source = open_source(TensorDataset(images, torch.arange(50) % 7))
    assert source.labels == tuple(str(i % 7) for i in range(50))
    assert np.array_equal(source.read(9), images[9].permute(1, 2, 0).numpy())
    assert source.size_of(0) == 72
    changed = images.clone()
    changed[0, 0, 0, 0] ^= 1
    other = open_source(TensorDataset(changed, torch.arange(50) % 7))
    assert compare_fingerprint(record(source), other) == [
        "names, labels and sizes are the same, but modification times, checksums or groups differ"
    ]
    assert compare_fingerprint(record(source), open_source(TensorDataset(images, torch.arange(50) % 7))) == []


def test_several_labels_per_item():
    images = torch.zeros(3, 3, 4, 6, dtype=torch.uint8)
    multi_hot = torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 0]])
    assert open_source(TensorDataset(images, multi_hot)).labels == ("0,2", "", "1")
    named = Items([(png(), ["red", "round"]), (png(), [])], classes=["red", "round"])
    assert open_source(named).labels == ("red,round", "")
    assert open_source(Items([(png(), [1, 0])], classes=["red", "round"])).labels == ("red",)
    assert open_source(TensorDataset(images, torch.tensor([[4], [2], [0]]))).labels == ("4", "2", "0")


def test_image_folder_without_a_transform_keeps_its_files(tmp_path):
    plant(tmp_path, ["dog/b.png", "cat/a.png"])
    (tmp_path / "dog/b.png").write_bytes(jpeg(77))
    source = open_source(datasets.ImageFolder(tmp_path))
    assert source.keys == ("cat/a.png", "dog/b.png")
    assert source.labels == ("cat", "dog")
    assert source.class_names == ("cat", "dog")
    assert source.read(1) == jpeg(77)
    (tmp_path / "cat/a.png").write_bytes(b"<html>")
    assert [bad.key for bad in check_headers(open_source(datasets.ImageFolder(tmp_path)), range(2))] == ["cat/a.png"]


def test_image_folder_with_a_transform_is_respected(tmp_path):
    plant(tmp_path, ["cat/a.png", "dog/b.png"])
    resized = open_source(datasets.ImageFolder(tmp_path, transform=v2.Resize(3)))
    assert resized.read(0).shape == (3, 3, 3)
    to_float = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    source = open_source(datasets.ImageFolder(tmp_path, transform=to_float))
    assert source.transformed
    assert source.read(0).shape == (3, 8, 8)
    assert source.keys == ("cat/a.png", "dog/b.png")


def test_target_transforms_and_subclasses_are_respected(tmp_path):
    plant(tmp_path, ["cat/a.png", "dog/b.png", "emu/c.png"])
    turned = datasets.ImageFolder(tmp_path, target_transform=lambda target: 2 - target)
    assert open_source(turned).labels == ("emu", "dog", "cat")

    class Inverted(datasets.ImageFolder):
        def __getitem__(self, index):
            image, target = super().__getitem__(index)
            return Image.fromarray(255 - np.asarray(image)), target

    assert open_source(Inverted(tmp_path)).read(0).min() == 255


def test_torchvision_cifar10_works_as_it_is(tmp_path):
    """The real class, on files of the real form made here."""
    import pickle

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    names = [b"airplane", b"cat", b"dog"]
    data = np.random.default_rng(0).integers(0, 256, (10, 3072), dtype=np.uint8)

    class Local(datasets.CIFAR10):
        train_list = (("data_batch_1", None),)
        test_list = (("test_batch", None),)

        def _check_integrity(self):
            return True

        def _load_meta(self):
            self.classes = [name.decode() for name in names]

    for name in ("data_batch_1", "test_batch"):
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": [i % 3 for i in range(10)]}))
    source = open_source({"train": Local(tmp_path, train=True), "test": Local(tmp_path, train=False)})
    assert source.splits == ("test",) * 10 + ("train",) * 10
    assert source.labels[:4] == ("airplane", "cat", "dog", "airplane")
    assert source.class_names == ("airplane", "cat", "dog")
    assert np.array_equal(source.read(3), data[3].reshape(3, 32, 32).transpose(1, 2, 0))
    assert source.keys[0] == "test/000000000"


def test_classes_that_differ_between_splits_are_matched_by_name(tmp_path):
    plant(tmp_path, ["train/cat/1.png", "train/dog/2.png", "train/emu/3.png", "val/dog/4.png", "val/emu/5.png"])
    source = open_source({name: datasets.ImageFolder(tmp_path / name) for name in ("train", "val")})
    assert dict(zip(source.keys, source.labels, strict=True))["val/dog/4.png"] == "dog"
    assert source.class_names == ("cat", "dog", "emu")
    assert "the class lists of the data sets differ: classes are matched by name" in source.notes


def test_targets_are_taken_from_the_set_and_checked_against_an_item():
    items = [(png(i), i % 3) for i in range(30)]
    known = Items(items, targets=[i % 3 for i in range(30)])
    assert open_source(known).labels == tuple(str(i % 3) for i in range(30))
    assert known.asked <= 3
    other = Items(items, targets=[7] * 30)
    source = open_source(other)
    assert source.labels == tuple(str(i % 3) for i in range(30))
    assert "Items does not say its targets (.targets, .labels): all 30 items were read" in source.notes
    assert open_source(Items(items)).labels == source.labels


def test_subsets_and_concatenations():
    whole = TensorDataset(torch.randint(0, 256, (20, 3, 4, 6), dtype=torch.uint8), torch.arange(20))
    part = open_source(Subset(Subset(whole, range(10, 20)), [9, 1]))
    assert part.keys == ("000000011", "000000019")
    assert part.labels == ("11", "19")
    assert np.array_equal(part.read(1), whole[19][0].permute(1, 2, 0).numpy())
    both = open_source(ConcatDataset([whole, whole]))
    assert len(both) == 40
    assert both.labels[20] == "0"
    with pytest.raises(DataError, match=r"1 item of Subset occur more than once\n.*leak"):
        open_source(Subset(whole, [1, 1]))


def test_a_subset_of_files_keeps_paths(tmp_path):
    plant(tmp_path, ["cat/a.png", "dog/b.png"])
    source = open_source(Subset(datasets.ImageFolder(tmp_path), [1]))
    assert (source.keys, source.labels) == (("dog/b.png",), ("dog",))
    assert source.read(0) == png(1)
    before = source.fingerprint
    os.utime(tmp_path / "dog/b.png", ns=(1, 1))
    assert open_source(Subset(datasets.ImageFolder(tmp_path), [1])).fingerprint != before


def test_prediction_needs_no_targets():
    source = open_source(Items([png(1), png(2)]), labelled=False)
    assert source.labels is None
    assert source.read(1) == png(2)


def test_an_unreadable_item_is_an_error_of_that_item():
    source = open_source(Items([ValueError("torn"), (png(1), 1), (png(2), 2)], targets=[0, 1, 2]))
    assert source.labels == ("0", "1", "2")
    with pytest.raises(DataError, match="item 0 of Items cannot be read: ValueError: torn"):
        source.read(0)
    mixed = open_source(Items([(colour(), 0), (np.zeros((3, 4, 6), np.float32), 1)]))
    with pytest.raises(DataError, match=r"an item is float32, unlike the first one"):
        mixed.read(1)
    with pytest.raises(DataError, match="item 1 of Items cannot be read: OSError"):
        open_source(Items([OSError("x"), OSError("y")], targets=[0, 1]))


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Items([(torch.zeros(3), 0)]), r"items of Items are Tensor torch.float32 of shape \(3,\), which is no image"),
        (Items([(np.zeros((4, 4), np.int64), 0)]), "int64 of shape"),
        (Items([(3.5, 0)]), "are float, which is no image"),
        (Items([(png(), 0.5)]), r"a target of the data set is 0.5 \(float\)"),
        (Items([png()]), "an item of the data set has no label"),
        (Items([{"x": 1}]), r"a dict without an image: \['x'\]"),
        (Items([]), "the data set Items is empty"),
        (42, "int cannot be a source"),
        (Stream(), "Stream cannot be a source"),
    ],
)
def test_what_cannot_be_a_source(dataset, message):
    with pytest.raises(DataError, match=message):
        open_source(dataset)


def test_dicts_of_splits():
    part = Items([(png(), 0)])
    with pytest.raises(UsageError, match=r"'tset' is no split\n.*did you mean: test"):
        open_source({"train": part, "tset": part})
    with pytest.raises(UsageError, match="no data sets were given"):
        open_source({})
    with pytest.raises(UsageError, match="root and the column names have no effect"):
        open_source(part, root="x")
    floats = Items([(torch.zeros(3, 4, 4), 0)])
    with pytest.raises(DataError, match="items differ between the data sets: bytes, float"):
        open_source({"train": floats, "test": part})


def test_class_names_given_by_hand():
    source = open_source(Items([(png(), 1)]), class_names=["cat", "dog"])
    assert (source.labels, source.class_names) == (("1",), ("cat", "dog"))


def test_vanished_path(tmp_path: Path):
    plant(tmp_path, ["1.png", "2.png"])
    source = open_source(Items([(tmp_path / "1.png", 0), (tmp_path / "2.png", 1)]))
    (tmp_path / "2.png").unlink()
    with pytest.raises(DataError, match=r"cannot read '.*2.png': No such file"):
        source.read(1)
    assert check_headers(source, [1])[0].reason == "unreadable"
