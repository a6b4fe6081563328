"""Decode once: a source whose samples come in a form that is made once and kept.

Every form is a pure function of the file, so a hit and a miss give the same bytes, and neither a warm cache nor a lost
one changes a result.
"""

from __future__ import annotations

import hashlib
import io
import os
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from kiln import pixels
from kiln.data import room
from kiln.data.decode import DECODER, RESIZER, contract_image, crop_resize, decode
from kiln.data.fingerprint import digest
from kiln.data.prefetch import prefetched
from kiln.data.source import Source
from kiln.data.store import Kept, Store
from kiln.data.storelog import BYTES_PER_RECORD, META_BYTES, FileLog, MemoryLog
from kiln.errors import DataError, UsageError
from kiln.random import keys_of

_HASHING_THREADS = 8
"""They wait for the disk most of the time, and hashing releases the interpreter's lock."""


class Form(Protocol):
    """What is kept of a sample; its `repr` names it."""

    def make(self, item: bytes | NDArray[np.uint8]) -> Kept:
        """The kept form of what a source holds.

        Raises: PixelError: it cannot be read.
        """
        ...

    def bytes_of(self, header: pixels.Header) -> int | None:
        """Bytes that are kept of a file with this header, where the header tells."""
        ...


@dataclass(frozen=True)
class StoredForm:
    """A copy: upright, `channels` of uint8, the shorter side reduced to `px` if it is longer.

    Args:
        px: of the shorter side.
        channels: of the stored image.
        interpolation: of the one antialiased reduction.
        max_pixels: larger files are refused.
        quality: of a JPEG, 1 to 100; None keeps the pixels.
    Raises: UsageError: a JPEG of other than 1 or 3 channels.
    """

    px: int
    channels: int
    interpolation: str
    max_pixels: int
    quality: int | None = None

    def __post_init__(self) -> None:
        if self.quality is not None and self.channels not in (1, 3):
            raise UsageError(
                "E103",
                f"data.stored_jpeg = {self.quality}, but the images have {self.channels} channels",
                expected="1 or 3 channels for a JPEG",
                hint="--set data.stored_jpeg=0 keeps the pixels",
            )

    def make(self, item: bytes | NDArray[np.uint8]) -> Kept:
        """The copy, (H, W, C) uint8 or the bytes of a JPEG. Raises: PixelError: it cannot be read."""
        image = decode(item, channels=self.channels, max_pixels=self.max_pixels) if isinstance(item, bytes) else item
        height, width = image.shape[:2]
        shape = self.shape_of(height, width)
        if shape != image.shape:
            reduced = np.empty(shape, np.uint8)
            crop_resize(image, (0, 0, width, height), reduced, interpolation=self.interpolation)
            image = reduced
        return np.ascontiguousarray(image) if self.quality is None else _jpeg(image, self.quality)

    def shape_of(self, height: int, width: int) -> tuple[int, int, int]:
        """(H, W, C) of the copy of an image of this size."""
        shorter = min(height, width)
        if shorter <= self.px:
            return height, width, self.channels
        return max(1, round(height * self.px / shorter)), max(1, round(width * self.px / shorter)), self.channels

    def bytes_of(self, header: pixels.Header) -> int | None:
        """See `Form`."""
        height, width, channels = self.shape_of(header.height, header.width)
        return height * width * channels if self.quality is None else None


def _jpeg(image: NDArray[np.uint8], quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image[..., 0] if image.shape[2] == 1 else image)).save(
        buffer, "JPEG", quality=quality
    )
    return buffer.getvalue()


@dataclass(frozen=True)
class ContractForm:
    """The image that the pixel contract makes: for validation, and for training that crops nothing out of it.

    Args:
        contract: of the model.
        fast: let the faster decoder serve, in training.
    """

    contract: pixels.PixelContract
    fast: bool = False

    def make(self, item: bytes | NDArray[np.uint8]) -> Kept:
        """(height, width, channels) uint8; with `resize` keep of its own size. Raises: PixelError: it cannot be read."""
        return contract_image(item, self.contract) if self.fast else self.contract.apply(item)

    def bytes_of(self, header: pixels.Header) -> int | None:
        """See `Form`."""
        if self.contract.resize == "keep":
            height, width = self.contract.kept_size(header.height, header.width)
            return height * width * self.contract.channels
        return self.contract.height * self.contract.width * self.contract.channels


@dataclass(frozen=True)
class FileForm:
    """The bytes of the file, for sources that are slow to read."""

    def make(self, item: bytes | NDArray[np.uint8]) -> Kept:
        """The same."""
        return item

    def bytes_of(self, header: pixels.Header) -> int | None:  # noqa: ARG002 - a header does not tell
        """See `Form`."""
        return None


class StoredSource:
    """A source whose samples come in a form, out of a store where they are there and into it where they are not.

    Args:
        source: of files or of uint8 arrays.
        form: what is kept of a sample.
        store: None makes each sample anew, every time; the bytes are the same.
    """

    transformed = False

    def __init__(self, source: Source, form: Form, store: Store | None) -> None:
        self.source, self.form, self.store = source, form, store

    def read(self, index: int) -> Kept:
        """The image (H, W, C), read-only, or the bytes.

        Raises: PixelError: it cannot be decoded. DataError: the file vanished or may not be read.
        """
        found = None if self.store is None else self.store.get(index)
        if found is not None:
            return found
        item = self.source.read(index)
        if not isinstance(item, bytes | np.ndarray):
            raise UsageError("E103", "samples that come already transformed have no stored form")
        made = self.form.make(item)
        if isinstance(made, np.ndarray):
            made = made.view()
            made.flags.writeable = False
        if self.store is not None:
            self.store.put(index, made)
        return made


def entries_of(source: Source, by_content: NDArray[np.int64] | None = None) -> NDArray[np.uint64]:
    """(N,) names of entries: of a sample's key and of its size and time or checksum, or of the whole source's.

    Those of the samples `by_content` are named by a hash of what is read instead: all of them are read here.
    """
    identities = {} if by_content is None else _contents(source, by_content.tolist())
    return keys_of(
        [f"{key}\0{identities.get(index) or source.identity_of(index)}" for index, key in enumerate(source.keys)]
    )


def _contents(source: Source, indices: list[int]) -> dict[int, str]:
    """A hash of what each of these samples holds; without those that cannot be read, which are never kept."""

    def hashed(index: int) -> str:
        try:
            item = source.read(index)
        except (pixels.PixelError, DataError, OSError):
            return ""
        if not isinstance(item, bytes | np.ndarray):
            return ""
        shape = "" if isinstance(item, bytes) else str(item.shape)
        content = item if isinstance(item, bytes) else np.ascontiguousarray(item).data
        return shape + hashlib.blake2b(content, digest_size=16).hexdigest()

    threads = _HASHING_THREADS
    return dict(zip(indices, prefetched(hashed, indices, workers=threads, ahead=4 * threads), strict=True))


def open_store(
    source: Source,
    form: Form,
    *,
    tier: str,
    needed: int,
    limit_bytes: int,
    by_content: NDArray[np.int64] | None = None,
) -> Store | None:
    """The store of a source in this form, from an earlier run or new; None when there is no room at all.

    Args:
        source: its samples are the entries.
        form: what is kept of them.
        tier: `disk`, or `memory`.
        needed: bytes of all that is to be kept, as from `bytes_needed`.
        limit_bytes: that all stores on disk together, or this one in memory, may take.
        by_content: samples whose entries are named by a hash of what they hold, see `entries_of`.
    """
    entries = entries_of(source, by_content)
    if tier == "memory":
        room_there = min(needed, limit_bytes)
        return Store(entries, MemoryLog(room_there)) if room_there > 0 else None
    here = os.path.abspath(source.where) if os.path.exists(source.where) else source.fingerprint
    folder = room.root() / digest([here, repr(form), DECODER, RESIZER, PIL.__version__])
    index_bytes = META_BYTES + len(entries) * BYTES_PER_RECORD
    try:
        with room.locked():
            granted = room.reserve(folder, needed + index_bytes, limit_bytes)
            if granted <= index_bytes:
                return None
            about = {"where": source.where, "form": repr(form)}
            store = Store(entries, FileLog(folder, granted, num_entries=len(entries), about=about))
            if 2 * store.num_dead_bytes > len(store.log.data):  # of files that changed or went: begin anew
                store.close()
                room.remove(folder)
                store = Store(entries, FileLog(folder, granted, num_entries=len(entries), about=about))
            return store
    except OSError:
        return None  # no room on the disk after all: every image is decoded each time


def bytes_needed(source: Source, form: Form, headers: list[pixels.Header], indices: list[int]) -> int:
    """Bytes of the kept forms of some samples, from the headers of a part of them, with a tenth to spare.

    Where headers do not tell, a part of the samples is made.
    """
    sizes = [size for header in headers if (size := form.bytes_of(header)) is not None]
    if not sizes:
        for index in indices[:: max(1, len(indices) // 16)]:
            try:
                made = form.make(source.read(index))  # type: ignore[arg-type]
            except (pixels.PixelError, DataError, OSError):
                continue
            sizes.append(len(made) if isinstance(made, bytes) else made.nbytes)
    if not sizes:
        return 0
    spare = 1.0 if len(set(sizes)) == 1 else 1.1
    return int(spare * len(indices) * sum(sizes) / len(sizes))
