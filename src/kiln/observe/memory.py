"""Where memory goes: the peak of a training step by part, and what a process and its device hold now."""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ALLOCATOR = "PYTORCH_ALLOC_CONF"
"""The variable that sets torch's allocator of device memory; read once, before the first use of the device."""


@dataclass(frozen=True)
class PeakMemory:
    """What was held at the moment when the most was, in bytes.

    Attributes:
        weights: parameters and buffers.
        gradients: those of the parameters.
        optimizer: the optimizer's state.
        activations: what the forward pass made and backward still needs.
        workspace: what backward, recomputation and the update hold for a moment.
        other: the batch, averages of the weights, and what else the step touched that was there before.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    workspace: int
    other: int

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(getattr(self, field.name) for field in fields(self))


def peak_by_part(step: Callable[[], object], model: nn.Module, optimizer: torch.optim.Optimizer) -> PeakMemory:
    """Measure one training step; two are taken, because the first makes the optimizer's state.

    On any device, by following every tensor from where an operation returns it until it is freed. What libraries use
    within an operation is not seen on the CPU; on CUDA the allocator tells it, and it counts as workspace.

    Args:
        step: takes a whole step: forward, backward, update.
        model: whose weights and gradients count as such.
        optimizer: whose state does.
    """
    step()
    ledger = _Ledger()
    device = next(model.parameters()).device
    ledger.know((*model.parameters(), *model.buffers()), "weights")
    ledger.know((p.grad for p in model.parameters() if p.grad is not None), "gradients")
    ledger.know((leaf for leaf in tree_leaves(list(optimizer.state.values())) if isinstance(leaf, Tensor)), "optimizer")
    known = ledger.held
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        allocated = torch.cuda.memory_allocated(device)
    with _marking_gradients(model, ledger), ledger:
        step()
    peak = ledger.peak()
    if device.type == "cuda":
        rise = torch.cuda.max_memory_allocated(device) - allocated  # pyright: ignore[reportPossiblyUnboundVariable]
        unseen = rise - (peak.total - peak.other - known)
        peak = replace(peak, workspace=peak.workspace + max(0, unseen))
    return peak


class _Place:
    """The memory of one tensor and all its views, and the part where it counts."""

    def __init__(self, part: str, nbytes: int) -> None:
        self.part, self.nbytes = part, nbytes


class _Ledger(TorchDispatchMode):
    """Follows the memory of tensors, and remembers which were there at the peak."""

    def __init__(self) -> None:
        super().__init__()
        self._places: dict[int, _Place] = {}
        self._at_peak: list[_Place] = []
        self.held = self._most = 0

    def know(self, tensors: Iterable[Tensor], part: str) -> None:
        """Count tensors as a part, also those that were taken for another so far."""
        for tensor in tensors:
            self._enter(tensor, part).part = part

    def peak(self) -> PeakMemory:
        """The parts when the most was held, each tensor where it was found to belong in the end."""
        parts = dict.fromkeys((field.name for field in fields(PeakMemory)), 0)
        for place in self._at_peak:
            parts[place.part] += place.nbytes
        return PeakMemory(**parts)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                self._enter(leaf, "other")
        made = func(*args, **(kwargs or {}))
        in_backward = torch._C._current_graph_task_id() >= 0
        part = "workspace" if in_backward or not torch.is_grad_enabled() else "activations"
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self._enter(leaf, part)
        if self.held > self._most:
            self._most, self._at_peak = self.held, list(self._places.values())
        return made

    def _enter(self, tensor: Tensor, part: str) -> _Place:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._places:
            self._places[key] = _Place(part, storage.nbytes())
            self.held += storage.nbytes()
            weakref.finalize(storage, self._leave, key).atexit = False
        return self._places[key]

    def _leave(self, key: int) -> None:
        self.held -= self._places.pop(key).nbytes


@contextmanager
def _marking_gradients(model: nn.Module, ledger: _Ledger) -> Iterator[None]:
    def mark(parameter: Tensor) -> None:
        if parameter.grad is not None:
            ledger.know([parameter.grad], "gradients")

    hooks = [p.register_post_accumulate_grad_hook(mark) for p in model.parameters() if p.requires_grad]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def state_by_part(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Bytes of weights, gradients and optimizer state as they are now; what is shared counts once."""
    parts = {
        "weights": (*model.parameters(), *model.buffers()),
        "gradients": [p.grad for p in model.parameters() if p.grad is not None],
        "optimizer": [leaf for leaf in tree_leaves(list(optimizer.state.values())) if isinstance(leaf, Tensor)],
    }
    return {
        name: sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())
        for name, tensors in parts.items()
    }


@dataclass(frozen=True)
class MemoryInUse:
    """What is held now, in bytes. What only an accelerator's allocator knows is None elsewhere.

    Attributes:
        resident: main memory of this process.
        resident_peak: the most it ever was.
        allocated: device memory of tensors.
        allocated_peak: the most it ever was.
        reserved: device memory that torch took from the driver.
        fragmented: of that, what is free and in pieces between tensors, so that it can be neither given back nor used for
            anything larger.
    """

    resident: int
    resident_peak: int
    allocated: int | None = None
    allocated_peak: int | None = None
    reserved: int | None = None
    fragmented: int | None = None


def memory_in_use(device: torch.device) -> MemoryInUse:
    """What this process holds, and torch's allocator on its device; waits for nothing."""
    process = psutil.Process().memory_info()
    resident = {"resident": process.rss, "resident_peak": max(process.rss, _resident_peak(process))}
    if device.type != "cuda" or not torch.cuda.is_available():
        return MemoryInUse(**resident)
    stats = torch.cuda.memory_stats(device)
    return MemoryInUse(
        **resident,
        allocated=stats["allocated_bytes.all.current"],
        allocated_peak=stats["allocated_bytes.all.peak"],
        reserved=stats["reserved_bytes.all.current"],
        fragmented=stats["inactive_split_bytes.all.current"],
    )


def peak_memory_mib(device: torch.device) -> float:
    """The most that was held so far: by torch's allocator on an accelerator, by the process on a CPU."""
    use = memory_in_use(device)
    return round((use.resident_peak if use.allocated_peak is None else use.allocated_peak) / 2**20, 1)


def _resident_peak(process: Any) -> int:
    if sys.platform == "win32":
        return process.peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes, but for macOS


def expand_segments() -> bool:
    """Let CUDA's allocator grow its segments in place, so that batches of many sizes do not leave holes between them.

    To be called before the device is first used. Only on Linux, and only where the user has not set the allocator.

    Returns: whether it is set that way now.
    """
    if ALLOCATOR not in os.environ and "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
        if sys.platform != "linux" or torch.version.cuda is None or torch.cuda.is_initialized():
            return False
        os.environ[ALLOCATOR] = "expandable_segments:True"
    return "expandable_segments:True" in os.environ.get(ALLOCATOR, os.environ.get("PYTORCH_CUDA_ALLOC_CONF", ""))
