"""From samples to a batch: padded with sizes and a mask, or by a function of the user's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import kiln
from kiln.augment import OnDevice, policy
from kiln.batch import Batch, mask_of
from kiln.data.collate import collated, pad
from kiln.data.images import ContractImages
from kiln.data.loader import Assembler
from kiln.engine.evaluate import collect_outputs
from kiln.errors import UsageError
from kiln.models.normalize import Normalized
from kiln.pixels import PixelContract

SIZES = [(5, 9), (7, 3), (30, 12), (12, 48)]
KEEP = PixelContract(height=24, width=24, channels=3, resize="keep", interpolation="bilinear")


@pytest.fixture
def source(tmp_path):
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate(SIZES):
        folder = tmp_path / "photos" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(folder / f"{number}.png")
    return kiln.open_source(tmp_path / "photos")


def test_images_keep_their_size_up_to_the_model_s():
    assert [KEEP.kept_size(*size) for size in SIZES] == [(5, 9), (7, 3), (24, 10), (6, 24)]
    image = np.arange(5 * 9 * 3, dtype=np.uint8).reshape(5, 9, 3)
    made = KEEP.apply(image)
    assert np.array_equal(made, image)
    assert made.flags.writeable
    assert KEEP.apply(np.zeros((12, 48, 3), np.uint8)).shape == (6, 24, 3)


def test_a_padded_batch_holds_each_image_and_says_where(source):
    targets = np.arange(4)
    batch = Assembler(ContractImages(source, KEEP), targets, pad).make(np.arange(4), None, np.arange(4)).batch
    apart = [KEEP.apply(source.read(index)) for index in range(4)]
    assert batch.images.shape == (4, 3, 24, 24)
    assert batch.sizes is not None
    assert batch.sizes.tolist() == [list(image.shape[:2]) for image in apart]
    assert batch.mask is not None
    for image, row, mask in zip(apart, batch.images, batch.mask, strict=True):
        height, width = image.shape[:2]
        assert np.array_equal(row[:, :height, :width].permute(1, 2, 0).numpy(), image)
        assert mask.sum() == height * width
        assert mask[:height, :width].all()
        assert not row[:, ~mask].any()
    part = batch.cut(1, 3)
    assert part.sizes is not None
    assert torch.equal(part.sizes, batch.sizes[1:3])


def test_on_the_device_the_border_is_zero(source):
    class Host:
        def at(self, step):
            batch = (
                Assembler(ContractImages(source, KEEP), np.arange(4), pad).make(np.arange(4), None, np.arange(4)).batch
            )
            return Batch(batch.images, batch.targets, sizes=batch.sizes, params=np.zeros((4, 0)))

    mean, std = torch.tensor([0.5, 0.45, 0.35]), torch.tensor([0.2, 0.2, 0.2])
    batch = OnDevice(Host(), policy("none"), device=torch.device("cpu"), mean=mean, std=std).at(0)
    assert batch.mask is not None
    outside = ~batch.mask[:, None].expand(-1, 3, -1, -1)
    assert not batch.images[outside].any()
    assert batch.images[~outside].abs().min() > 0


class MeanColour(nn.Module):
    """Logits are the mean colour of what the mask leaves in: the same whatever the padding."""

    def forward(self, images, mask=None):
        weights = torch.ones_like(images[:, :1]) if mask is None else mask[:, None].to(images.dtype)
        return (images * weights).sum((2, 3)) / weights.sum((2, 3))


def test_evaluation_gives_the_mask_and_the_same_answer_alone_and_together(source):
    forward = Normalized(MeanColour(), [0.5] * 3, [0.25] * 3)
    images = ContractImages(source, KEEP)

    def logits(*cuts):
        made = [Assembler(images, np.arange(4), pad).make(np.array(cut), None, np.array(cut)).batch for cut in cuts]
        outputs = collect_outputs(forward, made, device=torch.device("cpu"))
        assert outputs is not None
        return outputs.logits

    assert np.allclose(logits([0, 1, 2, 3]), logits([0], [1], [2], [3]), atol=1e-6)
    assert not np.allclose(logits([0, 1, 2, 3]), logits([1], [0], [2], [3])[[1, 0, 2, 3]])


def test_masks():
    mask = mask_of(torch.tensor([[1, 3], [2, 2]]), 2, 3)
    assert mask.tolist() == [[[True] * 3, [False] * 3], [[True, True, False]] * 2]


def test_a_function_of_the_user_s_own(source):
    contract = PixelContract(height=8, width=8, channels=3)

    def reversed_pairs(samples):
        assert [image.shape for image, _ in samples] == [(3, 8, 8)] * 4
        return torch.stack([image.flip(-1) for image, _ in samples]), np.stack(
            [target.numpy() for _, target in samples]
        )

    images = ContractImages(source, contract)
    made = Assembler(images, np.arange(4), reversed_pairs).make(np.arange(4), None, np.arange(4)).batch
    plain = Assembler(images, np.arange(4)).make(np.arange(4), None, np.arange(4)).batch
    assert torch.equal(made.images, plain.images.flip(-1))
    assert made.targets.tolist() == [0, 1, 2, 3]
    assert made.sizes is None


@pytest.mark.parametrize(
    "returned",
    [
        torch.zeros(2, 3, 4, 4),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2)),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.zeros(1)),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), [0, 1]),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2), torch.zeros(2)),
    ],
    ids=["no targets", "floats", "too few", "a list", "flat sizes"],
)
def test_what_is_no_batch_is_refused(returned):
    def mine(samples):
        return returned

    samples = [(torch.zeros(3, 4, 4, dtype=torch.uint8), torch.tensor(0))] * 2
    with pytest.raises(UsageError, match=r"the collate function mine returned .*\n.*images uint8 \(2, C, H, W\)"):
        collated(mine, samples)


def test_bad_samples_are_dropped_before(source, tmp_path):
    (tmp_path / "photos" / source.keys[1]).write_bytes(b"no image")
    images = ContractImages(kiln.open_source(tmp_path / "photos"), KEEP)
    made = Assembler(images, np.arange(4), pad).make(np.arange(4), None, np.arange(4))
    assert made.batch.indices.tolist() == [0, 2, 3]
    assert [index for index, _ in made.bad] == [1]
    nothing = Assembler(images, np.arange(4), pad).make(np.array([1]), None, np.array([0]))
    assert nothing.batch.images.shape == (0, 3, 24, 24)
