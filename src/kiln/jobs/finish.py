"""The end of a training: the best model is read back from its file and measured, test once and only here."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Sequence
from pathlib import Path

from kiln.data.source import Source
from kiln.data.storage import counted
from kiln.errors import DataError
from kiln.jobs.announce import proofs
from kiln.jobs.assemble import Training
from kiln.jobs.intake import Intake
from kiln.jobs.measure import Measured, measure
from kiln.jobs.resolve import Settings
from kiln.observe.progress import Progress
from kiln.observe.records import write_summary
from kiln.observe.wording import describe_metrics
from kiln.run import BAD_FILES, DONE, MODEL, PREDICTIONS, RESULT, Run, set_status, write_atomically, write_json
from kiln.runtimes import BATCH_SIZE, Predictor, load


def finish(folder: Path, training: Training, intake: Intake, settings: Settings, progress: Progress) -> None:
    """Measure the model file on validation and test, and write what was found."""
    state = training.state
    for line in proofs(training):
        progress.say(line)
    predictor = load(
        folder / MODEL, device=str(state.device), trust=tuple(settings["model.trust"]) + _own_code(training)
    )
    measured: dict[str, Measured] = {}
    for split, indices in (("val", intake.split.val), ("test", intake.split.test)):
        if len(indices):
            progress.say(f"measuring the best model on {split}, {counted(len(indices), 'image')}")
            try:
                measured[split] = measure(
                    predictor,
                    intake.source,
                    indices,
                    intake.targets,
                    split=split,
                    batch_size=BATCH_SIZE,
                    skip_bad=settings["data.bad_files"] == "skip",
                    workers=settings["data.workers"],
                )
            except DataError as error:
                raise _after_training(error, folder, split) from error
            progress.say(f"{split:<6} {describe_metrics(measured[split].plain_metrics())}")
    result = {
        "step": state.step,
        "best_step": state.tracker.best_step if state.tracker else state.step,
        "reason": state.stop_reason or "done",
        "metrics": {split: found.plain_metrics() for split, found in measured.items()},
        "details": {split: found.details for split, found in measured.items()},
        "skipped": {split: found.skipped for split, found in measured.items()},
    }
    if measured:
        write_predictions(folder / PREDICTIONS, list(measured.values())[-1], intake.source, predictor)
    found_at_the_end = [row for split in measured.values() for row in split.bad_files]
    write_bad_files(folder, all_bad(folder, [*training.bad_files.rows(), *found_at_the_end]))
    write_summary(folder, Run(folder).metrics())
    write_json(folder / RESULT, "result", result)
    set_status(folder, DONE, step=state.step, reason=state.stop_reason or "done")


def _after_training(error: DataError, folder: Path, split: str) -> DataError:
    """The same error, with what it does not undo."""
    return DataError(
        error.code,
        error.what,
        where=error.where,
        details=error.details,
        kept=f"the trained model, {folder / MODEL}",
        hint=f"kiln evaluate {shlex.quote(str(folder))} --split {split} --bad-files skip",
    )


def _own_code(training: Training) -> tuple[str, ...]:
    """The user typed the model's name in this very run, so the file that it made may name it."""
    name = training.created.spec.name
    return (name,) if ":" in name else ()


def write_predictions(path: Path, measured: Measured, source: Source, predictor: Predictor) -> None:
    """Write `predictions.csv`: the sample, its label, what the model says, and how sure it is."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["key", "label", "predicted", "probability"])
    probabilities = predictor.task.probabilities(measured.outputs.logits)
    for index, row in zip(measured.outputs.indices.tolist(), probabilities, strict=True):
        said = predictor.task.decode(row, predictor.classes, top_k=1)
        label = source.labels[index] if source.labels is not None else ""
        writer.writerow([source.keys[index], label, said.label, repr(said.probability)])
    write_atomically(path, text.getvalue().encode("utf-8", "surrogateescape"))


def write_bad_files(folder: Path, rows: Sequence[tuple[str, str, str, str]]) -> None:
    """Write `bad_files.csv`: what could not be read, in which split, and why."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["key", "split", "reason", "detail"])
    writer.writerows(sorted(rows))
    write_atomically(folder / BAD_FILES, text.getvalue().encode("utf-8", "surrogateescape"))


def all_bad(folder: Path, found: Sequence[tuple[str, str, str, str]]) -> list[tuple[str, str, str, str]]:
    """What `bad_files.csv` lists already, and what only decoding showed; each file once."""
    listed: list[tuple[str, str, str, str]] = []
    if (folder / BAD_FILES).exists():
        with (folder / BAD_FILES).open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            listed = [(key, split, reason, detail) for key, split, reason, detail in csv.reader(file)][1:]
    return list({row[0]: row for row in [*reversed(found), *listed]}.values())
