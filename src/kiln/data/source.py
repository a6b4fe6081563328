"""A source: where samples come from. It knows keys, labels and splits, and the bytes or the array of each sample."""

from __future__ import annotations

import difflib
import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from kiln import pixels
from kiln.data import formats, layout
from kiln.data.archive import open_archive
from kiln.data.class_file import class_names_from
from kiln.data.fingerprint import fingerprint_of
from kiln.data.formats.arrays import are_arrays, open_arrays
from kiln.data.formats.opening import Opened
from kiln.data.reader import FileReader, Reader
from kiln.data.rows import NOTHING_ASKED, Asked
from kiln.data.samples import Samples
from kiln.data.storage import Entry, Folder, Storage, counted, is_hidden, is_image_name
from kiln.data.table import TABLE_SUFFIXES, TableFile, read_tables, tables_in
from kiln.errors import DataError, UsageError

if TYPE_CHECKING:
    import torch

MAX_PIXELS = 50_000_000


@dataclass(frozen=True, eq=False)
class Source:
    """Samples, each with its identity.

    Attributes:
        where: what was opened.
        keys: the identity of each sample, unique; for files the path below the source. Sorted by code point; without
            labels, a list and a table keep their own order.
        labels: raw label text; None where there are no labels.
        splits: `train`, `val`, `test` or None for each sample; None where the data says nothing of splits.
        groups: samples of one group must not be parted.
        class_names: names in index order, for integer labels.
        fingerprint: changes with any key, label, split, group, size or modification time.
        notes: findings to print.
        transformed: items are float CHW tensors that need no augmentation.
        unlabelled: places of empty labels, such as "labels.csv row 7".
    """

    where: str
    keys: tuple[str, ...]
    labels: tuple[str, ...] | None
    splits: tuple[str | None, ...] | None
    groups: tuple[str, ...] | None
    class_names: tuple[str, ...] | None
    fingerprint: str
    notes: tuple[str, ...] = ()
    transformed: bool = False
    unlabelled: tuple[str, ...] = ()
    _names: tuple[Any, ...] = field(default=(), repr=False)
    _entries: Sequence[Entry] = field(default=(), repr=False)
    _reader: Reader = field(kw_only=True, repr=False)

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, index: int) -> bytes | np.ndarray | torch.Tensor:
        """One sample: file bytes, uint8 (H, W, C), or float (C, H, W) when `transformed`. Safe from many threads.

        Raises: DataError: the file vanished, may not be read, or its archive is damaged.
        """
        return self._reader.read(self._names[index])

    def header(self, index: int, *, max_pixels: int = MAX_PIXELS) -> pixels.Header:
        """Size and mode of one sample, without decoding it.

        Raises: PixelError: not an image, damaged, or too many pixels. DataError: it cannot be read.
        """
        return self._reader.header(self._names[index], max_pixels)

    @property
    def has_headers(self) -> bool:
        """Whether samples are files whose header can be read; arrays of a data set have none."""
        return self._reader.has_headers

    def size_of(self, index: int) -> int:
        """Bytes of one sample as stored; 0 where only reading would tell."""
        return self._entries[index].size

    def identity_of(self, index: int) -> str:
        """Changes with the bytes of one sample: its size and time or checksum; where neither is known, the source's."""
        size, identity = self._entries[index]
        return f"{size} {identity}" if identity else self.fingerprint

    def require_labels(self) -> None:
        """For tasks in which each sample has a label.

        Raises: DataError: rows without one, with their numbers.
        """
        if self.unlabelled:
            more = [f"... and {len(self.unlabelled) - 20:,} more"] if len(self.unlabelled) > 20 else []
            raise DataError(
                "E203",
                f"{counted(len(self.unlabelled), 'row')} without a label",
                where=self.where,
                details=[*self.unlabelled[:20], *more],
                hint="label them or remove the rows; where no label means 'none of them', the task is multilabel",
            )


def open_source(
    where: Any,
    *,
    root: str | os.PathLike[str] | None = None,
    path_column: str | int | None = None,
    label_column: str | int | None = None,
    split_column: str | int | None = None,
    group_column: str | int | None = None,
    class_names: str | os.PathLike[str] | Sequence[str] | None = None,
    labelled: bool = True,
) -> Source:
    """Open images and their labels, wherever they are; nothing is written or extracted.

    Args:
        where: a folder, a table (.csv .tsv .txt), a zip or tar, a packed folder, HDF5, LMDB, WebDataset shards, Parquet
            or Arrow, .npy and .npz, MNIST's and CIFAR's files, a glob, a list of files, arrays (images, labels), a torch
            Dataset, or a dict of arrays or Datasets by split. See docs/data.md for every accepted form.
        root: what the names in a table are relative to (a folder, a zip or a tar), if not the table's own folder.
        path_column: a header's name, or a number counted from 1; without it, found by its usual names.
        label_column: see `path_column`.
        split_column: see `path_column`.
        group_column: see `path_column`.
        class_names: names in index order, or a file of them: the meaning of integer labels.
        labelled: False for prediction: labels may be missing, and every image below a folder counts.
    Raises: DataError: nothing there, no images, a wrong table, a damaged archive. UsageError: contradicting arguments.
    """
    asked = Asked(path_column, label_column, split_column, group_column)
    names = None if class_names is None else class_names_from(class_names)
    if isinstance(where, str | os.PathLike):
        text = os.fspath(where)
        opening = _Opening(text, root, asked, names, labelled)
        return opening.open()
    if are_arrays(where):
        if root is not None or asked != NOTHING_ASKED:
            raise UsageError("E103", "root and the column names have no effect on arrays")
        found = open_arrays(where, labelled=labelled)
        return _source("arrays", found.samples, found.reader, class_names=names)
    if isinstance(where, list | tuple):
        if labelled:
            raise _no_labels(f"a list of {counted(len(where), 'file')}")
        wrong = next((item for item in where if not isinstance(item, str | os.PathLike)), None)
        if wrong is not None:
            raise UsageError(
                "E107",
                f"a list of {type(wrong).__name__} is no source",
                expected="a list of paths, or a torch Dataset",
                hint="kiln.load(model).predict(images) takes images in memory",
            )
        return _of_files([os.fspath(path) for path in where], f"{counted(len(where), 'path')}")
    from kiln.data.dataset import open_datasets  # imports torch, which folders and tables do not need

    if root is not None or asked != NOTHING_ASKED:
        raise UsageError("E103", "root and the column names have no effect on a data set object")
    samples, reader = open_datasets(where, labelled=labelled)
    return _source(type(where).__name__, samples, reader, class_names=names, transformed=reader.transformed)


def _source(
    where: str,
    samples: Samples,
    reader: Reader,
    *,
    class_names: tuple[str, ...] | None = None,
    transformed: bool = False,
    as_given: bool = False,
) -> Source:
    samples = samples if as_given else samples.ordered()
    return Source(
        where=where,
        keys=tuple(samples.keys),
        labels=_column(samples.labels),
        splits=_column(samples.splits),
        groups=_column(samples.groups),
        class_names=class_names or samples.class_names,
        fingerprint=fingerprint_of(samples),
        notes=samples.notes,
        transformed=transformed,
        unlabelled=samples.unlabelled,
        _names=tuple(samples.names),
        _entries=tuple(samples.entries),
        _reader=reader,
    )


def _column(values: Sequence[Any] | None) -> tuple[Any, ...] | None:
    return None if values is None else tuple(values)


@dataclass(frozen=True)
class _Opening:
    """One call of `open_source` with a path."""

    where: str
    root: str | os.PathLike[str] | None
    asked: Asked
    class_names: tuple[str, ...] | None
    labelled: bool

    def open(self) -> Source:
        if not self.where.lower().endswith(TABLE_SUFFIXES):
            found = formats.open_path(self.where, asked=self.asked, labelled=self.labelled)
            if isinstance(found, Opened):
                if self.root is not None:
                    raise UsageError("E103", f"root has no effect on {self.where}")
                return _source(self.where, found.samples, found.reader, class_names=self.class_names)
            if found is not None:
                return self._from_names(found)
        if os.path.isdir(self.where):
            return self._from_storage(Folder(self.where))
        if os.path.isfile(self.where):
            return self._from_file()
        if any(mark in self.where for mark in "*?["):
            files = sorted(path for path in glob.glob(self.where, recursive=True) if os.path.isfile(path))
            if not files:
                raise DataError("E201", f"no file matches {self.where!r}")
            if self.labelled:
                raise _no_labels(f"the pattern {self.where!r}")
            return _of_files(files, self.where)
        raise _not_there(self.where)

    def _from_file(self) -> Source:
        if self.where.lower().endswith(TABLE_SUFFIXES):
            storage = self._root_storage()
            with open(self.where, "rb") as file:
                table = TableFile(os.path.basename(self.where), file.read())
            return self._from_tables(storage, [table])
        archive = open_archive(self.where)
        if archive is not None:
            return self._from_storage(archive)
        if is_image_name(self.where) and not self.labelled:
            return _of_files([self.where], self.where)
        raise DataError(
            "E201",
            f"{self.where} is nothing that holds {'labelled ' if self.labelled else ''}images",
            expected="a folder, a table (.csv .tsv .txt), a zip, a tar, or a form of docs/data.md",
        )

    def _from_names(self, storage: Storage) -> Source:
        """Files known by their keys alone: labels are in the keys, or in a table beside the file."""
        if not self.labelled or layout.looks_labelled(storage):
            return self._from_storage(storage)
        place = self.where if os.path.isdir(self.where) else os.path.dirname(os.path.abspath(self.where))
        tables = [table._replace(folder="") for table in tables_in(Folder(place))]
        if not tables:
            raise DataError(
                "E203",
                f"no labels for the {counted(len(storage.entries), 'key')} of {self.where}",
                expected="keys such as cat/1.jpg, or a table path,label beside it, with keys as paths",
                hint=f"write {os.path.join(place, 'labels.csv')}",
            )
        return self._from_tables(storage, tables)

    def _root_storage(self) -> Storage:
        root = os.path.dirname(os.path.abspath(self.where)) if self.root is None else os.fspath(self.root)
        if os.path.isdir(root):
            return Folder(root, scan=False)
        storage = open_archive(root) if os.path.isfile(root) else None
        if storage is None:
            raise DataError("E201", f"root = {root!r} is no folder, zip or tar")
        return storage

    def _from_storage(self, storage: Storage) -> Source:
        if not self.labelled:
            self._refuse_table_arguments("every image is taken as it is, and no table is read")
            return self._finish(layout.flat(storage), storage)
        wants_table = self.root is not None or self.asked != NOTHING_ASKED
        if not wants_table and layout.looks_labelled(storage):
            return self._finish(layout.class_folders(storage), storage)
        tables = tables_in(storage)
        if tables:
            return self._from_tables(storage, tables)
        self._refuse_table_arguments("no table was found")
        return self._finish(layout.class_folders(storage), storage)

    def _from_tables(self, storage: Storage, tables: Sequence[TableFile]) -> Source:
        samples = read_tables(storage, tables, asked=self.asked, class_names=self.class_names, labelled=self.labelled)
        if not samples.keys:
            raise DataError("E201", f"no rows in {', '.join(table.where for table in tables)}")
        return self._finish(samples, storage, as_given=not self.labelled)

    def _refuse_table_arguments(self, why: str) -> None:
        if self.root is not None or self.asked != NOTHING_ASKED:
            raise UsageError("E103", f"root and the column names have no effect on {self.where}: {why}")

    def _finish(self, samples: Samples, storage: Storage, *, as_given: bool = False) -> Source:
        return _source(self.where, samples, FileReader(storage), class_names=self.class_names, as_given=as_given)


def _of_files(paths: Sequence[str], where: str) -> Source:
    """Single files, and every image below those that are folders; without labels. Keys are the paths as given."""
    storage = Folder(os.curdir, scan=False)
    found: dict[str, Entry] = {}
    notes: list[str] = []
    given = 0
    for path in paths:
        if os.path.isdir(path):
            inner = layout.flat(Folder(path))
            notes += inner.notes
            names = [os.path.join(path, name) for name in sorted(inner.names)]
        else:
            names = [path]
        for name in names:
            entry = storage.find(name)
            if entry is None:
                raise _not_there(name)
            found[name] = entry
            given += 1
    if not found:
        raise DataError("E201", "no files were given")
    if given > len(found):
        notes.append(f"{counted(given - len(found), 'path')} given more than once, read once")
    samples = Samples(keys=list(found), names=list(found), entries=list(found.values()), notes=tuple(notes))
    return _source(where, samples, FileReader(storage), as_given=True)


def _no_labels(what: str) -> UsageError:
    return UsageError(
        "E103", f"{what} carries no labels", hint="give a folder of class folders, or a table with columns path,label"
    )


def _not_there(where: str) -> DataError:
    if not where:
        return DataError("E201", "the name of the data is empty", hint="a folder, a table or an archive")
    where = where.rstrip(os.sep) or where  # else the last folder would be looked for in itself
    folder, name = os.path.split(os.path.abspath(where))
    siblings = [sibling for sibling in os.listdir(folder) if not is_hidden(sibling)] if os.path.isdir(folder) else []
    close = difflib.get_close_matches(name, siblings, n=1)
    return DataError(
        "E201",
        f"there is no {where}",
        hint=f"did you mean {os.path.join(os.path.dirname(where), close[0])}?" if close else "",
    )
