"""Durations: what may be written, and what it comes to in steps."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiln.errors import UsageError
from kiln.recipe.duration import SPELLINGS, Duration


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("5ep", 5, "ep"),
        ("200steps", 200, "steps"),
        ("1 step", 1, "steps"),
        ("10%", 10, "%"),
        ("10m", 10, "m"),
        ("2h", 2, "h"),
        ("90s", 90, "s"),
        ("0.5 epochs", 0.5, "ep"),
        (".5ep", 0.5, "ep"),
        ("7", 7, "ep"),
        (7, 7, "ep"),
        (1.5, 1.5, "ep"),
        (" 3 EP ", 3, "ep"),
        ("15 minutes", 15, "m"),
    ],
)
def test_what_may_be_written(text, value, unit):
    assert Duration.parse(text) == Duration(value, unit)


@pytest.mark.parametrize(
    "text", ["", "ep", "five", "-3ep", "1e3ep", "5 weeks", "10%%", "5ep 3", None, True, [5], "nan"]
)
def test_what_is_refused_is_told_with_an_example(text):
    with pytest.raises(UsageError, match="5ep, 200steps, 10%, 10m"):
        Duration.parse(text)


def test_a_misspelt_unit_is_corrected():
    with pytest.raises(UsageError, match="did you mean: epochs"):
        Duration.parse("5epohcs")


@pytest.mark.parametrize(
    ("value", "unit", "message"),
    [
        (2.5, "steps", "whole number of steps"),
        (math.inf, "ep", "finite"),
        (-1, "ep", "at least 0"),
        (1, "years", "choices"),
    ],
)
def test_impossible_durations(value, unit, message):
    with pytest.raises(UsageError, match=message):
        Duration(value, unit)


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("3ep", 30),
        ("0.25ep", 3),
        ("0.01ep", 1),
        ("7steps", 7),
        ("10%", 20),
        ("0.1%", 1),
        ("0ep", 0),
        ("0%", 0),
        ("0steps", 0),
    ],
)
def test_steps(text, steps):
    assert Duration.parse(text).to_steps(steps_per_epoch=10, total_steps=200) == steps


def test_time_is_no_number_of_steps():
    with pytest.raises(UsageError, match=r"duration = 10m.*\n.*time on the clock is no number of steps"):
        Duration.parse("10m").to_steps(steps_per_epoch=10, total_steps=200)


def test_a_share_needs_a_whole():
    with pytest.raises(UsageError, match="share of nothing"):
        Duration.parse("10%").to_steps(steps_per_epoch=10)


def test_seconds():
    assert [Duration.parse(text).seconds for text in ("2h", "1.5m", "90s", "3ep", "5%")] == [7200, 90, 90, None, None]


@given(
    st.floats(0, 1e9, allow_nan=False).map(lambda x: round(x, 3)),
    st.sampled_from([u for u in SPELLINGS if u != "steps"]),
)
def test_text_reads_back(value, unit):
    duration = Duration(value, unit)
    assert Duration.parse(str(duration)) == duration


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_whole_epochs_are_exact(epochs, steps_per_epoch):
    assert Duration(epochs, "ep").to_steps(steps_per_epoch=steps_per_epoch) == epochs * steps_per_epoch
