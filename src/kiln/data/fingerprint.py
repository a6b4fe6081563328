"""The identity of a source: what a run records of its data, and how other data differ from it, in words."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kiln.data.samples import Samples
from kiln.data.storage import shown
from kiln.errors import ArtifactError

if TYPE_CHECKING:
    from kiln.data.source import Source

KIND, VERSION = "kiln.data", 1
_MOST_CLASSES = 10_000


def digest(*columns: Iterable[Any] | None) -> str:
    """A hash over columns of text; a column that is not there differs from an empty one."""
    state = hashlib.blake2b(digest_size=16)
    for column in columns:
        state.update(b"\x01none" if column is None else b"\x01")
        if column is not None:
            text = "\x00".join("\x02" if value is None else str(value) for value in column)
            state.update(text.encode("utf-8", "surrogateescape"))
    return state.hexdigest()


def fingerprint_of(samples: Samples) -> str:
    """Changes with any key, label, split, group, size or modification time (or checksum) of any sample."""
    sizes, identities = (entry.size for entry in samples.entries), (entry.identity for entry in samples.entries)
    return digest(samples.keys, samples.labels, samples.splits, samples.groups, sizes, identities)


def record(source: Source) -> dict[str, Any]:
    """What a run keeps of its data; ready for JSON, and read by `compare_fingerprint`."""
    classes = source.class_names or (tuple(sorted(set(source.labels))) if source.labels is not None else ())
    return {
        "kind": KIND,
        "version": VERSION,
        "fingerprint": source.fingerprint,
        "num_samples": len(source),
        "splits": dict(sorted(Counter(source.splits or ()).items(), key=str)) if source.splits else {},
        "classes": list(classes) if len(classes) <= _MOST_CLASSES else [],
        "keys": digest(source.keys),
        "labels": digest(source.labels),
        "sizes": digest(source.size_of(index) for index in range(len(source))),
    }


def compare_fingerprint(recorded: Mapping[str, Any], source: Source) -> list[str]:
    """How a source differs from what `record` kept of another; empty where they are the same.

    Raises: ArtifactError: a record of another kind or of a newer version.
    """
    if recorded.get("kind") != KIND or recorded.get("version", 0) > VERSION:
        raise ArtifactError(
            "E303",
            f"the record of the data is {recorded.get('kind')!r} version {recorded.get('version')!r}",
            expected=f"{KIND!r}, version {VERSION} at most",
            hint="update torchkiln",
        )
    if recorded["fingerprint"] == source.fingerprint:
        return []
    now = record(source)
    differences = []
    if recorded["num_samples"] != now["num_samples"]:
        differences.append(f"{recorded['num_samples']:,} samples were recorded, {now['num_samples']:,} are here")
    differences += _class_differences(recorded["classes"], now["classes"])
    for split in sorted({*recorded["splits"], *now["splits"]}, key=str):
        before, after = recorded["splits"].get(split, 0), now["splits"].get(split, 0)
        if before != after:
            differences.append(f"the split {split!r} had {before:,} samples and has {after:,}")
    if not differences and recorded["keys"] != now["keys"]:
        differences.append("some names differ")
    if recorded["labels"] != now["labels"] and recorded["keys"] == now["keys"]:
        differences.append("names are the same, but some labels differ")
    if recorded["sizes"] != now["sizes"] and recorded["keys"] == now["keys"]:
        differences.append("names are the same, but some files have another size")
    return differences or ["names, labels and sizes are the same, but modification times, checksums or groups differ"]


def _class_differences(before: Sequence[str], after: Sequence[str]) -> list[str]:
    gone, new = sorted(set(before) - set(after)), sorted(set(after) - set(before))
    differences = [f"classes gone: {shown(gone)}"] if gone else []
    differences += [f"classes new: {shown(new)}"] if new else []
    if not differences and list(before) != list(after):
        differences.append("the classes stand in another order")
    return differences
