"""The verb `export`: a model in a form that other programs run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kiln.deployment.export import export_onnx
from kiln.errors import UsageError
from kiln.models.ensemblefile import ENSEMBLE
from kiln.models.modelfile import read_model
from kiln.runtimes import model_path

FORMATS = ("onnx",)


def export(
    model: str | Path | Any,
    output: str | Path | None = None,
    *,
    format: str = "onnx",  # noqa: A002  # the word that everybody types
    opset: int | None = None,
    trust: Sequence[str] = (),
) -> Path:
    """Write a trained model as ONNX, compared with its parent first.

    The graph takes uint8 images (B, C, H, W) as the pixel contract makes them and returns logits (B, K); scaling and
    normalisation are inside, class names, contract and task in its metadata.

    Args:
        model: a model file, the folder of a run, or a `Run`.
        output: the file to write; by default beside the model.
        format: `onnx`.
        opset: of ONNX; None is the exporter's own choice.
        trust: `module:function` names that the model file may run.

    Returns: the path written.
    Raises: UsageError, ArtifactError, SecurityError, MissingExtraError: see `export_onnx` and `read_model`.
    """
    if format not in FORMATS:
        raise UsageError("E101", f"unknown export format {format!r}", got=format, choices=FORMATS)
    source = model_path(model)
    if source.name == ENSEMBLE:
        member = next(source.parent.glob("*/*.safetensors"), source.parent)
        hint = f"export its members, such as kiln export {shlex.quote(str(member))}"
        raise UsageError("E103", f"{source.parent} is an ensemble: several models, and no one graph", hint=hint)
    target = Path(output) if output is not None else source.with_suffix(".onnx")
    if target.suffix.lower() != ".onnx":
        raise UsageError("E102", f"output = {str(target)!r}", expected="a name that ends in .onnx")
    export_onnx(read_model(source, trusted=trust), target, opset=opset)
    return target
