from __future__ import annotations

import io
import os
import pickle
import tarfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from small_images import plant, png, snapshot

from kiln.data import archive
from kiln.data.archive import Tar, Zip, open_archive
from kiln.data.storage import Folder, counted, is_hidden, is_image_name, printable
from kiln.errors import DataError


def make_zip(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


def make_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def test_folder_lists_files_and_counts_what_it_leaves_out(tmp_path):
    plant(tmp_path, ["cat/1.png", ".hidden/2.png", "cat/.DS_Store", "cat/Thumbs.db", "__MACOSX/cat/._1.png"])
    (tmp_path / "empty").mkdir()
    folder = Folder(tmp_path)
    assert set(folder.entries) == {"cat/1.png"}
    assert set(folder.folders) == {"cat", "empty"}
    assert folder.notes == ("4 hidden files ignored",)
    assert folder.read("cat/1.png") == png(0)
    assert folder.read("cat/1.png", 8) == png(0)[:8]


def test_links_are_followed_loops_cut_and_broken_ones_counted(tmp_path):
    outside = plant(tmp_path / "elsewhere", ["3.png"])
    data = plant(tmp_path / "data", ["cat/1.png", "cat/deep/2.png"])
    (data / "cat/deep/up").symlink_to(data)
    (data / "cat/itself").symlink_to("itself")
    (data / "cat/broken.png").symlink_to("nowhere.png")
    (data / "dog").symlink_to(outside)
    (data / "cat/again.png").symlink_to(data / "cat/1.png")
    folder = Folder(data)
    assert set(folder.entries) == {"cat/1.png", "cat/deep/2.png", "cat/again.png", "dog/3.png"}
    assert set(folder.notes) == {
        "1 link back into its own folder ignored",
        "1 link to outside the folder followed",
        "2 broken links ignored",
    }


def test_special_files_are_never_opened(tmp_path):
    plant(tmp_path, ["cat/1.png"])
    os.mkfifo(tmp_path / "cat/2.png")
    folder = Folder(tmp_path)
    assert set(folder.entries) == {"cat/1.png"}
    assert folder.notes == ("1 special file (pipe, device) ignored",)


def test_odd_names_survive(tmp_path):
    names = [
        "e\u0301.png",
        "\u00e9.png",
        "\U0001f600.png",
        "new\nline.png",
        "\u05d0\u05d1.png",
        "x" * 251 + ".png",
        "A.png",
        "a.png",
    ]
    plant(tmp_path, names)
    with open(os.fsencode(tmp_path) + b"/caf\xe9.png", "wb") as file:
        file.write(png(9))
    folder = Folder(tmp_path)
    assert set(folder.entries) == {*names, "caf\\xe9.png"}
    for number, name in enumerate(names):
        assert folder.read(name) == png(number)
    assert folder.read("caf\\xe9.png") == png(9)
    assert printable("caf\udce9") == "caf\\xe9"
    "".join(folder.entries).encode()


def test_a_file_that_vanished_or_may_not_be_read_is_a_data_error(tmp_path):
    plant(tmp_path, ["1.png"])
    folder = Folder(tmp_path)
    (tmp_path / "1.png").unlink()
    with pytest.raises(DataError, match=r"cannot read '1.png': No such file"):
        folder.read("1.png")
    with pytest.raises(DataError, match="cannot list"):
        Folder(tmp_path / "1.png") if (tmp_path / "1.png").touch() is None else None


def test_identity_changes_with_time_and_size(tmp_path):
    plant(tmp_path, ["1.png"])
    before = Folder(tmp_path).entries["1.png"]
    os.utime(tmp_path / "1.png", ns=(1, 1))
    touched = Folder(tmp_path).entries["1.png"]
    (tmp_path / "1.png").write_bytes(b"longer" * 100)
    grown = Folder(tmp_path).entries["1.png"]
    assert touched.identity == "mtime:1"
    assert before.identity != touched.identity
    assert grown.size == 600


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_zip_members_equal_their_files(tmp_path, method):
    members = {f"cat/{i}.png": png(i) for i in range(20)} | {"d\u00f6g/\U0001f600.png": png(99), "cat/empty.png": b""}
    storage = Zip(make_zip(tmp_path / "a.zip", members, method))
    assert {name: storage.read(name) for name in storage.entries} == members
    assert storage.read("cat/3.png", 10) == png(3)[:10]
    assert storage.entries["cat/3.png"].identity.startswith("crc32:")
    assert storage.folders == ["cat", "d\u00f6g"]


def test_a_local_header_longer_than_the_listing_says(tmp_path):
    """Some tools pad the local header only; the data then begins later than the listing lets expect."""
    path = make_zip(tmp_path / "a.zip", {"1.png": png(1), "2.png": png(2)}, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    at = data.index(b"2.png")
    data[at - 2 : at] = (300).to_bytes(2, "little")
    data[at + 5 : at + 5] = bytes(300)
    end = data.rindex(b"PK\x05\x06")
    data[end + 16 : end + 20] = (int.from_bytes(data[end + 16 : end + 20], "little") + 300).to_bytes(4, "little")
    path.write_bytes(data)
    assert Zip(path).read("2.png") == png(2)


@pytest.mark.parametrize(
    ("suffix", "mode"), [("tar", "w"), ("tar.gz", "w:gz"), ("tar.bz2", "w:bz2"), ("tar.xz", "w:xz")]
)
def test_tar_members_equal_their_files(tmp_path, suffix, mode):
    members = {f"./cat/{i}.png": png(i) for i in range(10)}
    path = make_tar(tmp_path / f"a.{suffix}", members, mode)
    storage = open_archive(path)
    assert isinstance(storage, Tar)
    assert {f"./{name}": storage.read(name) for name in storage.entries} == members
    assert storage.read("cat/3.png", 5) == png(3)[:5]
    assert any("unpacked to a temporary file" in note for note in storage.notes) == (suffix != "tar")
    assert sorted(os.listdir(tmp_path)) == [path.name]


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize(
    "name", ["../evil.png", "/etc/evil.png", "a/../../evil.png", "C:/evil.png", "a\\..\\..\\e.png"]
)
def test_names_that_lead_outside_refuse_the_archive(tmp_path, make, name):
    path = make(tmp_path / "a.bin", {"ok.png": png(), name: png()})
    with pytest.raises(DataError, match="1 name with a path to outside of it") as caught:
        open_archive(path)
    assert caught.value.code == "E207"
    assert "evil" in str(caught.value) or "e.png" in str(caught.value)


def test_links_and_special_members_are_left_out(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as file:
        for name, kind in [
            ("l.png", tarfile.SYMTYPE),
            ("h.png", tarfile.LNKTYPE),
            ("f.png", tarfile.FIFOTYPE),
            ("d.png", tarfile.CHRTYPE),
        ]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            file.addfile(info)
        info = tarfile.TarInfo("1.png")
        info.size, info.mode = 3, 0o6755
        file.addfile(info, io.BytesIO(b"abc"))
    storage = Tar(path)
    assert set(storage.entries) == {"1.png"}
    assert storage.notes == ("2 links inside the archive ignored", "2 special files (pipe, device) ignored")

    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        link = zipfile.ZipInfo("l.png")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        file.writestr(link, "/etc/passwd")
        file.writestr("__MACOSX/._x.png", b"x")
    assert Zip(tmp_path / "a.zip").notes == ("1 hidden file ignored", "1 link inside the archive ignored")


def test_bombs_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "RATIO_MATTERS_BYTES", 1 << 20)
    flat = bytes(2 << 20)
    with pytest.raises(DataError, match=r"a member unpacks from 2,\d{3} to 2,097,152 bytes"):
        Zip(make_zip(tmp_path / "one.zip", {"1.png": flat}))
    members = {f"{i}.png": bytes(900_000) for i in range(3)}
    with pytest.raises(DataError, match=r"unpacks to 2,700,000 bytes, over 100 times"):
        Zip(make_zip(tmp_path / "many.zip", members))
    with pytest.raises(DataError, match="unpacks to over 100 times its own"):
        Tar(make_tar(tmp_path / "a.tar.gz", {"1.png": flat}, "w:gz"))
    monkeypatch.setattr(archive, "MAX_MEMBERS", 2)
    with pytest.raises(DataError, match="more than 2 members"):
        Zip(make_zip(tmp_path / "count.zip", {f"{i}.png": b"" for i in range(3)}))


def test_a_member_that_holds_more_than_it_says_is_damaged(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"1.png": bytes(100_000)})
    data = path.read_bytes().replace((100_000).to_bytes(4, "little"), (50).to_bytes(4, "little"))
    path.write_bytes(data)
    with pytest.raises(DataError, match="its checksum or size is not what the archive says"):
        Zip(path).read("1.png")


def test_damage_is_found(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"1.png": png(1), "2.png": png(2)}, zipfile.ZIP_STORED)
    whole = path.read_bytes()
    data = bytearray(whole)
    data[60] ^= 1
    path.write_bytes(data)
    storage = Zip(path)
    with pytest.raises(DataError, match=r"cannot read '1.png': its checksum"):
        storage.read("1.png")
    assert storage.read("2.png") == png(2)
    for cut in (0, 10, len(whole) // 2, len(whole) - 5):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match="zip archive refused: damaged"):
            Zip(path)
    tar = make_tar(tmp_path / "a.tar", {"1.png": png(1), "2.png": bytes(5000)})
    tar.write_bytes(tar.read_bytes()[:3000])
    with pytest.raises(DataError, match="tar archive refused"):
        Tar(tar)
    gz = make_tar(tmp_path / "a.tar.gz", {"1.png": os.urandom(5000)}, "w:gz")
    gz.write_bytes(gz.read_bytes()[:3000])
    with pytest.raises(DataError, match="tar archive refused: damaged"):
        Tar(gz)


def test_encrypted_and_strange_methods_are_refused(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"1.png": png(1)}, zipfile.ZIP_LZMA)
    with pytest.raises(DataError, match="compression method 14 is not supported"):
        Zip(path)
    path = make_zip(tmp_path / "b.zip", {"1.png": png(1)})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"encrypted\n.*\n  '1.png'"):
        Zip(path)


def test_a_name_twice_counts_once(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as file:
        for data in (b"old", b"newer"):
            info = tarfile.TarInfo("1.png")
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    storage = Tar(path)
    assert storage.read("1.png") == b"newer"
    assert storage.notes == ("1 repeated name: the last one counts",)


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_many_threads_a_fork_and_a_pickle_read_the_same(tmp_path, make):
    members = {f"{i}.png": png(i % 256, (8, 8 + i % 5)) for i in range(200)}
    storage = open_archive(make(tmp_path / "a.bin", members))
    assert storage is not None
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda i: storage.read(f"{i % 200}.png") == members[f"{i % 200}.png"], range(4000)))
    assert len(read) == 4000
    assert all(read)

    again = pickle.loads(pickle.dumps(storage))
    assert again.read("7.png") == members["7.png"]

    script = f"""
import os, sys
from kiln.data.archive import open_archive
storage = open_archive({str(tmp_path / "a.bin")!r})
child = os.fork()
good = all(len(storage.read(name)) == entry.size for _ in range(20) for name, entry in storage.entries.items())
if child == 0:
    os._exit(0 if good else 1)
sys.exit(not good or os.waitpid(child, 0)[1])
"""
    import subprocess
    import sys

    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_a_pickle_of_an_archive_that_changed_is_refused(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"1.png": png(1)})
    packed = pickle.dumps(Zip(path))
    make_zip(path, {"1.png": png(1), "2.png": png(2)})
    with pytest.raises(DataError, match="changed while it was in use"):
        pickle.loads(packed)


def test_nothing_is_written_where_the_data_lies(tmp_path):
    data = plant(tmp_path / "data", ["cat/1.png", "dog/2.png"])
    make_zip(data / "a.zip", {"1.png": png(1)})
    make_tar(data / "a.tar.gz", {"1.png": png(1)}, "w:gz")
    before = snapshot(data)
    for storage in (Folder(data), Zip(data / "a.zip"), Tar(data / "a.tar.gz")):
        assert [storage.read(name) for name in storage.entries]
    assert snapshot(data) == before


def test_archives_leave_no_descriptor_open(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"1.png": png(1)})
    gz = make_tar(tmp_path / "a.tgz", {"1.png": png(1)}, "w:gz")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        assert Zip(path).read("1.png") == Tar(gz).read("1.png")
    assert len(os.listdir("/proc/self/fd")) == before
    assert threading.active_count() >= 1


def test_words():
    assert [counted(n, "class") for n in (0, 1, 1200)] == ["0 classes", "1 class", "1,200 classes"]
    assert counted(2, "entry") == "2 entries"
    assert is_image_name("x/Y.JPEG")
    assert not is_image_name("x.png/readme.md")
    assert is_hidden(".x")
    assert is_hidden("THUMBS.DB")
    assert not is_hidden("x.")
