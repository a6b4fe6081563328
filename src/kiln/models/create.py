"""Make a model by name, for a number of classes, channels and pixels, with weights or without."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kiln.errors import ArtifactError, UsageError
from kiln.models.architectures import builder_for
from kiln.models.family import Built, Wanted
from kiln.models.load import LoadReport, load_weights
from kiln.models.modelheader import header_of
from kiln.models.outputs import main_and_auxiliary
from kiln.models.sizes import SizeProblem, dry_forward, smallest_size, takes
from kiln.models.spec import ModelSpec, for_channels
from kiln.models.surgery import head_names, last_layer, replace_head_, replace_stem_
from kiln.models.weights import open_weights
from kiln.random import Purpose, torch_seed

__all__ = ["Created", "LoadReport", "ModelSpec", "create_model", "main_and_auxiliary"]


@dataclass(frozen=True)
class Created:
    """A model, what it takes to make it again, what became of its weights, and sentences to print."""

    model: nn.Module
    spec: ModelSpec
    report: LoadReport | None
    notes: tuple[str, ...]


def create_model(
    name: str,
    *,
    num_classes: int,
    channels: int = 3,
    img_size: int | None = None,
    weights: str | Path = "none",
    drop: float = 0.0,
    drop_path: float = 0.0,
    kwargs: Mapping[str, Any] | None = None,
    seed: int = 0,
    trusted: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
) -> Created:
    """Make a model with a head for `num_classes`.

    Every initial value is a pure function of `seed`; the global random state is left as it was.

    Args:
        name: a timm name (`resnet18`, `timm/resnet18.a1_in1k`, `hf-hub:OWNER/NAME`), `torchvision/NAME`,
            `kiln/small_cnn`, or the user's own `module:function` or `path/file.py:function`.
        num_classes: width of the output.
        channels: of the images; a stem made for RGB is adapted as timm does.
        img_size: height and width in pixels; None is the architecture's own.
        weights: `none`, `pretrained` (those published under the name), a file, `https://...` (with `#sha256=` where the
            hash is known), `hf-hub:OWNER/NAME`, or torchvision's `ResNet50_Weights.IMAGENET1K_V1`, for a model of
            torchvision also `IMAGENET1K_V1`.
        drop: dropout before the head.
        drop_path: stochastic depth.
        kwargs: further arguments of the architecture.
        seed: of the initial values.
        trusted: None when the user typed `name`; when a file named it, the `module:function` names the user trusts.
        classes: class names in order. The head of a Kiln model file is used again only for exactly these.

    Raises:
        UsageError: an unknown name (E108), a size or channel count the model cannot take (E102), a setting that has no
            effect (E103).
        ArtifactError: weights cannot be had (E301), do not fit (E304), or are damaged (E307).
        SecurityError: a file names code that is not trusted (E701), or weights hold code (E702).
    """
    _check_numbers(num_classes=num_classes, channels=channels, img_size=img_size)
    weights, entry = str(weights), _torchvision_entry(name, str(weights))
    wanted = Wanted(
        name=name,
        num_classes=num_classes,
        channels=channels,
        img_size=img_size,
        pretrained=weights == "pretrained" or bool(entry),
        entry=entry,
        drop=drop,
        drop_path=drop_path,
        kwargs=dict(kwargs or {}),
        trusted=None if trusted is None else tuple(trusted),
    )
    with seeded_init(seed):
        build, request = builder_for(wanted)
        built = build(request)
        notes = list(built.notes) + _fit_images_and_classes_(built, request)
    report = built.report
    if weights != "none" and not wanted.pretrained:
        report = _load_file(built.model, weights, num_classes, classes)
    spec = _spec(built, num_classes, channels)
    notes += report.notes() if report else ()
    return Created(built.model, spec, report, tuple(notes))


def _torchvision_entry(name: str, weights: str) -> str:
    if not name.startswith("torchvision/") or weights in ("none", "pretrained"):
        return ""
    from kiln.models.torchvision_family import entry_of

    return entry_of(name.removeprefix("torchvision/"), weights)


@contextmanager
def seeded_init(seed: int) -> Iterator[None]:
    """Inside, torch's CPU generator starts from `seed`; outside it is as if nothing had happened."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(torch_seed(seed, Purpose.INIT))
        yield


def _check_numbers(**values: int | None) -> None:
    for name, value in values.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise UsageError("E102", f"{name} = {value!r}", expected="a whole number, at least 1")


def _fit_images_and_classes_(built: Built, wanted: Wanted) -> list[str]:
    """Run the model once without computing; adapt the ends of a user's model that the function did not adapt."""
    notes: list[str] = []
    own_code = ":" in built.name
    if own_code and (note := _fit_channels_(built.model, wanted.channels)):
        notes.append(note)
    output = _output(built, wanted.channels)
    if output.ndim != 2:
        shape = ("B", *output.shape[1:])
        raise UsageError("E107", f"{built.name} returns {shape}", expected="logits (B, num_classes)")
    if output.shape[1] == wanted.num_classes:
        return notes
    head = last_layer(built.model, lambda: dry_forward(built.model, channels=wanted.channels, img_size=built.img_size))
    if head is None:
        expected = f"{wanted.num_classes} outputs"
        raise UsageError(
            "E107", f"{built.name} gives {output.shape[1]} outputs and has no linear layer", expected=expected
        )
    notes.append(replace_head_(built.model, head, wanted.num_classes))
    if _output(built, wanted.channels).shape[1] != wanted.num_classes:
        hint = "give your function a parameter num_classes"
        raise UsageError(
            "E107", f"{built.name}: replacing {head!r} did not change its {output.shape[1]} outputs", hint=hint
        )
    return notes


def _fit_channels_(model: nn.Module, channels: int) -> str | None:
    convolution = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if convolution is None or convolution.in_channels == channels:
        return None
    return replace_stem_(model, channels)


def _output(built: Built, channels: int) -> Tensor:
    try:
        return dry_forward(built.model, channels=channels, img_size=built.img_size)
    except SizeProblem as problem:
        raise _wrong_size(built, channels, str(problem)) from problem


def _wrong_size(built: Built, channels: int, problem: str) -> UsageError:
    expected, hint = "", "a larger --img-size, or a model for small images such as kiln/small_cnn"
    if not built.fixed_size:  # a model built for one size cannot tell about others
        smallest = smallest_size(lambda size: takes(built.model, channels=channels, img_size=size))
        expected = f"at least {smallest} px" if smallest and smallest > built.img_size else ""
    if hasattr(built.model, "aux_logits") and _evaluates(built, channels):
        hint = "only its auxiliary heads need more: --set model.kwargs.aux_logits=false goes without them"
    what = f"img_size = {built.img_size} with {channels} channels does not fit {built.name}: {problem}"
    return UsageError("E102", what, expected=expected, hint=hint)


def _evaluates(built: Built, channels: int) -> bool:
    try:
        dry_forward(built.model, channels=channels, img_size=built.img_size, training=False)
    except SizeProblem:
        return False
    return True


def _load_file(model: nn.Module, weights: str, num_classes: int, classes: Sequence[str] | None) -> LoadReport:
    state, origin = open_weights(weights)
    heads = head_names(model)
    header = header_of(Path(origin.path))
    drop: tuple[str, ...] = ()
    if header is not None:
        theirs = tuple(header.get("classes", ()))
        same = len(theirs) == num_classes if classes is None else theirs == tuple(classes)
        drop = () if same else heads
    report = load_weights(model, state, source=origin.url or weights, drop=drop)
    return replace(report, origin=origin)


def _spec(built: Built, num_classes: int, channels: int) -> ModelSpec:
    try:
        kwargs = json.loads(json.dumps(built.kwargs))
    except (TypeError, ValueError) as error:
        raise UsageError("E102", f"model.kwargs = {built.kwargs!r}: {error}", expected="plain JSON values") from error
    if not 0 < built.crop_fraction <= 1:
        raise ArtifactError(
            "E303", f"{built.name} states a crop of {built.crop_fraction}", expected="above 0, at most 1"
        )
    return ModelSpec(
        name=built.name,
        num_classes=num_classes,
        channels=channels,
        img_size=built.img_size,
        kwargs=kwargs,
        mean=for_channels(built.mean, channels),
        std=for_channels(built.std, channels),
        interpolation=built.interpolation,
        crop_fraction=float(built.crop_fraction),
        min_size=built.min_size,
    )
