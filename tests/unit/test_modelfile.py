"""The model file: what it keeps, what it notices, what it refuses."""

import json
import random
import struct
import time

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from kiln.errors import ArtifactError, KilnError, ResourceError, SecurityError
from kiln.models.create import create_model
from kiln.models.modelfile import read_header, read_model, save_model
from kiln.models.seal import OPEN_SEAL, seal, verify_seal
from kiln.pixels import PixelContract

TASK = {"name": "classification"}
CLASSES = ("cat", "dog", "Kätzchen")
SMALL = {"widths": [4, 8]}


def made(seed=0, **arguments):
    return create_model("kiln/small_cnn", num_classes=3, img_size=8, kwargs=SMALL, seed=seed, **arguments)


def write(path, created, **changes):
    spec = created.spec
    contract = PixelContract(spec.img_size, spec.img_size, channels=spec.channels)
    values = {"spec": spec, "classes": CLASSES, "contract": contract, "task": TASK, "extra": {"step": 7}, **changes}
    return save_model(path, created.model, **values)


@pytest.fixture
def path(tmp_path):
    write(tmp_path / "model.safetensors", made())
    return tmp_path / "model.safetensors"


def test_round_trip(path):
    created, found = made(), read_model(path)
    assert (found.classes, found.task, found.extra, found.spec) == (CLASSES, TASK, {"step": 7}, created.spec)
    assert found.contract == PixelContract(8, 8)
    assert not found.model.training
    expected = created.model.state_dict()
    assert all(torch.equal(expected[key], value) for key, value in found.model.state_dict().items())
    assert found.digest == verify_seal(path)


def test_anything_that_reads_safetensors_reads_the_weights(path):
    assert load_file(path).keys() == made().model.state_dict().keys()
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["kiln"])["classes"] == list(CLASSES)


def test_equal_models_give_equal_bytes(tmp_path, path):
    again = tmp_path / "again.safetensors"
    write(again, made())
    assert again.read_bytes() == path.read_bytes()


def test_weights_are_float32_and_wrappers_are_seen_through(tmp_path):
    created = made()
    wrapped = nn.Module()
    wrapped.module = created.model.to(torch.bfloat16)
    digest = save_model(
        tmp_path / "m.safetensors", wrapped, spec=created.spec, classes=CLASSES, contract=PixelContract(8, 8), task=TASK
    )
    assert len(digest) == 64
    assert {value.dtype for value in load_file(tmp_path / "m.safetensors").values()} == {torch.float32, torch.int64}
    read_model(tmp_path / "m.safetensors")


def test_tied_weights_are_stored_once(tmp_path):
    code = tmp_path / "tied.py"
    code.write_text(
        "from torch import nn\n"
        "def tied(num_classes):\n"
        "    m = nn.Sequential(nn.Flatten(), nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, num_classes))\n"
        "    m[2].weight = m[1].weight\n"
        "    return m\n"
    )
    name = f"{code}:tied"
    created = create_model(name, num_classes=3, img_size=2)
    write(tmp_path / "m.safetensors", created)
    assert "2.weight" not in load_file(tmp_path / "m.safetensors")
    assert read_header(tmp_path / "m.safetensors")["aliases"] == {"2.weight": "1.weight"}
    with pytest.raises(SecurityError, match="--trust") as caught:
        read_model(tmp_path / "m.safetensors")
    assert caught.value.code == "E701"
    found = read_model(tmp_path / "m.safetensors", trusted=[name]).model
    assert found[2].weight is found[1].weight
    assert torch.equal(found[1].weight, created.model[1].weight)


def test_every_flipped_bit_and_every_truncation_is_noticed(path):
    sound = path.read_bytes()
    header = 8 + struct.unpack("<Q", sound[:8])[0]
    generator = random.Random(0)
    places = [*range(12), *(generator.randrange(header) for _ in range(250)), len(sound) - 1]
    places += [generator.randrange(len(sound)) for _ in range(250)]
    for place in places:
        damaged = bytearray(sound)
        damaged[place] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(ArtifactError) as caught:
            read_model(path)
        assert caught.value.code in ("E303", "E307"), place
    for length in (0, 4, 8, header - 1, header, len(sound) - 1):
        path.write_bytes(sound[:length])
        with pytest.raises(ArtifactError):
            read_model(path)
    path.write_bytes(sound)
    read_model(path)


def test_a_flipped_weight_is_called_damage(path):
    damaged = bytearray(path.read_bytes())
    damaged[-5] ^= 4
    path.write_bytes(damaged)
    with pytest.raises(ArtifactError, match=r"damaged: its content no longer matches[\s\S]*another copy") as caught:
        read_model(path)
    assert caught.value.code == "E307"


def rewrite(path, change):
    """The same weights with a changed description, sealed again: what somebody with tools could make."""
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["kiln"])
    header["seal"] = OPEN_SEAL
    change(header)
    tensors = load_file(path)
    save_file(tensors, path, metadata={"kiln": json.dumps(header)})
    path.write_bytes(seal(path.read_bytes())[0])


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (lambda h: h.update(version=2), "E303", r"version 2; this Kiln reads 1[\s\S]*pip install -U"),
        (lambda h: h.update(kind="other"), "E303", r"not a Kiln model file"),
        (lambda h: h.pop("contract"), "E303", r"lacks contract"),
        (lambda h: h.update(classes=[1, 2]), "E303", r"lacks class names"),
        (lambda h: h["contract"].update(version=9), "E303", r"pixel contract of version 9"),
        (lambda h: h["contract"].update(height=9), "E303", r"disagree about the image"),
        (lambda h: h["spec"].update(name="timm/nothing"), "E303", r"cannot be built here: unknown model"),
        (lambda h: h["spec"].update(name="hf-hub:a/b"), "E303", r"an address, not a name"),
        (lambda h: h["spec"].update(name="timm/hf-hub:a/b"), "E303", r"an address, not a name"),
        (lambda h: h["spec"].update(name="os:system"), "E701", r"names the code 'os:system'"),
        (lambda h: h["spec"].update(num_classes=10**9), "E303", r"num_classes = 1000000000[\s\S]*1 to 1000000"),
        (lambda h: h["spec"].update(num_classes=900_000), "E304", r"too few for 900,000 classes"),
        (lambda h: h["spec"].update(num_classes=4), "E304", r"reshaped: head.weight: file \(3, 8\), model \(4, 8\)"),
        (lambda h: h["spec"].update(kwargs={"widths": [4, 8, 8]}), "E304", r"missing: features"),
        (lambda h: h["spec"].update(std=[0, 1, 1]), "E303", r"model.std"),
        (lambda h: h["spec"].update(more=1), "E303", r"other fields than expected"),
    ],
)
def test_lying_descriptions_are_refused(path, change, code, message):
    rewrite(path, change)
    started = time.monotonic()
    with pytest.raises(KilnError, match=message) as caught:
        read_model(path)
    assert caught.value.code == code
    assert time.monotonic() - started < 20  # a hang guard; importing timm is part of it


def raw(header, data=b""):
    text = json.dumps(header).encode() if isinstance(header, dict) else header
    return struct.pack("<Q", len(text)) + text + data


def entry(start, stop, shape=(1,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


def description():
    created = made()
    contract = PixelContract(8, 8).to_dict()
    header = {"kind": "kiln-model", "version": 1, "seal": OPEN_SEAL, "spec": created.spec.to_dict(), "aliases": {}}
    return {"kiln": json.dumps({**header, "classes": CLASSES, "contract": contract, "task": TASK, "extra": {}})}


DESCRIPTION = description()


@pytest.mark.parametrize(
    "content",
    {
        "header of 100 MB": struct.pack("<Q", 100 * 2**20 + 1) + b"{" + b" " * 1000,
        "header of 2**63": struct.pack("<Q", 2**63) + b"{}",
        "overlap": raw({"__metadata__": DESCRIPTION, "a": entry(0, 4), "b": entry(0, 4)}, b"\0" * 8),
        "hole": raw({"__metadata__": DESCRIPTION, "a": entry(0, 4), "b": entry(8, 12)}, b"\0" * 12),
        "beyond the end": raw({"__metadata__": DESCRIPTION, "a": entry(0, 4000)}, b"\0" * 4),
        "negative": raw({"__metadata__": DESCRIPTION, "a": entry(0, 4, shape=[-1])}, b"\0" * 4),
        "shape and bytes differ": raw({"__metadata__": DESCRIPTION, "a": entry(0, 4, shape=[9])}, b"\0" * 4),
        "unknown type": raw({"__metadata__": DESCRIPTION, "a": entry(0, 4, dtype="F31")}, b"\0" * 4),
        "deep JSON": raw(b'{"__metadata__": ' + b"[" * 200_000 + b"}"),
        "twice the same name": raw(
            b'{"__metadata__":' + json.dumps(DESCRIPTION).encode() + b',"a":' + json.dumps(entry(0, 4)).encode()
            + b',"a":' + json.dumps(entry(4, 8)).encode() + b"}", b"\0" * 8
        ),
        "100,000 tensors": raw(
            {"__metadata__": DESCRIPTION} | {f"t{i}": entry(0, 0, shape=[0]) for i in range(100_000)}
        ),
    }.items(),
    ids=lambda item: item[0],
)  # fmt: skip
def test_abused_safetensors_are_refused_quickly(tmp_path, content):
    """RELIABILITY S02. Sealed where that is possible, so that it is not the seal alone that refuses them."""
    path = tmp_path / "m.safetensors"
    payload = content[1]
    path.write_bytes(seal(payload)[0] if OPEN_SEAL.encode() in payload else payload)
    started = time.monotonic()
    with pytest.raises(ArtifactError) as caught:
        read_model(path)
    assert caught.value.code in ("E303", "E304", "E307")
    assert time.monotonic() - started < 10


def test_nan_weights_are_refused_and_infinity_is_not(tmp_path, path):
    created = made()
    with torch.no_grad():
        created.model.head.weight[0, 0] = float("nan")
    with pytest.raises(ArtifactError, match=r"1 tensors hold NaN[\s\S]*head.weight"):
        write(tmp_path / "other.safetensors", created)
    with torch.no_grad():
        created.model.head.weight[0, 0] = float("inf")
    write(path, created)
    assert read_model(path).model.head.weight[0, 0] == float("inf")


def test_bare_weights_are_not_a_model_file(tmp_path):
    save_file(made().model.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ArtifactError, match=r"not a Kiln model file[\s\S]*--weights FILE"):
        read_model(tmp_path / "w.safetensors")
    with pytest.raises(ArtifactError, match="no such file"):
        read_header(tmp_path / "missing.safetensors")


def test_a_failed_write_leaves_the_old_file(path, monkeypatch):
    import os

    before = path.read_bytes()

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match=r"no room for \d"):
        write(path, made(seed=1))
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_seal_refuses_what_it_could_not_verify_later():
    with pytest.raises(ValueError, match="no open seal"):
        seal(b"nothing")
    closed = b"kiln-seal:" + b"1" * 64
    with pytest.raises(ValueError, match="another seal"):
        seal(closed + OPEN_SEAL.encode())
    assert np.frombuffer(seal(OPEN_SEAL.encode())[0], np.uint8).size == len(OPEN_SEAL)
