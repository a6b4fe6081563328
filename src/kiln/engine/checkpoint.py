"""Checkpoints that survive a power cut: written aside, hashed, synced, renamed; verified before they are believed.

A checkpoint is a folder `step-00000123` with one safetensors file per part, `state.json` and, written last,
`manifest.json` with the size and SHA-256 of every file. A folder without a manifest that verifies does not count.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from kiln.engine.codec import decode, encode
from kiln.errors import ArtifactError, ResourceError

KIND, VERSION = "kiln.checkpoint", 1


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: the tree that was saved, what was recorded beside it, and what had to be passed over."""

    path: Path
    step: int
    tree: dict[str, Any]
    about: dict[str, Any]
    passed_over: tuple[str, ...] = field(default=())


def folder_of(root: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return root / f"step-{step:08d}"


def committed_steps(root: Path) -> list[int]:
    """Steps of the committed checkpoints, oldest first. Not verified."""
    names = [p.name for p in root.iterdir()] if root.is_dir() else []
    return sorted(int(name[5:]) for name in names if name.startswith("step-") and name[5:].isdigit())


def write_checkpoint(root: Path, step: int, tree: dict[str, Any], *, about: dict[str, Any] | None = None) -> Path:
    """Save a tree so that after any crash either all of it is there or nothing.

    Args:
        root: the folder of checkpoints; made if need be.
        step: what the checkpoint is of; one that is there already is replaced.
        tree: parts by name; each part's tensors go into a file of their own.
        about: recorded in the manifest: versions, device, world size.
    Returns: the committed folder.
    Raises: ResourceError: the disk is full or cannot be written; earlier checkpoints are untouched.
    """
    skeleton, tensors = encode(tree)
    parts: dict[str, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition("/")
        parts.setdefault(part, {})[rest] = tensor
    target, staged = folder_of(root, step), root / f".tmp-step-{step}.{os.getpid()}"
    needed = sum(tensor.nbytes for tensor in tensors.values())
    try:
        root.mkdir(parents=True, exist_ok=True)
        _require_space(root, int(needed * 1.2) + 65536)
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir()
        files = {
            f"{part}.safetensors": _write(staged / f"{part}.safetensors", save_tensors(held))
            for part, held in parts.items()
        }
        files["state.json"] = _write(staged / "state.json", json.dumps(skeleton).encode())
        manifest = {"kind": KIND, "version": VERSION, "step": step, "files": files, "about": about or {}}
        _write(staged / "manifest.json", _sealed(manifest))
        _sync_folder(staged)
        if target.exists():
            _discard(target)
        staged.rename(target)
        _sync_folder(root)
    except OSError as error:
        shutil.rmtree(staged, ignore_errors=True)
        free = shutil.disk_usage(root).free if root.is_dir() else 0
        kept = committed_steps(root)
        raise ResourceError(
            "E401",
            f"cannot save a checkpoint of {needed / 2**20:.1f} MiB: {error.strerror or error}",
            where=f"{root} ({free / 2**20:.1f} MiB free)",
            kept=f"the checkpoints of steps {', '.join(map(str, kept))}" if kept else "no checkpoint yet",
            hint="free some space, then go on with --resume auto",
        ) from error
    return target


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and verify one checkpoint.

    Raises: ArtifactError: anything in it is damaged, missing or of a newer version; the message names the file.
    """
    manifest = _read_manifest(path)
    held: dict[str, bytes] = {}
    for name, (size, digest) in manifest["files"].items():
        if Path(name).name != name:
            raise ArtifactError("E302", f"the manifest names {name!r}", where=str(path))
        try:
            data = (path / name).read_bytes()
        except OSError as error:
            raise ArtifactError("E302", f"{name} is missing from the checkpoint", where=str(path)) from error
        if len(data) != size:
            raise ArtifactError("E302", f"{name} has {len(data)} bytes instead of {size}", where=str(path))
        if hashlib.sha256(data).hexdigest() != digest:
            raise ArtifactError("E302", f"{name} does not match its checksum", where=str(path))
        held[name] = data
    try:
        tensors = {
            "/".join(filter(None, (name.removesuffix(".safetensors"), key))): tensor
            for name, data in held.items()
            if name.endswith(".safetensors")
            for key, tensor in load_tensors(data).items()
        }
        tree = decode(json.loads(held["state.json"]), tensors)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ArtifactError("E302", f"the checkpoint cannot be decoded: {error}", where=str(path)) from error
    return Checkpoint(path, manifest["step"], tree, manifest["about"])


def read_about(path: Path) -> dict[str, Any]:
    """What was recorded beside a checkpoint; its tensors are not read.

    Raises: ArtifactError: the manifest is damaged, missing or of a newer version.
    """
    return _read_manifest(path)["about"]


def newest_checkpoint(root: Path) -> Checkpoint | None:
    """The newest checkpoint that verifies; damaged ones are set aside as `.bad-` and named in `passed_over`.

    Raises: ArtifactError: there are checkpoints, but none verifies; or one is of a newer version.
    """
    passed_over: list[str] = []
    for step in reversed(committed_steps(root)):
        path = folder_of(root, step)
        try:
            found = read_checkpoint(path)
        except ArtifactError as error:
            if error.code == "E303":
                raise
            passed_over.append(f"{path.name}: {error.what}")
            path.rename(_unused(root / f".bad-{path.name}"))
            continue
        return Checkpoint(found.path, found.step, found.tree, found.about, tuple(passed_over))
    if passed_over:
        raise ArtifactError(
            "E302",
            f"no checkpoint in {root} can be read",
            details=passed_over,
            hint="start anew, or restore from a backup",
        )
    return None


def retain(root: Path, *, keep: int, also: Iterable[int] = ()) -> None:
    """Delete all but the newest `keep` (at least 2) checkpoints and those of the steps in `also`."""
    steps = committed_steps(root)
    for step in set(steps[: -max(keep, 2)]) - set(also):
        _discard(folder_of(root, step))


def clean(root: Path) -> None:
    """Remove what an interrupted save or deletion left behind. Call with the run's lock held."""
    for leftover in [*root.glob(".tmp-step-*"), *root.glob(".del-*")]:
        shutil.rmtree(leftover, ignore_errors=True)


def _sealed(manifest: dict[str, Any]) -> bytes:
    """The manifest as bytes, with a checksum of its own: it is the one file that no other vouches for."""
    unsealed = {key: value for key, value in manifest.items() if key != "seal"}
    seal = hashlib.sha256(json.dumps(unsealed, indent=1).encode()).hexdigest()
    return json.dumps({**unsealed, "seal": seal}, indent=1).encode()


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        data = (path / "manifest.json").read_bytes()
    except OSError as error:
        raise ArtifactError("E302", "manifest.json is missing from the checkpoint", where=str(path)) from error
    try:
        manifest = json.loads(data)
        intact = manifest["kind"] == KIND and data == _sealed(manifest)
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError("E302", "manifest.json is damaged", where=str(path)) from error
    if not intact:
        raise ArtifactError("E302", "manifest.json is damaged", where=str(path))
    if manifest["version"] > VERSION:
        raise ArtifactError(
            "E303",
            f"the checkpoint has format {manifest['version']}; this Kiln reads up to {VERSION}",
            where=str(path),
            hint="update torchkiln",
        )
    if path.name != folder_of(path.parent, manifest["step"]).name:
        raise ArtifactError(
            "E302", f"the folder is named {path.name}, but holds step {manifest['step']}", where=str(path)
        )
    return manifest


def _write(path: Path, data: bytes) -> tuple[int, str]:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return len(data), hashlib.sha256(data).hexdigest()


def _sync_folder(path: Path) -> None:
    if os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _discard(path: Path) -> None:
    """Take a checkpoint out of sight first, so that a crash never leaves half of one under its name."""
    hidden = _unused(path.with_name(f".del-{path.name}"))
    path.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _unused(path: Path) -> Path:
    candidates: Callable[[int], Path] = lambda n: path if n == 0 else path.with_name(f"{path.name}.{n}")  # noqa: E731
    return next(candidates(n) for n in range(10_000) if not candidates(n).exists())


def _require_space(root: Path, needed: int) -> None:
    if shutil.disk_usage(root).free < needed:
        raise OSError(28, f"{needed / 2**20:.1f} MiB needed")
