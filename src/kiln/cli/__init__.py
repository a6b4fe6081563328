"""The command `kiln`: one thin module per verb, imported only when its verb is asked for.

Nothing here may import torch, the recipe, or typer: `kiln --help` prints a table and is gone.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial

from kiln import __version__
from kiln.errors import KilnError, UsageError
from kiln.language import VARIABLE, current, set_language, speaking, tr

VERBS = {
    "train": "learn to tell the classes of labelled images apart; leaves a run folder",
    "resume": "go on with a run that was stopped, exactly where it stood",
    "evaluate": "measure a run or a model on labelled data",
    "compare": "tell whether one model is better than another, paired by sample",
    "predict": "name the class of images, as a table",
    "calibrate": "make a model's probabilities true, and let it say that it does not know",
    "ensemble": "let several models answer together, weighted on validation",
    "soup": "average the weights of several models into one",
    "report": "write one page that says what a run reached, where it fails, and why",
    "export": "write a model in a form that runs without PyTorch",
    "push": "upload a model and its card to a Hugging Face hub",
    "check": "look for what is wrong with a data set, before training on it",
    "labels": "rank the labels that are probably wrong, from out-of-fold predictions",
    "check-loss": "look for what is wrong with a loss, before training with it",
    "pack": "copy images into a form that is read faster",
    "models": "list the models there are, or describe one",
    "verify": "train the first steps twice, and name the first operation that differs",
    "weights": "fetch, verify, place or remove pretrained weights",
    "show": "write a picture of what training sees, before and after augmentation",
    "schedule": "draw how schedules move the learning rate",
    "bench": "measure the data path on this machine, and tell where the wall is",
    "cache": "list or remove what is kept of decoded images",
    "recipe": "show the settings: a preset, a field, the JSON schema",
    "demo": "train on handwritten digits, to see that all is well",
}
OVERVIEW = """\
Kiln turns labelled images into a classifier you can trust and ship.

Usage: kiln VERB [ARGUMENTS]

Verbs:
{verbs}

Start here:
  kiln train photos/                          photos/CLASS/*.jpg, a table, or an archive of either
  kiln predict runs/NAME new.jpg              the newest run's model on images it has not seen
  kiln VERB --help                            the flags of a verb

Options: --help, --version, --lang en|zh"""
SPELLINGS = {"val": "evaluate", "test": "evaluate", "validate": "evaluate", "eval": "evaluate", "fit": "train"}

BUG_EXIT_CODE = 70
INTERRUPTED_EXIT_CODE = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the entry point of the `kiln` script.

    Args:
        arguments: what follows `kiln`; by default the process's own arguments.
    Returns: the exit status: 0, that of the error's family, 70 for a bug of ours, 130 after Ctrl-C.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    _accept_any_name()
    before = current()
    try:
        return _answer(given)
    finally:
        set_language(before)


def _answer(given: list[str]) -> int:
    """Run what was asked in the language that was asked; the exit status."""
    try:
        _run(_in_language(given))
        sys.stdout.flush()
    except KilnError as failure:
        _tell(partial(_shown, failure), given, code=failure.code, message=failure.what)
        return failure.exit_code
    except KeyboardInterrupt:
        _tell(partial(tr, "interrupted"), given, code="E801")
        return INTERRUPTED_EXIT_CODE
    except BrokenPipeError:  # the reader of our output left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except SystemExit as leaving:
        return _left(leaving.code, given)
    except Exception as error:  # noqa: BLE001 (whatever it is, it is reported and not shown as a traceback)
        from kiln.cli.crash import write_report

        where, kind = write_report(error, given), type(error).__name__
        told = "error: {kind}: a bug in Kiln; please send the report {where}"
        _tell(partial(tr, told, kind=kind, where=where), given)
        return BUG_EXIT_CODE
    return 0


def _in_language(arguments: Sequence[str]) -> list[str]:
    """The arguments without `--lang`, after its language is spoken; else that of `KILN_LANG`, else English.

    Raises: UsageError: no such language, or none after the flag.
    """
    rest: list[str] = []
    asked = os.environ.get(VARIABLE, "")
    words = iter(arguments)
    for word in words:
        flag, equals, value = word.partition("=")
        if word == "--":
            rest += [word, *words]
        elif flag == "--lang":
            asked = value if equals else next(words, "nothing")
        else:
            rest.append(word)
    set_language(asked or "en")
    return rest


def _shown(error: KilnError) -> str:
    """An error as it is told; English has no title before its text."""
    if current() == "en":
        return f"error {error.code}: {error}"
    title = tr("error {code}: {title}", code=error.code, title=tr(error.title))
    return "\n".join([title, *(f"  {line}" for line in error.render().splitlines())])


def _accept_any_name() -> None:
    """Escape in the output what the terminal cannot show: the names of files and classes may hold anything."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _run(arguments: list[str]) -> None:
    first = arguments[0] if arguments else "--help"
    if first == "help" and len(arguments) > 1:
        first, arguments = arguments[1], [arguments[1], "--help"]
    if first in ("--help", "-h", "help"):
        _print(overview())
        return
    if first in ("--version", "-V", "version"):
        _print(f"kiln {__version__}")
        return
    verb = SPELLINGS.get(first, first)
    if verb not in VERBS:
        raise _unknown(first)
    importlib.import_module(f"kiln.cli.{verb.replace('-', '_')}").run(arguments[1:])


def _unknown(word: str) -> UsageError:
    if os.path.exists(word) or "=" in word:
        return UsageError("E101", f"{word!r} is not a verb", hint=f"kiln train {word}")
    return UsageError("E101", f"unknown verb {word!r}", got=word, choices=tuple(VERBS), hint="kiln --help")


def overview() -> str:
    """What `kiln --help` prints."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {tr(what)}" for verb, what in VERBS.items())
    return tr(OVERVIEW, verbs=verbs)


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def _left(status: object, arguments: Sequence[str]) -> int:
    """The exit status of a verb that left by itself; the parser has then told on stderr what it did not understand."""
    code = status if isinstance(status, int) else int(status is not None)
    if code == UsageError.exit_code and "--json" in arguments:
        _print_error("E101", "the arguments do not fit", "")
    return code


def _tell(say: Callable[[], str], arguments: Sequence[str], *, code: str = "", message: str = "") -> None:
    """Say on stderr what went wrong; with --json also as the last line of stdout, in English, for programs."""
    sys.stderr.write(f"{say()}\n")
    if "--json" in arguments:
        with speaking("en"):
            _print_error(code, message or say(), say())


def _print_error(code: str, message: str, details: str) -> None:
    import json

    _print(json.dumps({"error": {"code": code or None, "message": message, "details": details}}))
