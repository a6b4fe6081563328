"""Files of many images as others write them, and what is said of those that are damaged, hostile or not what they seem."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from forks import forked
from small_images import jpeg, png, reads, stack

from kiln.data import formats
from kiln.data.formats import arrays, packed
from kiln.data.formats.opening import Facts, Plan, Request
from kiln.data.formats.parts import parts_of
from kiln.data.source import open_source
from kiln.errors import ArtifactError, DataError, KilnError, MissingExtraError, UsageError
from kiln.jobs.pack import pack

COLOURS = (10, 60, 110, 160, 210)


# WebDataset


def shard(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_webdataset(tmp_path):
    for number in range(3):
        name = f"{'val' if number == 2 else 'train'}-{number:04d}.tar"
        shard(
            tmp_path / name,
            {
                "000.jpg": jpeg(COLOURS[number]), "000.cls": b"1",
                "001.seg.png": png(3), "001.json": b'{"label": "dog"}',
                "002.png": png(4), "002.txt": b"owl\n",
            },
        )  # fmt: skip
    source = open_source(tmp_path)
    assert source.keys[:3] == ("train-0000/000", "train-0000/001", "train-0000/002")
    assert source.labels == ("1", "dog", "owl") * 3
    assert source.splits == ("train",) * 6 + ("val",) * 3
    assert source.read(3) == jpeg(COLOURS[1])
    assert source.header(3).format == "JPEG"
    assert open_source(tmp_path / "train-{0000..0001}.tar").labels == ("1", "dog", "owl") * 2
    assert open_source(tmp_path / "*.tar").keys == source.keys
    assert open_source(tmp_path / "train-0001.tar").keys == ("000", "001", "002")
    with pytest.raises(DataError, match="1 of 3 files"):
        open_source(tmp_path / "train-{0000..0002}.tar")
    with pytest.raises(UsageError, match="expected: 100,000 at most"):
        open_source(tmp_path / "train-{0..999999999}.tar")
    os.truncate(tmp_path / "train-0001.tar", 600)
    with pytest.raises(DataError, match=r"ends inside a member|damaged"):
        open_source(tmp_path)


def test_shards_without_labels_and_other_tars(tmp_path):
    shard(tmp_path / "a" / "d-0.tar", {"0.jpg": jpeg(), "0.json": b'{"caption": "a dog"}'})
    with pytest.raises(DataError, match="no labels in"):
        open_source(tmp_path / "a")
    assert len(open_source(tmp_path / "a", labelled=False)) == 1
    shard(tmp_path / "b" / "d-0.tar", {"0.jpg": jpeg(), "0.json": b'{"label": '})
    with pytest.raises(DataError, match="no JSON"):
        open_source(tmp_path / "b")
    shard(tmp_path / "photos.tar", {"cat/1.jpg": jpeg(), "dog/1.jpg": jpeg()})
    assert open_source(tmp_path / "photos.tar").labels == ("cat", "dog")


# Parquet and Arrow


def hugging_face_table(colours=COLOURS, *, label=True):
    pa = pytest.importorskip("pyarrow")
    features = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    images = [{"bytes": png(value), "path": f"{value}.png"} for value in colours]
    columns = {"image": pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))}
    if label:
        columns["label"] = pa.array([number % 2 for number in range(len(colours))], pa.int64())
    return pa.table(columns).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def test_the_layout_of_hugging_face(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "data").mkdir()
    (tmp_path / "README.md").write_text("# a card")
    table = hugging_face_table()
    pq.write_table(table.slice(0, 2), tmp_path / "data" / "train-00000-of-00002.parquet", row_group_size=1)
    pq.write_table(table.slice(2, 1), tmp_path / "data" / "train-00001-of-00002.parquet")
    pq.write_table(table.slice(3, 2), tmp_path / "data" / "validation-00000-of-00001.parquet")
    source = open_source(tmp_path)
    assert source.keys == tuple(f"train/{n:09d}" for n in range(3)) + tuple(f"val/{n:09d}" for n in range(2))
    assert source.labels == ("cat", "dog", "cat", "dog", "cat")
    assert source.class_names == ("cat", "dog")
    assert reads(source) == [png(value) for value in COLOURS]
    assert reads(pickle.loads(pickle.dumps(source))) == reads(source)
    assert open_source(tmp_path / "data" / "train-*.parquet").splits == ("train",) * 3


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_arrow(tmp_path, kind):
    pa = pytest.importorskip("pyarrow")
    for split, part in (("train", COLOURS[:3]), ("test", COLOURS[3:])):
        (tmp_path / split).mkdir()
        table = hugging_face_table(part)
        new = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
        with new(str(tmp_path / split / "data-00000-of-00001.arrow"), table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
        (tmp_path / split / "state.json").write_text("{}")
    (tmp_path / "dataset_dict.json").write_text("{}")
    source = open_source(tmp_path)
    assert source.splits == ("test",) * 2 + ("train",) * 3
    assert reads(source) == [png(value) for value in (*COLOURS[3:], *COLOURS[:3])]
    path = tmp_path / "test" / "data-00000-of-00001.arrow"
    os.truncate(path, 64)
    with pytest.raises(DataError, match="damaged"):
        open_source(tmp_path)


def test_columns_of_tables(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {
        "photo": [png(1), png(2), None],
        "kind": ["a", "b", "c"],
        "part": ["train", "train", "test"],
        "who": ["x", "x", "y"],
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    source = open_source(
        tmp_path / "t.parquet", path_column="photo", label_column=2, split_column="part", group_column="who"
    )
    assert (source.labels, source.groups) == (("c", "a", "b"), ("y", "x", "x"))
    assert source.splits == ("test", "train", "train")
    with pytest.raises(DataError, match="row 2 holds no image"):
        reads(source)
    with pytest.raises(UsageError, match=r"no column 'knd'.*\n.*did you mean: kind"):
        open_source(tmp_path / "t.parquet", label_column="knd")
    with pytest.raises(DataError, match="no labels in"):
        open_source(tmp_path / "t.parquet")
    pq.write_table(pa.table({"x": [1, 2]}), tmp_path / "n.parquet")
    with pytest.raises(DataError, match=r"no column of .* holds image bytes"):
        open_source(tmp_path / "n.parquet")
    (tmp_path / "n.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="damaged"):
        open_source(tmp_path / "n.parquet")


def test_a_class_label_beyond_its_names(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = hugging_face_table()
    for value, message in ((2, "a label is 2, but there are 2 class names"), (-1, None)):
        changed = table.set_column(1, "label", pa.array([value] * 5, pa.int64()))
        pq.write_table(changed, tmp_path / "t.parquet")
        if message:
            with pytest.raises(DataError, match=message):
                open_source(tmp_path / "t.parquet")
        else:
            assert len(open_source(tmp_path / "t.parquet").unlabelled) == 5


# HDF5


def test_hdf5_of_arrays(tmp_path):
    h5py = pytest.importorskip("h5py")
    images = stack(5)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["train/images"], file["train/labels"] = images[:3], np.arange(3)
        file.create_dataset("test/images", data=images[3:], chunks=(1, 6, 5, 3), compression="gzip")
        file["test/labels"] = np.arange(2)
        file["classes"] = [b"a", b"b", b"c"]
    source = open_source(tmp_path / "a.h5")
    assert source.labels == ("a", "b", "a", "b", "c")
    assert source.splits == ("test",) * 2 + ("train",) * 3
    assert all(np.array_equal(one, two) for one, two in zip(reads(source), (*images[3:], *images[:3]), strict=True))
    assert any("test/images is read in chunks" in note for note in source.notes)
    again = pickle.loads(pickle.dumps(source))
    assert all(np.array_equal(one, two) for one, two in zip(reads(source), reads(again), strict=True))


def test_hdf5_of_encoded_images(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        images = file.create_dataset("images", (5,), dtype=h5py.vlen_dtype(np.uint8))
        for row, value in enumerate(COLOURS):
            images[row] = np.frombuffer(jpeg(value), np.uint8)
        file["labels"] = ["cat", "dog", "cat", "dog", "cat"]
    source = open_source(tmp_path / "a.h5")
    assert source.labels == ("cat", "dog") * 2 + ("cat",)
    assert reads(source) == [jpeg(value) for value in COLOURS]
    assert source.has_headers
    assert source.header(1).format == "JPEG"


def test_hdf5_that_leads_elsewhere_or_is_damaged(tmp_path):
    h5py = pytest.importorskip("h5py")
    (tmp_path / "secret").write_bytes(bytes(1000))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        outside = [(str(tmp_path / "secret"), 0, 90)]
        file.create_dataset("images", (1, 6, 5, 3), np.uint8, external=outside)
        file["labels"] = np.arange(1)
    with pytest.raises(DataError, match="refers to other files"):
        open_source(tmp_path / "a.h5")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["images"], file["labels"] = stack(500), np.arange(500)
    os.truncate(tmp_path / "b.h5", 20_000)
    with pytest.raises(DataError, match="damaged"):
        open_source(tmp_path / "b.h5")
    (tmp_path / "c.h5").write_bytes(b"no HDF5")
    with pytest.raises(DataError, match="damaged"):
        open_source(tmp_path / "c.h5")


# LMDB


def plain_lmdb(folder: Path, values: dict[str, bytes]) -> Path:
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(folder), map_size=1 << 24) as environment, environment.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key.encode(), value)
    return folder


def test_lmdb_of_others(tmp_path):
    values = {f"{n:05d}": png(value) for n, value in enumerate(COLOURS)}
    folder = plain_lmdb(tmp_path / "plain", values)
    with pytest.raises(DataError, match=r"no labels for the 5 keys") as caught:
        open_source(folder)
    assert "labels.csv" in str(caught.value)
    rows = "".join(f"{key},{'cat' if int(key) % 2 else 'dog'}\n" for key in values)
    (folder / "labels.csv").write_text("path,label\n" + rows)
    source = open_source(folder)
    assert source.labels == ("dog", "cat", "dog", "cat", "dog")
    assert reads(source) == list(values.values())
    assert reads(pickle.loads(pickle.dumps(source))) == reads(source)
    in_folders = plain_lmdb(tmp_path / "folders", {"train/cat/1.png": png(1), "val/dog/2.png": png(2)})
    assert open_source(in_folders).splits == ("train", "val")


def test_a_truncated_lmdb_is_an_error_and_not_the_end_of_the_process(tmp_path):
    folder = plain_lmdb(tmp_path / "d", {f"{n}.png": bytes(5000) for n in range(200)})
    os.truncate(folder / "data.mdb", 40_960)
    with pytest.raises(DataError, match="ends before page"):
        open_source(folder, labelled=False)
    (folder / "data.mdb").write_bytes(b"no database")
    with pytest.raises(DataError, match="damaged"):
        open_source(folder, labelled=False)


# packed


@pytest.fixture
def copy(tmp_path):
    images = tmp_path / "pictures"
    for number, name in enumerate(("cat", "dog", "owl")):
        (images / name).mkdir(parents=True)
        (images / name / "1.jpg").write_bytes(jpeg(COLOURS[number], (40, 40)))
    pack(images, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_flipped_bit_in_a_packed_copy_is_seen(copy):
    data = bytearray((copy / "data.bin").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "data.bin").write_bytes(data)
    source = open_source(copy)
    assert [source.read(index)[:2] for index in (0, 2)] == [b"\xff\xd8"] * 2
    with pytest.raises(DataError, match="wrong checksum"):
        source.read(1)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("data.bin", lambda data: data[:-1], "but its index lists"),
        ("data.bin", lambda data: data + b"x", "but its index lists"),
        ("index.csv", lambda data: data.replace(b"owl", b"cow"), "checksum is not what packed.json says"),
        ("packed.json", lambda data: data[:-5], "no JSON"),
        ("packed.json", lambda data: data.replace(b"kiln.packed", b"kiln.other"), "does not say that it is"),
        ("packed.json", lambda data: data.replace(b'"version": 1', b'"version": 2'), "update torchkiln"),
    ],
)
def test_damaged_packed_copies(copy, file, change, message):
    path = copy / file
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises((DataError, ArtifactError), match=message):
        open_source(copy)


def test_a_copy_that_changes_while_it_is_used(copy):
    sent = pickle.dumps(open_source(copy))
    os.utime(copy / "data.bin", (1, 1))
    with pytest.raises(DataError, match="changed while it was in use"):
        pickle.loads(sent)


def test_odd_names_survive_the_index():
    facts = Facts(None, True, True, True)
    rows = [
        packed.Row(f"a{odd}b", odd, "val", odd, 3, 7, "") for odd in (",", '"', "\n", "\r", "\r\n", " ", "é", "日本")
    ]
    text = "header\r\n" + packed.format_rows(rows)
    assert list(packed.parse_rows(text, facts, "here")) == rows
    with pytest.raises(DataError, match="row 2"):
        list(packed.parse_rows("header\r\nk,l,nowhere,g,1,0,\r\n", facts, "here"))


# damage of every kind


def fuzzed(data: bytes, rng: np.random.Generator) -> bytes:
    """Cut short, or some bytes changed, most of them near the ends, where headers lie."""
    changed = bytearray(data)
    if rng.random() < 0.2:
        return bytes(changed[: rng.integers(len(changed))])
    for _ in range(rng.choice([1, 4, 30])):
        place = int(rng.integers(min(len(changed), rng.choice([200, 4000, 1 << 30]))))
        changed[place if rng.random() < 0.7 else -place - 1] = rng.integers(256)
    return bytes(changed)


@pytest.mark.parametrize("form", ["npz", "hdf5 of arrays", "arrow", "packed", "lmdb", "hdf5", "webdataset", "parquet"])
def test_damaged_files_end_in_errors_of_ours_and_never_in_a_crash(tmp_path, form):
    pa, h5py = pytest.importorskip("pyarrow"), pytest.importorskip("h5py")
    whole = tmp_path / "whole"
    if form == "npz":
        whole = tmp_path / "whole.npz"
        np.savez_compressed(whole, images=stack(9), labels=np.arange(9))
    elif form == "hdf5 of arrays":
        whole = tmp_path / "whole.h5"
        with h5py.File(whole, "w") as file:
            file.create_dataset("images", data=stack(9), chunks=(2, 6, 5, 3), compression="gzip")
            file["labels"] = np.arange(9)
    elif form == "arrow":
        whole = tmp_path / "whole.arrow"
        with pa.ipc.new_stream(str(whole), hugging_face_table().schema) as writer:
            writer.write_table(hugging_face_table())
    else:
        whole = tmp_path / ("whole.h5" if form == "hdf5" else "whole")
        pack(open_source((stack(9), np.arange(9))), whole, format=form)

    def read_all() -> str:
        rng = np.random.default_rng(0)
        outcomes: Counter[str] = Counter()
        for number in range(25):
            place = tmp_path / str(number) / whole.name
            place.parent.mkdir()
            shutil.copytree(whole, place) if whole.is_dir() else shutil.copy(whole, place)
            files = [place] if place.is_file() else sorted(path for path in place.iterdir() if path.stat().st_size)
            victim = files[rng.integers(len(files))]
            victim.write_bytes(fuzzed(victim.read_bytes(), rng))
            try:
                source = open_source(place)
                for index in range(len(source)):
                    source.read(index)
                outcomes["read"] += 1
            except KilnError:
                outcomes["refused"] += 1
        return json.dumps(outcomes)

    status, text = forked(read_all)
    assert status == 0, text
    outcomes = json.loads(text)
    assert sum(outcomes.values()) == 25
    assert outcomes["refused"] >= 5


# what they share


def test_parts_hold_one_split_each():
    plan = Plan(Facts(None, True, True, False), ["train", "val", "train", "train"], {}, 128 << 20)
    assert [(part.stem, part.indices) for part in parts_of(plan)] == [
        ("train-00000-of-00002", [0, 2]),
        ("train-00001-of-00002", [3]),
        ("val-00000-of-00001", [1]),
    ]


def test_a_library_that_is_missing_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.h5").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(MissingExtraError, match=r"HDF5 needs the package 'h5py'\n.*torchkiln\[formats\]"):
        open_source(tmp_path / "a.h5")


def test_files_of_several_formats(tmp_path):
    np.savez(tmp_path / "a.npz", images=stack(2), labels=np.arange(2))
    (tmp_path / "b.parquet").write_bytes(b"")
    with pytest.raises(DataError, match="several formats: arrays, parquet"):
        open_source(tmp_path)


def test_a_table_beside_images_is_not_a_format(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(png())
    (tmp_path / "predictions.parquet").write_bytes(b"PAR1")
    assert open_source(tmp_path).labels == ("cat", "dog")


def test_names_of_columns_where_there_are_none(copy):
    with pytest.raises(UsageError, match="the column names have no effect"):
        open_source(copy, label_column="label")
    with pytest.raises(UsageError, match="root has no effect"):
        open_source(copy, root=copy)


def test_every_format_has_a_module_and_every_written_one_a_writer():
    modules = {*formats.BY_SUFFIX.values(), *(module for _, module in formats.BY_NAME)}
    assert len(modules) == 8
    assert set(formats.WRITTEN) < modules
    for name in modules:
        found = formats._module(name)
        assert callable(found.open_files)
        assert hasattr(found, "Writer") == (name in formats.WRITTEN)
    with pytest.raises(UsageError, match="did you mean: parquet"):
        formats.writer_for("parket", Path(), Plan(Facts(None, False, False, False), [], {}, 1))
    assert arrays.is_arrays_folder(["a/images.npy", "a/labels.npy"])
    assert Request("x", ()).labelled
