"""Labels from tables: CSV, TSV and the `path, label` TXT lists that many data sets ship."""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from kiln.data.layout import wrapping_folder
from kiln.data.rows import NOTHING_ASKED, Asked, Table, parse_table
from kiln.data.samples import Samples, split_word
from kiln.data.storage import Entry, Storage, counted, is_image_name, shown
from kiln.errors import DataError

TABLE_SUFFIXES = (".csv", ".tsv", ".txt")
_LIST_STEMS = frozenset({"label", "labels", "list", "images", "image", "files", "annotations", "index"})
_SHOWN_PROBLEMS = 20
_PREFIX_ROWS = 20


class TableFile(NamedTuple):
    """A table not yet parsed.

    Attributes:
        where: its name, for messages.
        data: its bytes.
        folder: what its names are relative to, inside the storage; ends with `/` unless empty.
        split: the split that its own name tells, for tables such as `train.csv` beside `test.csv`.
    """

    where: str
    data: bytes
    folder: str = ""
    split: str | None = None


def tables_in(storage: Storage) -> list[TableFile]:
    """The label tables at the top of a folder or archive: all that name a split, or else the only one.

    Raises: DataError: several tables, and no name tells which is meant.
    """
    wrapper = wrapping_folder(name for name in storage.entries if is_image_name(name))
    folders = ["", *(wrapper[: place + 1] for place, letter in enumerate(wrapper) if letter == "/")]
    tables: list[str] = []
    for folder in folders:
        top = (name for name in storage.entries if name.startswith(folder) and "/" not in name[len(folder) :])
        tables = tables or sorted(name for name in top if _may_be_table(name))
    named = {name: split for name in tables if (split := _split_in(name))}
    if not named and len(tables) > 1:
        raise DataError(
            "E203",
            f"{counted(len(tables), 'table')} in {storage.where}, and no name tells which holds the labels",
            details=tables,
            hint="give the table itself, or call them train.csv, val.csv, test.csv",
        )
    chosen = named or dict.fromkeys(tables)
    return [TableFile(name, storage.read(name), _folder_of(name), split) for name, split in chosen.items()]


def _folder_of(name: str) -> str:
    return name[: name.rfind("/") + 1]


def _may_be_table(name: str) -> bool:
    stem, suffix = posixpath.splitext(posixpath.basename(name).lower())
    return suffix in TABLE_SUFFIXES and (suffix != ".txt" or _split_in(name) is not None or stem in _LIST_STEMS)


def _split_in(name: str) -> str | None:
    words = re.split(r"[\W_]+", posixpath.splitext(posixpath.basename(name))[0])
    found = {split for word in words if (split := split_word(word))}
    return found.pop() if len(found) == 1 else None


def read_tables(
    storage: Storage,
    tables: Sequence[TableFile],
    *,
    asked: Asked = NOTHING_ASKED,
    class_names: tuple[str, ...] | None = None,
    labelled: bool = True,
) -> Samples:
    """The samples that one or several tables list.

    Args:
        storage: where the images are.
        tables: the tables; a sample may be listed once only in all of them together.
        asked: columns that the user named.
        class_names: every label must be one of these, or an index into them.
        labelled: a label column must be there.
    Raises: DataError: every wrong row of all tables, with its number, the first twenty in full.
    """
    reading = _Reading(storage, class_names)
    for file in tables:
        table = parse_table(file.data, where=file.where, asked=asked, labelled=labelled)
        reading.read(table, file, several=len(tables) > 1)
    reading.problems.raise_if_any(", ".join(file.where for file in tables))
    notes = [*storage.notes, *reading.notes]
    if reading.unlabelled:
        notes.append(f"{counted(len(reading.unlabelled), 'row')} with an empty label")
    return Samples(
        keys=reading.keys,
        names=reading.names,
        entries=reading.entries,
        labels=reading.labels if len(reading.labels) == len(reading.names) else None,
        splits=reading.splits if any(reading.splits) else None,
        groups=reading.groups if any(reading.groups) else None,
        class_names=class_names,
        unlabelled=tuple(reading.unlabelled),
        notes=tuple(notes),
    )


class _Problems:
    """Wrong rows: counted by kind, the first twenty kept in words."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.lines: list[str] = []
        self.missing = ""
        self.expected = ""

    def add(self, kind: str, line: str) -> None:
        self.counts[kind] += 1
        if len(self.lines) < _SHOWN_PROBLEMS:
            self.lines.append(line)

    def raise_if_any(self, where: str) -> None:
        total = self.counts.total()
        if not total:
            return
        kinds = ", ".join(f"{kind}: {count:,}" for kind, count in self.counts.most_common())
        more = [f"... and {total - len(self.lines):,} more"] if total > len(self.lines) else []
        hint = "correct or remove these rows"
        if self.missing:
            hint = f"names are relative to {self.missing}; --root FOLDER if the images lie elsewhere"
        raise DataError(
            "E203",
            f"{where}: {counted(total, 'row')} wrong ({kinds})",
            expected=self.expected,
            details=[*self.lines, *more],
            hint=hint,
        )


class _Reading:
    """The columns of all tables, as they fill."""

    def __init__(self, storage: Storage, class_names: tuple[str, ...] | None) -> None:
        self.storage = storage
        self.classes = None if class_names is None else dict.fromkeys(class_names)
        self.keys: list[str] = []
        self.names: list[str] = []
        self.entries: list[Entry] = []
        self.labels: list[str] = []
        self.splits: list[str | None] = []
        self.groups: list[str] = []
        self.unlabelled: list[str] = []
        self.notes: list[str] = []
        self.problems = _Problems()
        self._first: dict[str, tuple[str, str]] = {}  # name -> place and label of the row that had it first
        self._texts: dict[str, str] = {}  # one object for each distinct label, split or group

    def read(self, table: Table, file: TableFile, *, several: bool) -> None:
        columns = table.columns
        self.notes += columns.notes
        find = self._finder(table, file)
        for number, cells in table.rows():
            place = f"{table.where} row {number}" if several else f"row {number}"
            if len(cells) != columns.width:
                self._wrong_width(place, cells, columns.width)
                continue
            found = find(cells[columns.path].strip())
            if found is None:
                self.problems.missing = self.storage.where
                self.problems.add("no such file", f"{place}: no file {cells[columns.path]!r}")
                continue
            label = "" if columns.label is None else self._text(cells[columns.label])
            split = file.split if columns.split is None else self._split(place, cells[columns.split])
            if not self._is_new(place, found[0], label) or not self._is_known(place, label):
                continue
            self._append(found, file.folder, split)
            self.groups.append("" if columns.group is None else self._text(cells[columns.group]))
            if columns.label is not None:
                self.labels.append(label)
                if not label:
                    self.unlabelled.append(f"{table.where} row {number}")

    def _append(self, found: tuple[str, Entry], folder: str, split: str | None) -> None:
        name, entry = found
        self.names.append(name)
        self.keys.append(name[len(folder) :] if folder and name.startswith(folder) else name)
        self.entries.append(entry)
        self.splits.append(split)

    def _text(self, cell: str) -> str:
        """A label or group: no blanks around it, one Unicode form, one object for all rows."""
        known = self._texts.get(cell)
        if known is None:
            known = self._texts[cell] = unicodedata.normalize("NFC", cell.strip())
        return known

    def _wrong_width(self, place: str, cells: Sequence[str], width: int) -> None:
        why = "; put quotes around a cell that holds the separator" if len(cells) > width else ""
        self.problems.add("wrong number of cells", f"{place}: {counted(len(cells), 'cell')} instead of {width}{why}")

    def _split(self, place: str, cell: str) -> str | None:
        split = split_word(cell)
        if split is None:
            self.problems.add("unknown split", f"{place}: split {cell!r} is none of train, val, test")
        return split

    def _is_new(self, place: str, name: str, label: str) -> bool:
        this = (place, label)
        first = self._first.setdefault(name, this)
        if first is this:
            return True
        first_place, first_label = first
        if first_label == label:
            self.problems.add("listed twice", f"{place}: {name!r} again, as in {first_place}")
        else:
            line = f"{place}: {name!r} again, now {label!r}; it is {first_label!r} in {first_place}"
            self.problems.add("two labels for one file", line)
        return False

    def _is_known(self, place: str, label: str) -> bool:
        if self.classes is None or not label or self._is_class(label):
            return True
        if all(self._is_class(part.strip()) for part in re.split(r"[,;|]", label)):
            return True
        names = list(self.classes)
        self.problems.expected = f"{shown(names)}, or a number from 0 to {len(names) - 1}"
        self.problems.add("unknown class", f"{place}: {label!r} is no class")
        return False

    def _is_class(self, label: str) -> bool:
        classes = self.classes or ()
        return label in classes or (label.isdecimal() and int(label) < len(classes))

    def _finder(self, table: Table, file: TableFile) -> Callable[[str], tuple[str, Entry] | None]:
        """How this table's names become names of the storage: below the folder that holds most of the first rows."""
        stem = posixpath.splitext(posixpath.basename(file.where))[0]
        tried = [
            cells[table.columns.path].strip()
            for _, cells in islice(table.rows(), _PREFIX_ROWS)
            if cells[table.columns.path :]
        ]
        folders = [file.folder + inner for inner in ("", f"{stem}/", "images/", f"images/{stem}/", "imgs/")]
        if file.split:
            folders.insert(2, f"{file.folder}{file.split}/")
        hits = [sum(_find(self.storage, folder, name) is not None for name in tried) for folder in folders]
        folder = folders[hits.index(max(hits))]
        if folder != file.folder:
            self.notes.append(f"{file.where}: names found in {folder!r}")
        return lambda name: _find(self.storage, folder, name)


def _find(storage: Storage, folder: str, name: str) -> tuple[str, Entry] | None:
    """The file that a table's name means: as written, or in another spelling of the same name."""
    exact = folder + name
    if name and "./" not in exact and "//" not in exact and name[0] != "/":  # most rows: one question, no generator
        entry = storage.find(exact)
        if entry is not None:
            return exact, entry
    for spelling in _spellings(folder, storage.where, name):
        entry = storage.find(spelling)
        if entry is not None:
            return spelling, entry
    return None


def _spellings(folder: str, where: str, name: str) -> Iterator[str]:
    """Spellings of a name, likeliest first."""
    if not name:
        return
    if name.startswith(where + "/"):
        name = name[len(where) + 1 :]
    exact = folder + name
    yield posixpath.normpath(exact) if "./" in exact or "//" in exact else exact
    if "\\" in name:
        name = name.replace("\\", "/")
        yield posixpath.normpath(folder + name)
    if not name.isascii():
        yield posixpath.normpath(folder + unicodedata.normalize("NFC", name))
        yield posixpath.normpath(folder + unicodedata.normalize("NFD", name))
    if not is_image_name(name):
        for suffix in (".jpg", ".jpeg", ".png", ".JPG", ".tif", ".webp", ".bmp"):
            yield posixpath.normpath(folder + name + suffix)
