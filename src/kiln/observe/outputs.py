"""What a model said of every sample that was held out, kept in the run folder: the ground of reports and comparisons."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from kiln.errors import ArtifactError
from kiln.models.seal import OPEN_SEAL, seal, verify_seal, write_atomically
from kiln.tasks import from_dict
from kiln.tasks.decision import Decision

KIND, VERSION = "kiln.outputs", 1


@dataclass(frozen=True)
class SplitOutputs:
    """One split's samples, in the order of the source.

    Attributes:
        keys: of the samples.
        labels: label texts.
        logits: (N, K) float32, as the model gave them.
        targets: (N, ...) by the model's classes.
        groups: of the samples, where the data have groups.
    """

    keys: tuple[str, ...]
    labels: tuple[str, ...]
    logits: NDArray[np.float32]
    targets: NDArray[Any]
    groups: tuple[str, ...] | None = None


@dataclass(frozen=True)
class KeptOutputs:
    """What a model said.

    Attributes:
        classes: names, in the order of the outputs.
        task: as from `task.to_dict()`.
        decision: how the model's logits become answers, as from `Decision.to_dict()`.
        model: the digest of the model file.
        splits: by name.
    """

    classes: tuple[str, ...]
    task: Mapping[str, Any]
    decision: Mapping[str, Any]
    model: str
    splits: Mapping[str, SplitOutputs]

    def probabilities(self, split: str) -> NDArray[np.float64]:
        """(N, K) calibrated probabilities of a split."""
        calibrated = Decision.from_dict(self.decision).calibrated(self.splits[split].logits)
        return from_dict(self.task).probabilities(calibrated)


def write_outputs(path: Path, kept: KeptOutputs) -> None:
    """Write outputs where `read_outputs` finds them; a crash leaves the old file or the new one.

    Raises: ResourceError: it cannot be written.
    """
    about = {
        "kind": KIND,
        "version": VERSION,
        "seal": OPEN_SEAL,
        "classes": kept.classes,
        "task": dict(kept.task),
        "decision": dict(kept.decision),
        "model": kept.model,
        "splits": {
            name: {"keys": part.keys, "labels": part.labels, "groups": part.groups}
            for name, part in kept.splits.items()
        },
    }
    tensors = {}
    for name, part in kept.splits.items():
        tensors[f"{name}.logits"] = np.ascontiguousarray(part.logits, np.float32)
        tensors[f"{name}.targets"] = np.ascontiguousarray(part.targets)
    payload, _ = seal(safetensors.numpy.save(tensors, metadata={"kiln": json.dumps(about)}))
    write_atomically(path, payload)


def read_outputs(path: Path) -> KeptOutputs:
    """Read what `write_outputs` wrote.

    Raises: ArtifactError: missing or damaged (E307), of another kind or a newer version (E303).
    """
    if not path.is_file():
        raise ArtifactError("E307", f"{path}: no such file", hint="kiln evaluate RUN makes it again")
    verify_seal(path)
    try:
        with safe_open(str(path), framework="numpy") as file:
            about = json.loads((file.metadata() or {}).get("kiln", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, ValueError) as error:
        raise ArtifactError("E307", f"{path} is damaged: {error}") from error
    if not isinstance(about, dict) or about.get("kind") != KIND or about.get("version") != VERSION:
        raise ArtifactError("E303", f"{path} is no {KIND} file of version {VERSION}", hint="pip install -U torchkiln")
    splits = {
        name: SplitOutputs(
            keys=tuple(part["keys"]),
            labels=tuple(part["labels"]),
            logits=tensors[f"{name}.logits"],
            targets=tensors[f"{name}.targets"],
            groups=None if part["groups"] is None else tuple(part["groups"]),
        )
        for name, part in about["splits"].items()
    }
    return KeptOutputs(tuple(about["classes"]), about["task"], about["decision"], about["model"], splits)
