"""Stacks of images: NumPy files, arrays from Python, MNIST and CIFAR; and those that are damaged, hostile or pickled."""

from __future__ import annotations

import gzip
import pickle
import struct

import numpy as np
import pytest
from small_images import reads, stack

from kiln import pixels
from kiln.data import formats
from kiln.data.formats import cifar
from kiln.data.formats.opening import split_in
from kiln.data.source import open_source
from kiln.errors import DataError, SecurityError, UsageError


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        ({"images": "images", "labels": "labels"}, None),
        ({"images": "x_train", "labels": "y_train"}, ("train",) * 5),
        ({"images": "test_images", "labels": "test_labels"}, ("test",) * 5),
        ({"images": "arr_0", "labels": "arr_1"}, None),
    ],
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path, names, splits, save):
    images = stack(5)
    save(tmp_path / "a.npz", **{names["images"]: images, names["labels"]: np.arange(5) % 2})
    source = open_source(tmp_path / "a.npz")
    assert source.labels == ("0", "1", "0", "1", "0")
    assert source.splits == splits
    assert source.keys[4] == "000000004"
    assert not source.has_headers
    assert all(np.array_equal(found, image) for found, image in zip(reads(source), images, strict=True))
    assert source.header(0) == pixels.Header(5, 6, "RGB", "array", 1, 1)


def test_what_an_npz_holds_plain_is_mapped_and_never_copied(tmp_path):
    np.savez(tmp_path / "a.npz", images=stack(5), labels=np.arange(5))
    source = open_source(tmp_path / "a.npz")
    image = source.read(2)
    assert isinstance(image, np.ndarray)
    base = image
    while isinstance(base.base, np.ndarray):
        base = base.base
    assert isinstance(base, np.memmap)
    assert not image.flags.writeable
    assert len(pickle.dumps(source._reader)) < stack(5).nbytes * 10  # a path, not the pixels
    assert np.array_equal(pickle.loads(pickle.dumps(source)).read(2), image)


def test_npy_files_of_a_folder(tmp_path):
    for split, length in (("train", 4), ("test", 2)):
        np.save(tmp_path / f"x_{split}.npy", stack(length, 7, 7))
        np.save(tmp_path / f"y_{split}.npy", np.arange(length).reshape(-1, 1))
    np.save(tmp_path / "class_names.npy", np.array(["zero", "one", "two", "three"]))
    source = open_source(tmp_path)
    assert source.keys[:3] == ("test/000000000", "test/000000001", "train/000000000")
    assert source.labels == ("zero", "one", "zero", "one", "two", "three")
    assert source.class_names == ("zero", "one", "two", "three")
    assert source.splits == ("test",) * 2 + ("train",) * 4
    assert np.array_equal(source.read(2), stack(4, 7, 7)[0][..., None])
    assert source.header(0).mode == "L"


def test_channels_first_and_many_labels(tmp_path):
    images = stack(3, 3, 8, 9)
    np.savez(tmp_path / "a.npz", images=images, labels=np.array([[0, 1, 1], [0, 0, 0], [1, 0, 0]]))
    source = open_source(tmp_path / "a.npz")
    assert source.labels == ("1,2", "", "0")
    assert source.unlabelled == ("sample '000000001'",)
    assert np.array_equal(source.read(1), images[1].transpose(1, 2, 0))


def test_arrays_given_in_python():
    images = stack(6)
    source = open_source((images, ["a", "b"] * 3))
    assert source.labels == ("a", "b") * 3
    assert np.shares_memory(source.read(3), images)
    again = open_source((images.copy(), ["a", "b"] * 3))
    assert again.fingerprint == source.fingerprint
    assert open_source((images[::-1].copy(), ["a", "b"] * 3)).fingerprint != source.fingerprint
    by_split = open_source({"train": (images, range(6)), "val": (images[:2], [0, 1])}, class_names=list("uvwxyz"))
    assert by_split.splits == ("train",) * 6 + ("val",) * 2
    assert by_split.class_names == tuple("uvwxyz")
    with pytest.raises(UsageError, match="'trian' is no split"):
        open_source({"trian": (images, range(6))})
    with pytest.raises(UsageError, match="no effect on arrays"):
        open_source((images, range(6)), label_column="y")


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"images": stack(4).astype(np.float32), "labels": np.arange(4)}, "images are float32 of shape"),
        ({"images": stack(4), "labels": np.arange(3)}, "4 images, but 3 labels"),
        ({"images": stack(4, 6, 6, 5), "labels": np.arange(4)}, "have 5 channels"),
        ({"images": stack(4)}, "there are no labels in"),
        ({"pictures": stack(4), "labels": np.arange(4)}, "no array in .* is named like images"),
        ({"images": stack(4), "x": stack(4), "labels": np.arange(4)}, "may be the images: 'images' and 'x'"),
        ({"images": stack(4), "labels": np.arange(4) / 3}, "labels are float64 of shape"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path, saved, message):
    np.savez(tmp_path / "a.npz", **saved)
    with pytest.raises(DataError, match=message):
        open_source(tmp_path / "a.npz")


def test_columns_name_arrays(tmp_path):
    np.savez(tmp_path / "a.npz", pictures=stack(4), fine=np.arange(4), coarse=np.arange(4) // 2)
    source = open_source(tmp_path / "a.npz", path_column="pictures", label_column="coarse")
    assert source.labels == ("0", "0", "1", "1")
    with pytest.raises(UsageError, match="no split or group column"):
        open_source(tmp_path / "a.npz", split_column="fine")


def test_arrays_of_python_objects_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.array([{}], object), labels=np.arange(1))
    with pytest.raises(SecurityError, match="pickled Python objects") as caught:
        open_source(tmp_path / "a.npz")
    assert caught.value.code == "E702"


def test_npy_files_that_lie_about_their_size(tmp_path):
    np.save(tmp_path / "images.npy", stack(4))
    np.save(tmp_path / "labels.npy", np.arange(4))
    whole = (tmp_path / "images.npy").read_bytes()
    (tmp_path / "images.npy").write_bytes(whole[:-1])
    with pytest.raises(DataError, match=r"bytes are too few for uint8 of shape \(4, 6, 5, 3\)"):
        open_source(tmp_path)
    (tmp_path / "images.npy").write_bytes(
        whole.replace(b"(4, 6, 5, 3), }", b"(4294967296, 4294967296, 4294967296,), }")
    )
    with pytest.raises(DataError, match="damaged"):
        open_source(tmp_path)
    (tmp_path / "images.npy").write_bytes(b"")
    with pytest.raises(DataError, match=r"no \.npy header"):
        open_source(tmp_path)


def test_a_folder_of_npy_images_stays_a_folder_of_images(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "images.npy", stack(1)[0])
    assert open_source(tmp_path).labels == ("cat", "dog")
    assert formats.open_path(str(tmp_path / "cat" / "images.npy")) is None


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00002.parquet", "train"), ("validation.h5", "val"), ("x_test", "test"), ("val/data-1.tar", "val"),
        ("data-0001.tar", None), ("train_test.h5", None), ("trainer.npz", None),
    ],
)  # fmt: skip
def test_splits_in_names(name, split):
    assert split_in(name) == split


# MNIST and CIFAR


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("below", ["", "MNIST/raw"])
def test_mnist(tmp_path, suffix, below):
    folder = tmp_path / below
    folder.mkdir(parents=True, exist_ok=True)
    for name, length in (("train", 4), ("t10k", 3)):
        for kind, values in (
            ("images-idx3", stack(length, 28, 28)),
            ("labels-idx1", np.arange(length, dtype=np.uint8)),
        ):
            data = idx(values)
            (folder / f"{name}-{kind}-ubyte{suffix}").write_bytes(gzip.compress(data) if suffix else data)
    source = open_source(tmp_path)
    assert source.splits == ("test",) * 3 + ("train",) * 4
    assert source.labels == ("0", "1", "2", "0", "1", "2", "3")
    assert np.array_equal(source.read(3), stack(4, 28, 28)[0][..., None])
    one = open_source(folder / f"t10k-images-idx3-ubyte{suffix}")
    assert one.labels == ("0", "1", "2")
    assert len(open_source(tmp_path, labelled=False)) == 7


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "does not begin as IDX"),
        (b"\0\0\x08\x03\0\0", "ends inside its header"),
        (idx(stack(4, 28, 28))[:-1], "too few"),
        (bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**31, 2**31, 2**31), "too few"),
        (bytes([0, 0, 13, 3]) + struct.pack(">3I", 1, 1, 1) + b"0000", "does not begin as IDX"),
    ],
)
def test_damaged_mnist(tmp_path, data, message):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(data)
    with pytest.raises(DataError, match=message):
        open_source(tmp_path, labelled=False)


def test_a_gz_that_unpacks_to_too_much_is_refused(tmp_path):
    lie = bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**20, 2**10, 2**10)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(lie))
    with pytest.raises(DataError, match=r"unpacks to 1,099,511,627,776 bytes"):
        open_source(tmp_path, labelled=False)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(stack(4, 28, 28)))[:-20])
    with pytest.raises(DataError, match="damaged"):
        open_source(tmp_path, labelled=False)


def test_cifar_10(tmp_path):
    images = stack(6, 3, 32, 32)
    records = [bytes([number % 3]) + image.tobytes() for number, image in enumerate(images)]
    (tmp_path / "data_batch_1.bin").write_bytes(b"".join(records[:2]))
    (tmp_path / "data_batch_2.bin").write_bytes(b"".join(records[2:4]))
    (tmp_path / "test_batch.bin").write_bytes(b"".join(records[4:]))
    (tmp_path / "batches.meta.txt").write_text("airplane\nbird\ncat\n\n")
    source = open_source(tmp_path)
    assert source.class_names == ("airplane", "bird", "cat")
    assert source.splits == ("test",) * 2 + ("train",) * 4
    assert source.labels == ("bird", "cat", "airplane", "bird", "cat", "airplane")
    assert np.array_equal(source.read(4), images[2].transpose(1, 2, 0))
    assert np.array_equal(pickle.loads(pickle.dumps(source)).read(4), source.read(4))
    (tmp_path / "test_batch.bin").write_bytes(b"".join(records[4:])[:-1])
    with pytest.raises(DataError, match="no whole number of records"):
        open_source(tmp_path)


def test_cifar_100_takes_the_fine_labels(tmp_path):
    images = stack(4, 3, 32, 32)
    for name in ("train", "test"):
        records = [bytes([9, number]) + image.tobytes() for number, image in enumerate(images)]
        (tmp_path / f"{name}.bin").write_bytes(b"".join(records))
    (tmp_path / "fine_label_names.txt").write_text("a\nb\nc\nd\n")
    assert open_source(tmp_path).labels == ("a", "b", "c", "d") * 2
    (tmp_path / "fine_label_names.txt").write_text("a\nb\nc\n")
    with pytest.raises(DataError, match="a label is 3, but there are 3 names"):
        open_source(tmp_path)


def test_pickled_cifar_is_refused_before_anything_is_read(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    marker = tmp_path / "ran"
    for name in ("data_batch_1", "test_batch", "batches.meta"):
        (folder / name).write_bytes(f"cos\nsystem\n(S'touch {marker}'\ntR.".encode())
    with pytest.raises(SecurityError, match="loading a pickle can run any code") as caught:
        open_source(tmp_path)
    assert "cifar-10-binary.tar.gz" in str(caught.value)
    assert not marker.exists()
    assert cifar.PICKLED.search("data_batch_1.bin") is None
