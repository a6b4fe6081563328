"""Starting several processes on this machine, by torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from kiln.errors import DistributedError, Preempted, UsageError
from kiln.recipe import Recipe
from kiln.run import Run, locked

INSIDE = "KILN_RUN_FOLDER"
"""Names the run's folder to the processes that were started for it."""


def is_inside() -> bool:
    """Whether this process is one of several that torchrun started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def launch(recipe: Recipe, folder: Path, *, quiet: bool) -> Run:
    """Train in `run.processes` processes and wait for them.

    Raises: DistributedError: a process failed. Preempted: a signal stopped them after saving.
    """
    if recipe.data.path is None:
        raise UsageError("E103", "several processes need data that has a path", hint="run.processes = 1, or a folder")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={recipe.run.processes}",
    ]
    command += ["-m", "kiln", "resume", str(folder)] + (["--quiet"] if quiet else [])
    environment = {**os.environ, INSIDE: str(folder), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // recipe.run.processes)))
    with locked(folder):
        status = subprocess.run(command, env=environment, check=False).returncode
    run = Run(folder)
    state = run.status["state"]
    if state in ("preempted", "interrupted"):
        raise Preempted("E801", f"stopped at step {run.status['step']}", kept=str(folder), hint=f"kiln resume {folder}")
    if status != 0 or state != "done":
        raise DistributedError(
            "E501", f"the processes ended with status {status}", where=str(folder), hint=f"kiln resume {folder}"
        )
    return run
