"""Classes and groups over the splits: what is missing, small, lopsided, or on both sides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from kiln.data.checks.findings import KEEP, Finding
from kiln.data.samples import SPLITS
from kiln.data.storage import counted

FEW = 10
"""Training images below which a class is called small."""
LOPSIDED = 10.0
"""Ratio of the largest to the smallest class in training from which on it is told."""


def class_findings(members: Sequence[frozenset[str]], splits: Sequence[str], classes: Sequence[str]) -> list[Finding]:
    """What the numbers of samples per class and split say.

    Args:
        members: the classes that each sample has; several for multilabel data.
        splits: of each sample; empty where it has none.
        classes: all class names, in order.
    """
    counts: dict[str, Counter[str]] = {}
    for names, split in zip(members, splits, strict=True):
        counts.setdefault(split, Counter()).update(names)
    present = [split for split in ("", *SPLITS) if split in counts]
    training = counts.get("train", counts.get("", Counter()))
    sizes = {name: training[name] for name in classes if training[name]}
    small = [name for name, size in sizes.items() if size < FEW]
    found = [finding for name in classes for finding in _missing(name, counts, present)]
    found += [
        Finding("class_small", f"{name!r} has {counted(sizes[name], 'image')} to train on", subject=name)
        for name in small
    ]
    most, least = max(sizes, key=sizes.__getitem__, default=""), min(sizes, key=sizes.__getitem__, default="")
    if sizes and sizes[most] >= LOPSIDED * sizes[least]:
        said = f"{most!r} has {sizes[most]:,} training images and {least!r} {sizes[least]:,}"
        found.append(Finding("imbalance", f"{said}: {sizes[most] / sizes[least]:.0f} times as many"))
    return found


def _missing(name: str, counts: dict[str, Counter[str]], present: Sequence[str]) -> list[Finding]:
    there = [split for split in present if counts[split][name]]
    if not there:
        return [Finding("class_missing", f"{name!r} has no image at all", subject=name)]
    only = f"it occurs in {' and '.join(there)} only"
    return [
        Finding("class_missing", f"{name!r} is missing from {split}: {only}", subject=name, split=split)
        for split in present
        if split not in there
    ]


def group_findings(keys: Sequence[str], groups: Sequence[str] | None, splits: Sequence[str]) -> list[Finding]:
    """Groups that lie in more than one split; the smaller part is to move to the larger.

    Args:
        keys: of all samples.
        groups: of all samples; empty where a sample has none.
        splits: of all samples.
    """
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups or ()):
        if group:
            members.setdefault(group, []).append(index)
    found = []
    for group, indices in sorted(members.items()):
        sizes = Counter(splits[index] for index in indices)
        if len(sizes) < 2:
            continue
        main = max(sizes, key=lambda split: (sizes[split], split == "train"))
        shares = ", ".join(f"{count} in {split}" for split, count in sorted(sizes.items()))
        decisions = tuple(KEEP if splits[index] == main else f"move:{main}" for index in indices)
        keys_of_group = tuple(keys[index] for index in indices)
        said = f"the group {group!r} has {shares}"
        found.append(Finding("group_across", said, keys_of_group, decisions, subject=group))
    return found
