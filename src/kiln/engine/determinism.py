"""How far the arithmetic of a training repeats, and what that costs.

The samples, augmentations and dropout of a step are pure functions of the seed at every level; what differs is whether an
accelerator's own operations give the same bits twice. On the CPU, with one number of threads, they do at every level.
"""

from __future__ import annotations

import os

import torch

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


def set_determinism(level: str, *, fixed_shapes: bool) -> str:
    """Settle torch's switches, all of them, so that none is left from an earlier training in the process.

    Args:
        level: `off` lets cuDNN choose convolutions by timing them, so two runs may take different ones; `seeded` takes
            those that a rule chooses; `strict` takes only operations that give the same bits each time, and fails
            where there is none.
        fixed_shapes: whether all batches have one shape. Where they do not, each new shape would be timed again, which
            costs more than it gains, and `off` does not time.
    Returns: what was settled, in words.
    """
    strict = level == "strict"
    times = level == "off" and fixed_shapes
    if strict:
        os.environ.setdefault(CUBLAS, ":4096:8")  # read when the first matrix product begins
    if strict != torch.are_deterministic_algorithms_enabled():  # to say it again imports the compiler: seconds
        torch.use_deterministic_algorithms(strict)
    if torch.backends.cudnn.is_available():
        torch.backends.cudnn.deterministic = strict
        torch.backends.cudnn.benchmark = times
    if strict:
        return "only operations that give the same bits each time"
    if level == "off":
        return "convolutions are chosen by timing" if times else "batches differ in shape, so nothing is timed"
    return "operations are chosen by rule; an accelerator's may differ in the last bits"
