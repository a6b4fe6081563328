"""One suite over every form of a source: the same samples, the same batches at any step, whoever reads them."""

from __future__ import annotations

import itertools
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import kiln
from kiln import pixels
from kiln.data.fingerprint import compare_fingerprint, record
from kiln.data.images import RandomCropImages
from kiln.data.loader import Assembler, BadFiles, TrainLoader
from kiln.data.sampler import Cut, Shuffle
from kiln.errors import DataError, KilnError
from kiln.pixels import PixelContract
from kiln.random import keys_of

FILE_FORMS = ("folder", "zip", "tar", "packed", "lmdb", "hdf5", "webdataset", "parquet")
ARRAY_FORMS = ("npz", "npy", "hdf5 of arrays", "mnist", "packed arrays", "lmdb arrays", "hdf5 arrays")
PICTURE_FORMS = ("webdataset of arrays", "parquet of arrays")
PER_SPLIT = {"train": 14, "val": 6, "test": 5}
CLASSES = ("cat", "dög")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Real JPEG and PNG files of several sizes and modes, in split folders with two classes."""
    root = tmp_path_factory.mktemp("conformance") / "pictures"
    rng = np.random.default_rng(0)
    for split, count in PER_SPLIT.items():
        for number in range(count):
            folder = root / split / CLASSES[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            shape = (20 + number, 24, 3) if number % 3 else (30, 20 + number)
            image = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
            image.save(folder / f"{number:02d}.{'png' if number % 4 == 0 else 'jpg'}", quality=90)
    return root


def arrays() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(N, 28, 28) images and labels by split."""
    rng = np.random.default_rng(1)
    return {
        split: (rng.integers(0, 256, (count, 28, 28), dtype=np.uint8), np.arange(count, dtype=np.uint8) % 3)
        for split, count in PER_SPLIT.items()
        if split != "val"
    }


def idx(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.tobytes()


def make_arrays(form: str, place: Path) -> Path:
    named = {f"{kind}_{split}": values[kind == "y"] for split, values in arrays().items() for kind in "xy"}
    if form == "npz":
        np.savez(place / "a.npz", **named)
        return place / "a.npz"
    if form == "npy":
        for name, values in named.items():
            np.save(place / f"{name}.npy", values)
        return place
    if form == "hdf5 of arrays":
        h5py = pytest.importorskip("h5py")
        with h5py.File(place / "a.h5", "w") as file:
            for name, values in named.items():
                file.create_dataset(name, data=values, chunks=(2, *values.shape[1:]), compression="gzip")
        return place / "a.h5"
    for split, (images, labels) in arrays().items():
        name = {"train": "train", "test": "t10k"}[split]
        (place / f"{name}-images-idx3-ubyte").write_bytes(idx(images))
        (place / f"{name}-labels-idx1-ubyte").write_bytes(idx(labels))
    return place


@pytest.fixture(scope="module")
def where(pictures, tmp_path_factory) -> Callable[[str], Path]:
    """Where the samples lie in a form, made when first asked for."""
    made: dict[str, Path] = {"folder": pictures}

    def find(form: str) -> Path:
        if form in made:
            return made[form]
        place = tmp_path_factory.mktemp("form")
        if form in ("zip", "tar"):
            made[form] = Path(shutil.make_archive(str(place / "pictures"), form, pictures))
        elif form in ("npz", "npy", "hdf5 of arrays", "mnist"):
            made[form] = make_arrays(form, place)
        else:
            name = form.split()[0]
            out = place / ("copy.h5" if name == "hdf5" else "copy")
            made[form] = kiln.pack(find("npz") if "arrays" in form else pictures, out, format=name).output
        return made[form]

    return find


def reference_of(form: str, where) -> kiln.data.source.Source:
    return kiln.open_source(where("folder" if form in FILE_FORMS else "npz"))


def pixels_of(item) -> np.ndarray:
    """(H, W, C), grey where the file is."""
    if isinstance(item, bytes):
        mode = pixels.probe(item).mode
        return np.asarray(pixels.decode_image(item, channels=1 if mode == "L" else 3)).reshape(-1)
    return np.asarray(item).reshape(-1)


@pytest.mark.parametrize("form", FILE_FORMS + ARRAY_FORMS + PICTURE_FORMS)
def test_the_same_samples(form, where):
    source, reference = kiln.open_source(where(form)), reference_of(form, where)
    assert len(source) in (25, 19)
    assert source.keys == reference.keys
    assert source.labels == reference.labels
    assert source.splits == reference.splits
    assert source.class_names == reference.class_names
    assert source.unlabelled == ()
    for index in range(len(source)):
        item, wanted = source.read(index), reference.read(index)
        if form in FILE_FORMS:
            assert item == wanted
        assert np.array_equal(pixels_of(item), pixels_of(wanted))
        header, expected = source.header(index), reference.header(index)
        assert (header.width, header.height, header.mode) == (expected.width, expected.height, expected.mode)
    assert source.has_headers == (form in FILE_FORMS + PICTURE_FORMS)
    without = kiln.open_source(where(form), labelled=False)
    assert without.labels is None
    assert len(without) == len(source)


def loader_of(source, *, workers=0, batch_size=5, rank=0, world_size=1) -> TrainLoader:
    train = np.array([index for index, split in enumerate(source.splits) if split == "train"])
    keys = keys_of(source.keys)
    channels = 1 if len(np.shape(source.read(int(train[0])))) == 3 else 3
    channels = 1 if source.labels[0] in "012" else channels
    classes = sorted(set(source.labels))
    targets = np.array([classes.index(label) for label in source.labels])
    return TrainLoader(
        Assembler(RandomCropImages(source, PixelContract(height=16, width=16, channels=channels)), targets),
        Shuffle(train, keys[train], seed=3),
        Cut(len(train), batch_size, rank=rank, world_size=world_size),
        keys=keys,
        bad_files=BadFiles(source.keys),
        workers=workers,
    )


def batches_of(loader, first, count):
    return list(itertools.islice(loader.from_step(first), count))


def assert_same_batches(left, right):
    assert len(left) == len(right) > 0
    for one, two in zip(left, right, strict=True):
        assert np.array_equal(one.images.numpy(), two.images.numpy())
        assert np.array_equal(one.targets.numpy(), two.targets.numpy())
        assert np.array_equal(one.indices, two.indices)


@pytest.mark.parametrize("form", FILE_FORMS + ARRAY_FORMS + PICTURE_FORMS)
def test_the_same_batches_for_any_workers_at_any_step(form, where):
    source = kiln.open_source(where(form))
    expected = batches_of(loader_of(reference_of(form, where)), 0, 7)
    for workers, first in ((0, 0), (3, 0), (2, 4)):
        assert_same_batches(batches_of(loader_of(source, workers=workers), first, 7 - first), expected[first:])
    shares = [batches_of(loader_of(source, rank=rank, world_size=2), 0, 3) for rank in range(2)]
    for step, (one, two) in enumerate(zip(*shares, strict=True)):
        assert [*one.indices, *two.indices] == list(expected[step].indices)


def everything(source) -> list[bytes]:
    return [item if isinstance(item, bytes) else item.tobytes() for item in map(source.read, range(len(source)))]


def in_child(work: Callable[[], bool]) -> int:
    """The exit status of a forked child: 0 where `work` is true."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer Pythons warn of threads
        child = os.fork()
    if child == 0:
        try:
            os._exit(0 if work() else 1)
        except BaseException:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("form", FILE_FORMS + ARRAY_FORMS + PICTURE_FORMS)
def test_threads_forks_and_pickles(form, where):
    source = kiln.open_source(where(form))
    expected = everything(source)
    with ThreadPoolExecutor(8) as pool:
        indices = [*range(len(source)), *reversed(range(len(source)))] * 4
        found = list(pool.map(source.read, indices))
    assert [item if isinstance(item, bytes) else item.tobytes() for item in found] == [expected[i] for i in indices]
    assert everything(pickle.loads(pickle.dumps(source))) == expected
    assert in_child(lambda: everything(source) == expected) == 0
    assert in_child(lambda: in_child(lambda: everything(source) == expected) == 0) == 0
    assert everything(source) == expected  # the children closed nothing of ours


def test_a_process_started_afresh_reads_what_it_was_sent(where, tmp_path):
    sent = {form: kiln.open_source(where(form)) for form in FILE_FORMS + ARRAY_FORMS}
    (tmp_path / "sent").write_bytes(pickle.dumps({form: (source, everything(source)) for form, source in sent.items()}))
    code = (
        "import pickle, sys\n"
        "for form, (source, expected) in pickle.load(open(sys.argv[1], 'rb')).items():\n"
        "    found = [source.read(index) for index in range(len(source))]\n"
        "    assert [x if isinstance(x, bytes) else x.tobytes() for x in found] == expected, form\n"
        "print('read')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "sent"], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, "read\n"), done.stderr


@pytest.mark.parametrize("form", FILE_FORMS + ARRAY_FORMS + PICTURE_FORMS)
def test_the_fingerprint_is_that_of_the_data(form, where):
    source = kiln.open_source(where(form))
    assert kiln.open_source(where(form)).fingerprint == source.fingerprint
    assert compare_fingerprint(record(reference_of(form, where)), source) == [] or form not in ("folder", "npz")


@pytest.mark.parametrize("form", FILE_FORMS[3:] + ARRAY_FORMS + PICTURE_FORMS)
def test_a_flipped_bit_is_another_source_or_a_sample_that_says_so(form, where, tmp_path):
    whole = where(form)
    source = kiln.open_source(whole)
    item = source.read(3)
    fragment = (item if isinstance(item, bytes) else item.tobytes())[-80:-20]
    place = tmp_path / whole.name
    shutil.copytree(whole, place) if whole.is_dir() else shutil.copy2(whole, place)
    files = [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]
    if form == "hdf5 of arrays":  # compressed: the pixels are not there to be found
        file, at = place, place.stat().st_size // 2
    else:
        (file,) = [path for path in files if fragment in path.read_bytes()]
        at = file.read_bytes().index(fragment)
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)
    try:
        changed = kiln.open_source(place)
    except DataError:
        return  # the format has a checksum of its own
    if changed.fingerprint == source.fingerprint:
        assert bad_reads(changed) == 1


def bad_reads(source) -> int:
    """Samples whose checksum is wrong: forms that carry one per sample need no time of change."""
    bad = 0
    for index in range(len(source)):
        try:
            source.read(index)
        except KilnError:
            bad += 1
    return bad


SETTINGS = {
    "model": "kiln/small_cnn",
    "kwargs": {"widths": [8, 16]},
    "img_size": 16,
    "epochs": 2,
    "workers": 2,
    "report": False,
}


@pytest.mark.parametrize("pixel_form", ["stored", "original"])
def test_training_from_a_copy_is_training_from_the_folder(where, tmp_path, monkeypatch, pixel_form):
    monkeypatch.setenv("KILN_CACHE", str(tmp_path / "cache"))
    runs = {
        form: kiln.train(where(form), output=str(tmp_path / form), pixel_form=pixel_form, **SETTINGS)
        for form in ("folder", "packed", "webdataset")
    }
    results = {form: what_came_out(run) for form, run in runs.items()}
    assert results["packed"] == results["folder"]
    assert results["webdataset"] == results["folder"]


def what_came_out(run) -> tuple[dict[str, bytes], bytes]:
    """Weights and predictions; the model file also names the fingerprint of its data, which is that of the form."""
    weights = {name: values.tobytes() for name, values in load_file(run.model_file).items()}
    assert len(weights) > 5
    return weights, (run.path / "predictions.csv").read_bytes()
