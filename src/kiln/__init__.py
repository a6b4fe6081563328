"""Kiln turns labelled images into a classifier people can trust and ship.

Names are resolved when first used (PEP 562): importing the package costs nothing and does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "train", "resume", "evaluate", "predict", "calibrate", "ensemble", "soup", "export", "push", "pack", "check",
    "labels", "compare", "report", "demo", "show", "verify", "bench_data", "load", "fit", "open_source",
    "create_model", "Recipe", "Run", "Batch", "KilnError",
]  # fmt: skip

if TYPE_CHECKING:
    from kiln.batch import Batch
    from kiln.data.source import open_source
    from kiln.engine.fit import fit
    from kiln.errors import KilnError
    from kiln.jobs.bench_data import bench_data
    from kiln.jobs.calibrate import calibrate
    from kiln.jobs.check import check
    from kiln.jobs.compare import compare
    from kiln.jobs.demo import demo
    from kiln.jobs.ensemble import ensemble
    from kiln.jobs.evaluate import evaluate
    from kiln.jobs.export import export
    from kiln.jobs.labels import labels
    from kiln.jobs.pack import pack
    from kiln.jobs.predict import predict
    from kiln.jobs.push import push
    from kiln.jobs.report import report
    from kiln.jobs.show import show
    from kiln.jobs.soup import soup
    from kiln.jobs.train import resume, train
    from kiln.jobs.verify import verify
    from kiln.models.create import create_model
    from kiln.recipe import Recipe
    from kiln.run import Run
    from kiln.runtimes import load


def __getattr__(name: str) -> Any:
    if name in __all__:
        from kiln.names import VERBS, load_object

        found = globals()[name] = load_object(VERBS[name])
        return found
    raise AttributeError(f"module 'kiln' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
