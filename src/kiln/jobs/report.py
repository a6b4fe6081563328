"""`report`: one page that says what a run reached, where it fails, and why."""

from __future__ import annotations

import csv
import os
import shlex
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kiln import pixels, random
from kiln.data.checks.looks import small_image
from kiln.data.images import BadSample, ContractImages
from kiln.data.prefetch import prefetched
from kiln.data.source import Source
from kiln.errors import ArtifactError, DataError, KilnError, UsageError
from kiln.jobs.intake import open_recipe_source
from kiln.language import speaking, tr
from kiln.models.ensemblefile import ENSEMBLE
from kiln.observe.outputs import KeptOutputs
from kiln.reports.run_page.material import Explain, Material
from kiln.reports.run_page.page import report_page
from kiln.reports.run_page.pictures import Photographs
from kiln.run import (
    BAD_FILES,
    ENVIRONMENT,
    FOLDS,
    OUTPUTS,
    REPORT,
    RESULT,
    Run,
    is_run,
    read_json,
    write_atomically,
)
from kiln.runtimes import models_of_folds

MOST_LOOKED_AT = 2000
"""Samples whose size, brightness and contrast are measured; of more, so many drawn by chance."""
_LOOK_PX = 64
_WORKERS = 2
PROPERTIES = ("size", "aspect", "brightness", "contrast")


def report(
    run: str | os.PathLike[str] | Run,
    *,
    output: str | os.PathLike[str] | None = None,
    lang: str | None = None,
    saliency: bool = True,
    split: str | None = None,
    trust: Sequence[str] = (),
) -> Path:
    """Write one page about a finished run: no network, below 5 MB, for phone, screen and paper.

    Args:
        run: a run folder, or a `Run`.
        output: the file to write; `report.html` in the run's folder by default.
        lang: `en`, or `zh` for Simplified Chinese; the language of the moment without it.
        saliency: show where the model looked, which takes a pass over the samples shown. Needs captum.
        split: `test` or `val`; the part to look into. By default test, and validation where there is none.
        trust: `module:function` names that the model file may run, for saliency.
    Returns: the file.
    Raises: UsageError: an unknown language or split, or the run is not finished. ArtifactError: a damaged file.
    """
    found = run if isinstance(run, Run) else _run_of(Path(run))
    return write_report(found, lang=lang, saliency=saliency, output=output, split=split, trust=trust)


def _run_of(path: Path) -> Run:
    """The run in a folder. Raises: UsageError: it holds none, or an ensemble."""
    if (path / ENSEMBLE).is_file() and not is_run(path):
        hint = f"kiln evaluate {shlex.quote(str(path))} DATA measures it; kiln report RUN for each member's run"
        raise UsageError("E103", f"{path} is an ensemble, and no run to report on", hint=hint)
    return Run(path)


def write_report(
    run: Run,
    *,
    lang: str | None = None,
    saliency: bool = True,
    output: str | os.PathLike[str] | None = None,
    split: str | None = None,
    trust: Sequence[str] = (),
    source: Source | None = None,
) -> Path:
    """The same for a run at hand; `source` saves opening its data again."""
    if (run.path / FOLDS).is_file():
        raise models_of_folds(run.path)
    if not (run.path / RESULT).is_file():
        raise UsageError(
            "E105", f"{run.path} is not finished: it has no {RESULT}", hint=f"kiln resume {shlex.quote(str(run.path))}"
        )
    with speaking(lang):
        material = _material(run, split, saliency=saliency, trust=trust, source=source)
        page = report_page(material, split=split)
    target = run.path / REPORT if output is None else Path(output)
    write_atomically(target, page.encode("utf-8", "replace"))
    return target


def _material(run: Run, split: str | None, *, saliency: bool, trust: Sequence[str], source: Source | None) -> Material:
    result, outputs = run.result, _outputs(run)
    there = list(result.get("metrics", {}))
    if split is not None and split not in there:
        raise UsageError("E101", f"the run measured no split {split!r}", got=split, choices=there)
    source, no_pictures = (source, "") if source is not None else _source(run)
    max_pixels = int(run.resolved["values"].get("data.max_pixels", pixels.MAX_PIXELS))
    chosen = split or (there[-1] if there else "")
    part = outputs.splits.get(chosen) if outputs is not None else None
    if source is not None and part is not None and not set(part.keys) <= set(source.keys):
        no_pictures = tr("Some pictures are missing: the data no longer hold all the images that were measured.")
    explain, no_saliency = (None, "") if source is None or not saliency else _explain(run, source, trust)
    return Material(
        run.path.name,
        str(run.path),
        result,
        run.resolved,
        read_json(run.path / ENVIRONMENT, kind="environment") if (run.path / ENVIRONMENT).is_file() else {},
        run.metrics(),
        _bad_files(run.path / BAD_FILES),
        outputs,
        Photographs(source, max_pixels),
        no_pictures,
        _properties(source, part.keys, max_pixels) if source is not None and part is not None else {},
        explain,
        no_saliency,
        run.speed,
    )


def _outputs(run: Run) -> KeptOutputs | None:
    return run.outputs() if (run.path / OUTPUTS).is_file() else None


def _bad_files(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def _source(run: Run) -> tuple[Source | None, str]:
    """The data of the run, and, where they cannot be opened, why there are no pictures."""
    recipe = run.recipe
    if recipe.data.path is None:
        return None, tr("There are no pictures: the run was trained on objects given from Python.")
    try:
        return open_recipe_source(recipe, None), ""
    except KilnError:
        return None, tr("There are no pictures: the data are no longer at {where}.", where=recipe.data.path)


def _properties(source: Source, keys: Sequence[str], max_pixels: int) -> dict[str, NDArray[np.float64]]:
    """Size, aspect ratio, brightness and contrast of the samples, as far as they are looked at."""
    index = {key: number for number, key in enumerate(source.keys)}
    rows = list(range(len(keys)))
    if len(keys) > MOST_LOOKED_AT:
        draws = random.bits(0, random.Purpose.BOOTSTRAP, epoch=2, sample=np.arange(len(keys)))
        rows = np.argsort(draws.ravel(), kind="stable")[:MOST_LOOKED_AT].tolist()
    wanted = [(row, index[keys[row]]) for row in rows if keys[row] in index]
    found = np.full((len(PROPERTIES), len(keys)), np.nan)
    look = partial(_look, source, max_pixels)
    made = prefetched(look, [number for _, number in wanted], workers=_WORKERS, ahead=8 * _WORKERS)
    for (row, _), facts in zip(wanted, made, strict=True):
        found[:, row] = facts
    return dict(zip(PROPERTIES, found, strict=True))


def _look(source: Source, max_pixels: int, index: int) -> tuple[float, float, float, float]:
    """The shorter side, width over height, mean and standard deviation of the grey levels; NaN where it is unreadable."""
    nothing = float("nan")
    try:
        data = source.read(index)
        image = small_image(data, at_least_px=_LOOK_PX, max_pixels=max_pixels)
        width, height = image.size
        if isinstance(data, bytes):
            header = pixels.probe(data, max_pixels=max_pixels)
            width, height = header.width, header.height
        grey = np.asarray(image.convert("L"), np.float64)
        return float(min(width, height)), width / height, float(grey.mean()), float(grey.std())
    except (pixels.PixelError, DataError):
        return nothing, nothing, nothing, nothing


def _explain(run: Run, source: Source, trust: Sequence[str]) -> tuple[Explain | None, str]:
    """What tells where the model looked, or why there is no such thing."""
    from kiln.measure import saliency

    if not saliency.is_available():
        return None, tr("Where the model looked is not shown: that needs captum (pip install 'torchkiln[explain]').")
    if source.transformed:
        return None, tr("Where the model looked is not shown: the data come transformed.")
    try:
        return _Explainer(run, source, trust), ""
    except KilnError as error:
        return None, tr("Where the model looked is not shown: {why}.", why=error.what)


class _Explainer:
    """Tells where a run's model looked.

    Args:
        run: with its model file.
        source: of the samples.
        trust: code that the model file may name.
    Raises: KilnError: the model cannot be read, or has no features that keep their place.
    """

    def __init__(self, run: Run, source: Source, trust: Sequence[str]) -> None:
        import torch

        from kiln.measure.saliency import feature_layer
        from kiln.models.modelfile import read_model
        from kiln.models.normalize import Normalized

        if not run.model_file.is_file():
            raise ArtifactError("E307", f"{run.model_file}: no such file")
        file = read_model(run.model_file, trusted=tuple(trust))
        if file.contract.resize == "keep":
            raise UsageError("E107", "the images have sizes of their own")
        self._network = Normalized(file.model, file.spec.mean, file.spec.std, per_image=file.spec.per_image).eval()
        self._images = ContractImages(source, file.contract)
        self._index = {key: index for index, key in enumerate(source.keys)}
        height, width, channels = self._images.shape
        feature_layer(self._network, torch.full((1, channels, height, width), 127.0))

    def __call__(
        self, keys: Sequence[str], outputs: Sequence[int]
    ) -> Mapping[str, tuple[NDArray[np.uint8], NDArray[np.float32]]]:
        """See `kiln.reports.run_page.material.Explain`; what cannot be read is left out."""
        import torch

        from kiln.measure.saliency import saliency

        loaded: dict[str, tuple[NDArray[np.uint8], int]] = {}
        for key, output in zip(keys, outputs, strict=True):
            image = self._load(key)
            if image is not None:
                loaded[key] = (image, output)
        if not loaded:
            return {}
        images = torch.from_numpy(np.stack([image for image, _ in loaded.values()])).float()
        maps = saliency(self._network, images, [output for _, output in loaded.values()])
        return {key: (image, heat) for (key, (image, _)), heat in zip(loaded.items(), maps, strict=True)}

    def _load(self, key: str) -> NDArray[np.uint8] | None:
        """(C, H, W)"""
        if key not in self._index:
            return None
        try:
            return np.ascontiguousarray(np.moveaxis(np.asarray(self._images.load(self._index[key])), -1, 0))
        except (BadSample, DataError):
            return None
