"""`kiln pack`: copy images into a form that is read faster."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer

from kiln.cli.app import Json, Quiet, Workers, flags_from_keys, run_command
from kiln.cli.terminal import say, say_json
from kiln.errors import UsageError
from kiln.language import tr, word
from kiln.names import VERBS, load_object

KEYS = {
    "data": "",
    "source": "",
    "output": "",
    "format": "--format",
    "workers": "--workers",
    "root": "--root",
    "px": "--px",
    "jpeg": "--jpeg",
}
FORMATS = ("packed", "lmdb", "hdf5", "webdataset", "parquet")


def run(arguments: Sequence[str]) -> None:
    """Run the verb on its arguments."""
    run_command(pack, flags_from_keys(arguments, KEYS), verb="pack")


def pack(
    source: Annotated[str, typer.Argument(help="What to copy: anything that train takes.", metavar="DATA")],
    output: Annotated[str, typer.Argument(help="Where to; must not exist.", metavar="OUT")],
    format_: Annotated[
        str, typer.Option("--format", help="Form of the copy.", metavar="packed|lmdb|hdf5|webdataset|parquet")
    ] = "packed",
    root: Annotated[
        str | None, typer.Option("--root", help="What the names in a table are relative to.", metavar="PATH")
    ] = None,
    px: Annotated[
        int | None, typer.Option("--px", help="Write reduced copies, this many pixels on the shorter side.")
    ] = None,
    jpeg: Annotated[int | None, typer.Option("--jpeg", help="Quality of reduced copies; none keeps pixels.")] = None,
    workers: Workers = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Copy images and labels into a form that is read faster; verified, and gone on with after an interruption."""
    if format_ not in FORMATS:
        raise UsageError("E101", f"unknown format {format_!r}", got=format_, choices=FORMATS)
    progress = None if quiet else _Shown()
    done = load_object(VERBS["pack"])(
        source, output, format=format_, root=root, workers=workers, px=px, jpeg=jpeg, progress=progress
    )
    if json:
        say_json({**asdict(done), "output": str(done.output)})
        return
    resumed = tr(", {count:,} of them by an earlier, interrupted packing", count=done.resumed) if done.resumed else ""
    say(tr("packed {count:,} samples{resumed}; all read back and the same", count=done.samples, resumed=resumed))
    say(tr("files  {before:,} -> {after:,}", before=done.files_before, after=done.files_after))
    say(tr("bytes  {before:,} -> {after:,}", before=done.bytes_before, after=done.bytes_after))
    gain = done.rate_after / max(done.rate_before, 1e-9)
    told = "reads  {before:,.0f} -> {after:,.0f} samples/s ({gain:.2g} times; one thread, no disk wait)"
    say(tr(told, before=done.rate_before, after=done.rate_after, gain=gain))
    say(tr("next   {command}", command=f"kiln train {done.output}"))


class _Shown:
    """Progress on stderr: one live line on a terminal, else a line at the end of each stage."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()

    def __call__(self, what: str, done: int, total: int) -> None:
        if self._live:
            line = tr("{what} {done:,} of {total:,}", what=word(what), done=done, total=total)
            sys.stderr.write(f"\r{line}" + ("\n" if done == total else ""))
            sys.stderr.flush()
        elif done == total:
            sys.stderr.write(tr("{what} {done:,} samples", what=word(what), done=done) + "\n")
