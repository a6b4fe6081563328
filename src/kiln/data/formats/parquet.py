"""Parquet and Arrow tables with image bytes, as Hugging Face `datasets` writes them too.

The image is a column of bytes, or a struct {bytes, path}; a `ClassLabel` names its classes in the metadata of the schema.
Arrow files are mapped and read at random. Parquet is read by row groups: one is decompressed for one sample, and the last
ones are kept, up to 256 MB per process; for larger sets `kiln pack` makes a form with random access.
"""

from __future__ import annotations

import itertools
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kiln import pixels
from kiln.data.formats.opening import (
    Facts,
    Opened,
    Plan,
    Record,
    Request,
    Stamp,
    damaged,
    facts_of,
    imported,
    parsed_json,
    splits_of,
    unlabelled,
    without_labels,
)
from kiln.data.formats.parts import PartedWriter, as_file
from kiln.data.reader import header_of
from kiln.data.samples import Samples, split_word
from kiln.data.storage import Entry
from kiln.errors import DataError, UsageError

KIND, VERSION = "kiln.parquet", 1
KEPT_BYTES = 256 << 20
_ROWS_PER_GROUP = 64
_IMAGE_NAMES = ("image", "img", "images", "jpg", "png", "picture", "photo", "pixel_values", "bytes")
_LABEL_NAMES = ("label", "labels", "fine_label", "class", "cls", "target", "category", "y")


class _Columns(NamedTuple):
    image: str
    label: str | None
    split: str | None
    group: str | None
    key: str | None


def open_files(request: Request) -> Opened:
    """Open tables; the split is in a column or in the files' names.

    Raises: DataError: damaged, or no column of images. UsageError: a column that is not there. MissingExtraError.
    """
    tables = [_Table(path) for path in request.paths]
    for table in tables[1:]:
        if table.schema.names != tables[0].schema.names:
            raise DataError(
                "E209",
                f"{table.path} has other columns than {tables[0].path}",
                details=[", ".join(table.schema.names), ", ".join(tables[0].schema.names)],
            )
    facts, num_files = _own_facts(tables[0], request)
    if facts is not None and os.path.isdir(request.where) and num_files != len(tables):
        raise damaged(request.where, f"{len(tables):,} files, but {num_files} were written")
    columns = _columns(tables[0].schema, request, own=facts is not None)
    class_names = facts.class_names if facts else _class_names(tables[0].schema, columns.label)
    if request.labelled and columns.label is None:
        raise without_labels(request.where)
    splits = splits_of(request.paths, request.where)
    found: dict[str, list[Any]] = {"key": [], "label": [], "split": [], "group": []}
    names, entries = [], []
    for number, (table, split) in enumerate(zip(tables, splits, strict=True)):
        part = _read_facts(table, columns, None if facts else class_names, split)
        first = len(names)
        for name, values in part.items():
            found[name] += values
        if columns.key is None:
            found["key"] += [f"{split or 'data'}/{first + row:09d}" for row in range(table.num_rows)]
        names += [(number, row) for row in range(table.num_rows)]
        entries += [Entry(0, table.stamp.identity)] * table.num_rows
    if columns.key is None:
        found["key"] = _numbered(found["split"])
    samples = _samples(found, names, entries, class_names, request)
    notes = facts.notes if facts else ()
    return Opened(replace(samples, notes=(*samples.notes, *notes)), TableReader(tables, columns.image))


def _numbered(splits: Sequence[str | None]) -> list[str]:
    """`train/000000012`, counted through each split; without splits the number alone."""
    reached: dict[str | None, int] = {}
    keys = []
    for split in splits:
        reached[split] = reached.get(split, -1) + 1
        keys.append(f"{split or 'data'}/{reached[split]:09d}")
    return keys if len(reached) > 1 else [key.partition("/")[2] for key in keys]


def _samples(
    found: dict[str, list[Any]],
    names: Sequence[Any],
    entries: Sequence[Entry],
    class_names: tuple[str, ...] | None,
    request: Request,
) -> Samples:
    if not names:
        raise DataError("E201", f"there are no rows in {request.where}")
    if len(set(found["key"])) < len(names):
        raise damaged(request.where, "two rows have the same key")
    labels = found["label"] if request.labelled else None
    return Samples(
        keys=found["key"],
        names=names,
        entries=entries,
        labels=labels,
        splits=found["split"] if any(found["split"]) else None,
        groups=found["group"] or None,
        class_names=class_names,
        unlabelled=unlabelled(labels, found["key"]),
    )


def _own_facts(table: _Table, request: Request) -> tuple[Facts | None, int]:
    about = (table.schema.metadata or {}).get(b"kiln")
    if about is None:
        return None, 0
    request.refuse_columns()
    parsed = parsed_json(about, table.path)
    return facts_of(parsed, table.path, kind=KIND, version=VERSION), parsed.get("files", 0)


def _columns(schema: Any, request: Request, *, own: bool) -> _Columns:
    asked = request.asked

    def named(wanted: str | int | None, usual: Sequence[str]) -> str | None:
        if wanted is None:
            return next((name for name in usual if name in schema.names), None)
        is_number = isinstance(wanted, int) and 0 < wanted <= len(schema.names)
        name = schema.names[int(wanted) - 1] if is_number else str(wanted)
        if name not in schema.names:
            raise UsageError("E102", f"no column {name!r} in {request.where}", got=name, choices=schema.names)
        return name

    image = named(asked.path, [name for name in _IMAGE_NAMES if name in schema.names and _is_bytes(schema, name)])
    if image is None or not _is_bytes(schema, image):
        raise DataError(
            "E201",
            f"no column of {request.where} holds image bytes",
            expected="a column of bytes, or a struct with a field 'bytes', called image or img",
            details=[f"{field.name}: {field.type}" for field in schema],
            hint="name it with path_column",
        )
    return _Columns(
        image,
        named(asked.label, _LABEL_NAMES),
        named(asked.split, ("split",)),
        named(asked.group, ("group",)),
        "key" if own else None,
    )


def _is_bytes(schema: Any, name: str) -> bool:
    types = imported("pyarrow", "Parquet and Arrow").types
    kind = schema.field(name).type
    if types.is_struct(kind):
        index = kind.get_field_index("bytes")
        if index < 0:
            return False
        kind = kind.field(index).type
    return types.is_binary(kind) or types.is_large_binary(kind)


def _class_names(schema: Any, label: str | None) -> tuple[str, ...] | None:
    """The names of a `ClassLabel` of Hugging Face, from the schema's metadata."""
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None or label is None:
        return None
    try:
        feature = json.loads(text)["info"]["features"][label]
        names = feature.get("feature", feature).get("names")
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return tuple(map(str, names)) if isinstance(names, list) else None


def _read_facts(
    table: _Table, columns: _Columns, class_names: tuple[str, ...] | None, split: str | None
) -> dict[str, list[Any]]:
    """Labels, splits, groups and keys of one table, without its images."""
    wanted = [name for name in (columns.label, columns.split, columns.group, columns.key) if name is not None]
    values = table.columns(list(dict.fromkeys(wanted)))
    found: dict[str, list[Any]] = {"split": [split] * table.num_rows}
    if columns.label is not None:
        found["label"] = [_text(value, class_names, table.path) for value in values[columns.label]]
    if columns.split is not None:
        found["split"] = [None if value is None else split_word(str(value)) for value in values[columns.split]]
    if columns.group is not None:
        found["group"] = ["" if value is None else str(value) for value in values[columns.group]]
    if columns.key is not None:
        found["key"] = values[columns.key]
    return found


def _text(value: Any, class_names: tuple[str, ...] | None, where: str) -> str:
    if value is None or (isinstance(value, int) and value < 0):
        return ""  # Hugging Face marks what has no label with -1
    if isinstance(value, list):
        return ",".join(_text(item, class_names, where) for item in value)
    if isinstance(value, int) and class_names is not None:
        if value >= len(class_names):
            raise DataError("E209", f"a label is {value}, but there are {len(class_names)} class names", where=where)
        return class_names[value]
    return str(value)


class _Table:
    """One file, opened once per process: an Arrow file mapped, a Parquet file by row groups. Safe from many threads."""

    def __init__(self, path: str) -> None:
        self.path, self.stamp = path, Stamp.of(path)
        self._forget()
        opened, _ = self._opened()
        self.schema, self.num_rows, self._starts = opened.schema, opened.num_rows, opened.starts

    def _forget(self) -> None:
        self._state: tuple[int, Any, Any] = (-1, None, None)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_state"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.stamp.check(self.path)
        self._forget()

    def _opened(self) -> tuple[_ParquetFile | _ArrowFile, threading.Lock]:
        """The file and its lock, both of this process: the parent's lock may have been held when it forked."""
        pid, file, lock = self._state
        if pid != os.getpid():
            library = imported("pyarrow", "Parquet and Arrow")
            try:
                file = _ParquetFile(self.path) if self.path.lower().endswith(".parquet") else _ArrowFile(self.path)
            except (library.ArrowException, OSError, ValueError) as error:
                raise damaged(self.path, str(error)) from error
            lock = threading.Lock()
            self._state = os.getpid(), file, lock
        return file, lock

    def columns(self, names: Sequence[str]) -> dict[str, list[Any]]:
        """Small columns as lists. Raises: DataError: damaged."""
        library = imported("pyarrow", "Parquet and Arrow")
        try:
            return self._opened()[0].columns(names)
        except (library.ArrowException, OSError, ValueError) as error:
            raise damaged(self.path, str(error)) from error

    def value(self, column: str, row: int) -> Any:
        """One cell. Raises: DataError: damaged."""
        library = imported("pyarrow", "Parquet and Arrow")
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        file, lock = self._opened()
        try:
            with lock:
                values = file.group(column, group)
            return values[row - int(self._starts[group])].as_py()
        except (library.ArrowException, OSError, ValueError) as error:
            raise DataError("E202", f"cannot read row {row:,}: {error}", where=self.path) from error


class _ParquetFile:
    def __init__(self, path: str) -> None:
        self._number = next(_numbers)
        self._file = imported("pyarrow.parquet", "Parquet").ParquetFile(
            path, pre_buffer=False, page_checksum_verification=True
        )
        self.schema, self.num_rows = self._file.schema_arrow, self._file.metadata.num_rows
        groups = [self._file.metadata.row_group(index).num_rows for index in range(self._file.num_row_groups)]
        self.starts = np.cumsum([0, *groups])

    def columns(self, names: Sequence[str]) -> dict[str, list[Any]]:
        return self._file.read(columns=list(names), use_threads=False).to_pydict() if names else {}

    def group(self, column: str, index: int) -> Any:
        return _kept.get((self._number, index), lambda: self._read(column, index))

    def _read(self, column: str, index: int) -> Any:
        return self._file.read_row_group(index, columns=[column], use_threads=False).column(0).combine_chunks()


class _ArrowFile:
    def __init__(self, path: str) -> None:
        library, ipc = imported("pyarrow", "Arrow"), imported("pyarrow.ipc", "Arrow")
        source = library.memory_map(path)
        try:
            self._table = ipc.open_file(source).read_all()
        except library.ArrowInvalid:
            source.seek(0)
            self._table = ipc.open_stream(source).read_all()
        self._table.validate(full=True)  # offsets that lead outside would be read as they are
        self.schema, self.num_rows = self._table.schema, self._table.num_rows
        lengths = [batch.num_rows for batch in self._table.to_batches()]
        self._batches = self._table.to_batches()
        self.starts = np.cumsum([0, *lengths])

    def columns(self, names: Sequence[str]) -> dict[str, list[Any]]:
        return self._table.select(list(names)).to_pydict() if names else {}

    def group(self, column: str, index: int) -> Any:
        return self._batches[index].column(column)


class _Kept:
    """The row groups that were read last, in so many bytes, of all tables of the process."""

    def __init__(self, limit: int) -> None:
        self._limit, self._total = limit, 0
        self._groups: OrderedDict[Any, Any] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Any, make: Any) -> Any:
        with self._lock:
            if key in self._groups:
                self._groups.move_to_end(key)
                return self._groups[key]
        values = make()
        with self._lock:
            self._groups[key] = values
            self._total += values.nbytes
            while self._total > self._limit and len(self._groups) > 1:
                self._total -= self._groups.popitem(last=False)[1].nbytes
        return values

    def renew(self) -> None:
        """In a forked child: the parent's lock may have been held."""
        self._lock = threading.Lock()


_kept = _Kept(KEPT_BYTES)
_numbers = itertools.count()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_kept.renew)


class TableReader:
    """Reads images of tables by (number of the table, row)."""

    has_headers = True

    def __init__(self, tables: Sequence[_Table], column: str) -> None:
        self._tables, self._column = tables, column

    def read(self, name: tuple[int, int]) -> bytes:
        """The bytes of an image. Raises DataError: there are none, or the file is damaged."""
        number, row = name
        value = self._tables[number].value(self._column, row)
        data = value.get("bytes") if isinstance(value, dict) else value
        if data is None:
            why = "only the path of an image, no bytes" if isinstance(value, dict) and value.get("path") else "no image"
            raise DataError("E202", f"row {row:,} holds {why}", where=self._tables[number].path)
        return data

    def header(self, name: tuple[int, int], max_pixels: int) -> pixels.Header:
        """Size and mode. Raises: PixelError: no image. DataError: the file is damaged."""
        return header_of(self.read(name), max_pixels)


class Writer(PartedWriter):
    """Writes Parquet files in the layout that Hugging Face `datasets` reads: `train-00000-of-00002.parquet`.

    Args:
        place: the folder of files.
        plan: of the copy.
    """

    def __init__(self, place: Path, plan: Plan) -> None:
        super().__init__(place, plan, suffix=".parquet", write_part=self._write_file)
        self._library = imported("pyarrow", "Parquet")
        self._format = imported("pyarrow.parquet", "Parquet")
        self._facts = plan.facts
        self._schema = self._make_schema()

    def _make_schema(self) -> Any:
        pa = self._library
        text = ["key", *(name for name, there in self._text_columns() if there)]
        features = {"image": {"_type": "Image"}} | {name: {"dtype": "string", "_type": "Value"} for name in text}
        about = {"kind": KIND, "version": VERSION, "files": len(self._parts), "facts": self._facts.to_dict()}
        fields = [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))]
        return pa.schema(
            fields + [(name, pa.string()) for name in text],
            metadata={"huggingface": json.dumps({"info": {"features": features}}), "kiln": json.dumps(about)},
        )

    def _text_columns(self) -> list[tuple[str, bool]]:
        return [("label", self._facts.labels), ("split", self._facts.splits), ("group", self._facts.groups)]

    def _write_file(self, path: Path, indices: Sequence[int], records: Iterator[Record]) -> None:  # noqa: ARG002
        # Images are compressed already: no codec and no dictionary, so that a row group is read as it lies there.
        with self._format.ParquetWriter(
            path, self._schema, compression="none", use_dictionary=False, write_page_checksum=True
        ) as writer:
            rows: list[dict[str, Any]] = []
            for record in records:
                image = {"bytes": as_file(record), "path": os.path.basename(record.row.key)}
                kept = {name: getattr(record.row, name) for name in self._schema.names if name != "image"}
                rows.append({"image": image, **kept})
                if len(rows) == _ROWS_PER_GROUP:
                    writer.write_table(self._library.Table.from_pylist(rows, schema=self._schema))
                    rows.clear()
            if rows:
                writer.write_table(self._library.Table.from_pylist(rows, schema=self._schema))
