"""Telling that memory ran out: accelerators say so by a type of their own, the CPU's allocator only in its message."""

from __future__ import annotations

import torch

ERRORS = (RuntimeError, MemoryError)
"""What is raised where memory runs out, among other things; `torch.OutOfMemoryError` is a RuntimeError."""
_SIGNS = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the machine itself, had no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def empty_cache() -> None:
    """Give back what an accelerator's allocator holds without using it."""
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
