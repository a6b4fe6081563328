"""The end of a training: the best model is read back from its file and measured, test once and only here."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kiln.errors import DataError
from kiln.jobs.assembly.assemble import Training
from kiln.jobs.assembly.resolve import Settings
from kiln.jobs.calibrate import Wanted, fit_decision
from kiln.jobs.intake import Intake
from kiln.jobs.measure import Measured, collect, judge
from kiln.jobs.report import write_report
from kiln.jobs.training.announce import proofs
from kiln.jobs.training.results import write_results
from kiln.language import tr, word
from kiln.language.patterns import translated
from kiln.language.width import label
from kiln.models.modelfile import set_decision
from kiln.observe.outputs import KeptOutputs, SplitOutputs
from kiln.observe.progress import Progress
from kiln.observe.records import write_summary
from kiln.observe.wording import amount, describe_metrics
from kiln.reports.card import write_card
from kiln.run import BAD_FILES, DONE, MODEL, Run, set_status, write_atomically
from kiln.runtimes import BATCH_SIZE, load
from kiln.tasks import Task
from kiln.tasks.decision import Decision


def finish(folder: Path, training: Training, intake: Intake, settings: Settings, progress: Progress) -> None:
    """Read the model file back, calibrate it on validation, measure it there and on test, and write what was found."""
    state = training.state
    for line in proofs(training):
        progress.say(line)
    trust = (*settings["model.trust"], *_trusted(settings))
    predictor = load(folder / MODEL, device=str(state.device), trust=trust)
    further = () if training.validator is None else training.validator.further
    decision = Decision()
    said: dict[str, SplitOutputs] = {}
    measured: dict[str, Measured] = {}
    for split, indices in (("val", intake.split.val), ("test", intake.split.test)):
        if len(indices):
            images = amount(len(indices), "image")
            progress.say(tr("measuring the best model on {split}, {images}", split=word(split), images=images))
            try:
                said[split], bad_files = collect(
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
            if split == "val":
                decision = _decided(said[split], predictor.task, settings, progress)
            found = judge(
                predictor.task, predictor.classes, decision, said[split], bad_files=bad_files, further=further
            )
            progress.say(label(split) + describe_metrics(found.plain_metrics()))
            measured[split] = found
    digest = set_decision(folder / MODEL, decision.to_dict())
    kept = KeptOutputs(predictor.classes, predictor.task.to_dict(), decision.to_dict(), digest, said)
    facts = {
        "step": state.step,
        "best_step": state.kept_step,
        "reason": state.stop_reason or "done",
        "skipped": {split: found.skipped for split, found in measured.items()},
    }
    write_results(folder, kept, measured, facts)
    found_at_the_end = [row for found in measured.values() for row in found.bad_files]
    write_bad_files(folder, all_bad(folder, [*training.bad_files.rows(), *found_at_the_end]))
    write_summary(folder, Run(folder).metrics())
    set_status(folder, DONE, step=state.step, reason=state.stop_reason or "done")
    if settings["run.report"]:
        _write_pages(Run(folder), intake, trust, progress)


def _write_pages(run: Run, intake: Intake, trust: Sequence[str], progress: Progress) -> None:
    """The report and the card. The training is done and stands, whatever goes wrong here; it is said."""
    progress.say(tr("writing the report"))
    try:
        write_card(run)
        write_report(run, source=intake.source, trust=trust)
    except Exception as error:  # noqa: BLE001 (hours of training do not end in a traceback over a page)
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        command = f"kiln report {shlex.quote(str(run.path))}"
        progress.say(tr("note   the report could not be written: {what}; try {command}", what=what, command=command))


def _decided(said: SplitOutputs, task: Task, settings: Settings, progress: Progress) -> Decision:
    """How the model's outputs become answers, fitted on validation and told."""
    wanted = Wanted(
        method=settings["answers.calibration"],
        accuracy=settings["answers.wanted_accuracy"],
        coverage=settings["answers.wanted_coverage"],
        max_unfamiliarity=settings["answers.max_unfamiliarity"],
    )
    try:
        decision = fit_decision(task, said.logits, said.targets, wanted, split="val")
    except DataError as error:  # the training is done and stands: what was wanted of its answers cannot be had
        told = "note   answers.wanted_accuracy = {accuracy} cannot be had: {what}; {expected}"
        what, expected = translated(error.what), translated(error.expected)
        progress.say(tr(told, accuracy=wanted.accuracy, what=what, expected=expected))
        decision = fit_decision(task, said.logits, said.targets, replace(wanted, accuracy=None), split="val")
    fitted = decision.fitted
    if fitted["method"] != "none":
        how = tr("{method} scaling", method=word(fitted["method"]))
        if len(decision.scale) == 1:
            how = tr("temperature {value:.3g}", value=1 / decision.scale[0])
        told = "calibrated on val: {how}, log loss of unseen samples {before:.3f} -> {after:.3f}"
        progress.say(tr(told, how=how, before=fitted["loss_before"], after=fitted["loss_after"]))
    return decision


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


def _trusted(settings: Settings) -> tuple[str, ...]:
    """The user typed the model's name in this very run, so the file that it made may name it."""
    name = settings["model.name"]
    return (name,) if ":" in name else ()


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
