"""How processes share the work. Every process computes its part of a global batch; gradients are averaged."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kiln.errors import DistributedError

_NOTHING = nullcontext()


class Single:
    """One process on one device."""

    rank = 0
    world_size = 1

    def prepare(self, model: nn.Module, warm_up: Callable[[nn.Module], None] | None = None) -> nn.Module:  # noqa: ARG002
        """The module that a step calls."""
        return model

    def synchronising(self, last: bool) -> AbstractContextManager[None]:  # noqa: ARG002
        """The context of one micro-batch's forward and backward; gradients are exchanged in the last one."""
        return _NOTHING

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place."""
        return tensor

    def gather(self, value: Any) -> list[Any]:
        """Everybody's value, in the order of ranks, on every process."""
        return [value]

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Give every process the first one's buffers."""

    def close(self) -> None:
        """Leave the group of processes."""


class DataParallel:
    """Several processes, each with a whole copy of the model (DistributedDataParallel).

    Started by torchrun, which sets RANK, LOCAL_RANK and WORLD_SIZE.
    """

    def __init__(self, device: torch.device, *, timeout_seconds: float = 120.0) -> None:
        # Without this a restarted group can meet the dead one's key-value store.
        os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
        if device.type == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        if not dist.is_initialized():
            backend = "nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=timedelta(seconds=timeout_seconds))
        self._device = device
        self._wrapped: nn.parallel.DistributedDataParallel | None = None
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        # Objects and flags travel over gloo, so that exchanging them never waits for an accelerator.
        self._objects: Any = dist.new_group(backend="gloo") if device.type == "cuda" else None

    def prepare(self, model: nn.Module, warm_up: Callable[[nn.Module], None] | None = None) -> nn.Module:
        """Wrap the model; `warm_up` runs one forward and backward.

        The wrapper rearranges its buckets after the first backward, which changes the order of sums. Two throw-away
        passes, at start and at resume alike, keep a resumed run of three or more processes bitwise.
        """
        device_ids = [self._device] if self._device.type == "cuda" else None
        wrapped = nn.parallel.DistributedDataParallel(model, device_ids=device_ids, gradient_as_bucket_view=True)
        self._wrapped = wrapped
        if warm_up is not None and self.world_size > 1:
            kept = [buffer.clone() for buffer in model.buffers()]
            for _ in range(2):
                warm_up(wrapped)
                wrapped.zero_grad(set_to_none=True)
            for buffer, value in zip(model.buffers(), kept, strict=True):
                buffer.copy_(value)
        return wrapped

    @contextmanager
    def synchronising(self, last: bool) -> Iterator[None]:
        """Exchange gradients in the last micro-batch only."""
        with nullcontext() if last or self._wrapped is None else self._wrapped.no_sync():
            yield

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place."""
        dist.all_reduce(tensor)
        return tensor

    def gather(self, value: Any) -> list[Any]:
        """Everybody's value, in the order of ranks, on every process.

        Raises: DistributedError: a process is gone or silent.
        """
        values: list[Any] = [None] * self.world_size
        try:
            dist.all_gather_object(values, value, group=self._objects)
        except (RuntimeError, dist.DistBackendError) as error:
            raise DistributedError("E501", f"rank {self.rank} cannot reach the others: {error}") from error
        return values

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Give every process the first one's buffers (running statistics differ by process)."""
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)

    def close(self) -> None:
        """Leave the group of processes."""
        if dist.is_initialized():
            dist.destroy_process_group()


Strategy = Single | DataParallel


@contextmanager
def naming_lost_peers(strategy: Strategy) -> Iterator[None]:
    """Within, an exchange that fails because another process is gone says so, wherever it was.

    Raises: DistributedError: in place of what the backend raised.
    """
    try:
        yield
    except RuntimeError as error:
        if strategy.world_size == 1 or not _is_lost_peer(error):
            raise
        raise DistributedError(
            "E501",
            f"another process ended or fell silent: {str(error).splitlines()[0]}",
            where=f"rank {strategy.rank} of {strategy.world_size}",
            kept="the last checkpoint, if there is one",
            hint="what the other process said, then kiln resume RUN",
        ) from error


def _is_lost_peer(error: RuntimeError) -> bool:
    """Gloo raises plain errors of the runtime, told apart by their words."""
    words = (
        "Connection closed by peer",
        "Connection reset by peer",
        "Broken pipe",
        "Timed out waiting",
        "gloo/transport",
    )
    return isinstance(error, dist.DistError) or any(word in str(error) for word in words)
