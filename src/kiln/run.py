"""The run folder: what a training leaves, in which formats, and the `Run` that reads it."""

from __future__ import annotations

import csv
import difflib
import json
import os
import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from kiln.errors import ArtifactError, ResourceError, UsageError
from kiln.names import OUTPUTS_READER, VERBS, load_object
from kiln.recipe import Recipe

RECIPE, RESOLVED, ENVIRONMENT, STATUS, LOCK = "recipe.yaml", "resolved.yaml", "environment.json", "status.json", "lock"
METRICS, SUMMARY, LOG, SPLIT, BAD_FILES = "metrics.jsonl", "summary.csv", "log.txt", "split.csv", "bad_files.csv"
PREDICTIONS, OUTPUTS, MODEL, BEST, CHECKPOINTS, RESULT = (
    "predictions.csv",
    "outputs.safetensors",
    "model.safetensors",
    "best.json",
    "checkpoints",
    "result.json",
)
REPORT, CARD, SPEED = "report.html", "MODEL_CARD.md", "speed.json"
BEGUN_WITH = (RECIPE, RESOLVED, ENVIRONMENT, STATUS, SPLIT)
"""Files that a run has before its first step."""
FOLDS = "folds.json"
VERSION = 1

RUNNING, DONE, PREEMPTED, INTERRUPTED, FAILED = "running", "done", "preempted", "interrupted", "failed"


class Run:
    """A run folder. Everything is read when asked for.

    Args:
        path: the folder.
    Raises: UsageError: there is nothing (E111), or no run folder (E105).
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.exists():
            raise not_there(self.path)
        if not (self.path / RECIPE).is_file():
            raise UsageError(
                "E105",
                f"{self.path} is no run folder: it has no {RECIPE}",
                choices=models_in(self.path),
                hint="name a folder that kiln train made",
            )

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def recipe(self) -> Recipe:
        """What was asked for."""
        return Recipe.load(self.path / RECIPE)

    @property
    def resolved(self) -> dict[str, Any]:
        """What was decided: `values` by field, `reasons`, `facts` about the data, and the `log` of decisions."""
        return read_yaml(self.path / RESOLVED, kind="resolved")

    @property
    def status(self) -> dict[str, Any]:
        """`state` (running, done, preempted, interrupted, failed), `step`, `reason`, and the `code` of an error."""
        return read_json(self.path / STATUS, kind="status")

    @property
    def result(self) -> dict[str, Any]:
        """What the finished run reached: `metrics` by split, each with its interval, and `details`."""
        return read_json(self.path / RESULT, kind="result")

    @property
    def speed(self) -> dict[str, Any]:
        """Where the time of the last session went: seconds by part, images per second, peak memory; empty without it."""
        return read_json(self.path / SPEED, kind="speed") if (self.path / SPEED).is_file() else {}

    @property
    def model_file(self) -> Path:
        """The best model."""
        return self.path / MODEL

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / CHECKPOINTS

    @property
    def runs(self) -> list[Run]:
        """The runs of the single folds that there are, in order, where the run is one of folds; else none."""
        if not (self.path / FOLDS).is_file():
            return []
        folders = [self.path / name for name in read_json(self.path / FOLDS, kind="folds")["runs"]]
        return [Run(folder) for folder in folders if is_run(folder)]

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`; a last one that a killed process did not finish does not count."""
        path = self.path / METRICS
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def predictions(self) -> list[dict[str, str]]:
        """The rows of `predictions.csv`: what the best model said of the test split, or of validation without one."""
        with (self.path / PREDICTIONS).open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            return list(csv.DictReader(file))

    def outputs(self) -> Any:
        """What the best model said of every sample held out, as a `kiln.observe.outputs.KeptOutputs`."""
        return load_object(OUTPUTS_READER)(self.path / OUTPUTS)

    def model(self, **options: Any) -> Any:
        """The best model as a `kiln.runtimes.Predictor`; options as for `kiln.load`."""
        return load_object(VERBS["load"])(self.model_file, **options)

    def resume(self, **options: Any) -> Run:
        """Go on where the run stopped; options as for `kiln.train`."""
        return load_object(VERBS["resume"])(self.path, **options)

    def summary(self) -> dict[str, Any]:
        """What was reached, where it lies, and what to run next."""
        result = self.result if (self.path / RESULT).exists() else {}
        best = read_json(self.path / BEST, kind="best") if (self.path / BEST).exists() else {}
        metrics, name = result.get("metrics", {}), shlex.quote(str(self.path))
        if (self.path / FOLDS).is_file():
            return {
                "run": str(self.path),
                "state": self.status["state"],
                "folds": [str(run.path) for run in self.runs],
                "spread": result.get("spread", {}),
                "metrics": metrics,
                "next": [f"kiln labels {name}", f"kiln ensemble {name}"],
            }
        own = list(metrics)[-1:] if self.recipe.data.path is not None else []
        return {
            "run": str(self.path),
            "state": self.status["state"],
            "model": str(self.model_file) if self.model_file.exists() else None,
            "report": str(self.path / REPORT) if (self.path / REPORT).exists() else None,
            "best_step": best.get("step"),
            "metrics": metrics,
            "next": [
                f"kiln evaluate {name} --split {own[0]}" if own else f"kiln evaluate {name} DATA",
                f"kiln predict {name} IMAGES",
                f"kiln export {name} --format onnx",
            ],
        }


def is_run(path: Any) -> bool:
    """Whether something is a run: a `Run`, or the path of a folder that holds one."""
    return isinstance(path, Run) or (isinstance(path, str | os.PathLike) and (Path(path) / RECIPE).is_file())


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file so that a crash leaves the old one or the new one.

    Raises: ResourceError: the disk is full or cannot be written.
    """
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    with writing(path):
        try:
            with staged.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            staged.replace(path)
        except OSError:
            staged.unlink(missing_ok=True)
            raise


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within, an error of the system says which file could not be written.

    Raises: ResourceError: in its place.
    """
    try:
        yield
    except OSError as error:
        raise ResourceError(
            "E401", f"cannot write {path.name}: {error.strerror or error}", where=str(path.parent)
        ) from error


def write_json(path: Path, kind: str, content: Mapping[str, Any]) -> None:
    """Write a JSON file of ours."""
    text = json.dumps({"kind": f"kiln.{kind}", "version": VERSION, **content}, indent=1)
    write_atomically(path, (text + "\n").encode())


def write_yaml(path: Path, kind: str, content: Mapping[str, Any]) -> None:
    """Write a YAML file of ours."""
    text = yaml.safe_dump({"kind": f"kiln.{kind}", "version": VERSION, **content}, sort_keys=False, allow_unicode=True)
    write_atomically(path, text.encode())


def read_json(path: Path, *, kind: str) -> dict[str, Any]:
    """Read a JSON file of ours.

    Raises: ArtifactError: missing, damaged, of another kind or a newer version.
    """
    return _read(path, kind, json.loads)


def read_yaml(path: Path, *, kind: str) -> dict[str, Any]:
    """Read a YAML file of ours; raises as `read_json`."""
    return _read(path, kind, yaml.safe_load)


def _read(path: Path, kind: str, parse: Any) -> dict[str, Any]:
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError("E307", f"cannot read {path}: {error.strerror}") from error
    except (ValueError, yaml.YAMLError) as error:
        raise ArtifactError("E307", f"{path} is damaged: {error}") from error
    if not isinstance(content, dict) or content.get("kind") != f"kiln.{kind}":
        raise ArtifactError("E303", f"{path} is no kiln.{kind} file")
    version = content.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise ArtifactError("E303", f"{path} has version {version}; this Kiln reads up to {VERSION}")
    return content


def set_status(folder: Path, state: str, *, step: int | None = None, reason: str = "", code: str = "") -> None:
    """Say in `status.json` how the run stands; without a step it keeps the one that was there."""
    if step is None:
        step = read_json(folder / STATUS, kind="status")["step"] if (folder / STATUS).exists() else 0
    said = {"state": state, "step": step, "reason": reason, "code": code, "pid": os.getpid(), "time": time.time()}
    write_json(folder / STATUS, "status", said)


def begin(folder: Path, recipe: Recipe) -> None:
    """Make a folder a run. The recipe comes last and whole: a folder that has one is a run, whenever we are killed."""
    set_status(folder, RUNNING, step=0)
    write_atomically(folder / RECIPE, recipe.to_yaml().encode())


def clean(folder: Path) -> None:
    """Remove what a killed process was about to put in place. Call with the run's lock held."""
    replaced = (*BEGUN_WITH, SUMMARY, BAD_FILES, PREDICTIONS, OUTPUTS, MODEL, BEST, RESULT, SPEED, REPORT, CARD, FOLDS)
    for name in replaced:
        for leftover in folder.glob(f".{name}.*"):
            leftover.unlink(missing_ok=True)


def new_folder(output: Path, name: str | None, *, stem: str) -> Path:
    """Make the folder of a new run: `name`, or `stem` with a number where it is taken.

    Raises: UsageError: a run of that name is there, or it is a path. ResourceError: the place cannot be written.
    """
    if name is not None and (name in ("", os.curdir, os.pardir) or not {"/", "\\"}.isdisjoint(name)):
        raise UsageError("E102", f"name = {name!r}", expected="a name, not a path; --output says where")
    try:
        output.mkdir(parents=True, exist_ok=True)
        if name is not None:
            folder = output / name
            folder.mkdir(parents=True, exist_ok=True)
            if (folder / RECIPE).exists():
                raise UsageError(
                    "E105", f"{folder} holds a run already", hint="another --name, or --resume auto to go on with it"
                )
            return folder
        for number in range(1, 100_000):
            folder = output / (stem if number == 1 else f"{stem}-{number}")
            try:
                folder.mkdir()
                return folder
            except FileExistsError:
                continue
    except OSError as error:
        raise ResourceError(
            "E401", f"cannot make a run folder in {output}: {error.strerror}", hint="another --output"
        ) from error
    raise UsageError("E105", f"{output} is full of runs called {stem}", hint="another --output or --name")


def remove_unused(folder: Path) -> None:
    """Take a new run's folder away again where nothing was learnt: the run failed before its first step.

    Only files that a run begins with are removed, and the folder only if it is then empty.
    """
    if (folder / METRICS).exists() or (folder / BAD_FILES).exists():
        return
    for name in (*BEGUN_WITH, LOCK, LOG):
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run's lock; the system releases it when the process ends, however it ends.

    Raises: UsageError: another process holds it; the message names its process id. ResourceError: the folder cannot
        be written.
    """
    import fcntl

    try:
        file = (folder / LOCK).open("a+")
    except OSError as error:
        raise ResourceError("E401", f"cannot write in {folder}: {error.strerror}", hint="another --output") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise UsageError(
                "E105", f"{folder} is in use by process {owner}", hint="wait for it, or choose another --name"
            ) from error
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield


def not_there(path: Path) -> UsageError:
    """The error that names no run or model, with the name beside it that was probably meant; to be raised."""
    names = [Path(near).name for near in models_in(path.parent)]
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=_SIMILAR)
    return UsageError("E111", f"there is no {path}", hint=f"did you mean {path.parent / close[0]}?" if close else "")


_SIMILAR = 0.7
"""A slip of the finger or two in a name, and no other name that merely begins alike."""


def models_in(folder: Path) -> list[str]:
    """The runs in a folder that hold a model, or those of folds."""
    return [str(run.path) for run in runs_in(folder) if (run.path / MODEL).is_file() or (run.path / FOLDS).is_file()]


def runs_in(output: Path) -> list[Run]:
    """The runs in a folder, newest first."""
    folders = [path for path in output.iterdir() if (path / RECIPE).is_file()] if output.is_dir() else []
    return [Run(path) for path in sorted(folders, key=lambda path: (path / RECIPE).stat().st_mtime_ns, reverse=True)]
