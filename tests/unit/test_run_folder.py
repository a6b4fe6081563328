"""The run folder: files that are whole or not there, one lock, names that clash with nothing, a `Run` that reads it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from forks import forked

from kiln import run
from kiln.errors import ArtifactError, ResourceError, UsageError
from kiln.recipe import Recipe
from kiln.run import (
    Run,
    begin,
    locked,
    new_folder,
    read_json,
    read_yaml,
    runs_in,
    set_status,
    write_atomically,
    write_json,
    write_yaml,
)


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "run"
    made.mkdir()
    run.begin(made, Recipe(optim={"lr": 0.5}))
    return made


def listing(path):
    return sorted(item.name for item in path.iterdir())


def test_a_folder_without_a_recipe_is_no_run(tmp_path):
    with pytest.raises(UsageError, match=r"(?s)is no run folder: it has no recipe\.yaml.*kiln train made"):
        Run(tmp_path)
    with pytest.raises(UsageError, match=f"^there is no {tmp_path}/nowhere$") as caught:
        Run(tmp_path / "nowhere")
    assert (caught.value.code, caught.value.hint) == ("E111", "")


def test_only_what_is_similar_and_holds_a_model_is_suggested(tmp_path):
    for name in ("photos", "photos-resnet50-folds", "photoz"):
        folder = tmp_path / name
        folder.mkdir()
        begin(folder, Recipe())
        if name != "photoz":
            (folder / "model.safetensors").touch()
    with pytest.raises(UsageError) as caught:
        Run(tmp_path / "photso")
    assert caught.value.hint == f"did you mean {tmp_path / 'photos'}?"
    with pytest.raises(UsageError) as caught:
        Run(tmp_path)
    assert {Path(choice).name for choice in caught.value.choices} == {"photos", "photos-resnet50-folds"}


@pytest.mark.parametrize("name", ["../../x", "a/b", "/tmp/x", "..", ".", "", "a\\b"])
def test_a_name_is_no_path(tmp_path, name):
    output = tmp_path / "a" / "runs"
    with pytest.raises(UsageError, match=r"name = .*\n  expected: a name, not a path; --output says where") as caught:
        new_folder(output, name, stem="x")
    assert caught.value.code == "E102"
    assert not output.exists()


def test_a_new_run_says_what_was_asked_and_that_it_is_running(folder):
    found = Run(folder)
    assert found.recipe == Recipe(optim={"lr": 0.5})
    assert found.status["state"] == "running"
    assert (found.status["step"], found.status["pid"]) == (0, os.getpid())
    assert found.metrics() == []
    assert repr(found) == f"Run({str(folder)!r})"


def test_what_a_run_reads(folder):
    write_yaml(folder / run.RESOLVED, "resolved", {"values": {"optim.lr": 0.5}, "log": []})
    write_json(folder / run.RESULT, "result", {"metrics": {"test": {"accuracy": {"value": 0.9}}}})
    write_json(folder / run.BEST, "best", {"step": 40})
    (folder / run.PREDICTIONS).write_text('key,label\n"a,b.png",ä\n', encoding="utf-8")
    (folder / run.MODEL).write_bytes(b"")
    set_status(folder, run.DONE, step=50)
    found = Run(folder)
    assert found.resolved["values"] == {"optim.lr": 0.5}
    assert found.predictions() == [{"key": "a,b.png", "label": "ä"}]
    assert found.model_file == folder / "model.safetensors"
    assert found.checkpoints == folder / "checkpoints"
    summary = found.summary()
    assert (summary["state"], summary["best_step"], summary["model"]) == ("done", 40, str(found.model_file))
    assert summary["metrics"]["test"]["accuracy"]["value"] == 0.9
    assert f"kiln predict {folder} IMAGES" in summary["next"]


def test_a_line_that_a_killed_process_did_not_finish_does_not_count(folder):
    (folder / run.METRICS).write_text('{"event": "step", "step": 1}\n{"event": "step", "st')
    assert Run(folder).metrics() == [{"event": "step", "step": 1}]


@pytest.mark.parametrize(("write", "read"), [(write_json, read_json), (write_yaml, read_yaml)])
def test_files_carry_kind_and_version(tmp_path, write, read):
    path = tmp_path / "file"
    content = {"name": "Käse 日本", "values": [1, 2.5, None, True], "deep": {"a": {"b": []}}}
    write(path, "thing", content)
    assert read(path, kind="thing") == {"kind": "kiln.thing", "version": 1, **content}
    with pytest.raises(ArtifactError, match=r"is no kiln\.other file"):
        read(path, kind="other")


@pytest.mark.parametrize(
    ("data", "code", "message"),
    [
        (b"{", "E307", "is damaged"),
        (b'{"kind": "kiln.status", "ver', "E307", "is damaged"),
        (b"\xff\xfe\x00", "E307", "is damaged"),
        (b"[1, 2]", "E303", "is no kiln.status file"),
        (b'{"kind": "kiln.status", "version": 2}', "E303", "has version 2; this Kiln reads up to 1"),
        (b'{"kind": "kiln.status", "version": "new"}', "E303", "has version new; this Kiln reads up to 1"),
        (None, "E307", r"cannot read .*No such file"),
    ],
)
@pytest.mark.parametrize("read", [read_json, read_yaml])
def test_damaged_foreign_and_newer_files_are_told_apart(tmp_path, data, code, message, read):
    path = tmp_path / "status.json"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ArtifactError, match=message) as caught:
        read(path, kind="status")
    assert (caught.value.code, caught.value.exit_code) == (code, 4)


def test_an_empty_file_is_never_taken_for_one_of_ours(tmp_path):
    (tmp_path / "status.json").touch()
    for read in (read_json, read_yaml):
        with pytest.raises(ArtifactError, match=r"status\.json is (damaged|no kiln\.status file)"):
            read(tmp_path / "status.json", kind="status")


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "result.json"
    write_atomically(path, b"old")

    def child():
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        with pytest.raises(ResourceError, match=r"cannot write result\.json: File too large") as caught:
            write_atomically(path, bytes(5000))
        return caught.value.code

    assert forked(child) == (0, "E401")
    assert path.read_bytes() == b"old"
    assert listing(tmp_path) == ["result.json"]


def test_a_kill_in_mid_write_leaves_the_old_file_and_the_next_start_cleans_up(folder):
    set_status(folder, run.RUNNING, step=7)

    def child():
        os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)
        set_status(folder, run.RUNNING, step=8)

    assert forked(child)[0] == -signal.SIGKILL
    assert Run(folder).status["step"] == 7
    assert any(name.startswith(".status.json") for name in listing(folder))
    run.clean(folder)
    assert listing(folder) == ["recipe.yaml", "status.json"]


def test_a_status_without_a_step_keeps_the_one_that_was_there(folder):
    set_status(folder, run.RUNNING, step=30)
    set_status(folder, run.FAILED, reason="E601 not finite", code="E601")
    status = Run(folder).status
    assert (status["state"], status["step"], status["reason"], status["code"]) == (
        "failed",
        30,
        "E601 not finite",
        "E601",
    )


def test_new_folders_get_numbers_where_the_name_is_taken(tmp_path):
    made = [new_folder(tmp_path / "runs", None, stem="photos").name for _ in range(3)]
    assert made == ["photos", "photos-2", "photos-3"]


def test_a_name_that_holds_a_run_is_refused_and_an_empty_one_taken(tmp_path):
    (tmp_path / "mine").mkdir()
    folder = new_folder(tmp_path, "mine", stem="x")
    assert folder == tmp_path / "mine"
    run.begin(folder, Recipe())
    with pytest.raises(UsageError, match=r"(?s)holds a run already.*another --name, or --resume auto"):
        new_folder(tmp_path, "mine", stem="x")


def test_a_place_that_cannot_be_written_is_an_error_before_training(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResourceError, match=r"(?s)cannot make a run folder in .*another --output") as caught:
        new_folder(tmp_path / "file" / "runs", None, stem="x")
    assert caught.value.exit_code == 5


def test_a_second_training_in_a_folder_is_refused_with_the_owners_process_id(folder):
    def child():
        with pytest.raises(UsageError) as caught, locked(folder):
            pass
        return f"{caught.value.code} {caught.value.exit_code} {caught.value.what}"

    with locked(folder):
        assert forked(child) == (0, f"E105 2 {folder} is in use by process {os.getpid()}")
    with locked(folder):
        pass  # it was released


def test_the_lock_ends_with_its_process_however_that_ends(folder):
    def child():
        with locked(folder):
            os.kill(os.getpid(), signal.SIGKILL)

    assert forked(child)[0] == -signal.SIGKILL
    with locked(folder):
        assert (folder / run.LOCK).read_text() == str(os.getpid())


def test_runs_are_listed_newest_first(tmp_path):
    assert runs_in(tmp_path / "nowhere") == []
    for name in ("old", "new", "middle"):
        (tmp_path / name).mkdir()
        run.begin(tmp_path / name, Recipe())
        stamp = {"old": 1, "middle": 2, "new": 3}[name] * 1e9
        os.utime(tmp_path / name / run.RECIPE, (stamp, stamp))
    (tmp_path / "no run").mkdir()
    (tmp_path / "file.txt").write_text("")
    assert [found.path.name for found in runs_in(tmp_path)] == ["new", "middle", "old"]
    assert json.loads((tmp_path / "old" / run.STATUS).read_text())["kind"] == "kiln.status"
