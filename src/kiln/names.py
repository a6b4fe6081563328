"""Short names for parts, resolved only when used: name -> "module:attribute"."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from kiln.errors import SecurityError, UsageError

VERBS = {
    "train": "kiln.jobs.train:train",
    "resume": "kiln.jobs.train:resume",
    "evaluate": "kiln.jobs.evaluate:evaluate",
    "predict": "kiln.jobs.predict:predict",
    "export": "kiln.jobs.export:export",
    "pack": "kiln.jobs.pack:pack",
    "check": "kiln.jobs.check:check",
    "demo": "kiln.jobs.demo:demo",
    "show": "kiln.jobs.show:show",
    "bench_data": "kiln.jobs.bench_data:bench_data",
    "load": "kiln.runtimes:load",
    "fit": "kiln.engine.fit:fit",
    "open_source": "kiln.data.source:open_source",
    "create_model": "kiln.models.create:create_model",
    "Recipe": "kiln.recipe:Recipe",
    "Run": "kiln.run:Run",
    "Batch": "kiln.batch:Batch",
    "KilnError": "kiln.errors:KilnError",
}

TASKS = {
    "classification": "kiln.tasks.classification:Classification",
    "multilabel": "kiln.tasks.multilabel:Multilabel",
}

LOSSES = {
    "cross_entropy": "kiln.losses:CrossEntropy",
    "binary_cross_entropy": "kiln.losses:BinaryCrossEntropy",
    "mse": "kiln.losses:MeanSquaredError",
}

OPTIMIZERS = {
    "sgd": "kiln.optim.optimizers:sgd",
    "adamw": "kiln.optim.optimizers:adamw",
    "adam": "torch.optim:Adam",
    "nadam": "torch.optim:NAdam",
    "radam": "torch.optim:RAdam",
    "adamax": "torch.optim:Adamax",
    "adafactor": "torch.optim:Adafactor",
    "adagrad": "torch.optim:Adagrad",
    "adadelta": "torch.optim:Adadelta",
    "rmsprop": "torch.optim:RMSprop",
    "asgd": "torch.optim:ASGD",
    "rprop": "torch.optim:Rprop",
    "lbfgs": "kiln.optim.lbfgs:LBFGS",
    "muon": "kiln.optim.muon:Muon",
}
"""timm's others by their own names: see `kiln.optim.optimizers.find_optimizer`."""

SCHEDULES = {"cosine": "kiln.optim.schedules:cosine", "constant": "kiln.optim.schedules:constant"}

TRANSFORMS: dict[str, str] = {}
"""Only the user's own, as module:name: a callable, or a class that makes one without arguments."""

SAMPLERS = {
    "shuffle": "kiln.data.sampler:Shuffle",
    "sequential": "kiln.data.sampler:Sequential",
    "weighted": "kiln.data.sampler:Weighted",
    "balanced": "kiln.data.sampler:Balanced",
}
"""The user's own, as module:name, is called with the training targets and gives an iterable of places among them."""

STRATEGIES = {"single": "kiln.engine.strategy:Single", "ddp": "kiln.engine.strategy:DataParallel"}

RUNTIMES = {"torch": "kiln.runtimes.torch:TorchRuntime", "onnx": "kiln.runtimes.onnx:OnnxRuntime"}


def load_object(target: str) -> Any:
    """Import what `module:attribute` or `path/to/file.py:attribute` names.

    Only for names that the user typed; a name found inside a file goes through `load_trusted`. The working folder is
    never put on the import path: a file of the user's own is named by its path.

    Raises: UsageError: no such module or attribute.
    """
    place, _, attribute = target.rpartition(":")
    if not place or not attribute:
        raise UsageError("E108", f"{target!r} is not module:name", expected="package.module:name or path/file.py:name")
    try:
        module = _load_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except ModuleNotFoundError as error:
        hint = f"name the file instead: {place}.py:{attribute}" if Path(f"{place}.py").exists() else ""
        raise UsageError("E108", f"cannot import {place!r}: {error}", hint=hint) from error
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [name for name in vars(found) if not name.startswith("_")]
            raise UsageError("E108", f"{place!r} has no {part!r}", got=part, choices=public)
        found = getattr(found, part)
    return found


def _load_file(path: Path) -> Any:
    if not path.is_file():
        raise UsageError("E108", f"no such file: {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UsageError("E108", f"not a Python file: {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_trusted(target: str, trusted: tuple[str, ...], *, named_by: str) -> Any:
    """Import code that a file names, if the user trusts that very name.

    Raises: SecurityError: `target` is not among `trusted`.
    """
    if target not in trusted:
        raise SecurityError(
            "E701",
            f"{named_by} names the code {target!r}, which would run here",
            hint=f"--trust {target} if you know it",
        )
    return load_object(target)


def resolve(table: dict[str, str], name: str, *, kind: str) -> Any:
    """The part that a short name (or the user's own `module:name`) stands for.

    Raises: UsageError: no such name; the closest is suggested.
    """
    if name in table:
        return load_object(table[name])
    if ":" in name:
        return load_object(name)
    raise UsageError(
        "E108", f"unknown {kind} {name!r}", got=name, choices=sorted(table), hint="or your own, as module:name"
    )
