"""From the text of a label table to rows of cells: encoding, separator, header, and which column means what.

Nothing here looks at a file on disk; `table.py` turns the rows into samples.
"""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kiln.data.samples import split_word
from kiln.data.storage import is_image_name, shown
from kiln.errors import DataError, UsageError

_SAMPLE_ROWS = 50
_BLANKS = " "  # stands for any run of blanks
_ONE_COLUMN = "\x1f"  # a separator that no file name holds

# A header's word for each column, likeliest first.
_PATH_WORDS = (
    "image_path", "img_path", "filepath", "file_path", "path", "key", "filename", "file_name", "image_name",
    "image_file", "file", "image", "img", "images", "name", "image_id", "id",
)  # fmt: skip
_LABEL_WORDS = (
    "label", "labels", "class", "classes", "class_name", "classname", "category", "categories", "target", "targets",
    "tag", "tags", "y", "label_id", "class_id", "diagnosis", "species", "breed",
)  # fmt: skip
_SPLIT_WORDS = ("split", "subset", "set", "partition", "dataset", "data_set", "fold")
_GROUP_WORDS = (
    "group", "groups", "group_id", "patient", "patient_id", "subject", "subject_id", "person", "person_id",
)  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """Columns named by the user: a header's name, or a number counted from 1."""

    path: str | int | None = None
    label: str | int | None = None
    split: str | int | None = None
    group: str | int | None = None


NOTHING_ASKED = Asked()


@dataclass(frozen=True)
class Columns:
    """Where in a row each fact stands."""

    width: int
    path: int
    label: int | None = None
    split: int | None = None
    group: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """A parsed table: what its columns mean, and its rows with the number of the line each begins on."""

    where: str
    text: str
    separator: str
    has_header: bool
    columns: Columns

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """Line number (from 1) and cells of every row below the header; blank lines are left out."""
        rows = _read(self.text, self.separator, self.where)
        return itertools.islice(rows, 1, None) if self.has_header else rows


def parse_table(data: bytes, *, where: str, asked: Asked = NOTHING_ASKED, labelled: bool = True) -> Table:
    """Find out how a table is written.

    Args:
        data: the bytes of a CSV, TSV or TXT file; UTF-8 or UTF-16, with or without a byte order mark.
        where: its name, for messages; a name in `.tsv` prefers tabs.
        asked: columns that the user named.
        labelled: a label column must be found.
    Raises: DataError: not text, no rows, or no path or label column. UsageError: a named column is not there.
    """
    text = _without_comments(_decode(data, where))
    separator = _find_separator(text, where)
    sample = [cells for _, cells in itertools.islice(_read(text, separator, where), _SAMPLE_ROWS)]
    if not sample:
        raise DataError("E203", f"{where} has no rows", expected="a row per image: path,label")
    has_header = _has_header(sample, asked)
    columns = _find_columns(sample, has_header, asked, where=where, labelled=labelled)
    if has_header and len(sample) == 1:
        raise DataError("E203", f"{where} has a header and no rows", expected="a row per image: path,label")
    return Table(where, text, separator, has_header, columns)


def _decode(data: bytes, where: str) -> str:
    encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        hint = "save the table as UTF-8 (in Excel: 'CSV UTF-8')"
        raise DataError(
            "E203", f"{where} is not UTF-8 text: byte {data[error.start]:#x}", where=f"line {line}", hint=hint
        ) from error


def _without_comments(text: str) -> str:
    """Blank out the `#` lines at the top, so that line numbers stay what an editor shows."""
    start = 0
    while text.startswith("#", start):
        end = text.find("\n", start)
        start = len(text) if end < 0 else end + 1
    return "\n" * text.count("\n", 0, start) + text[start:]


def _read(text: str, separator: str, where: str = "") -> Iterator[tuple[int, list[str]]]:
    if separator == _BLANKS:
        yield from _read_blanks(text)
        return
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    line = 0
    try:
        for cells in reader:
            if cells and (len(cells) > 1 or cells[0].strip()):
                yield line + 1, cells
            line = reader.line_num
    except csv.Error as error:
        raise DataError(
            "E203", f"{where} row {line + 1}: {error}", hint="most often a quote that is opened and never closed"
        ) from error


def _read_blanks(text: str) -> Iterator[tuple[int, list[str]]]:
    """Cells between blanks; the first cell may hold blanks itself if it ends like an image's name."""
    for number, line in enumerate(text.splitlines(), 1):
        words = list(re.finditer(r"\S+", line))
        if not words:
            continue
        last = next((place for place, word in enumerate(words) if is_image_name(word[0].strip('"'))), 0)
        path = line[words[0].start() : words[last].end()]
        yield number, [path.strip('"'), *(word[0].strip('"') for word in words[last + 1 :])]


def _find_separator(text: str, where: str) -> str:
    """The separator under which rows are equally wide and some column holds image names."""
    order = ["\t", ";", ",", _BLANKS] if where.lower().endswith(".tsv") else [";", ",", "\t", _BLANKS]
    best, best_score = _ONE_COLUMN, (False, 0.0)
    for separator in order:
        try:
            rows = [cells for _, cells in itertools.islice(_read(text, separator), _SAMPLE_ROWS)]
        except DataError:
            continue
        width, count = Counter(map(len, rows)).most_common(1)[0] if rows else (0, 0)
        if width < 2:
            continue
        path = _image_column(rows, width)
        if separator == _BLANKS and path != 0 and not _known_words(rows[0]):
            continue
        score = (path is not None, count / len(rows))
        if score > best_score:
            best, best_score = separator, score
    if best != _ONE_COLUMN and not best_score[0]:
        names = [cells[0] for _, cells in itertools.islice(_read(text, _ONE_COLUMN), _SAMPLE_ROWS)]
        if all(map(is_image_name, names)):  # a list of file names that hold blanks or commas
            return _ONE_COLUMN
    return best


def _image_column(rows: Sequence[Sequence[str]], width: int) -> int | None:
    """The column in which most cells end like an image's name."""
    body = rows[1:] or rows
    counts = [
        sum(len(cells) > column and is_image_name(cells[column].strip()) for cells in body) for column in range(width)
    ]
    most = max(counts)
    return counts.index(most) if 2 * most > len(body) else None


def _known_words(cells: Sequence[str]) -> bool:
    return any(_plain(cell) in _PATH_WORDS + _LABEL_WORDS for cell in cells)


def _plain(cell: str) -> str:
    return cell.strip().lower().replace(" ", "_").replace("-", "_")


def _has_header(sample: Sequence[Sequence[str]], asked: Asked) -> bool:
    first = sample[0]
    if any(is_image_name(cell.strip()) for cell in first):
        return False
    named = {column for column in (asked.path, asked.label, asked.split, asked.group) if isinstance(column, str)}
    if named & {cell.strip() for cell in first} or _known_words(first):
        return True
    return len(sample) > 1 and _image_column(sample, len(first)) is not None


def _find_columns(
    sample: Sequence[Sequence[str]], has_header: bool, asked: Asked, *, where: str, labelled: bool
) -> Columns:
    body = sample[1:] if has_header else sample
    width = len(sample[0]) if has_header else Counter(map(len, sample)).most_common(1)[0][0]
    header = [cell.strip() for cell in sample[0]] if has_header else [str(i + 1) for i in range(width)]
    words = [_plain(cell) for cell in header] if has_header else []
    notes: list[str] = []
    taken: set[int] = set()

    def find(name: str, wanted: str | int | None, known: Sequence[str]) -> int | None:
        column = _asked_column(name, wanted, header, where) if wanted is not None else None
        if column is None:
            column = next(
                (words.index(word) for word in known if word in words and words.index(word) not in taken), None
            )
        if column is not None:
            taken.add(column)
        return column

    path = find("path_column", asked.path, _PATH_WORDS)
    if path is None:
        image_column = _image_column(sample, width)
        path = image_column if image_column is not None else 0
        taken.add(path)
    label = find("label_column", asked.label, _LABEL_WORDS)
    group = find("group_column", asked.group, _GROUP_WORDS)
    if group is not None and asked.group is None:
        notes.append(f"{where}: column {header[group]!r} keeps samples of one group in one split")
    split = find("split_column", asked.split, _SPLIT_WORDS)
    free = [column for column in range(width) if column not in taken]
    if split is None and not has_header and len(free) >= 2:
        split = next((column for column in free if _is_split_column(body, column)), None)
    elif split is not None and asked.split is None and not _is_split_column(body, split):
        notes.append(f"{where}: column {header[split]!r} holds no train, val or test, and is not read as the split")
        split = None
    free = [column for column in free if column != split]
    if label is None and free and (len(free) == 1 or not has_header):
        label = free.pop(0)
    if label is None and labelled:
        raise _no_label_column(where, header if has_header else None, width)
    return Columns(width, path, label, split, group, tuple(notes))


def _is_split_column(body: Sequence[Sequence[str]], column: int) -> bool:
    cells = [cells[column] for cells in body if len(cells) > column and cells[column].strip()]
    return 2 * sum(split_word(cell) is not None for cell in cells) > len(cells)


def _asked_column(name: str, wanted: str | int, header: Sequence[str], where: str) -> int:
    if wanted in header:
        return header.index(wanted)  # type: ignore[arg-type]  # a str, or it would not be in there
    if str(wanted).isdecimal() and 1 <= int(wanted) <= len(header):
        return int(wanted) - 1
    raise UsageError(
        "E102",
        f"{name} = {wanted!r} is no column of {where}",
        expected=f"a name in its header, or a number from 1 to {len(header)}",
        got=str(wanted),
        choices=header,
    )


def _no_label_column(where: str, header: Sequence[str] | None, width: int) -> DataError:
    found = f"its columns are {shown(header, 20)}" if header else f"it has {width} column and no header"
    return DataError(
        "E203",
        f"{where} has no label column: {found}",
        expected="a column called label, class, category or target",
        hint="--label-column NAME" if header else "add the label behind each path: path,label",
    )
