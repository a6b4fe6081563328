"""timm: any model of its registry, or of a hub repository that it wrote."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import timm
from timm.models import get_pretrained_cfg, is_model, list_pretrained
from timm.models._hub import load_model_config_from_path
from timm.models._pretrained import PretrainedCfg
from torch import nn

from kiln.errors import ArtifactError, UsageError
from kiln.models.catalogue import unknown_model
from kiln.models.family import HUB, RESERVED, Built, Wanted, refuse_reserved
from kiln.models.load import LoadReport, Origin
from kiln.models.sizes import patch_size
from kiln.models.weights import hub_file, timm_state


def build_timm(wanted: Wanted) -> Built:
    """Any model of timm's registry, or of a hub repository that timm wrote."""
    refuse_reserved(wanted)
    cfg, name, kwargs, source = _timm_config(wanted)
    img_size = wanted.img_size or cfg.input_size[-1]
    arguments: dict[str, Any] = {**kwargs, "num_classes": wanted.num_classes, "in_chans": wanted.channels}
    arguments |= {"drop_rate": wanted.drop} if wanted.drop else {}
    arguments |= {"drop_path_rate": wanted.drop_path} if wanted.drop_path else {}
    arguments |= {"img_size": img_size} if cfg.fixed_input_size else {}
    overlay: dict[str, Any] = {}
    origin: Origin | None = None
    if wanted.pretrained:
        state, origin = timm_state(cfg, source)
        source = origin.url
        overlay = {"state_dict": state, "source": "", "custom_load": False}
    with _timm_says() as said:
        model = _call_timm(name, cfg, arguments, overlay, source)
    if overlay:
        model.pretrained_cfg.pop("state_dict", None)  # type: ignore[union-attr]  # would keep a second copy alive
    _check_patches(model, name, img_size, fixed=cfg.fixed_input_size)
    return Built(
        model,
        name=f"timm/{name}",
        kwargs=kwargs,
        img_size=img_size,
        mean=tuple(cfg.mean),
        std=tuple(cfg.std),
        interpolation=cfg.interpolation if cfg.interpolation in ("bilinear", "bicubic", "lanczos") else "bicubic",
        crop_fraction=cfg.crop_pct,
        min_size=(cfg.min_input_size or (1,))[-1],
        fixed_size=cfg.fixed_input_size,
        report=_timm_report(said, origin, len(model.state_dict())) if origin else None,
        notes=tuple(text for level, text in said if level >= logging.WARNING),
    )


def _timm_config(wanted: Wanted) -> tuple[Any, str, dict[str, Any], str]:
    """The pretrained configuration, the architecture with its tag, further arguments, and a name for messages."""
    if wanted.name.startswith(HUB):
        return _hub_config(wanted)
    architecture = wanted.name.partition(".")[0]
    if not is_model(architecture):
        raise unknown_model(wanted.name)
    try:
        cfg = get_pretrained_cfg(wanted.name) or PretrainedCfg(architecture=architecture)
    except RuntimeError as error:  # the architecture exists, the tag after the dot does not
        tags = list_pretrained(f"{architecture}.*")
        raise UsageError("E108", f"unknown weights {wanted.name!r}", got=wanted.name, choices=tags) from error
    return cfg, wanted.name, dict(wanted.kwargs), wanted.name


def _hub_config(wanted: Wanted) -> tuple[Any, str, dict[str, Any], str]:
    repo = wanted.name.removeprefix(HUB)
    described = hub_file(repo, ("config.json",))
    try:
        values, architecture, arguments = load_model_config_from_path(str(described.parent))
        cfg = PretrainedCfg(**{**values, "hf_hub_id": repo, "file": None, "source": None})
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError("E303", f"{described} does not describe a timm model: {error!r}") from error
    if not is_model(architecture):
        raise unknown_model(architecture)
    kwargs = {key: value for key, value in dict(arguments or {}).items() if key not in RESERVED}
    return cfg, architecture, {**kwargs, **wanted.kwargs}, repo


def _call_timm(name: str, cfg: Any, arguments: dict[str, Any], overlay: dict[str, Any], source: str) -> nn.Module:
    architecture = name.partition(".")[0]
    try:
        return timm.create_model(
            architecture,
            pretrained=bool(overlay),
            pretrained_cfg=cfg.to_dict(),
            pretrained_cfg_overlay=overlay or None,
            **arguments,
        )
    except TypeError as error:
        given = {key: value for key, value in arguments.items() if key not in ("num_classes", "in_chans")}
        raise UsageError(
            "E103", f"timm/{architecture} does not take one of {given}: {error}", hint="leave the setting out"
        ) from error
    except (AssertionError, RuntimeError, ValueError, KeyError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        if overlay:
            raise ArtifactError("E304", f"the weights of {source} do not fit timm/{architecture}: {first}") from error
        raise UsageError("E102", f"timm/{architecture} cannot be made with {arguments}: {first}") from error


def _check_patches(model: nn.Module, name: str, img_size: int, *, fixed: bool) -> None:
    patch = patch_size(model) if fixed else None
    if patch and (img_size % patch or img_size < patch):
        near = sorted({max(1, img_size // patch) * patch, (img_size // patch + 1) * patch})
        expected = f"a multiple of its patch of {patch} px, such as {' or '.join(map(str, near))}"
        raise UsageError("E102", f"img_size = {img_size} does not fit timm/{name}", expected=expected)


@contextmanager
def _timm_says() -> Iterator[list[tuple[int, str]]]:
    """Collect what timm logs while it builds: the only place where it tells which weights it left out."""
    said: list[tuple[int, str]] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append((record.levelno, record.getMessage()))

    logger, listener = logging.getLogger("timm.models"), Listener()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(listener)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield said
    finally:
        logger.removeHandler(listener)
        logger.setLevel(level)
        logger.propagate = propagate


def _timm_report(said: list[tuple[int, str]], origin: Origin, total: int) -> LoadReport:
    def listed(word: str) -> tuple[str, ...]:
        texts = [text for _, text in said if text.startswith(f"{word} keys (")]
        return tuple(key for text in texts for key in text.partition("(")[2].partition(")")[0].split(", "))

    missing = listed("Missing")
    adapted = tuple(text for _, text in said if text.startswith("Converted input conv"))
    return LoadReport(origin.url, total - len(missing), missing, listed("Unexpected"), adapted, origin)
