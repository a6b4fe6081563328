"""The model file: weights, architecture, classes, pixel contract and task in one safetensors file.

Anything that reads safetensors reads the weights (float32, by name). The description is one JSON text in its metadata,
and holds a seal over the whole file, so that a single flipped bit is noticed before the model is used. No part of it
is code: an architecture of the user's own is named, and runs only if the user trusts that name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from kiln import __version__
from kiln.errors import ArtifactError, UsageError
from kiln.models.create import create_model
from kiln.models.ensemblefile import ENSEMBLE, set_ensemble_decision
from kiln.models.family import HUB
from kiln.models.load import refuse_nan, strip_wrappers
from kiln.models.modelheader import KIND, METADATA_KEY, VERSION, check_version, read_header
from kiln.models.seal import ANOTHER_COPY, OPEN_SEAL, seal, verify_seal, write_atomically
from kiln.models.spec import ModelSpec
from kiln.pixels import PixelContract, PixelError

__all__ = ["ModelFile", "check_version", "read_header", "read_model", "save_model", "set_decision"]


@dataclass
class ModelFile:
    """A model and everything needed to use it.

    `task` is what `kiln.tasks.from_dict` takes, `decision` what `kiln.tasks.decision.Decision.from_dict` does.
    """

    model: nn.Module
    spec: ModelSpec
    classes: tuple[str, ...]
    contract: PixelContract
    task: dict[str, Any]
    extra: dict[str, Any] = field(default_factory=dict)
    digest: str = ""
    decision: dict[str, Any] = field(default_factory=dict)


def save_model(
    path: str | Path,
    model: nn.Module,
    *,
    spec: ModelSpec,
    classes: Sequence[str],
    contract: PixelContract,
    task: Mapping[str, Any],
    extra: Mapping[str, Any] | None = None,
    decision: Mapping[str, Any] | None = None,
) -> str:
    """Write a model file: the old file stays until the new one is complete.

    Args:
        path: usually `model.safetensors`.
        model: DistributedDataParallel and torch.compile wrappers are seen through.
        spec: from `create_model`.
        classes: names, in the order of the outputs.
        contract: how a file becomes the model's input.
        task: from `task.to_dict()`.
        extra: any JSON values: the step, metrics, where it comes from.
        decision: how its outputs become answers, from `Decision.to_dict()`.

    Returns: the SHA-256 of the file (with its seal open), which is also in it.
    Raises: ResourceError (E401): it cannot be written. ArtifactError (E304): a weight is NaN.
    """
    tensors, aliases = canonical_state(model)
    refuse_nan(tensors, "the model to be saved")
    description = {
        "kind": KIND,
        "version": VERSION,
        "seal": OPEN_SEAL,
        "kiln": __version__,
        "torch": torch.__version__,
        "spec": spec.to_dict(),
        "classes": list(classes),
        "contract": contract.to_dict(),
        "task": dict(task),
        "aliases": aliases,
        "extra": dict(extra or {}),
        "decision": dict(decision or {}),
    }
    return _write(Path(path), tensors, description)


def set_decision(path: str | Path, decision: Mapping[str, Any]) -> str:
    """Change nothing of a model file but how its outputs become answers.

    Returns: the new digest.
    Raises: as `read_model`, and ResourceError (E401): it cannot be written.
    """
    path = Path(path)
    if path.name == ENSEMBLE:
        return set_ensemble_decision(path, decision)
    header = read_header(path)
    verify_seal(path)
    description = {**header, "seal": OPEN_SEAL, "decision": dict(decision)}
    return _write(path, safetensors.torch.load_file(path), description)


def _write(path: Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> str:
    text = json.dumps(description, ensure_ascii=False)
    payload, digest = seal(safetensors.torch.save(dict(tensors), metadata={METADATA_KEY: text}))
    write_atomically(path, payload)
    return digest


def canonical_state(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A model's tensors by name, on the CPU and in float32, and the names that share another one's tensor."""
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for key, value in model.state_dict().items():
        name = strip_wrappers(key)
        same = (value.untyped_storage().data_ptr(), value.storage_offset(), value.shape, value.stride())
        if value.numel() and same in seen:
            aliases[name] = seen[same]
            continue
        seen[same] = name
        dtype = torch.float32 if value.is_floating_point() else value.dtype
        tensors[name] = value.detach().to(device="cpu", dtype=dtype, copy=True).contiguous()
    return tensors, aliases


def read_model(path: str | Path, *, trusted: Sequence[str] = ()) -> ModelFile:
    """Read a model file and build its model, on the CPU, in evaluation mode.

    Args:
        path: what `save_model` wrote.
        trusted: `module:function` names that a file may run, for architectures of the user's own.

    Raises:
        ArtifactError: not a model file or newer (E303), damaged (E307), or weights of another architecture (E304).
        SecurityError (E701): it names code that is not trusted.
    """
    path = Path(path)
    header = read_header(path)
    digest = verify_seal(path)
    spec, contract, classes = _described(header, path)
    try:
        tensors = safetensors.torch.load_file(path)
    except (SafetensorError, ValueError, OSError) as error:
        raise ArtifactError("E307", f"{path} is damaged: {error}", hint=ANOTHER_COPY) from error
    refuse_nan(tensors, str(path))
    _check_plausible(spec, tensors, path)
    try:
        made = create_model(
            spec.name,
            num_classes=spec.num_classes,
            channels=spec.channels,
            img_size=spec.img_size,
            kwargs=spec.kwargs,
            trusted=tuple(trusted),
        )
    except UsageError as error:
        hint = "pip install -U torchkiln timm torchvision, or name the code it needs where it can be imported"
        raise ArtifactError(
            "E303", f"{path}: its architecture cannot be built here: {error.what}", hint=hint
        ) from error
    tensors |= {name: tensors[other] for name, other in header["aliases"].items() if other in tensors}
    _load_exactly_(made.model, tensors, path)
    task, extra = dict(header["task"]), dict(header["extra"])
    return ModelFile(made.model.eval(), spec, classes, contract, task, extra, digest, dict(header.get("decision", {})))


def _described(header: Mapping[str, Any], path: Path) -> tuple[ModelSpec, PixelContract, tuple[str, ...]]:
    types = {"spec": dict, "classes": list, "contract": dict, "task": dict, "aliases": dict, "extra": dict}
    wrong = [name for name, kind in types.items() if not isinstance(header.get(name), kind)]
    if wrong or not all(isinstance(name, str) for name in header["classes"]):
        raise ArtifactError("E303", f"{path}: its description lacks {', '.join(wrong) or 'class names'}")
    try:
        contract = PixelContract.from_dict(header["contract"])
    except (PixelError, TypeError) as error:
        raise ArtifactError("E303", f"{path}: {error}", hint="pip install -U torchkiln") from error
    spec = ModelSpec.from_dict(header["spec"])
    if (contract.height, contract.width, contract.channels) != (spec.img_size, spec.img_size, spec.channels):
        raise ArtifactError("E303", f"{path}: pixel contract and model description disagree about the image")
    if spec.name.startswith((HUB, f"timm/{HUB}")):
        raise ArtifactError("E303", f"{path}: its architecture {spec.name!r} is an address, not a name")
    return spec, contract, tuple(header["classes"])


def _check_plausible(spec: ModelSpec, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse a description that would make us build something far larger than the file."""
    elements = sum(value.numel() for value in tensors.values())
    if max(spec.num_classes, spec.channels) > elements or math.prod((spec.channels, spec.img_size)) > 1 << 24:
        raise ArtifactError("E304", f"{path}: {elements:,} weights are too few for {spec.num_classes:,} classes")


def _load_exactly_(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    own = model.state_dict()
    missing = [f"missing: {name}" for name in own if name not in tensors]
    unexpected = [f"unexpected: {name}" for name in tensors if name not in own]
    reshaped = [
        f"reshaped: {name}: file {tuple(tensors[name].shape)}, model {tuple(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    problems = missing + unexpected + reshaped
    if problems:
        what = f"{path}: {len(problems)} tensors do not match the architecture it names"
        hint = "written with another version of timm or torchvision, or of your own code?"
        raise ArtifactError("E304", what, details=problems[:20], hint=hint)
    model.load_state_dict(dict(tensors))
