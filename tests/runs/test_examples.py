"""Every example runs as its own first lines say, and does what it promises."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"
TUTORIALS = (
    *("accumulation", "cifar_cnn", "custom_transform", "dice_loss", "early_stopping", "frozen_batchnorm"),
    *("mixed_precision", "regression", "replace_head", "smoothed_cross_entropy", "two_rates", "warmup_cosine"),
)


def example(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_tested_and_says_how_to_run_it():
    names = {path.stem for path in EXAMPLES.glob("[a-z]*.py")}
    assert names == {"plain_loop", "train_and_predict", *TUTORIALS}
    for name in names:
        assert f"\n    python examples/{name}.py" in (EXAMPLES / f"{name}.py").read_text()
        assert f"]({name}.py)" in (EXAMPLES / "README.md").read_text()


@pytest.mark.parametrize("name", TUTORIALS)
def test_a_tutorials_subject_is_short_and_says_what_tutorials_get_wrong(name):
    text = (EXAMPLES / f"{name}.py").read_text()
    tree = ast.parse(text)
    about = ast.get_docstring(tree)
    assert "\nTutorials " in about
    assert "Here " in about
    main = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main")
    lines = [line for line in text.splitlines()[main.lineno : main.end_lineno] if line.strip()]
    assert len(lines) <= 30
    assert len(text.splitlines()) <= 80


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


def said(capsys):
    """The one line that an example prints."""
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_dice_finds_discs_also_where_there_are_none(capsys):
    assert example("dice_loss").main() > 0.75
    assert said(capsys).startswith("soft Dice of 64 held-out images 0.")


def test_smoothed_cross_entropy(capsys):
    loss, accuracy = example("smoothed_cross_entropy").main()
    assert loss < 0.4
    assert accuracy > 0.9
    assert "of 397" in said(capsys)


def test_a_replaced_head_on_a_frozen_backbone(capsys):
    assert example("replace_head").main() > 0.8
    assert said(capsys).startswith("2,565 of 2,949 trained")


def test_batchnorm_frozen_at_batches_of_two(capsys):
    accuracies = example("frozen_batchnorm").main()
    assert accuracies["frozen"] > 0.8
    assert "statistics frozen 8" in said(capsys)


def test_two_rates(capsys):
    assert example("two_rates").main() == {"body": 1e-3, "body, no decay": 1e-3, "all": 1e-2, "all, no decay": 1e-2}
    assert float(said(capsys).rpartition(" ")[2]) < 0.3


def test_warmup_and_cosine(capsys):
    rates = example("warmup_cosine").main(peak=1e-2)
    assert rates[0] > 0
    assert rates.index(max(rates)) == 22  # 10% of 232 steps, and no jump
    assert max(rates) == pytest.approx(1e-2)
    assert max(abs(b - a) for a, b in pairwise(rates)) <= 1e-2 / 23 + 1e-12
    assert rates[-1] < 2e-4
    assert "over 232 steps" in said(capsys)


def test_mixed_precision(capsys):
    state = example("mixed_precision").main()
    assert all(p.dtype == torch.float32 for p in state.model.parameters())
    assert state.state()["parts"]["scaler"]["scale"] > 0
    assert float(said(capsys).partition("loss ")[2].partition(",")[0]) < 0.5


def test_accumulation(capsys):
    assert 0 < example("accumulation").main() < 2e-6
    assert said(capsys).startswith("after 87 steps of 64, whole or 22 + 22 + 20")


def test_early_stopping_goes_back_to_the_best(capsys):
    module = example("early_stopping")
    model, losses = torch.nn.Linear(1, 1), iter([3.0, 1.0, 2.0, 2.0, 2.0])

    def epoch():
        with torch.no_grad():
            model.weight += 1

    first = model.weight.item()
    tracker = module.train_until_no_better(model, epoch, lambda: next(losses), patience=3)
    assert (tracker.best, tracker.best_step) == (1.0, 2)
    assert model.weight.item() == first + 2
    assert module.main().best < 0.3
    assert said(capsys).startswith("best epoch ")


QUICK = {"epochs": 2, "workers": 0}


def test_the_cnn_of_cifar_on_digits_and_on_its_own_format(tmp_path, capsys):
    run = example("cifar_cnn").main(output=str(tmp_path / "runs"), **QUICK)
    assert run.summary()["metrics"]["test"]["accuracy"]["value"] > 0.6
    assert capsys.readouterr().out.splitlines()[-1].startswith("test accuracy ")
    rng = np.random.default_rng(0)
    for name, num in {"data_batch_1.bin": 60, "test_batch.bin": 20}.items():
        records = rng.integers(0, 256, (num, 3073), dtype=np.uint8)
        records[:, 0] = np.arange(num) % 10
        (tmp_path / "cifar").mkdir(exist_ok=True)
        (tmp_path / "cifar" / name).write_bytes(records.tobytes())
    run = example("cifar_cnn").main(str(tmp_path / "cifar"), output=str(tmp_path / "runs"), **QUICK)
    assert run.resolved["facts"]["samples"]["test"] == 20


def test_a_transform_of_ones_own_repeats(tmp_path, capsys):
    main = example("custom_transform").main
    runs = [main(output=str(tmp_path / name), train_fraction=0.3, **QUICK) for name in ("one", "two")]
    first, second = (hashlib.sha256(run.model_file.read_bytes()).hexdigest() for run in runs)
    assert first == second
    plain = main(output=str(tmp_path / "plain"), train_fraction=0.3, transform=None, **QUICK)
    assert plain.metrics()[0]["loss"] != runs[0].metrics()[0]["loss"]  # it had an effect
    assert "of 299" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.slow
def test_as_a_script(image_folder):
    arguments = [sys.executable, EXAMPLES / "plain_loop.py", image_folder]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.startswith("accuracy")
