"""The part of the check that costs next to nothing, because no image is decoded: it runs before every training."""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from kiln.data.checks.classes import FEW, class_findings, group_findings
from kiln.data.checks.findings import Finding, Place, by_severity
from kiln.data.storage import counted, shown
from kiln.errors import DataError

if TYPE_CHECKING:
    from kiln.data.source import Source
    from kiln.data.split import Split

MOST_BYTES = 1 << 30
"""Read at most; files of one size, such as uncompressed images, could be all there are."""
Fact = TypeVar("Fact", bound=Hashable)


def quick_check(
    source: Source, split: Split, classes: Sequence[str], members: Sequence[frozenset[str]]
) -> tuple[Finding, ...]:
    """What can be told of data without decoding a single image.

    Files are compared by size, and only those of one size by their content.

    Args:
        source: the samples.
        split: where they are.
        classes: all class names.
        members: the classes that each sample has.
    """
    sides = sides_of(split, len(source))
    labels = source.labels or ("",) * len(source)
    found = [*class_findings(members, sides, classes), *group_findings(source.keys, source.groups, sides)]
    groups, left_out = equal_files(source)
    if left_out:
        found.append(Finding("note", f"{left_out:,} files of equal sizes were not compared, which would take long"))
    for group in groups:
        places = [Place(sides[index], labels[index]) for index in group]
        codes = {
            "conflict": len({place.label for place in places}) > 1,
            "duplicate_across": len({place.split for place in places}) > 1,
        }
        code = next((code for code, holds in codes.items() if holds), "duplicate")
        found.append(Finding(code, f"{len(group)} exact copies", tuple(source.keys[index] for index in group)))
    return by_severity(found)


def quick_notes(findings: Sequence[Finding], *, where: str) -> list[str]:
    """The findings of a quick check in a line per kind, for the beginning of a training.

    Args:
        findings: of the check.
        where: the data, to name the command that looks closer.
    """
    notes = []
    for (code, split), found in _by_kind(findings).items():
        samples = list(dict.fromkeys(key for finding in found for key in finding.keys))
        classes = [finding.subject for finding in found]
        if code in _OF_FILES:
            notes.append(f"{counted(len(samples), 'file')} {_OF_FILES[code]}: {shown(samples, 4)}")
        elif code == "class_missing":
            notes.append(f"{counted(len(classes), 'class')} missing from {split or 'the data'}: {shown(classes)}")
        elif code == "class_small":
            notes.append(f"{counted(len(classes), 'class')} of fewer than {FEW} training images: {shown(classes)}")
        else:
            notes += [finding.detail for finding in found]
    if any(finding.keys for finding in findings):
        notes.append(f"to see them: kiln check {shlex.quote(where)} --output FOLDER")
    return notes


_OF_FILES = {
    "conflict": "have the same bytes under several labels",
    "duplicate_across": "are exact copies in several splits, which makes the numbers too good",
    "duplicate": "are exact copies within a split",
    "group_across": "belong to groups that lie in several splits",
}


def _by_kind(findings: Sequence[Finding]) -> dict[tuple[str, str], list[Finding]]:
    found: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        found.setdefault((finding.code, finding.split), []).append(finding)
    return found


def sides_of(split: Split, number: int) -> list[str]:
    """The name of the split of each sample."""
    sides = [""] * number
    for name, part in split.parts().items():
        for index in part.tolist():
            sides[index] = name
    return sides


def equal_files(source: Source, *, most_bytes: int = MOST_BYTES) -> tuple[list[list[int]], int]:
    """Groups of samples with the same bytes; empty files and items without a known size are in none.

    Args:
        source: the samples.
        most_bytes: to read; files of one size that would need more are not compared.
    Returns: the groups, and how many files were not compared.
    """
    identities = [entry.identity for entry in source._entries]

    def fact(index: int) -> tuple[int, str]:
        """The size, and in an archive the checksum, which is there already."""
        identity = identities[index]
        return source.size_of(index), identity if identity.startswith("crc32:") else ""

    groups = [group for group in _alike(range(len(source)), fact) if source.size_of(group[0]) > 0]
    groups.sort(key=lambda group: len(group) * source.size_of(group[0]))
    total, chosen = 0, []
    for group in groups:
        total += len(group) * source.size_of(group[0])
        if total > most_bytes:
            break
        chosen.append(group)
    members = [index for group in chosen for index in group]
    with ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1))) as pool:
        hashes = dict(zip(members, pool.map(lambda index: _hash(source, index), members), strict=True))
    found = [same for group in chosen for same in _alike(group, hashes.__getitem__) if hashes[same[0]]]
    return sorted(sorted(group) for group in found), sum(map(len, groups[len(chosen) :]))


def _alike(indices: Iterable[int], fact: Callable[[int], Fact]) -> list[list[int]]:
    """Those of the indices that share a fact with another one."""
    groups: dict[Fact, list[int]] = {}
    for index in indices:
        groups.setdefault(fact(index), []).append(index)
    return [group for group in groups.values() if len(group) > 1]


def _hash(source: Source, index: int) -> bytes:
    """Of the bytes of a sample; empty where it cannot be read, which the check of headers tells."""
    try:
        data = source.read(index)
    except DataError:
        return b""
    return hashlib.blake2b(data if isinstance(data, bytes) else np.asarray(data).tobytes(), digest_size=16).digest()
