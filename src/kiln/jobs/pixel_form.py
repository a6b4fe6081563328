"""What training crops from: the files, or reduced copies that are made once and kept."""

from __future__ import annotations

import math

from kiln.data import room
from kiln.data.cache import StoredForm, StoredSource, open_store, stored_shapes
from kiln.data.source import Source
from kiln.jobs.intake import Intake
from kiln.jobs.resolve import Settings, sample_headers
from kiln.pixels import PixelContract

LARGEST_STORED_BYTES = 20 * 10**9
"""A training set whose reduced copies would take more is cropped from its files."""


def training_source(settings: Settings, intake: Intake, contract: PixelContract) -> Source | StoredSource:
    """The source that training reads, in the pixel form that the recipe or the stated rule says.

    The rule looks at the data alone, so that the same recipe is the same training on every machine. Whether the copies
    are kept is a question of room, and changes no byte of what the model sees.
    """
    form = _stored_form(settings, contract)
    source, train = intake.source, intake.split.train
    if settings.asks("data.pixel_form"):
        settings.decide("data.pixel_form", *_rule(settings, intake, form))
    stored = settings["data.pixel_form"] == "stored"
    if settings.asks("data.cache"):
        settings.decide(
            "data.cache", "disk" if stored else "off", "copies are kept" if stored else "there are no copies"
        )
    if settings.asks("data.cache_size"):
        settings.decide("data.cache_size", f"{room.budget('auto')}B", "a tenth of what the disk has for caches")
    keeps, limit = settings["data.cache"] != "off", room.parse_size(settings["data.cache_size"])
    if not stored:
        return source
    shapes = stored_shapes(source, train.tolist(), form)
    store = open_store(source, shapes, form, limit_bytes=limit) if keeps else None
    if keeps and store is None:
        settings.reasons["data.cache"] = (
            "no room for it: each image is decoded in every epoch (--cache-size, kiln cache clear)"
        )
    elif store is not None:
        size = f"{store.num_bytes / 1e6:,.0f} MB"
        settings.reasons["data.cache"] = f"{size} in {store.folder}, {store.filled():.0%} there already"
    return StoredSource(source, form, store)


def _stored_form(settings: Settings, contract: PixelContract) -> StoredForm:
    if settings.asks("data.stored_px"):
        smallest = settings["augment.crop_scale"][0]
        px = min(math.ceil(contract.height / math.sqrt(smallest)), 2 * contract.height)
        settings.decide("data.stored_px", px, f"a crop of {smallest:.0%} of the area still has {contract.height} px")
    return StoredForm(
        px=settings["data.stored_px"],
        channels=contract.channels,
        interpolation=contract.interpolation,
        max_pixels=contract.max_pixels,
    )


def _rule(settings: Settings, intake: Intake, form: StoredForm) -> tuple[str, str]:
    if settings["augment.policy"] == "none":
        return "original", "without crops, training sees the contract's own image"
    headers = sample_headers(intake.source, intake.split.train) if intake.source.has_headers else []
    if not headers:
        return "original", "the data are no image files"
    shapes = [form.shape_of(header) for header in headers]
    total = len(intake.split.train) * sum(math.prod(shape) for shape in shapes) / len(shapes)
    if total > LARGEST_STORED_BYTES:
        return "original", f"reduced copies would take {total / 1e9:,.0f} GB"
    return "stored", f"copies of {form.px} px, decoded once, take about {total / 1e6:,.0f} MB"
