"""A head trained on kept features, by the real command: the same bytes cold, warm, killed, and nearly those without."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import kiln
from kiln.data import room
from kiln.data.feature_files import FeatureFiles
from kiln.jobs import show
from kiln.jobs.asked import asked_for
from kiln.observe.progress import make
from small_runs import HERE, Group, Trial, differing, metrics, outcome

HEAD = f"{HERE / 'watched_head.py'}:watched_head"
ON = ("--model", HEAD, "--set", "finetune.views=2", "--set", "finetune.cache_features=on", "--set", "loss.smoothing=0")
STAGED = (*ON, "--set", "finetune.mode=staged", "--set", "finetune.stages=[head at 5, all from 10steps]")
MODES = {"head": (*ON, "--set", "finetune.mode=head"), "staged": STAGED}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KILN_CACHE", str(tmp_path / "cache"))
    return room.root()


@pytest.fixture(scope="module")
def undisturbed(nursery, image_folder, tmp_path_factory):
    found = {}
    for mode, settings in MODES.items():
        found[mode] = Trial(nursery, image_folder, tmp_path_factory.mktemp(mode), *settings)
        found[mode].said = found[mode].go()
    return found


@pytest.mark.parametrize(
    ("mode", "cut"),
    [("head", 4), ("head", 9), ("staged", 9), ("staged", 10), pytest.param("staged", 15, marks=pytest.mark.slow)],
)
def test_stopped_and_resumed(undisturbed, nursery, image_folder, tmp_path, mode, cut):
    trial = Trial(nursery, image_folder, tmp_path / "runs", *MODES[mode])
    trial.go(SIGNAL_AT=f"{cut}:SIGTERM", expect=75)
    assert f"resumed at step {cut}; exactness E2" in trial.go()
    assert differing(outcome(trial.run), outcome(undisturbed[mode].run)) == []


def test_killed_and_resumed(undisturbed, nursery, image_folder, tmp_path):
    trial = Trial(nursery, image_folder, tmp_path / "runs", *MODES["head"])
    trial.go("--set", "checkpoint.every=5steps", SIGNAL_AT="13:SIGKILL", expect=-9)
    assert "resumed at step 10; exactness E2" in trial.go()
    assert differing(outcome(trial.run), outcome(undisturbed["head"].run)) == []


@pytest.mark.ddp
def test_two_processes_see_the_same_views_without_keeping_features(nursery, image_folder, tmp_path):
    exact = ("--set", "model.kwargs={norm: group, drop: 0}", "--set", "training.ema_decay=0", "--opt", "sgd")
    views = ("--model", HEAD, "--set", "finetune.mode=head", "--set", "finetune.views=2")
    alone = Trial(nursery, image_folder, tmp_path / "alone", *exact, *views)
    assert "decided    finetune.cache_features = on: 3 epochs" in alone.go()
    both = Trial(nursery, image_folder, tmp_path / "both", *exact, *views)
    said, _ = Group(both).wait(0, 0)
    assert "decided    finetune.cache_features = off: 2 processes train together" in said
    losses = [[line["loss"] for line in metrics(t.run) if line["event"] == "step"] for t in (alone, both)]
    assert len(losses[0]) == 21
    assert max(abs(one - two) for one, two in zip(*losses, strict=True)) < 1e-6


def train(image_folder, tmp_path, model="kiln/small_cnn", epochs=4, **overrides):
    return kiln.train(
        image_folder,
        model=model,
        kwargs={"widths": [4, 8]} if model == "kiln/small_cnn" else {},
        epochs=epochs,
        batch_size=16,
        img_size=32,
        lr=0.01,
        workers=0,
        output=tmp_path / "runs",
        overrides={
            "finetune.mode": "head",
            **({"finetune.random_weights": True} if ":" not in model else {}),
            **{name.replace("__", "."): value for name, value in overrides.items()},
        },
        progress=make(quiet=True),
    )


def of(run, field):
    return run.resolved["values"][f"finetune.{field}"], run.resolved["reasons"].get(f"finetune.{field}", "")


def weights_of(run):
    return load_file(run.path / "model.safetensors")


def tables(cache):
    return sorted(cache.glob("*/view-*.safetensors"))


def test_a_second_run_finds_the_features_and_gives_the_same_bytes(image_folder, tmp_path, cache, monkeypatch):
    first = train(image_folder, tmp_path, augment__hflip=0.5)
    assert of(first, "views")[0] == 4
    assert of(first, "cache_features")[0] == "off"  # no view would come twice
    assert "no view comes twice in 4 epochs" in of(first, "cache_features")[1]
    assert tables(cache) == []
    cold = train(image_folder, tmp_path, finetune__views=2)
    assert [path.name for path in tables(cache)] == ["view-0.safetensors", "view-1.safetensors"]
    before = [path.stat().st_mtime_ns for path in tables(cache)]
    warm = train(image_folder, tmp_path, finetune__views=2)
    assert [path.stat().st_mtime_ns for path in tables(cache)] == before
    table = tables(cache)[1]
    table.write_bytes(table.read_bytes()[:-1] + b"?")  # a damaged one is made again
    mended = train(image_folder, tmp_path, finetune__views=2)
    for run in (warm, mended):
        assert differing(outcome(run.path), outcome(cold.path)) == []
    train(image_folder, tmp_path, finetune__views=2, training__seed=1)  # other weights, other features
    assert len(tables(cache)) == 4


@pytest.mark.parametrize("policy", ["none", "light"])
def test_features_give_what_images_give(image_folder, tmp_path, cache, policy):
    settings = {
        "augment__policy": policy,
        "model__drop": 0.3,
        "finetune__views": 2,
        "epochs": 5,
        "training__ema_decay": 0.9,
    }
    kept = train(image_folder, tmp_path, finetune__cache_features="on", **settings)
    through = train(image_folder, tmp_path, finetune__cache_features="off", **settings)
    assert tables(cache)
    ours, theirs = weights_of(kept), weights_of(through)
    assert max((ours[name] - theirs[name]).abs().max() for name in ours if ours[name].is_floating_point()) < 1e-5
    assert [line["event"] for line in metrics(kept.path)] == [line["event"] for line in metrics(through.path)]


def test_the_frozen_part_sees_each_view_once(image_folder, tmp_path, cache, monkeypatch):
    counts = tmp_path / "counts.txt"
    monkeypatch.setenv("COUNTS", str(counts))
    run = train(image_folder, tmp_path, model=HEAD, epochs=6, finetune__views=2)
    assert of(run, "cache_features")[1].startswith("6 epochs, each image 2 times through the frozen part")
    passed = [int(line) for line in counts.read_text().split()]
    samples = run.resolved["facts"]["samples"]
    probes = 8  # shapes and the search for the cut, two or three images each
    assert sum(passed) <= 2 * samples["train"] + 2 * samples["val"] + 3 * probes
    assert tables(cache) == []  # a user's own code may change without a trace


def test_without_augmentation_one_view_is_enough(image_folder, tmp_path, cache):
    run = train(image_folder, tmp_path, augment__policy="none")
    assert of(run, "views") == (1, "there is no augmentation")
    assert of(run, "cache_features")[0] == "on"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"augment__mixup": 0.2, "finetune__views": 4},
            "finetune.views = 4, but augment.mixup and augment.cutmix make",
        ),
        (
            {"augment__first_px": 16, "finetune__cache_features": "on"},
            "'on', but augment.first_px = 16 lets images grow",
        ),
        ({"data__repeats": 2, "finetune__views": 2}, "data.repeats = 2 augments a sample in several ways"),
        ({"finetune__views": 0, "finetune__cache_features": "on"}, "with finetune.views = 0, which draws augmentation"),
        (
            {"finetune__mode": "full", "finetune__views": 2},
            "finetune.views = 2 has no effect with finetune.mode = 'full'",
        ),
        (
            {"data__cache": "memory", "data__cache_size": "1KB", "finetune__cache_features": "on"},
            "and 1,000 may be taken",
        ),
        (
            {"finetune__mode": "staged", "finetune__stages": ["all"], "finetune__cache_features": "on"},
            "the first stage freezes nothing",
        ),
    ],
)
def test_what_cannot_be_kept_is_refused(image_folder, tmp_path, cache, settings, message):
    random = {} if settings.get("finetune__mode") != "full" else {"finetune__random_weights": False}
    with pytest.raises(kiln.KilnError, match=message):
        train(image_folder, tmp_path, **settings, **random)


@pytest.mark.parametrize(
    ("settings", "views", "why"),
    [
        ({"augment__cutmix": 1.0}, 0, "augment.mixup and augment.cutmix make other images"),
        ({"finetune__views": 0}, 0, "augmentation is drawn anew in each epoch"),
        ({"data__cache": "memory", "data__cache_size": "1KB"}, 4, "and 1,000 may be taken"),
    ],
)
def test_otherwise_it_is_said_why_not(image_folder, tmp_path, cache, settings, views, why):
    run = train(image_folder, tmp_path, epochs=5, **settings)
    assert of(run, "views")[0] == views
    assert of(run, "cache_features")[0] == "off"
    assert why in of(run, "cache_features")[1]
    assert tables(cache) == []


def test_a_file_that_cannot_be_read_is_counted_once(image_folder, tmp_path, cache):
    data = tmp_path / "pictures"
    shutil.copytree(image_folder, data)
    split = Path(train(image_folder, tmp_path, augment__policy="none").path / "split.csv").read_text()
    key = next(line.split(",")[0] for line in split.splitlines() if ",train" in line and ".jpg" in line)
    content = (data / key).read_bytes()
    (data / key).write_bytes(content[: len(content) // 2])  # its header is sound
    settings = {"augment__policy": "none", "data__max_bad_fraction": 0.1, "data__bad_files": "skip"}
    kept = train(data, tmp_path, **settings)
    through = train(data, tmp_path, finetune__cache_features="off", **settings)
    assert of(kept, "cache_features")[0] == "on"
    assert key in (kept.path / "bad_files.csv").read_text()
    assert (kept.path / "bad_files.csv").read_text() == (through.path / "bad_files.csv").read_text()
    ours, theirs = weights_of(kept), weights_of(through)
    assert torch.allclose(ours["head.weight"], theirs["head.weight"], atol=1e-5)


def test_what_is_on_the_disk_is_held_against_the_images(image_folder, tmp_path, cache):
    cold = train(image_folder, tmp_path, augment__policy="none")
    (table,) = tables(cache)
    files = FeatureFiles(table.parent, 10**6, about={})
    rows = files.load("view-0")
    files.save("view-0", rows + 1)  # sound, and of something else
    files.close()
    again = train(image_folder, tmp_path, augment__policy="none")
    assert differing(outcome(again.path), outcome(cold.path)) == []
    assert FeatureFiles(table.parent, 10**6, about={}).load("view-0").equal(rows)


def test_without_room_on_the_disk_features_stay_in_memory(image_folder, tmp_path, cache):
    cold = train(image_folder, tmp_path, augment__policy="none")
    shutil.rmtree(cache)
    tight = train(image_folder, tmp_path, augment__policy="none", data__cache_size="10KB")
    assert of(tight, "cache_features")[0] == "on"
    assert tables(cache) == []
    assert differing(outcome(tight.path), outcome(cold.path)) == []


def test_checkpoints_go_by_the_clock_unless_asked_otherwise(image_folder, tmp_path, cache):
    settings = {"augment__policy": "none", "finetune__cache_features": "on"}
    assert train(image_folder, tmp_path, **settings).resolved["values"]["checkpoint.every"] == ["30s"]
    asked = train(image_folder, tmp_path, checkpoint__every="2ep", **settings)
    assert asked.resolved["values"]["checkpoint.every"] == ["2ep"]


def test_a_batch_of_a_run_is_shown_as_its_view(image_folder, tmp_path, cache):
    run = train(
        image_folder,
        tmp_path,
        epochs=5,
        finetune__views=2,
        finetune__mode="staged",
        finetune__stages=["head", "all from 4ep"],
    )
    assert of(run, "cache_features")[0] == "on"
    seen, steps = show._of_run(run, asked_for(None, None, {}, {})), run.resolved["facts"]["steps_per_epoch"]

    def epoch(number):
        batches = [seen.batch(number * steps + step + 1)[0] for step in range(steps)]
        return {
            index: image for batch in batches for index, image in zip(batch.indices.tolist(), batch.images, strict=True)
        }

    first, second, third, fifth = epoch(0), epoch(1), epoch(2), epoch(4)
    assert all(first[index].equal(third[index]) for index in first)
    assert not any(first[index].equal(second[index]) for index in first)
    assert not any(first[index].equal(fifth[index]) for index in first)  # drawn anew: the second stage


def test_after_the_head_stage_everything_is_as_without_features(image_folder, tmp_path, cache):
    settings = {
        "finetune__mode": "staged",
        "finetune__stages": ["head", "all from 3ep"],
        "finetune__views": 1,
        "epochs": 5,
    }
    kept, through = (
        train(image_folder, tmp_path, finetune__cache_features=cached, **settings) for cached in ("on", "off")
    )
    evaluated = [
        [line["metrics"]["loss"]["value"] for line in metrics(run.path) if line["event"] == "val"]
        for run in (kept, through)
    ]
    assert len(evaluated[0]) == 5
    assert evaluated[0] == pytest.approx(evaluated[1], abs=1e-4)
