"""What a run keeps on disk of its training: checkpoints, and the best model as a model file."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy
import PIL
import torch

from kiln import __version__
from kiln.augment import backend as augmentation_backend
from kiln.engine import checkpoint
from kiln.engine.state import State, load_model
from kiln.errors import ArtifactError, KilnError
from kiln.jobs.assembly.assemble import Training
from kiln.jobs.intake import Intake
from kiln.models.lora import merged
from kiln.models.modelfile import save_model
from kiln.observe.memory import ALLOCATOR
from kiln.redact import redact_arguments
from kiln.run import BEST, CHECKPOINTS, MODEL, RUNNING, read_json, set_status, write_json


class Saver:
    """Commits checkpoints and publishes the best model. Called on every process; the first one writes.

    Args:
        folder: of the run.
        training: what is saved.
        intake: what the model file says of classes and task.
        keep: newest checkpoints to keep, besides the best.
        about: recorded in each checkpoint: what bitwise equality depends on.
        data: the record of the data, kept in the model file.
    """

    def __init__(
        self,
        folder: Path,
        training: Training,
        intake: Intake,
        *,
        keep: int,
        about: dict[str, Any],
        data: dict[str, Any],
    ) -> None:
        self.folder, self.training, self.intake = folder, training, intake
        self.keep, self.about, self.data = keep, about, data

    def __call__(self, state: State) -> Path:
        """Commit a checkpoint, then publish the model if it is the best.

        Raises: KilnError: it failed on the process that writes; the same error on every process.
        """
        strategy, bad_files = self.training.strategy, self.training.bad_files
        strategy.broadcast_buffers(state.model)
        bad_files.merge(strategy.gather(bad_files))
        failure: KilnError | None = None
        if strategy.rank == 0:
            try:
                self._write(state)
            except KilnError as error:
                failure = error
        for error in strategy.gather(failure):
            if error is not None:
                raise error
        return checkpoint.folder_of(self.folder / CHECKPOINTS, state.step)

    def _write(self, state: State) -> None:
        root = self.folder / CHECKPOINTS
        best_step = state.kept_step
        checkpoint.write_checkpoint(root, state.step, state.state(), about={**self.about, "best_step": best_step})
        if best_step == state.step:
            self._publish(state.evaluated_model(), state)
        checkpoint.retain(root, keep=self.keep, also=self._best_steps(root))
        set_status(self.folder, RUNNING, step=state.step)

    def _best_steps(self, root: Path) -> set[int]:
        """The best step of each of the newest checkpoints: where one is damaged, the one before it needs its own."""
        steps = set()
        for step in checkpoint.committed_steps(root)[-self.keep :]:
            with suppress(ArtifactError):  # it is found out when somebody needs it
                steps.add(checkpoint.read_about(checkpoint.folder_of(root, step)).get("best_step", step))
        return steps

    def _publish(self, model: torch.nn.Module, state: State) -> None:
        tracker = None if state.tracker is None or state.tracker.keep_last else state.tracker
        best = {
            "step": state.kept_step,
            "monitor": tracker.monitor if tracker else None,
            "value": tracker.best if tracker else None,
        }
        save_model(
            self.folder / MODEL,
            merged(model),
            spec=self.training.created.spec,
            classes=self.intake.classes,
            contract=self.training.contract,
            task=self.intake.task.to_dict(),
            extra={
                "best": best,
                "data": self.data,
                "transformed": self.intake.source.transformed,
            },
        )
        write_json(self.folder / BEST, "best", best)

    def publish_again(self, state: State) -> None:
        """After a resume: make the model file that of the step to keep, where a crash left another one or none."""
        if self.training.strategy.rank != 0 or not state.kept_step:
            return
        published = read_json(self.folder / BEST, kind="best")["step"] if (self.folder / BEST).exists() else None
        if published == state.kept_step and (self.folder / MODEL).exists():
            return
        if state.kept_step == state.step:
            self._publish(state.evaluated_model(), state)
            return
        path = checkpoint.folder_of(self.folder / CHECKPOINTS, state.kept_step)
        tree = checkpoint.read_checkpoint(path).tree
        model = state.evaluated_model()
        kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        load_model(model, tree["model"] if state.average is None else state.average.tensors_of(tree))
        self._publish(model, state)
        load_model(model, kept)


def environment() -> dict[str, Any]:
    """The command, without secrets, versions and the machine, for `environment.json`."""
    return {
        "command": redact_arguments(sys.argv),
        "versions": {
            "kiln": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "timm": version("timm"),  # importing it for this would take longer than all the rest
            "numpy": numpy.__version__,
            "pillow": PIL.__version__,
        },
        "machine": {"platform": platform.platform(), "processor": torch.backends.cpu.get_cpu_capability()},
        "allocator": os.environ.get(ALLOCATOR, ""),
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The git commit of the folder that the command was called in, and whether its files were changed since."""
    answers = []
    for question in ("rev-parse HEAD", "status --porcelain --untracked-files=no"):
        try:
            done = subprocess.run(["git", *question.split()], capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        answers.append(done.stdout.strip())
    commit, changed = answers
    return f"{commit}, with changes" if changed else commit


def bitwise_conditions(training: Training, settings: Any) -> dict[str, Any]:
    """What must be equal for two runs to be equal bit for bit."""
    return {
        "torch": torch.__version__,
        "pillow": PIL.__version__,
        "processor": torch.backends.cpu.get_cpu_capability(),
        "device": str(training.state.device),
        "augmentation": augmentation_backend(training.state.device),
        "threads": torch.get_num_threads(),
        "world_size": training.strategy.world_size,
        "precision": settings["training.precision"],
        "memory_format": settings["run.memory_format"],
        "micro_batch_size": settings["training.micro_batch_size"],
        "cache_features": settings["finetune.cache_features"],
    }
