"""In which numbers the forward pass computes. Weights, optimizer state and files are always fp32."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from kiln.errors import UsageError

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """The context of a forward pass; reusable.

    Raises: UsageError: an unknown precision, or one that has no effect on the device.
    """
    require_precision(precision, device)
    if precision in _HALF:
        return torch.autocast(device.type, dtype=_HALF[precision])
    return nullcontext()


def require_precision(precision: str, device: torch.device) -> None:
    """Hold that a device has a precision.

    Raises: UsageError: it is unknown (E101), or has no effect there (E103).
    """
    if precision not in PRECISIONS:
        raise UsageError("E101", f"precision = {precision!r}", got=precision, choices=PRECISIONS)
    if precision != "tf32":
        return
    expected = "fp32, or bf16 where the hardware has it"
    if device.type != "cuda":
        what = f"precision = 'tf32' has no effect on {device.type}: only NVIDIA's tensor cores have it"
        raise UsageError("E103", what, expected=expected)
    if torch.cuda.is_available() and torch.cuda.get_device_capability(device) < (8, 0):
        what = f"precision = 'tf32' has no effect on {torch.cuda.get_device_name(device)}, which is older than Ampere"
        raise UsageError("E103", what, expected=expected)


def multiplying_fp32(precision: str, device: torch.device) -> Callable[[], AbstractContextManager[None]]:
    """A maker of contexts within which CUDA multiplies fp32 matrices as `precision` says; elsewhere there is no choice.

    Torch's own default is to round the inputs of convolutions to tf32, and not those of matrix products. `fp32` means
    neither here, `tf32` means both; what fp32 is left under `bf16` and `fp16` stays at torch's default.
    """
    chosen = {"fp32": "ieee", "tf32": "tf32"}.get(precision)
    if device.type != "cuda" or chosen is None:
        return nullcontext
    return lambda: _fp32_as(chosen)


@contextmanager
def _fp32_as(chosen: str) -> Iterator[None]:
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # pyright: ignore[reportAttributeAccessIssue]
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = chosen
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value


def keep_fp32_(model: nn.Module, patterns: Sequence[str]) -> tuple[str, ...]:
    """Make some modules compute in fp32 within an autocast of the others: their inputs are cast, autocast is off inside.

    Outside of autocast nothing changes, and neither do names or weights. Works in a plain loop too, and in deep copies.

    Args:
        model: any module.
        patterns: names of modules, or patterns such as `*.norm?`, `layer4.*`, `head`.
    Returns: the names that matched, without those inside another that did.
    Raises: UsageError: a pattern that matches no module.
    """
    modules = {name: module for name, module in model.named_modules() if name}
    found: set[str] = set()
    for pattern in patterns:
        matched = {name for name in modules if name == pattern or fnmatchcase(name, pattern)}
        if not matched:
            raise UsageError("E101", f"{pattern!r} names no module of the model", got=pattern, choices=list(modules))
        found |= matched
    outermost = tuple(name for name in modules if name in found and not _is_inside(name, found))
    for name in outermost:
        island = _Island()
        modules[name].register_forward_pre_hook(island.enter, with_kwargs=True)
        # Also when the forward fails: out of memory, or a recomputation that has seen enough.
        modules[name].register_forward_hook(island.leave, always_call=True)
    return outermost


class _Island:
    """Hooks, because they are given the module: in a deep copy of the model they serve the copy."""

    def __init__(self) -> None:
        self._contexts: list[torch.autocast | None] = []

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:  # noqa: ARG002 (torch's signature)
        device_type = _device_type((args, kwargs))
        if device_type is None or not torch.is_autocast_enabled(device_type):
            self._contexts.append(None)
            return args, kwargs
        context = torch.autocast(device_type, enabled=False)
        context.__enter__()
        self._contexts.append(context)
        return _as_fp32(args), _as_fp32(kwargs)

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:  # noqa: ARG002 (torch's signature)
        context = self._contexts.pop()
        if context is not None:
            context.__exit__(None, None, None)


def _device_type(values: Any) -> str | None:
    """Where the first tensor of nested arguments is."""
    if isinstance(values, Tensor):
        return values.device.type
    items = values.values() if isinstance(values, dict) else values if isinstance(values, tuple | list) else ()
    return next((found for item in items if (found := _device_type(item)) is not None), None)


def _as_fp32(values: Any) -> Any:
    if isinstance(values, Tensor):
        return values.float() if values.dtype in _HALF.values() else values
    if isinstance(values, dict):
        return {key: _as_fp32(value) for key, value in values.items()}
    return type(values)(map(_as_fp32, values)) if type(values) in (tuple, list) else values


def _is_inside(name: str, others: set[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:end]) in others for end in range(1, len(parts)))


def fastest_precision(device: torch.device) -> tuple[str, str]:
    """bf16 where the hardware multiplies it natively, fp32 elsewhere.

    Returns: the precision and the reason.
    """
    if device.type == "cpu":
        if _cpu_has_bf16():
            return "bf16", "this processor multiplies bf16 natively (AVX512-BF16 or AMX)"
        return "fp32", "this processor has no native bf16"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", f"{torch.cuda.get_device_name(device)} multiplies bf16 natively"
        return "fp32", f"{torch.cuda.get_device_name(device)} has no native bf16"
    return "fp32", f"bf16 is untested on {device.type}"


def _cpu_has_bf16() -> bool:
    if hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()  # torch 2.10
