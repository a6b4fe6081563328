"""The step guard: a step with a non-finite loss or gradient changes nothing, and everybody hears of it.

On an accelerator the check stays there and fused optimizers skip the step by themselves; what was measured is read some
steps later, so that nothing waits. The lag is the same on all processes. On the CPU the host decides at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

ACCELERATOR_LAG_STEPS = 8
ALIGNMENT = 64  # bytes: a cache line, and more than any kernel asks for


class BufferGuard:
    """Puts buffers (running statistics and their counters) back when a step turns out bad.

    The buffers become views of one flat tensor of bytes, so that saving and choosing are one operation each.
    """

    def __init__(self, model: nn.Module) -> None:
        places: dict[Tensor, list[tuple[nn.Module, str]]] = {}  # a buffer may have several
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                places.setdefault(buffer, []).append((module, name))
        device = next(iter(places)).device if places else None
        sizes = [-(-buffer.nbytes // ALIGNMENT) * ALIGNMENT for buffer in places]
        self._flat = torch.zeros(sum(sizes), dtype=torch.uint8, device=device)
        self._saved = torch.zeros_like(self._flat)
        for (buffer, owners), part in zip(places.items(), self._flat.split(sizes), strict=True):
            # `.data`, because plain views would share one version counter, and autograd would take a change of any
            # buffer for a change of those that it saved.
            view = part[: buffer.nbytes].view(buffer.dtype).view(buffer.shape).data
            view.copy_(buffer)
            for module, name in owners:
                module._buffers[name] = view

    def save(self) -> None:
        """Remember the buffers as they are before a step."""
        self._saved.copy_(self._flat)

    def restore(self) -> None:
        """Put them back."""
        self._flat.copy_(self._saved)

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Within, buffers may move; afterwards they are as before. For a second look at a batch."""
        kept = self._flat.clone()
        try:
            yield
        finally:
            self._flat.copy_(kept)

    def restore_if(self, bad: Tensor) -> None:
        """Put them back where `bad` (0-d) is not zero; decided on the device, without asking the host."""
        torch.where(bad > 0, self._saved, self._flat, out=self._flat)


class Reading(NamedTuple):
    """What all processes know of a step, on the host.

    Was it bad, its mean loss and the weight of that, does anyone want to stop or to save, did fp16 overflow, and which
    samples this process had.
    """

    step: int
    bad: bool
    loss: float
    weight: float
    stop: bool
    save: bool
    overflow: bool
    indices: Any


class LateReader:
    """Reads what steps measured, a fixed number of steps after they were taken."""

    def __init__(self, device: torch.device) -> None:
        self.lag_steps = 0 if device.type == "cpu" else ACCELERATOR_LAG_STEPS
        self._device = device
        self._queue: deque[tuple[int, Sequence[Tensor | float], Any, Tensor, torch.Event]] = deque()

    def push(self, step: int, numbers: Sequence[Tensor | float], indices: Any) -> list[Reading]:
        """Add what a step measured.

        Args:
            step: its number.
            numbers: bad, loss, weight, stop, save, overflow: tensors where only the device knows.
            indices: of the samples in it.
        Returns: the readings of the steps that are old enough.
        """
        if not self.lag_steps:
            return [_reading(step, numbers, indices)]
        on_device = torch.stack([number for number in numbers if isinstance(number, Tensor)])
        copied = torch.empty(on_device.shape, dtype=on_device.dtype, pin_memory=True)
        copied.copy_(on_device, non_blocking=True)
        event = torch.Event(self._device)
        event.record()
        self._queue.append((step, numbers, indices, copied, event))
        return self._read(self.lag_steps)

    def flush(self) -> list[Reading]:
        """Read all that is left; waits for the device."""
        return self._read(0)

    def _read(self, leave: int) -> list[Reading]:
        ready: list[Reading] = []
        while len(self._queue) > leave:
            step, numbers, indices, copied, event = self._queue.popleft()
            event.synchronize()
            values = iter(copied.tolist())
            on_host = [next(values) if isinstance(number, Tensor) else number for number in numbers]
            ready.append(_reading(step, on_host, indices))
        return ready


def _reading(step: int, numbers: Sequence[Tensor | float], indices: Any) -> Reading:
    bad, loss, weight, stop, save, overflow = map(float, numbers)
    return Reading(step, bad > 0, loss, weight, stop > 0, save > 0, overflow > 0, indices)
