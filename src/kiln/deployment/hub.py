"""Uploading to a Hugging Face hub through its own client; what it refuses is said with what to do about it."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kiln.errors import ArtifactError, KilnError, SecurityError, UsageError
from kiln.models.download import offline_reason
from kiln.redact import HIDDEN, redact

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_ADVICE = {
    400: "the hub does not take the card as it is: correct MODEL_CARD.md",
    401: "the token is not known there: make one with write access, and name its variable by --token-env",
    403: "the token may not write there: one with write access, or a repository of your own",
    404: "no such place: look at the owner's name and the token's rights",
    409: "somebody else changed the repository meanwhile: push again",
    412: "somebody else changed the repository meanwhile: push again",
    413: "the hub takes no file of that size",
    429: "the hub is busy: wait, and push again",
}
_AGAIN = "push again: what has arrived is not sent twice"


def check_repository(repo: str) -> None:
    """Hold that a name is `owner/name`. Raises: UsageError (E102)."""
    if not _REPOSITORY.fullmatch(repo):
        raise UsageError("E102", f"repository = {repo!r}", expected="OWNER/NAME")


def check_endpoint(address: str) -> None:
    """Hold that a token and a model may travel there: https, or plain http to this machine.

    Raises: SecurityError (E704).
    """
    parts = urlsplit(address)
    if parts.scheme == "https" and parts.hostname:
        return
    if parts.scheme != "http" or not _is_here(parts.hostname or ""):
        raise SecurityError(
            "E704", f"{redact(address)}: a model and a token go out over https only", expected="https://..."
        )


def _is_here(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def upload(
    files: Mapping[str, Path | bytes], repo: str, *, token: str, endpoint: str, private: bool, message: str
) -> str:
    """Make a model repository, unless it is there, and put files into it as one commit.

    Args:
        files: name in the repository -> the file, or what is in it.
        repo: `owner/name`.
        token: one that may write there.
        endpoint: address of the hub.
        private: whether a repository that is made now is private; one that is there stays as it is.
        message: of the commit.
    Returns: the address of the commit.
    Raises: UsageError, SecurityError: a wrong name or address. ArtifactError (E309): the hub refuses, or cannot be
        reached; a commit is whole or absent.
    """
    check_repository(repo)
    check_endpoint(endpoint)
    if reason := offline_reason():
        raise ArtifactError("E309", f"nothing can be uploaded: {reason}")
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(endpoint=endpoint, token=token, library_name="kiln")
    added = [CommitOperationAdd(name, str(file) if isinstance(file, Path) else file) for name, file in files.items()]
    # The client has changed its HTTP library before; the base of its own error tells which one it uses.
    failures: Any = (*HfHubHTTPError.__bases__, OSError, ValueError, RuntimeError)
    try:
        api.create_repo(repo, private=private or None, repo_type="model", exist_ok=True)
        return str(api.create_commit(repo, added, commit_message=message, repo_type="model").commit_url)
    except failures as error:
        raise _refused(error, repo, endpoint, token) from None  # the client's own error may show the token


def _refused(error: BaseException, repo: str, endpoint: str, token: str) -> KilnError:
    """What went wrong at the hub, without the token."""
    cause, status = _cause(error)
    text = (str(cause).strip() or type(cause).__name__).replace(token, HIDDEN)
    lines = [line.strip() for line in redact(text).splitlines() if line.strip()]
    place = urlsplit(endpoint).netloc
    if status:
        what = f"{place} refused {repo}: status {status}"
        hint = _ADVICE.get(status, _AGAIN)
    else:
        what, hint = f"{repo} was not uploaded to {place}: {type(cause).__name__}", _AGAIN
    return ArtifactError(
        "E309", what, details=lines[:5], hint=hint, kept="the run; the repository has no part of this commit"
    )


def _cause(error: BaseException) -> tuple[BaseException, int]:
    """The innermost error, or the one with the hub's answer, and the status of that answer."""
    at: BaseException | None = error
    last = error
    while at is not None:
        status = getattr(getattr(at, "response", None), "status_code", 0)
        if status:
            return at, int(status)
        last, at = at, at.__cause__
    return last, 0
