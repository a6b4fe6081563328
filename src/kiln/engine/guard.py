"""The step guard: a step with a non-finite loss or gradient changes nothing, and everybody hears of it.

The check stays on the device and fused optimizers skip the step by themselves. The flags are read some steps later, so
that nothing waits for an accelerator; the lag is the same on all processes.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

ACCELERATOR_LAG_STEPS = 8


class BufferGuard:
    """Puts float buffers (running statistics) back when a step turns out bad, without asking the host.

    The buffers become views of one flat tensor per dtype, so that saving and choosing are one operation each.
    """

    def __init__(self, model: nn.Module) -> None:
        self._flat: list[Tensor] = []
        by_dtype: dict[torch.dtype, list[tuple[nn.Module, str, Tensor]]] = {}
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                if buffer.is_floating_point() and buffer.numel():
                    by_dtype.setdefault(buffer.dtype, []).append((module, name, buffer))
        for members in by_dtype.values():
            flat = torch.cat([buffer.detach().reshape(-1) for _, _, buffer in members])
            start = 0
            for module, name, buffer in members:
                module._buffers[name] = flat[start : start + buffer.numel()].view(buffer.shape)
                start += buffer.numel()
            self._flat.append(flat)
        self._saved: list[Tensor] = []

    def save(self) -> None:
        """Remember the buffers as they are before a step."""
        self._saved = [flat.clone() for flat in self._flat]

    def restore(self) -> None:
        """Put them back unconditionally (after running out of memory)."""
        for flat, saved in zip(self._flat, self._saved, strict=True):
            flat.copy_(saved)

    def restore_if(self, bad: Tensor) -> None:
        """Put them back where `bad` (0-d) is not zero; decided on the device."""
        for flat, saved in zip(self._flat, self._saved, strict=True):
            torch.where(bad > 0, saved, flat, out=flat)


@dataclass(slots=True, frozen=True)
class Flags:
    """What all processes know of a step: whether it was bad, whether anyone wants to stop or to save."""

    step: int
    bad: bool
    stop: bool
    save: bool
    indices: Any


class FlagReader:
    """Reads the flags of a step a fixed number of steps after they were made.

    They are `bad` alone (one process), or `[bad, stop, save]` summed over all processes.
    """

    def __init__(self, device: torch.device) -> None:
        self.lag_steps = 0 if device.type == "cpu" else ACCELERATOR_LAG_STEPS
        self._device = device
        self._queue: deque[tuple[int, Tensor, torch.Event | None, Any]] = deque()

    def push(self, step: int, vector: Tensor, indices: Any) -> list[Flags]:
        """Add the flags of a step; returns those that are old enough to be read."""
        event = None
        if self.lag_steps:
            host = torch.empty(vector.shape, dtype=vector.dtype, pin_memory=True)
            vector = host.copy_(vector, non_blocking=True)
            event = torch.Event(self._device)
            event.record()
        self._queue.append((step, vector, event, indices))
        return self._read(self.lag_steps)

    def flush(self) -> list[Flags]:
        """Read all that is left; waits for the device."""
        return self._read(0)

    def _read(self, leave: int) -> list[Flags]:
        ready: list[Flags] = []
        while len(self._queue) > leave:
            step, vector, event, indices = self._queue.popleft()
            if event is not None:
                event.synchronize()
            bad, stop, save = vector.tolist() if vector.ndim else (vector.item(), 0.0, 0.0)
            ready.append(Flags(step, bad > 0, stop > 0, save > 0, indices))
        return ready
