"""A training's batches: the model's input, which samples in which order, how they are augmented."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kiln.augment import Mixing, OnDevice, Policy, Standardized, policy
from kiln.augment.progressive import Progressive
from kiln.data.collate import Collate, pad
from kiln.data.images import ContractImages, Images
from kiln.data.loader import Assembler, BadFiles, TrainLoader
from kiln.data.resident import ResidentImages
from kiln.data.sampler import (
    Balanced,
    Cut,
    Foreign,
    Repeated,
    Sampler,
    Sequential,
    Shuffle,
    Weighted,
    class_weights,
)
from kiln.data.storage import counted
from kiln.data.transform import TransformedImages
from kiln.engine.strategy import Strategy
from kiln.errors import DataError, UsageError
from kiln.jobs.assembly.pixel_form import images_of
from kiln.jobs.assembly.resolve import Settings, chosen_samples, strata_of
from kiln.jobs.intake import Indices, Intake
from kiln.models.create import Created, create_model
from kiln.models.initialise import initialise
from kiln.models.normalize import standardize_images
from kiln.models.sizes import takes
from kiln.names import COLLATES, SAMPLERS, TRANSFORMS, resolve
from kiln.pixels import PixelContract
from kiln.random import keys_of

MEASURED_IMAGES = 2048
"""Of how many training images mean and standard deviation are measured, at most."""


@dataclass(frozen=True)
class Pipeline:
    """What a training sees: its batches, and what is needed to read them."""

    batches: OnDevice | Progressive
    loader: TrainLoader
    created: Created
    contract: PixelContract
    bad_files: BadFiles
    validation: Images


def assemble_batches(settings: Settings, intake: Intake, strategy: Strategy, *, resuming: bool = False) -> Pipeline:
    """Build the batches of a training without what learns from them.

    Raises: UsageError: settings that do not fit each other or the data.
    """
    device = torch.device(settings["run.device"])
    created = _created(settings, intake, resuming)
    contract = _contract(settings, created)
    created = _normalized(settings, intake, created, contract)
    train = chosen_samples(settings, intake)
    bad_files = BadFiles(intake.source.keys, limit=settings["data.max_bad_fraction"] * len(train))
    images = images_of(settings, intake, contract, train)
    augment, mixing = _augmentation(settings, intake)
    seed, keys = settings["training.seed"], keys_of(intake.source.keys)
    sampler = _sampler(settings, intake, train)
    loader = TrainLoader(
        Assembler(_transformed(settings, intake, images.training), intake.targets, _collate(settings, created)),
        sampler,
        _cut(settings, len(sampler), strategy, pairs=mixing is not None),
        keys=keys,
        bad_files=bad_files,
        draw_params=None if augment is None else _drawing(augment, mixing, seed),
        workers=settings["data.workers"],
        ahead=settings["data.prefetch"],
    )
    soften = None if mixing is None else _softener(intake)
    mean, std = (torch.tensor(values, dtype=torch.float32) for values in (created.spec.mean, created.spec.std))
    if created.spec.per_image and augment is not None:
        augment = Standardized(augment, standardize_images)
    gather = images.training.gather if isinstance(images.training, ResidentImages) else None
    batches = OnDevice(loader, augment, device=device, mean=mean, std=std, mixing=mixing, soften=soften, gather=gather)
    return Pipeline(
        batches=_growing(settings, batches, created),
        loader=loader,
        created=created,
        contract=contract,
        bad_files=bad_files,
        validation=images.validation,
    )


def _growing(settings: Settings, batches: OnDevice, created: Created) -> OnDevice | Progressive:
    """The same batches, of smaller images first where that was asked for.

    Raises: UsageError: a first size that is not smaller, or that the model does not take.
    """
    first, reached, full = settings["augment.first_px"], settings["augment.full_px_from"], created.spec.img_size
    if first is None:
        return batches
    if first >= full or not takes(created.model, channels=created.spec.channels, img_size=first):
        raise UsageError(
            "E102",
            f"augment.first_px = {first} with {created.spec.name} at {full} px",
            expected=f"less than {full}, and a size that the model can be trained on",
            hint="a model with global pooling takes several sizes; a vision transformer is built for one",
        )
    steps = len(batches)
    total = settings["training.epochs"].to_steps(steps_per_epoch=steps)
    return Progressive(
        batches, first_px=first, full_px=full, full_step=reached.to_steps(steps_per_epoch=steps, total_steps=total)
    )


def _created(settings: Settings, intake: Intake, resuming: bool) -> Created:
    asked, weights = settings["model.img_size"], settings["model.weights"]
    created = create_model(
        settings["model.name"],
        num_classes=intake.task.num_outputs(intake.classes),
        channels=settings["data.channels"],
        img_size=None if asked == "auto" else asked,
        weights="none" if resuming else weights,
        drop=settings["model.drop"],
        drop_path=settings["model.drop_path"],
        kwargs=settings["model.kwargs"],
        seed=settings["training.seed"],
        classes=intake.classes,
    )
    rules = settings["model.init"]
    if rules and not resuming:
        train = intake.targets[intake.split.train]
        counts = intake.task.class_counts(train, intake.task.num_outputs(intake.classes))
        prior = intake.task.prior_logits(counts, len(train)).tolist()
        given = initialise(created.model, rules, seed=settings["training.seed"], prior=prior)
        created = replace(
            created, notes=(*created.notes, f"{counted(len(given), 'parameter')} initialised by model.init")
        )
    if asked == "auto":
        settings.decide("model.img_size", created.spec.img_size, f"{created.spec.name} was made for it")
    return created


def _contract(settings: Settings, created: Created) -> PixelContract:
    spec = created.spec
    return PixelContract(
        height=spec.img_size,
        width=spec.img_size,
        channels=spec.channels,
        resize=settings["data.resize"],
        interpolation=spec.interpolation,
        crop_fraction=spec.crop_fraction,
        max_pixels=settings["data.max_pixels"],
    )


def _normalized(settings: Settings, intake: Intake, created: Created, contract: PixelContract) -> Created:
    """The model with the mean and standard deviation that it is to be trained, and will be shipped, with."""
    if settings["model.normalize"] == "image":
        if intake.source.transformed:
            raise UsageError("E103", "model.normalize = 'image', but the data come already transformed")
        for name, value in (("model.mean", 0.0), ("model.std", 1.0)):
            if settings.asks(name):
                settings.decide(name, (value,) * contract.channels, "each image is standardised by itself")
    asked = {"mean": settings["model.mean"], "std": settings["model.std"]}
    if "train" in asked.values():
        measured = _measured(intake, contract)
        for name, value in asked.items():
            if value == "train":
                values = tuple(round(float(number), 6) for number in measured[name])
                settings.decide(f"model.{name}", values, f"measured on {measured['count']} training images")
    for name in asked:
        if settings.asks(f"model.{name}"):
            settings.decide(f"model.{name}", tuple(getattr(created.spec, name)), f"that of {created.spec.name}")
        if len(settings[f"model.{name}"]) != contract.channels:
            raise UsageError(
                "E103",
                f"model.{name} = {list(settings[f'model.{name}'])}",
                expected=f"{contract.channels} numbers, one for each channel",
            )
    mean, std = (tuple(settings[f"model.{name}"]) for name in asked)
    per_image = settings["model.normalize"] == "image"
    return replace(created, spec=replace(created.spec, mean=mean, std=std, per_image=per_image))


def _measured(intake: Intake, contract: PixelContract) -> dict[str, Any]:
    """Mean and standard deviation of each channel over some training images, evenly spread, in 0 to 1."""
    if intake.source.transformed:
        raise UsageError("E103", "model.mean = 'train', but the data come already transformed")
    train = intake.split.train
    chosen = train[:: max(1, len(train) // MEASURED_IMAGES)][:MEASURED_IMAGES]
    made = Assembler(ContractImages(intake.source, contract), intake.targets).make(chosen, None, chosen)
    if not len(made.batch):
        raise DataError("E204", "no training image can be read, so their mean is unknown", where=intake.source.where)
    levels = made.batch.images.transpose(0, 1).flatten(1)
    counts = torch.stack([torch.bincount(channel, minlength=256) for channel in levels]).double()
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = (counts * values).sum(1) / counts.sum(1)
    std = ((counts * (values - mean[:, None]) ** 2).sum(1) / counts.sum(1)).sqrt()
    return {"mean": mean.tolist(), "std": std.clamp_min(1 / 255).tolist(), "count": len(made.batch)}


def _transformed(settings: Settings, intake: Intake, images: Images) -> Images:
    """The images as the user's own transform changes them."""
    name = settings["augment.transform"]
    if name is None:
        return images
    if intake.source.transformed:
        raise UsageError("E103", f"augment.transform = {name!r}, but the data come already transformed")
    named = resolve(TRANSFORMS, name, kind="transform")
    return TransformedImages(images, named() if isinstance(named, type) else named)


def _collate(settings: Settings, created: Created) -> Collate | None:
    """What puts samples together; None stacks them.

    Raises: UsageError: samples are padded, and the model takes no mask.
    """
    name = settings["data.collate"]
    if name == "stack":
        return None
    if settings["data.cache"] == "device":
        raise UsageError("E103", f"data.collate = {name!r} runs on the host, and data.cache = 'device'")
    made = resolve(COLLATES, name, kind="collate")
    parameters = inspect.signature(created.model.forward).parameters.values()
    if made is pad and not any(entry.name == "mask" or entry.kind is entry.VAR_KEYWORD for entry in parameters):
        raise UsageError(
            "E107",
            f"data.collate = 'pad', and the forward of {created.spec.name} takes no mask",
            expected="forward(images, mask=None), mask (B, H, W) true where there is image",
            hint="--model module:function for one that does, or --set data.collate=stack data.resize=pad",
        )
    return made


def _sampler(settings: Settings, intake: Intake, train: Indices) -> Sampler:
    name, seed, how = settings["data.sampler"], settings["training.seed"], settings["data.sample_weights"]
    keys = keys_of([intake.source.keys[index] for index in train.tolist()])
    found = resolve(SAMPLERS, name, kind="sampler")
    made: Sampler
    if found is Shuffle:
        made = Shuffle(train, keys, seed=seed)
    elif found is Sequential:
        made = Sequential(train, seed=seed)
    elif found is Weighted:
        made = Weighted(train, class_weights(strata_of(intake, train), how), seed=seed)
    elif found is Balanced:
        made = Balanced(train, keys, strata_of(intake, train), seed=seed)
    else:
        made = Foreign(train, found(intake.targets[train]), seed=seed)
    repeats = settings["data.repeats"]
    return made if repeats == 1 else Repeated(made, repeats)


def _cut(settings: Settings, num_samples: int, strategy: Strategy, *, pairs: bool) -> Cut:
    cut = Cut(
        num_samples=num_samples,
        batch_size=settings["training.batch_size"],
        drop_last=settings["training.drop_last"],
        rank=strategy.rank,
        world_size=strategy.world_size,
        pairs=pairs,
    )
    if cut.steps_per_epoch == 0:
        raise UsageError(
            "E103",
            f"training.batch_size = {cut.batch_size} is more than the {num_samples} training samples, and drop_last is on",
            hint="a smaller --batch-size, or --set training.drop_last=false",
        )
    return cut


def _augmentation(settings: Settings, intake: Intake) -> tuple[Policy | None, Mixing | None]:
    """What is done on the device: nothing to images that come transformed, except that they may be mixed."""
    made = policy(settings["augment.policy"], hflip=settings["augment.hflip"], vflip=settings["augment.vflip"])
    mixup, cutmix, share = (settings[f"augment.{name}"] for name in ("mixup", "cutmix", "mix_prob"))
    mixing = Mixing(mixup_alpha=mixup, cutmix_alpha=cutmix, p=share) if mixup + cutmix > 0 else None
    if intake.source.transformed:
        if mixing is not None:
            raise UsageError("E103", "augment.mixup and augment.cutmix need images, and these data come transformed")
        return None, None
    return made, mixing


def _drawing(augment: Policy, mixing: Mixing | None, seed: int) -> Callable[[int, Any], Any]:
    def draw(epoch: int, keys: Any) -> Any:
        params = augment.draw(seed, epoch, keys)
        return params if mixing is None else np.concatenate([params, mixing.draw(seed, epoch, keys)], axis=1)

    return draw


def _softener(intake: Intake) -> Callable[[Tensor], Tensor]:
    num_outputs = intake.task.num_outputs(intake.classes)
    return lambda targets: intake.task.soften(targets, num_outputs)
