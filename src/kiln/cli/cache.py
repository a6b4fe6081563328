"""`kiln cache`: what is kept of decoded images, and how to be rid of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated

import typer

from kiln.cli.app import Json, run_command
from kiln.cli.terminal import say, say_json, table
from kiln.data import room
from kiln.errors import UsageError
from kiln.language import tr

ACTIONS = ("list", "clear")


def run(arguments: Sequence[str]) -> None:
    """Run the verb on its arguments."""
    run_command(cache, arguments, verb="cache")


def cache(
    action: Annotated[str, typer.Argument(help="What to do: list or clear.", metavar="list|clear")] = "list",
    json: Json = False,
) -> None:
    """List the reduced copies of images that runs keep, or remove those that no run is using."""
    if action not in ACTIONS:
        raise UsageError("E101", f"unknown action {action!r}", got=action, choices=ACTIONS)
    found = room.entries() if action == "list" else room.clear()
    total = sum(entry.num_bytes for entry in found)
    if json:
        rows = [{"folder": str(e.folder), "data": e.where, "bytes": e.num_bytes, "in_use": e.in_use} for e in found]
        say_json({"action": action, "root": str(room.root()), "bytes": total, "caches": rows})
        return
    if found:
        table(("data", "MB", "last used", "in use"), [_row(entry) for entry in found])
    count, size = len(found), total / 1e6
    if action == "clear":
        say(tr("{count:,} caches removed, {size:,.0f} MB", count=count, size=size))
    else:
        say(tr("{count:,} caches kept, {size:,.0f} MB", count=count, size=size))
    say(tr("folder {folder}", folder=room.root()))


def _row(entry: room.Entry) -> tuple[str, str, str, str]:
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
    return entry.where, f"{entry.num_bytes / 1e6:,.0f}", used, tr("yes") if entry.in_use else ""
