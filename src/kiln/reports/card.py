"""The model card: what a run knows of its model, in the form that the Hugging Face hub reads. Nothing is made up."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kiln.data.storage import counted
from kiln.models.modelheader import read_header
from kiln.redact import redact, without_places
from kiln.reports.card_limits import calibration, limits
from kiln.run import CARD, ENVIRONMENT, RESULT, Run, read_json, write_atomically

TEMPLATE = "card.md.jinja"
LIBRARY = "kiln"
PIPELINE = "image-classification"
UNKNOWN = "unknown"
"""What the hub calls a license that nobody has stated."""
SPLITS = {"val": "validation", "test": "test"}
SETTINGS = {
    "model.name": "model",
    "model.weights": "initial weights",
    "finetune.mode": "what is trained",
    "training.epochs": "length",
    "training.batch_size": "batch size",
    "optim.name": "optimizer",
    "optim.lr": "learning rate",
    "optim.weight_decay": "weight decay",
    "schedule.name": "schedule",
    "schedule.warmup": "warmup",
    "loss.name": "loss",
    "loss.smoothing": "label smoothing",
    "augment.policy": "augmentation",
    "augment.mixup": "mixup",
    "augment.cutmix": "cutmix",
    "training.ema_decay": "EMA decay",
    "training.precision": "precision",
    "training.seed": "seed",
}
MOST_CLASSES = 60
_HUB_REPOSITORY = re.compile(r"//[^/]+/([\w.-]+/[\w.-]+)/resolve/")


def write_card(run: Run, *, license_name: str = UNKNOWN) -> Path:
    """Write `MODEL_CARD.md` from what the run folder holds; no path of this machine and no secret gets into it.

    Args:
        run: a finished run.
        license_name: what the hub calls the license of the weights, such as `apache-2.0`.
    Returns: the file.
    Raises: ArtifactError: a file of the run is missing or damaged.
    """
    from huggingface_hub import ModelCard

    text = str(
        ModelCard.from_template(_card_data(run, license_name), str(Path(__file__).parent / TEMPLATE), **_facts(run))
    )
    path = run.path / CARD
    write_atomically(path, (redact(text).rstrip() + "\n").encode("utf-8", "backslashreplace"))
    return path


def _card_data(run: Run, license_name: str) -> Any:
    """The front matter."""
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type=PIPELINE,
            dataset_type="imagefolder",
            dataset_name=_data_name(run),
            dataset_split=SPLITS.get(split, split),
            metric_type=name,
            metric_name=name.replace("_", " "),
            metric_value=round(metric["value"], 6),
        )
        for split, name, metric in _measurements(run)
    ]
    return ModelCardData(
        license=license_name,
        library_name=LIBRARY,
        pipeline_tag=PIPELINE,
        tags=[LIBRARY, PIPELINE, _task(run).replace("_", "-")],
        model_name=run.path.resolve().name,
        eval_results=results or None,
        base_model=_base_model(run),
    )


def _facts(run: Run) -> dict[str, Any]:
    """What the template says."""
    resolved, header = run.resolved, read_header(run.model_file)
    values, facts = resolved["values"], resolved["facts"]
    details = run.result["details"] if (run.path / RESULT).exists() else {}
    last = list(details)[-1] if details else ""
    versions = read_json(run.path / ENVIRONMENT, kind="environment")["versions"]
    classes = header["classes"]
    shown = ", ".join(f"`{_cell(name)}`" for name in classes[:MOST_CLASSES])
    more = f" and {len(classes) - MOST_CLASSES} more, in the model file" if len(classes) > MOST_CLASSES else ""
    return {
        "name": _cell(run.path.resolve().name),
        "summary": f"A {_cell(_place_free(values['model.name']))} that tells {counted(len(classes), 'class')} of images apart.",
        "purpose": _purpose(_task(run), len(classes)),
        "classes_line": f"Classes: {shown}{more}.",
        "data_lines": _data_lines(run),
        "contract": _contract(header),
        "recipe": [(label, _cell(_place_free(values[name]))) for name, label in SETTINGS.items() if _set(values[name])],
        "measured": [_row(split, name, metric) for split, name, metric in _measurements(run)],
        "measured_on": "Measured once, on the model file as it is, after training; intervals are of 95 %.",
        "per_class": list(_class_rows(details.get(last, {}))),
        "last_split": SPLITS.get(last, last),
        "calibration": calibration(header.get("decision") or {}, details),
        "limits": limits(details, facts["samples"], classes),
        "versions": versions,
        "repeat": f"With {', '.join(f'{name} {_cell(version)}' for name, version in versions.items())}; "
        f"the seed is {values['training.seed']}, and DATA must have the fingerprint above.",
    }


def _purpose(task: str, num_classes: int) -> str:
    return f"Telling {num_classes} classes of images apart (task `{task}`), for images like those it was trained on."


def _task(run: Run) -> str:
    return run.resolved["values"]["task.name"]


def _data_name(run: Run) -> str:
    """The data's last name; where they lie is nobody's business."""
    where = run.resolved["values"]["data.path"]
    return _place_free(str(where).rstrip("/")).rpartition("/")[2] or UNKNOWN if where else "objects given from Python"


def _data_lines(run: Run) -> str:
    facts = run.resolved["facts"]
    counts = ", ".join(f"{SPLITS.get(name, name)} {number:,}" for name, number in facts["samples"].items() if number)
    lines = [f"`{_cell(_data_name(run))}`: {counts}."]
    if fingerprint := facts.get("data", {}).get("fingerprint"):
        lines.append(f"Fingerprint of names, sizes and labels: `{fingerprint}`.")
    return " ".join(lines)


def _contract(header: Mapping[str, Any]) -> list[str]:
    contract, spec = header["contract"], header["spec"]
    size = f"{contract['width']} x {contract['height']} px, {counted(contract['channels'], 'channel')}, uint8"
    lines = [f"{size}, by `{contract['resize']}` with {contract['interpolation']} interpolation, orientation applied"]
    if spec.get("per_image"):
        return [*lines, "each image is standardised by its own mean and deviation, inside the model"]
    numbers = {name: ", ".join(f"{value:g}" for value in spec[name]) for name in ("mean", "std")}
    return [*lines, f"normalised inside the model: mean {numbers['mean']}; deviation {numbers['std']}"]


def _measurements(run: Run) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Split, name and value of everything that was measured and is a number."""
    if not (run.path / RESULT).exists():
        return
    for split, metrics in run.result["metrics"].items():
        for name, metric in metrics.items():
            if isinstance(metric, Mapping) and isinstance(metric.get("value"), int | float):
                yield split, name, metric


def _row(split: str, name: str, metric: Mapping[str, Any]) -> tuple[str, ...]:
    number = f"{metric['n']:,}" if metric.get("n") is not None else "-"
    return SPLITS.get(split, split), name.replace("_", " "), _number(metric["value"]), interval(metric), number


def _class_rows(details: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    rows = [row for row in details.get("per_class", ()) if isinstance(row, Mapping) and "recall" in row]
    for row in rows[:MOST_CLASSES]:
        bounds = {"low": row.get("recall_low"), "high": row.get("recall_high")}
        recall, precision = _number(row["recall"]), _number(row.get("precision"))
        yield _cell(row["class"]), recall, interval(bounds), precision, f"{row.get('support', 0):,}"


def interval(metric: Mapping[str, Any]) -> str:
    """The bounds of a metric, or a dash where it has none."""
    low, high = metric.get("low"), metric.get("high")
    return "-" if low is None or high is None else f"{low:.3f} to {high:.3f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _base_model(run: Run) -> str | None:
    """The hub repository that the first weights came from."""
    weights = run.resolved["facts"].get("weights") or {}
    found = _HUB_REPOSITORY.search(weights.get("url") or "")
    return found[1] if found else None


def _set(value: Any) -> bool:
    return value not in (None, "none", [], {}) and not (isinstance(value, float) and value == 0)


def _place_free(value: Any) -> str:
    return without_places(
        ", ".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
    )


def _cell(text: Any) -> str:
    """A text that stands in a table or a line of Markdown as it is."""
    return re.sub(r"([|`<\\])", r"\\\1", str(text).replace("\n", " ").replace("\r", " "))
