"""Every example runs as its own first lines say, and does what it promises."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_tested_and_says_how_to_run_it():
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {"plain_loop", "regression", "train_and_predict"}
    for name in names:
        assert f"\n    python examples/{name}.py" in (EXAMPLES / f"{name}.py").read_text()


def test_the_plain_loop_learns(image_folder, capsys):
    assert example("plain_loop").main(str(image_folder), epochs=8) >= 0.75
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown] == ["accuracy", "balanced_accuracy", "f1_macro", "loss"]


def test_the_plain_loop_is_a_loop_that_can_be_read():
    body = [line for line in (EXAMPLES / "plain_loop.py").read_text().splitlines() if line.startswith("    ")]
    code = [line for line in body[1:] if not line.lstrip().startswith("#")]
    assert len(code) <= 45
    assert "jobs" not in (EXAMPLES / "plain_loop.py").read_text()


def test_the_plain_loop_gives_the_same_twice(image_folder, capsys):
    first = example("plain_loop").main(str(image_folder), epochs=1)
    shown = capsys.readouterr().out
    torch.rand(3)  # whatever else goes on in the process
    assert example("plain_loop").main(str(image_folder), epochs=1) == first
    assert capsys.readouterr().out == shown


def test_a_regression_is_fitted_by_a_loss_of_ones_own(capsys):
    model = example("regression").main()
    assert model.weight.flatten().tolist() == pytest.approx([2.0, -1.0, 0.5], abs=0.01)
    assert model.bias.item() == pytest.approx(0.3, abs=0.01)
    assert capsys.readouterr().out.startswith("epoch  10  squared error ")


def test_train_and_predict(image_folder, tmp_path, capsys):
    images = [str(image_folder / "bars/00.jpg"), str(tmp_path / "gone.jpg"), str(image_folder / "dots/01.png")]
    labels = example("train_and_predict").main(
        str(image_folder), *images, output=str(tmp_path), epochs=1, model="kiln/small_cnn", kwargs={"widths": [4, 8]}
    )
    assert len(labels) == 3
    assert labels[0] in ("bars", "checks", "dots", "rings")
    assert labels[1] == ""
    shown = capsys.readouterr().out
    assert f"{tmp_path / 'gone.jpg'} unreadable: No such file" in shown
    assert "learning rate 0.00141 because of: adamw, from scratch, batches of 32" in shown


@pytest.mark.slow
def test_as_a_script(image_folder):
    arguments = [sys.executable, EXAMPLES / "plain_loop.py", image_folder]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.startswith("accuracy")
