"""`kiln schedule`: the curves that it tells are those of the schedules."""

import json
from pathlib import Path

import pytest
from PIL import Image

from kiln.cli import main
from kiln.names import SCHEDULES
from kiln.optim import schedules


def told(capfd, *arguments):
    assert main(["schedule", *arguments, "--json"]) == 0
    return json.loads(capfd.readouterr().out.splitlines()[-1])


def test_numbers_are_those_of_training(capfd):
    found = told(
        capfd, "cosine", "one_cycle", "--epochs", "3", "--steps-per-epoch", "20", "--lr", "0.02", "--warmup", "5steps"
    )
    rates, momenta = found["panels"]
    cosine = schedules.with_warmup(schedules.cosine, 60, warmup_steps=5, min_fraction=0.01)
    cycle = schedules.with_warmup(schedules.one_cycle, 60, warmup_steps=5)
    assert [curve["name"] for curve in rates["curves"]] == ["cosine", "one_cycle"]
    assert rates["curves"][0]["values"] == [pytest.approx(0.02 * cosine(step)) for step in range(60)]
    assert rates["curves"][1]["values"] == [pytest.approx(0.02 * cycle(step).lr) for step in range(60)]
    assert momenta["curves"][0]["values"] == [cycle(step).momentum for step in range(60)]


def test_settings_of_the_section(capfd):
    found = told(capfd, "step", "--steps", "50", "--set", "schedule.args.every=20steps", "--warmup", "0")
    assert found["steps"] == 50
    assert found["panels"][0]["curves"][0]["values"] == [pytest.approx(0.1 ** (step // 20)) for step in range(50)]


def test_what_a_person_sees(capfd, tmp_path):
    picture = tmp_path / "curve.png"
    assert main(["schedule", "cosine", "plateau(patience=2ep)", "--output", str(picture)]) == 0
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert "learning rate, as share of the peak: cosine" in lines
    assert any(line.split() == ["schedule", "first", "highest", "at", "step", "last"] for line in lines)
    assert any(line.split() == ["cosine", "0.01", "1", "100", "0.01"] for line in lines)
    assert lines[-1] == f"file   {picture}"
    assert "plateau(patience=2ep) is times 0.1 after 2 evaluations without a better metric" in err
    with Image.open(picture) as image:
        assert image.size == (1000, 560)


def test_without_a_name_all_are_listed(capfd):
    assert main(["schedule"]) == 0
    assert capfd.readouterr().out.split() == list(SCHEDULES)


def test_one_curve_for_each_group(capfd, tmp_path):
    own = Path(tmp_path) / "own.py"
    own.write_text("def a(step):\n    return 1.0\n\ndef b(step):\n    return 0.5\n")
    found = told(capfd, f"lambda(functions=[{own}:a, {own}:b])", "--steps", "4")
    curves = found["panels"][0]["curves"]
    assert [curve["name"][-7:] for curve in curves] == ["group 1", "group 2"]
    assert [curve["values"] for curve in curves] == [[1.0] * 4, [0.5] * 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cosin"], "unknown schedule 'cosin'\n  did you mean: cosine"),
        (["cosine", "--set", "optim.lr=1"], "--set optim.lr: this verb takes the section schedule only"),
        (["cosine", "--warmup", "2000steps"], "schedule.warmup = 2000steps lasts as long as training"),
        (["cosine", "--output", "curve.gif"], "a chart cannot be a .gif"),
    ],
)
def test_what_cannot_be(arguments, message, capfd):
    assert main(["schedule", *arguments]) == 2
    assert message in capfd.readouterr().err
