"""Kiln's own form: a folder with the bytes of all files one after the other, and a table of where each lies.

`data.bin` holds the bytes, `index.csv` a row per sample (key, label, split, group, size, crc32, shape), in the order of
the bytes, so that offsets are sums of sizes. `packed.json` is written last: without it the copy is not finished.
A sample costs one system call and its checksum; nothing is mapped, so a file that is cut short meanwhile is an error and
not the end of the process.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kiln import pixels
from kiln.data.archive import Blob
from kiln.data.formats.opening import (
    Facts,
    Opened,
    Plan,
    Record,
    Request,
    Row,
    Stamp,
    cut,
    damaged,
    facts_of,
    parsed_json,
    replace_file,
    restored,
    samples_of,
)
from kiln.data.reader import header_of
from kiln.errors import DataError

KIND, VERSION = "kiln.packed", 1
ABOUT, INDEX, DATA = "packed.json", "index.csv", "data.bin"
_SAFE_TOGETHER = 512


def open_files(request: Request) -> Opened:
    """Open a packed folder, given by its `packed.json`.

    Raises: DataError: damaged, or shorter than it says. ArtifactError: of a newer version.
    """
    request.refuse_columns()
    folder = Path(request.paths[0]).parent
    rows, facts = read_index(folder)
    data = str(folder / DATA)
    names = blob_names(rows)
    if Stamp.of(data).size != sum(row.size for row in rows):
        raise damaged(data, f"{Stamp.of(data).size:,} bytes, but its index lists {sum(row.size for row in rows):,}")
    return Opened(samples_of(rows, names, facts, request), BlobReader(data, has_headers=all(not r.shape for r in rows)))


def read_index(folder: Path) -> tuple[list[Row], Facts]:
    """The rows of a finished copy and what holds for all of them.

    Raises: DataError: damaged. ArtifactError: of a newer version.
    """
    about = parsed_json((folder / ABOUT).read_bytes(), str(folder / ABOUT))
    facts = facts_of(about, str(folder), kind=KIND, version=VERSION)
    try:
        text = (folder / INDEX).read_bytes()
    except OSError as error:
        raise damaged(str(folder), f"no {INDEX} ({error.strerror})") from error
    if hashlib.sha256(text).hexdigest() != about.get("index_sha256"):
        raise damaged(str(folder / INDEX), "its checksum is not what packed.json says")
    return list(parse_rows(text.decode("utf-8"), facts, str(folder / INDEX))), facts


def blob_names(rows: Sequence[Row], base: int = 0) -> list[tuple[int, int, int, str]]:
    """What `BlobReader` reads each row by: offset, size, checksum and shape."""
    offsets = itertools.accumulate((row.size for row in rows), initial=base)
    return [(offset, row.size, row.crc32, row.shape) for offset, row in zip(offsets, rows, strict=False)]


class BlobReader:
    """Reads samples that lie one after the other in a file."""

    def __init__(self, path: str, *, has_headers: bool) -> None:
        self.has_headers = has_headers
        self._path = path
        self._open()

    def _open(self) -> None:
        try:
            with open(self._path, "rb") as file:
                self._blob = Blob(file)
        except OSError as error:
            raise damaged(self._path, f"it cannot be opened ({error.strerror})") from error
        self._stamp = Stamp.of(self._path)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_blob"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._stamp.check(self._path)
        self._open()

    def read(self, name: tuple[int, int, int, str]) -> bytes | np.ndarray:
        """The bytes or the array of a sample. Raises DataError: its checksum is wrong."""
        offset, size, crc32, shape = name
        data = self._blob.read_at(offset, size)
        if len(data) != size or zlib.crc32(data) != crc32:
            raise DataError(
                "E202",
                f"the {size:,} bytes at {offset:,} are not those that were written: wrong checksum",
                where=self._path,
                hint="the disk or the copy is damaged: pack it again",
            )
        return restored(data, shape)

    def header(self, name: tuple[int, int, int, str], max_pixels: int) -> pixels.Header:
        """The header, from the first bytes where they are enough.

        Raises: PixelError: not an image, damaged, or too many pixels. DataError: its checksum is wrong.
        """
        offset, size, _, shape = name
        head_bytes = 16 << 10
        if not shape and size > head_bytes:
            try:
                return pixels.probe(self._blob.read_at(offset, head_bytes), max_pixels=max_pixels)
            except pixels.PixelError:
                pass
        return header_of(self.read(name), max_pixels)


def format_rows(rows: Sequence[Row]) -> str:
    """Rows as CSV; a cell for what the source does not have stays empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")  # so that either of them in a name is quoted
    for row in rows:
        writer.writerow(
            (row.key, row.label or "", row.split or "", row.group or "", row.size, f"{row.crc32:08x}", row.shape)
        )
    return text.getvalue()


def parse_rows(text: str, facts: Facts, where: str) -> Iterator[Row]:
    """Rows from CSV.

    Raises: DataError: a row that no writer of ours wrote.
    """
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    next(rows, None)
    try:
        for number, (key, label, split, group, size, crc32, shape) in enumerate(rows, 2):
            if int(size) < 0 or split not in ("", "train", "val", "test"):
                raise ValueError(f"row {number}: size {size}, split {split!r}")
            yield Row(
                key, label if facts.labels else None, split or None, group if facts.groups else None, int(size),
                int(crc32, 16), shape,
            )  # fmt: skip
    except (ValueError, csv.Error) as error:
        raise damaged(where, str(error)) from error


class Writer:
    """Appends samples to `data.bin` and rows to `index.csv`; goes on behind the last sample whose checksum is right.

    Args:
        place: the folder.
        plan: of the copy.
    Raises: OSError: it cannot be written.
    """

    def __init__(self, place: Path, plan: Plan) -> None:
        self._folder, self._plan = place, plan
        place.mkdir(exist_ok=True)
        self._num_samples = len(plan.splits)
        self._num_written = self._recover()

    def _recover(self) -> int:
        """Cut both files behind the last whole sample."""
        index, data = self._folder / INDEX, self._folder / DATA
        data.touch()
        kept: list[Row] = []
        end = 0
        if index.exists():
            with data.open("rb") as file:
                try:
                    for row in parse_rows(index.read_bytes().decode("utf-8", "replace"), self._plan.facts, str(index)):
                        if zlib.crc32(chunk := file.read(row.size)) != row.crc32 or len(chunk) != row.size:
                            break
                        kept.append(row)
                        end += row.size
                except DataError:
                    pass  # the row that was being written when the process ended
        os.truncate(data, end)
        header = ",".join(Row._fields) + "\r\n"
        replace_file(index, (header + format_rows(kept)).encode("utf-8"))
        return len(kept)

    def pending(self) -> list[list[int]]:
        """Samples that are not written yet."""
        return cut(range(self._num_written, self._num_samples), _SAFE_TOGETHER)

    def write(self, indices: Sequence[int], records: Iterator[Record]) -> None:  # noqa: ARG002 - always in order
        """Append samples; the bytes are on the disk before the rows that say so."""
        rows = []
        with (self._folder / DATA).open("ab") as data:
            for record in records:
                data.write(record.data)
                rows.append(record.row)
            data.flush()
            os.fsync(data.fileno())
        with (self._folder / INDEX).open("ab") as index:
            index.write(format_rows(rows).encode("utf-8"))
            index.flush()
            os.fsync(index.fileno())
        self._num_written += len(rows)

    def finish(self) -> None:
        """Write `packed.json`."""
        about = {
            "kind": KIND,
            "version": VERSION,
            "samples": self._num_written,
            "bytes": (self._folder / DATA).stat().st_size,
            "index_sha256": hashlib.sha256((self._folder / INDEX).read_bytes()).hexdigest(),
            "facts": self._plan.facts.to_dict(),
        }
        replace_file(self._folder / ABOUT, json.dumps(about, indent=1, ensure_ascii=False).encode("utf-8"))
