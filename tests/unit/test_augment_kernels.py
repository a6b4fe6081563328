"""The compiled kernels against torch's operations: every policy, both orders in memory, any threads and any cut."""

from __future__ import annotations

import importlib
import subprocess
import sys
import threading
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kiln.augment import WarpColorErase, backend, compiled, operations, policy
from kiln.augment.erasing import windows
from kiln.jobs.training.save import bitwise_conditions

pytest.importorskip("numba")
normalized = importlib.import_module("kiln.augment.normalized")  # the package has a function of that name

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
ZERO, ONE = torch.zeros(3), torch.ones(3)
TILTED = WarpColorErase(vflip=0.5, p_warp=0.7, degrees=180.0, scale=(0.2, 3.0), p_perspective=0.6, perspective=0.5)
POLICIES = {
    "none": policy("none"),
    "light": policy("light", vflip=0.5),
    "standard": policy("standard", vflip=0.5),
    "strong": policy("strong"),
    "tilted": TILTED,
}


def pictures(num=24, height=37, width=29, *, channels_last=False):
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (num, 3, height, width), np.uint8))
    return images.to(memory_format=torch.channels_last) if channels_last else images


@pytest.fixture(autouse=True)
def _kernels_are_loaded():
    compiled.load_lines(wait=True)
    assert compiled.lines_are_loaded()


def drawn(chosen, num=24):
    return chosen.draw(1, 2, np.arange(num, dtype=np.uint64))


def by_torch(monkeypatch, work):
    with monkeypatch.context() as patch:
        patch.setattr(compiled, "has_numba", lambda: False)
        assert backend("cpu") == "torch"
        return work()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", POLICIES)
def test_kernels_do_what_torchs_operations_do(name, channels_last, monkeypatch):
    images, chosen = pictures(channels_last=channels_last), POLICIES[name]
    before, params = images.clone(), drawn(chosen)
    mine = chosen(images, params, mean=ZERO, std=ONE)
    theirs = by_torch(monkeypatch, lambda: chosen(images, params, mean=ZERO, std=ONE))
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)
    assert mine.stride() == theirs.stride() == images.stride()
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", operations.IN_PLACE)
def test_operations_on_levels_do_what_torchs_do(name, monkeypatch):
    images = pictures()
    images[1], images[2], images[3, :, :18] = 77, images[2] // 8 + 100, 200  # constant, narrow, half constant
    table = operations.WIDE.table()[operations.NAMES.index(name)]
    for magnitude in (table[0], table[11], -table[20], table[30]):
        policy_ = operations.Rand(1, hflip=0.0)
        params = np.tile([0.0, 0.0, operations.NAMES.index(name), magnitude], (len(images), 1))
        mine = policy_(images, params)
        theirs = by_torch(monkeypatch, lambda params=params, policy_=policy_: policy_(images, params))
        distance = (mine.int() - theirs.int()).abs()
        assert int(distance.max()) <= (1 if name in ("Color", "Contrast", "Sharpness") else 0)
        assert float((distance > 0).float().mean()) < 1e-2


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", ["trivial", "rand", "autoaugment"])
def test_policies_of_operations_do_what_torchs_do(name, channels_last, monkeypatch):
    images, chosen = pictures(100, channels_last=channels_last), policy(name, vflip=0.5)
    params = drawn(chosen, 100)
    mine, theirs = chosen(images, params), by_torch(monkeypatch, lambda: chosen(images, params))
    distance = (mine.int() - theirs.int()).abs()
    # a level more or less after the first operation may be many after the second, in a few pixels
    assert float((distance > 0).float().mean()) < 1e-2
    assert mine.stride() == theirs.stride() == images.stride()
    floats = chosen(images, params, mean=MEAN, std=STD)
    assert floats.stride() == images.stride()
    torch.testing.assert_close(floats, (mine / 255 - MEAN.view(-1, 1, 1)) / STD.view(-1, 1, 1))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", ["standard", "strong", "tilted", "trivial"])
def test_threads_and_cuts_change_no_bit(name, channels_last, monkeypatch):
    monkeypatch.setattr(compiled, "PIECE_VALUES", 5000)  # so that there are more pieces than threads
    images, chosen = pictures(channels_last=channels_last), POLICIES.get(name) or policy(name)
    params, before = drawn(chosen), torch.get_num_threads()
    whole = chosen(images, params, mean=MEAN, std=STD)
    try:
        for num_threads in (1, 2, 5):
            torch.set_num_threads(num_threads)
            assert torch.equal(chosen(images, params, mean=MEAN, std=STD), whole)
    finally:
        torch.set_num_threads(before)
    parts = [
        chosen(images[rows], params[rows], mean=MEAN, std=STD) for rows in (slice(0, 1), slice(1, 7), slice(7, 24))
    ]
    assert torch.equal(torch.cat(parts), whole)


def test_images_alone_or_among_blurred_ones_are_the_same_bits():
    images, chosen = pictures(), WarpColorErase(p_blur=0.5)
    params = drawn(chosen)
    plain = params[:, 22] == 0
    assert 0 < plain.sum() < len(plain)
    whole = chosen(images, params, mean=MEAN, std=STD)
    assert torch.equal(chosen(images[plain], params[plain], mean=MEAN, std=STD), whole[plain])


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", ["none", "light"])
def test_scaling_alone_is_the_same_bits_with_and_without_kernels(name, channels_last, monkeypatch):
    """So that a batch may be made either way while the kernels are being loaded."""
    images, chosen = pictures(channels_last=channels_last), POLICIES[name]
    params = drawn(chosen)
    theirs = by_torch(monkeypatch, lambda: chosen(images, params, mean=MEAN, std=STD))
    by_kernels = []
    work = normalized._by_kernels
    monkeypatch.setattr(
        normalized, "_by_kernels", lambda *given, **named: by_kernels.append(1) or work(*given, **named)
    )
    assert torch.equal(chosen(images, params, mean=MEAN, std=STD), theirs)
    assert by_kernels == [1]
    monkeypatch.setattr(compiled, "_loaded", threading.Event())
    assert torch.equal(chosen(images, params, mean=MEAN, std=STD), theirs)
    assert by_kernels == [1]


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (8, 1), (2, 2), (64, 64)])
def test_images_of_any_size(size, monkeypatch):
    chosen = WarpColorErase(p_warp=0.8, degrees=180.0, scale=(0.2, 3.0))
    images, params = pictures(24, *size), drawn(chosen)
    mine = chosen(images, params, mean=MEAN, std=STD)
    theirs = by_torch(monkeypatch, lambda: chosen(images, params, mean=MEAN, std=STD))
    torch.testing.assert_close(mine, theirs, rtol=0, atol=5e-5)


def test_levels_and_half_precision_come_from_the_same_floats(monkeypatch):
    images, chosen = pictures(), POLICIES["standard"]
    params = drawn(chosen)
    mine, theirs = chosen(images, params), by_torch(monkeypatch, lambda: chosen(images, params))
    assert mine.dtype == torch.uint8
    assert int((mine.int() - theirs.int()).abs().max()) <= 1
    exact = chosen(images, params, mean=MEAN, std=STD)
    assert torch.equal(chosen(images, params, mean=MEAN, std=STD, dtype=torch.bfloat16), exact.to(torch.bfloat16))


@pytest.mark.parametrize(
    "images",
    [
        pictures().float(),
        pictures()[:, :1],
        pictures()[..., 1:],
        pictures(0),
        torch.zeros(2, 3, 5, 5, dtype=torch.uint8, device="meta"),
    ],
)
def test_what_the_kernels_do_not_take_is_left_to_torch(images):
    assert not compiled.takes(images)


def test_the_backend_names_what_the_bits_depend_on():
    assert backend("cpu").startswith("numba ")
    assert " for " in backend("cpu")
    assert backend("cuda") == "torch"


def test_windows_are_whole_pixels_inside_the_image():
    shares = np.array([[0.0, 0.0, 0.0, 0.5], [0.9, 0.5, 0.1, 0.001], [0.25, 0.0, 0.5, 1.0]])
    assert windows(shares, size=(10, 20)).tolist() == [[0, 0, 0, 0], [9, 10, 10, 11], [2, 0, 7, 20]]


def test_a_run_keeps_what_augmented_it_so_that_a_resume_can_say_what_differs(monkeypatch):
    training = SimpleNamespace(
        state=SimpleNamespace(device=torch.device("cpu")), strategy=SimpleNamespace(world_size=1)
    )
    settings = defaultdict(str)
    here = bitwise_conditions(training, settings)
    elsewhere = by_torch(monkeypatch, lambda: bitwise_conditions(training, settings))
    assert [name for name in here if here[name] != elsewhere[name]] == ["augmentation"]


def test_process_may_end_while_the_kernels_are_being_loaded():
    code = (
        "import torch; from kiln.augment import policy; import numpy as np; chosen = policy('light');"
        "images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8); params = chosen.draw(0, 0, np.arange(4, dtype=np.uint64));"
        "out = chosen(images, params, mean=torch.zeros(3), std=torch.ones(3)); print(float(out.sum()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0.0\n", "")
