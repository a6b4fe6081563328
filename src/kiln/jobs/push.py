"""`push`: a run's model and its card go to a Hugging Face hub, when asked, without secrets or places of this machine."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kiln.deployment.hub import check_endpoint, check_repository, upload
from kiln.errors import ArtifactError, UsageError
from kiln.jobs.export import export
from kiln.models.hub import hub_endpoint
from kiln.models.modelheader import read_header
from kiln.redact import places_in, redact, without_places
from kiln.reports.card import write_card
from kiln.run import CARD, ENVIRONMENT, MODEL, RECIPE, REPORT, RESOLVED, Run

README, ONNX = "README.md", "model.onnx"
TOKEN = "HF_TOKEN"
NAMES_OF_CLASSES = ("classes", "class_names")


@dataclass(frozen=True)
class Planned:
    """One file that is about to be uploaded: its name there and its size."""

    name: str
    num_bytes: int


@dataclass(frozen=True)
class Pushed:
    """What was uploaded, and the address of the commit."""

    repo: str
    url: str
    files: tuple[Planned, ...]


def push(
    run: str | os.PathLike[str] | Run,
    repo: str,
    *,
    private: bool = False,
    token_env: str | None = None,
    endpoint: str | None = None,
    with_onnx: bool = False,
    confirm: Callable[[Sequence[Planned]], bool] | None = None,
) -> Pushed:
    """Upload a run's model, its card as README.md, its report and its settings to a hub, as one commit.

    Args:
        run: the folder of a finished run.
        repo: `owner/name`; made if it is not there.
        private: whether a repository that is made now is private.
        token_env: the environment variable that holds the token; `HF_TOKEN`, or the client's login, without one.
        endpoint: address of the hub; `HF_ENDPOINT`, or the client's own, without one.
        with_onnx: also export the model to ONNX and upload that.
        confirm: is shown what would be uploaded, and says whether it may be; without it, calling is saying so.
    Raises: UsageError: no run, no token, a wrong name, or not confirmed. ArtifactError: the run has no model; the hub
        refuses or cannot be reached (E309). SecurityError (E704): an address that is not encrypted.
    """
    run = run if isinstance(run, Run) else Run(run)
    address = (endpoint or hub_endpoint()).rstrip("/")
    check_repository(repo)
    check_endpoint(address)
    if not run.model_file.is_file():
        raise ArtifactError("E307", f"{run.path} has no {MODEL}", hint=f"kiln resume {run.path}")
    token = _token(token_env)
    with tempfile.TemporaryDirectory(prefix="kiln-push-") as scratch:
        files = _files(run)
        if with_onnx:
            files[ONNX] = export(run, Path(scratch) / ONNX)
        planned = tuple(Planned(name, _size(file)) for name, file in files.items())
        if confirm is not None and not confirm(planned):
            raise UsageError("E103", "nothing was uploaded: it was not confirmed", hint="--yes uploads without asking")
        message = f"Upload {without_places(run.path.resolve().name)} by Kiln"
        url = upload(files, repo, token=token, endpoint=address, private=private, message=message)
    return Pushed(repo, url, planned)


def _token(token_env: str | None) -> str:
    from huggingface_hub import get_token

    token = os.environ.get(token_env or TOKEN, "").strip() or ("" if token_env else get_token() or "")
    if not token:
        what = f"no token: the variable {token_env or TOKEN} is not set"
        raise UsageError("E103", what, hint="make one with write access in the settings of the hub")
    return token


def _files(run: Run) -> dict[str, Path | bytes]:
    """Name in the repository -> the file as it is, or its text without places and secrets."""
    name = str(read_header(run.model_file)["spec"]["name"])
    if places_in(name):
        what = f"{MODEL} names the code {without_places(name)} by its absolute path on this machine"
        raise UsageError("E103", what, hint="train it under a relative path, or as package.module:name")
    card = run.path / CARD
    if not card.is_file():
        write_card(run)
    text, places = card.read_text(encoding="utf-8"), _places(run)
    files: dict[str, Path | bytes] = {
        MODEL: run.model_file,
        README: redact(_without_patterns(_cut(text, places))).encode(),
        RESOLVED: _clean_yaml(run.path / RESOLVED),
        RECIPE: _clean_yaml(run.path / RECIPE),
    }
    if (run.path / REPORT).is_file():
        # By what is known, not by pattern: a picture in a page is a text with many slashes.
        files[REPORT] = _cut((run.path / REPORT).read_text(encoding="utf-8"), places).encode()
    return files


def _places(run: Run) -> list[str]:
    """The absolute paths that a run names, and those of the run and the user; the longest first."""
    texts = [(run.path / name).read_text(encoding="utf-8") for name in (RECIPE, RESOLVED, ENVIRONMENT)]
    named = {place for text in texts for place in places_in(text)}
    data, home = run.recipe.data.path, run.path.resolve()
    own = {
        str(home),
        str(home.parent),
        str(home.parent.parent),
        str(Path.cwd()),
        str(Path.home()),
        str(run.path.absolute()),
    }
    own |= {data.rstrip("/")} if isinstance(data, str) and os.path.isabs(data) else set()
    return sorted((place for place in named | own if place.count("/") > 1), key=len, reverse=True)


def _cut(text: str, places: Sequence[str]) -> str:
    """A text with these paths cut down to their last part, however they are written."""
    for place in places:
        last = place.rpartition("/")[2]
        for written in (place, json.dumps(place)[1:-1], place.replace("/", "\\/"), place.replace("/", "&#47;")):
            text = text.replace(written, last)
    return text


def _without_patterns(text: str) -> str:
    """A text without absolute paths; what stands in backquotes, such as a class `/m/01`, stays."""
    parts = text.split("`")
    cleaned = ["\n".join(map(without_places, part.split("\n"))) for part in parts]
    return "`".join(part if index % 2 else cleaned[index] for index, part in enumerate(parts))


def _clean_yaml(path: Path) -> bytes:
    content = _clean(yaml.safe_load(path.read_text(encoding="utf-8")))
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode()


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return redact(without_places(value))
    if isinstance(value, Mapping):
        kept = {
            key: item if str(key).rpartition(".")[2] in NAMES_OF_CLASSES else _clean(item)
            for key, item in value.items()
        }
        return {without_places(key) if isinstance(key, str) else key: item for key, item in kept.items()}
    return [_clean(item) for item in value] if isinstance(value, list) else value


def _size(file: Path | bytes) -> int:
    return file.stat().st_size if isinstance(file, Path) else len(file)
