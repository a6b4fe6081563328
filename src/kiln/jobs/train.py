"""`train`: a recipe and data in, a run folder out. `resume` goes on with one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kiln.data.fingerprint import compare_fingerprint, record
from kiln.data.split import write_split_csv
from kiln.engine import checkpoint
from kiln.engine.fit import fit
from kiln.engine.state import State
from kiln.errors import DataError, KilnError, UsageError
from kiln.events import Event, Saved
from kiln.jobs import launch
from kiln.jobs.announce import describe
from kiln.jobs.assemble import Training, assemble, make_strategy, wrap_for_processes
from kiln.jobs.extend import extended_schedule, extension
from kiln.jobs.finish import finish, write_bad_files
from kiln.jobs.intake import Intake, refuse_bad_headers, stem_of, take_in
from kiln.jobs.resolve import Settings, resolve
from kiln.jobs.save import Saver, bitwise_conditions, environment
from kiln.jobs.signals import STOPS, heeding_signals, preempted
from kiln.observe.progress import Progress, make
from kiln.observe.records import MetricsLog, write_summary
from kiln.recipe import FIELDS, Recipe
from kiln.recipe.duration import Duration
from kiln.run import (
    ENVIRONMENT,
    FAILED,
    INTERRUPTED,
    PREEMPTED,
    RECIPE,
    RESOLVED,
    RUNNING,
    SPLIT,
    Run,
    locked,
    new_folder,
    read_yaml,
    runs_in,
    set_status,
    write_json,
    write_yaml,
)

SHORT_NAMES = {
    **{field.key: name for name, field in FIELDS.items() if field.key not in ("name", "every", "path", "root")},
    "model": "model.name",
    "opt": "optim.name",
    "sched": "schedule.name",
    "loss": "loss.name",
    "task": "task.name",
    "name": "run.name",
    "checkpoint_every": "checkpoint.every",
}


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
    progress = progress or make()
    changes = {**{_full_name(name): value for name, value in settings.items()}, **(overrides or {})}
    recipe = (recipe or Recipe()).override(changes) if changes else recipe or Recipe()
    if isinstance(data, str | os.PathLike):
        recipe, data = recipe.override({"data.path": os.fspath(data)}), None
    elif data is not None and recipe.data.path is not None:
        raise UsageError("E103", f"two data sets: an object, and data.path = {recipe.data.path}", expected="one")
    folder = _folder_to_resume(resume, recipe)
    if folder is not None:
        return _resume(folder, recipe, data, extend=extend, progress=progress)
    if extend is not None:
        raise UsageError("E103", f"extend = {extend} needs a run to go on with", hint="--resume auto or --resume RUN")
    if data is None and recipe.data.path is None:
        raise UsageError("E103", "no data: nothing to train on", hint="kiln train photos/")
    if recipe.run.processes > 1 and not launch.is_inside():
        stem = _stem(recipe.data.path, recipe.model.name)
        folder = new_folder(Path(recipe.run.output), recipe.run.name, stem=stem)
        recipe.save(folder / RECIPE)
        set_status(folder, RUNNING, step=0)
        return launch.launch(recipe, folder, quiet=progress.quiet)
    return _start(recipe, data, progress)


def resume(run: str | os.PathLike[str], **options: Any) -> Run:
    """Go on with a run exactly where it stood; options as for `train`."""
    return train(resume=run, **options)


def _full_name(name: str) -> str:
    if name not in SHORT_NAMES:
        raise UsageError("E101", f"unknown setting {name!r}", got=name, choices=sorted(SHORT_NAMES))
    return SHORT_NAMES[name]


def _stem(data: Any, model: str) -> str:
    return stem_of(data) if model == "auto" else f"{stem_of(data)}-{model.rpartition('/')[2].rpartition(':')[2]}"


def _folder_to_resume(resume: str | os.PathLike[str] | None, recipe: Recipe) -> Path | None:
    """The run to go on with. `auto` is the run of that name, else the newest of the same recipe and data, if any."""
    if resume is None:
        return None
    if resume != "auto":
        path = Path(resume)
        return Run(path.parent.parent if path.parent.name == "checkpoints" else path).path
    output = Path(recipe.run.output)
    if recipe.run.name is not None:
        folder = output / recipe.run.name
        return folder if (folder / RECIPE).is_file() else None
    return next((run.path for run in runs_in(output) if _is_same(run.recipe, recipe)), None)


def _is_same(a: Recipe, b: Recipe) -> bool:
    places = [os.path.realpath(recipe.data.path) if recipe.data.path else None for recipe in (a, b)]
    return places[0] == places[1] and not a.differences(b).keys() - Recipe.how_fields()


def _start(recipe: Recipe, data: Any, progress: Progress) -> Run:
    intake = take_in(recipe, data)
    settings = resolve(recipe, intake)
    stem = _stem(recipe.data.path if data is None else data, settings.values["model.name"])
    folder = new_folder(Path(recipe.run.output), recipe.run.name, stem=stem)
    with locked(folder):
        recipe.save(folder / RECIPE)
        set_status(folder, RUNNING, step=0)
        return _Session(folder, settings, intake, progress).run()


def _resume(folder: Path, given: Recipe, data: Any, *, extend: str | None, progress: Progress) -> Run:
    """Go on with the run in `folder`; what `given` says beyond the defaults must agree with its record."""
    recorded = Run(folder).recipe
    recipe = _merged(recorded, given)
    if recipe.run.processes > 1 and not launch.is_inside():
        return launch.launch(recipe, folder, quiet=progress.quiet)
    with nullcontext() if launch.is_inside() else locked(folder):
        intake = take_in(recipe, data)
        settings = _recorded_settings(folder, recipe, intake)
        return _Session(folder, settings, intake, progress).run(extend=extend)


def _merged(recorded: Recipe, given: Recipe) -> Recipe:
    """The recorded recipe, with what may change of the given one.

    Raises: UsageError: something else differs; with the differences.
    """
    asked = {name: given[name] for name in given.differences(Recipe())}
    changed = {name: value for name, value in asked.items() if value != recorded[name]}
    refused = {name: value for name, value in changed.items() if name not in Recipe.how_fields()}
    if refused:
        raise UsageError(
            "E106",
            f"the run was started with other settings: {', '.join(refused)}",
            details=[f"{name}: the run has {recorded[name]}, now given {value}" for name, value in refused.items()],
            hint="leave them out to go on with the run, or start a new one without --resume",
        )
    return recorded.override(changed) if changed else recorded


def _recorded_settings(folder: Path, recipe: Recipe, intake: Intake) -> Settings:
    """What the run decided when it began, so that nothing is measured again; changed how-fields are settled anew."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    fresh = resolve(recipe, intake, world_size=world_size)
    if not (folder / RESOLVED).exists():
        return fresh
    resolved = read_yaml(folder / RESOLVED, kind="resolved")
    differences = compare_fingerprint(resolved["facts"]["data"], intake.source)
    if differences:
        raise DataError(
            "E208",
            "the data changed since the run began; going on would mix two data sets",
            where=intake.source.where,
            details=differences,
            hint="restore the data, or start a new run",
        )
    settings = Settings.from_plain(resolved["values"], resolved["reasons"])
    for name in Recipe.how_fields():
        settings.values[name] = fresh.values[name]
    return settings


@dataclass
class _Session:
    """One process's part in a training, from the first line printed to the last file written."""

    folder: Path
    settings: Settings
    intake: Intake
    progress: Progress

    def run(self, *, extend: str | None = None) -> Run:
        """Train what is left, then measure the best model."""
        strategy = make_strategy(self.settings)
        if strategy.rank:
            self.progress = make(quiet=True)
        try:
            return self._train(strategy, extend)
        except KilnError as error:
            if error.exit_code not in (75, 130) and strategy.rank == 0:
                set_status(self.folder, FAILED, step=-1, reason=f"{error.code} {error.what}")
            raise
        finally:
            strategy.close()

    def _train(self, strategy: Any, extend: str | None) -> Run:
        settings, folder = self.settings, self.folder
        root = folder / "checkpoints"
        if strategy.rank == 0:
            checkpoint.clean(root)
            self._check_files()
        found = self._found_checkpoint(root, strategy)
        training = assemble(settings, self.intake, strategy, resuming=found is not None)
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
            self.progress.open_log(folder)
            describe(training, settings, self.intake, self.progress)
        self.progress.start(
            total_steps=training.total_steps, steps_per_epoch=len(training.batches), first_step=state.step
        )
        with heeding_signals(state), closing(log) if log is not None else nullcontext():
            self._loop(training, saver, log)
        return self._leave(training)

    def _found_checkpoint(self, root: Path, strategy: Any) -> checkpoint.Checkpoint | None:
        """The newest whole checkpoint; the first process decides which, and sets damaged ones aside."""
        newest = checkpoint.newest_checkpoint(root) if strategy.rank == 0 else None
        step = strategy.gather(None if newest is None else newest.step)[0]
        if step is None:
            return None
        found = newest or checkpoint.read_checkpoint(checkpoint.folder_of(root, step))
        for line in found.passed_over:
            self.progress.say(f"damaged checkpoint set aside: {line}")
        return found

    def _restore(self, state: State, found: checkpoint.Checkpoint, about: Mapping[str, Any], *, is_main: bool) -> None:
        tree = found.tree
        if not is_main:
            tree = {**tree, "parts": {name: part for name, part in tree["parts"].items() if name != "metrics_log"}}
        state.load_state(tree)
        changed = [name for name in about if about[name] != found.about.get(name)]
        exactness = f"E1 (these differ: {', '.join(changed)})" if changed else "E2, bit for bit"
        self.progress.say(f"resumed at step {state.step}; exactness {exactness}")

    def _check_files(self) -> None:
        settings = self.settings
        bad = refuse_bad_headers(
            self.intake.source,
            self.intake.split,
            max_pixels=settings.values["data.max_pixels"],
            max_bad_fraction=settings.values["data.max_bad_fraction"],
            skip_bad=settings.values["data.bad_files"] == "skip",
            workers=None,
        )
        write_bad_files(self.folder, [(file.key, file.split, file.reason, file.detail) for file in bad])
        if bad:
            self.progress.say(f"{len(bad)} files cannot be read; listed in {self.folder / 'bad_files.csv'}")

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
        events = fit(
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
            for event in events:
                self._tell(event, log)

    def _tell(self, event: Event, log: MetricsLog | None) -> None:
        if log is not None:
            log(event)
            if isinstance(event, Saved):
                write_summary(self.folder, Run(self.folder).metrics())
        self.progress(event)

    def _leave(self, training: Training) -> Run:
        state = training.state
        reason = state.stop_reason or "done"
        if training.strategy.rank:
            return Run(self.folder)
        self._write_down(training, record(self.intake.source))
        if reason in STOPS or reason.startswith("another process"):
            stopped = INTERRUPTED if reason == "SIGINT" else PREEMPTED
            set_status(self.folder, stopped, step=state.step, reason=reason)
            self.progress.stop()
            raise preempted(reason, step=state.step, folder=str(self.folder))
        finish(self.folder, training, self.intake, self.settings, self.progress)
        return Run(self.folder)
