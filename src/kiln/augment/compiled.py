"""Whether the compiled kernels do the work, and their threads.

Numba is optional (`pip install 'torchkiln[fast]'`): without it, and for what the kernels do not take, torch's operations do
the same to 1e-5. Which of them made a run is one of the conditions under which it can be repeated bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from threading import Event, Thread
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kiln.augment.values import is_channels_last

PIECE_VALUES = 2**19
"""Values of all channels that a thread takes at once: below a millisecond of work, far above the cost of taking it."""


def backend(device: torch.device | str = "cpu") -> str:
    """What does the arithmetic of augmentation on a device: `torch`, or Numba's version and the processor it compiles for."""
    if torch.device(device).type != "cpu" or not has_numba():
        return "torch"
    import llvmlite.binding

    return f"numba {version('numba')} for {llvmlite.binding.get_host_cpu_name()}"


@cache
def has_numba() -> bool:
    """Whether the kernels can be compiled here; asking does not import Numba."""
    try:
        return find_spec("numba") is not None and bool(version("numba"))
    except PackageNotFoundError:
        return False


def lines_are_loaded() -> bool:
    """Whether `line_kernels.py` can be used at once."""
    return _loaded.is_set()


def load_lines(*, wait: bool = False) -> None:
    """Begin to load `line_kernels.py`, in a thread, unless that has begun.

    It takes a third of a second, which the first batch need not wait for: torch's operations give the same bits meanwhile.

    Args:
        wait: until it is loaded.
    """
    thread = _loading_thread()
    if wait:
        thread.join()


@cache
def _loading_thread() -> Thread:
    thread = Thread(target=_load_lines, name="kiln-compiled")
    thread.start()
    return thread


def _load_lines() -> None:
    from kiln.augment.line_kernels import Lines, line_memory, normalize_lines

    none, nobody = np.zeros((0, 1, 1, 3), np.uint8), np.zeros(0, bool)
    factors = np.ones((1, 3), np.float32)
    normalize_lines(
        Lines(none, none.astype(np.float32), nobody, nobody, True, factors, factors), 0, 0, line_memory(1, 1)
    )
    _loaded.set()


_loaded = Event()


def takes(images: Tensor) -> bool:
    """Whether the kernels work on these images: uint8 of three channels on the CPU, in either order in memory."""
    return (
        images.device.type == "cpu"
        and images.dtype == torch.uint8
        and images.ndim == 4
        and images.shape[1] == 3
        and 0 < images[:1].numel() < 2**31
        and (images.is_contiguous() or is_channels_last(images))
        and has_numba()
    )


def as_stored(images: Tensor) -> Any:
    """The array as it lies in memory: (B, C, H, W), or (B, H, W, C) where the channels of a pixel lie together."""
    return (images.permute(0, 2, 3, 1) if is_channels_last(images) else images).numpy()


def in_threads(
    kernel: Callable[[Any, int, int, Any], None],
    work: Any,
    rows: slice,
    *,
    size: tuple[int, int],
    memory: Callable[[int, int], Any],
    piece_values: int = PIECE_VALUES,
) -> None:
    """Run a kernel over some images with as many threads as torch has; an image does not know which thread takes it.

    Args:
        kernel: (work, start, stop, memory), which lets go of the interpreter's lock.
        work: for the whole batch.
        rows: the images.
        size: their height and width.
        memory: (height, width) -> what one thread writes on.
        piece_values: values of all channels that a thread takes at once.
    """
    step = max(1, piece_values // (3 * size[0] * size[1]))
    starts = range(rows.start, rows.stop, step)
    left = iter(starts)

    def take(left: Iterator[int]) -> None:
        mine = memory(*size)
        for start in left:  # one range for all threads: who is held up takes less
            kernel(work, start, min(start + step, rows.stop), mine)

    num_helpers = min(torch.get_num_threads(), len(starts)) - 1
    if num_helpers < 1:
        take(left)
        return
    with ThreadPoolExecutor(num_helpers) as pool:
        helpers = [pool.submit(take, left) for _ in range(num_helpers)]
        take(left)
        for helper in helpers:
            helper.result()
