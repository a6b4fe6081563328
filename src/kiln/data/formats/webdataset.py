"""WebDataset shards: plain tars in which files of one base name are one sample.

Each shard is indexed once when it is opened; from then on samples are read at random by their offsets, in place.
The label is in `.cls` or `.txt` as text, or in `.json` under a usual name. Shards of our own also keep, in `.json`, the
key, split and group of a sample, and the facts of the whole in a member `__kiln__`, which other readers skip.
"""

from __future__ import annotations

import io
import json
import os
import posixpath
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from kiln import pixels
from kiln.data.archive import Tar
from kiln.data.formats.opening import (
    Facts,
    Opened,
    Plan,
    Record,
    Request,
    Stamp,
    damaged,
    facts_of,
    parsed_json,
    splits_of,
    unlabelled,
    without_labels,
)
from kiln.data.formats.parts import PartedWriter, as_file, suffix_of
from kiln.data.reader import FileReader
from kiln.data.samples import Samples
from kiln.data.storage import Entry, is_image_name
from kiln.errors import DataError

KIND, VERSION = "kiln.webdataset", 1
_ABOUT = "__kiln__"
_LABEL_NAMES = ("label", "cls", "class", "class_name", "target", "y")
_COMPANIONS = (".cls", ".json", ".txt")
_MOST_COMPANION_BYTES = 1 << 20
_MEMBERS_LOOKED_AT = 64


class _Found(NamedTuple):
    """One sample of a shard."""

    shard: int
    image: str
    stem: str
    companions: dict[str, str]


def is_shard(path: str) -> bool:
    """Whether a plain tar begins with samples that have labels beside the images; only its first members are looked at."""
    try:
        with tarfile.open(path, "r:") as shard:
            names = {member.name for member in islice(shard, _MEMBERS_LOOKED_AT)}
    except (tarfile.TarError, OSError, EOFError, ValueError):
        return False  # whoever opens it as an archive says what is wrong
    return _ABOUT in names or any(
        _stem(name) + companion in names for name in names if is_image_name(name) for companion in (".cls", ".json")
    )


def open_files(request: Request) -> Opened:
    """Index shards.

    Raises: DataError: a damaged or unsafe shard, no images, or samples without labels.
    """
    request.refuse_columns()
    shards = [Tar(path) for path in request.paths]
    found = [sample for number, shard in enumerate(shards) for sample in _samples_in(number, shard)]
    if not found:
        raise DataError(
            "E201", f"no images in the shards of {request.where}", expected="000001.jpg beside 000001.cls or .json"
        )
    reader = ShardReader(shards)
    about = next((shard for shard in shards if _ABOUT in shard.entries), None)
    if about is not None:
        text = parsed_json(about.read(_ABOUT), about.where)
        facts = facts_of(text, about.where, kind=KIND, version=VERSION)
        _refuse_missing_shards(request, text, len(shards))
        return Opened(_own(found, shards, facts, request), reader)
    return Opened(_foreign(found, shards, request), reader)


def _refuse_missing_shards(request: Request, about: Any, num_found: int) -> None:
    """All shards of a folder of ours must be there; a pattern or a single shard may name a part."""
    if os.path.isdir(request.where) and about.get("shards") != num_found:
        raise damaged(request.where, f"{num_found:,} shards, but {about.get('shards')} were written")


def _samples_in(number: int, shard: Tar) -> Iterator[_Found]:
    for name in shard.entries:
        if is_image_name(name):
            stem = _stem(name)
            names = {suffix: stem + suffix for suffix in _COMPANIONS if stem + suffix in shard.entries}
            yield _Found(number, name, stem, names)


def _stem(name: str) -> str:
    """The base name: everything before the first dot of the last part, as WebDataset cuts it."""
    folder, _, file = name.rpartition("/")
    return posixpath.join(folder, file.split(".", 1)[0])


def _companion(shard: Tar, name: str) -> str:
    return shard.read(name, _MOST_COMPANION_BYTES).decode("utf-8", "replace").strip()


def _entry(sample: _Found, shards: Sequence[Tar]) -> Entry:
    return shards[sample.shard].entries[sample.image]


def _own(found: Sequence[_Found], shards: Sequence[Tar], facts: Facts, request: Request) -> Samples:
    sums: list[int] = []
    columns: dict[str, list[Any]] = {"key": [], "label": [], "split": [], "group": []}
    for sample in found:
        shard = shards[sample.shard]
        where = f"{shard.where}: {sample.stem}.json"
        if ".json" not in sample.companions:
            raise damaged(where, "it is missing")
        row = parsed_json(shard.read(sample.companions[".json"]), where)
        if not isinstance(row, dict) or not isinstance(row.get("key"), str):
            raise damaged(where, "no key")
        for name, column in columns.items():
            column.append(row.get(name))
        sums.append(_checksum(row.get("crc32"), where))
    if len(set(columns["key"])) < len(found):
        raise damaged(request.where, "two samples have the same key")
    if request.labelled and not facts.labels:
        raise without_labels(request.where)
    labels = [label or "" for label in columns["label"]] if request.labelled else None
    return Samples(
        keys=columns["key"],
        names=[(sample.shard, sample.image, crc32) for sample, crc32 in zip(found, sums, strict=True)],
        entries=[
            Entry(_entry(sample, shards).size, f"crc32:{crc32:08x}") for sample, crc32 in zip(found, sums, strict=True)
        ],
        labels=labels,
        splits=columns["split"] if facts.splits else None,
        groups=[group or "" for group in columns["group"]] if facts.groups else None,
        class_names=facts.class_names,
        unlabelled=unlabelled(labels, columns["key"]),
        notes=facts.notes,
    )


def _foreign(found: Sequence[_Found], shards: Sequence[Tar], request: Request) -> Samples:
    stems = [sample.stem for sample in found]
    if len(set(stems)) < len(stems):  # each shard counts from 0
        names = [posixpath.splitext(os.path.basename(shard.where))[0] for shard in shards]
        stems = [f"{names[sample.shard]}/{sample.stem}" for sample in found]
    if len(set(stems)) < len(stems):
        raise DataError("E207", f"samples of one name in shards of one name in {request.where}")
    labels = [_label(sample, shards[sample.shard]) for sample in found] if request.labelled else None
    without = [stem for stem, label in zip(stems, labels or (), strict=False) if label is None]
    if without and len(without) == len(found):
        raise without_labels(request.where)
    splits = splits_of(request.paths, request.where)
    stamps = [Stamp.of(shard.where).identity for shard in shards]  # a tar has no checksums of what is in it
    texts = None if labels is None else [label or "" for label in labels]
    return Samples(
        keys=stems,
        names=[(sample.shard, sample.image, None) for sample in found],
        entries=[Entry(_entry(sample, shards).size, stamps[sample.shard]) for sample in found],
        labels=texts,
        splits=[splits[sample.shard] for sample in found] if any(splits) else None,
        unlabelled=unlabelled(texts, stems),
        notes=tuple(dict.fromkeys(note for shard in shards for note in shard.notes)),
    )


def _checksum(text: Any, where: str) -> int:
    try:
        return int(text, 16)
    except (TypeError, ValueError) as error:
        raise damaged(where, "no crc32") from error


def _label(sample: _Found, shard: Tar) -> str | None:
    if ".cls" in sample.companions:
        return _companion(shard, sample.companions[".cls"])
    if ".json" in sample.companions:
        row = parsed_json(shard.read(sample.companions[".json"]), f"{shard.where}: {sample.stem}.json")
        value = next((row[name] for name in _LABEL_NAMES if name in row), None) if isinstance(row, dict) else row
        if isinstance(value, list):
            return ",".join(map(str, value))
        if value is not None:
            return str(value)
    return _companion(shard, sample.companions[".txt"]) if ".txt" in sample.companions else None


class ShardReader:
    """Reads members of shards by (number of the shard, name, checksum or None)."""

    has_headers = True

    def __init__(self, shards: Sequence[Tar]) -> None:
        self._files = [FileReader(shard) for shard in shards]

    def read(self, name: tuple[int, str, int | None]) -> bytes:
        """The bytes of an image. Raises DataError: its shard became shorter, or its checksum is wrong."""
        shard, member, crc32 = name
        data = self._files[shard].read(member)
        if crc32 is not None and zlib.crc32(data) != crc32:
            where = self._files[shard].storage.where
            raise DataError("E202", f"{member!r} has a wrong checksum", where=where, hint="pack it again")
        return data

    def header(self, name: tuple[int, str, int | None], max_pixels: int) -> pixels.Header:
        """Size and mode. Raises: PixelError: no image. DataError: its shard became shorter."""
        return self._files[name[0]].header(name[1], max_pixels)


class Writer(PartedWriter):
    """Writes shards.

    Args:
        place: the folder of shards.
        plan: of the copy.
    """

    def __init__(self, place: Path, plan: Plan) -> None:
        super().__init__(place, plan, suffix=".tar", write_part=self._write_shard)
        self._facts, self._class_of = plan.facts, plan.class_of

    def _write_shard(self, path: Path, indices: Sequence[int], records: Iterator[Record]) -> None:
        about = {"kind": KIND, "version": VERSION, "shards": len(self._parts), "facts": self._facts.to_dict()}
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as shard:
            _add(shard, _ABOUT, json.dumps(about, ensure_ascii=False).encode("utf-8"))
            for index, record in zip(indices, records, strict=False):
                row, data, stem = record.row, as_file(record), f"{index:09d}"
                _add(shard, f"{stem}.{suffix_of(data)}", data)
                if row.label in self._class_of:
                    _add(shard, f"{stem}.cls", str(self._class_of[row.label]).encode())
                kept = {"key": row.key, "label": row.label, "split": row.split, "group": row.group}
                kept["crc32"] = f"{zlib.crc32(data):08x}"
                _add(shard, f"{stem}.json", json.dumps(kept, ensure_ascii=False).encode("utf-8"))


def _add(shard: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # without owner and time: the same samples make the same shard
    info.size = len(data)
    shard.addfile(info, io.BytesIO(data))
