"""Images as arrays: .npy files in a folder, .npz, and NumPy arrays given in Python.

Arrays in files are mapped into memory and never copied whole, except those that an .npz holds compressed. What an array
is, is told by its name: `images.npy` and `labels.npy`; `x_train`, `y_train`, `x_test`, `y_test`; `train_images`, ...
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import tokenize
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from kiln import pixels
from kiln.data.archive import MAX_MEMBERS, MAX_RATIO, RATIO_MATTERS_BYTES
from kiln.data.formats.opening import Opened, Request, Stamp, damaged, split_in, unlabelled, without_labels
from kiln.data.reader import header_of
from kiln.data.rows import Asked
from kiln.data.samples import Samples, split_word
from kiln.data.storage import Entry, counted
from kiln.errors import DataError, SecurityError, UsageError

_IMAGE_WORDS = frozenset({"images", "image", "imgs", "img", "x", "data", "pixels", "inputs"})
_LABEL_WORDS = frozenset({"labels", "label", "y", "targets", "target", "fine"})
_NAME_WORDS = frozenset({"classes", "names"})
_MOST_HASHED = 64


class Values(Protocol):
    """An array that may lie in a file: N images of one shape, or N labels."""

    @property
    def shape(self) -> tuple[int, ...]:
        """N first."""
        ...

    @property
    def dtype(self) -> Any:
        """Of the values."""
        ...

    def __getitem__(self, row: int, /) -> Any: ...


class Mapped:
    """An array in a file, mapped into memory; a process started afresh maps it again instead of receiving a copy.

    Raises: DataError: the file is shorter than the array.
    """

    def __init__(
        self, path: str, dtype: np.dtype, shape: tuple[int, ...], *, offset: int, fortran_order: bool = False
    ) -> None:
        self.path, self.dtype, self.shape, self.offset = path, dtype, shape, offset
        self.fortran_order = fortran_order
        self.stamp = Stamp.of(path)
        count = 1
        for length in shape:
            count *= length  # of Python's integers, which do not overflow
        if dtype.hasobject:
            raise holds_code(path)
        if min(shape, default=1) < 0 or offset + count * dtype.itemsize > self.stamp.size:
            raise damaged(path, f"{self.stamp.size:,} bytes are too few for {dtype} of shape {shape}")
        order = "F" if fortran_order else "C"
        self.array = (
            np.memmap(path, dtype, "r", offset=offset, shape=shape, order=order) if count else np.empty(shape, dtype)
        )

    def __getitem__(self, row: int) -> Any:
        return self.array[row]

    def __reduce__(self) -> tuple[Any, ...]:
        return _mapped_again, (self.path, self.dtype, self.shape, self.offset, self.fortran_order, self.stamp)


def _mapped_again(
    path: str, dtype: np.dtype, shape: tuple[int, ...], offset: int, fortran_order: bool, stamp: Stamp
) -> Mapped:
    stamp.check(path)
    return Mapped(path, dtype, shape, offset=offset, fortran_order=fortran_order)


class Part(NamedTuple):
    """Images with their labels, all of one split.

    Attributes:
        images: (N, H, W), (N, H, W, C) or (N, C, H, W), uint8.
        labels: label texts.
        identity: changes with the file.
        where: for messages.
    """

    images: Values
    labels: Sequence[str] | None
    split: str | None
    identity: str
    where: str


class ArrayReader:
    """Reads images of stacks by (number of the stack, row)."""

    has_headers = False

    def __init__(self, stacks: Sequence[Values]) -> None:
        self._stacks = stacks
        self._channels_first = [_is_channels_first(stack.shape) for stack in stacks]

    def read(self, name: tuple[int, int]) -> np.ndarray:
        """One image (H, W, C), uint8. Raises DataError: the file cannot be read."""
        number, row = name
        image = np.asarray(self._stacks[number][row])
        if image.ndim == 2:
            return image[..., None]
        return np.ascontiguousarray(image.transpose(1, 2, 0)) if self._channels_first[number] else image

    def header(self, name: tuple[int, int], max_pixels: int) -> pixels.Header:
        """Size and channels."""
        return header_of(self.read(name), max_pixels)


def _is_channels_first(shape: tuple[int, ...]) -> bool:
    return len(shape) == 4 and shape[1] in (1, 3, 4) and shape[3] not in (1, 3, 4)


def opened(
    parts: Sequence[Part], *, class_names: tuple[str, ...] | None = None, notes: Sequence[str] = (), labelled: bool
) -> Opened:
    """Stacks of images as one source; keys are `train/000000012`, counted through each split.

    Raises: DataError: wrong shapes or types, or no labels where some are wanted.
    """
    keys, names, entries, splits, labels = [], [], [], [], []
    reached: Counter[str | None] = Counter()
    several = len({part.split for part in parts}) > 1
    for number, part in enumerate(parts):
        _check_stack(part)
        if labelled and part.labels is None:
            raise without_labels(part.where)
        length = part.images.shape[0]
        prefix = f"{part.split or 'data'}/" if several else ""
        keys += [f"{prefix}{row:09d}" for row in range(reached[part.split], reached[part.split] + length)]
        reached[part.split] += length
        size = int(np.prod(part.images.shape[1:], dtype=np.int64))
        names += [(number, row) for row in range(length)]
        entries += [Entry(size, part.identity)] * length
        splits += [part.split] * length
        labels += part.labels or ()
    if not keys:
        raise DataError("E201", f"no images in {parts[0].where if parts else 'nothing'}")
    samples = Samples(
        keys=keys,
        names=names,
        entries=entries,
        labels=labels if labelled else None,
        splits=splits if any(splits) else None,
        class_names=class_names,
        unlabelled=unlabelled(labels if labelled else None, keys),
        notes=tuple(notes),
    )
    return Opened(samples, ArrayReader([part.images for part in parts]))


def _check_stack(part: Part) -> None:
    shape, dtype = part.images.shape, part.images.dtype
    channels = 1 if len(shape) == 3 else shape[1] if _is_channels_first(shape) else shape[-1]
    if dtype != np.uint8 or len(shape) not in (3, 4) or min(shape[1:], default=0) < 1:
        raise DataError(
            "E209",
            f"images are {dtype} of shape {tuple(shape)}",
            where=part.where,
            expected="uint8 of shape (N, H, W, C), (N, C, H, W) or (N, H, W)",
            hint="scale floats to 0..255 and round: (images * 255).round().astype(numpy.uint8)"
            if np.dtype(dtype).kind == "f"
            else "",
        )
    if channels not in (1, 3, 4):
        raise DataError("E209", f"images of shape {tuple(shape)} have {channels} channels", where=part.where)
    if part.labels is not None and len(part.labels) != shape[0]:
        raise DataError(
            "E209", f"{shape[0]:,} images, but {len(part.labels):,} labels", where=part.where, expected="one each"
        )


def label_texts(values: Any, class_names: tuple[str, ...] | None, where: str) -> list[str]:
    """Labels as text: numbers become names where names are known; rows of 0 and 1 become their labels with commas.

    Raises: DataError: neither numbers nor text.
    """
    array = np.asarray(values)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]

    def name(index: int) -> str:
        return class_names[index] if class_names and 0 <= index < len(class_names) else str(index)

    if array.ndim == 1 and array.dtype.kind in "iub":
        return [name(int(value)) for value in array]
    if array.ndim == 1 and array.dtype.kind in "SUTO" and all(isinstance(value, str | bytes) for value in array[:1]):
        return [value.decode("utf-8") if isinstance(value, bytes) else str(value) for value in array.tolist()]
    if array.ndim == 2 and array.dtype.kind in "iubf" and bool(np.isin(array, (0, 1)).all()):
        return [",".join(name(int(index)) for index in np.flatnonzero(row)) for row in array]
    raise DataError(
        "E209",
        f"labels are {array.dtype} of shape {array.shape}",
        where=where,
        expected="(N,) integers or text, or (N, K) of 0 and 1",
    )


def open_files(request: Request) -> Opened:
    """Open .npz or .npy files.

    Raises: DataError: damaged, or no name tells what the arrays are. SecurityError: an array of Python objects.
    """
    arrays: dict[str, Any] = {}
    notes: list[str] = []
    for path in request.paths:
        if path.lower().endswith(".npz"):
            arrays |= _npz(path, notes)
        else:
            arrays[Path(path).stem] = _npy(path)
    identity = " ".join(Stamp.of(path).identity for path in request.paths)
    parts, names = parts_among(arrays, request, identity=identity)
    return opened(parts, class_names=names, notes=notes, labelled=request.labelled)


def parts_among(
    arrays: Mapping[str, Any], request: Request, *, identity: str
) -> tuple[list[Part], tuple[str, ...] | None]:
    """Images and labels among named arrays, paired by the split in their names.

    Returns: the parts, and class names where an array holds them.
    Raises: DataError: no images, or two arrays that may be meant.
    """
    images, labels = _roles(arrays, request.asked, request.where)
    class_names = _class_names(arrays)
    if not images:
        raise DataError(
            "E201",
            f"no array in {request.where} is named like images",
            expected="images and labels, or x_train, y_train, x_test, y_test",
            details=[f"{name}: {array.dtype} {tuple(array.shape)}" for name, array in arrays.items()],
            hint="name them with path_column and label_column",
        )
    parts = []
    for split, name in images.items():
        named = labels.get(split)
        where = f"{request.where}: {name}"
        texts = None
        _check_lengths(arrays[name], None if named is None else arrays[named], where)
        if named is not None and request.labelled:
            texts = label_texts(_whole(arrays[named]), class_names, f"{request.where}: {named}")
        parts.append(Part(arrays[name], texts, split, identity, where))
    return parts, class_names


def _check_lengths(images: Any, labels: Any, where: str) -> None:
    """Before labels are read: the header of a compressed array may say any length, and cost no byte of the file."""
    for array, most_axes in ((images, 4), (labels, 2)):
        if array is not None and (not 1 <= len(array.shape) <= most_axes or array.shape[0] > MAX_MEMBERS):
            raise DataError(
                "E209", f"an array of shape {tuple(array.shape)} is no stack of images or labels", where=where
            )
    if labels is not None and labels.shape[0] != images.shape[0]:
        raise DataError(
            "E209", f"{images.shape[0]:,} images, but {labels.shape[0]:,} labels", where=where, expected="one each"
        )


def _whole(array: Any) -> Any:
    return array.array if isinstance(array, Mapped) else array[()] if hasattr(array, "id") else array


def _roles(arrays: Mapping[str, Any], asked: Asked, where: str) -> tuple[dict[str | None, str], dict[str | None, str]]:
    if asked.split is not None or asked.group is not None:
        raise UsageError("E103", "arrays have no split or group column", hint="the split is told by an array's name")
    if set(arrays) == {"arr_0", "arr_1"}:  # numpy.savez(path, images, labels)
        return {None: "arr_0"}, {None: "arr_1"}
    roles: dict[str, dict[str | None, str]] = {"images": {}, "labels": {}}
    for name in arrays:
        words = set(re.split(r"[\W_]+", name.lower()))
        for role, meant, usual in (
            ("images", asked.path, _IMAGE_WORDS),
            ("labels", asked.label, _LABEL_WORDS),
        ):
            named = name == meant or name.rpartition("/")[2] == meant
            if named if meant is not None else bool(words & usual) and not words & _NAME_WORDS:
                other = roles[role].setdefault(split_in(name), name)
                if other != name:
                    raise DataError(
                        "E209",
                        f"two arrays in {where} may be the {role}: {other!r} and {name!r}",
                        hint="say which: path_column for images, label_column for labels",
                    )
                break
    return roles["images"], roles["labels"]


def _class_names(arrays: Mapping[str, Any]) -> tuple[str, ...] | None:
    for name, array in arrays.items():
        if set(re.split(r"[\W_]+", name.lower())) & _NAME_WORDS and len(array.shape) == 1:
            values = np.asarray(_whole(array)).tolist()
            if all(isinstance(value, str | bytes) for value in values):
                return tuple(value.decode("utf-8") if isinstance(value, bytes) else value for value in values)
    return None


def _npy(path: str) -> Mapped:
    with open(path, "rb") as file:
        shape, fortran_order, dtype = _npy_header(file, path)
        return Mapped(path, dtype, shape, offset=file.tell(), fortran_order=fortran_order)


def _npy_header(file: Any, where: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        header = readers[np.lib.format.read_magic(file)](file)
    except (ValueError, KeyError, EOFError, OSError, SyntaxError, tokenize.TokenError) as error:
        raise damaged(where, f"no .npy header ({error})") from error
    if header[2].hasobject:
        raise holds_code(where)
    return header


def _npz(path: str, notes: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if info.filename.endswith(".npy"):
                    found[info.filename.removesuffix(".npy")] = _npz_array(archive, info, path, notes)
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError) as error:
        raise damaged(path, str(error)) from error
    return found


def _npz_array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: str, notes: list[str]) -> Any:
    where = f"{path}: {info.filename}"
    with archive.open(info) as member:
        shape, fortran_order, dtype = _npy_header(member, where)
        lead = member.tell()
        if info.compress_type == zipfile.ZIP_STORED:
            return Mapped(path, dtype, shape, offset=_data_offset(path, info) + lead, fortran_order=fortran_order)
        if info.file_size > max(MAX_RATIO * info.compress_size, RATIO_MATTERS_BYTES):
            raise damaged(where, f"it unpacks from {info.compress_size:,} to {info.file_size:,} bytes")
        data = member.read()
    expected = dtype.itemsize
    for length in shape:
        expected *= length
    if len(data) != expected:
        raise damaged(where, f"{len(data):,} bytes for {dtype} of shape {shape}")
    if len(data) > 1 << 20:
        notes.append(f"{info.filename} is compressed, so {len(data) / 1e6:,.0f} MB are held in memory; savez maps them")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran_order else "C")


def _data_offset(path: str, info: zipfile.ZipInfo) -> int:
    with open(path, "rb") as file:
        file.seek(info.header_offset + 26)
        name_bytes, extra_bytes = struct.unpack("<HH", file.read(4))
    return info.header_offset + 30 + name_bytes + extra_bytes


def holds_code(where: str) -> SecurityError:
    """For files that only unpickling could read."""
    return SecurityError(
        "E702",
        f"{where} holds pickled Python objects, and loading those can run any code",
        hint="save it as plain numbers or text: numpy.save(path, array) of a uint8, integer or text array",
    )


def are_arrays(where: Any) -> bool:
    """Whether something given in Python is (images, labels), or a dict of such pairs by split."""
    pairs: Iterable[Any] = where.values() if isinstance(where, Mapping) else (where,)
    found = [isinstance(pair, tuple) and len(pair) == 2 and _is_array(pair[0]) for pair in pairs]
    return bool(found) and all(found)


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype") and hasattr(value, "__array__")


def open_arrays(where: Any, *, labelled: bool) -> Opened:
    """Arrays given in Python: (images, labels), or a dict of such pairs by split. They are neither copied nor changed.

    Raises: DataError: wrong shapes or types. UsageError: an unknown split.
    """
    pairs = where if isinstance(where, Mapping) else {None: where}
    parts = []
    for name, (images, labels) in pairs.items():
        split = None if name is None else split_word(str(name))
        if name is not None and split is None:
            raise UsageError("E107", f"{name!r} is no split", choices=("train", "val", "test"), got=str(name))
        images = np.asarray(images)
        texts = label_texts(labels, None, "labels") if labelled else None
        parts.append(Part(images, texts, split, "", f"images of {counted(len(images), 'sample')}"))
    found = opened(parts, labelled=labelled)
    return Opened(_with_content(found.samples, parts), found.reader)


def _with_content(samples: Samples, parts: Sequence[Part]) -> Samples:
    """Some images' hashes as identities: an array in memory has no time of change."""
    entries = list(samples.entries)
    for place in range(0, len(entries), max(1, len(entries) // _MOST_HASHED)):
        number, row = samples.names[place]
        content = np.ascontiguousarray(parts[number].images[row]).tobytes()
        identity = f"blake2b:{hashlib.blake2b(content, digest_size=8).hexdigest()}"
        entries[place] = Entry(entries[place].size, identity)
    return Samples(**{**vars(samples), "entries": entries})


def is_arrays_folder(names: Iterable[str]) -> bool:
    """Whether the .npy files of a folder are stacks of images by their names, and not images themselves."""
    stems = {os.path.basename(name).lower().removesuffix(".npy"): None for name in names if name.endswith(".npy")}
    words = [set(re.split(r"[\W_]+", stem)) for stem in stems]
    return any(found & _IMAGE_WORDS for found in words) and any(found & _LABEL_WORDS for found in words)
