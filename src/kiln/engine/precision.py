"""In which numbers the forward pass computes. Weights, optimizer state and files are always fp32."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from kiln.errors import UsageError

PRECISIONS = ("fp32", "bf16")


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """The context of a forward pass; reusable.

    Raises: UsageError: an unknown precision.
    """
    if precision == "fp32":
        return nullcontext()
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    raise UsageError("E101", f"precision = {precision!r}", got=precision, choices=PRECISIONS)


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
