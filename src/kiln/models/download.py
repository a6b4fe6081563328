"""Fetch a file so that it is there whole and verified, or not there at all.

Bytes go into a hidden `.NAME.part` beside the target, together with a note of where they came from. An interrupted
transfer goes on from there: after a cut, a kill or a power cut, in the same process or the next. Only when the file is
complete and is what was promised does it get its name. One process at a time fetches a file; others wait and find it.
"""

from __future__ import annotations

import hashlib
import http.client
import ipaddress
import logging
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from kiln.errors import ArtifactError, ResourceError, SecurityError
from kiln.models.convert import cache_folder
from kiln.models.integrity import Promise
from kiln.models.partial import SYNC_BYTES, Part

if TYPE_CHECKING:
    from filelock import FileLock

CHUNK_BYTES = 1 << 20
PROGRESS_BYTES = 1 << 20  # a try that brought this much was not in vain
LONGEST_PAUSE_SECONDS = 30.0
WORTH_ANOTHER_TRY = frozenset({408, 425, 429, 500, 502, 503, 504})
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Patience:
    """How long to wait for a server.

    Attributes:
        silence_seconds: without a byte, while connecting too.
        tries: in a row that bring less than 1 MiB; an address where nobody answers gets two.
        pause_seconds: before the second try; doubled each time, at most 30.
        slow_seconds: within which `slow_bytes` have to arrive, or the connection is made anew.
        slow_bytes: see there.
    """

    silence_seconds: float = 20.0
    tries: int = 5
    pause_seconds: float = 1.0
    slow_seconds: float = 60.0
    slow_bytes: int = 1 << 16


PATIENT = Patience()


def offline_reason() -> str:
    """Which variable forbids connections, as a sentence; nothing where none does."""
    for name in ("KILN_OFFLINE", "HF_HUB_OFFLINE"):
        if os.environ.get(name, "").strip().upper() not in ("", "0", "OFF", "NO", "FALSE", "N", "F"):
            return f"{name} is set"
    return ""


def mirrors() -> tuple[str, ...]:
    """The places of `KILN_MIRROR`, separated by spaces or commas: each holds files as `PLACE/HOST/PATH`."""
    return tuple(place.rstrip("/") for place in re.split(r"[\s,]+", os.environ.get("KILN_MIRROR", "")) if place)


def with_mirrors(address: str) -> tuple[str, ...]:
    """The addresses to try for a published one, in order: on each mirror, then at the publisher."""
    parts = urlsplit(address)
    rest = f"{parts.netloc}{parts.path}" + (f"?{parts.query}" if parts.query else "")
    return (*(f"{place}/{rest}" for place in mirrors()), address)


def public_address(address: str) -> str:
    """An address as it may be written down: without user, password, query (signatures) and fragment."""
    parts = urlsplit(address)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def refuse_insecure(address: str) -> None:
    """Raise unless an address is https, or plain http to this machine or to a host the user named as a source.

    Raises: SecurityError (E704): anything else.
    """
    parts = urlsplit(address)
    if parts.scheme == "https" or (parts.scheme == "http" and _is_known_host(parts.hostname or "")):
        return
    hint = f"https://{parts.netloc}{parts.path}, or fetch it by hand and give --weights FILE"
    raise SecurityError("E704", f"{public_address(address)}: weights are fetched over https only", hint=hint)


def _is_known_host(host: str) -> bool:
    try:
        if host == "localhost" or ipaddress.ip_address(host).is_loopback:
            return True
    except ValueError:
        pass
    named = (os.environ.get("HF_ENDPOINT", ""), *mirrors())
    return host in {urlsplit(place).hostname for place in named if urlsplit(place).scheme == "http"}


def download(
    addresses: Sequence[str],
    target: Path,
    *,
    promise: Promise | None = None,
    headers: Mapping[str, str] | None = None,
    patience: Patience | None = None,
    ways: Sequence[str] = (),
    name: str = "",
) -> str:
    """Bring a file to `target`, from the first address that gives the promised one. Waits for the network.

    Args:
        addresses: of the same file, tried in order.
        target: is replaced only by a verified file; an existing one that is as promised is left alone.
        promise: hash and length, where they are known. Without a hash, the file's form must say that it is whole.
        headers: for the first request of each address only, not for where it redirects to (tokens).
        patience: with servers.
        ways: further ways out, for the error.
        name: for messages and the progress bar; by default that of the target.

    Returns: the address that gave it, or nothing if it was there (another process brought it).
    Raises:
        ArtifactError: no address can be reached or has it (E301), or none has what was promised (E307).
        SecurityError (E704): an address, or a redirection, that is not https.
        ResourceError (E401): no room, or the folder cannot be written.
    """
    promise, patience = promise or Promise(), patience or PATIENT
    for address in addresses:
        refuse_insecure(address)
    part = Part(target, name=name or target.name, hash_known=bool(promise.sha256))
    if reason := offline_reason():
        raise _not_had("E301", f"{part.name} is not here, and {reason}", addresses, part, ways)
    failures: list[str] = []
    code = "E301"
    with _alone_with(target):
        if target.is_file() and not promise.problem(target):
            return ""
        for address in addresses:
            try:
                problem = _bring_verified(address, part, promise, headers or {}, patience)
            except _GivenUp as given_up:
                failures.append(f"{public_address(address)}: {given_up}")
                continue
            if not problem:
                part.publish()
                return address
            code = "E307"
            failures.append(f"{public_address(address)} gave another file than promised: {problem}")
    what = f"{part.name} cannot be fetched"
    raise _not_had(code, what, addresses, part, ways, failures)


def _not_had(
    code: str, what: str, addresses: Sequence[str], part: Part, ways: Sequence[str], failures: Sequence[str] = ()
) -> ArtifactError:
    by_hand = f"- fetch {public_address(addresses[-1])} elsewhere and put it at {part.target}"
    size = part.size
    kept = f"{size:,} bytes in {part.path}; the next try goes on from there" if part.can_go_on else ""
    if len(failures) == 1:
        what, failures = f"{what}: {failures[0]}", ()
    return ArtifactError(code, what, details=[*failures, "ways out:", by_hand, *ways], kept=kept)


def _bring_verified(address: str, part: Part, promise: Promise, headers: Mapping[str, str], patience: Patience) -> str:
    """Complete the part. Returns: why it is not the promised file (and then nothing of it is kept), or nothing."""
    _bring(address, part, promise, headers, patience)
    problem = _problem(part, promise)
    if problem and part.resumed:  # pieces of different files, or a length that lied: once more, in one piece
        part.discard()
        _bring(address, part, promise, headers, patience)
        problem = _problem(part, promise)
    if problem:
        part.discard()
    return problem


def _problem(part: Part, promise: Promise) -> str:
    return promise.problem(part.path) if part.size else "it is empty"


class _GivenUp(Exception):  # noqa: N818 (the next address may have the file)
    pass


class _TryAgain(Exception):  # noqa: N818 (a cut, a stall, a busy server)
    def __init__(self, reason: str, *, answered: bool = True, wait_seconds: float = 0.0) -> None:
        self.answered, self.wait_seconds = answered, wait_seconds
        super().__init__(reason)


def _bring(address: str, part: Part, promise: Promise, headers: Mapping[str, str], patience: Patience) -> None:
    """Fetch all bytes of an address into the part, in as many tries as patience allows."""
    in_vain = 0
    while True:
        before = part.size
        try:
            _attempt(address, part, promise, headers, patience)
        except _TryAgain as trouble:
            in_vain = 0 if part.size - before >= PROGRESS_BYTES else in_vain + 1
            if in_vain >= (patience.tries if trouble.answered else min(2, patience.tries)):
                if promise.sha256 and not _problem(part, promise):
                    return  # all is here: it was the announced length that lied
                raise _GivenUp(f"{trouble} (given up after {in_vain} tries)") from trouble
            pause = patience.pause_seconds * 2 ** max(0, in_vain - 1)
            time.sleep(min(max(pause, trouble.wait_seconds), LONGEST_PAUSE_SECONDS))
        else:
            return


def _attempt(address: str, part: Part, promise: Promise, headers: Mapping[str, str], patience: Patience) -> None:
    """One request: the rest of the part, or all of it."""
    request = urllib.request.Request(address, headers={"Accept-Encoding": "identity", "User-Agent": "kiln"})
    for name, value in headers.items():
        request.add_unredirected_header(name, value)
    ranged = part.range_headers(address)
    for name, value in ranged.items():
        request.add_header(name, value)
    try:
        with urllib.request.build_opener(_Redirections).open(request, timeout=patience.silence_seconds) as answer:
            total = _accept(address, part, answer, ranged=bool(ranged))
            if promise.num_bytes is not None and total not in (None, promise.num_bytes):
                part.discard()
                raise _GivenUp(f"it would give {total:,} bytes instead of {promise.num_bytes:,}")
            _receive(answer, part, total, patience)
    except urllib.error.HTTPError as error:
        with error:
            _judge_status(error, part)
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise _GivenUp(f"its certificate is not trusted ({error.reason.verify_message})") from error
        raise _TryAgain(f"it cannot be reached ({error.reason})", answered=False) from error
    except (http.client.HTTPException, OSError) as error:
        raise _TryAgain(f"the connection broke at {part.size:,} bytes ({_short(error)})") from error
    except ValueError as error:
        raise _GivenUp(f"it is not an address ({error})") from error


def _accept(address: str, part: Part, answer: Any, *, ranged: bool) -> int | None:
    """Prepare the part for an answer's body. Returns: how long the whole file will be, if it says so."""
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        raise _GivenUp(f"it sends the file in another form ({answer.headers['Content-Encoding']})")
    if answer.status == 206:
        found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", answer.headers.get("Content-Range", ""))
        if not ranged or not found or int(found[1]) != part.size:
            part.discard()
            raise _TryAgain("it gave another piece than was asked for")
        part.resumed = True
        return int(found[2]) + 1 if found[3] == "*" else int(found[3])
    etag = answer.headers.get("ETag", "")
    weak = not etag or etag.startswith("W/")
    validator = answer.headers.get("Last-Modified", "") if weak else etag
    # All of it was sent: a server without ranges, or the file changed, or nothing was here.
    ranges = answer.headers.get("Accept-Ranges", "none" if ranged else "").lower() != "none"
    part.start_anew(address, validator, ranges=ranges)
    length = answer.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


def _judge_status(error: urllib.error.HTTPError, part: Part) -> None:
    """Return if the part turns out to be complete; raise what the status asks for otherwise."""
    if error.code == 416 and part.size:
        if error.headers.get("Content-Range", "").rpartition("/")[2] == str(part.size):
            part.resumed = True
            return
        part.discard()
        raise _TryAgain("it has fewer bytes than it said") from error
    said = f"the server answered {error.code} {error.reason}"
    if error.code in WORTH_ANOTHER_TRY:
        asked = error.headers.get("Retry-After", "")
        raise _TryAgain(said, wait_seconds=float(asked) if asked.isdigit() else 0.0) from error
    raise _GivenUp(said) from error


def _receive(answer: Any, part: Part, total: int | None, patience: Patience) -> None:
    """Write what arrives; the length that was announced has to arrive too."""
    _check_room(part, total)
    since, since_size = time.monotonic(), part.size
    with part.open() as file, _bar(part.name, part.size, total) as bar:
        while chunk := answer.read1(CHUNK_BYTES):
            if part.write(file, chunk):
                _check_room(part, total)
            bar.update(len(chunk))
            now = time.monotonic()
            if now - since >= patience.slow_seconds:
                if part.size - since_size < patience.slow_bytes:
                    raise _TryAgain(f"only {part.size - since_size:,} bytes came in {now - since:.0f} s")
                since, since_size = now, part.size
    if total is not None and part.size < total:
        raise _TryAgain(f"the connection ended at {part.size:,} of {total:,} bytes")


def _check_room(part: Part, total: int | None) -> None:
    free = shutil.disk_usage(part.target.parent).free
    needed = SYNC_BYTES if total is None else total - part.size  # without a length, it may be without an end
    if needed > free:
        part.discard()
        what = f"{part.target}: {needed / 1e6:,.0f} MB are to come, and {free / 1e6:,.0f} MB are free"
        raise ResourceError("E401", what, hint="make room, or set HF_HOME, TORCH_HOME or KILN_CACHE to a larger disk")


class _Redirections(urllib.request.HTTPRedirectHandler):
    """Follows to other hosts, but never from https to http, nor to anything that is neither."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        fp.close()
        refuse_insecure(newurl)
        if urlsplit(req.full_url).scheme == "https" and urlsplit(newurl).scheme != "https":
            what = f"{public_address(req.full_url)} leads to {public_address(newurl)}, which is not encrypted"
            raise SecurityError("E704", what, hint="fetch it by hand and give --weights FILE")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def drop_unfinished(target: Path) -> bool:
    """Remove what has arrived of a file, unless a process is fetching it. Returns: whether it was removed."""
    from filelock import Timeout

    lock = _lock_of(target)
    try:
        with lock.acquire(blocking=False):
            Part(target, name=target.name, hash_known=False).discard()
    except Timeout:
        return False
    return True


def _lock_of(target: Path) -> FileLock:
    """Held by the process that fetches a file; that of a killed process is free."""
    from filelock import FileLock

    name = hashlib.sha256(str(target.absolute()).encode()).hexdigest()[:32]
    return FileLock(cache_folder("locks") / f"{name}.lock")


@contextmanager
def _alone_with(target: Path) -> Iterator[None]:
    """No other process fetches this file meanwhile."""
    from filelock import Timeout

    lock = _lock_of(target)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        _log.warning("waiting for another process that fetches %s", target.name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _bar(name: str, done: int, total: int | None) -> Any:
    """Progress on a terminal; nothing elsewhere. HF_HUB_DISABLE_PROGRESS_BARS=1 turns it off."""
    from huggingface_hub.utils import tqdm

    return tqdm(total=total, initial=done, unit="B", unit_scale=True, desc=name, disable=None, leave=False)


def _short(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
