"""Images that grow: the size is a function of the step alone, and all else of a batch is what it was."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from kiln.augment.progressive import Progressive
from kiln.batch import Batch


class Steps:
    """Batches that tell their step."""

    mixing = "of the batches themselves"
    closed = 0

    def __len__(self) -> int:
        return 5

    def at(self, step: int) -> Batch:
        images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(step))
        return Batch(images=images, targets=torch.full((2,), step))

    def from_step(self, step):
        try:
            while True:
                yield self.at(step)
                step += 1
        finally:
            Steps.closed += 1


def progressive(**changes) -> Progressive:
    return Progressive(Steps(), **{"first_px": 32, "full_px": 64, "full_step": 10, **changes})


def test_size_grows_linearly_by_steps_of_sixteen():
    batches = progressive()
    sizes = [batches.px_at(step) for step in range(14)]
    assert sizes == [32, 32, 32, 48, 48, 48, 48, 48, 64, 64, 64, 64, 64, 64]
    assert [progressive(first_px=20, full_px=50, full_step=4).px_at(step) for step in range(6)] == [
        16,
        32,
        32,
        48,
        50,
        50,
    ]
    assert {progressive(full_step=0).px_at(step) for step in range(3)} == {64}


@pytest.mark.parametrize("start", [0, 2, 9, 11])
def test_batch_is_the_same_however_it_is_come_by(start):
    batches = progressive()
    stream = batches.from_step(start)
    for step in range(start, start + 4):
        streamed, alone, whole = next(stream), batches.at(step), Steps().at(step)
        assert torch.equal(streamed.images, alone.images)
        assert torch.equal(streamed.targets, whole.targets)
        px = batches.px_at(step)
        assert streamed.images.shape == (2, 3, px, px)
        expected = F.interpolate(whole.images, size=(px, px), mode="bilinear", antialias=True)
        assert torch.equal(streamed.images, expected if px != 64 else whole.images)
    before = Steps.closed
    stream.close()
    assert Steps.closed == before + 1


def test_pass_is_an_epoch_and_the_rest_is_asked_of_the_batches():
    batches = progressive()
    assert len(list(batches)) == len(batches) == 5
    assert batches.mixing == "of the batches themselves"
    with pytest.raises(AttributeError, match="unknown"):
        batches.unknown  # noqa: B018
