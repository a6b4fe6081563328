"""Short names for parts, resolved only when used: name -> "module:attribute"."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

from kiln.errors import SecurityError, UsageError

VERBS = {
    "train": "kiln.jobs.train:train",
    "resume": "kiln.jobs.train:resume",
    "evaluate": "kiln.jobs.evaluate:evaluate",
    "predict": "kiln.jobs.predict:predict",
    "calibrate": "kiln.jobs.calibrate:calibrate",
    "ensemble": "kiln.jobs.ensemble:ensemble",
    "soup": "kiln.jobs.soup:soup",
    "export": "kiln.jobs.export:export",
    "push": "kiln.jobs.push:push",
    "pack": "kiln.jobs.pack:pack",
    "report": "kiln.jobs.report:report",
    "check": "kiln.jobs.check:check",
    "labels": "kiln.jobs.labels:labels",
    "compare": "kiln.jobs.compare:compare",
    "demo": "kiln.jobs.demo:demo",
    "show": "kiln.jobs.show:show",
    "verify": "kiln.jobs.verify:verify",
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

OUTPUTS_READER = "kiln.observe.outputs:read_outputs"

TASKS = {
    "classification": "kiln.tasks.classification:Classification",
    "multilabel": "kiln.tasks.multilabel:Multilabel",
}

LOSSES = {
    "cross_entropy": "kiln.losses:CrossEntropy",
    "binary_cross_entropy": "kiln.losses:BinaryCrossEntropy",
    "focal": "kiln.losses:Focal",
    "binary_focal": "kiln.losses:BinaryFocal",
    "asymmetric": "kiln.losses:Asymmetric",
    "asymmetric_softmax": "kiln.losses:AsymmetricSoftmax",
    "poly1": "kiln.losses:Poly1",
    "dice": "kiln.losses:Dice",
    "tversky": "kiln.losses:Tversky",
    "jaccard": "kiln.losses:Jaccard",
    "generalized_dice": "kiln.losses:GeneralizedDice",
    "mse": "kiln.losses:MeanSquaredError",
    "mae": "kiln.losses:MeanAbsoluteError",
    "huber": "kiln.losses:Huber",
    "supervised_contrastive": "kiln.losses:SupervisedContrastive",
    "l1_weights": "kiln.losses:L1Weights",
    "l2_weights": "kiln.losses:L2Weights",
    "l1_outputs": "kiln.losses:L1Outputs",
    "l2_outputs": "kiln.losses:L2Outputs",
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

SCHEDULES = {
    "cosine": "kiln.optim.schedules:cosine",
    "cosine_restarts": "kiln.optim.schedules:cosine_restarts",
    "constant": "kiln.optim.schedules:constant",
    "linear": "kiln.optim.schedules:linear",
    "polynomial": "kiln.optim.schedules:polynomial",
    "exponential": "kiln.optim.schedules:exponential",
    "step": "kiln.optim.schedules:step",
    "multistep": "kiln.optim.schedules:multistep",
    "inverse_sqrt": "kiln.optim.schedules:inverse_sqrt",
    "wsd": "kiln.optim.schedules:wsd",
    "one_cycle": "kiln.optim.schedules:one_cycle",
    "cyclic": "kiln.optim.schedules:cyclic",
    "lambda": "kiln.optim.schedules:lambda_",
    "multiplicative": "kiln.optim.schedules:multiplicative",
    "sequential": "kiln.optim.schedules:sequential",
    "chained": "kiln.optim.schedules:chained",
    "plateau": "kiln.optim.schedules:Plateau",
}

TRANSFORMS: dict[str, str] = {}
"""Only the user's own, as module:name: a callable, or a class that makes one without arguments."""

COLLATES = {"pad": "kiln.data.collate:pad"}
"""The user's own, as module:name: [(image, target), ...] -> images, targets and perhaps sizes."""

SAMPLERS = {
    "shuffle": "kiln.data.sampler:Shuffle",
    "sequential": "kiln.data.sampler:Sequential",
    "weighted": "kiln.data.sampler:Weighted",
    "balanced": "kiln.data.sampler:Balanced",
}
"""The user's own, as module:name, is called with the training targets and gives an iterable of places among them."""

STRATEGIES = {"single": "kiln.engine.strategy:Single", "ddp": "kiln.engine.strategy:DataParallel"}

RUNTIMES = {
    "torch": "kiln.runtimes.torch:TorchRuntime",
    "onnx": "kiln.runtimes.onnx:OnnxRuntime",
    "ensemble": "kiln.runtimes.ensemble:EnsembleRuntime",
}


OBJECT = "object:"
_objects: dict[str, Any] = {}


def name_of(part: Any) -> str:
    """The text by which a recipe names an object given from Python.

    What a module holds under its own name (a function, a class) is named `module:name`, and can be found again in any
    process. Anything else (an instance, a lambda, what is written in a session) is named `object:NAME` and known to this
    process only: who resumes such a run gives the object again.
    """
    module, name = getattr(part, "__module__", None), getattr(part, "__qualname__", None)
    found: Any = sys.modules.get(module) if module not in (None, "__main__") else None
    for step in (name or "").split("."):
        found = getattr(found, step, None)
    if found is part and isinstance(name, str):
        return f"{module}:{name}"
    name = f"{OBJECT}{re.sub('[^A-Za-z0-9_.]+', '_', name or type(part).__qualname__).strip('_')}"
    _objects[name] = part
    return name


def names_code(name: str) -> bool:
    """Whether a metric's name is the user's own, `module:name`, and not that of a class, `recall[CLASS]`."""
    return ":" in name and not name.endswith("]")


def load_object(target: str) -> Any:
    """Import what `module:attribute` or `path/to/file.py:attribute` names.

    Only for names that the user typed; a name found inside a file goes through `load_trusted`. The working folder is
    never put on the import path: a file of the user's own is named by its path.

    Raises: UsageError: no such module or attribute.
    """
    if target.startswith(OBJECT):
        if target in _objects:
            return _objects[target]
        what = f"{target!r} was an object given from Python, in another process"
        raise UsageError("E108", what, hint="give it again, or put it into a module or a file and name that")
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
    if target not in trusted and not target.startswith(OBJECT):  # an object was given in this process, or is not here
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
