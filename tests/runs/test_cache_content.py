"""Entries named by content: a file that changed under an unchanged size and time is made again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import kiln
from kiln.data.cache import entries_of
from kiln.errors import UsageError

SETTINGS = {
    "model": "kiln/small_cnn",
    "kwargs": {"widths": [8, 16]},
    "img_size": 16,
    "epochs": 2,
    "workers": 2,
    "report": False,
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KILN_CACHE", str(tmp_path / "cache"))


def change_in_secret(path: Path, colour: int) -> None:
    """Other pixels in as many bytes at the same time."""
    before = path.stat()
    Image.fromarray(np.full((32, 32, 3), colour, np.uint8)).save(path, "BMP")
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.fixture
def bitmaps(tmp_path):
    for number in range(24):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((32, 32, 3), 10 * number, np.uint8)).save(path)
    return tmp_path / "photos"


def test_entries_follow_the_content_alone(bitmaps):
    source = kiln.open_source(bitmaps)
    some = np.arange(20)
    by_stat, by_content = entries_of(source), entries_of(source, some)
    assert not (by_stat[:20] == by_content[:20]).any()
    assert (by_stat[20:] == by_content[20:]).all()
    change_in_secret(bitmaps / source.keys[3], 7)
    os.utime(bitmaps / source.keys[4])
    source = kiln.open_source(bitmaps)
    assert np.flatnonzero(entries_of(source, some) != by_content).tolist() == [3]
    assert np.flatnonzero(entries_of(source) != by_stat).tolist() == [4]


def test_a_secret_change_is_seen_where_asked(bitmaps, tmp_path):
    def train(name, **changes):
        run = kiln.train(bitmaps, output=str(tmp_path / name), **(SETTINGS | changes))
        return {key: tensor.tobytes() for key, tensor in load_file(run.model_file).items()}

    before = train("before", cache_key="content")
    assert train("stat") == before
    for path in bitmaps.rglob("*.bmp"):
        change_in_secret(path, 200)
    assert train("stale") == before  # as documented: size and time did not change
    fresh = train("fresh", cache_key="content")
    assert fresh != before
    shutil.rmtree(tmp_path / "cache")
    assert train("off", cache="off") == fresh


def test_without_effect_it_is_refused(bitmaps, tmp_path):
    with pytest.raises(UsageError, match=r"data\.cache_key = 'content' has no effect with data\.cache = 'memory'"):
        kiln.train(bitmaps, output=str(tmp_path), cache="memory", cache_key="content", **SETTINGS)
