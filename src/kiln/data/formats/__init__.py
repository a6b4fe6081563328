"""Images in files that hold many of them: which format a file or folder is in, and who reads and writes it.

One module per format, reader and writer side by side; each imports its library when it is used, and not before.
"""

from __future__ import annotations

import glob
import importlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kiln.data.formats import arrays, cifar, mnist, webdataset
from kiln.data.formats.opening import Opened, Plan, Request, Writer
from kiln.data.rows import NOTHING_ASKED, Asked
from kiln.data.samples import split_word
from kiln.data.storage import Storage, is_hidden, is_image_name
from kiln.errors import DataError, UsageError

BY_SUFFIX = {
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".mdb": "lmdb",
    ".lmdb": "lmdb",
    ".parquet": "parquet",
    ".arrow": "parquet",
    ".npz": "arrays",
    ".npy": "arrays",
    ".tar": "webdataset",
}
BY_NAME = (
    (re.compile(r"(^|/)packed\.json$"), "packed"),
    (re.compile(r"(^|/)data\.mdb$"), "lmdb"),
    (mnist.NAME, "mnist"),
    (cifar.BINARY, "cifar"),
    (re.compile(rf"(^|/){cifar.PICKLED.pattern}"), "cifar"),
)
WRITTEN = {"packed": "", "lmdb": "", "hdf5": ".h5", "webdataset": "", "parquet": ""}
"""What `kiln pack` writes, and the suffix of those that are one file."""
_MOST_WRAPPERS = 3
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MOST_IN_BRACES = 100_000


def format_of(path: str) -> str | None:
    """The module for a file by its name, or None."""
    named = next((module for pattern, module in BY_NAME if pattern.search(path.replace(os.sep, "/"))), None)
    return named or BY_SUFFIX.get(os.path.splitext(path)[1].lower())


def open_path(where: str, *, asked: Asked = NOTHING_ASKED, labelled: bool = True) -> Opened | Storage | None:
    """Open a file, a folder of files, or several by a pattern, if they are in one of these formats.

    Returns: None for anything else; a storage where only names and bytes are known.
    Raises: DataError: damaged, or files in several formats. MissingExtraError: its library is not installed.
    """
    paths = _paths(where)
    formats = {format_of(path) for path in paths}
    if not paths or None in formats:
        return None
    if len(formats) > 1:
        named = ", ".join(sorted(str(module) for module in formats))
        raise DataError("E209", f"{where} holds files in several formats: {named}", hint="give those of one")
    module = formats.pop()
    if module == "webdataset" and not webdataset.is_shard(paths[0]):
        return None
    if module == "arrays" and not _are_stacks(paths):
        return None
    return _module(str(module)).open_files(Request(where, tuple(paths), asked, labelled))


def writer_for(name: str, place: Path, plan: Plan) -> Writer:
    """The writer of a format, which goes on with what is at `place` already.

    Raises: UsageError: no such format. MissingExtraError: its library is not installed.
    """
    if name not in WRITTEN:
        raise UsageError("E101", f"unknown format {name!r}", got=name, choices=tuple(WRITTEN))
    return _module(name).Writer(place, plan)


def _module(name: str) -> Any:
    return importlib.import_module(f"{__name__}.{name}")


def _paths(where: str) -> list[str]:
    if os.path.isdir(where):
        return _in_folder(where)
    if os.path.isfile(where):
        return [where]
    expanded = _expanded(where)
    if len(expanded) > 1:
        missing = [path for path in expanded if not os.path.isfile(path)]
        if missing:
            raise DataError("E201", f"{len(missing):,} of {len(expanded):,} files of {where} are missing: {missing[0]}")
        return expanded
    if any(mark in where for mark in "*?["):
        return sorted(path for path in glob.glob(where, recursive=True) if os.path.isfile(path))
    return []


def _expanded(where: str) -> list[str]:
    """`data-{0000..0012}.tar` as the names that it stands for."""
    found = _BRACES.search(where)
    if found is None:
        return [where]
    first, last = int(found[1]), int(found[2])
    if last - first >= _MOST_IN_BRACES:
        raise UsageError("E102", f"{found[0]} stands for {last - first + 1:,} files", expected="100,000 at most")
    width = len(found[1])
    names = [f"{where[: found.start()]}{number:0{width}d}{where[found.end() :]}" for number in range(first, last + 1)]
    return [path for name in names for path in _expanded(name)]


def _in_folder(where: str) -> list[str]:
    """The files of a format at the top of a folder, in its split folders, or in the only folder there is."""
    for _ in range(_MOST_WRAPPERS):
        files, folders = _listed(where)
        known = [path for path in files if format_of(path) is not None]
        if (first := next((path for path in known if format_of(path) == "packed"), None)) is not None:
            return [first]
        sure = [path for path in known if any(pattern.search(path) for pattern, _ in BY_NAME)]
        if sure:
            return [path for path in sure if path.endswith("data.mdb")][:1] or sure
        if known and not folders and not any(is_image_name(path) for path in files if not path.endswith(".npy")):
            return known
        if folders and not known and all(split_word(os.path.basename(folder)) for folder in folders):
            inside = [path for folder in folders for path in _listed(folder)[0] if format_of(path) is not None]
            return sorted(inside)
        if known or len(folders) != 1:
            return []
        where = folders[0]
    return []


def _listed(folder: str) -> tuple[list[str], list[str]]:
    """Files and folders, sorted; what is hidden is left out."""
    files, folders = [], []
    try:
        with os.scandir(folder) as children:
            for child in children:
                if not is_hidden(child.name):
                    (folders if child.is_dir() else files).append(child.path)
    except OSError:
        return [], []  # whoever reads the folder as images says so
    return sorted(files), sorted(folders)


def _are_stacks(paths: Sequence[str]) -> bool:
    """Whether arrays are stacks of images; a single .npy is one image, as in a folder of images."""
    return any(path.lower().endswith(".npz") for path in paths) or arrays.is_arrays_folder(paths)
