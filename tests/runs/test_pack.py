"""`kiln pack`: killed at any point it goes on where it was, and what it leaves is whole or is not there."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest

import kiln
from kiln.cli import main
from kiln.data.formats import lmdb, packed, parts
from kiln.errors import DataError, ResourceError, UsageError

FORMATS = ("packed", "lmdb", "hdf5", "webdataset", "parquet")


@pytest.fixture(autouse=True)
def little_is_safe_together(monkeypatch):
    """So that the few samples of a test are many parts."""
    monkeypatch.setattr(packed, "_SAFE_TOGETHER", 5)
    monkeypatch.setattr(lmdb, "_SAFE_TOGETHER", 5)
    monkeypatch.setattr(parts, "PART_BYTES", 6_000)


def out_of(tmp_path: Path, form: str) -> Path:
    return tmp_path / ("copy.h5" if form == "hdf5" else "copy")


def contents(place: Path) -> dict[str, bytes]:
    """Every file of a copy; LMDB numbers its transactions, so only its samples count."""
    if (place / "data.mdb").exists():
        source = kiln.open_source(place)
        return {key: source.read(index) for index, key in enumerate(source.keys)}
    files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
    return {path.name: path.read_bytes() for path in files}


def in_child(work) -> int:
    """The exit status of a forked child; negative: the signal that ended it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            os._exit(2)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class KillsItself:
    """Progress that ends the process at the n-th thing told."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, what: str, done: int, total: int) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("form", FORMATS)
def test_killed_again_and_again_it_ends_as_if_nothing_had_happened(image_folder, tmp_path, form):
    (tmp_path / "whole").mkdir()
    whole = kiln.pack(image_folder, out_of(tmp_path / "whole", form), format=form)
    assert (whole.samples, whole.resumed) == (64, 0)
    place = out_of(tmp_path, form)
    kills = 0
    while in_child(lambda: kiln.pack(image_folder, place, format=form, progress=KillsItself(4))) == -signal.SIGKILL:
        kills += 1
        assert not place.exists()
        assert kills < 30
    assert kills >= 2
    assert place.exists()
    assert contents(place) == contents(whole.output)
    assert os.listdir(tmp_path / "whole") == [whole.output.name]
    assert sorted(os.listdir(tmp_path)) == sorted([place.name, "whole"])


def test_what_was_written_is_not_read_again(image_folder, tmp_path):
    assert in_child(lambda: kiln.pack(image_folder, tmp_path / "copy", progress=KillsItself(4))) == -signal.SIGKILL
    assert kiln.pack(image_folder, tmp_path / "copy").resumed == 20


@pytest.mark.parametrize(
    "damage", ["half a sample", "half a row", "a row without its sample", "zeros after a power cut"]
)
def test_a_half_written_end_is_cut_off(image_folder, tmp_path, damage):
    whole = contents(kiln.pack(image_folder, tmp_path / "whole").output)
    assert in_child(lambda: kiln.pack(image_folder, tmp_path / "copy", progress=KillsItself(4))) == -signal.SIGKILL
    folder = tmp_path / ".copy.packing" / "copy"
    data, index = (folder / "data.bin").read_bytes(), (folder / "index.csv").read_bytes()
    if damage == "half a sample":
        (folder / "data.bin").write_bytes(data + data[:99])
    elif damage == "half a row":
        (folder / "index.csv").write_bytes(index[:-9])
    elif damage == "a row without its sample":
        (folder / "data.bin").write_bytes(data[:-9])
    else:
        (folder / "data.bin").write_bytes(data[:-200] + bytes(200))
    done = kiln.pack(image_folder, tmp_path / "copy")
    assert done.resumed == (20 if damage == "half a sample" else 19)
    assert contents(done.output) == whole


@pytest.mark.parametrize("form", FORMATS)
def test_arrays_groups_and_class_names_are_kept(tmp_path, form):
    images = np.random.default_rng(0).integers(0, 256, (30, 9, 8, 3), dtype=np.uint8)
    source = kiln.open_source((images, np.arange(30) % 3), class_names=["a", "b", "c"])
    out = out_of(tmp_path, form)
    done = kiln.pack(source, out, format=form)
    copy = kiln.open_source(out)
    assert (copy.keys, copy.labels, copy.class_names) == (source.keys, source.labels, ("a", "b", "c"))
    assert copy.splits is None
    assert copy.groups is None
    assert (done.files_before, done.bytes_before) == (0, images.nbytes)
    assert copy.has_headers == (form in ("webdataset", "parquet"))  # others want to open them as images


@pytest.mark.parametrize("form", FORMATS)
def test_tables_with_groups_and_empty_labels(image_folder, tmp_path, form):
    names = sorted(str(path.relative_to(image_folder)) for path in image_folder.rglob("*.*"))
    rows = [
        f"{name},{'red,big' if n % 2 else ''},{('train', 'val')[n % 3 == 0]},p{n % 5}" for n, name in enumerate(names)
    ]
    rows = [row.replace("red,big", '"red,big"') for row in rows]
    (tmp_path / "t.csv").write_text("path,label,split,group\n" + "\n".join(rows))
    source = kiln.open_source(tmp_path / "t.csv", root=image_folder)
    kiln.pack(tmp_path / "t.csv", out_of(tmp_path, form), format=form, root=image_folder)
    copy = kiln.open_source(out_of(tmp_path, form))
    for name in ("keys", "labels", "splits", "groups", "class_names"):
        assert getattr(copy, name) == getattr(source, name), name
    assert len(copy.unlabelled) == len(source.unlabelled) == 32
    with pytest.raises(DataError, match="32 rows without a label"):
        copy.require_labels()


def test_what_exists_is_refused(image_folder, tmp_path):
    kiln.pack(image_folder, tmp_path / "copy")
    before = contents(tmp_path / "copy")
    with pytest.raises(UsageError, match="copy exists") as caught:
        kiln.pack(image_folder, tmp_path / "copy")
    assert caught.value.code == "E110"
    assert contents(tmp_path / "copy") == before
    with pytest.raises(UsageError, match="is not there"):
        kiln.pack(image_folder, tmp_path / "nowhere" / "copy")
    with pytest.raises(UsageError, match=r"unknown format 'lmbd'\n.*did you mean: lmdb"):
        kiln.pack(image_folder, tmp_path / "other", format="lmbd")
    assert not (tmp_path / ".other.packing").exists()


def test_an_unfinished_packing_of_something_else_is_refused(image_folder, tmp_path):
    assert in_child(lambda: kiln.pack(image_folder, tmp_path / "copy", progress=KillsItself(4))) == -signal.SIGKILL
    for source, form in ((image_folder / "dots", "packed"), (image_folder, "lmdb")):
        opened = kiln.open_source(source, labelled=False) if form == "packed" else source
        with pytest.raises(UsageError, match="of another source, or of another format") as caught:
            kiln.pack(opened, tmp_path / "copy", format=form)
        assert "rm -r" in str(caught.value)
    assert kiln.pack(image_folder, tmp_path / "copy").resumed == 20


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_that_cannot_be_read_stops_it_and_the_same_process_can_go_on(image_folder, tmp_path, form):
    moving = tmp_path / "pictures"
    shutil.copytree(image_folder, moving)
    victim = sorted(moving.rglob("*.jpg"))[-1]
    source, kept = kiln.open_source(moving), victim.read_bytes()
    status = victim.stat()
    victim.unlink()
    with pytest.raises(DataError, match=f"cannot read '{victim.relative_to(moving)}'") as caught:
        kiln.pack(source, out_of(tmp_path, form), format=form)
    victim.write_bytes(kept)
    os.utime(victim, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert kiln.pack(moving, out_of(tmp_path, form), format=form).resumed > 20
    assert caught.value.code == "E202"


def test_two_at_once_are_refused(image_folder, tmp_path):
    def packs_too(what, done, total):
        with pytest.raises(UsageError, match="is being packed by another process"):
            kiln.pack(image_folder, tmp_path / "copy")

    assert kiln.pack(image_folder, tmp_path / "copy", progress=packs_too).samples == 64


def test_a_source_that_changes_meanwhile_is_noticed(image_folder, tmp_path):
    moving = tmp_path / "pictures"
    shutil.copytree(image_folder, moving)
    victim = next((moving / "dots").glob("*.jpg"))

    def change(what, done, total):
        if (what, done) == ("packed", total):
            victim.write_bytes(victim.read_bytes()[:-1] + b"x")

    with pytest.raises(DataError, match=f"'dots/{victim.name}' is not what was read before"):
        kiln.pack(moving, tmp_path / "copy", progress=change)
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("form", FORMATS)
def test_a_full_disk_is_an_error_that_keeps_what_there_is(image_folder, tmp_path, form):
    place = out_of(tmp_path, form)

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with pytest.raises(ResourceError, match="cannot write"):
            kiln.pack(image_folder, place, format=form)

    parts.PART_BYTES = 60_000
    assert in_child(limited) == 0
    assert not place.exists()
    assert kiln.pack(image_folder, place, format=form).samples == 64


def test_the_command(image_folder, tmp_path, capfd):
    assert main(["pack", str(image_folder), str(tmp_path / "a"), "--format", "webdataset"]) == 0
    out, err = capfd.readouterr()
    assert "packed 64 samples; all read back and the same" in out
    assert "files  64 -> " in out
    assert "samples/s" in out
    assert f"next   kiln train {tmp_path / 'a'}" in out
    assert "verified 64 samples" in err
    assert main(["pack", f"data={image_folder}", f"output={tmp_path / 'b'}", "--json", "-q"]) == 0
    said = json.loads(capfd.readouterr().out)
    assert (said["samples"], said["format"], said["output"]) == (64, "packed", str(tmp_path / "b"))
    assert said["files_after"] == 3
    assert main(["pack", str(image_folder), str(tmp_path / "b")]) == 2
    assert "error E110" in capfd.readouterr().err
    assert main(["pack", str(image_folder), str(tmp_path / "c"), "--format", "lmbd"]) == 2
    assert "did you mean: lmdb" in capfd.readouterr().err
