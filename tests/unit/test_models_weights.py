"""Weights from the hub, from a publisher, and from files: found, loaded, reported, or refused with the ways out."""

import hashlib
import http.server
import json
import threading
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import save_file
from timm.models import get_pretrained_cfg
from torch import nn

from kiln.errors import ArtifactError, SecurityError
from kiln.models import convert as convert_module
from kiln.models import download as download_module
from kiln.models.create import create_model
from kiln.models.download import Patience
from kiln.models.load import load_weights, strip_wrappers
from kiln.models.modelfile import save_model
from kiln.models.weights import hub_file, url_file
from kiln.pixels import PixelContract

NAME = "test_resnet"  # timm's smallest, half a million parameters
REPO = "timm/test_resnet.r160_in1k"


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    for variable, folder in (("KILN_CACHE", "kiln"), ("HF_HOME", "hf"), ("TORCH_HOME", "torch")):
        monkeypatch.setenv(variable, str(tmp_path / folder))
    for variable in ("HF_HUB_CACHE", "HF_ENDPOINT", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


@pytest.fixture
def in_process(monkeypatch):
    """Convert pickles in this process, without limits: a child takes seconds to import torch."""
    monkeypatch.setattr(convert_module, "_limit", lambda size: None)
    monkeypatch.setattr(convert_module, "_run_child", convert_module._main)


@pytest.fixture(scope="module")
def published():
    """What the hub would hold for `NAME`: random weights for 1,000 classes and RGB."""
    return create_model(NAME, num_classes=1000, seed=42).model.state_dict()


def put_by_hand(folder, published):
    place = folder / "hf" / "hub" / f"models--{REPO.replace('/', '--')}" / "snapshots" / "by-hand"
    place.mkdir(parents=True)
    save_file(published, place / "model.safetensors")
    return place


def dead_address():
    """An address of this machine where nobody listens."""
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        return f"http://127.0.0.1:{server.server_address[1]}"


def test_unreachable_and_not_cached_names_the_ways_out(caches, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", dead_address())
    with pytest.raises(ArtifactError) as caught:
        create_model(NAME, num_classes=3, weights="pretrained")
    text = str(caught.value)
    assert caught.value.code == "E301"
    assert f"{REPO}/resolve/main/model.safetensors" in text
    assert str(caches / "hf" / "hub" / "models--timm--test_resnet.r160_in1k" / "snapshots" / "by-hand") in text
    assert "--weights FILE" in text
    assert "--weights none" in text


def test_the_path_that_the_message_names_is_the_one_that_works(monkeypatch, published):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ArtifactError, match="HF_HUB_OFFLINE is set") as caught:
        create_model(NAME, num_classes=3, weights="pretrained")
    line = next(line for line in caught.value.details if "put it at" in line)
    target = Path(line.partition("put it at ")[2])
    target.parent.mkdir(parents=True)
    save_file(published, target)
    created = create_model(NAME, num_classes=3, weights="pretrained")
    assert torch.equal(created.model.state_dict()["conv1.0.weight"], published["conv1.0.weight"])


def test_pretrained_timm_weights_with_a_new_head_and_stem(caches, published):
    put_by_hand(caches, published)
    created = create_model(NAME, num_classes=3, channels=1, weights="pretrained")
    own = created.model.state_dict()
    assert torch.equal(own["layer1.0.conv1.weight"], published["layer1.0.conv1.weight"])
    torch.testing.assert_close(own["conv1.0.weight"], published["conv1.0.weight"].sum(1, keepdim=True))
    assert set(created.report.missing) == {"fc.weight", "fc.bias"}
    assert any("initialised anew: fc.weight, fc.bias" in note for note in created.notes)
    assert any("from 3 to 1 channel" in note for note in created.notes)
    assert "state_dict" not in created.model.pretrained_cfg
    assert created.spec.name == "timm/test_resnet"
    # The new head is the seed's; loading takes nothing from the random stream.
    assert torch.equal(own["fc.weight"], create_model(NAME, num_classes=3, channels=1).model.fc.weight)


def test_pretrained_weights_keep_their_head_for_as_many_classes(caches, published):
    put_by_hand(caches, published)
    created = create_model(NAME, num_classes=1000, weights="pretrained")
    assert torch.equal(created.model.state_dict()["fc.weight"], published["fc.weight"])
    assert created.report.missing == ()


def test_pretrained_weights_that_do_not_fit_are_refused(caches, published):
    put_by_hand(caches, {"other." + key: value for key, value in published.items()})
    with pytest.raises(ArtifactError, match=r"weights of test_resnet do not fit timm/test_resnet|do not fit") as caught:
        create_model(NAME, num_classes=1000, weights="pretrained")
    assert caught.value.code == "E304"


class Hub(http.server.BaseHTTPRequestHandler):
    """A hub with one repository: HEAD and GET of its files by the addresses that the client uses."""

    files: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[str]] = []

    def do_HEAD(self):
        self.reply(body=False)

    def do_GET(self):
        self.reply(body=True)

    def reply(self, *, body):
        self.asked.append(f"{self.command} {self.path}")
        content = self.files.get(self.path.replace("c" * 40, "main"))
        self.send_response(404 if content is None else 200)
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound")
            content = b""
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "c" * 40)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    Hub.files, Hub.asked = {}, []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    yield Hub
    server.shutdown()
    thread.join()
    server.server_close()


def safetensors_bytes(state):
    from safetensors.torch import save

    return save(state)


@pytest.fixture
def served(hub, caches, monkeypatch, published):
    """The client read its cache folder at import; give it this test's."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(caches / "hf" / "hub"))
    hub.files[f"/{REPO}/resolve/main/model.safetensors"] = safetensors_bytes(published)
    return hub


def test_weights_are_downloaded_once_from_the_hub(served, published):
    first = create_model(NAME, num_classes=4, weights="pretrained")
    assert any(entry.startswith("GET") and entry.endswith("model.safetensors") for entry in served.asked)
    served.asked.clear()
    again = create_model(NAME, num_classes=4, weights="pretrained")
    assert served.asked == []
    for created in (first, again):
        assert torch.equal(created.model.state_dict()["layer1.0.conv1.weight"], published["layer1.0.conv1.weight"])


def test_a_hub_repository_as_model_and_as_weights(served, published):
    cfg = get_pretrained_cfg(NAME).to_dict(remove_source=True)
    config = {"architecture": NAME, "num_classes": 1000, "pretrained_cfg": cfg, "model_args": {"stem_width": 16}}
    served.files["/me/mine/resolve/main/config.json"] = json.dumps(config).encode()
    served.files["/me/mine/resolve/main/model.safetensors"] = safetensors_bytes(published)
    created = create_model("hf-hub:me/mine", num_classes=2, weights="pretrained")
    assert created.spec.name == f"timm/{NAME}"
    assert created.spec.kwargs == {"stem_width": 16}
    assert torch.equal(created.model.state_dict()["layer1.0.conv1.weight"], published["layer1.0.conv1.weight"])
    other = create_model(NAME, num_classes=2, weights="hf-hub:me/mine")
    assert torch.equal(other.model.state_dict()["layer1.0.conv1.weight"], published["layer1.0.conv1.weight"])
    with pytest.raises(ArtifactError, match="none of these files"):
        hub_file("me/other", ("config.json",))


def put_torchvision(caches, monkeypatch, name, state):
    """Put a torchvision file by hand where torch keeps them, under a name whose hash is the file's."""
    import torchvision

    folder = caches / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / "part")
    digest = hashlib.sha256((folder / "part").read_bytes()).hexdigest()
    file = folder / f"{name}-{digest[:8]}.pth"
    (folder / "part").rename(file)
    entry = torchvision.models.get_model_weights(name)["DEFAULT"]
    monkeypatch.setattr(
        type(entry), "url", property(lambda self: f"https://download.pytorch.org/models/{file.name}"), raising=False
    )
    return file


def test_torchvision_weights_put_by_hand(caches, monkeypatch, in_process):
    import torchvision

    theirs = torchvision.models.squeezenet1_1(weights=None).state_dict()
    file = put_torchvision(caches, monkeypatch, "squeezenet1_1", theirs)
    created = create_model("torchvision/squeezenet1_1", num_classes=3, channels=1, weights="pretrained")
    own = created.model.state_dict()
    assert torch.equal(own["features.3.squeeze.weight"], theirs["features.3.squeeze.weight"])
    torch.testing.assert_close(own["features.0.weight"], theirs["features.0.weight"].sum(1, keepdim=True))
    assert own["classifier.1.weight"].shape[0] == 3
    assert sum("initialised anew" in entry for entry in created.report.reshaped) == 2
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"not the file its name promises[\s\S]*delete it and fetch") as caught:
        create_model("torchvision/squeezenet1_1", num_classes=3, weights="pretrained")
    assert caught.value.code == "E307"


def test_a_published_file_that_cannot_be_fetched(caches, monkeypatch):
    with pytest.raises(SecurityError, match="https only"):
        url_file("http://example.org/a-12345678.pth")
    monkeypatch.setattr(download_module, "PATIENT", Patience(silence_seconds=2, tries=2, pause_seconds=0))
    with pytest.raises(
        ArtifactError, match=r"ways out[\s\S]*torch/hub/checkpoints/a-12345678.pth[\s\S]*--weights none"
    ):
        url_file(dead_address().replace("http:", "https:") + "/a-12345678.pth")
    assert list(caches.glob("torch/hub/checkpoints/*")) == []


@pytest.mark.parametrize("name", ["kiln/small_cnn", "torch.nn:Identity"])
def test_models_without_published_weights_say_so(name):
    with pytest.raises(ArtifactError, match="published weights for") as caught:
        create_model(name, num_classes=3, weights="pretrained")
    assert caught.value.code == "E301"


def small(seed=0, num_classes=3, **arguments):
    return create_model(
        "kiln/small_cnn", num_classes=num_classes, img_size=8, kwargs={"widths": [4, 8]}, seed=seed, **arguments
    )


def write_model(path, classes, seed=1):
    created = small(seed, len(classes))
    save_model(
        path,
        created.model,
        spec=created.spec,
        classes=classes,
        contract=PixelContract(8, 8),
        task={"name": "classification"},
    )
    return created.model


def test_the_head_of_a_model_file_is_used_for_the_same_classes_only(tmp_path):
    path = tmp_path / "m.safetensors"
    theirs = write_model(path, ("a", "b", "c"))
    same = small(weights=path, classes=("a", "b", "c"))
    assert torch.equal(same.model.head.weight, theirs.head.weight)
    assert same.report.reshaped == ()
    other = small(weights=path, classes=("b", "a", "c"))
    assert torch.equal(other.model.head.weight, small().model.head.weight)
    assert torch.equal(other.model.features[0][0].weight, theirs.features[0][0].weight)
    assert other.report.reshaped[0] == "head.weight (the head of other classes: initialised anew)"
    more = small(weights=path, num_classes=5)
    assert more.report.reshaped[0].startswith("head.weight")


def test_a_foreign_checkpoint_with_wrappers(tmp_path, in_process):
    theirs = small(seed=3).model.state_dict()
    wrapped = {f"module._orig_mod.{key}": value for key, value in theirs.items()}
    del wrapped["module._orig_mod.head.bias"]
    torch.save({"model": {**wrapped, "extra": torch.ones(1)}, "epoch": 4}, tmp_path / "a.pth")
    created = small(weights=tmp_path / "a.pth")
    assert torch.equal(created.model.head.weight, theirs["head.weight"])
    assert created.report.missing == ("head.bias",)
    assert created.report.unexpected == ("extra",)
    assert any("1 not in the file, initialised anew: head.bias" in note for note in created.notes)


def test_a_shared_prefix_is_seen_through_and_the_stem_adapted(tmp_path):
    theirs = small(seed=3).model.state_dict()
    save_file({f"net.{key}": value for key, value in theirs.items()}, tmp_path / "a.safetensors")
    created = create_model(
        "kiln/small_cnn",
        num_classes=3,
        channels=6,
        img_size=8,
        kwargs={"widths": [4, 8]},
        weights=tmp_path / "a.safetensors",
    )
    stem = created.model.features[0][0].weight
    torch.testing.assert_close(stem, torch.cat([theirs["features.0.0.weight"]] * 2, 1) / 2)
    assert created.report.reshaped == ("features.0.0.weight (adapted from 3 to 6 channels)",)


def test_a_vit_file_of_another_size_gets_its_positions_resampled(tmp_path):
    theirs = create_model("test_vit", num_classes=3, img_size=64, seed=5).model.state_dict()
    save_file(theirs, tmp_path / "vit.safetensors")
    created = create_model("test_vit", num_classes=3, img_size=96, weights=tmp_path / "vit.safetensors")
    assert created.report.reshaped == ()
    assert created.report.missing == ()
    assert created.model.pos_embed.shape != theirs["pos_embed"].shape


def test_weights_of_another_model_are_refused(tmp_path):
    save_file({"a.weight": torch.ones(2), "b": torch.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(
        ArtifactError, match=r"none of its 2 tensors fits[\s\S]*file: a.weight, b[\s\S]*model: features"
    ) as caught:
        small(weights=tmp_path / "a.safetensors")
    assert caught.value.code == "E304"


def test_nan_weights_are_refused(tmp_path):
    state = small().model.state_dict()
    state["head.weight"][0] = float("nan")
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(ArtifactError, match=r"1 tensors hold NaN[\s\S]*head.weight"):
        small(weights=tmp_path / "a.safetensors")


def test_a_damaged_safetensors_file_is_named(tmp_path):
    save_file(small().model.state_dict(), tmp_path / "a.safetensors")
    content = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(content[:-100])
    with pytest.raises(ArtifactError, match="is damaged") as caught:
        small(weights=tmp_path / "a.safetensors")
    assert caught.value.code == "E307"


def test_load_weights_alone():
    model = nn.Sequential(nn.Linear(2, 2))
    report = load_weights(model, {"module.0.weight": torch.eye(2), "0.bias": torch.ones(3)}, source="here")
    assert torch.equal(model[0].weight, torch.eye(2))
    assert report.reshaped == ("0.bias (file 3, model 2: initialised anew)",)
    assert report.notes()[0] == "1 tensors loaded from here"
    assert strip_wrappers("_orig_mod.module.a.module.b") == "a.module.b"
