"""Files of the Hugging Face hub: its client asks, `download` fetches what is large, and the hub's own cache keeps it.

The client begins a transfer anew in each process; ours goes on with it. Authorisation, redirection, the layout of the
cache and small files are the client's.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kiln.errors import ArtifactError
from kiln.models import download
from kiln.models.arrivals import arrived_promise, note_arrival
from kiln.models.integrity import Promise

HUB_FILES = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
WAYS = (
    "- --weights FILE: a file you have (.safetensors, a Kiln model file, .pth)",
    "- --weights none: start from scratch, and expect less from few images",
)
_WAYS_FOR_A_DESCRIPTION = (
    "- --model NAME: an architecture that `kiln models` lists needs no description from the hub",
)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ASK_SECONDS = 5.0


def hub_file(repo: str, names: Sequence[str]) -> Path:
    """The first of these files that a hub repository has, from the hub's own cache or downloaded into it.

    Args:
        repo: `owner/name`, or `owner/name@revision`.
        names: file names, the preferred one first.

    Raises:
        ArtifactError: not cached and not reachable, or no such repository or file (E301); not what the hub promises, or
            damaged since (E307).
        ResourceError (E401): no room.
    """
    for name in names:
        if (cached := cached_hub_file(repo, name)) is not None:
            if problem := cached_promise(cached).problem(cached):
                raise ArtifactError("E307", f"{cached}: {problem}", hint=f"delete {cached.resolve()}")
            return cached
    if reason := download.offline_reason():
        raise _not_had(repo, names[0], reason)
    failures: list[_Failed] = []
    for endpoint in (*(f"{place}/huggingface.co" for place in download.mirrors()), hub_endpoint()):
        download.refuse_insecure(endpoint)
        for name in names:
            try:
                return _fetch(repo, name, endpoint)
            except _Absent:
                continue
            except _Failed as failure:
                failures.append(failure)
                break
        else:
            failures.append(_Failed(f"{endpoint}: the repository has none of these files: {', '.join(names)}"))
    raise _not_had(
        repo,
        names[0],
        "; ".join(map(str, failures)),
        code="E307" if any(failure.code == "E307" for failure in failures) else "E301",
        kept="; ".join(failure.kept for failure in failures if failure.kept),
    )


def cached_hub_file(repo: str, name: str) -> Path | None:
    """A file of the hub's cache: the asked revision, else `main`, else any snapshot, such as one made by hand."""
    revision = repo.partition("@")[2]
    folder = _repo_folder(repo)
    reference = folder / "refs" / (revision or "main")
    wanted = reference.read_text().strip() if reference.is_file() else revision
    if wanted and (folder / "snapshots" / wanted / name).is_file():
        return folder / "snapshots" / wanted / name
    if revision:
        return None
    found = sorted(folder.glob(f"snapshots/*/{name}"), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else None


def cached_promise(path: Path) -> Promise:
    """What the hub's cache promises about a file: it names large ones by their SHA-256; else the hash it arrived with."""
    name = path.resolve().name
    return Promise(name) if _SHA256.fullmatch(name) else arrived_promise(path)


def hub_copies(repo: str, name: str) -> list[Path]:
    """A file of a repository in all snapshots of the hub's cache; of the asked revision's alone, where one is asked."""
    if repo.partition("@")[2]:
        found = cached_hub_file(repo, name)
        return [] if found is None else [found]
    return sorted(_repo_folder(repo).glob(f"snapshots/*/{name}"))


def hub_endpoint() -> str:
    """Where the hub is: `HF_ENDPOINT`, or its own address."""
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def hub_cache() -> Path:
    """Where the hub keeps its files: `HF_HUB_CACHE`, or `hub` in `HF_HOME`, or its own place."""
    from huggingface_hub import constants

    if "HF_HUB_CACHE" in os.environ:
        return Path(os.environ["HF_HUB_CACHE"])
    return Path(os.environ["HF_HOME"]) / "hub" if "HF_HOME" in os.environ else Path(constants.HF_HUB_CACHE)


def hub_address(repo: str, name: str, endpoint: str = "") -> str:
    """Where a file of a hub repository can be fetched."""
    repo_id, _, revision = repo.partition("@")
    return f"{endpoint or hub_endpoint()}/{repo_id}/resolve/{revision or 'main'}/{name}"


def asked_promise(repo: str, name: str) -> Promise:
    """What the hub promises about a file now; nothing where it cannot be asked, or does not say."""
    if download.offline_reason():
        return Promise()
    try:
        about = _ask(hub_address(repo, name))
    except (_Absent, _Failed):
        return Promise()
    return Promise(about.etag, about.size) if about.etag and _SHA256.fullmatch(about.etag) else Promise()


def path_by_hand(repo: str, name: str) -> Path:
    """Where to put a file of a hub repository that was fetched by hand."""
    return _repo_folder(repo) / "snapshots" / (repo.partition("@")[2] or "by-hand") / name


def _repo_folder(repo: str) -> Path:
    return hub_cache() / f"models--{repo.partition('@')[0].replace('/', '--')}"


class _Failed(Exception):  # noqa: N818 (the next place may have it)
    def __init__(self, reason: str, *, code: str = "E301", kept: str = "") -> None:
        self.code, self.kept = code, kept
        super().__init__(reason)


class _Absent(Exception):  # noqa: N818 (the repository may have the next file)
    pass


def _fetch(repo: str, name: str, endpoint: str) -> Path:
    """Bring a file into the hub's cache."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import build_hf_headers

    about = _ask(hub_address(repo, name, endpoint))
    if about.commit_hash is None or about.etag is None:  # a plain copy of the files, such as `wget -x` makes
        target = path_by_hand(repo, name)
        address = hub_address(repo, name, endpoint)
        _downloaded(address, target, Promise(num_bytes=about.size), {})
        note_arrival(target, download.public_address(address))
        return target
    if _SHA256.fullmatch(about.etag):
        pinned = hub_address(f"{repo.partition('@')[0]}@{about.commit_hash}", name, endpoint)
        token = {key: value for key, value in build_hf_headers().items() if key.lower() == "authorization"}
        blob = _repo_folder(repo) / "blobs" / about.etag
        _downloaded(pinned, blob, Promise(about.etag, about.size), token)
    repo_id, _, revision = repo.partition("@")
    # Finds the blob and gives it its name; fetches what is small.
    arguments = {"revision": revision or None, "endpoint": endpoint, "cache_dir": hub_cache()}
    return Path(_asked(lambda: hf_hub_download(repo_id, name, **arguments, etag_timeout=_ASK_SECONDS)))


def _downloaded(address: str, target: Path, promise: Promise, headers: dict[str, str]) -> Path:
    name = address.rpartition("/")[2]
    try:
        download.download((address,), target, promise=promise, headers=headers, name=name)
    except ArtifactError as error:
        raise _Failed(error.what, code=error.code, kept=error.kept) from error
    return target


def _ask(address: str) -> Any:
    """What the hub says about a file: commit, ETag, size."""
    from huggingface_hub import get_hf_file_metadata

    return _asked(lambda: get_hf_file_metadata(address, timeout=_ASK_SECONDS))


def _asked(question: Any) -> Any:
    """The answer of the hub's client, asked again where it says that the hub is busy."""
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    # The client has changed its HTTP library before; the base of its own error tells which one it uses.
    transport_errors: Any = (*HfHubHTTPError.__bases__, OSError, ValueError)
    patience = download.PATIENT
    for attempt in range(1, patience.tries + 1):
        try:
            return question()
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError):
                raise _Failed(f"the hub cannot be reached ({_first_line(error)})") from error
            raise _Absent from error
        except HfHubHTTPError as error:
            status = getattr(error.response, "status_code", 0)
            if status not in download.WORTH_ANOTHER_TRY or attempt == patience.tries:
                raise _Failed(_first_line(error)) from error
            time.sleep(min(patience.pause_seconds * 2 ** (attempt - 1), download.LONGEST_PAUSE_SECONDS))
        except transport_errors as error:
            raise _Failed(f"the hub cannot be reached ({_first_line(error)})") from error
    return None  # never: the last attempt returns or raises


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _not_had(repo: str, name: str, reason: str, *, code: str = "E301", kept: str = "") -> ArtifactError:
    by_hand = f"- fetch {hub_address(repo, name)} elsewhere and put it at {path_by_hand(repo, name)}"
    more = _WAYS_FOR_A_DESCRIPTION if name.endswith(".json") else WAYS
    what = f"{name} of {repo} is not in the cache, and {reason}"
    return ArtifactError(code, what, details=["ways out:", by_hand, *more], kept=kept)
