"""The cache: hit and miss give the same bytes, damage is a miss, budgets hold, a used cache is never taken away."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kiln import pixels
from kiln.data import room
from kiln.data.cache import ContractForm, FileForm, StoredForm, StoredSource, bytes_needed, open_store
from kiln.data.source import open_source
from kiln.data.storelog import FileLog
from kiln.errors import UsageError

FORM = StoredForm(px=24, channels=3, interpolation="bicubic", max_pixels=10**6)
JPEG = StoredForm(px=24, channels=3, interpolation="bicubic", max_pixels=10**6, quality=90)
GREY_JPEG = StoredForm(px=24, channels=1, interpolation="bicubic", max_pixels=10**6, quality=90)
CONTRACT = ContractForm(pixels.PixelContract(height=20, width=24))
FORMS = [FORM, JPEG, GREY_JPEG, CONTRACT, FileForm()]
FORM_NAMES = ["raw", "jpeg", "grey jpeg", "contract", "file"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KILN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path) -> Path:
    noise = np.random.default_rng(0)
    for number, (width, height) in enumerate([(40, 30), (20, 60), (16, 16), (90, 25), (33, 33), (24, 24)]):
        place = tmp_path / "data" / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(noise.integers(0, 256, (height, width, 3), np.uint8))
        picture.save(place / f"{number}.{'png' if number % 3 else 'jpg'}")
    return tmp_path / "data"


def opened(folder: Path, *, form=FORM, limit: int = 10**9, tier: str = "disk"):
    source = open_source(folder)
    everything = list(range(len(source)))
    headers = [source.header(index) for index in everything if "zz" not in source.keys[index]]
    needed = bytes_needed(source, form, headers, everything)
    return source, open_store(source, form, tier=tier, needed=needed, limit_bytes=limit)


def read_all(source, store, form=FORM) -> list[bytes]:
    """Twice, so that both a miss and a hit are seen; what a hit gives."""
    stored = StoredSource(source, form, store)
    first = [bytes_of(stored.read(index)) for index in range(len(source))]
    if store is not None:
        store.flush()
    assert [bytes_of(stored.read(index)) for index in range(len(source))] == first
    return first


def bytes_of(item) -> bytes:
    return item if isinstance(item, bytes) else item.tobytes()


def files_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_the_shorter_side_is_reduced_and_never_enlarged(folder):
    source, _ = opened(folder)
    shapes = {key: FORM.make(source.read(i)).shape[:2] for i, key in enumerate(source.keys)}
    assert shapes["a/0.jpg"] == (24, 32)
    assert shapes["b/1.png"] == (60, 20)
    assert shapes["a/2.png"] == (16, 16)
    for index, key in enumerate(source.keys):
        assert FORM.bytes_of(source.header(index)) == shapes[key][0] * shapes[key][1] * 3


@pytest.mark.parametrize("tier", ["disk", "memory"])
@pytest.mark.parametrize("form", FORMS, ids=FORM_NAMES)
def test_hit_and_miss_give_the_same_bytes(folder, form, tier):
    source, store = opened(folder, form=form, tier=tier)
    assert read_all(source, None, form) == read_all(source, store, form)
    assert store.filled() == 1.0
    kept = store.get(0)
    if isinstance(kept, np.ndarray):
        assert not kept.flags.writeable


@pytest.mark.parametrize("form", FORMS, ids=FORM_NAMES)
def test_another_run_finds_what_the_first_one_kept_and_makes_nothing(folder, form, monkeypatch):
    source, store = opened(folder, form=form)
    kept = read_all(source, store, form)
    store.close()
    source, again = opened(folder, form=form)
    monkeypatch.setattr(type(form), "make", lambda *a: pytest.fail("made again"))
    assert read_all(source, again, form) == kept


def test_a_damaged_entry_is_a_miss_and_is_mended(folder):
    source, store = opened(folder)
    good = read_all(source, store)
    store.close()
    with (store.log.folder / "data.bin").open("r+b") as file:
        file.seek(5)
        byte = file.read(1)
        file.seek(5)
        file.write(bytes([byte[0] ^ 1]))
    source, again = opened(folder)
    assert sum(again.get(index) is None for index in range(len(source))) == 1
    assert read_all(source, again) == good


@pytest.mark.parametrize("cut", [1, 17, 39, 40, 41])
def test_a_torn_or_damaged_index_costs_its_records_alone(folder, cut):
    source, store = opened(folder)
    good = read_all(source, store)
    store.close()
    index = store.log.folder / "index.bin"
    index.write_bytes(index.read_bytes()[:-cut])
    source, again = opened(folder)
    there = sum(again.get(i) is not None for i in range(len(source)))
    assert there == len(source) - (1 if cut <= 40 else 2)
    assert read_all(source, again) == good
    again.close()
    damaged = bytearray(index.read_bytes())
    damaged[50] ^= 4
    index.write_bytes(damaged)
    source, third = opened(folder)
    assert sum(third.get(i) is None for i in range(len(source))) == 1
    assert read_all(source, third) == good


def test_a_hole_of_zeros_is_no_entry(folder):
    _, store = opened(folder)
    store.close()
    (store.log.folder / "index.bin").write_bytes(bytes(400))
    _, again = opened(folder)
    assert again.filled() == 0


def test_a_changed_file_invalidates_its_own_entry_alone(folder):
    source, store = opened(folder)
    before = dict(zip(source.keys, read_all(source, store), strict=True))
    store.close()
    path = folder / "a" / "2.png"
    Image.new("RGB", (16, 16), (1, 2, 3)).save(path)
    os.utime(path, ns=(1, 1))
    (folder / "a" / "new.png").write_bytes((folder / "b" / "1.png").read_bytes())
    (folder / "b" / "3.jpg").unlink()
    source, other = opened(folder)
    assert other.log.folder == store.log.folder
    assert {key for i, key in enumerate(source.keys) if other.get(i) is None} == {"a/2.png", "a/new.png"}
    after = dict(zip(source.keys, read_all(source, other), strict=True))
    assert after["a/2.png"] == bytes([1, 2, 3]) * 256
    assert all(after[key] == before[key] for key in after if key in before and key != "a/2.png")


@pytest.mark.parametrize("limit", [0, 4000, 5000, 8000, 12_000, 10**6])
def test_the_budget_holds_to_the_byte_and_what_fits_is_kept(folder, limit):
    source, store = opened(folder, limit=limit)
    everything = read_all(source, None)
    assert read_all(source, store) == everything
    assert files_of(room.root()) <= limit
    assert (store is None) == (limit < 5000)
    if store is not None:
        assert (store.filled() == 1.0) == (limit == 10**6)
        assert sum(entry.num_bytes for entry in room.entries()) <= limit
        assert store.num_bytes <= limit


def test_a_budget_that_became_smaller_holds_too(folder):
    source, store = opened(folder)
    read_all(source, store)
    assert opened(folder, limit=8000)[1] is None  # another run uses it just now
    store.close()
    source, small = opened(folder, limit=8000)
    assert read_all(source, small) == read_all(source, None)
    assert files_of(room.root()) <= 8000


def test_a_store_of_mostly_dead_entries_begins_anew(folder):
    for round_ in range(3):
        for place, path in enumerate(sorted(folder.rglob("*.*g"))):
            os.utime(path, ns=(round_, 1000 * round_ + place))
        source, store = opened(folder)
        read_all(source, store)
        assert store.filled() == 1.0
        store.close()


def test_a_budget_in_memory(folder):
    source, store = opened(folder, tier="memory", limit=5000)
    assert read_all(source, store) == read_all(source, None)
    assert 0 < store.filled() < 1
    assert len(store.log.data) == 5000


def test_the_longest_unused_gives_way_but_never_one_in_use(tmp_path):
    first = FileLog(room.root() / "first", 8000, num_entries=2, about={"where": "first"})
    second = FileLog(room.root() / "second", 8000, num_entries=2, about={"where": "second"})
    os.utime(first.folder / room.META, (1, 1))
    assert room.reserve(room.root() / "new", 5000, 20_000) == 4000
    second.close()
    assert room.reserve(room.root() / "new", 5000, 20_000) == 5000
    assert [entry.where for entry in room.entries()] == ["first"]
    first.close()
    assert [entry.where for entry in room.clear()] == ["first"]
    assert room.entries() == []


def fill(folder: Path, cache: str, done) -> None:
    os.environ["KILN_CACHE"] = cache
    source, store = opened(folder)
    done.put(read_all(source, store))
    store.close()


def test_several_processes_fill_one_cache_at_once(folder, tmp_path):
    context = multiprocessing.get_context("fork")
    done = context.Queue()
    children = [context.Process(target=fill, args=(folder, str(tmp_path / "cache"), done)) for _ in range(4)]
    for child in children:
        child.start()
    results = [done.get(timeout=60) for _ in children]
    for child in children:
        child.join(60)
    assert all(result == results[0] for result in results)
    assert len(room.entries()) == 1
    source, store = opened(folder)
    assert store.filled() == 1.0
    assert store.log.num_records == len(source)  # nobody wrote what another had written


def test_many_threads_fill_and_read_one_store(folder):
    source, store = opened(folder, form=CONTRACT)
    stored = StoredSource(source, CONTRACT, store)
    expected = read_all(source, None, CONTRACT)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda i: (i % len(source), bytes_of(stored.read(i % len(source)))), range(300)))
    assert all(made == expected[index] for index, made in results)


def test_many_at_once_are_what_one_by_one_gives(folder):
    source, store = opened(folder, form=CONTRACT)
    order = np.array([3, 0, 3, 5])
    shape = (20, 24, 3)
    assert store.many(order, shape) is None
    expected = read_all(source, store, CONTRACT)
    assert [row.tobytes() for row in store.many(order, shape)] == [expected[i] for i in order]
    assert store.many(order, (20, 24, 1)) is None
    store.close()
    again = opened(folder, form=CONTRACT)[1]
    assert [row.tobytes() for row in again.many(order, shape)] == [expected[i] for i in order]


def test_a_bad_file_is_a_bad_file_with_and_without_a_cache(folder):
    (folder / "a" / "zz.png").write_bytes(b"not an image")
    source, store = opened(folder)
    index = source.keys.index("a/zz.png")
    for which in (None, store):
        with pytest.raises(pixels.PixelError, match="image"):
            StoredSource(source, FORM, which).read(index)


def test_a_stored_jpeg_needs_one_or_three_channels():
    with pytest.raises(UsageError, match=r"stored_jpeg=0 keeps the pixels"):
        StoredForm(px=24, channels=4, interpolation="bicubic", max_pixels=10**6, quality=90)


@pytest.mark.parametrize(
    ("text", "expected"), [("20GB", 20 * 10**9), ("500 mb", 5 * 10**8), ("1.5T", 15 * 10**11), ("7", 7)]
)
def test_sizes(text, expected):
    assert room.parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "20 apples"])
def test_a_size_that_is_none_is_refused(text):
    with pytest.raises(UsageError, match="such as 20GB"):
        room.parse_size(text)


@pytest.mark.parametrize("num_bytes", [0, 7, 999, 1000, 1999, 123_456, 7_775_457_906, 3_000_000_000_000])
def test_a_size_in_words_is_read_back_as_no_more_and_hardly_less(num_bytes):
    back = room.parse_size(room.size_text(num_bytes))
    assert 0.99 * num_bytes <= back <= num_bytes


def test_a_size_in_words_is_short():
    assert room.size_text(7_775_457_906) == "7.77GB"
