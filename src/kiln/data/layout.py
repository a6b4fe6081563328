"""Labels from folders: `cat/1.jpg`, `train/cat/1.jpg`, or a flat pile of images without labels."""

from __future__ import annotations

import posixpath
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from kiln.data.samples import Samples, split_word
from kiln.data.storage import Storage, counted, is_image_name, shown
from kiln.errors import DataError

_MOST_WRAPPERS = 3
_FEW = 0.1  # of all images may lie beside what they belong to, as a cover picture does


def flat(storage: Storage) -> Samples:
    """Every image, wherever it lies, without labels.

    Raises: DataError: no images.
    """
    names = _images(storage, labelled=False)
    return Samples(
        keys=names,
        names=names,
        entries=[storage.entries[name] for name in names],
        notes=(*storage.notes, *_stray_note(storage)),
    )


def class_folders(storage: Storage) -> Samples:
    """Images labelled by the folder they lie in, below split folders where there are any.

    A class is the first folder below the split (or the root); deeper folders belong to it. Folders that wrap everything
    are looked through and are no part of the keys, so a zip and its unpacked folder are the same source.

    Raises: DataError: no images, or none inside class folders.
    """
    names = _images(storage)
    wrapper = wrapping_folder(names)
    keys = [name.removeprefix(wrapper) for name in names]
    split_layout = _has_splits(keys)
    kept, labels, splits, left_out = [], [], [], Counter[str]()
    for name, key in zip(names, keys, strict=True):
        parts = key.split("/")
        split = split_word(parts[0]) if split_layout else None
        outside = not name.startswith(wrapper) or (split_layout and split is None)
        if outside or len(parts) < (3 if split_layout else 2):
            left_out[posixpath.dirname(key) or "."] += 1
            continue
        kept.append((key, name))
        labels.append(unicodedata.normalize("NFC", parts[1 if split_layout else 0]))
        splits.append(split)
    if not kept:
        raise _no_class_folders(storage, left_out)
    return Samples(
        keys=[key for key, _ in kept],
        names=[name for _, name in kept],
        entries=[storage.entries[name] for _, name in kept],
        labels=labels,
        splits=splits if split_layout else None,
        notes=(
            *storage.notes,
            *_stray_note(storage),
            *_left_out_note(left_out),
            *_empty_class_note(storage, [key for key, _ in kept], wrapper, split_layout),
            *_spelling_notes([key for key, _ in kept], labels),
        ),
    )


def looks_labelled(storage: Storage) -> bool:
    """Whether there are split folders with classes in them, or at least two class folders."""
    names = [name for name in storage.entries if is_image_name(name)]
    wrapper = wrapping_folder(names)
    keys = [name.removeprefix(wrapper) for name in names if name.startswith(wrapper)]
    if _has_splits(keys):
        return True
    classes = {key.split("/", 1)[0] for key in keys if "/" in key}
    return len(classes) >= 2 and not all(split_word(name) for name in classes)


def wrapping_folder(names: Iterable[str]) -> str:
    """The folders around everything, with a `/` at the end, or nothing.

    A folder that holds images directly is a class, so it is no wrapper, unless they are few beside several folders of
    images, or lie beside split folders. Nor is a folder called `train` a wrapper.
    """
    wrapper, keys = "", list(names)
    for _ in range(_MOST_WRAPPERS):
        tops = {key.split("/", 1)[0] for key in keys if "/" in key}
        if len(tops) != 1 or split_word(top := tops.pop()):
            break
        inside = [key.removeprefix(top + "/") for key in keys if key.startswith(top + "/")]
        folders = {key.split("/", 1)[0] for key in inside if "/" in key}
        strays = len(keys) - sum("/" in key for key in inside)
        if strays and not _has_splits(inside) and (len(folders) < 2 or strays > _FEW * len(keys)):
            break
        wrapper, keys = f"{wrapper}{top}/", inside
    return wrapper


def _has_splits(keys: Sequence[str]) -> bool:
    return any(key.count("/") >= 2 and split_word(key.split("/", 1)[0]) for key in keys)


def _images(storage: Storage, *, labelled: bool = True) -> list[str]:
    names = [name for name in storage.entries if is_image_name(name)]
    if names:
        return names
    archives = [name for name in storage.entries if name.lower().endswith((".zip", ".tar", ".tar.gz", ".tgz"))]
    hint = f"give the archive itself: {storage.where}/{archives[0]}" if archives else ""
    found = (
        f"{counted(len(storage.entries), 'other file')}: {_suffixes(storage.entries)}" if storage.entries else "nothing"
    )
    raise DataError(
        "E201",
        f"no images in {storage.where}",
        expected="files such as .jpg .png .webp .tif .bmp in folders named after their class"
        if labelled
        else "files such as .jpg .png .webp .tif .bmp",
        details=(f"found: {found}", *storage.notes),
        hint=hint,
    )


def _no_class_folders(storage: Storage, left_out: Counter[str]) -> DataError:
    return DataError(
        "E201",
        f"{counted(left_out.total(), 'image')} in {storage.where}, but none in a class folder",
        expected="CLASS/image.jpg, or train/CLASS/image.jpg; the folder's name is the label",
        details=[f"{folder}: {counted(count, 'image')}" for folder, count in left_out.most_common(5)],
        hint="sort the images into folders named after their class, or give a table with columns path,label",
    )


def _suffixes(names: Iterable[str]) -> str:
    suffixes = Counter(posixpath.splitext(name)[1].lower() or "no suffix" for name in names)
    return ", ".join(f"{suffix} {count:,}" for suffix, count in suffixes.most_common(5))


def _stray_note(storage: Storage) -> tuple[str, ...]:
    stray = [name for name in storage.entries if not is_image_name(name)]
    return (f"{counted(len(stray), 'file')} without an image's suffix ignored ({_suffixes(stray)})",) if stray else ()


def _left_out_note(left_out: Counter[str]) -> tuple[str, ...]:
    if not left_out:
        return ()
    where = shown([folder for folder, _ in left_out.most_common()])
    return (f"{counted(left_out.total(), 'image')} outside class folders ignored, in {where}",)


def _empty_class_note(storage: Storage, keys: Sequence[str], wrapper: str, split_layout: bool) -> tuple[str, ...]:
    depth = 2 if split_layout else 1
    full = {"/".join(key.split("/")[:depth]) for key in keys}
    folders = [name[len(wrapper) :] for name in storage.folders if name.startswith(wrapper)]
    candidates = [name for name in folders if name.count("/") == depth - 1 and name not in full]
    if split_layout:
        candidates = [name for name in candidates if split_word(name.split("/", 1)[0])]
    empty = sorted(candidates)
    return (f"{counted(len(empty), 'class folder')} without images: {shown(empty)}",) if empty else ()


def _spelling_notes(keys: Sequence[str], labels: Sequence[str]) -> list[str]:
    """Names that another computer would take for one another."""
    notes = []
    colliding = len(keys) - len({key.casefold() for key in keys})
    if colliding:
        notes.append(f"{counted(colliding, 'name')} like another but for case: they collide on macOS and Windows")
    classes = sorted(set(labels))
    folded = Counter(label.casefold().strip() for label in classes)
    alike = [label for label in classes if folded[label.casefold().strip()] > 1]
    if alike:
        notes.append(f"classes that differ only in case or blanks are kept apart: {shown(alike)}")
    composed = {unicodedata.normalize("NFC", key) for key in keys if not key.isascii()}
    doubled = sum(not key.isascii() for key in keys) - len(composed)
    if doubled:
        notes.append(f"{counted(doubled, 'name')} like another but for the Unicode form (NFC, NFD): both are kept")
    return notes
