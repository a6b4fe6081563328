"""Predictors: a model file or an exported model, ready to answer. Importing this imports no runtime, and not torch."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kiln.errors import ArtifactError, UsageError
from kiln.models.ensemblefile import ENSEMBLE
from kiln.names import RUNTIMES, load_object
from kiln.run import FOLDS, models_in, not_there, read_json
from kiln.runtimes.predictor import BATCH_SIZE, Predictor, Runtime

__all__ = ["BATCH_SIZE", "MODEL_NAME", "Predictor", "Runtime", "load", "model_path", "open_runtime"]

MODEL_NAME = "model.safetensors"  # of the model that a run leaves in its folder


def load(
    path: Any,
    *,
    device: str = "auto",
    runtime: str = "auto",
    trust: Sequence[str] = (),
    views: str | Sequence[str] = "none",
) -> Predictor:
    """Open a model for prediction.

    Args:
        path: a model file, a run or its folder (the best model), an `.onnx` that Kiln exported, or the folder of an
            ensemble.
        device: `auto`, `cpu`, `cuda`, `mps` or `xpu`.
        runtime: `auto` (by the file), `torch`, `onnx` or `ensemble`.
        trust: `module:function` names that a model file may run, for architectures of the user's own.
        views: show the model each image in several ways and average its probabilities: `none`, `hflip`, `flips`,
            `five_crop`, `ten_crop`, `scales`, or a list of views; see `kiln.runtimes.views`.

    Raises:
        UsageError: an unknown runtime (E101) or one that cannot read this file (E103); a device not here (E109).
        UsageError: no such file or folder (E111).
        ArtifactError: another kind, or damaged (E303, E307).
        SecurityError: code that is not trusted (E701), or an ONNX file that reaches outside itself (E703).
    """
    opened = open_runtime(path, device=device, runtime=runtime, trust=trust)
    if views == "none":
        return Predictor(opened)
    from kiln.runtimes.views import Viewed, view_names

    return Predictor(Viewed(opened, view_names(views)))


def open_runtime(path: Any, *, device: str = "auto", runtime: str = "auto", trust: Sequence[str] = ()) -> Runtime:
    """What runs the network of a model; arguments and errors as for `load`."""
    file = model_path(path)
    fitting = "ensemble" if file.name == ENSEMBLE else "onnx" if file.suffix.lower() == ".onnx" else "torch"
    wanted = fitting if runtime == "auto" else runtime
    if wanted not in RUNTIMES:
        raise UsageError("E101", f"unknown runtime {runtime!r}", got=runtime, choices=("auto", *RUNTIMES))
    if wanted != fitting:
        hint = f"kiln export {path}" if (wanted, fitting) == ("onnx", "torch") else f"--runtime {fitting}"
        raise UsageError("E103", f"runtime {runtime!r} does not read {file.name}", hint=hint)
    return load_object(RUNTIMES[wanted])(file, device=device, trusted=tuple(trust))


def model_path(path: Any) -> Path:
    """The file that holds the model: the path itself, the best model of a run or in its folder, or its `ensemble.json`.

    Raises: UsageError (E111): nothing there. ArtifactError (E303): a folder without a model, or of several.
    """
    path = Path(getattr(path, "path", path)).expanduser()
    if path.is_dir():
        if (path / MODEL_NAME).is_file():
            return path / MODEL_NAME
        if (path / ENSEMBLE).is_file():
            return path / ENSEMBLE
        if (path / FOLDS).is_file():
            raise models_of_folds(path)
        what, expected = f"{path} holds no {MODEL_NAME}", "the folder of a run that saved a model"
        raise ArtifactError("E303", what, expected=expected, choices=models_in(path))
    if not path.is_file():
        raise not_there(path)
    return path


def models_of_folds(folder: Path) -> ArtifactError:
    """The error that a folder of folds is not one model, with what makes it one; to be raised."""
    runs = read_json(folder / FOLDS, kind="folds")["runs"]
    what, one = f"{folder} holds {len(runs)} models, one of each fold", shlex.quote(str(folder / runs[0]))
    hint = f"kiln ensemble {shlex.quote(str(folder))} makes one of them; {one} is the first alone"
    return ArtifactError("E303", what, expected="one model", hint=hint)
