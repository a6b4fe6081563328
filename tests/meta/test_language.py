"""Every text has its Chinese: the catalogues against the source, in both directions."""

from __future__ import annotations

import pytest
from source_tree import parse
from spoken import fields_of, parts_of, skeletons, spoken, texts_of

from kiln.language import CATALOGUES, catalogue, names, patterns, speaking, tr, word

SAME_IN_BOTH = {"F1", "ok"}
"""Entries whose Chinese is their English."""


MADE_OF_PARTS = {
    "{name} = {value}: expected {expected}",
    "{epochs:d} epoch of {steps}",
    "{epochs:d} epochs of {steps}",
}
"""Patterns of sentences that the source puts together from pieces; those of `counted` too."""
PARTS_OF_NAMES = {"macro", "micro", "weighted", "coverage_at_risk"}
"""From `f1_macro`, `coverage_at_risk_0.05` and their like."""
OF_THE_PARSER = {
    "Missing argument {name}.",
    "Missing option {name}.",
    "No such option: {name}",
    "Option {name} requires an argument.",
    "Got unexpected extra argument ({name})",
    "Got unexpected extra arguments ({names})",
    "Invalid value for {name}: {why}",
    "Input should be a valid integer, unable to parse string as an integer",
    "Input should be a valid number, unable to parse string as a number",
}


def untranslated(texts: dict[str, str], chinese: dict[str, str]) -> list[str]:
    """What is wrong with the translation of each text."""
    problems = []
    for text, where in texts.items():
        if text not in chinese:
            problems.append(f"{where}: no Chinese for {text!r}")
        elif fields_of(text) != fields_of(chinese[text]):
            problems.append(f"{where}: {text!r} and its Chinese have other fields")
    return problems


def test_every_text_has_its_chinese():
    texts = spoken()
    assert len(texts) >= 180
    assert untranslated(texts, catalogue("zh")) == []


def test_no_entry_is_unused():
    said = spoken()
    assert len(catalogue("zh")) >= 180
    assert [text for text in catalogue("zh") if text not in said] == []


def test_no_text_stands_in_two_catalogues():
    from importlib import import_module
    from importlib.util import find_spec

    parts = [f"kiln.language.zh_{part}" for part in CATALOGUES]
    tables = [import_module(part).ZH for part in parts if find_spec(part)]
    assert len(tables) >= 2
    texts = [text for table in tables for text in table]
    assert sorted({text for text in texts if texts.count(text) > 1}) == []


def test_no_entry_is_still_english():
    every = catalogue("zh") | names("zh") | patterns.sentences("zh")
    assert [text for text, chinese in every.items() if text == chinese and text not in SAME_IN_BOTH] == []


def test_every_pattern_is_a_sentence_of_the_source():
    sentences, known = patterns.sentences("zh"), skeletons()
    assert len(sentences) >= 100
    amounts = {text for text in sentences if text.startswith("{n:d} ")}
    assert len(amounts) >= 10
    elsewhere = MADE_OF_PARTS | OF_THE_PARSER | amounts
    assert [text for text in sentences if parts_of(text) not in known and text not in elsewhere] == []
    assert [text for text, chinese in sentences.items() if fields_of(text) != fields_of(chinese)] == []


def test_every_name_is_one_of_the_source():
    constants = {parts[0] for parts in skeletons() if len(parts) == 1}
    known = constants | {constant.replace("_", " ") for constant in constants}
    assert len(names("zh")) >= 60
    assert [name for name in names("zh") if name not in known | PARTS_OF_NAMES] == []


@pytest.mark.parametrize(
    ("source", "texts"),
    [
        ("tr('a {b}', b=1)", ["a {b}"]),
        ("line = 'a {b}'\ntr(line, b=1)", ["a {b}"]),
        ("tr('a' if x else 'b')", ["a", "b"]),
        ("partial(tr, 'a')", ["a"]),
        ("other('a')", []),
    ],
)
def test_what_is_said_is_found(source, texts):
    assert [text for _, text in texts_of(parse("kiln.x", source))] == texts


def test_the_check_of_translations_can_fail():
    assert "no Chinese" in untranslated({"a {b}": "x.py:1"}, {})[0]
    assert "other fields" in untranslated({"a {b}": "x.py:1"}, {"a {b}": "啊 {c}"})[0]
    assert untranslated({"a {b:,}": "x.py:1"}, {"a {b:,}": "啊 {b}"}) == []


def test_english_is_itself():
    assert tr("yes") == "yes"
    assert word("val") == "val"
    with speaking("zh"):
        assert (tr("yes"), word("val"), word("a class of mine")) == ("是", "验证集", "a class of mine")
    assert tr("yes") == "yes"
