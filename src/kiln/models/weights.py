"""Where weights come from: the Hugging Face hub, a publisher's address, or a file. Always a state dict, never a pickle.

Caches are looked at first, so a run with cached weights makes no connection and gives the same weights next year. What
is neither cached nor reachable is an error that names the ways out, never a silent start from scratch.
"""

from __future__ import annotations

import hashlib
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from kiln.errors import ArtifactError, UsageError
from kiln.models.convert import convert
from kiln.models.seal import ANOTHER_COPY

HUB_FILES = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
CONNECT_SECONDS = 5.0
_HASH = re.compile(r"-([0-9a-f]{8,64})\.")  # torchvision and timm write the start of the SHA-256 into the name


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a weight file: safetensors as they are, anything else through `convert`.

    Raises: ArtifactError, SecurityError, ResourceError: see `convert`. UsageError (E102): no such file.
    """
    if not path.is_file():
        raise UsageError(
            "E102", f"weights = {str(path)!r}: no such file", expected="none, pretrained, a file or hf-hub:…"
        )
    if not is_safetensors(path):
        path = convert(path)
    try:
        return load_file(path)
    except (SafetensorError, ValueError, OSError) as error:
        raise ArtifactError("E307", f"{path} is damaged: {error}", hint=ANOTHER_COPY) from error


def is_safetensors(path: Path) -> bool:
    """Whether a file is safetensors, by its content where that can tell, by its name where it is damaged."""
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:9] == b"{" or path.suffix == ".safetensors"


def metadata_of(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file; empty for any other file."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError):
        return {}


# --- the Hugging Face hub ---------------------------------------------------------------------------------------------


def hub_file(repo: str, names: Sequence[str]) -> Path:
    """The first of these files that a hub repository has, from the hub's own cache or downloaded into it.

    Args:
        repo: `owner/name`, or `owner/name@revision`.
        names: file names, the preferred one first.

    Raises: ArtifactError (E301): not cached and not reachable, or no such repository or file.
    """
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    repo_id, _, revision = repo.partition("@")
    for name in names:
        if (cached := _cached_hub_file(repo_id, name, revision)) is not None:
            return cached
    if (reason := _unreachable()) is not None:
        raise _no_hub_file(repo, names, reason)
    for name in names:
        try:
            return _download_from_hub(repo_id, name, revision or None)
        except LocalEntryNotFoundError as error:
            raise _no_hub_file(repo, names, str(error).splitlines()[0]) from error
        except EntryNotFoundError:
            continue
        except (HfHubHTTPError, OSError, ValueError) as error:
            raise _no_hub_file(repo, names, str(error).splitlines()[0]) from error
    raise _no_hub_file(repo, names, "the repository has none of these files")


def _download_from_hub(repo_id: str, name: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(
        hf_hub_download(
            repo_id, name, revision=revision, endpoint=_endpoint(), etag_timeout=CONNECT_SECONDS, library_name="kiln"
        )
    )


def _endpoint() -> str:
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def _hub_cache() -> Path:
    from huggingface_hub import constants

    if "HF_HUB_CACHE" in os.environ:
        return Path(os.environ["HF_HUB_CACHE"])
    return Path(os.environ["HF_HOME"]) / "hub" if "HF_HOME" in os.environ else Path(constants.HF_HUB_CACHE)


def _repo_folder(repo_id: str) -> Path:
    return _hub_cache() / f"models--{repo_id.replace('/', '--')}"


def _cached_hub_file(repo_id: str, name: str, revision: str) -> Path | None:
    """A file of the hub's cache: the asked revision, else `main`, else any snapshot, such as one made by hand."""
    folder = _repo_folder(repo_id)
    reference = folder / "refs" / (revision or "main")
    wanted = reference.read_text().strip() if reference.is_file() else revision
    if wanted and (folder / "snapshots" / wanted / name).is_file():
        return folder / "snapshots" / wanted / name
    if revision:
        return None
    found = sorted(folder.glob(f"snapshots/*/{name}"), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else None


def _unreachable() -> str | None:
    """Why the hub cannot be asked, found within seconds; its own client retries for half a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "HF_HUB_OFFLINE is set"
    request = urllib.request.Request(_endpoint(), method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=CONNECT_SECONDS).close()
    except urllib.error.HTTPError:
        return None  # it answers
    except OSError as error:
        return f"{_endpoint()} cannot be reached ({getattr(error, 'reason', error)})"
    return None


def _no_hub_file(repo: str, names: Sequence[str], reason: str) -> ArtifactError:
    repo_id, _, revision = repo.partition("@")
    name = names[0]
    target = _repo_folder(repo_id) / "snapshots" / (revision or "by-hand") / name
    return _cannot_be_had(
        f"{name} of {repo} is not in the cache, and {reason}",
        f"{_endpoint()}/{repo_id}/resolve/{revision or 'main'}/{name}",
        target,
    )


def _cannot_be_had(what: str, address: str, target: Path) -> ArtifactError:
    ways = ["ways out:", f"- fetch {address} elsewhere and put it at {target}"]
    if target.name.endswith(".json"):
        ways.append("- --model NAME: an architecture that `kiln models` lists needs no description from the hub")
    else:
        ways.append("- --weights FILE: a file you have (.safetensors, a Kiln model file, .pth)")
        ways.append("- --weights none: start from scratch, and expect less from few images")
    return ArtifactError("E301", what, details=ways)


# --- a publisher's address --------------------------------------------------------------------------------------------


def url_file(url: str, file_name: str | None = None) -> Path:
    """A published weight file, from torch's hub cache or downloaded into it; checked against the hash in its name.

    Raises: ArtifactError: it cannot be had (E301), or is not what the name promises (E307).
    """
    name = file_name or Path(urllib.parse.urlparse(url).path).name
    target = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not target.is_file():
        _download(url, target)
    promised = _HASH.search(name)
    if promised:
        with target.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if not digest.startswith(promised[1]):
            hint = f"delete it and fetch {url} again"
            raise ArtifactError("E307", f"{target} is not the file its name promises: SHA-256 is {digest}", hint=hint)
    return target


def _download(url: str, target: Path) -> None:
    if urllib.parse.urlparse(url).scheme != "https":
        raise ArtifactError("E301", f"{url}: weights are fetched over https only")
    part = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(url, timeout=CONNECT_SECONDS) as answer, part.open("wb") as file:
            while chunk := answer.read(1 << 20):
                file.write(chunk)
        part.replace(target)
    except OSError as error:
        part.unlink(missing_ok=True)
        reason = f"not in the cache, and cannot be fetched ({getattr(error, 'reason', error)})"
        raise _cannot_be_had(f"{target.name} is {reason}", url, target) from error


# --- what a timm or torchvision name promises -------------------------------------------------------------------------


def timm_state(cfg: Any, name: str) -> tuple[dict[str, Tensor], str]:
    """The published weights of a timm model, and where they came from.

    Args:
        cfg: its `PretrainedCfg`.
        name: for messages.

    Raises: ArtifactError (E301): nobody published any, or they cannot be had.
    """
    if cfg.hf_hub_id:
        names = (cfg.hf_hub_filename,) if cfg.hf_hub_filename else HUB_FILES
        return read_state(hub_file(cfg.hf_hub_id, names)), cfg.hf_hub_id
    if cfg.url:
        url, file_name = cfg.url if isinstance(cfg.url, tuple) else (cfg.url, None)
        return read_state(url_file(url, file_name)), url
    raise ArtifactError(
        "E301", f"nobody published weights for {name}", hint="--weights none, or `kiln models --pretrained`"
    )
