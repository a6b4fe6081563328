"""`predict`: name the classes of images; one row per input, unreadable ones with the reason."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from kiln.data.source import Source, open_source
from kiln.errors import DataError, MissingExtraError, UsageError
from kiln.pixels import PixelError
from kiln.run import Run, write_atomically
from kiln.runtimes import BATCH_SIZE, load

FORMATS = ("csv", "json", "parquet")


def predict(
    model: str | os.PathLike[str] | Run,
    inputs: Any,
    *,
    top_k: int = 1,
    batch_size: int | None = None,
    workers: int | None = None,
    device: str = "auto",
    runtime: str = "auto",
    trust: Sequence[str] = (),
    tta: str | Sequence[str] = "none",
    output: str | os.PathLike[str] | None = None,
    format: str | None = None,  # noqa: A002 - the flag's name
    tell: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Name the classes of images.

    Args:
        model: a run folder, a model file, an `.onnx`, or a `Run`.
        inputs: an image, a folder, a glob, an archive, a table, a list of paths, or a torch Dataset. Images in memory go
            to `kiln.load(model).predict(images)`.
        top_k: how many classes to name per image.
        batch_size: images per forward pass.
        workers: threads that read and decode.
        device: where to compute.
        runtime: `auto`, `torch` or `onnx`.
        trust: code that the model file may name.
        tta: views of each image whose probabilities are averaged; `views` of `kiln.load`.
        output: also write the rows there; its ending tells the format.
        format: `csv`, `json` or `parquet`.
        tell: called with what was found and left out on the way, such as files that are no images.
    Returns: a dict per input, in the order of the list or table, else of the keys: `key`, `label`, `probability`,
        `top` (name, probability) when `top_k` > 1, `unfamiliarity` (None where the model cannot tell), `refused` (`unsure`
        or `unfamiliar` where the answer is withheld and `label` empty), and `error`, None for a readable image.
    Raises: DataError: nothing to predict.
    """
    kind = _format(output, format)
    predictor = load(model, device=device, runtime=runtime, trust=trust, views=tta)
    inputs = list(inputs) if isinstance(inputs, Iterator) else inputs
    source = open_source(inputs, labelled=False)
    if source.transformed:
        raise UsageError(
            "E107", "these inputs come already transformed", expected="images as files, bytes or uint8 arrays"
        )
    stream = predictor.stream(_Images(source), top_k=top_k, batch_size=batch_size or BATCH_SIZE, workers=workers)
    if tell is not None:
        for note in source.notes:
            tell(note)
    rows = []
    for key, said in zip(source.keys, stream, strict=True):
        row: dict[str, Any] = {
            "key": key,
            "label": said.label,
            "probability": said.probability,
            "unfamiliarity": said.unfamiliarity,
            "refused": said.refused or None,
            "error": said.error or None,
        }
        if said.refused:
            row["label"] = None
        if said.error:
            row |= {"label": None, "probability": None}
        if top_k > 1:
            row["top"] = [list(pair) for pair in said.top]
        rows.append(row)
    if isinstance(inputs, list | tuple):
        rows = _once_per_input(inputs, rows)
    if output is not None and kind is not None:
        WRITERS[kind](Path(output), rows, top_k)
    return rows


def _once_per_input(inputs: Sequence[str | os.PathLike[str]], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows in the order of a list of paths; a path that is listed twice has two, and a folder all of its own."""
    row_of = {row["key"]: row for row in rows}
    found = []
    for item in inputs:
        path = os.fspath(item)
        keys = [path] if path in row_of else [key for key in row_of if key.startswith(os.path.join(path, ""))]
        found += [dict(row_of[key]) for key in keys]
    return found


class _Images:
    """A source as a sequence of readable things; what cannot be read fails when its turn comes."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __iter__(self) -> Iterator[Any]:
        for index in range(len(self._source)):
            yield lambda index=index: self._read(index)

    def _read(self, index: int) -> Any:
        try:
            return self._source.read(index)
        except DataError as error:
            raise PixelError("unreadable", error.what) from error


def _format(output: str | os.PathLike[str] | None, asked: str | None) -> str | None:
    if output is None and asked is None:
        return None
    if output is None:
        raise UsageError("E103", f"format = {asked!r} needs a file to write to", hint="--output FILE")
    kind = asked or Path(output).suffix.lstrip(".").lower()
    if kind not in FORMATS:
        raise UsageError("E101", f"unknown format {kind!r} for {output}", got=kind, choices=FORMATS)
    if kind == "parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise MissingExtraError("pyarrow", extra="formats", purpose="writing Parquet") from error
    return kind


def _flat(row: dict[str, Any], top_k: int) -> dict[str, Any]:
    """A row of a table: the likeliest classes as columns of their own."""
    flat = {"key": row["key"], "label": row["label"], "probability": row["probability"]}
    if top_k > 1:
        pairs = [*row["top"], *[(None, None)] * (top_k - len(row["top"]))]
        for rank, (name, probability) in enumerate(pairs, 1):
            flat |= {f"label_{rank}": name, f"probability_{rank}": probability}
    return {**flat, **{name: row[name] for name in ("unfamiliarity", "refused", "error")}}


def _write_csv(path: Path, rows: Sequence[dict[str, Any]], top_k: int) -> None:
    text = io.StringIO(newline="")
    flat = [_flat(row, top_k) for row in rows]
    writer = csv.DictWriter(text, list(flat[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    write_atomically(path, text.getvalue().encode("utf-8", "surrogateescape"))


def _write_json(path: Path, rows: Sequence[dict[str, Any]], top_k: int) -> None:  # noqa: ARG001 - one signature for all
    write_atomically(path, json.dumps(rows, indent=1).encode())


def _write_parquet(path: Path, rows: Sequence[dict[str, Any]], top_k: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([_flat(row, top_k) for row in rows]), buffer)
    write_atomically(path, buffer.getvalue().to_pybytes())


WRITERS = {"csv": _write_csv, "json": _write_json, "parquet": _write_parquet}
