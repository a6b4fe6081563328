"""Checkpoints: all or nothing on disk, every damage seen, the previous one used, room running out, what is kept."""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path

import pytest
import torch
from forks import forked, mount_small_disk

from kiln.engine import checkpoint
from kiln.engine.checkpoint import (
    clean,
    committed_steps,
    folder_of,
    newest_checkpoint,
    read_checkpoint,
    retain,
    write_checkpoint,
)
from kiln.errors import ArtifactError, ResourceError

FILES = ("model.safetensors", "optimizer.safetensors", "average.safetensors", "state.json", "manifest.json")


def tree_of(step):
    generator = torch.Generator().manual_seed(step)
    weights = {"head.weight": torch.randn(4, 8, generator=generator), "head.bias": torch.randn(4, generator=generator)}
    return {
        "model": weights,
        "optimizer": {
            "state": {name: {"exp_avg": tensor * 0.1} for name, tensor in weights.items()},
            "rates": {"a": 0.1},
        },
        "average": {"updates": step, "model": {name: tensor + 1 for name, tensor in weights.items()}},
        "progress": {"step": step, "loss_sum": float("nan"), "log": [{"what": "x"}]},
    }


@pytest.fixture
def two(tmp_path):
    """A folder with the checkpoints of steps 10 and 20."""
    for step in (10, 20):
        write_checkpoint(tmp_path, step, tree_of(step), about={"threads": 1})
    return tmp_path


def listing(root):
    return sorted(path.name for path in root.iterdir())


def test_what_is_written_is_read(tmp_path):
    path = write_checkpoint(tmp_path / "new" / "deep", 7, tree_of(7), about={"torch": "2.15", "world_size": 2})
    assert path.name == "step-00000007"
    assert listing(path) == sorted(FILES)
    found = read_checkpoint(path)
    assert (found.path, found.step, found.passed_over) == (path, 7, ())
    assert found.about == {"torch": "2.15", "world_size": 2}
    assert repr(found.tree) == repr(tree_of(7))


def test_a_tensor_beside_the_parts_comes_back_too(tmp_path):
    path = write_checkpoint(tmp_path, 1, {"alone": torch.arange(3), "nothing": None})
    assert read_checkpoint(path).tree["alone"].tolist() == [0, 1, 2]


def test_any_safetensors_reader_finds_the_weights_by_their_names(tmp_path):
    from safetensors import safe_open

    path = write_checkpoint(tmp_path, 1, tree_of(1))
    with safe_open(path / "model.safetensors", "pt") as file:
        assert sorted(file.keys()) == ["head.bias", "head.weight"]


def test_the_same_step_can_be_saved_again(two):
    write_checkpoint(two, 20, {**tree_of(20), "progress": {"step": 20, "again": True}})
    assert read_checkpoint(folder_of(two, 20)).tree["progress"] == {"step": 20, "again": True}
    assert listing(two) == ["step-00000010", "step-00000020"]


def test_the_newest_is_the_one_of_the_highest_step_whatever_the_clock_says(two):
    for age, step in enumerate((20, 10)):
        os.utime(folder_of(two, step), (age + 1e9, age + 1e9))
    assert newest_checkpoint(two).step == 20


@pytest.mark.parametrize("missing", [True, False])
def test_no_checkpoint_is_no_error(tmp_path, missing):
    root = tmp_path / "checkpoints"
    if not missing:
        root.mkdir()
        (root / "step-notes").mkdir()
        (root / "notes.txt").write_text("mine")
    assert committed_steps(root) == []
    assert newest_checkpoint(root) is None


def flip(path, rng):
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def truncate(path, rng):
    os.truncate(path, rng.randrange(path.stat().st_size))


def zero(path, rng):
    path.write_bytes(bytes(path.stat().st_size))


def lengthen(path, rng):
    path.write_bytes(path.read_bytes() + b"\0")


def delete(path, rng):
    path.unlink()


DAMAGES = [flip, truncate, zero, lengthen, delete]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_is_set_aside_and_the_previous_one_used(two, file, damage):
    newest = folder_of(two, 20)
    damage(newest / file, random.Random(5))
    with pytest.raises(ArtifactError, match=file.replace(".", r"\.")) as caught:
        read_checkpoint(newest)  # asked for by name, it is an error and nothing else is read
    assert caught.value.code == "E302"
    assert str(newest) in str(caught.value)
    if file != "manifest.json" and damage in (truncate, lengthen):
        assert "bytes instead of" in str(caught.value)
    assert listing(two) == ["step-00000010", "step-00000020"]

    found = newest_checkpoint(two)
    assert found.step == 10
    assert repr(found.tree) == repr(tree_of(10))
    assert len(found.passed_over) == 1
    assert "step-00000020" in found.passed_over[0]
    assert file in found.passed_over[0]
    assert listing(two) == [".bad-step-00000020", "step-00000010"]


def test_500_random_flips_and_truncations_are_all_detected(two):
    rng = random.Random(20)
    newest, previous = folder_of(two, 20), repr(tree_of(10))
    intact = {file: (newest / file).read_bytes() for file in FILES}
    for attempt in range(500):
        file = rng.choice(FILES)
        (flip if attempt % 2 else truncate)(newest / file, rng)
        found = newest_checkpoint(two)
        assert found.step == 10, (attempt, file)
        assert repr(found.tree) == previous
        assert file in found.passed_over[0], (attempt, file)
        (two / ".bad-step-00000020").rename(newest)
        (newest / file).write_bytes(intact[file])
    assert newest_checkpoint(two).step == 20


def test_several_damaged_ones_are_all_passed_over(two):
    write_checkpoint(two, 30, tree_of(30))
    for step in (20, 30):
        delete(folder_of(two, step) / "manifest.json", None)
    found = newest_checkpoint(two)
    assert found.step == 10
    assert [line.partition(":")[0] for line in found.passed_over] == ["step-00000030", "step-00000020"]
    write_checkpoint(two, 30, tree_of(30))
    delete(folder_of(two, 30) / "model.safetensors", None)
    assert newest_checkpoint(two).step == 10
    assert listing(two) == [".bad-step-00000020", ".bad-step-00000030", ".bad-step-00000030.1", "step-00000010"]


def test_when_none_can_be_read_that_is_an_error_that_lists_them(two):
    for step in (10, 20):
        zero(folder_of(two, step) / "state.json", None)
    with pytest.raises(
        ArtifactError, match=r"(?s)no checkpoint in .* can be read.*step-00000020.*step-00000010"
    ) as caught:
        newest_checkpoint(two)
    assert caught.value.exit_code == 4


def rewrite_manifest(path, **changes):
    """A manifest with other content and a seal that fits, as another program (or a later Kiln) would write it."""
    manifest = json.loads((path / "manifest.json").read_bytes())
    (path / "manifest.json").write_bytes(checkpoint._sealed({**manifest, **changes}))


def test_a_newer_version_is_an_error_and_never_passed_over(two):
    rewrite_manifest(folder_of(two, 20), version=checkpoint.VERSION + 1)
    for read in (lambda: read_checkpoint(folder_of(two, 20)), lambda: newest_checkpoint(two)):
        with pytest.raises(ArtifactError, match=r"(?s)format 2; this Kiln reads up to 1.*update torchkiln") as caught:
            read()
        assert caught.value.code == "E303"
    assert listing(two) == ["step-00000010", "step-00000020"]


def test_another_kind_of_file_is_no_manifest(two):
    rewrite_manifest(folder_of(two, 20), kind="kiln.model")
    with pytest.raises(ArtifactError, match=r"manifest\.json is damaged"):
        read_checkpoint(folder_of(two, 20))


def test_a_manifest_cannot_lead_out_of_its_folder(two, tmp_path):
    path = folder_of(two, 20)
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    files = json.loads((path / "manifest.json").read_bytes())["files"]
    rewrite_manifest(path, files={**files, "../secret.json": [2, "0" * 64]})
    with pytest.raises(ArtifactError, match=r"the manifest names '\.\./secret\.json'"):
        read_checkpoint(path)


def test_a_checkpoint_under_another_steps_name_is_refused(two):
    folder_of(two, 20).rename(folder_of(two, 30))
    with pytest.raises(ArtifactError, match="is named step-00000030, but holds step 20"):
        read_checkpoint(folder_of(two, 30))
    assert newest_checkpoint(two).step == 10


# Room running out.

BIG = {"model": {"a": torch.ones(10)}, "optimizer": {"w": torch.ones(2_500_000)}}  # 9.5 MiB


def save_too_much(root):
    try:
        write_checkpoint(root, 2, BIG)
    except ResourceError as error:
        found = newest_checkpoint(root)
        return f"{error.code} {error.exit_code} {error} | {listing(root)} {found.step} {found.passed_over}"
    return "it was saved"


def check_full(status, text):
    assert status == 0, text
    assert "E401 5 cannot save a checkpoint of 9.5 MiB" in text
    assert "kept: the checkpoints of steps 1\n" in text
    assert "next: free some space, then go on with --resume auto" in text
    assert text.endswith("| ['step-00000001'] 1 ()")


def test_a_file_that_cannot_be_written_leaves_the_previous_checkpoint_and_nothing_else(tmp_path):
    def child():
        import resource

        write_checkpoint(tmp_path, 1, tree_of(1))
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        return save_too_much(tmp_path)

    status, text = forked(child)
    check_full(status, text)
    assert "File too large" in text
    assert read_checkpoint(folder_of(tmp_path, 1)).step == 1


@pytest.mark.parametrize("checked", [True, False])
def test_a_full_disk_names_what_is_needed_and_what_is_free(tmp_path, checked):
    """A real file system of 8 MiB; also where the space seems enough before the writing begins."""

    def child():
        try:
            mount_small_disk(tmp_path, mib=8)
        except OSError as error:
            return f"not allowed: {error}"
        if not checked:
            checkpoint._require_space = lambda root, needed: None
        write_checkpoint(tmp_path, 1, tree_of(1))
        return save_too_much(tmp_path)

    status, text = forked(child)
    if text.startswith("not allowed"):
        pytest.skip(f"this machine gives a test no file system of its own ({text}); the test above limits file sizes")
    check_full(status, text)
    assert "(8.0 MiB free)" in text
    assert ("11.5 MiB needed" if checked else "No space left on device") in text
    assert listing(tmp_path) == []  # it was the child's own


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_write_that_fails_on_its_last_byte_is_seen(two, monkeypatch):
    # The device accepts the write into the buffer and fails when it is flushed, as network file systems do.
    monkeypatch.setattr(checkpoint, "_require_space", lambda root, needed: os.symlink("/dev/full", root / "probe"))
    real = Path.open

    def opens(path, mode="r", *rest, **options):
        return real(Path("/dev/full") if path.name == "state.json" and mode == "wb" else path, mode, *rest, **options)

    monkeypatch.setattr(Path, "open", opens)
    with pytest.raises(ResourceError, match=r"(?s)No space left on device.*the checkpoints of steps 10, 20"):
        write_checkpoint(two, 30, tree_of(30))
    monkeypatch.undo()
    (two / "probe").unlink()
    assert listing(two) == ["step-00000010", "step-00000020"]
    assert newest_checkpoint(two).step == 20


def test_a_place_that_is_no_folder_is_an_error(tmp_path):
    (tmp_path / "checkpoints").write_text("in the way")
    with pytest.raises(ResourceError, match=r"(?s)cannot save a checkpoint.*no checkpoint yet"):
        write_checkpoint(tmp_path / "checkpoints", 1, tree_of(1))


# What is kept.


@pytest.mark.parametrize("keep", [1, 2, 3, 4])
def test_retention_keeps_the_newest_and_the_best_and_never_less_than_two(tmp_path, keep):
    best = 3
    for step in range(1, 21):
        write_checkpoint(tmp_path, step, {"progress": {"step": step}})
        retain(tmp_path, keep=keep, also=(best,) if step >= best else ())
        expected = set(range(max(1, step - max(keep, 2) + 1), step + 1)) | ({best} if step >= best else set())
        assert committed_steps(tmp_path) == sorted(expected)
    assert all(read_checkpoint(folder_of(tmp_path, step)).step == step for step in committed_steps(tmp_path))
    assert [name for name in listing(tmp_path) if name.startswith(".")] == []


def test_retention_with_a_best_that_is_gone_or_was_never_there(two):
    retain(two, keep=2, also=(0, 5))
    assert committed_steps(two) == [10, 20]


def test_a_start_removes_what_a_kill_left_behind_and_keeps_what_was_set_aside(two):
    for name in (".tmp-step-30.4711", ".del-step-00000005", ".bad-step-00000007"):
        (two / name).mkdir()
        (two / name / "model.safetensors").write_bytes(b"half")
    assert newest_checkpoint(two).step == 20
    clean(two)
    assert listing(two) == [".bad-step-00000007", "step-00000010", "step-00000020"]


@pytest.mark.parametrize("after", [1, 3, 4, 5])
def test_killed_while_saving_there_is_the_previous_one_or_the_new_one_and_never_half(tmp_path, after):
    """At the moments at which the disk is made to agree: two files, manifest, folder, and the parent after the rename."""
    write_checkpoint(tmp_path, 1, tree_of(1))

    def child():
        calls, real = [], os.fsync

        def fsync(handle):
            calls.append(handle)
            if len(calls) == after:
                os.kill(os.getpid(), signal.SIGKILL)
            real(handle)

        os.fsync = fsync
        write_checkpoint(tmp_path, 2, {"model": {"w": torch.ones(9)}, "progress": {"step": 2}})

    assert forked(child) == (-signal.SIGKILL, "")
    assert newest_checkpoint(tmp_path).step == (2 if after == 5 else 1)
    clean(tmp_path)
    assert listing(tmp_path) == (["step-00000001", "step-00000002"] if after == 5 else ["step-00000001"])


def test_saves_and_loads_leak_no_file_handle_and_no_file(tmp_path):
    def litter():
        shm = Path("/dev/shm")
        return len(os.listdir("/proc/self/fd")), sorted(os.listdir(shm)) if shm.is_dir() else []

    if not Path("/proc/self/fd").exists():
        pytest.skip("no /proc here to count open files with")
    write_checkpoint(tmp_path, 0, tree_of(0))
    before = litter()
    for step in range(1, 51):
        read_checkpoint(write_checkpoint(tmp_path, step, tree_of(step)))
        retain(tmp_path, keep=2)
    assert litter()[0] == before[0]
    assert not set(litter()[1]) - set(before[1]) & {name for name in litter()[1] if str(os.getpid()) in name}
    assert listing(tmp_path) == ["step-00000049", "step-00000050"]


def test_what_is_saved_is_what_was_there_when_save_was_called(tmp_path):
    weights = torch.ones(5)
    path = write_checkpoint(tmp_path, 1, {"model": {"w": weights}})
    weights.fill_(7.0)
    assert read_checkpoint(path).tree["model"]["w"].tolist() == [1.0] * 5
