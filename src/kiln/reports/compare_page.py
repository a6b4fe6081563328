"""The page of a comparison: one HTML file with its pictures in it, to be opened anywhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2

from kiln.data.source import Source
from kiln.language import current, tr, word
from kiln.reports import compare_words as words
from kiln.reports.album import Album
from kiln.reports.comparison import ACCURACY, NONE, Comparison, Flip, Pair, RecipeComparison

TEMPLATE = "compare_page.html.jinja"
MOST_PICTURES = 24
"""Samples shown that changed in one direction; all are in flips.csv."""
MOST_CLASSES = 100


class Bar(NamedTuple):
    """An interval on a scale from -reach to reach, in percent of its width."""

    low: float
    value: float
    high: float
    side: str


class Row(NamedTuple):
    """A line of a table with a drawn interval."""

    name: str
    cells: tuple[str, ...]
    bar: Bar


class Shown(NamedTuple):
    """A flipped sample with its picture; empty where there is none."""

    flip: Flip
    image: str


class Flipped(NamedTuple):
    """The samples that changed in one direction, and the first of them."""

    title: str
    number: int
    shown: list[Shown]


class Section(NamedTuple):
    """All there is to say of one pair."""

    title: str
    verdict: str
    headline: str
    lines: tuple[str, ...]
    columns: tuple[str, ...]
    metrics: list[Row]
    classes: list[Row]
    more_classes: int
    flipped: list[Flipped]


def compare_page(found: Comparison, source: Source | None) -> str:
    """Write the page of models: self-contained, without scripts, light or dark as the reader's system is.

    Args:
        found: what was found.
        source: where the pictures come from; without one there are none.
    """
    album = Album(source)
    models = [
        (
            model.name,
            words.share(model.metrics[ACCURACY]),
            words.size(model.bytes_on_disk),
            words.count(model.num_parameters),
            words.count(model.images_per_second),
            model.path,
        )
        for model in found.models
    ]
    header = (tr("model"), tr("accuracy"), tr("file"), tr("parameters"), tr("images/s"), tr("path"))
    facts = tr("{n} samples of {split}, the same for all models", n=f"{found.n:,}", split=word(found.split))
    sections = [_section(found, pair, album) for pair in found.pairs]
    return _rendered(header, models, facts, sections, found.notes, several=len(found.pairs) > 1)


def recipes_page(found: RecipeComparison) -> str:
    """Write the page of recipes; as `compare_page`."""
    models = [
        (
            recipe.name,
            words.share(words.mean(recipe.metrics[ACCURACY])),
            words.share(min(recipe.metrics[ACCURACY])),
            words.share(max(recipe.metrics[ACCURACY])),
            ", ".join(map(str, recipe.seeds)),
            ", ".join(recipe.runs),
        )
        for recipe in found.recipes
    ]
    header = (tr("recipe"), tr("mean accuracy"), tr("lowest"), tr("highest"), tr("seeds"), tr("path"))
    sections = []
    for pair in found.pairs:
        rows = [
            Row(
                word(name),
                (words.change(name, row), words.change(name, pair.by_seed[name]) if name in pair.by_seed else ""),
                _bar(row.value, row.low, row.high, _reach([(row.low, row.high)]), ""),
            )
            for name, row in pair.metrics.items()
        ]
        what = words.settings(pair.differs) or tr("nothing but the data or their order")
        differs = tr("what differs: {settings}", settings=what)
        headline = words.recipe_headline(found, pair)
        title = f"{pair.second} - {pair.first}"
        columns = (tr("metric"), title, tr("by seed"))
        sections.append(Section(title, pair.verdict, headline, (differs,), columns, rows, [], 0, []))
    facts = tr("measured on {split}; the unit is a training, not a sample", split=word(found.split))
    return _rendered(header, models, facts, sections, found.notes, several=len(found.pairs) > 1)


def _rendered(
    header: Sequence[str],
    models: Sequence[Sequence[str]],
    facts: str,
    sections: Sequence[Section],
    notes: Sequence[str],
    *,
    several: bool,
) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(
        t=tr, language=current(), header=header, models=models, facts=facts, sections=sections, notes=notes,
        several=several, num_pairs=len(sections),
    )  # fmt: skip


def _section(found: Comparison, pair: Pair, album: Album) -> Section:
    shown = sorted(pair.classes, key=lambda row: row.value)
    if len(shown) > MOST_CLASSES:
        shown = sorted(sorted(shown, key=lambda row: row.p)[:MOST_CLASSES], key=lambda row: row.value)
    reach = _reach([(row.low, row.high) for row in shown])
    classes = [
        Row(
            found.classes[row.index],
            (f"{row.support:,}", words.share(row.first), words.share(row.second),
             words.points(row.value, row.low, row.high), words.chance(row.p).removeprefix("= ")),
            _bar(row.value, row.low, row.high, reach, _side(row.value, row.p < 0.05)),
        )
        for row in shown
    ]  # fmt: skip
    accuracy = pair.accuracy
    first, second = ({model.name: model for model in found.models}[name] for name in (pair.first, pair.second))
    everything = Row(
        word(ACCURACY),
        (words.share(first.metrics[ACCURACY]), words.share(second.metrics[ACCURACY]),
         words.points(accuracy.value, accuracy.low, accuracy.high)),
        _bar(accuracy.value, accuracy.low, accuracy.high, _reach([(accuracy.low, accuracy.high)]),
             _side(accuracy.value, pair.p < 0.05)),
    )  # fmt: skip
    metrics = [
        Row(
            word(name),
            (words.metric(name, row.first), words.metric(name, row.second), words.change(name, row)),
            _bar(
                row.value, row.low, row.high, _reach([(row.low, row.high)]),
                _side(row.value if row.higher_is_better else -row.value, not row.low <= 0 <= row.high),
            ),
        )
        for name, row in pair.metrics.items()
    ]  # fmt: skip
    lines = [words.reach(found, pair)] if pair.verdict == NONE else []
    lines.append(words.flipped(pair))
    lines += [words.speed_line(pair, pair.speed)] if pair.speed is not None else []
    return Section(
        title=f"{pair.second} - {pair.first}",
        verdict=pair.verdict,
        headline=words.headline(found, pair),
        lines=tuple(lines),
        columns=(tr("metric"), pair.first, pair.second, tr("difference")),
        metrics=[everything, *metrics],
        classes=classes,
        more_classes=len(pair.classes) - len(shown),
        flipped=[_flipped(pair, album, gained=gained) for gained in (True, False)],
    )


def _flipped(pair: Pair, album: Album, *, gained: bool) -> Flipped:
    flips = [flip for flip in pair.flips if flip.gained == gained]
    title = tr("from wrong to right") if gained else tr("from right to wrong")
    seen: Counter[str] = Counter()
    turns = []  # the first of each class come first, then the second of each
    for flip in flips:
        turns.append(seen[flip.label])
        seen[flip.label] += 1
    order = sorted(range(len(flips)), key=turns.__getitem__)[:MOST_PICTURES]
    shown = [Shown(flips[index], album.image(flips[index].key)) for index in order]
    return Flipped(title, len(flips), shown)


def _reach(intervals: Sequence[tuple[float, float]]) -> float:
    return max((abs(end) for interval in intervals for end in interval), default=0.0) or 1.0


def _bar(value: float, low: float, high: float, reach: float, side: str) -> Bar:
    def place(number: float) -> float:
        return 50 + 48 * number / reach

    return Bar(place(low), place(value), place(high), side)


def _side(value: float, shown: bool) -> str:
    if not shown:
        return ""
    return "better" if value > 0 else "worse"
