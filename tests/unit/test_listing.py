"""What is kept of a zip's listing is the source itself, and stands for that one file only."""

from __future__ import annotations

import dataclasses
import io
import os
import pickle
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from kiln.data import listing, room
from kiln.data.source import Source, open_source

COLUMNS = ("keys", "labels", "splits", "groups", "class_names", "fingerprint", "notes", "unlabelled", "transformed")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(listing, "LEAST_MEMBERS", 4)
    monkeypatch.setenv("KILN_CACHE", str(tmp_path / "cache"))


def jpeg(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(file, "JPEG")
    return file.getvalue()


def archive(path: Path, names: list[str], extra: dict[str, str] | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as opened:
        for number, name in enumerate(names):
            opened.writestr(name, jpeg(number * 7))
        for name, text in (extra or {}).items():
            opened.writestr(name, text)
    return path


SPLIT = [f"{split}/{name}/{i}.jpg" for split in ("train", "val") for name in ("cat", "dög\n") for i in range(3)]
TABLE = {
    "labels.csv": "path,label,split,group\n"
    + "".join(f"{i}.jpg,{i % 2},{'val' if i > 2 else 'train'},{i}\n" for i in range(5))
}
SHAPES = {
    "split folders": (SPLIT, {}),
    "class folders and strays": ([f"a/b{i % 2}/{i}.jpg" for i in range(6)] + ["a/.hidden.jpg", "readme.jpg"], {}),
    "table": ([f"{i}.jpg" for i in range(5)], TABLE),
}


def both(path: Path) -> tuple[Source, Source]:
    opened = open_source(path)
    listing.remember(opened, cache_size="1GB")
    recalled = listing.recall(path)
    assert recalled is not None
    return opened, recalled


@pytest.mark.parametrize("shape", SHAPES)
def test_recalled_source_is_the_opened_one(tmp_path: Path, shape: str) -> None:
    opened, recalled = both(archive(tmp_path / "data.zip", *SHAPES[shape]))
    for name in COLUMNS:
        assert getattr(recalled, name) == getattr(opened, name), name
    for index in range(len(opened)):
        assert recalled.read(index) == opened.read(index)
        assert recalled.header(index) == opened.header(index)
        assert recalled.size_of(index) == opened.size_of(index)
        assert recalled.identity_of(index) == opened.identity_of(index)
    assert pickle.loads(pickle.dumps(recalled)).read(0) == opened.read(0)


def test_changed_archive_is_not_recalled(tmp_path: Path) -> None:
    path = archive(tmp_path / "data.zip", SPLIT)
    both(path)
    status = os.stat(path)
    archive(path, [name.replace("cat", "cow") for name in SPLIT])  # in place: the same length and inode
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (os.stat(path).st_size, os.stat(path).st_ino) == (status.st_size, status.st_ino)
    assert listing.recall(path) is None


def test_damaged_record_is_not_recalled(tmp_path: Path) -> None:
    path = archive(tmp_path / "data.zip", SPLIT)
    both(path)
    (kept,) = room.root().glob("*/listing.bin")
    whole = kept.read_bytes()
    for damaged in (whole[:-1], whole[: len(whole) // 2], b"", whole[:-20] + bytes([whole[-20] ^ 1]) + whole[-19:]):
        kept.write_bytes(damaged)
        assert listing.recall(path) is None
    kept.write_bytes(whole)
    assert listing.recall(path) is not None


def test_record_counts_among_the_caches(tmp_path: Path) -> None:
    path = archive(tmp_path / "data.zip", SPLIT)
    listing.remember(open_source(path), cache_size="100")
    assert listing.recall(path) is None
    assert room.entries() == []
    both(path)
    (entry,) = room.entries()
    assert entry.where == f"{path} (listing)"
    assert entry.num_bytes == (entry.folder / "listing.bin").stat().st_size
    room.clear()
    assert listing.recall(path) is None


def test_only_large_zips_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive(tmp_path / "data.zip", SPLIT)
    with zipfile.ZipFile(path) as opened:
        opened.extractall(tmp_path / "data")
    listing.remember(open_source(tmp_path / "data"), cache_size="1GB")
    monkeypatch.setattr(listing, "LEAST_MEMBERS", 1000)
    listing.remember(open_source(path), cache_size="1GB")
    assert room.entries() == []


def test_row_without_label_is_not_kept(tmp_path: Path) -> None:
    text = TABLE["labels.csv"].replace("1.jpg,1", "1.jpg,")
    opened = open_source(archive(tmp_path / "data.zip", [f"{i}.jpg" for i in range(5)], {"labels.csv": text}))
    assert dataclasses.asdict(opened)["unlabelled"]
    listing.remember(opened, cache_size="1GB")
    assert room.entries() == []
