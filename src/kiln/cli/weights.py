"""`kiln weights`: published weights that are here, and how to bring, check, place by hand and remove them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from kiln.cli.app import Json, run_command
from kiln.cli.terminal import say, say_json, table
from kiln.errors import ArtifactError, UsageError
from kiln.language import tr
from kiln.language.patterns import translated
from kiln.language.width import label
from kiln.names import load_object

ACTIONS = ("list", "fetch", "verify", "where", "clear")


def run(arguments: Sequence[str]) -> None:
    """Run the verb on its arguments."""
    run_command(weights, arguments, verb="weights")


def weights(
    action: Annotated[
        str, typer.Argument(help="What to do: list, fetch, verify, where or clear.", metavar="|".join(ACTIONS))
    ] = "list",
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Models (resnet18, torchvision/resnet50.IMAGENET1K_V1), hf-hub:OWNER/NAME, URLs; verify also takes "
            "files, list a pattern.",
            metavar="NAME...",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """List the pretrained weights that are here; fetch some, verify them, say where to put them by hand, remove them."""
    if action not in ACTIONS:
        raise UsageError("E101", f"unknown action {action!r}", got=action, choices=ACTIONS)
    given = list(names or ())
    if action in ("fetch", "where") and not given:
        raise UsageError("E102", f"kiln weights {action} needs a name", hint=f"kiln weights {action} resnet18")
    if action == "list" and len(given) > 1:
        raise UsageError("E102", f"kiln weights list takes one pattern, not {len(given)}")
    do = load_object(f"kiln.jobs.weights:{action}_weights")
    rows = do(*given) if action == "list" else do(given)
    if json:
        say_json({"action": action, "count": len(rows), "weights": rows})
    else:
        _TELL[action](rows)
    damaged = [f"{row['path']}: {row['verdict']}" for row in rows if not row.get("whole", True)]
    if damaged:
        what = f"{len(damaged)} of {len(rows)} files are not what they should be"
        raise ArtifactError("E307", what, details=damaged, hint="delete them, and kiln weights fetch NAME")


def _tell_files(rows: Sequence[dict[str, Any]]) -> None:
    if rows:
        table(
            ("name", "file", "cache", "MB"),
            [(row["name"], row["file"], row["cache"], round(row["bytes"] / 1e6, 1)) for row in rows],
        )


def _megabytes(rows: Sequence[dict[str, Any]]) -> float:
    return sum(row["bytes"] for row in rows) / 1e6


def _tell_list(rows: Sequence[dict[str, Any]]) -> None:
    _tell_files(rows)
    say(tr("{count:,} files here, {size:,.0f} MB", count=len(rows), size=_megabytes(rows)))
    if not rows:
        say(tr("next   {command}", command="kiln weights fetch resnet18"))


def _tell_clear(rows: Sequence[dict[str, Any]]) -> None:
    _tell_files(rows)
    say(tr("{count:,} files removed, {size:,.0f} MB", count=len(rows), size=_megabytes(rows)))


def _tell_fetch(rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        how = tr("fetched") if row["fetched"] else tr("was here")
        say(f"{row['name']}  {row['bytes'] / 1e6:,.1f} MB  {how}")
        _tell_facts(address=row["url"], sha256=row["sha256"], file=row["path"])


def _tell_verify(rows: Sequence[dict[str, Any]]) -> None:
    table(("name", "verdict", "SHA-256"), [(row["name"], translated(row["verdict"]), row["sha256"]) for row in rows])


def _tell_where(rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        say(row["name"])
        known = row["sha256"]
        digits = known if len(known) == 64 else tr("starts with {known}", known=known)
        if not known:
            digits = tr("nobody published it; #sha256=DIGITS at the end pins it")
            if row["page"]:
                digits = tr("shown on {page}", page=row["page"])
        _tell_facts(
            address=row["url"], sha256=digits, here=row["here"] or tr("not yet"), path=row["path"], **row["usual"]
        )
        if row["beside"]:
            _tell_facts(beside=tr("{beside}, in the working folder or that of the script", beside=row["beside"]))
        _tell_facts(hand=f'curl -fL --create-dirs -C - -o "{row["path"]}" {row["url"]}')
        _tell_facts(then=f"kiln weights verify {row['name']}")


def _tell_facts(**facts: str) -> None:
    for name, value in facts.items():
        say(f"  {label({'hand': 'by hand', 'sha256': 'SHA-256'}.get(name, name), 8)}{value}")


_TELL = {
    "list": _tell_list,
    "fetch": _tell_fetch,
    "verify": _tell_verify,
    "where": _tell_where,
    "clear": _tell_clear,
}
