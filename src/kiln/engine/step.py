"""One optimizer step: forward, backward, guard, update. Exact for any cut of the batch.

The inside is `forward_loss(state, batch)`; everything around it (micro-batches, processes, precision, clipping, the
guard, running out of memory) is here, once. Distillation or a sharpness-aware step replaces the inside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kiln.batch import Batch
from kiln.engine.precision import autocast
from kiln.engine.state import State
from kiln.engine.strategy import Single, Strategy
from kiln.errors import ResourceError
from kiln.losses.contract import as_terms
from kiln.random import Purpose, bits

ForwardLoss = Callable[[State, Batch], Any]


@dataclass(slots=True, frozen=True)
class Measured:
    """What a step measured, all on the device.

    `loss` is the weighted mean over the global batch, `weight` the sum of its weights. `flags` is 1 when the step was
    skipped; with several processes it is the vector [skipped, stop, save], summed over them.
    """

    loss: Tensor
    weight: Tensor | float
    flags: Tensor


class Step:
    """Turn a batch into an update of `state.model`.

    Args:
        forward_loss: (state, batch) -> what a loss returns: per-sample terms, or a scalar mean.
        strategy: how processes share the work.
        precision: of the forward pass, `fp32` or `bf16`.
        micro_batch_size: samples per forward pass; None takes the whole batch at once. The update is the same.
        clip_norm: largest norm of the gradient; larger ones are scaled down.
        seed: makes dropout a pure function of (seed, step, micro-batch, rank).
    """

    def __init__(
        self,
        forward_loss: ForwardLoss,
        *,
        strategy: Strategy | None = None,
        precision: str = "fp32",
        micro_batch_size: int | None = None,
        clip_norm: float | None = None,
        seed: int = 0,
    ) -> None:
        self.forward_loss = forward_loss
        self.strategy = strategy or Single()
        self.precision = precision
        self.micro_batch_size = micro_batch_size
        self.clip_norm = clip_norm
        self.seed = seed
        self._bound: State | None = None

    def __call__(self, state: State, batch: Batch) -> Measured:
        """Take one step; `state.step` is the number of the step being taken."""
        if self._bound is not state:
            self._bind(state)
        if len(batch) == 0:  # only in one process: the loader gives every rank a row to go through the motions with
            return self._nothing(state)
        state.buffers.save()
        while True:
            try:
                loss_sum, weight = self._backward(state, batch)
                break
            except torch.OutOfMemoryError as error:
                self._halve(state, batch, error)
        return self._update(state, batch, loss_sum, weight)

    def rehearse(self, state: State, batch: Batch) -> None:
        """One forward and backward that leave no trace but in the strategy's wrapper and in buffers."""
        with autocast(self.precision, state.device):
            terms = as_terms(self.forward_loss(state, batch), len(batch))
        terms.values.sum().backward()

    def _bind(self, state: State) -> None:
        device = state.device
        self._parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
        self._autocast = autocast(self.precision, device)
        self._bad = torch.zeros((), device=device)
        self._one = torch.ones((), device=device)
        self._skips_itself = bool(state.optimizer.defaults.get("fused"))
        self._generator = _generator(device)
        self._seeds = _DropoutSeeds(self.seed, self.strategy.rank)
        self._bound = state

    def _backward(self, state: State, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Accumulate gradients of sum(loss) / count; returns the sum of losses / count and the weights, if any."""
        for parameter in self._parameters:
            parameter.grad = None
        world_size = self.strategy.world_size
        count = batch.total or len(batch)
        size = self.micro_batch_size or len(batch)
        micros: Iterable[Batch] = (batch,) if size >= len(batch) else batch.split(size)
        num_micros = -(-len(batch) // size)
        loss_sum: Tensor | None = None
        weight_sum: Tensor | None = None
        for index, micro in enumerate(micros):
            self._generator.manual_seed(self._seeds.at(state.step, index, num_micros))
            with self.strategy.synchronising(index == num_micros - 1):
                with self._autocast:
                    terms = as_terms(self.forward_loss(state, micro), len(micro))
                    weights = _product(terms.weights, micro.weights)
                    values = terms.values if weights is None else terms.values * weights
                    part = values.sum() * (world_size / count)
                part.backward()
            loss_sum = part.detach() if loss_sum is None else loss_sum + part.detach()
            if weights is not None or world_size > 1:
                here = torch.full((), float(len(micro)), device=state.device) if weights is None else weights.sum()
                weight_sum = here if weight_sum is None else weight_sum + here
        if loss_sum is None:
            raise ValueError("a batch without samples reached the step")
        return loss_sum, weight_sum

    def _update(self, state: State, batch: Batch, loss: Tensor, weight_sum: Tensor | None) -> Measured:
        """Bring gradients to the exact mean, check and clip them, and let the optimizer step."""
        count = float(batch.total or len(batch))
        weight: Tensor | float = count
        scale, wishes = self._one, None
        if self.strategy.world_size > 1 and weight_sum is not None:
            shared = torch.stack(
                [loss / self.strategy.world_size, weight_sum.to(loss.dtype), *self._wishes(state, loss)]
            )
            loss, weight_sum, *wishes = self.strategy.sum_(shared).unbind()
        if weight_sum is not None:
            weight = weight_sum
            scale = (count / weight_sum).float()  # a batch without any weight gives infinity, which the guard refuses
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        loss = loss.clone().to(gradients[0].dtype)
        self._bad.zero_()
        torch._amp_foreach_non_finite_check_and_unscale_([*gradients, loss], self._bad, scale)
        if self.clip_norm is not None:
            norm = torch.nn.utils.get_total_norm(gradients)
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self.clip_norm, norm)
        self._optimizer_step(state)
        state.buffers.restore_if(self._bad)
        flags = (
            self._bad.clone() if wishes is None else torch.stack([self._bad, *(w.to(self._bad.dtype) for w in wishes)])
        )
        return Measured(loss, weight, flags)

    def _wishes(self, state: State, like: Tensor) -> tuple[Tensor, Tensor]:
        return like.new_tensor(float(state.stop_reason is not None)), like.new_tensor(float(state.wants_save))

    def _optimizer_step(self, state: State) -> None:
        optimizer: Any = state.optimizer
        if self._skips_itself:
            optimizer.grad_scale, optimizer.found_inf = None, self._bad
            optimizer.step()
        elif not self._bad.item():  # waits for the device: this optimizer has no fused form that skips by itself
            optimizer.step()
        if state.ema is not None:
            state.ema.update()

    def _nothing(self, state: State) -> Measured:
        """A step whose samples were all bad changes nothing."""
        zero = torch.zeros((), device=state.device)
        return Measured(zero, 0.0, zero + 1.0)

    def _halve(self, state: State, batch: Batch, error: torch.OutOfMemoryError) -> None:
        size = self.micro_batch_size or len(batch)
        if size == 1:
            raise ResourceError(
                "E402", "out of memory with one sample at a time", hint="a smaller --img-size or --model"
            ) from error
        if self.strategy.world_size > 1:
            raise ResourceError(
                "E402",
                f"out of memory with {size} samples at a time on rank {self.strategy.rank}",
                hint=f"--set training.micro_batch_size={size // 2} --resume auto; the result stays the same",
            ) from error
        for parameter in self._parameters:
            parameter.grad = None
        state.buffers.restore()
        torch.accelerator.empty_cache() if torch.accelerator.is_available() else None
        self.micro_batch_size = (size + 1) // 2
        state.decide("out_of_memory", micro_batch_size=self.micro_batch_size)


class _DropoutSeeds:
    """Seeds by (step, micro-batch, rank), drawn a block of steps at a time because drawing one costs 50 us."""

    block_steps = 256

    def __init__(self, seed: int, rank: int) -> None:
        self._seed, self._rank = seed, rank
        self._first, self._block = 0, [[]]

    def at(self, step: int, micro: int, num_micros: int) -> int:
        row = step - self._first
        if not 0 <= row < len(self._block) or num_micros > len(self._block[row]):
            steps = np.arange(step, step + self.block_steps, dtype=np.uint64)[:, None]
            samples = (np.uint64(self._rank) << np.uint64(32)) | np.arange(num_micros, dtype=np.uint64)
            raw = bits(self._seed, Purpose.DROPOUT, epoch=steps, sample=samples)[..., 0] >> np.uint64(1)
            self._first, self._block, row = step, raw.tolist(), 0
        return self._block[row][micro]


def _product(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a * b


def _generator(device: torch.device) -> torch.Generator:
    if device.type == "cpu":
        return torch.default_generator
    if device.type == "mps":
        return torch.mps._get_default_mps_generator()
    backend = getattr(torch, device.type)
    return backend.default_generators[device.index or 0]
