from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.zoo import Specimen, bombs, specimens

from kiln.pixels import Header, PixelContract, PixelError, decode, probe

ROOT = Path(__file__).parents[2]

WORDS = {
    "empty": "the file is empty",
    "not_an_image": r"not an image, whatever its name says: it starts with b.*; JPEG, PNG",
    "truncated": "the file ends before",
    "too_many_pixels": r"more than max_pixels=50,000,000|more pixels than Pillow's own",
    "unsupported": r"expected|are not read|HEIC|only 1 \(grey\) and 3|16 MiB of text|100 scans|run-length",
    "corrupt": r"header is cut short|cannot be decoded|an image of 0 x 9 pixels",
}


def named(specimen: Specimen) -> str:
    return specimen.name


def test_the_zoo_is_large_and_its_names_differ():
    names = [specimen.name for specimen in specimens() + bombs()]
    assert len(names) >= 100
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("specimen", [s for s in specimens() if not s.reasons], ids=named)
def test_sound_files_become_the_defined_pixels(specimen):
    found = decode(specimen.data)
    assert found.shape == specimen.pixels.shape
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - specimen.pixels).max() <= specimen.tolerance
    header = probe(specimen.data)
    assert (header.height, header.width) == found.shape[:2]
    assert PixelContract(16, 16).apply(specimen.data).shape == (16, 16, 3)


@pytest.mark.parametrize("specimen", [s for s in specimens() if s.reasons], ids=named)
def test_other_files_are_refused_with_a_reason(specimen):
    with pytest.raises(PixelError) as caught:
        decode(specimen.data)
    assert caught.value.reason in specimen.reasons
    with pytest.raises(PixelError, match=WORDS[caught.value.reason]):
        PixelContract(16, 16).apply(specimen.data)


@pytest.mark.parametrize("specimen", bombs(), ids=named)
def test_bombs_are_refused_with_a_reason(specimen):
    with pytest.raises(PixelError, match=WORDS[specimen.reasons[0]]) as caught:
        decode(specimen.data)
    assert caught.value.reason in specimen.reasons


def test_a_directory_of_tiff_pages_that_runs_in_a_ring_is_not_followed():
    page = next(s for s in specimens() if s.name == "16-white-is-zero.tif").data
    at = page.index(b"II*\0") + 8
    count = int.from_bytes(page[at : at + 2], "little")
    link = at + 2 + 12 * count
    ring = page[:link] + (8).to_bytes(4, "little") + page[link + 4 :]
    assert probe(ring) == Header(36, 24, "I;16", "TIFF", 1, 1)
    assert np.array_equal(decode(ring), decode(page))


MEASURE = """
import json, resource, sys, time
from kiln.pixels import PixelContract, PixelError
from tests.zoo import bombs, specimens
contract = PixelContract(224, 224, crop_fraction=0.875)
files = {"bombs": bombs, "specimens": specimens}[sys.argv[1]]()
for specimen in specimens():
    if specimen.name in ("rgb.png", "baseline.jpg", "lossless.webp", "raw.tif"):
        contract.apply(specimen.data)  # plugins and tables are loaded once
before, slowest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0.0
for specimen in files:
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        try:
            contract.apply(specimen.data)
        except PixelError:
            pass
        seconds.append(time.perf_counter() - start)
    slowest = max(slowest, min(seconds))
unit = 1024 if sys.platform == "darwin" else 1
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 / unit
print(json.dumps({"slowest_seconds": slowest, "grown_mib": grown, "files": len(files)}))
"""


def run_python(*arguments: str, timeout: float) -> dict:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments], cwd=ROOT, env=environment, capture_output=True, timeout=timeout
    )
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize(("files", "most_seconds", "most_mib"), [("bombs", 0.05, 20), ("specimens", 2.0, 300)])
def test_no_file_costs_much_time_or_memory(files, most_seconds, most_mib):
    found = run_python("-c", MEASURE, files, timeout=120)
    assert found["files"] >= 10
    assert found["slowest_seconds"] <= most_seconds
    assert found["grown_mib"] <= most_mib


def fuzz(count: int, seed: int, timeout: float) -> None:
    found = run_python("-m", "tests.zoo.fuzz", str(count), str(seed), timeout=timeout)
    assert found["seeds"] >= 50
    assert sum(found["outcomes"].values()) == count
    assert found["outcomes"]["decoded"] > count // 20  # the injuries are small enough to reach the decoders
    assert found["outcomes"]["corrupt"] > count // 20


def test_damaged_files_fail_only_as_pixel_errors():
    fuzz(300, 0, timeout=120)


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(1, 5))
def test_damaged_files_fail_only_as_pixel_errors_in_a_storm(seed):
    fuzz(5_000, seed, timeout=1200)
