"""Batches as pure functions of the step: any number of workers, bad samples named and left out, never replaced."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from kiln.augment import Light
from kiln.data.images import NUM_CROP_DRAWS, BadSample, ContractImages, RandomCropImages, read
from kiln.data.loader import Assembler, BadFiles, TrainLoader, evaluation_batches
from kiln.data.sampler import Cut, Shuffle
from kiln.data.source import open_source
from kiln.errors import DataError
from kiln.pixels import PixelContract
from kiln.random import keys_of

CONTRACT = PixelContract(height=16, width=16)


@pytest.fixture
def copied(image_folder, tmp_path):
    """The generated pictures, to be damaged."""
    for path in sorted(image_folder.rglob("*.*")):
        target = tmp_path / path.parent.name / path.name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes())
    return tmp_path


def training_loader(
    folder, *, batch_size=10, workers=0, rank=0, world_size=1, limit=float("inf"), drop_last=False, crop=True
):
    source = open_source(folder)
    targets = np.array([sorted(set(source.labels)).index(label) for label in source.labels])
    keys = keys_of(source.keys)
    images = RandomCropImages(source, CONTRACT) if crop else ContractImages(source, CONTRACT)
    light = Light()
    return TrainLoader(
        Assembler(images, targets),
        Shuffle(np.arange(len(source)), keys, seed=7),
        Cut(len(source), batch_size, drop_last, rank, world_size),
        keys=keys,
        bad_files=BadFiles(source.keys, limit=limit),
        draw_params=lambda epoch, of: light.draw(7, epoch, of),
        workers=workers,
    )


def take(batches, num):
    return list(itertools.islice(batches, num))


def facts(batch):
    return (
        batch.images.numpy().tobytes(), batch.targets.tolist(), batch.indices.tolist(),
        batch.positions.tolist(), batch.params.tolist(),
    )  # fmt: skip


@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_workers_gives_the_same_batches(image_folder, workers):
    alone = take(training_loader(image_folder).from_step(5), 9)  # over the end of an epoch
    many = take(training_loader(image_folder, workers=workers).from_step(5), 9)
    assert [facts(batch) for batch in alone] == [facts(batch) for batch in many]


def test_a_batch_of_any_step_can_be_made_again(image_folder):
    loader = training_loader(image_folder, workers=2)
    assert len(loader) == 7
    streamed = take(loader.from_step(0), 15)
    for step in (14, 0, 6, 7):
        assert facts(loader.at(step)) == facts(streamed[step])
    assert [len(batch) for batch in streamed] == [10] * 6 + [4] + [10] * 6 + [4, 10]
    assert len(list(loader)) == 7


def test_a_resumed_stream_goes_on_where_it_stood(image_folder):
    whole = take(training_loader(image_folder).from_step(0), 10)
    resumed = take(training_loader(image_folder, workers=1).from_step(4), 6)
    assert [facts(batch) for batch in resumed] == [facts(batch) for batch in whole[4:]]


def test_the_same_picture_is_cropped_differently_in_each_epoch(image_folder):
    loader = training_loader(image_folder)
    by_epoch = []
    for epoch in range(2):
        pictures = {}
        for batch in take(loader.from_step(epoch * 7), 7):
            pictures.update(zip(batch.indices.tolist(), batch.images, strict=True))
        by_epoch.append(pictures)
    assert by_epoch[0].keys() == by_epoch[1].keys() == set(range(64))
    assert sum(torch.equal(by_epoch[0][index], by_epoch[1][index]) for index in range(64)) < 4


def test_ranks_together_hold_the_global_batch_and_know_its_size(image_folder):
    whole = training_loader(image_folder).at(2)
    shares = [training_loader(image_folder, rank=rank, world_size=3).at(2) for rank in range(3)]
    assert torch.equal(torch.cat([share.images for share in shares]), whole.images)
    assert np.concatenate([share.indices for share in shares]).tolist() == whole.indices.tolist()
    assert {share.total for share in shares} == {10.0}
    assert whole.total is None


def test_images_are_uint8_and_channels_last(image_folder):
    batch = training_loader(image_folder).at(0)
    assert batch.images.dtype == torch.uint8
    assert batch.images.shape == (10, 3, 16, 16)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.targets.dtype == torch.int64


def test_targets_belong_to_their_images(image_folder):
    source = open_source(image_folder)
    classes = sorted(set(source.labels))
    loader = training_loader(image_folder, crop=False)
    for batch in loader:
        for index, target, picture in zip(batch.indices, batch.targets, batch.images, strict=True):
            assert source.labels[index] == classes[target]
            assert np.array_equal(picture.permute(1, 2, 0).numpy(), CONTRACT.apply(source.read(int(index))))


# Bad files.


def damage(folder, *names):
    for name in names:
        (folder / name).write_bytes(b"<html>not found</html>")


def test_a_bad_sample_is_left_out_and_named_when_its_batch_is_consumed(copied):
    whole = {index: picture for batch in training_loader(copied) for index, picture in zip(batch.indices, batch.images)}  # noqa: B905
    damage(copied, "dots/03.png")
    loader = training_loader(copied, workers=2)
    bad_index = loader.bad_files.keys.index("dots/03.png")
    steps = loader.from_step(0)
    seen = {}
    for number in range(7):
        batch = next(steps)
        wanted = loader.cut.positions(number)[1]
        expected = [index for index in loader.sampler.epoch(0).indices[wanted] if index != bad_index]
        assert batch.indices.tolist() == expected
        assert len(batch.images) == len(batch.targets) == len(batch.params) == len(batch.positions) == len(expected)
        assert (bad_index in loader.bad_files.found) == (bad_index in loader.sampler.epoch(0).indices[: wanted[-1] + 1])
        seen.update(zip(batch.indices.tolist(), batch.images, strict=True))
    assert seen.keys() == set(range(64)) - {bad_index}
    assert all(torch.equal(picture, whole[index]) for index, picture in seen.items())  # none stands in for it
    ((key, split, reason, detail),) = loader.bad_files.rows()
    assert (key, split, reason) == ("dots/03.png", "train", "not_an_image")
    assert detail
    steps.close()


def test_a_bad_sample_is_recorded_once_however_often_it_is_met(copied):
    damage(copied, "dots/03.png")
    loader = training_loader(copied)
    take(loader.from_step(0), 21)
    assert len(loader.bad_files.rows()) == 1


def test_too_many_bad_files_are_an_error_that_names_them(copied):
    damage(copied, "dots/03.png", "bars/00.jpg", "rings/07.png")
    loader = training_loader(copied, limit=2)
    with pytest.raises(DataError, match="3 training files cannot be read; the limit is 2") as caught:
        take(loader.from_step(0), 7)
    assert caught.value.code == "E206"
    assert all(name in str(caught.value) for name in ("dots/03.png", "bars/00.jpg", "rings/07.png"))


def test_a_batch_of_bad_samples_alone_is_empty_and_for_several_processes_weightless(copied):
    damage(copied, *(str(path.relative_to(copied)) for path in sorted(copied.rglob("*.*"))))
    alone = training_loader(copied).at(0)
    assert len(alone) == 0
    assert alone.images.shape == (0, 3, 16, 16)
    shared = training_loader(copied, rank=0, world_size=2).at(0)
    assert (len(shared), shared.weights.tolist(), shared.indices.tolist()) == (1, [0.0], [])


def test_a_process_without_samples_goes_through_the_motions_weightlessly(image_folder):
    shares = [training_loader(image_folder, batch_size=2, rank=rank, world_size=5).at(0) for rank in range(5)]
    assert [len(share.indices) for share in shares].count(1) == 2
    idle = [share for share in shares if len(share.indices) == 0]
    assert len(idle) == 3
    assert all(len(share) == 1 and share.weights.tolist() == [0.0] and share.total == 2.0 for share in idle)


def test_bad_files_survive_a_checkpoint_and_meet_those_of_other_processes():
    mine, theirs = BadFiles(("a", "b", "c")), BadFiles(("a", "b", "c"))
    mine.add(2, "train", BadSample("truncated", "ends early"))
    theirs.add(0, "val", BadSample("empty", "no bytes"))
    theirs.add(2, "train", BadSample("truncated", "said differently"))
    mine.merge([mine, theirs])
    assert mine.rows() == [("a", "val", "empty", "no bytes"), ("c", "train", "truncated", "ends early")]
    again = BadFiles(("a", "b", "c"))
    again.load_state(mine.state())
    assert again.rows() == mine.rows()


# Evaluation.


def evaluated(folder, *, skip_bad, workers=0):
    source = open_source(folder)
    bad_files = BadFiles(source.keys)
    targets = np.zeros(len(source), np.int64)
    indices = np.arange(len(source))[::2]
    batches = evaluation_batches(
        Assembler(ContractImages(source, CONTRACT), targets), indices,
        batch_size=7, bad_files=bad_files, split="test", skip_bad=skip_bad, workers=workers,
    )  # fmt: skip
    return batches, bad_files, indices


@pytest.mark.parametrize("workers", [0, 3])
def test_evaluation_takes_each_sample_once_in_order(image_folder, workers):
    batches, _, indices = evaluated(image_folder, skip_bad=False, workers=workers)
    assert np.concatenate([batch.indices for batch in batches]).tolist() == indices.tolist()


def test_a_bad_file_in_evaluation_is_an_error_unless_it_may_be_left_out(copied):
    keys = open_source(copied).keys
    damage(copied, keys[4])
    batches, _, _ = evaluated(copied, skip_bad=False)
    with pytest.raises(DataError, match=r"(?s)bars/04\.jpg \(test\) cannot be read.*--bad-files skip"):
        list(batches)
    batches, bad_files, indices = evaluated(copied, skip_bad=True)
    assert np.concatenate([batch.indices for batch in batches]).tolist() == [i for i in indices if i != 4]
    assert [row[:2] for row in bad_files.rows()] == [(keys[4], "test")]


# Images.


class OneImage:
    """A source of a single item."""

    transformed = False

    def __init__(self, item):
        self.item = item

    def read(self, index):
        if isinstance(self.item, Exception):
            raise self.item
        return self.item


def png(width, height):
    """Red rises from left to right, green from top to bottom."""
    buffer = io.BytesIO()
    down, across = np.mgrid[:height, :width]
    picture = np.stack([across * 255 // max(width - 1, 1), down * 255 // max(height - 1, 1), 0 * down], -1)
    Image.fromarray(picture.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("resize", ["crop", "stretch", "pad"])
@pytest.mark.parametrize(("width", "height"), [(40, 40), (90, 30), (7, 200), (1, 1)])
def test_random_crops_have_the_shape_and_lie_inside(resize, width, height):
    contract = PixelContract(height=12, width=16, resize=resize)
    images = RandomCropImages(OneImage(png(width, height)), contract)
    corners = [np.array(draws) for draws in itertools.product([0.0, 1 - 1e-12], repeat=NUM_CROP_DRAWS)]
    for draws in [*corners, np.array([0.3, 0.5, 0.2, 0.9])]:
        assert images.load(0, draws).shape == (12, 16, 3)
        left, top, right, bottom = images._box(height, width, draws)
        assert -1e-9 <= left < right <= width + 1e-9
        assert -1e-9 <= top < bottom <= height + 1e-9


def test_the_area_of_crops_is_uniform_in_the_scale_and_the_ratio_symmetric():
    images = RandomCropImages(OneImage(b""), PixelContract(height=16, width=16), scale=(0.2, 0.6))
    draws = images.draw(3, 0, np.arange(4000, dtype=np.uint64))
    boxes = np.array([images._box(300, 300, row) for row in draws])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    share = width * height / 90_000
    assert share.min() >= 0.2 - 1e-9
    assert share.max() <= 0.6 + 1e-9
    assert share.mean() == pytest.approx(0.4, abs=0.01)
    assert np.log(width / height).mean() == pytest.approx(0, abs=0.02)
    assert (width / height).min() >= 3 / 4 - 1e-9
    assert (width / height).max() <= 4 / 3 + 1e-9


def test_a_crop_shows_the_place_that_was_drawn():
    images = RandomCropImages(
        OneImage(png(256, 256)), PixelContract(height=16, width=16), scale=(0.25, 0.25), ratio=(1, 1)
    )
    left = images.load(0, np.array([0.5, 0.5, 0.0, 0.5]))
    right = images.load(0, np.array([0.5, 0.5, 1.0, 0.5]))
    assert left[..., 0].mean() == pytest.approx(64, abs=3)  # red rises from left to right, over half the width here
    assert right[..., 0].mean() == pytest.approx(191, abs=3)
    assert left[..., 1].mean() == pytest.approx(127, abs=3)


def test_a_crop_is_a_pure_function_of_sample_and_epoch(image_folder):
    images = RandomCropImages(open_source(image_folder), CONTRACT)
    keys = np.arange(5, dtype=np.uint64)
    assert np.array_equal(images.draw(1, 2, keys)[3:], images.draw(1, 2, keys[3:]))
    assert not np.array_equal(images.draw(1, 2, keys), images.draw(1, 3, keys))
    assert np.array_equal(images.load(9, images.draw(1, 2, keys)[0]), images.load(9, images.draw(1, 2, keys[:1])[0]))


@pytest.mark.parametrize("kind", [ContractImages, RandomCropImages])
@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (b"", "empty"),
        (b"<html>", "not_an_image"),
        (FileNotFoundError(2, "No such file"), "unreadable"),
        (OSError(), "unreadable"),
        (TimeoutError(), "unreadable"),
        (DataError("E207", "the archive is damaged"), "unreadable"),
    ],
)
def test_whatever_cannot_be_read_is_a_bad_sample_with_a_reason(kind, item, reason):
    images = kind(OneImage(item), CONTRACT)
    draws = images.draw(0, 0, np.zeros(1, np.uint64))
    with pytest.raises(BadSample) as caught:
        images.load(0, None if draws is None else draws[0])
    assert caught.value.reason == reason
    assert caught.value.detail


def test_a_fault_of_a_users_own_source_is_not_taken_for_a_bad_file():
    with pytest.raises(ZeroDivisionError):
        read(OneImage(ZeroDivisionError()), 0)


@pytest.mark.parametrize("kind", [ContractImages, RandomCropImages])
def test_transformed_samples_pass_as_they_are(kind):
    source = OneImage(torch.randn(3, 16, 16))
    source.transformed = True
    images = kind(source, CONTRACT)
    assert images.load(0, np.zeros(NUM_CROP_DRAWS)) is source.item


@pytest.mark.parametrize("draws", [None, np.array([0.3, 0.5, 0.2, 0.9])])
def test_a_crop_without_draws_is_the_contracts_own_image(draws):
    data = png(50, 40)
    images = RandomCropImages(OneImage(data), CONTRACT)
    assert np.array_equal(images.load(0, draws), CONTRACT.apply(data)) == (draws is None)
