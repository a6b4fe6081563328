"""One optimizer step: forward, backward, guard, update. Exact for any cut of the batch.

The inside is `forward_loss(state, batch)`; everything around it (micro-batches, processes, precision, clipping, the
guard, running out of memory) is here, once. Distillation replaces the inside; a sharpness-aware step and optimizers that
evaluate a batch several times (L-BFGS) go through the whole wrapper again, with the same dropout.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kiln.batch import Batch
from kiln.engine.out_of_memory import ERRORS, empty_cache, is_out_of_memory
from kiln.engine.precision import autocast, multiplying_fp32
from kiln.engine.scaler import LossScaler
from kiln.engine.state import State
from kiln.engine.strategy import Single, Strategy
from kiln.errors import ResourceError, UsageError
from kiln.losses.contract import as_terms, is_coupled
from kiln.optim.clipping import Clip, ClipNorm
from kiln.optim.optimizers import prime_momentum
from kiln.optim.sam import SharpnessAware
from kiln.random import Purpose, bits

ForwardLoss = Callable[[State, Batch], Any]
Sums = tuple[Tensor, Tensor | float, Tensor | float, Tensor | float]
"""Loss, weight, wishes to stop, wishes to save: over all processes."""


class Measured(NamedTuple):
    """What a step measured, on the device and over all processes.

    `loss` is the weighted mean over the global batch, `weight` the sum of its weights. The others are not zero where the
    guard refused the step, where a process wishes to stop or to save, and where fp16 overflowed: that step was skipped
    because the loss scale was too large, which is no fault of the batch. Numbers that the host knows are floats.
    """

    bad: Tensor | float
    loss: Tensor
    weight: Tensor | float
    stop: Tensor | float = 0.0
    save: Tensor | float = 0.0
    overflow: Tensor | float = 0.0


class Step:
    """Turn a batch into an update of `state.model`.

    Args:
        forward_loss: (state, batch) -> what a loss returns: per-sample terms, or a scalar mean.
        strategy: how processes share the work.
        precision: of the forward pass: `fp32`, `tf32`, `bf16` or `fp16`. With `fp16` the step keeps a loss scale, as the
            part `scaler` of the state.
        micro_batch_size: samples per forward pass; None takes the whole batch at once. The update is the same.
        clip: bounds the gradient of the whole batch (`kiln.optim.clipping`, or your own function of the parameters); a
            number is the largest norm.
        sam: takes the gradient where, close by, the loss is largest; costs a second forward and backward.
        seed: makes dropout a pure function of (seed, step, micro-batch, rank).
    """

    def __init__(
        self,
        forward_loss: ForwardLoss,
        *,
        strategy: Strategy | None = None,
        precision: str = "fp32",
        micro_batch_size: int | None = None,
        clip: Clip | float | None = None,
        sam: SharpnessAware | None = None,
        seed: int = 0,
    ) -> None:
        self.forward_loss = forward_loss
        self.strategy = strategy or Single()
        self.precision = precision
        self.micro_batch_size = micro_batch_size
        self.clip = ClipNorm(clip) if isinstance(clip, int | float) else clip
        self.sam = sam
        self.seed = seed
        self.scaler = LossScaler() if precision == "fp16" else None
        self._asked_micro_batch_size = micro_batch_size
        self._bound: torch.optim.Optimizer | None = None

    def __call__(self, state: State, batch: Batch) -> Measured:
        """Take one step; `state.step` is the number of the step being taken."""
        if self._bound is not state.optimizer:  # another one, at each stage of fine-tuning
            self._bind(state)
        num_samples = len(batch)
        if num_samples == 0:  # only in one process: the loader gives every rank a row to go through the motions with
            return Measured(self._one, self._zero, 0.0)
        count = float(batch.total or num_samples)
        state.buffers.save()
        loss, weight, stop, save = self._gradients(state, batch, num_samples, count)
        if self._needs_closure:
            bad = self._closure_step(state, batch, num_samples, count, loss)
            return Measured(bad, loss, weight, stop, save)
        overflow = 0.0 if self.scaler is None else self._update_scale(self.scaler)
        refused = self._optimizer_step(state)
        # `_bad` says now whether the step was skipped; where the loss scale was to blame, the batch is not.
        bad = refused if self.scaler is None else refused - overflow
        return Measured(bad, loss, weight, stop, save, overflow)

    def rehearse(self, state: State, batch: Batch) -> None:
        """One forward and backward that leave no trace but in the strategy's wrapper and in buffers."""
        with autocast(self.precision, state.device):
            terms = as_terms(self.forward_loss(state, batch), len(batch))
        terms.values.sum().backward()

    def _bind(self, state: State) -> None:
        device = state.device
        self._parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
        self._autocast = autocast(self.precision, device)
        self._multiplying = multiplying_fp32(self.precision, device)
        self._bad, self._found_inf, self._overflow = (torch.zeros((), device=device) for _ in range(3))
        self._zero, self._one = torch.zeros((), device=device), torch.ones((), device=device)
        optimizer = state.optimizer
        prime_momentum(optimizer)
        fused = bool(optimizer.defaults.get("fused")) and getattr(optimizer, "_step_supports_amp_scaling", False)
        self._skips_itself = device.type != "cpu" and fused
        self._needs_closure = _requires_closure(optimizer)
        if self._needs_closure and self.sam is not None:
            raise UsageError("E103", f"sam with {type(optimizer).__name__}, which evaluates each batch several times")
        if self.scaler is not None:
            if self._needs_closure:
                what = f"precision = 'fp16' with {type(optimizer).__name__}, which compares losses within a step"
                raise UsageError("E103", what, expected="bf16 or fp32: their gradients need no scale")
            self.scaler.to(device)
            state.parts.setdefault("scaler", self.scaler)  # or a resume would overflow all over again
        for entry in state.log:  # memory that did not suffice will not suffice now, unless another size was asked for
            if entry["what"] == "out_of_memory" and entry.get("asked") == self._asked_micro_batch_size:
                self.micro_batch_size = entry["micro_batch_size"]
        self._generator = _generator(device)
        self._seeds = _DropoutSeeds(self.seed, self.strategy.rank)
        self._bound = state.optimizer

    def _gradients(self, state: State, batch: Batch, num_samples: int, count: float) -> Sums:
        """The gradient that the optimizer is given, in whatever micro-batches fit."""
        while True:
            try:
                for flag in (self._bad, self._found_inf, self._overflow):
                    flag.zero_()
                with self._multiplying():
                    sums = self._evaluate(state, batch, num_samples, count)
                    if self.sam is not None:
                        with self.sam.uphill(self._parameters), state.buffers.unchanged():
                            self._evaluate(state, batch, num_samples, count)
                break
            except ERRORS as error:
                if not is_out_of_memory(error):
                    raise
                self._halve(state, batch, error)
        if self.clip is not None:
            self.clip(self._parameters)
        return sums

    def _evaluate(self, state: State, batch: Batch, num_samples: int, count: float) -> Sums:
        """Exact loss and gradient of the whole batch where the weights stand."""
        loss, weight = self._backward(state, batch, num_samples, count)
        return self._finish_gradients(state, loss, weight, count)

    def _backward(self, state: State, batch: Batch, num_samples: int, count: float) -> tuple[Tensor, Tensor | float]:
        """Accumulate gradients of sum(loss * weights) / count; returns that and the sum of weights."""
        for parameter in self._parameters:
            parameter.grad = None
        share = self.strategy.world_size / count  # DistributedDataParallel divides by the number of processes
        size = min(self.micro_batch_size or num_samples, num_samples)
        if size < num_samples and is_coupled(self.forward_loss):
            what = f"micro_batch_size = {size} cuts a batch of {num_samples}, whose samples the loss couples"
            raise UsageError("E103", what, expected="the whole batch at once: micro_batch_size = None")
        micros = [batch] if size == num_samples else list(batch.split(size))
        loss, weight = self._zero, 0.0
        for index, micro in enumerate(micros):
            num = min(size, num_samples - index * size)
            self._generator.manual_seed(self._seeds.at(state.step, index, len(micros)))
            with self.strategy.synchronising(index == len(micros) - 1):
                with self._autocast:
                    values, weights = as_terms(self.forward_loss(state, micro), num)
                if self.scaler is not None:
                    values = values.float()  # a scaled share is beyond fp16's range
                weights = _product(weights, micro.weights)
                if weights is None:
                    shares = _even_shares(num, share, values.dtype, values.device)
                else:
                    shares = weights.to(values.dtype) * share
                # As backward of their dot product would, with fewer operations.
                values.backward(shares if self.scaler is None else shares * self.scaler.scale)
            part = torch.dot(values.detach(), shares)
            loss = part if index == 0 else loss + part
            weight = weight + (num if weights is None else weights.sum())
        return loss, weight

    def _finish_gradients(self, state: State, loss: Tensor, weight: Tensor | float, count: float) -> Sums:
        """Bring loss and gradients to the exact weighted mean over all processes, and check them."""
        scale, stop, save = self._one, 0.0, 0.0
        if self.strategy.world_size > 1:
            loss, weight, stop, save = self._sum_over_processes(state, loss, weight)
        if isinstance(weight, Tensor):
            scale = torch.full_like(weight, count) / weight  # `count / weight` is less exact in torch
            self._bad += weight == 0  # nothing to take the mean of
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        if loss.dtype != gradients[0].dtype:
            loss = loss.to(gradients[0].dtype)
        if loss.dtype == torch.float64 and scale is not self._one:  # the check below scales by a float32
            torch._foreach_mul_([*gradients, loss], scale)
            scale = self._one
        scale = scale.float()
        if self.scaler is None:
            torch._amp_foreach_non_finite_check_and_unscale_([*gradients, loss], self._bad, scale)
        else:
            torch._amp_foreach_non_finite_check_and_unscale_([loss], self._bad, scale)
            torch._amp_foreach_non_finite_check_and_unscale_(gradients, self._found_inf, scale * self.scaler.inverse())
            # Noted now: where a second evaluation follows (SAM), its loss is not finite because this gradient was not.
            torch.maximum(self._overflow, self.scaler.is_overflow(self._found_inf, self._bad), out=self._overflow)
        return loss, weight, stop, save

    def _update_scale(self, scaler: LossScaler) -> Tensor:
        """Note in `_bad` whether the step is to be skipped, for whatever reason; returns whether the scale is to blame."""
        torch.maximum(self._bad, self._found_inf, out=self._bad)
        scaler.update(self._found_inf, self._overflow)
        return self._overflow

    def _sum_over_processes(self, state: State, loss: Tensor, weight: Tensor | float) -> Sums:
        """Loss, weight, and how many processes wish to stop and to save, in one exchange."""
        if not isinstance(weight, Tensor):
            weight = torch.full((), weight, device=state.device)
        wishes = [self._one if wish else self._zero for wish in (state.stop_reason, state.wants_save)]
        both = self.strategy.sum_(torch.stack([loss / self.strategy.world_size, weight, *wishes]))
        return both[0], both[1], both[2], both[3]

    def _optimizer_step(self, state: State) -> Tensor | float:
        """Update weights and average, or leave everything as it was before a bad step; returns whether it was bad."""
        optimizer: Any = state.optimizer
        if self._skips_itself:
            optimizer.grad_scale, optimizer.found_inf = None, self._bad
            self._update(optimizer)
            state.buffers.restore_if(self._bad)
            if state.average is not None:
                state.average.update(unless=self._bad)
            return self._bad
        bad = self._bad.item()  # on an accelerator this waits: the optimizer has no fused form that skips by itself
        if bad:
            state.buffers.restore()
        else:
            self._update(optimizer)
            if state.average is not None:
                state.average.update()
        return bad

    def _update(self, optimizer: Any) -> None:
        """Raises: ResourceError (E402): no memory for what the optimizer keeps; some weights may have moved already."""
        try:
            optimizer.step()
        except ERRORS as error:
            if not is_out_of_memory(error):
                raise
            what = (
                f"out of memory in the update of {type(optimizer).__name__}, which smaller batches do not make smaller"
            )
            hint = "an optimizer that keeps less (--opt sgd, adafactor), a smaller --model, or finetune.mode=head"
            raise ResourceError("E402", what, hint=hint) from error

    def _closure_step(self, state: State, batch: Batch, num_samples: int, count: float, loss: Tensor) -> float:
        """A step of an optimizer that evaluates the batch again and again; it waits for each loss.

        Running statistics move once. If any evaluation is bad, weights and optimizer are put back as they were.
        """
        first: list[Tensor] = [loss]

        def evaluate() -> Tensor:
            if first:  # the gradients of this one are there already
                return first.pop()
            with state.buffers.unchanged():
                value = self._gradients(state, batch, num_samples, count)[0]
            if self._bad.item():
                raise _BadEvaluationError
            return value

        if self._bad.item():
            state.buffers.restore()
            return 1.0
        optimizer: Any = state.optimizer
        weights = [parameter.detach().clone() for parameter in self._parameters]
        kept = {parameter: _as_it_is(values) for parameter, values in optimizer.state.items()}
        try:
            optimizer.step(evaluate)
        except _BadEvaluationError:
            with torch.no_grad():
                torch._foreach_copy_([*self._parameters], weights)
            optimizer.state.clear()
            optimizer.state.update(kept)
            state.buffers.restore()
            return 1.0
        if state.average is not None:
            state.average.update()
        return 0.0

    def _halve(self, state: State, batch: Batch, error: BaseException) -> None:
        size = self.micro_batch_size or len(batch)
        if is_coupled(self.forward_loss):
            what = f"out of memory with {size} samples at once, and the loss couples them: they cannot be cut"
            raise ResourceError("E402", what, hint=f"-b {size // 2}, or a loss without per_batch") from error
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
        empty_cache()
        self.micro_batch_size = (size + 1) // 2
        state.decide("out_of_memory", micro_batch_size=self.micro_batch_size, asked=self._asked_micro_batch_size)


class _BadEvaluationError(Exception):
    """Ends a step within the optimizer's search."""


def _requires_closure(optimizer: torch.optim.Optimizer) -> bool:
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def _as_it_is(values: dict[str, Any]) -> dict[str, Any]:
    """A parameter's state where a step cannot change it in place; tensors within lists are never changed so."""
    return {
        key: value.clone() if isinstance(value, Tensor) else list(value) if isinstance(value, list) else value
        for key, value in values.items()
    }


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


@lru_cache(maxsize=32)
def _even_shares(num_samples: int, share: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What each sample counts for where all weigh the same. Kept, because every step of a run wants the same."""
    return torch.full((num_samples,), share, dtype=dtype, device=device)


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
