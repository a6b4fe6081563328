"""Where to compute: `auto | cpu | cuda | mps | xpu` becomes a device that this machine has."""

from __future__ import annotations

import torch

from kiln.errors import UsageError

TESTED = ("cpu", "cuda")
NAMES = ("auto", "cpu", "cuda", "mps", "xpu")


def resolve_device(name: str | torch.device = "auto") -> torch.device:
    """The device that a name stands for; `auto` is the accelerator when there is one, else the CPU.

    Args:
        name: one of `NAMES`, also with an index (`cuda:1`), or a device.

    Raises: UsageError: an unknown name (E102), or a device that is not here (E109).
    """
    kind, _, index = str(name).partition(":")
    if kind not in NAMES or (index and not index.isdigit()):
        raise UsageError("E102", f"device = {str(name)!r} is not a device", got=kind, choices=NAMES)
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if kind == "auto":
        return accelerator or torch.device("cpu")
    if kind == "cpu":
        return torch.device("cpu")
    here = available_devices()
    wanted = f"{kind}:{index}" if index else kind
    if wanted not in here:
        raise UsageError("E109", f"device = {wanted!r} is not on this machine", choices=here, hint="--device auto")
    return torch.device(wanted)


def available_devices() -> tuple[str, ...]:
    """What `resolve_device` accepts here, such as `("auto", "cpu", "cuda", "cuda:0", "cuda:1")`."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return "auto", "cpu"
    count = torch.accelerator.device_count()
    return "auto", "cpu", accelerator.type, *(f"{accelerator.type}:{index}" for index in range(count))


def device_note(device: torch.device) -> str:
    """A sentence to print for a device that Kiln's tests never ran on; empty for the others."""
    return "" if device.type in TESTED else f"device {device.type!r} is reached through torch.accelerator, but untested"
