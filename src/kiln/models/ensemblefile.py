"""The description of an ensemble: `ensemble.json`, beside the files of its members. Read without any weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from kiln import __version__
from kiln.errors import ArtifactError, SecurityError
from kiln.models.seal import ANOTHER_COPY, OPEN_SEAL, seal, verify_seal, write_atomically
from kiln.pixels import PixelContract, PixelError

ENSEMBLE = "ensemble.json"
KIND, VERSION = "kiln.ensemble", 1
_MOST_BYTES = 1 << 26


@dataclass(frozen=True)
class Member:
    """A model of an ensemble.

    Attributes:
        file: its path from the folder of the ensemble.
        digest: of that file.
        weight: of its probabilities.
        source: where it was copied from, for people.
    """

    file: str
    digest: str
    weight: float
    source: str = ""


@dataclass(frozen=True)
class EnsembleFile:
    """An ensemble and everything needed to use it.

    Attributes:
        classes: names, in the order of the outputs.
        contract: how a file becomes the members' input.
        task: as from `task.to_dict()`.
        members: whose weights sum to 1.
        decision: how the pooled outputs become answers, as from `Decision.to_dict()`.
        found: how the weights came about, and what was measured.
        digest: of the description, which names those of the members.
    """

    classes: tuple[str, ...]
    contract: PixelContract
    task: dict[str, Any]
    members: tuple[Member, ...]
    decision: dict[str, Any] = field(default_factory=dict)
    found: dict[str, Any] = field(default_factory=dict)
    digest: str = ""


def write_ensemble(path: Path, ensemble: EnsembleFile) -> str:
    """Write `ensemble.json`; returns its digest. Raises: ResourceError (E401): it cannot be written."""
    description = {
        "kind": KIND,
        "version": VERSION,
        "seal": OPEN_SEAL,
        "kiln": __version__,
        "classes": ensemble.classes,
        "contract": ensemble.contract.to_dict(),
        "task": ensemble.task,
        "members": [vars(member) for member in ensemble.members],
        "decision": ensemble.decision,
        "found": ensemble.found,
    }
    payload, digest = seal(json.dumps(description, indent=1).encode())
    write_atomically(path, payload)
    return digest


def set_ensemble_decision(path: Path, decision: Mapping[str, Any]) -> str:
    """Change nothing but how the outputs become answers; returns the new digest."""
    found = read_ensemble(path)
    return write_ensemble(path, EnsembleFile(**{**vars(found), "decision": dict(decision)}))


def read_ensemble(path: Path) -> EnsembleFile:
    """Read what `write_ensemble` wrote.

    Raises:
        ArtifactError: another kind or version (E303), damaged (E307).
        SecurityError (E703): a member lies outside the folder.
    """
    if path.stat().st_size > _MOST_BYTES:
        raise ArtifactError("E303", f"{path} is too large for the description of an ensemble")
    digest = verify_seal(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ArtifactError("E307", f"{path} is damaged: {error}", hint=ANOTHER_COPY) from error
    if not isinstance(found, dict) or found.get("kind") != KIND or found.get("version") != VERSION:
        raise ArtifactError("E303", f"{path} is no {KIND} file of version {VERSION}", hint="pip install -U torchkiln")
    types = {"classes": list, "contract": dict, "task": dict, "members": list, "decision": dict, "found": dict}
    if wrong := [name for name, kind in types.items() if not isinstance(found.get(name), kind)]:
        raise ArtifactError("E303", f"{path}: its description lacks {', '.join(wrong)}")
    try:
        contract = PixelContract.from_dict(found["contract"])
        members = tuple(Member(**one) for one in found["members"])
    except (PixelError, TypeError) as error:
        raise ArtifactError("E303", f"{path}: {error}", hint="pip install -U torchkiln") from error
    _check_members(members, path)
    return EnsembleFile(
        tuple(found["classes"]), contract, found["task"], members, found["decision"], found["found"], digest
    )


def _check_members(members: Sequence[Member], path: Path) -> None:
    for member in members:
        place = PurePosixPath(member.file)
        if place.is_absolute() or ".." in place.parts:
            what = f"{path} names a member outside its folder: {member.file!r}"
            raise SecurityError("E703", what, expected="a folder that holds everything")
    if not members or not abs(sum(member.weight for member in members) - 1) < 1e-6:
        raise ArtifactError("E303", f"{path}: the weights of its members do not sum to 1")
