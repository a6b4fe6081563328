"""Weight files that somebody published: which one a name stands for, where it lies, and how it comes here.

A file that was fetched by hand counts as well: where the error and `kiln weights where` say, in the caches of the hub
and of torch, or beside the script. Beside the script nothing is taken by a common name: its name must hold its hash,
its hash must be known, or the name must be the long one of `Published.beside`.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urldefrag, urlsplit

import torch

from kiln.errors import ArtifactError, UsageError
from kiln.models import download
from kiln.models.arrivals import arrived_promise, note_arrival
from kiln.models.catalogue import unknown_model
from kiln.models.convert import cache_folder
from kiln.models.family import HUB
from kiln.models.hub import (
    HUB_FILES,
    WAYS,
    cached_hub_file,
    cached_promise,
    hub_address,
    hub_copies,
    hub_file,
    path_by_hand,
)
from kiln.models.integrity import Promise, hash_in_name, sha256_of
from kiln.models.load import Origin

ENUM = re.compile(r"[A-Za-z0-9_]+_Weights\.[A-Za-z0-9_]+")


@dataclass(frozen=True)
class Published:
    """A published weight file.

    Attributes:
        address: the publisher's.
        file: its name.
        repo: `owner/name` or `owner/name@revision` where the hub has it, else empty.
        sha256: whole or its start, where it is known beforehand.
        choices: names that the file may have in the hub's repository, the preferred one first.
    """

    address: str
    file: str
    repo: str = ""
    sha256: str = ""
    choices: tuple[str, ...] = ()

    @property
    def target(self) -> Path:
        """Where it lies once it was fetched, also by hand.

        A name with a hash in it belongs to one file, and is kept where torch keeps it; any other could be anybody's, and
        is kept by its address.
        """
        if self.repo:
            return path_by_hand(self.repo, self.file)
        if hash_in_name(self.file):
            return _torch_cache() / self.file
        key = hashlib.sha256(f"{self.address}#{self.sha256}".encode()).hexdigest()[:12]
        return cache_folder("downloads") / key / self.file

    @property
    def beside(self) -> str:
        """The name under which it is found beside the script; empty where only the name could tell what it is."""
        if self.repo:
            return f"{self.repo.replace('/', '--').replace('@', '--')}--{self.file}"
        return self.file if self.sha256 else ""

    def find(self) -> Path | None:
        """The file where it is here already; not verified yet."""
        for name in self.choices or (self.file,):
            if self.repo and (cached := cached_hub_file(self.repo, name)) is not None:
                return cached
        by_name = [_torch_cache() / self.file] if self.sha256 and not self.repo else []
        if self.beside:
            by_name += [folder / self.beside for folder in script_folders()]
        return next((path for path in (self.target, *by_name) if path.is_file()), None)

    def everywhere(self) -> set[Path]:
        """Wherever a file of this name may lie, whole or not begun; what was put beside the script is the user's own."""
        if self.repo:
            return {path for name in self.choices or (self.file,) for path in (*hub_copies(self.repo, name),)}
        return {self.target, *([_torch_cache() / self.file] if self.sha256 else [])}

    def promise_for(self, path: Path) -> Promise:
        """What a file that was found has to be."""
        if self.sha256:
            return Promise(self.sha256)
        return cached_promise(path) if self.repo else arrived_promise(path)

    def obtain(self) -> Path:
        """The file, verified, from where it is here or from its publisher.

        Raises:
            ArtifactError: it cannot be had (E301), or is not what was promised (E307).
            SecurityError (E704): its address is not https.
            ResourceError (E401): no room.
        """
        found = self.find()
        if found is not None:
            if problem := self.promise_for(found).problem(found):
                what = f"{found} is not the file its name promises: {problem}"
                raise ArtifactError("E307", what, hint=f"delete it and fetch {self.address} again")
            return found
        if self.repo:
            return hub_file(self.repo, self.choices or (self.file,))
        addresses = download.with_mirrors(self.address)
        target = self.target
        download.download(addresses, target, promise=Promise(self.sha256), ways=WAYS)
        if target.is_relative_to(cache_folder("downloads")):
            note_arrival(target, download.public_address(self.address))
        return target

    def origin(self, path: Path) -> Origin:
        """What a run records of a file that `obtain` gave."""
        verified = self.promise_for(path).sha256
        digest = verified if len(verified) == 64 else sha256_of(path)
        return Origin(download.public_address(self.address), str(path), digest)


def script_folders() -> tuple[Path, ...]:
    """The working folder, and that of the script that runs."""
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    beside = [Path(script).resolve().parent] if script and str(script).endswith(".py") else []
    return (Path.cwd(), *beside)


def is_address(text: str) -> bool:
    """Whether a text is a URL."""
    return text.startswith(("https://", "http://"))


def from_address(text: str) -> Published:
    """A file at an address; `#sha256=DIGITS` at its end pins its content.

    Raises: UsageError (E102): the fragment is something else, or the address names no file.
    """
    address, fragment = urldefrag(text)
    found = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
    if fragment and not found:
        raise UsageError("E102", f"weights = {text!r}: #{fragment}", expected="#sha256= and 64 hexadecimal digits")
    name = re.sub(r"[^\w.+-]", "_", PurePosixPath(unquote(urlsplit(address).path)).name).lstrip(".")
    if not name:
        raise UsageError("E102", f"weights = {text!r}", expected="an address that ends with the name of a file")
    return Published(address, name, sha256=found[1].lower() if found else hash_in_name(name))


def from_hub(repo: str, names: Sequence[str] = HUB_FILES) -> Published:
    """The weights of a hub repository, `owner/name` or `owner/name@revision`.

    Raises: UsageError (E102): it is not named so.
    """
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?", repo) or ".." in repo:
        raise UsageError("E102", f"hf-hub:{repo}", expected="hf-hub:OWNER/NAME or hf-hub:OWNER/NAME@REVISION")
    return Published(hub_address(repo, names[0]), names[0], repo=repo, choices=tuple(names))


def from_timm(cfg: Any, name: str) -> Published:
    """What a timm configuration names: the hub's file, or the publisher's where only that one is here already.

    Args:
        cfg: its `PretrainedCfg`.
        name: for messages.

    Raises: ArtifactError (E301): nobody published any.
    """
    url, file_name = cfg.url if isinstance(cfg.url, tuple) else (cfg.url, None)
    elsewhere = from_address(url) if url else None
    if elsewhere is not None and file_name:
        elsewhere = Published(url, file_name, sha256=hash_in_name(file_name))
    if cfg.hf_hub_id:
        hub = from_hub(cfg.hf_hub_id, (cfg.hf_hub_filename,) if cfg.hf_hub_filename else HUB_FILES)
        hashed = elsewhere is not None and elsewhere.sha256
        return elsewhere if elsewhere and hashed and hub.find() is None and elsewhere.find() is not None else hub
    if elsewhere is None:
        hint = "--weights none, or `kiln models --pretrained`"
        raise ArtifactError("E301", f"nobody published weights for {name}", hint=hint)
    return elsewhere


def torchvision_entry(model: str, entry: str = "DEFAULT") -> Any:
    """A member of a torchvision model's list of weights.

    Args:
        model: without `torchvision/`; empty where the entry names the list itself.
        entry: `IMAGENET1K_V1`, `DEFAULT`, or with its list, `ResNet50_Weights.IMAGENET1K_V1`.

    Raises: UsageError (E108): no such model or entry; the choices are listed.
    """
    import torchvision

    kind, _, member = entry.rpartition(".")
    names = torchvision.models.list_models(module=torchvision.models)
    lists = {torchvision.models.get_model_weights(name).__name__: name for name in names} if kind else {}
    if kind and kind not in lists:
        raise UsageError("E108", f"unknown weights {entry!r}", got=kind, choices=sorted(lists))
    name = lists.get(kind, model)
    if name not in names:
        raise unknown_model(f"torchvision/{name}")
    published = torchvision.models.get_model_weights(name)
    if member not in published.__members__:
        raise UsageError("E108", f"unknown weights {entry!r}", got=member, choices=list(published.__members__))
    return published[member]


def published_as(name: str) -> Published:
    """The weight file that a name stands for: a model's, a torchvision entry's, a hub repository's, or an address.

    Args:
        name: `resnet18`, `timm/resnet18.a1_in1k`, `torchvision/resnet50`, `torchvision/resnet50.IMAGENET1K_V1`,
            `ResNet50_Weights.IMAGENET1K_V1`, `hf-hub:OWNER/NAME`, or `https://...`, with or without `#sha256=`.

    Raises:
        UsageError: nobody knows the name (E108), or the address is malformed (E102).
        ArtifactError (E301): nobody published weights under it.
    """
    if is_address(name):
        return from_address(name)
    if name.startswith(HUB):
        return from_hub(name.removeprefix(HUB))
    if ENUM.fullmatch(name):
        return from_address(torchvision_entry("", name).url)
    if name.startswith("torchvision/"):
        model, _, entry = name.removeprefix("torchvision/").partition(".")
        return from_address(torchvision_entry(model, entry or "DEFAULT").url)
    from timm.models import get_pretrained_cfg, is_model, list_pretrained

    name = name.removeprefix("timm/")
    architecture = name.partition(".")[0]
    if not is_model(architecture):
        raise unknown_model(name)
    try:
        cfg = get_pretrained_cfg(name)
    except RuntimeError as error:
        tags = list_pretrained(f"{architecture}.*")
        raise UsageError("E108", f"unknown weights {name!r}", got=name, choices=tags) from error
    if cfg is None:
        raise ArtifactError("E301", f"nobody published weights for {name}", hint="--weights none")
    return from_timm(cfg, name)


def _torch_cache() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"
