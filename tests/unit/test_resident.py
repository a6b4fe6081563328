"""A training set on the device: the images that the host would make, for places that the host sends."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import kiln
from kiln.data.cache import ContractForm, StoredSource, open_store
from kiln.data.images import ContractImages, KeptImages, PaddedCropImages
from kiln.data.loader import Assembler
from kiln.data.resident import ResidentImages, free_bytes
from kiln.pixels import PixelContract
from kiln.random import keys_of

CPU = torch.device("cpu")
CONTRACT = PixelContract(height=12, width=16, channels=3, resize="stretch", interpolation="bilinear")
INDICES = np.array([7, 2, 2, 0, 5, 9], np.int64)


@pytest.fixture
def source(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(10):
        folder = tmp_path / "photos" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(folder / f"{number}.png")
    return kiln.open_source(tmp_path / "photos")


def kinds(source):
    plain = ContractImages(source, CONTRACT)
    form = ContractForm(CONTRACT)
    store = open_store(source, form, tier="memory", needed=10**6, limit_bytes=10**6)
    kept = KeptImages(StoredSource(source, form, store), CONTRACT)
    return {"plain": plain, "kept": kept, "padded": PaddedCropImages(kept, 3), "wide": PaddedCropImages(plain, 20)}


@pytest.mark.parametrize("kind", ["plain", "kept", "padded", "wide"])
@pytest.mark.parametrize("workers", [0, 3])
def test_images_are_those_that_the_host_makes(source, kind, workers):
    images = kinds(source)[kind]
    resident = ResidentImages(images, np.arange(10), device=CPU, workers=workers)
    targets = np.arange(10)
    for epoch in range(3):
        draws = images.draw(0, epoch, keys_of(source.keys)[INDICES])
        positions = np.arange(len(INDICES))
        expected = Assembler(images, targets).make(INDICES, draws, positions).batch
        places = Assembler(resident, targets).make(INDICES, draws, positions).batch
        assert places.images.shape == (6, 3)
        assert places.images.dtype == torch.int64
        made = resident.gather(places.images)
        assert torch.equal(made, expected.images)
        assert made.is_contiguous(memory_format=torch.channels_last)


def test_without_draws_images_stay_where_they_are(source):
    images = kinds(source)["padded"]
    resident = ResidentImages(images, np.arange(10), device=CPU)
    made = resident.gather(resident.places(INDICES, None)[0]).permute(0, 2, 3, 1).numpy()
    assert all(np.array_equal(row, images.load(index)) for row, index in zip(made, INDICES.tolist(), strict=True))


def test_gathered_images_are_copies(source):
    resident = ResidentImages(ContractImages(source, CONTRACT), np.arange(10), device=CPU)
    before = resident.data.clone()
    resident.gather(torch.tensor([[0, 0, 0], [1, 0, 0]])).zero_()
    assert torch.equal(resident.data, before)
    assert before.any()


def test_only_the_asked_samples_are_held_and_bad_ones_stay_bad(source, tmp_path):
    spoiled = tmp_path / "photos" / source.keys[2]
    spoiled.write_bytes(spoiled.read_bytes()[:300])
    chosen = np.array([9, 2, 4, 7, 0, 5])
    images = PaddedCropImages(ContractImages(kiln.open_source(tmp_path / "photos"), CONTRACT), 2)
    resident = ResidentImages(images, chosen, device=CPU, workers=2)
    assert resident.data.shape == (6, 12, 16, 3)
    draws = images.draw(0, 0, keys_of(source.keys)[INDICES])
    assembled = [Assembler(each, np.arange(10)).make(INDICES, draws, np.arange(6)) for each in (images, resident)]
    assert [index for index, _ in assembled[0].bad] == [index for index, _ in assembled[1].bad] == [2, 2]
    assert [error.reason for _, error in assembled[0].bad] == [error.reason for _, error in assembled[1].bad]
    host, places = (made.batch for made in assembled)
    assert torch.equal(resident.gather(places.images), host.images)
    assert places.indices.tolist() == host.indices.tolist() == [7, 0, 5, 9]


def test_free_bytes_of_the_host():
    assert 10**6 < free_bytes(CPU) < 10**15
