"""What the formats share: what is asked of them, what they answer, and the facts of a sample that a copy must keep."""

from __future__ import annotations

import importlib
import json
import os
import posixpath
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from kiln.data.reader import Reader
from kiln.data.rows import NOTHING_ASKED, Asked
from kiln.data.samples import Samples, split_word
from kiln.data.storage import Entry, Storage, counted
from kiln.errors import ArtifactError, DataError, MissingExtraError, UsageError

if TYPE_CHECKING:
    from kiln.data.source import Source


@dataclass(frozen=True)
class Request:
    """One call of `open_source` for a file, or for the files of a folder.

    Attributes:
        where: what the user gave.
        paths: the files, sorted.
        asked: columns (or arrays inside the file) named by the user.
        labelled: labels must be there.
    """

    where: str
    paths: tuple[str, ...]
    asked: Asked = NOTHING_ASKED
    labelled: bool = True

    def refuse_columns(self) -> None:
        """For formats that have no columns to name. Raises: UsageError: some were named."""
        if self.asked != NOTHING_ASKED:
            raise UsageError("E103", f"the column names have no effect on {self.where}")


class Opened(NamedTuple):
    """What a format found, and what reads it."""

    samples: Samples
    reader: Reader


@dataclass(frozen=True)
class Facts:
    """What holds for all samples of a source and must survive a copy.

    Attributes:
        class_names: names in index order.
        labels: whether samples have labels; likewise `splits` and `groups`.
        reduced: what was done to the images, in words; empty for copies of the very files.
    """

    class_names: tuple[str, ...] | None
    labels: bool
    splits: bool
    groups: bool
    reduced: str = ""

    @property
    def notes(self) -> tuple[str, ...]:
        """What whoever opens the copy is told."""
        return (f"images were {self.reduced}: training, validation and test see these",) if self.reduced else ()

    @classmethod
    def of(cls, source: Source) -> Facts:
        """Those of an open source."""
        return cls(source.class_names, source.labels is not None, source.splits is not None, source.groups is not None)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; read by `facts_of`."""
        return asdict(self)


class Row(NamedTuple):
    """One sample as the index of a copy lists it.

    Attributes:
        shape: `HxWxC` of a uint8 array; nothing for the bytes of a file.
    """

    key: str
    label: str | None
    split: str | None
    group: str | None
    size: int
    crc32: int
    shape: str


@dataclass(frozen=True)
class Record:
    """One sample on its way into a copy: its row and its bytes."""

    row: Row
    data: bytes


def record_of(source: Source, index: int) -> Record:
    """Read one sample of a source.

    Raises: DataError: it cannot be read.
    """
    item = source.read(index)
    shape = ""
    if not isinstance(item, bytes):
        array = np.ascontiguousarray(item)
        shape, item = "x".join(map(str, array.shape)), array.tobytes()

    def at(column: Sequence[str | None] | None) -> str | None:
        return None if column is None else column[index]

    row = Row(
        source.keys[index], at(source.labels), at(source.splits), at(source.groups), len(item), zlib.crc32(item), shape
    )
    return Record(row, item)


def restored(data: bytes, shape: str) -> bytes | np.ndarray:
    """File bytes as they are; an array from its values and the `HxWxC` of its row.

    Raises: ValueError: they do not fit.
    """
    if not shape:
        return data
    return np.frombuffer(data, np.uint8).reshape([int(part) for part in shape.split("x", 2)])


def samples_of(
    rows: Sequence[Row], names: Sequence[Any], facts: Facts, request: Request, *, identities: Sequence[str] = ()
) -> Samples:
    """The samples of a copy, from its index.

    Args:
        identities: of each sample; by default the checksums of the rows.

    Raises: DataError: no samples, two with one key, or labels are wanted and none were kept.
    """
    if not rows:
        raise DataError("E201", f"there are no samples in {request.where}")
    if len({row.key for row in rows}) < len(rows):
        raise damaged(request.where, "two samples have the same key")
    if request.labelled and not facts.labels:
        raise without_labels(request.where)
    labels = [row.label or "" for row in rows] if request.labelled else None
    return Samples(
        keys=[row.key for row in rows],
        names=names,
        entries=[
            Entry(row.size, identity)
            for row, identity in zip(rows, identities or [f"crc32:{row.crc32:08x}" for row in rows], strict=True)
        ],
        labels=labels,
        splits=[row.split for row in rows] if facts.splits else None,
        groups=[row.group or "" for row in rows] if facts.groups else None,
        class_names=facts.class_names,
        unlabelled=unlabelled(labels, [row.key for row in rows]),
        notes=facts.notes,
    )


def unlabelled(labels: Sequence[str] | None, keys: Sequence[str]) -> tuple[str, ...]:
    """The places of empty labels."""
    return tuple(f"sample {key!r}" for key, label in zip(keys, labels or (), strict=False) if not label.strip())


def facts_of(about: Any, where: str, *, kind: str, version: int) -> Facts:
    """The facts in what a file of ours says of itself.

    Raises: ArtifactError: of another kind or of a newer version. DataError: damaged.
    """
    if not isinstance(about, dict) or about.get("kind") != kind or not isinstance(about.get("version"), int):
        raise ArtifactError("E303", f"{where} does not say that it is {kind!r}")
    if about["version"] > version:
        raise ArtifactError(
            "E303",
            f"{where} is {kind!r} version {about['version']}",
            expected=f"version {version} at most",
            hint="update torchkiln",
        )
    try:
        names = about["facts"]["class_names"]
        flags = [bool(about["facts"][name]) for name in ("labels", "splits", "groups")]
        said = str(about["facts"].get("reduced", ""))
        return Facts(None if names is None else tuple(map(str, names)), *flags, reduced=said)
    except (KeyError, TypeError) as error:
        raise damaged(where, f"its header lacks {error}") from error


def parsed_json(text: bytes | str, where: str) -> Any:
    """JSON from a file that may be damaged. Raises: DataError: it is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged(where, f"no JSON ({error})") from error


def damaged(where: str, why: str) -> DataError:
    """A file of samples that cannot be used as it is."""
    return DataError("E207", f"{where} is damaged: {why}", hint="fetch or pack it again")


def without_labels(where: str) -> DataError:
    """Labels are wanted where none were found."""
    return DataError(
        "E203",
        f"there are no labels in {where}",
        hint="to predict, labels are not needed; to train, add them or name them with label_column",
    )


def imported(package: str, purpose: str) -> Any:
    """A library of the extra `formats`. Raises: MissingExtraError: it is not installed."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingExtraError(package.partition(".")[0], extra="formats", purpose=purpose) from error


class Stamp(NamedTuple):
    """Size and modification time of a file, by which a process started afresh sees whether it is still the same."""

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: str) -> Stamp:
        """That of a file as it is now. Raises: DataError: it is gone."""
        try:
            status = os.stat(path)
        except OSError as error:
            raise DataError("E202", f"cannot read {path}: {error.strerror}") from error
        return cls(status.st_size, status.st_mtime_ns)

    def check(self, path: str) -> None:
        """Raises: DataError: the file is another one now."""
        if Stamp.of(path) != self:
            raise DataError("E208", f"{path} changed while it was in use", hint="start again, or resume the run")

    @property
    def identity(self) -> str:
        """For an `Entry`."""
        return f"mtime:{self.mtime_ns}:{self.size}"


def split_in(name: str) -> str | None:
    """The split that the words of a name tell, as in `train-00000-of-00002.parquet`, `x_train` or `val/data.tar`."""
    words = re.split(r"[\W_]+", posixpath.splitext(name.replace(os.sep, "/"))[0])
    found = {split for word in words if (split := split_word(word))}
    return found.pop() if len(found) == 1 else None


def splits_of(paths: Sequence[str], where: str) -> list[str | None]:
    """The split of each file, told by its name below what was opened, or else by its own name."""
    base = where if os.path.isdir(where) else ""
    return [split_in(os.path.relpath(path, base) if base else os.path.basename(path)) for path in paths]


@dataclass(frozen=True)
class Plan:
    """What a writer needs to know before the first sample.

    Attributes:
        facts: of the source.
        splits: of each sample.
        class_of: index of each label among the classes, for formats whose other readers want numbers.
        mean_bytes: of a sample, roughly; decides how many go into one part.
    """

    facts: Facts
    splits: Sequence[str | None]
    class_of: dict[str, int]
    mean_bytes: int


class Writer(Protocol):
    """Writes a copy that can be gone on with after a kill. Made with (place, plan)."""

    def pending(self) -> list[list[int]]:
        """Samples that are not safe yet, cut into what becomes safe together, in the order to write them in."""
        ...

    def write(self, indices: Sequence[int], records: Iterator[Record]) -> None:
        """Write one of the lists of `pending()`; when it returns, a kill does not lose them."""
        ...

    def finish(self) -> None:
        """All samples are written: complete the copy."""
        ...


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes) -> None:
    """Write a small file whole or not at all."""
    staged = path.with_name(f".tmp-{path.name}")
    staged.write_bytes(data)
    sync(staged)
    staged.replace(path)
    sync(path.parent)


def cut(indices: Sequence[int], length: int) -> list[list[int]]:
    """Consecutive lists of at most `length`."""
    return [list(indices[start : start + length]) for start in range(0, len(indices), length)]


def summary(number: int) -> str:
    """`1 sample`, `2 samples`."""
    return counted(number, "sample")


StorageOrOpened = Opened | Storage
