"""What the families of architectures (timm, torchvision, our own, the user's) share: request, result, refusals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from kiln.errors import UsageError
from kiln.models.load import LoadReport
from kiln.models.spec import IMAGENET_MEAN, IMAGENET_STD

HUB = "hf-hub:"
# Arguments of timm's factory that are ours to give, or that would reach for files.
RESERVED = frozenset(
    {
        "num_classes",
        "in_chans",
        "img_size",
        "drop_rate",
        "drop_path_rate",
        "pretrained",
        "pretrained_cfg",
        "pretrained_cfg_overlay",
        "checkpoint_path",
        "cache_dir",
        "scriptable",
        "exportable",
        "no_jit",
        "features_only",
        "weights",
        "progress",
    }
)


@dataclass(frozen=True)
class Wanted:
    """What a builder is asked for: `img_size` None is the architecture's own, `trusted` None a name the user typed.

    `entry`: of the published weights, where the publisher lists several and one was chosen.
    """

    name: str
    num_classes: int
    channels: int = 3
    img_size: int | None = None
    pretrained: bool = False
    entry: str = ""
    drop: float = 0.0
    drop_path: float = 0.0
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    trusted: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Built:
    """A network with the images it was made for. `name` and `kwargs` build it again, without a connection.

    `fixed_size`: the network is built for its `img_size` and takes no other.
    """

    model: nn.Module
    name: str
    kwargs: dict[str, Any]
    img_size: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bicubic"
    crop_fraction: float = 1.0
    min_size: int = 1
    fixed_size: bool = False
    report: LoadReport | None = None
    notes: tuple[str, ...] = ()


def refuse_reserved(wanted: Wanted) -> None:
    """Raise UsageError (E103) if `kwargs` sets what has a setting of its own, or would reach for files."""
    taken = sorted(RESERVED & set(wanted.kwargs))
    if taken:
        raise UsageError("E103", f"model.kwargs holds {', '.join(taken)}, which has a setting of its own")
