"""The cache: hit and miss give the same bytes, damage is a miss, budgets hold, a used cache is never taken away."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kiln import pixels
from kiln.data import room
from kiln.data.cache import Store, StoredForm, StoredSource, open_store, stored_shapes
from kiln.data.source import open_source
from kiln.errors import UsageError

FORM = StoredForm(px=24, channels=3, interpolation="bicubic", max_pixels=10**6)


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


def opened(folder: Path, *, limit: int = 10**9):
    source = open_source(folder)
    shapes = stored_shapes(source, range(len(source)), FORM)
    return source, shapes, open_store(source, shapes, FORM, limit_bytes=limit)


def test_the_shorter_side_is_reduced_and_never_enlarged(folder):
    source, shapes, _ = opened(folder)
    sizes = {key: shape[:2] for key, shape in zip(source.keys, shapes, strict=True)}
    assert sizes["a/0.jpg"] == (24, 32)
    assert sizes["b/1.png"] == (60, 20)
    assert sizes["a/2.png"] == (16, 16)
    assert all(source.header(i).height >= shape[0] for i, shape in enumerate(shapes))


def test_hit_and_miss_give_the_same_bytes(folder):
    source, _, store = opened(folder)
    without = StoredSource(source, FORM, None)
    with_store = StoredSource(source, FORM, store)
    for index in range(len(source)):
        made = without.read(index)
        missed, hit = with_store.read(index), with_store.read(index)
        assert made.dtype == np.uint8
        assert np.array_equal(made, missed)
        assert np.array_equal(made, hit)
        assert not hit.flags.writeable
    assert store.filled() == 1.0


def test_another_run_finds_what_the_first_one_kept_and_decodes_nothing(folder, monkeypatch):
    source, _, store = opened(folder)
    kept = [StoredSource(source, FORM, store).read(i).copy() for i in range(len(source))]
    store.close()
    source, _, again = opened(folder)
    monkeypatch.setattr(pixels, "decode_image", lambda *a, **k: pytest.fail("decoded again"))
    for index, image in enumerate(kept):
        assert np.array_equal(StoredSource(source, FORM, again).read(index), image)


def test_a_damaged_entry_is_a_miss_and_is_mended(folder):
    source, _, store = opened(folder)
    good = [StoredSource(source, FORM, store).read(i).copy() for i in range(len(source))]
    store.close()
    with (store.folder / "pixels.bin").open("r+b") as file:
        file.seek(5)
        byte = file.read(1)
        file.seek(5)
        file.write(bytes([byte[0] ^ 1]))
    source, _, again = opened(folder)
    damaged = [i for i in range(len(source)) if again.get(i) is None]
    assert len(damaged) == 1
    for index, image in enumerate(good):
        assert np.array_equal(StoredSource(source, FORM, again).read(index), image)
    assert again.get(damaged[0]) is not None


def test_a_changed_file_is_another_cache(folder):
    _, _, store = opened(folder)
    path = folder / "a" / "2.png"
    Image.new("RGB", (16, 16), (1, 2, 3)).save(path)
    os.utime(path, ns=(1, 1))
    source, _, other = opened(folder)
    assert other.folder != store.folder
    index = source.keys.index("a/2.png")
    assert (StoredSource(source, FORM, other).read(index) == (1, 2, 3)).all()


def test_a_cache_that_does_not_fit_is_not_made(folder):
    source, shapes, store = opened(folder, limit=100)
    assert store is None
    assert room.entries() == []
    exact = sum(h * w * c for h, w, c in shapes)
    assert open_store(source, shapes, FORM, limit_bytes=exact) is not None
    assert [entry.num_bytes for entry in room.entries()] == [exact]


def test_the_longest_unused_gives_way_but_never_one_in_use(folder, tmp_path):
    first = Store(room.root() / "first", [(10, 10, 1)], about={"where": "first"})
    second = Store(room.root() / "second", [(10, 10, 1)], about={"where": "second"})
    os.utime(first.folder / room.META, (1, 1))
    assert not room.make_room(100, 250, keep=room.root() / "new")
    second.close()
    assert room.make_room(100, 250, keep=room.root() / "new")
    assert [entry.where for entry in room.entries()] == ["first"]
    first.close()
    assert [entry.where for entry in room.clear()] == ["first"]
    assert room.entries() == []


def fill(folder: Path, cache: str, done) -> None:
    os.environ["KILN_CACHE"] = cache
    source, _, store = opened(folder)
    images = [StoredSource(source, FORM, store).read(i).tobytes() for i in range(len(source))]
    done.put(images)


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


def test_a_bad_file_is_a_bad_file_with_and_without_a_cache(folder):
    (folder / "a" / "zz.png").write_bytes(b"not an image")
    source, shapes, store = opened(folder)
    index = source.keys.index("a/zz.png")
    assert shapes[index] == (0, 0, 3)
    for which in (None, store):
        with pytest.raises(pixels.PixelError, match="image"):
            StoredSource(source, FORM, which).read(index)


@pytest.mark.parametrize(
    ("text", "expected"), [("20GB", 20 * 10**9), ("500 mb", 5 * 10**8), ("1.5T", 15 * 10**11), ("7", 7)]
)
def test_sizes(text, expected):
    assert room.parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "20 apples"])
def test_a_size_that_is_none_is_refused(text):
    with pytest.raises(UsageError, match="such as 20GB"):
        room.parse_size(text)
