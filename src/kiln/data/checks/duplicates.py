"""Copies of one picture: exact, and near; inside a split, across splits, and under several labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kiln import pixels
from kiln.data.checks import aligned, similar
from kiln.data.checks.backdrops import alike_backdrops, backdrops_of
from kiln.data.checks.confirm import Pictures, confirm_backdrops, confirm_copies
from kiln.data.checks.findings import DROP, KEEP, Finding, Place
from kiln.data.checks.grouping import joined
from kiln.data.checks.looks import Looks
from kiln.data.prefetch import prefetched
from kiln.data.samples import SPLITS

if TYPE_CHECKING:
    from kiln.data.source import Source

EMPTY_LEVELS = 3.0
"""Standard deviation of the grey levels below which a picture shows nothing that could be compared."""
_LEAST_SCORE = 0.45
_MAYBE_EQUAL = 0.98
_BATCH = 64


@dataclass(frozen=True)
class Copies:
    """What was found to show one picture.

    Attributes:
        exact: groups of indices with the same bytes or the same pixels.
        near: (i, j, similarity) of near copies; of an exact group only its first member is compared.
        left_out: pairs that were not compared because too many pictures are alike.
    """

    exact: list[list[int]]
    near: list[tuple[int, int, float]]
    left_out: int


def empty_pictures(looks: Looks) -> NDArray[np.bool_]:
    """(N,) which samples are of nearly one colour; unreadable ones are not."""
    empty = np.array([thumb.std() < EMPTY_LEVELS for thumb in looks.thumbs], bool)
    empty[list(looks.errors)] = False
    return empty


def find_copies(
    source: Source, looks: Looks, *, pictures: Pictures, workers: int, tell: Callable[[str], None] | None = None
) -> Copies:
    """Find exact and near copies.

    Empty pictures are copies only if their bytes are the same.

    Args:
        source: the samples.
        looks: at all of them.
        pictures: of the source.
        workers: threads.
        tell: called with what is being done.
    """
    empty = empty_pictures(looks)
    exact = exact_copies(looks, empty, lambda i, j: same_pixels(source, i, j))
    spare = {index for group in exact for index in group[1:]}
    compared = np.array(
        [i for i in range(len(source)) if i not in looks.errors and not empty[i] and i not in spare], np.int64
    )
    if tell is not None:
        tell(f"comparing {len(compared):,} pictures with each other")
    found = similar.candidates(looks.thumbs[compared], workers=workers)
    i, j = compared[found.i], compared[found.j]
    score, boxes = _align(looks.thumbs, i, j, np.array(similar.BOXES, np.float32)[found.box], workers)
    likely = np.flatnonzero(score >= _LEAST_SCORE)
    if tell is not None and len(likely):
        tell(f"looking closely at {len(likely):,} pairs")
    verdicts = confirm_copies(pictures, i[likely], j[likely], boxes[likely], workers=workers)
    near: list[tuple[int, int, float]] = []
    equal = [(group[0], index) for group in exact for index in group[1:]]
    for place in np.flatnonzero(verdicts.same).tolist():
        pair = sorted((int(i[likely[place]]), int(j[likely[place]])))
        similarity = round(float(verdicts.similarity[place]), 4)
        # the same pixels may have decoded small in different ways, from a PNG and from a JPEG
        if similarity >= _MAYBE_EQUAL and same_pixels(source, pair[0], pair[1]):
            equal.append((pair[0], pair[1]))
        else:
            near.append((pair[0], pair[1], similarity))
    exact = sorted(sorted(group) for group in joined(equal))
    near.sort()
    return Copies(exact, near, found.left_out)


def _align(
    thumbs: NDArray[np.uint8], i: NDArray[np.int64], j: NDArray[np.int64], boxes: aligned.Floats, workers: int
) -> tuple[aligned.Floats, aligned.Floats]:
    def align(start: int) -> tuple[aligned.Floats, aligned.Floats]:
        some = slice(start, start + _BATCH)
        a, b = (thumbs[indices[some]].astype(np.float32) for indices in (i, j))
        return aligned.aligned_thumbs(a, b, boxes[some])

    parts = list(prefetched(align, range(0, len(i), _BATCH), workers=workers, ahead=2 * workers))
    scores = np.concatenate([np.zeros(0, np.float32), *(score for score, _ in parts)])
    return scores, np.concatenate([np.zeros((0, 4), np.float32), *(box for _, box in parts)])


def exact_copies(
    looks: Looks, empty: NDArray[np.bool_], have_same_pixels: Callable[[int, int], bool]
) -> list[list[int]]:
    """Groups of samples with the same bytes, or other bytes and the same pixels.

    Args:
        looks: at all samples.
        empty: (N,) samples whose pixels are not compared.
        have_same_pixels: asked where the small pictures are the same, because the large ones may differ.
    """
    pairs: list[tuple[int, int]] = []
    first_of: dict[bytes, int] = {}
    for index, (file_hash, pixel_hash) in enumerate(zip(looks.file_hashes, looks.pixel_hashes, strict=True)):
        if index in looks.errors:
            continue
        same_file = first_of.setdefault(b"file" + file_hash, index) if file_hash else index
        if same_file != index:
            pairs.append((same_file, index))
        elif not empty[index]:
            same = first_of.setdefault(b"pixels" + pixel_hash, index)
            if same != index and have_same_pixels(same, index):
                pairs.append((same, index))
    return sorted(sorted(group) for group in joined(pairs))


def same_pixels(source: Source, i: int, j: int) -> bool:
    """Whether two samples, decoded in full, are the same."""
    a, b = (source.read(index) for index in (i, j))
    first, second = (pixels.decode(data) if isinstance(data, bytes) else np.asarray(data) for data in (a, b))
    return np.array_equal(first, second)


def copy_findings(keys: Sequence[str], places: Sequence[Place], copies: Copies, *, own_splits: bool) -> list[Finding]:
    """What copies mean: a finding for each exact group and each near pair, with one decision per sample.

    Args:
        keys: of all samples.
        places: of all samples.
        copies: as found.
        own_splits: whether the splits are the data's own; those that training cuts can hold a group together.
    """
    pairs = [(group[0], index) for group in copies.exact for index in group[1:]]
    groups = sorted(sorted(group) for group in joined([*pairs, *((i, j) for i, j, _ in copies.near)]))
    number_of = {index: number for number, group in enumerate(groups, 1) for index in group}
    spare = {index for group in copies.exact for index in group[1:]}
    decisions: dict[int, str] = {}
    for group in groups:
        decisions |= _decide(group, places, spare, own_splits)

    def finding(near: str, indices: Sequence[int], similarity: float | None) -> Finding:
        labels = sorted({places[index].label for index in indices})
        splits = sorted({places[index].split for index in indices})
        what = "exact copies" if similarity is None else f"near copies (correlation {similarity:.3f})"
        code = near if len(splits) == 1 else f"{near}_across"
        said = f"{len(indices)} {what}" if similarity is None else what
        if len(labels) > 1:
            code, said = "conflict", f"{said} labelled {' and '.join(map(repr, labels))}"
        if len(splits) > 1:
            said = f"{said} in {' and '.join(splits)}"
        chosen = tuple(decisions[index] for index in indices)
        named = tuple(keys[index] for index in indices)
        return Finding(code, said, named, chosen, group=number_of[indices[0]], similarity=similarity)

    exact = [finding("duplicate", group, None) for group in copies.exact]
    return exact + [finding("near_duplicate", (i, j), similarity) for i, j, similarity in copies.near]


def _decide(group: Sequence[int], places: Sequence[Place], spare: set[int], own_splits: bool) -> dict[int, str]:
    """What to do with a group of copies.

    Of several labels the one that more than half of them have counts; without one nobody knows, and all go. Exact copies
    beyond the first go. Across the data's own splits the copies that are not in the split measured last go.
    """
    labels = Counter(places[index].label for index in group)
    label, votes = labels.most_common(1)[0]
    if 2 * votes <= len(group):
        return dict.fromkeys(group, DROP)
    chosen = {index: KEEP if places[index].label == label else f"relabel:{label}" for index in group}
    order = ("", *SPLITS)
    last = max(order.index(places[index].split) for index in group)
    if own_splits:
        chosen |= {index: DROP for index in group if order.index(places[index].split) < last}
    left = [index for index in group if chosen[index] != DROP]
    exact = [index for index in left if index in spare]
    if len(exact) == len(left):  # the first of the exact group went with its split
        exact = exact[1:]
    return chosen | dict.fromkeys(exact, DROP)


def find_backdrops(
    looks: Looks,
    splits: Sequence[str],
    *,
    copies: Copies,
    pictures: Pictures,
    workers: int,
) -> list[list[int]]:
    """Groups of samples of several splits that show different things before the same backdrop."""
    borders, textured = backdrops_of(looks.thumbs)
    textured[list(looks.errors)] = False
    some = np.flatnonzero(textured)
    number_of = {name: number for number, name in enumerate(dict.fromkeys(splits))}
    parts = np.array([number_of[splits[index]] for index in some.tolist()], np.int64)
    low, high = alike_backdrops(borders[some], parts, workers=workers)
    i, j = some[low], some[high]
    known = {(a, b) for a, b, _ in copies.near} | {
        (a, b) for group in copies.exact for a in group for b in group if a < b
    }
    new = np.array([pair not in known for pair in zip(i.tolist(), j.tolist(), strict=True)], bool)
    i, j = i[new], j[new]
    same = confirm_backdrops(pictures, i, j, workers=workers)
    return sorted(sorted(group) for group in joined(list(zip(i[same].tolist(), j[same].tolist(), strict=True))))
