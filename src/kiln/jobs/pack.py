"""`pack`: copy any source into a form that is read faster, and prove that nothing was lost on the way."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from kiln import pixels
from kiln.data import formats
from kiln.data.formats.opening import Facts, Plan, Record, record_of, replace_file, sync
from kiln.data.prefetch import prefetched
from kiln.data.reduced import described, reduced
from kiln.data.source import Source, open_source
from kiln.errors import DataError, KilnError, ResourceError, UsageError

KIND, VERSION = "kiln.packing", 1
PLAN = "plan.json"
_SAMPLED = 256
_ROUNDS = 3

Progress = Callable[[str, int, int], None]
"""(what is done, samples done, samples in all)"""


@dataclass(frozen=True)
class Packed:
    """What a packing came to.

    Attributes:
        output: the copy.
        format: of the copy.
        samples: in the copy; all were read back and compared.
        resumed: samples that an earlier, interrupted packing had written.
        files_before: files that hold the source; likewise `files_after`.
        bytes_before: bytes of the source's files; likewise `bytes_after`.
        rate_before: samples read per second by one thread, best of three rounds over some hundred samples that the
            system has just read, so it tells the cost of access and not of the disk; likewise `rate_after`.
        seconds: that all took.
    """

    output: Path
    format: str
    samples: int
    resumed: int
    files_before: int
    files_after: int
    bytes_before: int
    bytes_after: int
    rate_before: float
    rate_after: float
    seconds: float


def pack(
    source: Any,
    output: str | os.PathLike[str],
    *,
    format: str = "packed",  # noqa: A002 - the flag's name
    workers: int | None = None,
    root: str | os.PathLike[str] | None = None,
    class_names: Any = None,
    px: int | None = None,
    jpeg: int | None = None,
    progress: Progress | None = None,
) -> Packed:
    """Copy a source into one of the forms that `open_source` reads: keys, labels, splits, groups and bytes are the same.

    So a training from the copy sees the same samples in the same order with the same augmentations. The copy is written
    beside `output` and gets its name when every sample has been read back and compared; a packing that was interrupted
    goes on where it was when it is started again.

    Args:
        source: anything that `open_source` takes, or an open source.
        output: where to; must not exist. HDF5 is one file (.h5), all others are folders.
        format: `packed`, `lmdb`, `hdf5`, `webdataset` or `parquet`.
        workers: threads that read; by default two per processor.
        root: as for `open_source`.
        class_names: as for `open_source`.
        px: write copies whose shorter side is at most this, upright, instead of the files' own bytes.
        jpeg: quality of these copies; without one their pixels are kept.
        progress: called now and then with what is done and how far it is.
    Raises: UsageError: the output exists, or is being written from another source. DataError: a sample cannot be read,
        or the copy differs. ResourceError: no room.
    """
    began = time.perf_counter()
    opened = source if isinstance(source, Source) else open_source(source, root=root, class_names=class_names)
    if opened.transformed:
        raise UsageError(
            "E107", "these samples come already transformed", expected="images as files, bytes or uint8 arrays"
        )
    if px is None and jpeg is not None:
        raise UsageError("E103", f"jpeg = {jpeg} has no effect without px", hint="--px 256 --jpeg 90")
    original, place = opened, Path(output)
    _refuse_existing(place)
    opened = opened if px is None else reduced(opened, px=px, quality=jpeg)
    said = "" if px is None else described(px, jpeg)
    told = progress or (lambda _what, _done, _total: None)
    workers = 2 * (os.cpu_count() or 1) if workers is None else workers
    with _staging(place, opened, format) as staging:
        copy_place = staging / f"copy{_suffix(format)}"
        try:
            resumed = _write(opened, formats.writer_for(format, copy_place, _plan(opened, said)), workers, told)
        except OSError as error:
            raise _no_room(staging, error) from error
        copy = open_source(copy_place)
        _verify(opened, copy, workers, told)
        rates = _read_rates(original, copy)
        del copy
        copy_place.rename(place)
        sync(place.absolute().parent)
        shutil.rmtree(staging)
    files_before, bytes_before = _extent(Path(original.where), original)
    files_after, bytes_after = _extent(place, original)
    return Packed(
        place, format, len(opened), resumed, files_before, files_after, bytes_before, bytes_after, *rates,
        time.perf_counter() - began,
    )  # fmt: skip


def _suffix(name: str) -> str:
    return formats.WRITTEN.get(name, "")


def _refuse_existing(place: Path) -> None:
    if place.exists() or place.is_symlink():
        raise UsageError("E110", f"{place} exists", expected="a new name", hint="remove it, or pack to another place")
    if not place.absolute().parent.is_dir():
        raise UsageError("E110", f"the folder {place.absolute().parent} is not there", hint="make it first")


@contextmanager
def _staging(place: Path, source: Source, name: str) -> Iterator[Path]:
    """The folder in which a copy grows: new, or left by a packing of the same source into the same format."""
    if name not in formats.WRITTEN:
        raise UsageError("E101", f"unknown format {name!r}", got=name, choices=tuple(formats.WRITTEN))
    staging = place.with_name(f".{place.name}.packing")
    wanted = {"kind": KIND, "version": VERSION, "format": name, "fingerprint": source.fingerprint}
    try:
        staging.mkdir(exist_ok=True)
        lock = os.open(staging, os.O_RDONLY)
    except OSError as error:
        raise ResourceError("E401", f"cannot write to {place.absolute().parent}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError("E110", f"{place} is being packed by another process") from error
        if (staging / PLAN).exists() and json.loads((staging / PLAN).read_text("utf-8")) != wanted:
            raise UsageError(
                "E110",
                f"an interrupted packing of another source, or of another format, is in {staging}",
                hint=f"pack to another place, or give it up: rm -r {staging}",
            )
        if not (staging / PLAN).exists():
            replace_file(staging / PLAN, json.dumps(wanted).encode("utf-8"))
        yield staging
    finally:
        os.close(lock)


def _plan(source: Source, said: str) -> Plan:
    names = source.class_names or tuple(sorted(set(source.labels or ())))
    class_of = {name: index for index, name in enumerate(names)}
    if source.class_names is not None:  # labels may be numbers that class_names gives a meaning
        class_of |= {str(index): index for index in range(len(names)) if str(index) not in class_of}
    sampled = _sampled(len(source))
    sizes = [source.size_of(index) or len(_bytes(source, index)) for index in sampled]
    splits = source.splits or (None,) * len(source)
    return Plan(replace(Facts.of(source), reduced=said), splits, class_of, max(1, sum(sizes) // len(sizes)))


def _bytes(source: Source, index: int) -> bytes:
    return record_of(source, index).data


def _sampled(total: int) -> list[int]:
    """Some samples, evenly apart."""
    return list(range(0, total, max(1, total // _SAMPLED)))[:_SAMPLED]


def _write(source: Source, writer: formats.Writer, workers: int, told: Progress) -> int:
    """Write what is missing; how many samples were there already."""
    pending = writer.pending()
    order = [index for part in pending for index in part]
    done = resumed = len(source) - len(order)
    records = prefetched(lambda index: record_of(source, index), order, workers=workers, ahead=4 * workers)
    for part in pending:
        writer.write(part, _exactly(records, len(part)))
        done += len(part)
        told("packed", done, len(source))
    writer.finish()
    return resumed


def _exactly(records: Iterator[Record], count: int) -> Iterator[Record]:
    return islice(records, count)


def _verify(source: Source, copy: Source, workers: int, told: Progress) -> None:
    """Compare the copy with the source, sample by sample.

    Raises: DataError: they differ.
    """
    for name in ("keys", "labels", "splits", "groups", "class_names"):
        if getattr(source, name) != getattr(copy, name):
            raise _differs(f"the {name.replace('_', ' ')} of the copy are others")
    indices = range(len(source))
    same = prefetched(lambda index: _is_same(source, copy, index), indices, workers=workers, ahead=4 * workers)
    for index, is_same in enumerate(same):
        if not is_same:
            raise _differs(f"{source.keys[index]!r} is not what was read before")
        if (index + 1) % 512 == 0 or index + 1 == len(source):
            told("verified", index + 1, len(source))


def _is_same(source: Source, copy: Source, index: int) -> bool:
    before, after = source.read(index), copy.read(index)
    if isinstance(before, bytes):
        return isinstance(after, bytes) and before == after
    array = np.asarray(before)
    if isinstance(after, bytes):  # a form for others keeps an array as an image file without loss
        after = np.asarray(pixels.decode_image(after, channels=array.shape[2])).reshape(array.shape)
    return bool(np.array_equal(array, np.asarray(after)))


def _differs(why: str) -> DataError:
    return DataError(
        "E208", f"the copy differs from the source: {why}", hint="the source changed meanwhile: start again"
    )


def _read_rates(source: Source, copy: Source) -> tuple[float, float]:
    """Samples per second, before and after, in turns, each the best of its rounds."""
    indices = _sampled(len(source))
    order = np.random.default_rng(0).permutation(indices).tolist()
    best = [0.0, 0.0]
    for _ in range(_ROUNDS):
        for place, read in enumerate((source.read, copy.read)):
            began = time.perf_counter()
            for index in order:
                read(index)
            best[place] = max(best[place], len(order) / max(time.perf_counter() - began, 1e-9))
    return best[0], best[1]


def _extent(path: Path, source: Source) -> tuple[int, int]:
    """Files and bytes below a path; the samples' own bytes where there is no path, as for arrays in memory."""
    if not path.exists():
        return 0, sum(source.size_of(index) for index in range(len(source)))
    files: Sequence[Path] = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return len(files), sum(file.stat().st_size for file in files)


def _no_room(staging: Path, error: OSError) -> KilnError:
    free = shutil.disk_usage(staging).free
    return ResourceError(
        "E401",
        f"cannot write to {staging}: {error.strerror}",
        where=f"{free / 1e6:,.0f} MB are free",
        kept="what was packed so far",
        hint="make room and start the same command again: it goes on where it was",
    )
