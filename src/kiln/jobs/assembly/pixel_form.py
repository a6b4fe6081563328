"""What training crops from: the files, reduced copies that are made once, or the contract's own images; and what is kept."""

from __future__ import annotations

import math
from dataclasses import dataclass

import psutil
import torch

from kiln.data import room
from kiln.data.cache import ContractForm, FileForm, Form, StoredForm, StoredSource, bytes_needed, open_store
from kiln.data.images import ContractImages, Images, KeptImages, PaddedCropImages, RandomCropImages
from kiln.data.resident import ResidentImages, free_bytes
from kiln.data.source import Source
from kiln.data.storelog import MemoryLog
from kiln.errors import UsageError
from kiln.jobs.assembly.resolve import SMALL_PX, Settings, sample_headers
from kiln.jobs.intake import Indices, Intake
from kiln.pixels import Header, PixelContract

LARGEST_STORED_BYTES = 20 * 10**9
"""A training set whose reduced copies would take more is kept as JPEG, or cropped from its files. A constant, and not
what the disk has room for, because the same recipe must be the same training on every machine."""
JPEG_SHARE = 0.12
"""About what a JPEG of quality 90 takes of the pixels' bytes."""
QUALITY = 90
MEMORY_SHARE = 0.5
"""Of what is free, in memory or on the device, before the model is there."""


@dataclass(frozen=True)
class ImagesOf:
    """The images that training sees, and those that validation sees."""

    training: Images
    validation: ContractImages | KeptImages


def images_of(settings: Settings, intake: Intake, contract: PixelContract, train: Indices) -> ImagesOf:
    """The images that training sees, in the pixel form that the recipe or a stated rule says, and validation's.

    The rules look at the data and the recipe alone, so that the same recipe is the same training on every machine.
    Whether copies are kept is a question of room, and changes no byte of what the model sees.
    """
    source, val = intake.source, intake.split.val
    headers = sample_headers(source, train) if source.has_headers else []
    crop = _crop(settings, intake, headers, contract)
    scale, ratio, padding = (settings[f"augment.crop_{name}"] for name in ("scale", "ratio", "padding"))
    form = _pixel_form(settings, intake, headers, contract, crop)
    on_device = _settle_cache(settings, intake, contract, form, crop=crop, num_images=len(train))
    if crop == "resized":
        cropped = source if form is None else _kept(settings, source, train, form, what="training")
        training = RandomCropImages(cropped, contract, scale=scale, ratio=ratio)
        spent = _memory_of(cropped)
        return ImagesOf(training, _contract_images(settings, source, contract, val, what="validation", spent=spent))
    plain = _contract_images(settings, source, contract, train, what="training", fast=True)
    spent = _memory_of(plain.source) if isinstance(plain, KeptImages) else 0
    validation = _contract_images(settings, source, contract, val, what="validation", spent=spent)
    training = plain if crop == "none" else PaddedCropImages(plain, max(1, round(padding * contract.height)))
    if on_device:
        workers = settings["data.workers"]
        training = ResidentImages(training, train, device=torch.device(settings["run.device"]), workers=workers)
    return ImagesOf(training, validation)


def _contract_images(
    settings: Settings,
    source: Source,
    contract: PixelContract,
    indices: Indices,
    *,
    what: str,
    fast: bool = False,
    spent: int = 0,
) -> ContractImages | KeptImages:
    """The contract's own images of some samples, kept if there is room."""
    if settings["data.cache"] == "off" or not source.has_headers or not len(indices):
        return ContractImages(source, contract, fast)
    kept = _kept(settings, source, indices, ContractForm(contract, fast), what=what, spent=spent)
    return KeptImages(kept, contract) if kept.store is not None else ContractImages(source, contract, fast)


def _crop(settings: Settings, intake: Intake, headers: list[Header], contract: PixelContract) -> str:
    """How training images are cropped: `none`, `resized` or `padded`."""
    plain = settings["augment.policy"] == "none" or intake.source.transformed
    if settings.asks("augment.crop"):
        fits = headers and all((h.height, h.width) == (contract.height, contract.width) for h in headers)
        if plain:
            settings.decide("augment.crop", "none", "there is no augmentation")
        elif fits and contract.height <= SMALL_PX:
            settings.decide("augment.crop", "padded", f"small images that are all {contract.height} px already")
        else:
            settings.decide("augment.crop", "resized", "the usual for photos")
    crop = settings["augment.crop"]
    return "none" if plain else crop


def _pixel_form(
    settings: Settings, intake: Intake, headers: list[Header], contract: PixelContract, crop: str
) -> Form | None:
    """What is cropped from: a stored form, the file's bytes kept, or None for the file itself."""
    form = _stored_form(settings, contract)
    if settings.asks("data.pixel_form"):
        value, reason = _rule(intake, headers, form, crop)
        settings.decide("data.pixel_form", value, reason)
    total = len(intake.split.train) * _mean_bytes(headers, form)
    if settings.asks("data.stored_jpeg"):
        if total > LARGEST_STORED_BYTES:
            settings.decide("data.stored_jpeg", QUALITY, f"their pixels would take {total / 1e9:,.0f} GB")
        else:
            settings.decide("data.stored_jpeg", 0, "their pixels fit")
    quality = settings["data.stored_jpeg"]
    if settings["data.pixel_form"] == "stored" and crop == "resized":
        return StoredForm(form.px, form.channels, form.interpolation, form.max_pixels, quality or None)
    return FileForm() if settings["data.cache"] in ("memory", "disk") and crop == "resized" and headers else None


def _stored_form(settings: Settings, contract: PixelContract) -> StoredForm:
    if settings.asks("data.stored_px"):
        smallest = settings["augment.crop_scale"][0]
        px = min(math.ceil(contract.height / math.sqrt(smallest)), 2 * contract.height)
        settings.decide("data.stored_px", px, f"a crop of {smallest:.0%} of the area still has {contract.height} px")
    px = settings["data.stored_px"]
    return StoredForm(px, contract.channels, contract.interpolation, contract.max_pixels)


def _rule(intake: Intake, headers: list[Header], form: StoredForm, crop: str) -> tuple[str, str]:
    if crop != "resized":
        return "original", "training sees the contract's own image" + (", moved a little" if crop == "padded" else "")
    if not headers:
        return "original", "the data are no image files"
    total, most = len(intake.split.train) * _mean_bytes(headers, form), LARGEST_STORED_BYTES
    if total > most and (JPEG_SHARE * total > most or form.channels not in (1, 3)):
        return "original", f"reduced copies would take {total / 1e9:,.0f} GB"
    size = f"{total / 1e6:,.0f} MB" if total <= most else f"{JPEG_SHARE * total / 1e9:,.0f} GB as JPEG"
    return "stored", f"copies of {form.px} px, decoded once, take about {size}"


def _mean_bytes(headers: list[Header], form: StoredForm) -> float:
    return sum(form.bytes_of(header) or 0 for header in headers) / len(headers) if headers else 0.0


def _settle_cache(
    settings: Settings, intake: Intake, contract: PixelContract, form: Form | None, *, crop: str, num_images: int
) -> bool:
    """Decide where images are kept; returns whether the training set lives on the device."""
    needed = num_images * contract.height * contract.width * contract.channels
    if settings.asks("data.cache"):
        plain_files = form is None and settings["data.pixel_form"] == "original" and crop == "resized"
        accelerated = torch.device(settings["run.device"]).type != "cpu"
        if accelerated and intake.source.has_headers and not _why_not_there(settings, intake, crop, needed):
            settings.decide("data.cache", "device", "the training set fits there")
        else:
            reason = "for validation; training crops from the files" if plain_files else "what is made once is kept"
            settings.decide("data.cache", "disk", reason)
    for name in ("data.cache_size", "data.cache_key"):
        settings[name]  # without effect only where the cache is off, which may have been decided elsewhere
    tier = settings["data.cache"]
    if tier == "device":
        if why := _why_not_there(settings, intake, crop, needed):
            raise UsageError("E103", f"data.cache = 'device', but {why}", hint="--cache disk or --cache memory")
        there = f"{settings['run.device']}, room for {_device_room(settings) / 1e6:,.0f} MB"
        note = f"training: {needed / 1e6:,.1f} MB on {there}"
        settings.reasons["data.cache"] = "; ".join(filter(None, [settings.reasons.get("data.cache", ""), note]))
    if settings.asks("data.cache_size"):
        if tier == "device":
            settings.decide(
                "data.cache_size", room.size_text(_device_room(settings)), "half of what is free on the device"
            )
        elif tier == "memory":
            half = int(MEMORY_SHARE * psutil.virtual_memory().available)
            settings.decide("data.cache_size", room.size_text(half), "half of the memory that is free")
        else:
            settings.decide(
                "data.cache_size", room.size_text(room.budget("auto")), "a tenth of what the disk has for caches"
            )
    return tier == "device"


def _why_not_there(settings: Settings, intake: Intake, crop: str, needed: int) -> str | None:
    """Why a training set cannot live on the device; None where it can."""
    if intake.source.transformed:
        return "the data come already transformed"
    if settings["augment.transform"] is not None:
        return f"augment.transform = {settings['augment.transform']!r} runs on the host"
    if crop == "resized":  # with antialiasing the device's own arithmetic gives other bytes than the host's
        return "augment.crop = 'resized' is made on the host; the device gathers crops without resizing: padded or none"
    limit = _device_room(settings)
    return None if needed <= limit else f"{needed:,} bytes are needed and {limit:,} may be taken"


def _device_room(settings: Settings) -> int:
    """Bytes that a training set may take on the device."""
    if not settings.asks("data.cache_size"):
        return room.parse_size(settings["data.cache_size"])
    device = torch.device(settings["run.device"])
    sharing = settings["run.processes"] if device.type in ("cpu", "mps") else 1
    return int(MEMORY_SHARE * free_bytes(device)) // sharing


def _memory_of(kept: Source | StoredSource) -> int:
    """Bytes that may be kept in memory for these; what is on disk is counted there."""
    store = kept.store if isinstance(kept, StoredSource) else None
    return len(store.log.data) if store is not None and isinstance(store.log, MemoryLog) else 0


def _kept(
    settings: Settings, source: Source, indices: Indices, form: Form, *, what: str, spent: int = 0
) -> StoredSource:
    """The source in a form, kept where the settings say and as far as there is room beside what is `spent`."""
    tier = settings["data.cache"]
    if tier == "off":
        return StoredSource(source, form, None)
    limit = room.parse_size(settings["data.cache_size"]) - spent
    if tier == "device":  # filled from the disk, where validation's images are kept too
        tier, limit = "disk", room.budget("auto")
    needed = bytes_needed(source, form, sample_headers(source, indices), indices.tolist())
    by_content = indices if settings["data.cache_key"] == "content" else None
    store = open_store(source, form, tier=tier, needed=needed, limit_bytes=limit, by_content=by_content)
    if store is None:
        note = f"{what}: no room for it: each image is made in every epoch (--cache-size, kiln cache clear)"
    else:
        place = getattr(store.log, "folder", "memory")
        there = store.filled_of(indices)
        part = "" if len(store.log.data) >= needed else f", room for {len(store.log.data) / needed:.0%}"
        note = f"{what}: {needed / 1e6:,.0f} MB in {place}, {there:.0%} there already{part}"
    before = settings.reasons.get("data.cache", "")
    settings.reasons["data.cache"] = f"{before}; {note}" if before else note
    return StoredSource(source, form, store)
