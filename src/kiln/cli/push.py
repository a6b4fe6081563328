"""`kiln push`: upload a model and its card to a Hugging Face hub."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from kiln.cli.app import Json, run_command
from kiln.cli.terminal import note, say, say_json, table
from kiln.language import tr
from kiln.names import VERBS, load_object


def run(arguments: Sequence[str]) -> None:
    """Run the verb on its arguments."""
    run_command(push, arguments, verb="push")


def push(
    run_folder: Annotated[str, typer.Argument(help="The folder of the run.", metavar="RUN")],
    repo: Annotated[str, typer.Argument(help="The repository; made if it is not there.", metavar="OWNER/NAME")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    token_env: Annotated[
        str | None,
        typer.Option("--token-env", help="Variable that holds the token. [HF_TOKEN, or the login]", metavar="NAME"),
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option("--endpoint", help="Address of another hub; https only.", metavar="URL")
    ] = None,
    with_onnx: Annotated[
        bool, typer.Option("--with-onnx", help="Export the model to ONNX, and upload that too.")
    ] = False,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Upload without asking.")] = False,
    json: Json = False,
) -> None:
    """Upload a run's model, its card, its report and its settings to a Hugging Face hub, after showing what goes out.

    No secrets and no absolute paths of this machine go out. What is there under the same names is replaced.
    """

    def confirm(planned: Sequence[Any]) -> bool:
        total = sum(file.num_bytes for file in planned)
        told = tr("upload {count} files, {size:,.1f} MB, to {repo}", count=len(planned), size=total / 1e6, repo=repo)
        if json:
            note(f"{told}: {', '.join(file.name for file in planned)}")
        else:
            say(told)
            table(("file", "bytes"), [(file.name, file.num_bytes) for file in planned])
        return yes or _asked()

    pushed = load_object(VERBS["push"])(
        run_folder, repo, private=private, token_env=token_env, endpoint=endpoint, with_onnx=with_onnx, confirm=confirm
    )
    if json:
        files = {file.name: file.num_bytes for file in pushed.files}
        say_json({"repo": pushed.repo, "url": pushed.url, "files": files})
        return
    say(tr("done   {url}", url=pushed.url))


def _asked() -> bool:
    """Ask on a terminal; elsewhere nobody could answer."""
    if not sys.stdin.isatty():
        return False
    sys.stderr.write(tr("upload? [y/N] "))
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes", "是")
