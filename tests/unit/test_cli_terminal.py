"""What the command prints: tables, percentages, JSON."""

import json
import os
import pty

import pytest

from kiln.cli.outcome import tell_outcome
from kiln.cli.terminal import say_json, table
from kiln.observe.wording import describe_metrics, percent

SUMMARY = {
    "run": "runs/one", "model": "runs/one/model.safetensors", "best_step": 30,
    "metrics": {
        "val": {"accuracy": {"value": 0.95, "low": 0.9, "high": 0.98, "n": 200},
                "loss": {"value": 0.2, "low": None, "high": None, "n": 200}},
        "test": {"accuracy": {"value": 0.972, "low": 0.958, "high": 0.982, "n": 1360}},
    },
    "next": ["kiln predict runs/one IMAGES", "kiln export runs/one"],
}  # fmt: skip


def test_a_plain_table_is_aligned_and_numbers_stand_right(capsys):
    table(("name", "n", "share"), [("a", 1234, 0.51239), ("long name", 5, None)])
    assert capsys.readouterr().out.splitlines() == [
        "name           n   share",
        "a          1,234  0.5124",
        "long name      5       -",
    ]


def test_a_terminal_gets_a_drawn_table_and_no_markup_is_read(monkeypatch):
    main, terminal = pty.openpty()
    with os.fdopen(terminal, "w") as screen:
        monkeypatch.setattr("sys.stdout", screen)
        table(("name", "n"), [("[red]x[/red]", 1)])
        screen.flush()
        shown = os.read(main, 4096).decode()
    os.close(main)
    assert "[red]x[/red]" in shown
    assert "─" in shown


def test_percent():
    assert percent(0.972, 0.958, 0.982) == "97.2 % (95.8 to 98.2)"
    assert percent(1.0) == "100.0 %"


def test_json_is_one_line_and_knows_no_nan(capsys):
    say_json({"a": float("nan"), "b": [float("inf"), 1.5], "c": {"d": "ü\n"}})
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert json.loads(out) == {"a": None, "b": [None, 1.5], "c": {"d": "ü\n"}}


def test_the_last_lines_say_what_where_and_what_next(capsys):
    tell_outcome(SUMMARY, json=False)
    assert capsys.readouterr().out.splitlines() == [
        "val    accuracy 95.0 % (90.0 to 98.0), loss 0.200, n 200",
        "test   accuracy 97.2 % (95.8 to 98.2), n 1,360",
        "run    runs/one",
        "model  runs/one/model.safetensors",
        "next   kiln predict runs/one IMAGES",
        "       kiln export runs/one",
    ]
    tell_outcome(SUMMARY, json=True)
    assert json.loads(capsys.readouterr().out) == SUMMARY


@pytest.mark.parametrize(
    ("metrics", "text"), [({}, ""), ({"loss": 0.5}, "loss 0.500"), ({"accuracy": 0.5}, "accuracy 50.0 %")]
)
def test_bare_numbers(metrics, text):
    assert describe_metrics(metrics) == text
