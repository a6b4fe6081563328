"""What a run writes down and says as it goes: the same lines in an undisturbed and in a resumed run."""

from __future__ import annotations

import csv
import io
import json

import pytest
import torch

from kiln.events import EpochDone, Evaluated, Saved, Skipped, StepDone, Stopped
from kiln.metrics import Metric
from kiln.observe.progress import Progress, duration, make
from kiln.observe.records import MetricsLog, write_summary
from kiln.redact import HIDDEN


def evaluated(step, accuracy, *, is_best=False):
    metrics = {
        "accuracy": Metric(accuracy, accuracy - 0.1, accuracy + 0.1, 40),
        "loss": Metric(1.5, None, None, 40, False),
    }
    return Evaluated(step, step // 4, "val", metrics, is_best)


def events(first, last):
    """What the loop tells of steps first + 1 to last: four steps an epoch, an evaluation after each."""
    for step in range(first + 1, last + 1):
        yield StepDone(step, (step - 1) // 4, torch.tensor(2.0 / step), 0.01, 8)
        if step == 6:
            yield Skipped(6, "the loss or a gradient is not finite", (3, 5))
        if step % 4 == 0:
            yield EpochDone(step // 4, step, 1.0 / step)
            yield evaluated(step, step / 20, is_best=step < 12)


def lines(folder):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(line.pop("seconds") >= 0 for line in found)
    return found


def record(folder, first, last, state=None, *, every_steps=2):
    log = MetricsLog(folder, every_steps=every_steps)
    if state is not None:
        log.load_state(state)
    for event in events(first, last):
        log(event)
    return log


def test_events_become_lines(tmp_path):
    record(tmp_path, 0, 8).close()
    assert lines(tmp_path)[:5] == [
        {"event": "step", "step": 2, "epoch": 0, "loss": 1.0, "lr": 0.01},
        {"event": "step", "step": 4, "epoch": 0, "loss": 0.5, "lr": 0.01},
        {"event": "epoch", "step": 4, "epoch": 1, "train_loss": 0.25},
        {
            "event": "val", "step": 4, "epoch": 1, "best": True,
            "metrics": {
                "accuracy": {"value": 0.2, "low": 0.1, "high": pytest.approx(0.3), "n": 40},
                "loss": {"value": 1.5, "low": None, "high": None, "n": 40},
            },
        },
        {"event": "step", "step": 6, "epoch": 1, "loss": pytest.approx(1 / 3), "lr": 0.01},
    ]  # fmt: skip
    assert lines(tmp_path)[5] == {
        "event": "skipped", "step": 6, "reason": "the loss or a gradient is not finite", "indices": [3, 5],
    }  # fmt: skip


@pytest.mark.parametrize("cut", [1, 4, 6, 9])
@pytest.mark.parametrize("overrun", [0, 3])
def test_a_resume_cuts_off_what_the_checkpoint_did_not_know(tmp_path, cut, overrun):
    (tmp_path / "whole").mkdir()
    record(tmp_path / "whole", 0, 12).close()

    killed = record(tmp_path, 0, cut)
    state = killed.state()
    for event in events(cut, cut + overrun):  # after the last checkpoint, before the kill
        killed(event)
    killed.close()  # what the system had taken by then
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"event": "st')  # a line that was not finished
    record(tmp_path, cut, 12, state).close()
    assert lines(tmp_path) == lines(tmp_path / "whole")


def test_a_checkpoint_counts_only_lines_that_are_safe_on_disk(tmp_path):
    log = record(tmp_path, 0, 8)
    assert (tmp_path / "metrics.jsonl").stat().st_size == 0  # nothing is written step by step
    assert log.state() == {"bytes": (tmp_path / "metrics.jsonl").stat().st_size}
    log.close()


def test_a_log_that_is_gone_is_not_filled_with_nothing(tmp_path):
    record(tmp_path, 0, 4).close()
    record(tmp_path / ".", 4, 8, {"bytes": 10_000}).close()
    assert [line["step"] for line in lines(tmp_path) if line["event"] == "val"] == [4, 8]


def test_the_summary_has_a_row_for_each_evaluation(tmp_path):
    record(tmp_path, 0, 12).close()
    write_summary(tmp_path, lines(tmp_path))
    with (tmp_path / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["step", "epoch", "train_loss", "val_accuracy", "val_loss", "best"]
    assert [(row["step"], row["train_loss"], row["val_accuracy"], row["best"]) for row in rows] == [
        ("4", "0.25", "0.2", "1"),
        ("8", "0.125", "0.4", "1"),
        ("12", str(1 / 12), "0.6", "0"),
    ]


def test_no_evaluation_no_summary(tmp_path):
    write_summary(tmp_path, [])
    assert list(tmp_path.iterdir()) == []


# Progress.


class Terminal(io.StringIO):
    def isatty(self):
        return True


class AsciiTerminal(io.TextIOWrapper):
    def isatty(self):
        return True


def tell(stream, *, quiet=False, last=8):
    progress = Progress(stream, quiet=quiet)
    progress.start(total_steps=12, steps_per_epoch=4, first_step=0)
    for event in (*events(0, last), Saved(last, None), Stopped(last, 2, "early_stop")):
        progress(event)
    return progress


def test_plain_lines_where_there_is_no_terminal():
    stream = io.StringIO()
    tell(stream)
    first, skipped, second, stopped = stream.getvalue().splitlines()
    assert first.startswith("epoch    1/3  train loss 0.2500  val accuracy 20.0 % (10.0 to 30.0), loss 1.500  ")
    assert first.endswith("  best")
    assert skipped == "step 6 skipped: the loss or a gradient is not finite (samples 3, 5)"
    assert second.startswith("epoch    2/3  train loss 0.1250")
    assert stopped == "stopped early at step 8: no better validation for as long as patience allows"
    assert "\r" not in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_an_epoch_without_an_evaluation_is_told_too_and_a_loss_once():
    stream = io.StringIO()
    progress = Progress(stream)
    progress.start(total_steps=12, steps_per_epoch=4, first_step=0)
    for event in (EpochDone(1, 4, 0.25), StepDone(5, 1, 1.0, 0.1, 8), evaluated(6, 0.5), EpochDone(2, 8, 0.125)):
        progress(event)
    progress(Stopped(8, 2, "done"))
    first, middle, last = stream.getvalue().splitlines()
    assert first.startswith("epoch    1/3  train loss 0.2500  ")
    assert middle.startswith("epoch  1.5/3  val accuracy")
    assert "train loss" not in middle  # that of the epoch before would be read as this moment's
    assert last.startswith("epoch    2/3  train loss 0.1250  ")


def test_a_terminal_that_cannot_draw_blocks_gets_letters():
    written = io.BytesIO()
    stream = AsciiTerminal(written, encoding="ascii")
    tell(stream).stop()
    stream.flush()
    assert b"##" in written.getvalue()
    assert b"epoch 0.25/3" in written.getvalue()


def test_secrets_stay_out_of_the_log_file(tmp_path):
    stream = io.StringIO()
    progress = Progress(stream)
    progress.open_log(tmp_path)
    progress.say("weights hf_abcdefghijklmnopqrstuv loaded")
    progress.note_down("token=abcdefgh12345")
    progress.stop()
    assert (tmp_path / "log.txt").read_text() == f"weights {HIDDEN} loaded\ntoken={HIDDEN}\n"
    assert stream.getvalue() == "weights hf_abcdefghijklmnopqrstuv loaded\n"


def test_a_live_line_on_a_terminal_that_is_cleared_in_the_end():
    stream = Terminal()
    tell(stream).stop()
    shown = stream.getvalue()
    assert "epoch 0.25/3" in shown
    assert "loss 2.0000" in shown
    assert "img/s" in shown
    assert "░" not in shown.rpartition("\r\x1b[K")[2]  # nothing of the live line is left standing
    assert shown.endswith("patience allows\n")


class Unread:
    """A loss on a device: reading it would wait."""

    def __float__(self):
        raise AssertionError("the loss was read")


def test_the_loss_is_read_only_when_it_is_shown():
    progress = Progress(io.StringIO())
    progress.start(total_steps=12, steps_per_epoch=4, first_step=0)
    progress(StepDone(1, 0, Unread(), 0.1, 8))
    with pytest.raises(AssertionError, match="was read"):
        Progress(Terminal())(StepDone(1, 0, Unread(), 0.1, 8))


def test_quiet_writes_only_the_log_and_the_log_has_what_was_said_before_it_was_opened(tmp_path):
    stream = io.StringIO()
    progress = Progress(stream, quiet=True)
    progress.say("before the folder was there")
    progress.open_log(tmp_path)
    progress.say("and after")
    progress.stop()
    assert stream.getvalue() == ""
    assert (tmp_path / "log.txt").read_text() == "before the folder was there\nand after\n"


def test_json_keeps_stdout_for_itself(capsys):
    make(json=True).say("to people")
    out, err = capsys.readouterr()
    assert (out, err) == ("", "to people\n")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0s"), (59.4, "59s"), (59.6, "1m00s"), (200, "3m20s"), (7500, "2h05m")]
)
def test_durations_are_written_for_people(seconds, text):
    assert duration(seconds) == text
