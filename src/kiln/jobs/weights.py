"""The verb `weights`: which published weights are here, and how to bring, check, place by hand and remove them."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from kiln.errors import ArtifactError
from kiln.models.arrivals import arrived_from, forget_arrival
from kiln.models.convert import cache_folder, converted_form
from kiln.models.download import drop_unfinished
from kiln.models.hub import asked_promise, cached_promise, hub_cache
from kiln.models.integrity import Promise, hash_in_name, sha256_of
from kiln.models.published import Published, published_as
from kiln.models.seal import verify_seal

SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".th", ".tar")
UNKNOWN = "its form is whole; no hash is known"


def list_weights(pattern: str = "*") -> list[dict[str, Any]]:
    """The weight files that are here, in the caches of the hub, of torch and of Kiln; unfinished downloads last.

    Args:
        pattern: of the repository or file, with `*`, `?` and `[..]`; a word without them is looked for anywhere.

    Returns: a row per file: `name` (a repository, an address, or the file's), `file`, `cache` (hub, torch, kiln,
        converted, unfinished), `bytes`, `path`.
    """
    pattern = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    return [
        row
        for row in _rows()
        if fnmatch.fnmatch(row["name"].lower(), pattern.lower()) or fnmatch.fnmatch(row["file"], pattern)
    ]


def fetch_weights(names: Sequence[str]) -> list[dict[str, Any]]:
    """Bring published weights here, verified; those that are here are verified and left alone.

    Args:
        names: as for `published_as`: a model, a torchvision entry, `hf-hub:OWNER/NAME` or `https://...`.

    Returns: a row per name: `name`, `url`, `sha256`, `bytes`, `path`, `fetched` (whether it was brought now).
    Raises: KilnError: see `Published.obtain`.
    """
    rows = []
    for name in names:
        published = published_as(name)
        was_here = published.find() is not None
        path = published.obtain()
        origin = published.origin(path)
        rows.append(
            {
                "name": name,
                "url": origin.url,
                "sha256": origin.sha256,
                "bytes": path.stat().st_size,
                "path": str(path),
                "fetched": not was_here,
            }
        )
    return rows


def verify_weights(names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Compare weight files with their hash, where one is known, and else with what their form states.

    Args:
        names: as for `published_as`, or files; none means all that are here. For a named file of the hub that was put
            there by hand, the hub is asked for its hash, unless it cannot be reached.

    Returns: a row per file: `name`, `path`, `whole`, `verdict`, `sha256`.
    Raises: ArtifactError (E301): a name whose file is not here.
    """
    if not names:
        there = (row for row in _rows() if row["cache"] != "unfinished")
        return [_verified(row["name"], Path(row["path"])) for row in there]
    rows = []
    for name in names:
        if Path(name).is_file():
            rows.append(_verified(name, Path(name)))
            continue
        published = published_as(name)
        path = published.find()
        if path is None:
            hint = f"kiln weights fetch {name}, or kiln weights where {name}"
            raise ArtifactError("E301", f"the weights of {name} are not here", hint=hint)
        promise = published.promise_for(path)
        if published.repo and not promise.sha256:  # put there by hand
            promise = asked_promise(published.repo, path.name if path.name in published.choices else published.file)
        rows.append(_verified(name, path, promise))
    return rows


def where_weights(names: Sequence[str]) -> list[dict[str, Any]]:
    """What it takes to fetch weights by hand. Makes no connection.

    Args:
        names: as for `published_as`.

    Returns: a row per name: `name`, `url`, `sha256` (whole, or its start, or empty), `page` (of the hub, which
        shows the hash), `here` (the file, where it is
        here, else None), `path` (where to put it on this machine), `beside` (the name under which it is found beside the
        script), and `usual`, the places on `Linux`, `macOS` and `Windows` without settings of the user's own.
    """
    rows = []
    for name in names:
        published = published_as(name)
        found = published.find()
        known = published.promise_for(found).sha256 if found else published.sha256
        page = published.address.replace("/resolve/", "/blob/") if published.repo else ""
        rows.append(
            {
                "name": name,
                "url": published.address,
                "sha256": known,
                "page": page,
                "here": str(found) if found else None,
                "path": str(published.target),
                "beside": published.beside,
                "usual": usual_places(published),
            }
        )
    return rows


def usual_places(published: Published) -> dict[str, str]:
    """Where a published file belongs on each system, without settings of the user's own."""
    below, root = (hub_cache(), "huggingface/hub") if published.repo else (None, "torch/hub/checkpoints")
    if not published.repo and not hash_in_name(published.file):
        inside = "/".join(published.target.parts[-3:])
        windows = inside.replace("/", "\\")
        return {
            "Linux": f"~/.cache/kiln/{inside}",
            "macOS": f"~/Library/Caches/kiln/{inside}",
            "Windows": rf"%LOCALAPPDATA%\kiln\kiln\Cache\{windows}",
        }
    inside = published.target.relative_to(below).as_posix() if below else published.file
    path = f".cache/{root}/{inside}"
    windows = path.replace("/", "\\")
    return {"Linux": f"~/{path}", "macOS": f"~/{path}", "Windows": rf"%USERPROFILE%\{windows}"}


def clear_weights(names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Remove weight files.

    Args:
        names: as for `published_as`: what is theirs is removed from every cache, also from those that other programs
            share. None means what is Kiln's own: converted copies, downloads of the user's addresses, and what is
            unfinished anywhere; a download that goes on meanwhile is left alone.

    Returns: the rows of `list_weights` that were removed.
    """
    if not names:
        return [row for row in _rows() if row["cache"] in ("kiln", "converted", "unfinished") and _remove(row)]
    paths: set[Path] = set()
    for name in names:
        published = published_as(name)
        whole = {path for path in published.everywhere() if path.is_file()}
        paths |= whole | {_unfinished(path) for path in published.everywhere()}
        paths |= {converted_form(path) for path in whole if path.suffix != ".safetensors"}
        if published.repo:
            paths |= {Path(row["path"]) for row in _rows() if _is_unfinished_of(row, published.repo)}
    return [row for row in _rows() if Path(row["path"]) in paths and _remove(row)]


def _unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def _is_unfinished_of(row: dict[str, Any], repo: str) -> bool:
    return row["cache"] == "unfinished" and row["name"] == repo.partition("@")[0]


def _rows() -> list[dict[str, Any]]:
    hub, torch_folder = hub_cache(), Path(torch.hub.get_dir()) / "checkpoints"
    downloads, converted = cache_folder("downloads"), cache_folder("weights")
    rows = [
        *(_row(path, "hub", _repo_of(path, hub)) for path in _weight_files(hub.glob("models--*/snapshots/*/**/*"))),
        *(_row(path, "torch") for path in _weight_files(torch_folder.glob("*"))),
        *(_row(path, "kiln", arrived_from(path)) for path in _weight_files(downloads.glob("*/*"))),
        *(_row(path, "converted") for path in _weight_files(converted.glob("*"))),
    ]
    unfinished = (hub.glob("models--*/blobs/.*.part"), torch_folder.glob(".*.part"), downloads.glob("*/.*.part"))
    rows += [_row(path, "unfinished", _repo_of(path, hub)) for paths in unfinished for path in sorted(paths)]
    return rows


def _weight_files(paths: Iterable[Path]) -> Iterator[Path]:
    return (path for path in sorted(paths) if path.suffix in SUFFIXES and path.is_file() and path.name[0] != ".")


def _row(path: Path, cache: str, name: str = "") -> dict[str, Any]:
    file = path.name.removesuffix(".part").lstrip(".") if cache == "unfinished" else path.name
    return {"name": name or file, "file": file, "cache": cache, "bytes": path.stat().st_size, "path": str(path)}


def _repo_of(path: Path, hub: Path) -> str:
    folder = path.relative_to(hub).parts[0] if path.is_relative_to(hub) else ""
    return folder.removeprefix("models--").replace("--", "/", 1)


def _verified(name: str, path: Path, promise: Promise | None = None) -> dict[str, Any]:
    if promise is None:
        promise = cached_promise(path)
        promise = promise if promise.sha256 else Promise(hash_in_name(path.name))
    problem = promise.problem(path)
    known = bool(promise.sha256)
    if not problem and path.parent == cache_folder("weights"):
        known = True
        try:
            verify_seal(path)
        except ArtifactError as error:
            problem = error.what
    verdict = problem or ("as promised" if known else UNKNOWN)
    return {"name": name, "path": str(path), "whole": not problem, "verdict": verdict, "sha256": sha256_of(path)}


def _remove(row: dict[str, Any]) -> bool:
    path = Path(row["path"])
    if row["cache"] == "unfinished":
        return drop_unfinished(path.with_name(row["file"]))
    if row["cache"] == "hub":  # the name leads to the content, which other revisions may share
        content = path.resolve()
        for other in path.parents[1].glob(f"*/{path.name}"):
            if other.resolve() == content:
                other.unlink()
        content.unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    forget_arrival(path)
    return True
