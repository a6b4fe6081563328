"""`kiln train` as a stranger meets it: what it prints, what it leaves, and what it says when it cannot."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from albums import CLASSES, FLAGS, class_folders, command, split_folders, swatch, train, write
from PIL import Image

import kiln
from kiln.cli import main
from kiln.errors import DataError, UsageError
from kiln.redact import HIDDEN

LEFT = {
    "recipe.yaml", "resolved.yaml", "environment.json", "status.json", "lock", "metrics.jsonl", "summary.csv",
    "log.txt", "split.csv", "bad_files.csv", "predictions.csv", "model.safetensors", "best.json", "result.json",
    "checkpoints", "outputs.safetensors", "speed.json",
}  # fmt: skip


@pytest.fixture
def photos(tmp_path):
    return class_folders(tmp_path / "photos")


def test_what_is_printed_from_the_first_line_to_the_last(tmp_path, monkeypatch):
    split_folders(tmp_path / "my photos")
    monkeypatch.chdir(tmp_path)
    said = command("train", "my photos", *FLAGS, "--epochs", "2")
    assert (said.status, said.err) == (0, "")
    shown = re.sub(r"[\d,]+ img/s  \S+ left", "R img/s  T left", said.out)
    assert shown.splitlines() == [
        "data       my photos: 36 images (train 24, val 6, test 6)",
        "task       classification, 3 classes: 'blue', 'green', 'red'",
        "note       3 classes of fewer than 10 training images: 'blue', 'green', 'red'",
        "note       validation has 6 images: its numbers are uncertain; --folds 5 judges every image",
        "model      kiln/small_cnn, 1,191 parameters, 16 px, 3 channels",
        "decided    data.channels = 3: the images are in colour",
        "decided    optim.lr = 0.001: adamw, from scratch, batches of 16",
        "decided    training.precision = fp32: at 16 px, converting costs more than bf16 gains",
        "decided    training.drop_last = false: few batches: none is spared",
        "decided    run.device = cpu: the accelerator, if there is one, else the CPU",
        "training   2 epochs of 2 steps, 16 images a step",
        "exactness  E2: killed and resumed on this machine, the run ends the same, bit for bit",
        *shown.splitlines()[12:14],
        "measuring the best model on val, 6 images",
        shown.splitlines()[15],
        "measuring the best model on test, 6 images",
        shown.splitlines()[17],
        "run    runs/my photos-small_cnn",
        "model  runs/my photos-small_cnn/model.safetensors",
        "next   kiln evaluate 'runs/my photos-small_cnn' --split test",
        "       kiln predict 'runs/my photos-small_cnn' IMAGES",
        "       kiln export 'runs/my photos-small_cnn' --format onnx",
    ]
    epoch = (
        r"epoch    [12]/2  train loss \d\.\d{4}  val accuracy \d+\.\d % \(.* to .*\), loss .*  R img/s  T left(  best)?"
    )
    assert all(re.fullmatch(epoch, line) for line in shown.splitlines()[12:14])
    assert re.fullmatch(r"val    accuracy .* % \(.* to .*\), loss .* \(.* to .*\), n 6", shown.splitlines()[15])
    log = (tmp_path / "runs/my photos-small_cnn/log.txt").read_text().splitlines()
    assert log[:-1] == said.out.splitlines()[:18]
    assert re.fullmatch(
        r"memory     weights \S+ MiB, gradients \S+ MiB, optimizer \S+ MiB; process \S+ MiB at most", log[-1]
    )
    assert command("evaluate", "runs/my photos-small_cnn", "--split", "test").status == 0  # as it was printed


def test_what_is_left(photos, tmp_path):
    run = train(photos, tmp_path / "runs", epochs=3)
    assert set(os.listdir(run.path)) == LEFT
    assert run.status["state"] == "done"
    assert [line["event"] for line in run.metrics()].count("val") == 3
    assert (run.path / "summary.csv").read_text().count("\n") == 4
    for name in ("environment", "status", "best", "result", "speed"):
        content = json.loads((run.path / f"{name}.json").read_text())
        assert (content["kind"], content["version"]) == (f"kiln.{name}", 1)
    reasons, values = run.resolved["reasons"], run.resolved["values"]
    assert "auto" not in {value for value in values.values() if isinstance(value, str)} - {values["loss.name"]}
    assert {"optim.lr", "run.device", "data.channels", "training.monitor"} <= set(reasons)
    assert run.recipe["optim.lr"] == "auto"  # what was asked stays what was asked


def test_quiet_tells_the_outcome_alone(photos, tmp_path):
    said = command("train", photos, *FLAGS, "--output", tmp_path / "runs", "-q")
    assert [line.split()[0] for line in said.out.splitlines()] == ["val", "run", "model", "next", "kiln", "kiln"]
    assert said.err == ""


def test_json_is_one_line_of_stdout_and_people_read_stderr(photos, tmp_path):
    said = command("train", photos, *FLAGS, "--output", tmp_path / "runs", "--json")
    assert said.out.count("\n") == 1
    assert said.json["state"] == "done"
    assert said.json["metrics"]["val"]["accuracy"]["n"] > 0
    assert "epoch    1/1" in said.err
    quiet = command("train", photos, *FLAGS, "--output", tmp_path / "runs", "--json", "-q")
    assert quiet.err == ""
    assert quiet.json["metrics"] == said.json["metrics"]


# Data that are almost none.


def test_one_class_is_nothing_to_tell_apart(tmp_path):
    class_folders(tmp_path / "photos", names=("cat",))
    said = command("train", tmp_path / "photos", *FLAGS, "--output", tmp_path / "runs")
    assert said.status == 3
    assert said.err.splitlines()[:2] == ["error E204: the data hold one class, 'cat'", "  expected: at least 2"]
    assert not (tmp_path / "runs").exists()


def test_a_finished_run_is_not_done_again(tmp_path):
    data = split_folders(tmp_path / "photos")
    folder = tmp_path / "runs/run"
    command("train", data, *FLAGS, "--output", tmp_path / "runs", "--name", "run")

    def times():
        return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != "lock"}

    before = times()
    said = command("resume", folder)
    assert said.status == 0, said.err
    step = kiln.Run(folder).status["step"]
    assert said.out.splitlines()[0] == f"finished already at step {step}; --extend 10ep trains longer"
    assert "measuring" not in said.out
    assert times() == before
    (folder / "model.safetensors").unlink()  # what is missing is made again
    assert "finished already" not in command("resume", folder).out
    assert (folder / "model.safetensors").is_file()


@pytest.mark.parametrize(("num_val", "said_so"), [(48, True), (50, False)])
def test_few_images_to_validate_on_are_said_to_be_few(tmp_path, num_val, said_so):
    data = tmp_path / "photos"
    class_folders(data / "train", num=24)
    class_folders(data / "val", num=num_val, first=24)
    said = command("train", data, *FLAGS, "--output", tmp_path / "runs")
    assert said.status == 0, said.err
    told = f"note       validation has {num_val} images: its numbers are uncertain; --folds 5 judges every image\n"
    assert (told in said.out) == said_so


def test_two_images_train_and_cannot_validate(tmp_path):
    class_folders(tmp_path / "photos", num=2, names=("cat", "dog"))
    said = command("train", tmp_path / "photos", *FLAGS, "--output", tmp_path / "runs", "--name", "run")
    assert said.status == 0, said.err
    assert "note       2 classes too small to validate: 'cat', 'dog'" in said.out
    assert "note       nothing to validate on: the last weights are kept, and no best is chosen" in said.out
    assert "training   1 epoch of 1 step, 2 images a step" in said.out
    assert re.search(r"^epoch    1/1  train loss \d\.\d{4}  [\d,]+ img/s  0s left$", said.out, re.MULTILINE)
    assert "result nothing was set apart to measure on" in said.out
    run = kiln.Run(tmp_path / "runs/run")
    assert run.summary()["next"][0] == f"kiln evaluate {run.path} DATA"
    assert kiln.evaluate(run, split="train")["n"] == 2
    assert json.loads((run.path / "best.json").read_text())["monitor"] is None


def test_without_validation_the_last_weights_are_kept(photos, tmp_path):
    run = train(photos, tmp_path / "runs", val_fraction=0, epochs=3)
    assert run.resolved["facts"]["samples"] == {"train": 36, "val": 0, "test": 0}
    assert run.result["metrics"] == {}
    assert run.result["best_step"] == run.result["step"] == 9
    assert not (run.path / "predictions.csv").exists()
    assert len(kiln.predict(run, photos)) == 36
    with pytest.raises(DataError, match="has no val samples"):
        kiln.evaluate(run, split="val")


@pytest.mark.parametrize("settings", [{"patience": "1ep"}, {"monitor": "loss"}])
def test_without_validation_what_concerns_it_has_no_effect_and_is_refused(settings, photos, tmp_path):
    with pytest.raises(UsageError, match="without effect: there is nothing to validate on"):
        train(photos, tmp_path / "runs", val_fraction=0, **settings)
    assert os.listdir(tmp_path / "runs") == []


def test_a_class_of_one_image_trains_and_is_listed(photos, tmp_path):
    write(photos / "rare/1.png", Image.new("RGB", (20, 20)))
    said = command("train", photos, *FLAGS, "--output", tmp_path / "runs", "--name", "run")
    assert said.status == 0, said.err
    assert "note       1 class too small to validate: 'rare'" in said.out
    assert "rare/1.png,train,rare" in (tmp_path / "runs/run/split.csv").read_text()
    assert kiln.Run(tmp_path / "runs/run").resolved["facts"]["classes"] == sorted([*CLASSES, "rare"])


def test_a_batch_of_more_than_all(photos, tmp_path):
    said = command("train", photos, *FLAGS, "-b", "1000", "--output", tmp_path / "runs")
    assert said.status == 0, said.err
    assert "training   1 epoch of 1 step, 30 images a step" in said.out
    flags = ("-b", "1000", "--set", "training.drop_last=true", "--output", tmp_path / "none")
    said = command("train", photos, *FLAGS, *flags)
    assert said.status == 2
    assert "training.batch_size = 1000 is more than the 30 training samples, and drop_last is on" in said.err
    assert os.listdir(tmp_path / "none") == []


def test_the_test_split_is_cut_only_when_asked_for(photos, tmp_path):
    assert train(photos, tmp_path / "runs").resolved["facts"]["samples"]["test"] == 0
    assert train(photos, tmp_path / "runs", test_fraction=0.3).resolved["facts"]["samples"]["test"] > 3
    split_folders(tmp_path / "split")
    with pytest.raises(UsageError, match="the data has a test split"):
        train(tmp_path / "split", tmp_path / "runs", test_fraction=0.3)


def test_new_images_move_no_old_one_between_splits(tmp_path):
    def sides(folder):
        rows = (folder / "split.csv").read_text().splitlines()[2:]
        return {key: split for key, split, _ in (row.split(",") for row in rows)}

    photos = class_folders(tmp_path / "photos", num=45)
    first = train(photos, tmp_path / "runs")
    assert not any("changed sides" in note for note in first.resolved["notes"])
    before = sides(first.path)
    class_folders(photos, num=15, first=45)
    after = sides(train(photos, tmp_path / "runs").path)
    assert len(after) == 60
    assert {key: after[key] for key in before} == before


# Words that cannot be meant.


@pytest.mark.parametrize(
    ("arguments", "status", "messages"),
    [
        (["photoz"], 3, ["error E201: there is no photoz", "  next: did you mean photos?"]),
        ([], 2, ["error E103: no data: nothing to train on", "  next: kiln train photos/"]),
        (["photos", "--modle", "x"], 2, ["error E101: unknown flag --modle: did you mean --model?"]),
        (["photos", "--set", "optim.lrr=1"], 2, ["error E101: ", "did you mean: optim.lr"]),
        (["photos", "--set", "foo.bar=1"], 2, ["unknown recipe field 'foo.bar'", "choices: data, model"]),
        (
            ["photos", "--epochs", "zero", "--lr", "-3"],
            2,
            ["error E102: 2 problems in the recipe", "optim.lr = -3", "training.epochs = 'zero'", "10ep"],
        ),
        (["photos", "--model", "resnet81"], 2, ["error E108: unknown model 'resnet81'", "did you mean: resnet18"]),
        (["photos", "--opt", "adamv"], 2, ["error E108: unknown optimizer 'adamv'", "did you mean: adam"]),
        (["photos", "--sched", "cosin"], 2, ["error E108: unknown schedule 'cosin'", "did you mean: cosine"]),
        (["photos", "--loss", "crossentropy"], 2, ["unknown loss 'crossentropy'", "did you mean: cross_entropy"]),
        (["photos", "--task", "multilable"], 2, ["unknown task 'multilable'", "did you mean: multilabel"]),
        (["photos", "--monitor", "acuracy"], 2, ["training.monitor = 'acuracy'", "did you mean: accuracy"]),
        (["photos", "--device", "tpu"], 2, ["tpu"]),
        (["photos", "--precision", "fp64"], 2, ["training.precision = 'fp64'"]),
        (["photos", "--weights", "nowhere.safetensors"], 2, ["weights = 'nowhere.safetensors': no such file"]),
        (["photos", "--extend", "2ep"], 2, ["needs a run to go on with"]),
        (["photos", "--resume", "runs/none"], 2, ["there is no runs/none"]),
        (["photos", "--root", "photos"], 2, ["have no effect on photos"]),
        (["photos/red/02.png"], 3, ["photos/red/02.png is nothing that holds labelled images"]),
        (["photos/red/*.png"], 2, ["carries no labels"]),
        (["empty"], 3, ["error E201: no images in", "found: nothing"]),
        (["flat"], 3, ["but none in a class folder", "CLASS/image.jpg"]),
        (["notes.csv"], 3, ["error E2"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and value and "error" not in value[0] else None,
)
def test_what_cannot_be_is_said_with_a_way_on_and_leaves_no_folder(arguments, status, messages, photos, monkeypatch):
    monkeypatch.chdir(photos.parent)
    os.mkdir("empty")
    write(photos.parent / "flat/1.png", swatch(1))
    (photos.parent / "notes.csv").write_text("hello\n")
    said = command("train", *FLAGS, *arguments)
    assert said.status == status, said.err
    assert said.out == ""
    for message in messages:
        assert message in said.err
    assert not os.path.exists("runs") or os.listdir("runs") == []


def test_a_name_that_is_taken(photos, tmp_path):
    flags = ("--output", tmp_path / "runs", "--name", "run", "-q")
    assert command("train", photos, *FLAGS, *flags).status == 0
    said = command("train", photos, *FLAGS, *flags)
    assert said.status == 2
    assert "run holds a run already" in said.err
    assert "--resume auto" in said.err


def test_an_error_in_a_folder_of_the_users_own_removes_nothing_of_theirs(photos, tmp_path):
    (tmp_path / "runs/mine").mkdir(parents=True)
    (tmp_path / "runs/mine/notes.txt").write_text("dear diary")
    flags = ("--output", tmp_path / "runs", "--name", "mine", "--opt", "lambada")
    assert command("train", photos, *FLAGS, *flags).status == 2
    assert os.listdir(tmp_path / "runs/mine") == ["notes.txt"]


def test_a_failure_after_training_began_stays_in_the_folder(photos, tmp_path):
    flags = ("--lr", "1e30", "--opt", "sgd", "--epochs", "20", "--output", tmp_path / "runs", "--name", "run")
    said = command("train", photos, *FLAGS, *flags)
    assert said.status == 7
    code = re.match("error (E60[12]): ", said.err)[1]  # found in a step, or in what was validated after it
    run = kiln.Run(tmp_path / "runs/run")
    assert (run.status["state"], run.status["code"]) == ("failed", code)
    assert f"failed     {code}: " in (run.path / "log.txt").read_text()


def test_secrets_are_kept_out_of_the_record(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["kiln", "train", "--hub-token", "hf_abcdefghijklmnopqrst", "https://me:pw@x.org"])
    monkeypatch.setenv("SOME_API_KEY", "abcdefg1234")
    run = train(photos, tmp_path / "abcdefg1234")
    recorded = (run.path / "environment.json").read_text()
    assert json.loads(recorded)["command"] == ["kiln", "train", "--hub-token", HIDDEN, f"https://{HIDDEN}@x.org"]
    for path in (run.path / "environment.json", run.path / "log.txt"):
        assert not re.search("hf_abc|pw@|abcdefg1234", path.read_text())


# As a person sees it.


def on_a_terminal_of(coding, *arguments):
    """What the command writes to a stream of some encoding, as bytes."""
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding=coding)
    with contextlib.redirect_stdout(stream):
        assert main([str(argument) for argument in arguments]) == 0
        stream.flush()
        return written.getvalue()


def test_names_that_a_terminal_cannot_show_are_escaped(tmp_path):
    class_folders(tmp_path / "фото", names=("кошка", "狗🐕"))
    flags = ("--output", tmp_path / "runs", "--name", "run")
    said = on_a_terminal_of("ascii", "train", tmp_path / "фото", *FLAGS, *flags)
    assert rb"\u043a\u043e\u0448\u043a\u0430" in said
    shown = on_a_terminal_of("utf-8", "evaluate", tmp_path / "runs/run", "--split", "val").decode()
    assert "кошка" in shown
    for coding in ("ascii", "utf-8"):
        said = on_a_terminal_of(coding, "predict", tmp_path / "runs/run", tmp_path / "фото", "--json")
        assert {row["label"] for row in json.loads(said)["predictions"]} <= {"кошка", "狗🐕"}


def test_a_name_that_is_no_text_at_all(tmp_path):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/photos\xff")
    class_folders(Path(folder))
    said = on_a_terminal_of("utf-8", "train", folder, *FLAGS, "--output", tmp_path / "runs", "--name", "run")
    assert rb"photos\udcff: 36 images" in said
    assert rb"photos\udcff" in (tmp_path / "runs/run/log.txt").read_bytes()
    assert kiln.evaluate(tmp_path / "runs/run", split="val")["n"] == 6


def kiln_command(*arguments, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return [sys.executable, "-m", "kiln", *map(str, arguments)], {"env": environment, "timeout": 120, **options}


def test_as_a_process_of_its_own(photos, tmp_path):
    arguments, options = kiln_command("train", photos, *FLAGS, "--output", tmp_path / "runs", "--json")
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["run"] == str(tmp_path / "runs/photos-small_cnn")


@pytest.mark.slow
def test_on_a_terminal_a_live_line_comes_and_goes(photos, tmp_path):
    main, terminal = pty.openpty()
    flags = ("--epochs", "60", "--output", tmp_path / "runs")
    arguments, options = kiln_command("train", photos, *FLAGS, *flags)
    options.pop("timeout")
    process = subprocess.Popen(arguments, stdout=terminal, stderr=terminal, **options)
    os.close(terminal)
    shown = b""
    while True:
        try:
            part = os.read(main, 65536)
        except OSError:  # how Linux tells that the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(main)
    assert process.wait(60) == 0
    text = shown.decode()
    assert "█" in text
    assert re.search(r"\d+%  epoch \d+\.\d\d/60  loss \d\.\d{4}  lr \S+  [\d,]+ img/s  \d+s left", text)
    standing = [line.rpartition("\r\x1b[K")[2] for line in text.replace("\r\n", "\n").rstrip("\n").split("\n")]
    assert not any("░" in line for line in standing)
    assert standing[-1].startswith("       kiln export ")


@pytest.mark.slow
@pytest.mark.ddp
def test_two_processes_tell_the_outcome_once_and_keep_stdout_for_json(photos, tmp_path):
    flags = ("--processes", "2", "--output", tmp_path / "runs")
    arguments, options = kiln_command("train", photos, *FLAGS, *flags, "--name", "told")
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\nnext ") == done.stdout.count("\nval ") == done.stdout.count("\nepoch ") == 1
    arguments, options = kiln_command("train", photos, *FLAGS, *flags, "--json")
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["state"] == "done"
