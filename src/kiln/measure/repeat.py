"""Does a training repeat? Hashes of what each step reads and leaves, and of every operation in it, to compare two runs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from torch.utils.module_tracker import ModuleTracker

from kiln.batch import Batch
from kiln.engine.fit import fit
from kiln.engine.state import State, optimizer_state
from kiln.engine.step import Step
from kiln.optim.schedules import Schedule

PARTS = ("batch", "loss", "weights", "optimizer state")
"""What is hashed of each step, in the order in which a difference in one causes those after it."""


@dataclass(frozen=True)
class Operation:
    """One call of one of torch's operations.

    Attributes:
        name: torch's own, such as `aten.convolution.default`.
        module: the innermost module that it ran for, such as `layer1.0.conv1`; empty outside of all.
        backward: whether it belongs to the backward pass.
        digest: of all tensors that it returned or wrote to.
    """

    name: str
    module: str
    backward: bool
    digest: str

    def __str__(self) -> str:
        where = f" in module {self.module!r}" if self.module else ""
        return f"{self.name}{where}{', backward' if self.backward else ''}"


@dataclass(frozen=True)
class StepTrace:
    """What one step read and left.

    Attributes:
        step: counted from 1.
        digests: by the names in `PARTS`.
        operations: in order, where they were recorded.
    """

    step: int
    digests: dict[str, str]
    operations: tuple[Operation, ...] = ()


@dataclass(frozen=True)
class Difference:
    """Where two trainings parted.

    Attributes:
        step: the first one that differs, counted from 1.
        part: the first of `PARTS` that differs in it.
        operation: the first one whose result differs, though everything before it agrees; None where none was recorded,
            or all of them agree.
        number: of that operation within its step, counted from 1.
    """

    step: int
    part: str
    operation: Operation | None = None
    number: int = 0


def trace(
    state: State,
    step: Step,
    batches: Any,
    *,
    num_steps: int,
    schedule: Schedule | None = None,
    operations_of: int | None = None,
) -> Iterator[StepTrace]:
    """Train, and hash what each step read and left.

    Args:
        state: what is trained, from its present step on.
        step: turns a batch into an update.
        batches: as for `fit`.
        num_steps: to take.
        schedule: as for `fit`.
        operations_of: the step, counted from 1, within which every operation is recorded too; this is slow.
    """
    traced = _Traced(step, operations_of)
    for _ in fit(state, traced, batches, total_steps=state.step + num_steps, schedule=schedule):  # type: ignore[arg-type]
        yield from traced.take()


def first_difference(one: Sequence[StepTrace], other: Sequence[StepTrace]) -> Difference | None:
    """Where two traces of the same training part; None where they agree in everything."""
    for a, b in zip(one, other, strict=True):
        part = next((name for name in PARTS if a.digests[name] != b.digests[name]), None)
        if part is None:
            continue
        pairs = zip(a.operations, b.operations, strict=False)
        number, found = next(((i, x) for i, (x, y) in enumerate(pairs, 1) if x != y), (0, None))
        return Difference(a.step, part, found, number)
    return None


def digest(*tensors: Tensor) -> str:
    """A hash of tensors' bytes, shapes and types, wherever they lie."""
    state = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        state.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        plain = tensor.detach().cpu().contiguous()
        if plain.numel():
            state.update(plain.view(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


class _Traced:
    """A step that hashes what it read and left; to the loop it is the step itself."""

    def __init__(self, step: Step, operations_of: int | None) -> None:
        self._step, self._operations_of = step, operations_of
        self._traces: list[StepTrace] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._step, name)

    def __call__(self, state: State, batch: Batch) -> Any:
        number = state.step + 1
        recorder = _Recorder() if number == self._operations_of else None
        with recorder or nullcontext():
            measured = self._step(state, batch)
        loose = [value for value in (batch.targets, batch.weights) if isinstance(value, Tensor)]
        tensors = [x for x in tree_leaves(optimizer_state(state.model, state.optimizer)["state"]) if _has_bytes(x)]
        digests = {
            "batch": digest(batch.images, *loose),
            "loss": digest(measured.loss),
            "weights": digest(*state.model.state_dict().values()),
            "optimizer state": digest(*tensors),
        }
        self._traces.append(StepTrace(number, digests, tuple(recorder.operations) if recorder else ()))
        return measured

    def take(self) -> list[StepTrace]:
        """The traces since the last call."""
        taken, self._traces = self._traces, []
        return taken


class _Recorder(TorchDispatchMode):
    """Hashes the result of every operation."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self._modules = ModuleTracker()

    def __enter__(self) -> Any:
        self._modules.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._modules.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if "empty" not in func.__name__:  # whatever was in memory
            with _disable_current_modes():
                self._record(func, args, kwargs or {}, result)
        return result

    def _record(self, func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> None:
        given = [*zip(func._schema.arguments, args, strict=False)]
        given += [(argument, kwargs[argument.name]) for argument in func._schema.arguments if argument.name in kwargs]
        written = [value for argument, value in given if argument.alias_info and argument.alias_info.is_write]
        tensors = [value for value in tree_leaves((result, written)) if _has_bytes(value)]
        names = [name.partition(".")[2] for name in self._modules.parents if name != "Global"]
        module = max(names, key=len, default="")
        self.operations.append(Operation(str(func), module, self._modules.is_bw, digest(*tensors)))


def _has_bytes(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta
