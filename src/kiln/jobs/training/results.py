"""What a finished run says it reached: `result.json`, `outputs.safetensors` and `predictions.csv`, always of one mind."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kiln.jobs.measure import Measured
from kiln.observe.outputs import KeptOutputs, write_outputs
from kiln.run import OUTPUTS, PREDICTIONS, RESULT, read_json, write_atomically, write_json
from kiln.tasks import from_dict
from kiln.tasks.decision import Decision


def write_results(folder: Path, kept: KeptOutputs, measured: Mapping[str, Measured], facts: Mapping[str, Any]) -> None:
    """Write down what a model reached.

    Args:
        folder: of the run.
        kept: what the model said of each split that was held out, and how that becomes answers.
        measured: what that comes to, by split.
        facts: what else `result.json` says, such as the best step; as from `read_results`.
    """
    write_outputs(folder / OUTPUTS, kept)
    if measured:
        _write_predictions(folder / PREDICTIONS, kept, list(measured)[-1])
    content = {
        **facts,
        "metrics": {name: found.plain_metrics() for name, found in measured.items()},
        "details": {name: found.details for name, found in measured.items()},
        "decision": dict(kept.decision),
    }
    write_json(folder / RESULT, "result", content)


def read_results(folder: Path) -> dict[str, Any]:
    """What `write_results` takes as facts, as it stands written down."""
    found = read_json(folder / RESULT, kind="result")
    return {name: value for name, value in found.items() if name not in ("kind", "version")}


def _write_predictions(path: Path, kept: KeptOutputs, split: str) -> None:
    """Write `predictions.csv`: the sample, its label, what the model says, how sure it is, and why it says nothing."""
    task, decision, part = from_dict(kept.task), Decision.from_dict(kept.decision), kept.splits[split]
    probabilities = kept.probabilities(split)
    said = [task.decode(row, kept.classes, top_k=1) for row in probabilities]
    refused = decision.refusals([one.probability for one in said], decision.unfamiliarity(probabilities))
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["key", "label", "predicted", "probability", "refused"])
    for key, label, one, reason in zip(part.keys, part.labels, said, refused, strict=True):
        writer.writerow([key, label, one.label, repr(one.probability), reason])
    write_atomically(path, text.getvalue().encode("utf-8", "surrogateescape"))
