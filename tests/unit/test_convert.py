"""Foreign weight files: what is converted, and what is refused before it can do anything."""

import argparse
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from kiln.errors import ArtifactError, ResourceError, SecurityError
from kiln.models import convert as convert_module
from kiln.models.convert import convert, find_state_dict


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KILN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "weights"


@pytest.fixture
def in_process(monkeypatch):
    """Convert in this process, without limits: a child takes seconds to import torch."""
    monkeypatch.setattr(convert_module, "_limit", lambda size: None)
    monkeypatch.setattr(convert_module, "_run_child", convert_module._main)


def state():
    torch.manual_seed(0)
    return nn.Linear(4, 2).state_dict()


def test_a_state_dict_becomes_safetensors_once(tmp_path, cache, monkeypatch):
    path = tmp_path / "a.pth"
    torch.save({"epoch": 3, "args": argparse.Namespace(lr=1), "state_dict": state()}, path)
    converted = convert(path)
    assert {key: value.tolist() for key, value in load_file(converted).items()} == {
        key: value.tolist() for key, value in state().items()
    }
    assert converted.parent == cache
    assert cache.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(convert_module, "_run_child", lambda *_: pytest.fail("converted again"))
    assert convert(path) == converted
    copy = tmp_path / "same content.bin"
    copy.write_bytes(path.read_bytes())
    assert convert(copy) == converted


def test_a_damaged_cache_entry_is_made_again(tmp_path, in_process):
    path = tmp_path / "a.pth"
    torch.save(state(), path)
    converted = convert(path)
    sound = converted.read_bytes()
    converted.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    assert convert(path).read_bytes() == sound


@pytest.mark.parametrize(
    ("loaded", "nest"),
    [
        ({"w": torch.ones(1)}, ""),
        ({"state_dict": {"w": torch.ones(1)}, "epoch": 1}, "state_dict"),
        ({"model": {"state_dict": {"w": torch.ones(1)}}}, "model.state_dict"),
        ({"state_dict": {"w": torch.zeros(1)}, "state_dict_ema": {"w": torch.ones(1)}}, "state_dict_ema"),
        ({"model": {"w": torch.zeros(1)}, "ema": {"w": torch.ones(1)}}, "ema"),
    ],
)
def test_weights_are_found_where_trainers_put_them(loaded, nest):
    found, key = find_state_dict(loaded)
    assert key == nest
    assert found["w"].item() == 1


@pytest.fixture
def child(monkeypatch, capsys):
    """What the child would do, in this process and without its limits: (status, what it says)."""

    def run(path):
        monkeypatch.setattr(convert_module, "_limit", lambda size: None)
        status = convert_module._main(path, path.with_suffix(".out"))
        return status, capsys.readouterr().out

    return run


@pytest.mark.parametrize("loaded", [{"epoch": 1}, [torch.ones(1)], 3])
def test_files_without_weights_say_so(tmp_path, child, loaded):
    path = tmp_path / "a.pth"
    torch.save(loaded, path)
    status, said = child(path)
    assert status == convert_module.NO_WEIGHTS
    error = convert_module._explain(path, status, said)
    assert isinstance(error, ArtifactError)
    assert error.code == "E304"
    assert "a.pth holds no weights: " in str(error)


class Runs:
    """Calls a function with arguments when a pickle of it is loaded."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hostile_files(folder, marker):
    touch, code = f"touch {marker}", f"open({str(marker)!r}, 'w')"
    for name, bomb in (("system", Runs(os.system, touch)), ("eval", Runs(eval, code)), ("exec", Runs(exec, code))):
        (folder / f"{name}.pkl").write_bytes(pickle.dumps(bomb))
        torch.save({"state_dict": {"w": torch.ones(2), "x": bomb}}, folder / f"{name}.pth")
        torch.save(bomb, folder / f"{name}.legacy.pth", _use_new_zipfile_serialization=False)
    inner = folder / "inner.bin"
    torch.save(Runs(os.system, touch), inner)
    torch.save({"w": Runs(torch.load, str(inner), None, None)}, folder / "nested.pth")
    torch.save(nn.Sequential(nn.Linear(2, 2)), folder / "whole_module.pth")
    return sorted(path for path in folder.iterdir() if path != inner)


def test_hostile_pickles_never_run(tmp_path, child):
    """RELIABILITY S01."""
    folder, marker = tmp_path / "hostile", tmp_path / "marker"
    folder.mkdir()
    paths = hostile_files(folder, marker)
    assert len(paths) == 11
    with pytest.raises(SecurityError, match=r"holds code or objects instead of weights: .*GLOBAL") as caught:
        convert(folder / "eval.pth")
    assert caught.value.code == "E702"
    for path in paths:
        assert child(path)[0] == convert_module.CODE, path
    assert not marker.exists()


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning", "ignore:.*is deprecated:DeprecationWarning")
def test_torchscript_is_code(tmp_path, child):
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "program.pt")
    assert child(tmp_path / "program.pt") == (convert_module.CODE, "a TorchScript program")


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\3\4" + b"\0" * 50, "truncated", "cut pickle"])
def test_damaged_files_are_named(tmp_path, child, content):
    path = tmp_path / "a.pth"
    torch.save(state(), path, _use_new_zipfile_serialization=content != "cut pickle")
    path.write_bytes(path.read_bytes()[:-20] if isinstance(content, str) else content)
    status, said = child(path)
    assert status == convert_module.DAMAGED, said
    with pytest.raises(ArtifactError, match=r"a.pth cannot be read as weights") as caught:
        raise convert_module._explain(path, status, said)
    assert caught.value.code == "E307"


def test_a_file_that_unpacks_to_far_more_than_its_size_is_refused(tmp_path):
    path = tmp_path / "bomb.pth"
    small = torch.zeros(1)
    torch.save({"w": small.expand(1 << 32)}, path)  # 4 bytes stored, 16 GiB when written out
    with pytest.raises(ResourceError, match="more memory or disk than its size explains"):
        convert(path)


def test_an_old_torch_is_refused(tmp_path, monkeypatch):
    torch.save(state(), tmp_path / "a.pth")
    monkeypatch.setattr(torch, "__version__", "2.5.1")
    with pytest.raises(convert_module._Refused, match=r"2\.10 or newer"):
        convert_module._read(tmp_path / "a.pth")
