"""Which image sizes a network takes, found by running it on tensors without content."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call

from kiln.errors import UsageError
from kiln.models.outputs import main_and_auxiliary

LARGEST_PROBED = 1024
# What networks raise when an image is too small for them, or when they cannot run without values (NotImplementedError).
SHAPE_ERRORS = (RuntimeError, TypeError, ValueError, AssertionError, IndexError, ZeroDivisionError, AttributeError)


class SizeProblem(Exception):  # noqa: N818  # a finding, turned into a UsageError by who knows the names
    """The network cannot take images of this size."""


def dry_forward(model: nn.Module, *, channels: int, img_size: int, training: bool = True) -> Tensor:
    """Run a network without computing: shapes only, on the meta device. In training mode auxiliary heads run as well.

    A network that keeps tensors outside its parameters and buffers cannot run so; it is run for real, on a copy.

    Returns: the main output, (2, num_classes), on the meta device or the CPU.
    Raises: SizeProblem: it fails at this size.
    """
    try:
        with mode(model, training=training), torch.no_grad():
            return _on_meta(model, channels, img_size)
    except (*SHAPE_ERRORS, UsageError):
        return _for_real(model, channels, img_size, training)


@contextmanager
def mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Training or evaluation mode for a while; each module gets its own mode back."""
    before = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, mode in before.items():
            module.training = mode


def _on_meta(model: nn.Module, channels: int, img_size: int) -> Tensor:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    empty = {name: tensor.detach().to("meta") for name, tensor in tensors.items()}
    images = torch.empty(2, channels, img_size, img_size, device="meta")
    return main_and_auxiliary(functional_call(model, empty, (images,)))[0]


def _for_real(model: nn.Module, channels: int, img_size: int, training: bool) -> Tensor:
    images = torch.zeros(2, channels, img_size, img_size)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            return main_and_auxiliary(copy.deepcopy(model).cpu().train(training)(images))[0]
        except SHAPE_ERRORS as error:
            raise SizeProblem(str(error).splitlines()[0][:200] if str(error) else type(error).__name__) from error


def takes(model: nn.Module, *, channels: int, img_size: int) -> bool:
    """Whether a network can be trained on images of this size; False as well where it cannot run on the meta device."""
    try:
        with mode(model, training=True), torch.no_grad():
            return _on_meta(model, channels, img_size).ndim == 2
    except SHAPE_ERRORS:
        return False


def smallest_size(fits: Callable[[int], bool], largest: int = LARGEST_PROBED) -> int | None:
    """The smallest size that fits, if all larger ones do too; None if even the largest does not.

    Args:
        fits: whether a size fits, such as `lambda px: takes(model, channels=3, img_size=px)`.
        largest: where to begin, in pixels.
    """
    if not fits(largest):
        return None
    low, high = 0, largest
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def patch_size(model: nn.Module) -> int | None:
    """The side of the patches of a transformer that cuts its image into a fixed grid, else None."""
    size = getattr(getattr(model, "patch_embed", None), "patch_size", getattr(model, "patch_size", None))
    if isinstance(size, (tuple, list)) and size:
        size = size[0]
    return size if isinstance(size, int) else None
