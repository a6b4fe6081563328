"""`kiln compare`: is one model, or one recipe, better than another?"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from kiln.cli.app import BatchSize, Device, Json, Trust, Workers, run_command
from kiln.cli.terminal import note, say, say_json, table
from kiln.errors import UsageError
from kiln.language import tr, word
from kiln.names import VERBS, load_object

if TYPE_CHECKING:
    from kiln.reports.comparison import Comparison, Pair, RecipeComparison, RecipePair

GROUP = "--group"
MOST_CLASSES_SHOWN = 10
_BETWEEN = "\n"  # of what one --group holds, where the parser passes it on


def run(arguments: Sequence[str]) -> None:
    """Run the verb on its arguments."""
    run_command(compare, _gathered(arguments), verb="compare")


def compare(
    models: Annotated[
        list[str] | None,
        typer.Argument(help="Run folders, model files, .onnx; or folders of runs.", metavar="RUN_OR_MODEL..."),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Labelled images; without, each run's own.", metavar="DATA")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option("--split", help="train, val, test or all; by default test, or val without one.", metavar="NAME"),
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option(GROUP, help="The runs of one recipe, 3 seeds or more.", metavar="NAME RUN RUN RUN..."),
    ] = None,
    batch_size: BatchSize = None,
    workers: Workers = None,
    device: Device = "auto",
    trust: Trust = None,
    no_speed: Annotated[bool, typer.Option("--no-speed", help="Leave out speed and size.")] = False,
    output: Annotated[
        str | None, typer.Option("--output", help="Folder for compare.html and the tables.", metavar="FOLDER")
    ] = None,
    json: Json = False,
) -> None:
    """Tell whether a model is better than the first one, on the same samples.

    Each is compared with the first, with the 95 % interval of the difference and McNemar's test. Recipes are compared by
    their trainings, at least 3 seeds each: --group NAME RUN RUN RUN --group OTHER RUN RUN RUN, or two folders of runs.
    """
    found = load_object(VERBS["compare"])(
        *(models or ()), data=data, split=split, groups=_groups(group or ()), batch_size=batch_size, workers=workers,
        device=device, trust=tuple(trust or ()), speed=not no_speed, output=output,
    )  # fmt: skip
    for line in found.notes:
        note(line)
    if json:
        say_json({**found.to_dict(), "output": output})
        return
    if hasattr(found, "recipes"):
        _tell_recipes(found)
    else:
        _tell(found, speed=not no_speed)
    if output is not None:
        say(tr("page   {path}", path=os.path.join(output, "compare.html")))
        if not hasattr(found, "recipes"):
            say(tr("table  {path}", path=os.path.join(output, "flips.csv")))


def _gathered(arguments: Sequence[str]) -> list[str]:
    """Arguments in which a --group and all that follows it, up to the next flag, are one value."""
    rest, gathering = [], False
    for argument in arguments:
        if argument == GROUP:
            rest += [GROUP, ""]
            gathering = True
        elif gathering and not argument.startswith("-"):
            rest[-1] += argument if not rest[-1] else _BETWEEN + argument
        else:
            gathering = False
            rest.append(argument)
    return rest


def _groups(given: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for text in given:
        name, *runs = text.split(_BETWEEN)
        if not runs or name in found:
            what = f"{GROUP} {name}: {'the name is taken' if name in found else 'a group without runs'}"
            raise UsageError("E101", what, expected=f"{GROUP} NAME RUN RUN RUN")
        found[name] = runs
    return found


def _tell(found: Comparison, *, speed: bool) -> None:
    from kiln.reports import compare_words as words
    from kiln.reports.comparison import ACCURACY, NONE

    columns = [tr("model"), tr("accuracy"), tr("difference"), "p"]
    columns += [tr("file"), tr("parameters"), tr("images/s")] if speed else []
    rows = []
    for index, model in enumerate(found.models):
        pair = found.pairs[index - 1] if index else None
        against = ("", "") if pair is None else (_difference(pair), words.chance(pair.p).removeprefix("= "))
        sizes = (
            words.size(model.bytes_on_disk),
            words.count(model.num_parameters),
            words.count(model.images_per_second),
        )
        rows.append([model.name, words.share(model.metrics[ACCURACY]), *against, *(sizes if speed else ())])
    say(tr("split  {split}, {n:,} images in common", split=word(found.split), n=found.n))
    table(columns, rows)
    for pair in found.pairs:
        say()
        _tell_pair(found, pair)
    say()
    for pair in found.pairs:
        say(words.headline(found, pair))
        if pair.verdict == NONE:
            say(words.reach(found, pair))
    if len(found.pairs) > 1:
        say(tr("p values are corrected for {n} comparisons (Holm); intervals are not", n=len(found.pairs)))


def _tell_pair(found: Comparison, pair: Pair) -> None:
    from kiln.reports import compare_words as words

    if pair.metrics:
        table(
            (tr("metric"), pair.first, pair.second, tr("difference"), ""),
            [
                (word(name), words.metric(name, row.first), words.metric(name, row.second), words.change(name, row),
                 words.tendency(row))
                for name, row in pair.metrics.items()
            ],
        )  # fmt: skip
        say()
    most_changed = sorted(pair.classes, key=lambda row: (row.p, -abs(row.value)))[:MOST_CLASSES_SHOWN]
    table(
        (tr("class"), tr("samples"), tr("recall, first"), tr("recall, second"), tr("difference"), tr("p, corrected")),
        [
            (found.classes[row.index], row.support, words.share(row.first), words.share(row.second),
             words.points(row.value, row.low, row.high), words.chance(row.p).removeprefix("= "))
            for row in most_changed
        ],
    )  # fmt: skip
    if len(pair.classes) > len(most_changed):
        say(tr("... {n} further classes: --json or --output has them all", n=len(pair.classes) - len(most_changed)))
    say()
    say(words.flipped(pair))
    if pair.speed is not None:
        say(words.speed_line(pair, pair.speed))


def _tell_recipes(found: RecipeComparison) -> None:
    from kiln.reports import compare_words as words
    from kiln.reports.comparison import ACCURACY

    table(
        (tr("recipe"), tr("seeds"), tr("mean accuracy"), tr("lowest"), tr("highest")),
        [
            (recipe.name, ", ".join(map(str, recipe.seeds)), words.share(words.mean(recipe.metrics[ACCURACY])),
             words.share(min(recipe.metrics[ACCURACY])), words.share(max(recipe.metrics[ACCURACY])))
            for recipe in found.recipes
        ],
    )  # fmt: skip
    for pair in found.pairs:
        say()
        _tell_recipe_pair(pair)
    say()
    for pair in found.pairs:
        say(words.recipe_headline(found, pair))
    if len(found.pairs) > 1:
        say(tr("p values are corrected for {n} comparisons (Holm); intervals are not", n=len(found.pairs)))


def _tell_recipe_pair(pair: RecipePair) -> None:
    from kiln.reports import compare_words as words

    paired = [words.change(name, pair.by_seed[name]) if name in pair.by_seed else "-" for name in pair.metrics]
    rows = [[word(name), words.change(name, row)] for name, row in pair.metrics.items()]
    if pair.by_seed:
        rows = [[*row, by_seed] for row, by_seed in zip(rows, paired, strict=True)]
    columns = (tr("metric"), f"{pair.second} - {pair.first}", *([tr("by seed")] if pair.by_seed else []))
    table(columns, rows)
    say(
        tr(
            "what differs: {settings}",
            settings=words.settings(pair.differs) or tr("nothing but the data or their order"),
        )
    )


def _difference(pair: Pair) -> str:
    from kiln.reports import compare_words as words

    return words.points(pair.accuracy.value, pair.accuracy.low, pair.accuracy.high)
