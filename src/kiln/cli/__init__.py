"""The command `kiln`: one thin module per verb, imported only when its verb is asked for.

Nothing here may import torch, the recipe, or typer: `kiln --help` prints a table and is gone.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Sequence

from kiln import __version__
from kiln.errors import KilnError, UsageError

VERBS = {
    "train": "learn to tell the classes of labelled images apart; leaves a run folder",
    "resume": "go on with a run that was stopped, exactly where it stood",
    "evaluate": "measure a run or a model on labelled data",
    "predict": "name the class of images, as a table",
    "export": "write a model in a form that runs without PyTorch",
    "check": "look for what is wrong with a data set, before training on it",
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
    try:
        _run(given)
        sys.stdout.flush()
    except KilnError as error:
        _tell(f"error {error.code}: {error}", given, code=error.code, message=error.what)
        return error.exit_code
    except KeyboardInterrupt:
        _tell("interrupted", given, code="E801")
        return INTERRUPTED_EXIT_CODE
    except BrokenPipeError:  # the reader of our output left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except SystemExit as leaving:
        return _left(leaving.code, given)
    except Exception as error:  # noqa: BLE001 (whatever it is, it is reported and not shown as a traceback)
        from kiln.cli.crash import write_report

        where = write_report(error, given)
        _tell(f"error: {type(error).__name__}: a bug in Kiln; please send the report {where}", given)
        return BUG_EXIT_CODE
    return 0


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
    verbs = "\n".join(f"  {verb:<{width}}  {what}" for verb, what in VERBS.items())
    return f"""\
Kiln turns labelled images into a classifier you can trust and ship.

Usage: kiln VERB [ARGUMENTS]

Verbs:
{verbs}

Start here:
  kiln train photos/                          photos/CLASS/*.jpg, a table, or an archive of either
  kiln predict runs/NAME new.jpg              the newest run's model on images it has not seen
  kiln VERB --help                            the flags of a verb

Options: --help, --version"""


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def _left(status: object, arguments: Sequence[str]) -> int:
    """The exit status of a verb that left by itself; the parser has then told on stderr what it did not understand."""
    code = status if isinstance(status, int) else int(status is not None)
    if code == UsageError.exit_code and "--json" in arguments:
        _print_error("E101", "the arguments do not fit", "")
    return code


def _tell(text: str, arguments: Sequence[str], *, code: str = "", message: str = "") -> None:
    """Say on stderr what went wrong; with --json also as the last line of stdout, for programs."""
    sys.stderr.write(f"{text}\n")
    if "--json" in arguments:
        _print_error(code, message or text, text)


def _print_error(code: str, message: str, details: str) -> None:
    import json

    _print(json.dumps({"error": {"code": code or None, "message": message, "details": details}}))
