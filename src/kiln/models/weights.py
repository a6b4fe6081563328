"""Weights as tensors, from what `--weights` names. Always a state dict, never a pickle.

Caches are looked at first, so a run with cached weights makes no connection and gives the same weights next year. What
is neither cached nor reachable is an error that names the ways out, never a silent start from scratch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from kiln.errors import ArtifactError, UsageError
from kiln.models.convert import convert
from kiln.models.hub import HUB_FILES, hub_file
from kiln.models.integrity import sha256_of
from kiln.models.load import Origin
from kiln.models.published import ENUM, Published, from_timm, is_address, published_as
from kiln.models.seal import ANOTHER_COPY

__all__ = ["HUB_FILES", "Origin", "hub_file", "open_weights", "published_state", "read_state", "timm_state", "url_file"]


def open_weights(text: str) -> tuple[dict[str, Tensor], Origin]:
    """The tensors that `--weights` names, and where they came from.

    Args:
        text: a file, `https://...` (with `#sha256=` where the hash is known), `hf-hub:OWNER/NAME`, or a torchvision
            entry such as `ResNet50_Weights.IMAGENET1K_V1`.

    Raises:
        UsageError: no such file (E102) or entry (E108).
        ArtifactError: they cannot be had (E301), are not what was promised or damaged (E307), or hold no weights (E304).
        SecurityError: an address that is not encrypted (E704), a file that holds code (E702).
        ResourceError: no room (E401), or more memory than the file explains (E402).
    """
    if is_address(text) or text.startswith("hf-hub:") or (ENUM.fullmatch(text) and not Path(text).exists()):
        return published_state(published_as(text))
    path = Path(text).expanduser()
    state = read_state(path)
    return state, Origin("", str(path.resolve()), sha256_of(path))


def published_state(published: Published) -> tuple[dict[str, Tensor], Origin]:
    """The tensors of a published file, and where they came from.

    Raises: see `open_weights`.
    """
    path = published.obtain()
    return read_state(path), published.origin(path)


def timm_state(cfg: Any, name: str) -> tuple[dict[str, Tensor], Origin]:
    """The published weights of a timm model, and where they came from.

    Args:
        cfg: its `PretrainedCfg`.
        name: for messages.

    Raises: ArtifactError (E301): nobody published any, or they cannot be had.
    """
    return published_state(from_timm(cfg, name))


def url_file(url: str) -> Path:
    """A published weight file, from the caches or downloaded; checked against the hash in its name.

    Raises: ArtifactError: it cannot be had (E301), or is not what the name promises (E307).
    """
    return published_as(url).obtain()


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a weight file: safetensors as they are, anything else through `convert`.

    Raises: ArtifactError, SecurityError, ResourceError: see `convert`. UsageError (E102): no such file.
    """
    if not path.is_file():
        raise UsageError(
            "E102",
            f"weights = {str(path)!r}: no such file",
            expected="none, pretrained, a file, https://…, hf-hub:OWNER/NAME or torchvision's NAME_Weights.ENTRY",
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
