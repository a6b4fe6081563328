"""What the verbs share: how a function becomes a command line."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from kiln.language import current, tr
from kiln.language.patterns import translated

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line; all else goes to stderr.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print the outcome only.")]
Device = Annotated[
    str, typer.Option("--device", help="Device to compute on: auto, cpu, cuda, mps, xpu.", metavar="NAME")
]
BatchSize = Annotated[int | None, typer.Option("-b", "--batch-size", help="Images per step.", metavar="N", min=1)]
Workers = Annotated[
    int | None, typer.Option("-j", "--workers", help="Workers that read and decode.", metavar="N", min=0)
]
Runtime = Annotated[str, typer.Option("--runtime", help="What computes: auto, torch, onnx.", metavar="NAME")]
Views = Annotated[
    str,
    typer.Option(
        "--tta",
        help="Average over views of each image: none, hflip, flips, five_crop, ten_crop, scales, or a list.",
        metavar="NAME",
    ),
]
Trust = Annotated[
    list[str] | None,
    typer.Option("--trust", help="Code (module:name) that the model may name and that may run.", metavar="NAME"),
]
ModelArgument = Annotated[str, typer.Argument(help="Run folder, model file or .onnx.", metavar="RUN_OR_MODEL")]

_KEY_VALUE = re.compile(r"([A-Za-z][A-Za-z0-9_.-]*)=(.*)", re.DOTALL)


def run_command(function: Callable[..., None], arguments: Sequence[str], *, verb: str) -> None:
    """Parse arguments by a function's signature and call it.

    Raises: SystemExit: after --help, or with status 2 when the arguments do not fit; what is wrong is on stderr.
    """
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    settings = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
    app.command(context_settings=settings)(_interruptible(function))
    command, name = typer.main.get_command(app), f"kiln {verb}"
    if current() == "en":
        command.main(args=list(arguments), prog_name=name)
        return
    try:
        status = command.main(args=list(arguments), prog_name=name, standalone_mode=False)
    except Exception as error:
        if not hasattr(error, "format_message"):  # what all errors of the parser have, whose home has moved before
            raise
        raise SystemExit(_misunderstood(error, name)) from error
    if status:
        raise SystemExit(status)


def _misunderstood(error: Any, name: str) -> int:
    """Say what the parser did not understand, in the language of the moment; its exit status."""
    if getattr(error, "ctx", None) is not None:
        usage = error.ctx.get_usage().removeprefix("Usage: ")
        sys.stderr.write(tr("Usage: {usage}\nTry '{name} -h' for help.\n\n", usage=usage, name=name))
    sys.stderr.write(tr("Error: {what}", what=translated(error.format_message())) + "\n")
    return error.exit_code


def _interruptible(function: Callable[..., None]) -> Callable[..., None]:
    """Keep Ctrl-C from the parser, which would report it in its own way."""

    @functools.wraps(function)
    def called(**values: Any) -> None:
        try:
            function(**values)
        except KeyboardInterrupt:
            raise SystemExit(130) from None

    return called


def split_key_value(argument: str) -> tuple[str, str] | None:
    """Key and value of `key=value`, or None for anything else; an existing path is never a key."""
    found = _KEY_VALUE.fullmatch(argument)
    return (found[1], found[2]) if found and not Path(argument).exists() else None


def flags_from_keys(arguments: Sequence[str], keys: Mapping[str, str]) -> list[str]:
    """Arguments with `key=value` (as in `yolo val model=... data=...`) turned into flags or positionals.

    Args:
        arguments: what the user wrote.
        keys: key -> flag, or "" for a positional, which keeps its place in the table's order and comes first.
    """
    positionals = {key: [] for key, flag in keys.items() if not flag}
    rest = []
    for argument in arguments:
        pair = split_key_value(argument)
        key = pair[0].replace("_", "-").lower() if pair else ""
        if pair is None or key not in keys:
            rest.append(argument)
        elif keys[key]:
            rest.append(f"{keys[key]}={pair[1]}")
        else:
            positionals[key].append(pair[1])
    return [value for values in positionals.values() for value in values] + rest
