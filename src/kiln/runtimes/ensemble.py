"""Several models that answer together: the weighted mean of their calibrated probabilities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kiln import tasks
from kiln.data.storage import shown
from kiln.errors import ArtifactError
from kiln.models.ensemblefile import read_ensemble
from kiln.models.seal import ANOTHER_COPY, verify_seal
from kiln.runtimes import open_runtime
from kiln.runtimes.predictor import Runtime
from kiln.tasks.decision import Decision


class EnsembleRuntime:
    """Runs the members that an `ensemble.json` names, after checking that each is the file that was put there.

    Args:
        path: of `ensemble.json`.
        device: for each member; see `kiln.load`.
        trusted: `module:function` names that a member may run.
    """

    name = "ensemble"

    def __init__(self, path: Path, *, device: str = "auto", trusted: tuple[str, ...] = ()) -> None:
        file = read_ensemble(path)
        self.classes, self.contract, self.task = file.classes, file.contract, file.task
        self.decision, self.digest = file.decision, file.digest
        self._task = tasks.from_dict(self.task)
        self._members: list[_Member] = []
        weights = []
        for member in file.members:
            if member.weight == 0:
                continue
            place = path.parent / member.file
            if not place.is_file():
                raise ArtifactError("E303", f"{path} has lost its member {member.file}", hint=ANOTHER_COPY)
            if verify_seal(place) != member.digest:
                raise ArtifactError(
                    "E307", f"{place} is not the file that this ensemble was made of", hint="kiln ensemble RUN RUN"
                )
            opened = open_runtime(place, device=device, trust=trusted)
            self._members.append(_Member(opened, columns(opened.classes, self.classes, names=(str(place), str(path)))))
            weights.append(member.weight)
        self._weights = np.array(weights)
        self.device = self._members[0].runtime.device

    def logits(self, images: NDArray[np.uint8], sizes: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Logits (B, K) of the weighted mean probability, for images as the members take them."""
        said = np.stack([member.logits(images, sizes) for member in self._members])
        return self._task.pooled(said, self._weights).astype(np.float32)


class _Member:
    """A runtime whose logits are calibrated and in the order of the ensemble's classes."""

    def __init__(self, runtime: Runtime, order: list[int]) -> None:
        self.runtime = runtime
        self._calibration = Decision.from_dict(runtime.decision)
        self._order = order

    def logits(self, images: NDArray[np.uint8], sizes: NDArray[np.int64] | None) -> NDArray[Any]:
        return self._calibration.calibrated(self.runtime.logits(images, sizes))[:, self._order]


def columns(own: tuple[str, ...], wanted: tuple[str, ...], *, names: tuple[str, str]) -> list[int]:
    """Where each of the wanted classes stands among a model's own.

    Args:
        own: of the model.
        wanted: the same, in another order.
        names: of the model, and of what wants them; for the error.
    Raises: ArtifactError (E304): they are not the same classes.
    """
    if set(own) != set(wanted):
        only = (sorted(set(own) - set(wanted)), sorted(set(wanted) - set(own)))
        listed = [f"only {name}: {shown(odd, 10)}" for name, odd in zip(names, only, strict=True) if odd]
        what = f"{names[0]} and {names[1]} know different classes"
        raise ArtifactError("E304", what, details=listed, hint="train them alike")
    return [own.index(name) for name in wanted]
