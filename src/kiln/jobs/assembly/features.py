"""Whether a recipe's head is trained on features that are kept, how many views there are, and where they lie."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from torch import Tensor

from kiln.augment import backend
from kiln.data import room
from kiln.data.cache import entries_of
from kiln.data.decode import DECODER, RESIZER
from kiln.data.feature_files import FeatureFiles, open_feature_files
from kiln.data.fingerprint import digest
from kiln.data.loader import Views
from kiln.data.resident import free_bytes
from kiln.data.storage import counted
from kiln.data.transform import takes_rng
from kiln.engine.features import EvaluationFeatures, FeatureBatches
from kiln.engine.strategy import Strategy
from kiln.errors import UsageError
from kiln.jobs.assembly.batches import Pipeline
from kiln.jobs.assembly.pixel_form import MEMORY_SHARE
from kiln.jobs.assembly.resolve import Settings, chosen_samples
from kiln.jobs.intake import Intake
from kiln.models.features import FeatureCut, find_cut
from kiln.models.freeze import combined_digest, digests_of, frozen_atoms
from kiln.models.sizes import mode
from kiln.names import TRANSFORMS, resolve
from kiln.recipe.duration import Duration
from kiln.recipe.finetune_text import HEAD_MODES, parse_stage, why_no_views
from kiln.recipe.recipe import FIELDS

SAVE_SECONDS = 30
"""Between checkpoints, where a head alone is trained on features: what a kill may cost."""
USUAL_VIEWS = 4
"""Of an augmented image: a compromise between an epoch's price and variety, not a measured optimum."""


@dataclass(frozen=True)
class KeptFeatures:
    """What a training needs to go by features."""

    batches: FeatureBatches
    evaluation: EvaluationFeatures


def keep_features(
    settings: Settings, intake: Intake, pipeline: Pipeline, *, strategy: Strategy, total_steps: int
) -> KeptFeatures | None:
    """Settle `finetune.views` and `finetune.cache_features`; None where each step goes through the whole model.

    How many views there are follows from the recipe, data and model alone; whether features are kept, also from what there
    is room for. Call when the model is frozen for its first stage.

    Raises: UsageError: what was asked for cannot be.
    """
    if settings["finetune.mode"] not in HEAD_MODES:
        for name, value in (("finetune.views", 0), ("finetune.cache_features", "off")):
            settings[name]  # other modes do not have it
            settings.values[name] = value
        return None
    cut, why_not = _cut(settings, pipeline)
    _settle_views(settings, intake, why_not)
    hold_views(settings, pipeline)
    before_step = _before_step(settings, pipeline)
    views, train = settings["finetune.views"], chosen_samples(settings, intake)
    epochs = -(-min(before_step or total_steps, total_steps) // len(pipeline.batches))
    samples = views * len(train) + len(intake.split.val)
    num_bytes = 0 if cut is None else samples * bytes_of_a_sample(settings, pipeline, cut)
    why_not = why_not or _why_not_kept(settings, strategy, epochs=epochs) or _why_no_room(settings, num_bytes)
    times = counted(min(views, epochs), "time")
    reason = f"{epochs} epochs, each image {times} through the frozen part; {num_bytes / 1e6:,.1f} MB"
    if not _settle_cache(settings, why_not, reason) or cut is None:
        return None
    if before_step is None and settings["checkpoint.every"] == FIELDS["checkpoint.every"].default:
        reason = "an epoch on features takes less than a checkpoint; a new best is saved all the same"
        settings.decide("checkpoint.every", (Duration(SAVE_SECONDS, "s"),), reason)
    return _kept(settings, intake, pipeline, cut, train=train, before_step=before_step, num_bytes=num_bytes)


def hold_views(settings: Settings, pipeline: Pipeline) -> None:
    """Let training batches see their views, once it is settled how many there are."""
    views = settings["finetune.views"]
    if views and not settings.asks("finetune.views"):
        pipeline.loader.views = Views(views, _before_step(settings, pipeline))


def _before_step(settings: Settings, pipeline: Pipeline) -> int | None:
    """The step with which the second stage begins; None where there is none."""
    texts, steps = settings["finetune.stages"], len(pipeline.batches)
    if len(texts) < 2:
        return None
    total_steps = settings["training.epochs"].to_steps(steps_per_epoch=steps)
    return parse_stage(texts[1]).first.to_steps(steps_per_epoch=steps, total_steps=total_steps)


def _cut(settings: Settings, pipeline: Pipeline) -> tuple[FeatureCut | None, str | None]:
    """Where the frozen part ends, or why there is no such place."""
    model = pipeline.created.model
    if not frozen_atoms(model).intersection(name for name, _ in model.named_parameters()):
        return None, "the first stage freezes nothing"
    try:
        return find_cut(model, probe(settings, pipeline)), None
    except UsageError as error:
        return None, error.what


def probe(settings: Settings, pipeline: Pipeline) -> Tensor:
    """(2, C, H, W), of any content."""
    spec = pipeline.created.spec
    shape = (2, spec.channels, spec.img_size, spec.img_size)
    return torch.linspace(-2, 2, int(np.prod(shape)), device=settings["run.device"]).view(shape)


def bytes_of_a_sample(settings: Settings, pipeline: Pipeline, cut: FeatureCut) -> int:
    """What the features of one image take."""
    model = pipeline.created.model
    with mode(model, training=False), torch.no_grad():
        features = cut.features(model, probe(settings, pipeline))
    return features[0].numel() * features.element_size()


def _settle_views(settings: Settings, intake: Intake, why_no_cut: str | None) -> None:
    """How many ways there are in which a sample is augmented while its features could be kept.

    Raises: UsageError: views were asked for, and the augmentation is not ours to hold still.
    """
    why = _why_no_views(settings, intake)
    views, transform = settings["finetune.views"], settings["augment.transform"]
    if not settings.asks("finetune.views"):
        if views and why:
            raise UsageError("E103", f"finetune.views = {views}, but {why}", hint="--set finetune.views=0")
    elif why or why_no_cut:
        settings.decide("finetune.views", 0, why or why_no_cut or "")
    elif settings["augment.policy"] == "none" and transform is None:
        settings.decide("finetune.views", 1, "there is no augmentation")
    else:
        reason = "epochs take so many augmentations of each image in turn; 0 draws anew in each, and keeps nothing"
        settings.decide("finetune.views", USUAL_VIEWS, reason)


def _why_no_views(settings: Settings, intake: Intake) -> str | None:
    if intake.source.transformed:
        return "the data come already transformed, perhaps at random"
    transform = settings["augment.transform"]
    if transform is not None:
        named = resolve(TRANSFORMS, transform, kind="transform")
        if not takes_rng(named() if isinstance(named, type) else named):
            return f"augment.transform = {transform!r} takes no rng, so it may be random by itself"
    return why_no_views(settings.values)


def _why_not_kept(settings: Settings, strategy: Strategy, *, epochs: int) -> str | None:
    """Why features are not kept although they could be; what was asked for needs no reason."""
    views = settings["finetune.views"]
    if not views:
        return settings.reasons.get("finetune.views", "finetune.views = 0: augmentation is drawn anew in each epoch")
    if strategy.world_size > 1:
        return f"{strategy.world_size} processes train together, and features are kept by one alone"
    if epochs <= views and settings.asks("finetune.cache_features"):
        return f"no view comes twice in {epochs} epoch{'' if epochs == 1 else 's'}"
    return None


def _why_no_room(settings: Settings, num_bytes: int) -> str | None:
    limit = int(MEMORY_SHARE * free_bytes(torch.device(settings["run.device"])))
    if settings["data.cache"] == "memory":
        limit = min(limit, room.parse_size(settings["data.cache_size"]))
    return None if num_bytes <= limit else f"features take {num_bytes:,} bytes of memory, and {limit:,} may be taken"


def _settle_cache(settings: Settings, why_not: str | None, reason: str) -> bool:
    """Decide whether features are kept.

    Raises: UsageError: they were asked for and cannot be.
    """
    if settings.asks("finetune.cache_features"):
        settings.decide("finetune.cache_features", "off" if why_not else "on", why_not or reason)
    elif settings["finetune.cache_features"] == "on" and why_not:
        raise UsageError("E103", f"finetune.cache_features = 'on', but {why_not}", hint="leave it at auto")
    return settings["finetune.cache_features"] == "on"


def _kept(
    settings: Settings,
    intake: Intake,
    pipeline: Pipeline,
    cut: FeatureCut,
    *,
    train: NDArray[np.int64],
    before_step: int | None,
    num_bytes: int,
) -> KeptFeatures:
    model = pipeline.created.model
    own_code = settings["augment.transform"] is not None or ":" in settings["model.name"]  # which may change

    def open_files() -> FeatureFiles | None:
        limit = (
            room.parse_size(settings["data.cache_size"]) if settings["data.cache"] == "disk" else room.budget("auto")
        )
        key = _key(settings, intake, pipeline, cut, train=train)
        about = {"where": intake.source.where, "form": f"features of {settings['model.name']}"}
        return open_feature_files(key, num_bytes, limit_bytes=limit, about=about)

    batches = FeatureBatches(
        pipeline.batches,
        model,
        cut=cut,
        indices=train,
        views=settings["finetune.views"],
        before_step=before_step,
        precision=settings["training.precision"],
        open_files=None if own_code or settings["data.cache"] not in ("disk", "device") else open_files,
    )
    return KeptFeatures(batches, EvaluationFeatures(cut, before_step=before_step))


DECIDING = (
    *("data.channels", "data.resize", "data.pixel_form", "data.stored_px", "data.stored_jpeg", "data.max_pixels"),
    *("training.seed", "training.precision", "training.fp32_modules", "run.memory_format", "run.determinism"),
)
"""Settings that features follow from, besides those of augmentation."""


def _key(settings: Settings, intake: Intake, pipeline: Pipeline, cut: FeatureCut, *, train: NDArray[np.int64]) -> str:
    """A digest of all that a training set's features follow from: weights, pixels, what is drawn, and the arithmetic."""
    model, spec, device = pipeline.created.model, pipeline.created.spec, torch.device(settings["run.device"])
    frozen = combined_digest(digests_of(model, frozen_atoms(model)))
    plain = settings.plain()
    values = [f"{name} = {plain[name]}" for name in plain if name in DECIDING or name.startswith("augment.")]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    arithmetic = [device.type, name, torch.__version__, torch.get_num_threads(), backend(device)]
    by_content = train if settings["data.cache_key"] == "content" else None
    samples = entries_of(intake.source, by_content)[train].tolist()
    return digest(
        ["features", 1, frozen, repr(cut), json.dumps(spec.to_dict(), sort_keys=True)],
        values,
        [*arithmetic, DECODER, RESIZER, PIL.__version__],
        samples,
    )
