"""Any torch `Dataset` as a source: what its items are, and what its targets are without decoding them all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset, IterableDataset, Subset

from kiln import pixels
from kiln.data.items import Item, form_of, image_of, item_at, label_text, target_of
from kiln.data.samples import Samples, split_word
from kiln.data.storage import Entry, counted
from kiln.errors import DataError, UsageError

_MOST_HASHED = 64
_MOST_TRIED = 16


def open_datasets(where: Any, *, labelled: bool = True) -> tuple[Samples, DatasetReader]:
    """The samples of one data set, or of a dict of them by split; without `labelled` no target is looked at.

    Raises: DataError: not a data set with a length, no items, or items that are no images. UsageError: unknown split.
    """
    parts = {"": where} if not isinstance(where, Mapping) else {f"{name}/": part for name, part in where.items()}
    splits = [_split_named(name) for name in where] if isinstance(where, Mapping) else [None]
    if not parts:
        raise UsageError("E107", "no data sets were given", expected='{"train": dataset, "test": dataset}')
    opened = [_Opened(dataset, labelled) for dataset in parts.values()]
    forms = {part.form for part in opened}
    if len(forms) > 1 and "float" in forms:
        raise DataError("E209", f"items differ between the data sets: {', '.join(sorted(forms))}")
    notes = list(dict.fromkeys(note for part in opened for note in part.notes))
    if len({part.classes for part in opened}) > 1:
        notes.append("the class lists of the data sets differ: classes are matched by name")
    samples = Samples(
        keys=[prefix + key for prefix, part in zip(parts, opened, strict=True) for key in part.keys],
        names=[(number, index) for number, part in enumerate(opened) for index in range(len(part.keys))],
        entries=[entry for part in opened for entry in part.entries],
        labels=[label for part in opened for label in part.labels] if labelled else None,
        splits=[split for split, part in zip(splits, opened, strict=True) for _ in part.keys] if any(splits) else None,
        class_names=tuple(dict.fromkeys(name for part in opened for name in part.classes or ())) or None,
        notes=tuple(notes),
    )
    return samples, DatasetReader(opened, forms)


def _split_named(name: Any) -> str:
    split = split_word(name) if isinstance(name, str) else None
    if split is None:
        raise UsageError("E107", f"{name!r} is no split", choices=("train", "val", "test"), got=str(name))
    return split


class DatasetReader:
    """Reads items by (number of the data set, index in it)."""

    def __init__(self, opened: Sequence[_Opened], forms: set[str]) -> None:
        self._datasets = [part.dataset for part in opened]
        self._to_items = [part.to_item for part in opened]
        self.transformed = forms == {"float"}
        self.has_headers = forms == {"bytes"}

    def read(self, name: tuple[int, int]) -> Item:
        """File bytes, uint8 (H, W, C), or float (C, H, W) when transformed. Raises DataError: the item fails."""
        number, index = name
        return self._to_items[number](image_of(item_at(self._datasets[number], index)))

    def header(self, name: tuple[int, int], max_pixels: int) -> pixels.Header:
        """The header of an item's bytes, or the shape of an array. Reads the whole item."""
        found = self.read(name)
        if isinstance(found, bytes):
            return pixels.probe(found, max_pixels=max_pixels)
        height, width, channels = found.shape if isinstance(found, np.ndarray) else (*found.shape[1:], found.shape[0])
        mode = {1: "L", 3: "RGB", 4: "RGBA"}.get(int(channels), str(int(channels)))
        return pixels.Header(int(width), int(height), mode, "array", 1, 1)


class _Opened:
    """One data set, probed: the form of its items, its keys, labels and what is known of its files."""

    def __init__(self, dataset: Any, labelled: bool) -> None:
        if (
            isinstance(dataset, IterableDataset)
            or not hasattr(dataset, "__getitem__")
            or not hasattr(dataset, "__len__")
        ):
            raise DataError(
                "E209",
                f"{type(dataset).__name__} cannot be a source",
                expected="a map-style torch Dataset: len(dataset) and dataset[i] -> (image, label)",
                hint="wrap a stream in a Dataset that knows its length, or give a folder, table or archive",
            )
        if len(dataset) == 0:
            raise DataError("E201", f"the data set {type(dataset).__name__} is empty")
        self.notes: list[str] = []
        self.dataset = dataset
        files = _files(dataset)
        if files is not None and _loads_plain_files(dataset):
            self.dataset = _Files(files, dataset)
        self._first = _first_readable(self.dataset)
        self.form, self.to_item = form_of(self.dataset, self._first, self.notes)
        classes = _find(dataset, "classes")
        self.classes = tuple(map(str, classes)) if _is_name_list(classes) else None
        self.keys = _keys(dataset, files)
        targets = self._targets(dataset) if labelled else ()
        self.labels = [label_text(target, self.classes) for target in targets]
        self.entries = [_file_entry(path) for path in files] if files else _content_entries(dataset)

    def _targets(self, dataset: Any) -> Sequence[Any]:
        targets = _known_targets(dataset)
        if targets is not None and len(targets) == len(dataset):
            if isinstance(self.dataset, _Files):
                return targets
            first = target_of(item_at(dataset, self._first))
            if label_text(first, None) == label_text(targets[self._first], None):
                return targets
        self.notes.append(
            f"{type(dataset).__name__} does not say its targets (.targets, .labels): "
            f"all {counted(len(dataset), 'item')} were read"
        )
        return [target_of(item_at(dataset, index)) for index in range(len(dataset))]


def _first_readable(dataset: Any) -> int:
    """One of the first items, by which the others are judged. Raises: DataError: none of them can be read."""
    for index in range(min(len(dataset), _MOST_TRIED) - 1):
        try:
            item_at(dataset, index)
        except DataError:
            continue
        return index
    item_at(dataset, index := min(len(dataset), _MOST_TRIED) - 1)
    return index


class _Files:
    """The files of an `ImageFolder` without a transform, so that the pixel contract decodes them and not the loader."""

    def __init__(self, files: Sequence[str], dataset: Any) -> None:
        self.files, self.dataset = files, dataset

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[str, None]:
        return self.files[index], None


def _find(dataset: Any, name: str) -> Any:
    """An attribute of a data set, or of the one that a `Subset` or `ConcatDataset` was cut from."""
    if isinstance(dataset, Subset):
        return _find(dataset.dataset, name)
    if isinstance(dataset, ConcatDataset):
        found = [_find(part, name) for part in dataset.datasets]
        return found[0] if all(_same(part, found[0]) for part in found) else None
    return getattr(dataset, name, None)


def _same(left: Any, right: Any) -> bool:
    return _is_name_list(left) and _is_name_list(right) and list(left) == list(right)


def _is_name_list(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(name, str) for name in value)


def _known_targets(dataset: Any) -> Sequence[Any] | None:
    """The targets as the data set stores them, its `target_transform` applied; None where it does not say."""
    if isinstance(dataset, Subset):
        inner = _known_targets(dataset.dataset)
        return None if inner is None else [inner[index] for index in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        parts = [_known_targets(part) for part in dataset.datasets]
        return None if any(part is None for part in parts) else [target for part in parts for target in part or ()]
    tensors = getattr(dataset, "tensors", None)
    if isinstance(tensors, tuple) and len(tensors) > 1:
        return tensors[1].tolist()
    targets: Any
    for name in ("targets", "labels", "_labels"):
        targets = getattr(dataset, name, None)
        if isinstance(targets, torch.Tensor | np.ndarray):
            targets = targets.tolist()
        if isinstance(targets, list | tuple) and len(targets) == len(dataset):
            break
    else:
        samples = getattr(dataset, "samples", None)
        if not isinstance(samples, list) or not samples or not isinstance(samples[0], tuple):
            return None
        targets = [sample[1] for sample in samples]
    transform = getattr(dataset, "target_transform", None)
    return [transform(target) for target in targets] if transform else targets


def _files(dataset: Any) -> list[str] | None:
    """The paths behind an `ImageFolder` or a data set like it, also through a `Subset`."""
    if isinstance(dataset, Subset):
        files = _files(dataset.dataset)
        return None if files is None else [files[index] for index in dataset.indices]
    samples = getattr(dataset, "samples", None)
    if isinstance(samples, list) and len(samples) == len(dataset) and isinstance(samples[0], tuple):
        paths = [sample[0] for sample in samples]
        if all(isinstance(path, str | os.PathLike) for path in paths) and os.path.isfile(paths[0]):
            return [os.fspath(path) for path in paths]
    return None


def _loads_plain_files(dataset: Any) -> bool:
    """Whether the items are just the decoded files: torchvision's own loader, and no transform anywhere."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    loader = getattr(dataset, "loader", None)
    own_items = type(dataset).__getitem__.__module__ == "torchvision.datasets.folder"
    plain = all(getattr(dataset, name, None) is None for name in ("transform", "transforms"))
    return plain and own_items and getattr(loader, "__module__", "") == "torchvision.datasets.folder"


def _keys(dataset: Any, files: Sequence[str] | None) -> list[str]:
    """Paths below the root where there are files, else the index; a part of a data set keeps the keys of the whole."""
    root = _find(dataset, "root")
    if files and isinstance(root, str | os.PathLike):
        keys = [os.path.relpath(path, root).replace(os.sep, "/") for path in files]
    else:
        indices: Sequence[int] = range(len(dataset))
        whole = dataset
        while isinstance(whole, Subset):
            indices, whole = [whole.indices[index] for index in indices], whole.dataset
        keys = [f"{index:09d}" for index in indices]
    if len(set(keys)) < len(keys):
        raise DataError(
            "E209",
            f"{counted(len(keys) - len(set(keys)), 'item')} of {type(dataset).__name__} occur more than once",
            hint="weight samples instead of repeating them: one sample in two splits would be a leak",
        )
    return keys


def _file_entry(path: str) -> Entry:
    try:
        status = os.stat(path)
    except OSError:
        return Entry(0, "missing")
    return Entry(status.st_size, f"mtime:{status.st_mtime_ns}")


def _content_entries(dataset: Any) -> list[Entry]:
    """Sizes, and for some items evenly apart a hash of the stored array: items themselves may be random."""
    identities = dict.fromkeys(range(len(dataset)), "")
    stored: Any = dataset
    indices: Any = range(len(dataset))
    while isinstance(stored, Subset):
        indices, stored = [stored.indices[index] for index in indices], stored.dataset
    tensors = getattr(stored, "tensors", None)
    data: Any = tensors[0] if isinstance(tensors, tuple) and tensors else getattr(stored, "data", None)
    size = 0
    if isinstance(data, torch.Tensor | np.ndarray) and len(data) == len(stored):
        size = int(np.asarray(data[0]).nbytes)
        for index in range(0, len(dataset), max(1, len(dataset) // _MOST_HASHED)):
            content = np.ascontiguousarray(np.asarray(data[indices[index]]))
            identities[index] = f"blake2b:{hashlib.blake2b(content.tobytes(), digest_size=8).hexdigest()}"
    return [Entry(size, identities[index]) for index in range(len(dataset))]
