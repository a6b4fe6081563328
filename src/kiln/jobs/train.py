"""`train`: a recipe and data in, a run folder out. `resume` goes on with one."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch.random import fork_rng

from kiln.data.fingerprint import record
from kiln.data.split import write_split_csv
from kiln.engine import checkpoint
from kiln.engine.fit import fit
from kiln.engine.state import State
from kiln.engine.strategy import Strategy, naming_lost_peers
from kiln.errors import ArtifactError, KilnError, NumericError, Preempted, UsageError
from kiln.events import Event, Saved
from kiln.jobs.asked import asked_for
from kiln.jobs.assembly.assemble import Training, assemble, make_strategy, wrap_for_processes
from kiln.jobs.assembly.resolve import Settings, resolve
from kiln.jobs.folds import is_folds, train_folds
from kiln.jobs.intake import Intake, check_headers_of, refuse_bad_headers, stem_of, take_in
from kiln.jobs.training import launch
from kiln.jobs.training.announce import describe, describe_use
from kiln.jobs.training.extend import extended_schedule, extension
from kiln.jobs.training.finish import all_bad, finish, write_bad_files
from kiln.jobs.training.recorded import changes_of, find_run, recorded_settings
from kiln.jobs.training.save import Saver, bitwise_conditions, environment
from kiln.jobs.training.signals import STOPS, Interrupted, heeding_signals, preempted, stopping_at_once
from kiln.language import tr
from kiln.language.patterns import translated
from kiln.models.seal import verify_seal
from kiln.observe.memory import expand_segments
from kiln.observe.progress import Progress, make
from kiln.observe.records import MetricsLog, write_summary
from kiln.observe.stopwatch import Stopwatch
from kiln.observe.wording import amount
from kiln.recipe import Recipe
from kiln.recipe.duration import Duration
from kiln.recipe.trust import code_names, require_trust
from kiln.run import (
    BAD_FILES,
    CHECKPOINTS,
    DONE,
    ENVIRONMENT,
    FAILED,
    INTERRUPTED,
    METRICS,
    OUTPUTS,
    PREEMPTED,
    RECIPE,
    RESOLVED,
    RESULT,
    SPEED,
    SPLIT,
    STATUS,
    Run,
    begin,
    clean,
    locked,
    new_folder,
    remove_unused,
    set_status,
    write_json,
    write_yaml,
)


def train(
    data: Any = None,
    *,
    recipe: Recipe | None = None,
    resume: str | os.PathLike[str] | None = None,
    extend: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Run:
    """Train a classifier and leave a run folder with the model, its metrics and all that is needed to repeat it.

    Args:
        data: a folder, table, archive or `torch.utils.data.Dataset` of labelled images (docs/data.md), or a dict of
            Datasets by split. None takes `data.path` of the recipe.
        recipe: what to do; the defaults without one.
        resume: a run folder, or `auto` for the newest unfinished run in the output folder; a new run if there is none.
        extend: with `resume`, train this much longer.
        overrides: recipe fields by their full names, such as `{"optim.lr": 1e-3}`.
        progress: tells how it goes; prints to the terminal without one.
        **settings: recipe fields by their short names: `model="resnet18", epochs=10, img_size=128, seed=0`.
    Returns: the finished run.
    Raises: KilnError: see docs/errors.md; whatever was saved before stays.
    """
    expand_segments()
    progress = progress or make()
    asked = asked_for(data, recipe, overrides, settings)
    recipe, data, changes = asked.recipe, asked.data, asked.changes
    folder, named = (None, None) if resume is None else find_run(resume, recipe)
    if folder is not None:
        recorded = Run(folder).recipe
        changed = changes_of(recorded, recipe, changes)
        typed = code_names(recipe).values()
        recipe = recorded.override(changed) if changed else recorded
        if data is None and recipe.data.path is None:
            hint = "give them again: kiln.train(data, resume=...)"
            raise UsageError("E103", f"{folder} was trained on objects, which it cannot open again", hint=hint)
        if not launch.is_launched():  # then the process that launched this one has seen to it
            require_trust(recipe, typed, named_by=str(folder / RECIPE))
        if is_folds(recipe):
            if extend is not None:
                what = f"extend = {extend} of a run of folds"
                raise UsageError("E103", what, hint=f"kiln resume {folder}/fold-1 --extend {extend}, and so on")
            return train_folds(recipe, data, progress, train=train, folder=folder, changes=changed)
        if recipe.run.processes > 1 and launch.world_size() == 1:
            return launch.launch(named or folder, recipe, changes=changed, extend=extend, progress=progress)
        done = named is None and extend is None and not changed and _is_finished(folder)
        return _resume(folder, recipe, data, progress=progress, named=named, extend=extend, done=done)
    if extend is not None:
        raise UsageError("E103", f"extend = {extend} needs a run to go on with", hint="--resume auto or --resume RUN")
    if data is None and recipe.data.path is None:
        raise UsageError("E103", "no data: nothing to train on", hint="kiln train photos/")
    if is_folds(recipe):
        stem = f"{_stem(recipe.data.path if data is None else data, recipe.model.name)}-folds"
        return train_folds(recipe, data, progress, train=train, stem=stem)
    if recipe.run.processes > 1 and launch.world_size() == 1:
        stem = _stem(recipe.data.path, recipe.model.name)
        folder = new_folder(Path(recipe.run.output), recipe.run.name, stem=stem)
        begin(folder, recipe)
        return launch.launch(folder, recipe, progress=progress)
    return _start(recipe, data, progress)


def resume(run: str | os.PathLike[str], **options: Any) -> Run:
    """Go on with a run exactly where it stood; options as for `train`."""
    return train(resume=run, **options)


def _stem(data: Any, model: str) -> str:
    return stem_of(data) if model == "auto" else f"{stem_of(data)}-{model.rpartition('/')[2].rpartition(':')[2]}"


def _start(recipe: Recipe, data: Any, progress: Progress) -> Run:
    intake = take_in(recipe, data)
    settings = resolve(recipe, intake, world_size=launch.world_size())
    stem = _stem(recipe.data.path if data is None else data, settings.values["model.name"])
    with ExitStack() as held:
        folder = None
        if launch.rank() == 0:
            folder = new_folder(Path(recipe.run.output), recipe.run.name, stem=stem)
            held.enter_context(locked(folder))
            begin(folder, recipe)
        try:
            return _in_session(folder, settings, intake, progress)
        except Preempted:
            raise  # to be resumed, if only from its beginning
        except BaseException:
            if folder is not None:
                remove_unused(folder)
            raise


def _resume(
    folder: Path,
    recipe: Recipe,
    data: Any,
    *,
    progress: Progress,
    named: Path | None = None,
    extend: str | None = None,
    done: bool = False,
) -> Run:
    """Go on with the run in `folder`, from the checkpoint `named` if one was; where it is `done`, only hold that it is so."""
    with locked(folder) if launch.rank() == 0 else nullcontext():
        intake = take_in(
            recipe, data, moved=f"kiln resume {shlex.quote(str(folder))} --data DATA, if it lies elsewhere now"
        )
        settings = recorded_settings(folder, recipe, intake)
        if done:
            if launch.rank() == 0:
                step = Run(folder).status["step"]
                progress.say(tr("finished already at step {step}; --extend 10ep trains longer", step=step))
            return Run(folder)
        return _in_session(folder, settings, intake, progress, named=named, extend=extend)


def _is_finished(folder: Path) -> bool:
    """Whether all that a training leaves is there, and nothing of it would be made anew."""
    run = Run(folder)
    if not all(path.is_file() for path in (folder / RESULT, folder / STATUS, run.model_file, folder / OUTPUTS)):
        return False
    steps = checkpoint.committed_steps(run.checkpoints)
    if run.status["state"] != DONE or not steps or steps[-1] != run.status["step"]:
        return False
    try:
        checkpoint.read_checkpoint(checkpoint.folder_of(run.checkpoints, steps[-1]))
        verify_seal(run.model_file)
    except ArtifactError:  # to be mended by what goes on from here
        return False
    return True


def _in_session(
    folder: Path | None,
    settings: Settings,
    intake: Intake,
    progress: Progress,
    *,
    named: Path | None = None,
    extend: str | None = None,
) -> Run:
    """Train, as one of however many processes there are; all learn the folder from the first.

    Torch's own random state, which dropout is seeded through, is afterwards as it was.
    """
    with stopping_at_once(), fork_rng(devices=[]):
        strategy = make_strategy(settings)
        try:
            place: Path = strategy.gather(folder)[0]
            if strategy.rank:
                progress = make(quiet=True)
            return _Session(place, settings, intake, progress, strategy).run(named=named, extend=extend)
        finally:
            strategy.close()


@dataclass
class _Session:
    """One process's part in a training, from the first line printed to the last file written."""

    folder: Path
    settings: Settings
    intake: Intake
    progress: Progress
    strategy: Strategy
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    def run(self, *, named: Path | None, extend: str | None) -> Run:
        """Train what is left, then measure the best model; whatever stops it is in the status.

        Args:
            named: the one checkpoint to go on from; the newest whole one otherwise.
            extend: train this much longer.
        """
        if self.strategy.rank == 0:
            self.progress.open_log(self.folder)
        try:
            with naming_lost_peers(self.strategy):
                return self._train(named, extend)
        except Preempted as stop:
            self.progress.note_down(tr("stopped    {what}", what=translated(stop.what)))
            raise
        except KilnError as error:
            self._set_status(FAILED, reason=error.what, code=error.code)
            self.progress.note_down(tr("failed     {code}: {error}", code=error.code, error=error.render()))
            raise
        except Exception as error:
            self._set_status(FAILED, reason=f"{type(error).__name__}: {error}")
            raise
        except KeyboardInterrupt as interrupt:
            name = interrupt.signal if isinstance(interrupt, Interrupted) else "SIGINT"
            self._set_status(INTERRUPTED if name == "SIGINT" else PREEMPTED, reason=name)
            step = Run(self.folder).status["step"]
            raise preempted(name, step=step, folder=str(self.folder)) from interrupt
        finally:
            self.progress.stop()

    def _set_status(self, state: str, **said: Any) -> None:
        if self.strategy.rank == 0:
            set_status(self.folder, state, **said)

    def _train(self, named: Path | None, extend: str | None) -> Run:
        settings, folder, strategy = self.settings, self.folder, self.strategy
        root = folder / CHECKPOINTS
        if strategy.rank == 0:
            clean(folder)
            checkpoint.clean(root)
            self._check_files()
        found = self._checkpoint(root, named)
        training = assemble(settings, self.intake, strategy, resuming=found is not None, begins=found is None)
        state = training.state
        data_record = record(self.intake.source)
        about = bitwise_conditions(training, settings)
        saver = Saver(folder, training, self.intake, keep=settings["checkpoint.keep"], about=about, data=data_record)
        log = MetricsLog(folder, every_steps=max(1, len(training.batches) // 10)) if strategy.rank == 0 else None
        if log is not None:
            state.parts["metrics_log"] = log
        if found is not None:
            self._restore(state, found, about, is_main=log is not None)
            saver.publish_again(state)
        elif log is not None:
            log.load_state({"bytes": 0})
        if extend is not None:
            state.log.append(extension(state, Duration.parse(extend), training.total_steps, len(training.batches)))
        training.total_steps, training.schedule = extended_schedule(training.schedule, training.total_steps, state.log)
        wrap_for_processes(training)
        if strategy.rank == 0:
            self._write_down(training, data_record)
            describe(training, settings, self.intake, self.progress)
        self.progress.start(
            total_steps=training.total_steps,
            steps_per_epoch=len(training.batches),
            first_step=state.step,
            names=self.intake.source.keys,
        )
        self.stopwatch = Stopwatch()
        with heeding_signals(state), closing(log) if log is not None else nullcontext():
            try:
                self._loop(training, saver, log)
            finally:
                if log is not None and training.bad_files.found:
                    write_bad_files(folder, all_bad(folder, training.bad_files.rows()))
        return self._leave(training)

    def _checkpoint(self, root: Path, named: Path | None) -> checkpoint.Checkpoint | None:
        """The one that was named, or the newest whole one; the first process decides, and sets damaged ones aside.

        Raises: ArtifactError: the one that was named is damaged. UsageError: it is not the newest.
        """
        found = None
        if self.strategy.rank == 0:
            found = checkpoint.newest_checkpoint(root) if named is None else _strictly(root, named)
        step = self.strategy.gather(None if found is None else found.step)[0]
        if step is None:
            return None
        found = found or checkpoint.read_checkpoint(checkpoint.folder_of(root, step))
        for line in found.passed_over:
            self.progress.say(tr("damaged checkpoint set aside: {line}", line=translated(line)))
        return found

    def _restore(self, state: State, found: checkpoint.Checkpoint, about: Mapping[str, Any], *, is_main: bool) -> None:
        tree = found.tree
        if not is_main:
            tree = {**tree, "parts": {name: part for name, part in tree["parts"].items() if name != "metrics_log"}}
        state.load_state(tree)
        if is_main and (self.folder / METRICS).stat().st_size < tree["parts"]["metrics_log"]["bytes"]:
            told = "{name} is shorter than it was at step {step}: lines are missing"
            self.progress.say(tr(told, name=METRICS, step=state.step))
        changed = [name for name in about if about[name] != found.about.get(name)]
        exact = tr("E1 (these differ: {names})", names=", ".join(changed)) if changed else tr("E2, bit for bit")
        self.progress.say(tr("resumed at step {step}; exactness {exact}", step=state.step, exact=exact))

    def _check_files(self) -> None:
        settings = self.settings
        bad = check_headers_of(self.intake.source, self.intake.split, max_pixels=settings.values["data.max_pixels"])
        if bad:
            write_bad_files(self.folder, [(file.key, file.split, file.reason, file.detail) for file in bad])
            files, table = amount(len(bad), "file"), self.folder / BAD_FILES
            self.progress.say(tr("bad files  {files} cannot be read: {table}", files=files, table=table))
        refuse_bad_headers(
            bad,
            self.intake.split,
            max_bad_fraction=settings.values["data.max_bad_fraction"],
            skip_bad=settings.values["data.bad_files"] == "skip",
        )

    def _weights(self, training: Training) -> dict[str, Any]:
        """Where the first weights came from: loaded just now, or, in a resumed run, as it was written down then."""
        report = training.created.report
        if report is not None and report.origin is not None:
            return {"weights": asdict(report.origin)}
        written = Run(self.folder).resolved["facts"] if (self.folder / RESOLVED).is_file() else {}
        return {"weights": written["weights"]} if "weights" in written else {}

    def _write_down(self, training: Training, data_record: dict[str, Any]) -> None:
        """Everything that was decided, before the first step."""
        facts = {
            "classes": list(self.intake.classes),
            "samples": {name: len(part) for name, part in self.intake.split.parts().items()},
            "fractions": self.intake.split.reached,
            "steps_per_epoch": len(training.batches),
            "total_steps": training.total_steps,
            "data": data_record,
        }
        facts |= self._weights(training)
        content = {
            "values": self.settings.plain(),
            "reasons": self.settings.reasons,
            "facts": facts,
            "notes": [*self.intake.notes, *training.created.notes],
            "log": training.state.log,
        }
        write_yaml(self.folder / RESOLVED, "resolved", content)
        write_json(self.folder / ENVIRONMENT, "environment", environment())
        write_split_csv(self.folder / SPLIT, self.intake.source, self.intake.split)

    def _loop(self, training: Training, saver: Saver, log: MetricsLog | None) -> None:
        events: Any = fit(  # a generator, which can be closed
            training.state,
            training.step,
            training.batches,
            total_steps=training.total_steps,
            schedule=training.schedule,
            evaluate=training.validator,
            save=saver,
            timetable=training.timetable,
        )
        with closing(events):
            try:
                for event in events:
                    self._tell(event, log)
            except NumericError as error:
                raise self._naming_samples(error, training.state.log) from error

    def _naming_samples(self, error: NumericError, log: Sequence[Mapping[str, Any]]) -> NumericError:
        """The same error, with the files of the samples that the loop knows by number."""
        indices = log[-1].get("indices", ()) if log else ()
        keys = [f"sample {index} is {self.intake.source.keys[index]}" for index in indices[:20]]
        facts = {"where": error.where, "kept": error.kept, "hint": error.hint}
        return NumericError(error.code, error.what, details=keys, **facts)

    def _tell(self, event: Event, log: MetricsLog | None) -> None:
        if log is not None:
            log(event)
            if isinstance(event, Saved):
                write_summary(self.folder, Run(self.folder).metrics())
        self.stopwatch(event)
        self.progress(event)

    def _leave(self, training: Training) -> Run:
        state, strategy = training.state, self.strategy
        signalled = [reason for reason in strategy.gather(state.stop_reason) if reason in STOPS]
        if strategy.rank == 0:
            self._write_down(training, record(self.intake.source))
        if signalled:
            reason = signalled[0]
            self._set_status(INTERRUPTED if reason == "SIGINT" else PREEMPTED, step=state.step, reason=reason)
            strategy.gather(None)  # nobody leaves before that is written: torchrun ends the others with the first
            raise preempted(reason, step=state.step, folder=str(self.folder))
        if strategy.rank == 0:
            write_json(self.folder / SPEED, "speed", self.stopwatch.facts(state.device))
            finish(self.folder, training, self.intake, self.settings, self.progress)
            describe_use(training, self.progress)
        return Run(self.folder)


def _strictly(root: Path, named: Path) -> checkpoint.Checkpoint:
    found = checkpoint.read_checkpoint(named)
    newer = [step for step in checkpoint.committed_steps(root) if step > found.step]
    if newer:
        raise UsageError(
            "E103",
            f"{named} is not the newest checkpoint of its run",
            details=[f"newer: {checkpoint.folder_of(root, step)}" for step in newer],
            hint="leave out which checkpoint, or remove the newer ones to go back to it",
        )
    return found
