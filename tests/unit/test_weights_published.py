"""Published weights by name: the hub as its client sees it, torchvision's lists, addresses, files fetched by hand."""

import hashlib
import json
import threading
from pathlib import Path

import platformdirs.macos
import platformdirs.unix
import pytest
import torch
from safetensors.torch import load_file, save

from kiln.cli import main
from kiln.errors import ArtifactError, SecurityError, UsageError
from kiln.jobs.weights import clear_weights, fetch_weights, list_weights, usual_places, verify_weights, where_weights
from kiln.models import convert as convert_module
from kiln.models import download as download_module
from kiln.models import published as published_module
from kiln.models.create import create_model
from kiln.models.download import Patience
from kiln.models.hub import hub_file
from kiln.models.published import from_address, published_as
from kiln.models.weights import open_weights
from unreliable_server import serving

REPO, COMMIT = "me/net", "c" * 40
RESOLVE = f"/{REPO}/resolve/main/model.safetensors"
PINNED = f"/{REPO}/resolve/{COMMIT}/model.safetensors"
STATE = {"weight": torch.arange(500_000, dtype=torch.float32), "bias": torch.ones(3)}
CONTENT = save(STATE)
BLOB = "/blob?signature=x"
DIGEST = hashlib.sha256(CONTENT).hexdigest()
SAMPLE = "https://example.org/files/net.safetensors"


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    for variable, folder in (("KILN_CACHE", "kiln"), ("HF_HOME", "hf"), ("TORCH_HOME", "torch")):
        monkeypatch.setenv(variable, str(tmp_path / folder))
    for variable in ("HF_HUB_CACHE", "HF_ENDPOINT", "HF_HUB_OFFLINE", "KILN_OFFLINE", "KILN_MIRROR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setattr(download_module, "PATIENT", Patience(silence_seconds=5, tries=3, pause_seconds=0))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


@pytest.fixture
def in_process(monkeypatch):
    """Convert pickles in this process, without limits: a child takes seconds to import torch."""
    monkeypatch.setattr(convert_module, "_limit", lambda size: None)
    monkeypatch.setattr(convert_module, "_run_child", convert_module._main)


@pytest.fixture
def site():
    with serving() as site:
        yield site


@pytest.fixture
def hub(site, monkeypatch):
    """A hub: HEAD of `resolve/main` tells commit, SHA-256 and size, and leads to another host, which has the bytes."""
    with serving() as store:
        store.files[BLOB] = CONTENT

        def resolve(handler, _):
            about = {"X-Repo-Commit": COMMIT, "X-Linked-Etag": f'"{DIGEST}"', "X-Linked-Size": str(len(CONTENT))}
            handler.refuse(302, {**about, "ETag": '"not the hash"', "Location": store.address + BLOB})

        site.behave |= {RESOLVE: resolve, PINNED: resolve}
        for name in ("pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin", "config.json"):
            site.behave[f"/{REPO}/resolve/main/{name}"] = missing
        site.store = store
        monkeypatch.setenv("HF_ENDPOINT", site.address)
        yield site


def missing(handler, _):
    handler.refuse(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})


def in_hub_cache(folder):
    return folder / "hf" / "hub" / "models--me--net"


# --- the hub ----------------------------------------------------------------------------------------------------------


def test_a_hub_file_is_fetched_verified_and_kept_as_the_hub_keeps_it(hub, surroundings, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "s" * 20)
    state, origin = open_weights(f"hf-hub:{REPO}")
    assert torch.equal(state["weight"], STATE["weight"])
    assert (origin.url, origin.sha256) == (hub.address + RESOLVE, DIGEST)
    assert Path(origin.path) == in_hub_cache(surroundings) / "snapshots" / COMMIT / "model.safetensors"
    assert Path(origin.path).resolve().name == DIGEST
    assert (in_hub_cache(surroundings) / "refs" / "main").read_text() == COMMIT
    assert hub.store.gets(BLOB) == [""]
    tokens = {
        request[:2]: headers.get("authorization") for request, headers in zip(hub.requests, hub.headers, strict=True)
    }
    assert tokens["HEAD", RESOLVE] == tokens["GET", PINNED] == "Bearer hf_" + "s" * 20
    assert "authorization" not in hub.store.headers[0]  # whoever keeps the bytes has no business with the token
    hub.requests.clear()
    assert open_weights(f"hf-hub:{REPO}")[1] == origin
    assert hub.requests == []


def test_a_hub_download_goes_on_after_it_broke(hub, surroundings):
    hub.store.behave[BLOB] = lambda handler, number: (
        handler.serve(cut=1_500_000) if number == 0 else handler.refuse(503)
    )
    with pytest.raises(ArtifactError, match=r"503[\s\S]*kept: 1,500,000 bytes") as caught:
        hub_file(REPO, ("model.safetensors",))
    assert caught.value.code == "E301"
    assert not list(in_hub_cache(surroundings).glob("snapshots/*/*"))
    assert [row["cache"] for row in list_weights()] == ["unfinished"]
    hub.store.behave.pop(BLOB)
    assert hub_file(REPO, ("model.safetensors",)).read_bytes() == CONTENT
    assert hub.store.gets(BLOB)[-1] == "bytes=1500000-"


def test_wrong_bytes_from_the_hub_are_not_kept(hub, surroundings):
    hub.store.files[BLOB] = CONTENT[:-1] + b"x"
    with pytest.raises(ArtifactError, match="another file than promised: SHA-256 is") as caught:
        hub_file(REPO, ("model.safetensors",))
    assert caught.value.code == "E307"
    assert not [path for path in in_hub_cache(surroundings).rglob("*") if path.is_file()]


def test_a_busy_hub_is_asked_again_and_a_missing_repository_is_not(hub):
    well = hub.behave[RESOLVE]
    hub.behave[RESOLVE] = lambda handler, number: handler.refuse(503) if number < 2 else well(handler, number)
    assert hub_file(REPO, ("model.safetensors",)).read_bytes() == CONTENT
    hub.requests.clear()
    with pytest.raises(ArtifactError, match="404"):
        hub_file("me/gone", ("model.safetensors",))
    assert len(hub.requests) <= 2


def test_a_damaged_blob_of_the_cache_is_noticed(hub):
    path = hub_file(REPO, ("model.safetensors",))
    blob = path.resolve()
    blob.write_bytes(CONTENT[:-4] + b"abcd")
    with pytest.raises(ArtifactError, match=r"SHA-256 is [\s\S]*delete") as caught:
        hub_file(REPO, ("model.safetensors",))
    assert caught.value.code == "E307"


def test_mirrors_of_the_hub(hub, monkeypatch, surroundings):
    """The first mirror is gone, the second is a plain copy of the files, as `wget -x` makes it."""
    place = "/copies/huggingface.co"
    hub.files[place + RESOLVE] = CONTENT
    monkeypatch.setenv("KILN_MIRROR", f"{hub.address}/gone {hub.address}/copies")
    path = hub_file(REPO, ("model.safetensors",))
    assert path == in_hub_cache(surroundings) / "snapshots" / "by-hand" / "model.safetensors"
    assert path.read_bytes() == CONTENT
    assert hub.store.gets(BLOB) == []
    path.unlink()
    hub.files[place + RESOLVE] = CONTENT[:-100]  # a copy that was cut while it was made: the publisher is asked next
    assert hub_file(REPO, ("model.safetensors",)).resolve().name == DIGEST


# --- addresses --------------------------------------------------------------------------------------------------------


def test_weights_of_an_address(site, surroundings):
    site.files["/a/net.safetensors"] = CONTENT
    url = f"{site.address}/a/net.safetensors"
    state, origin = open_weights(url)
    assert torch.equal(state["bias"], STATE["bias"])
    assert (origin.url, origin.sha256) == (url, DIGEST)
    assert Path(origin.path).is_relative_to(surroundings / "kiln" / "downloads")
    open_weights(url)
    assert len(site.requests) == 1
    open_weights(f"{url}#sha256={DIGEST.upper()}")
    site.files["/b/net.safetensors"] = save({"other": torch.ones(1)})
    assert list(open_weights(f"{site.address}/b/net.safetensors")[0]) == ["other"]  # the same name, another file
    damaged = bytearray(CONTENT)
    damaged[-1] ^= 1
    Path(origin.path).write_bytes(damaged)
    with pytest.raises(ArtifactError, match="is not the file its name promises"):  # as it was when it was fetched
        open_weights(url)


def test_an_address_with_another_hash_is_refused(site):
    site.files["/a/net.safetensors"] = CONTENT
    with pytest.raises(ArtifactError, match="another file than promised") as caught:
        open_weights(f"{site.address}/a/net.safetensors#sha256={'0' * 64}")
    assert caught.value.code == "E307"
    assert list_weights() == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (SAMPLE + "#sha256=12", "64 hexadecimal digits"),
        (SAMPLE + "#md5=12", "64 hexadecimal digits"),
        ("https://example.org/", "ends with the name of a file"),
        ("hf-hub:../../x/y", "hf-hub:OWNER/NAME"),
        ("resnet18.nope", "unknown weights"),
        ("resnet1888", "unknown model"),
        ("torchvision/resnet18.IMAGENET1K_V9", "IMAGENET1K_V1"),
        ("ResNet1_Weights.DEFAULT", "ResNet18_Weights"),
    ],
)
def test_names_that_name_nothing(text, words):
    with pytest.raises(UsageError, match=words):
        published_as(text)


def test_a_name_from_an_address_leads_nowhere_else():
    assert from_address("https://a.org/x/..%2F..%2Fetc%2Fpasswd").file == "passwd"
    assert from_address("https://a.org/x/.hidden.pth").file == "hidden.pth"
    with pytest.raises(SecurityError, match="over https only"):
        open_weights("http://example.org/a.pth")


# --- torchvision and timm ---------------------------------------------------------------------------------------------


def publish_for_torchvision(site, monkeypatch, name, entry, state, path):
    """Let an entry of torchvision's list name a file of our server, with its hash in the name."""
    import torchvision

    torch.save(state, path)
    content = path.read_bytes()
    file = f"{name}-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    site.files[f"/models/{file}"] = content
    kind = type(torchvision.models.get_model_weights(name)[entry])
    url = f"{site.address}/models/{file}"
    own = kind.url.fget if isinstance(kind.__dict__.get("url"), property) else lambda entry: entry.value.url
    monkeypatch.setattr(kind, "url", property(lambda self: url if self.name == entry else own(self)), raising=False)
    return url


def test_an_entry_of_torchvisions_list(site, surroundings, monkeypatch, in_process):
    import torchvision

    theirs = torchvision.models.squeezenet1_1(weights=None).state_dict()
    url = publish_for_torchvision(site, monkeypatch, "squeezenet1_1", "IMAGENET1K_V1", theirs, surroundings / "x")
    for weights in ("IMAGENET1K_V1", "SqueezeNet1_1_Weights.IMAGENET1K_V1"):
        made = create_model("torchvision/squeezenet1_1", num_classes=3, weights=weights)
        assert made.report.origin.url == url
        own = made.model.state_dict()
        assert torch.equal(own["features.3.squeeze.weight"], theirs["features.3.squeeze.weight"])
    assert len(site.requests) == 1
    assert any(f"weights of {url}, SHA-256 {made.report.origin.sha256}" in note for note in made.notes)
    assert made.report.origin.sha256.startswith(url[-12:-4])
    with pytest.raises(UsageError, match="no such file"):
        create_model("torchvision/squeezenet1_1", num_classes=3, weights="IMAGENET1K_V7")


def test_entries_with_other_images_bring_their_own(monkeypatch, surroundings):
    from kiln.models.family import Wanted
    from kiln.models.torchvision_family import build_torchvision, entry_of

    assert entry_of("resnet50", "IMAGENET1K_V1") == entry_of("resnet50", "ResNet50_Weights.IMAGENET1K_V1")
    assert entry_of("resnet50", "ResNet18_Weights.IMAGENET1K_V1") == entry_of("nope", "DEFAULT") == ""
    Path("IMAGENET1K_V1").touch()
    assert entry_of("resnet50", "IMAGENET1K_V1") == ""  # a file of the user's own
    first, second = (build_torchvision(Wanted("mobilenet_v2", 3, entry=f"IMAGENET1K_V{n}")) for n in (1, 2))
    assert (first.crop_fraction, second.crop_fraction) == (224 / 256, 224 / 232)


def test_a_timm_file_of_the_publisher_serves_where_the_hub_has_not_been(surroundings, monkeypatch):
    """timm names the hub and the publisher; a file fetched by hand from either is found."""
    published = published_as("resnet18.a1_in1k")
    assert published.repo == "timm/resnet18.a1_in1k"
    file = Path("resnet18_a1_0-d63eafa0.pth")
    file.write_bytes(b"not it")
    again = published_as("resnet18.a1_in1k")
    assert (again.file, again.sha256, again.find().name) == (file.name, "d63eafa0", file.name)
    with pytest.raises(ArtifactError, match="is not the file its name promises"):
        again.obtain()
    assert published_as("gcvit_tiny").sha256 == "ac783954"  # a model that the hub has not


# --- by hand ----------------------------------------------------------------------------------------------------------


def put(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(CONTENT)


@pytest.mark.parametrize("name", [f"hf-hub:{REPO}", SAMPLE, f"{SAMPLE}#sha256={DIGEST}"])
def test_a_file_put_where_it_belongs_is_found_without_a_connection(name, monkeypatch):
    monkeypatch.setenv("KILN_OFFLINE", "1")
    (where,) = where_weights([name])
    assert where["here"] is None
    with pytest.raises(ArtifactError, match="KILN_OFFLINE is set") as caught:
        open_weights(name)
    assert f"put it at {where['path']}" in str(caught.value)
    put(Path(where["path"]))
    assert open_weights(name)[1].sha256 == DIGEST
    assert where_weights([name])[0]["here"] == where["path"]
    Path(where["path"]).write_bytes(CONTENT[:-1])  # half a file, fetched by hand, is not taken for a whole one
    with pytest.raises(ArtifactError) as caught:
        open_weights(name)
    assert caught.value.code == "E307"


@pytest.mark.parametrize("name", [f"hf-hub:{REPO}", f"{SAMPLE}#sha256={DIGEST}"])
def test_a_file_beside_the_script_is_found(name, monkeypatch, surroundings):
    monkeypatch.setenv("KILN_OFFLINE", "1")
    (where,) = where_weights([name])
    put(Path(where["beside"]))
    assert open_weights(name)[1].path == str(Path.cwd() / where["beside"])
    monkeypatch.chdir(surroundings)  # the script lies elsewhere than where it is called from
    script = type(published_module)("__main__")
    script.__file__ = str(surroundings / "work" / "mine.py")
    monkeypatch.setitem(published_module.sys.modules, "__main__", script)
    assert open_weights(name)[1].sha256 == DIGEST


def test_a_common_name_beside_the_script_is_not_taken(monkeypatch):
    monkeypatch.setenv("KILN_OFFLINE", "1")
    for name in ("net.safetensors", "model.safetensors"):
        put(Path(name))
    for name in (SAMPLE, f"hf-hub:{REPO}"):
        with pytest.raises(ArtifactError, match="KILN_OFFLINE"):
            open_weights(name)


def test_a_pinned_file_in_torchs_cache_is_found(surroundings, monkeypatch):
    monkeypatch.setenv("KILN_OFFLINE", "1")
    put(surroundings / "torch" / "hub" / "checkpoints" / "net.safetensors")
    assert open_weights(f"{SAMPLE}#sha256={DIGEST}")[1].sha256 == DIGEST
    with pytest.raises(ArtifactError):
        open_weights(SAMPLE)  # of the same name, but nothing says that it is the same file


def test_the_usual_places_are_those_of_the_platforms(monkeypatch):
    for variable in ("KILN_CACHE", "HF_HOME", "TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    home = str(Path.home())
    monkeypatch.setattr(published_module, "cache_folder", lambda name: Path(platformdirs.user_cache_dir("kiln")) / name)
    places = usual_places(published_as(SAMPLE))
    assert places["Linux"].replace("~", home).startswith(platformdirs.unix.Unix("kiln").user_cache_dir + "/downloads/")
    mac = platformdirs.macos.MacOS("kiln").user_cache_dir
    assert places["macOS"].replace("~", home).startswith(mac + "/downloads/")
    assert places["Windows"].startswith(r"%LOCALAPPDATA%\kiln\kiln\Cache\downloads" + "\\")
    pinned = published_as("torchvision/resnet50")
    assert usual_places(pinned)["Linux"].replace("~", home) == str(pinned.target)
    assert usual_places(pinned)["Windows"] == r"%USERPROFILE%\.cache\torch\hub\checkpoints" + "\\" + pinned.file


# --- the verb ---------------------------------------------------------------------------------------------------------


def said(capsys, *arguments):
    status = main(["weights", *arguments, "--json"])
    return status, [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]


def test_fetch_list_verify_and_clear(hub, surroundings, capsys, in_process):
    hub.files["/a/net.safetensors"] = CONTENT
    torch.save(STATE, surroundings / "x.pth")
    hub.files["/a/old.pth"] = (surroundings / "x.pth").read_bytes()
    url, old = f"{hub.address}/a/net.safetensors", f"{hub.address}/a/old.pth"
    status, (fetched,) = said(capsys, "fetch", f"hf-hub:{REPO}", url, old)
    assert status == 0
    assert [(row["fetched"], row["sha256"] == DIGEST) for row in fetched["weights"]] == [
        (True, True),
        (True, True),
        (True, False),
    ]
    assert [row["fetched"] for row in fetch_weights([url])] == [False]
    open_weights(old)
    _, (listed,) = said(capsys, "list")
    assert [row["cache"] for row in listed["weights"]] == ["hub", "kiln", "kiln", "converted"]
    assert [row["name"] for row in list_weights("me/*")] == [REPO]
    status, (verified,) = said(capsys, "verify")
    assert (status, {row["verdict"] for row in verified["weights"]}) == (0, {"as promised"})
    hurt = Path(next(row["path"] for row in listed["weights"] if row["cache"] == "converted"))
    hurt.write_bytes(hurt.read_bytes()[:-1] + b"x")
    status, (verified, error) = said(capsys, "verify")
    assert (status, error["error"]["code"], [row["whole"] for row in verified["weights"]].count(False)) == (
        4,
        "E307",
        1,
    )
    assert {row["cache"] for row in clear_weights()} == {"kiln", "converted"}
    assert [row["cache"] for row in list_weights()] == ["hub"]
    assert [row["name"] for row in clear_weights([f"hf-hub:{REPO}"])] == [REPO]
    assert list_weights() == []
    assert not list(in_hub_cache(surroundings).glob("blobs/*"))


def test_what_another_process_fetches_is_not_cleared(hub):
    hub.store.behave[BLOB] = lambda handler, number: (
        handler.serve(cut=1_500_000) if number == 0 else handler.refuse(404)
    )
    with pytest.raises(ArtifactError):
        hub_file(REPO, ("model.safetensors",))
    (row,) = list_weights()
    target = Path(row["path"]).with_name(row["file"])
    with download_module._alone_with(target):
        cleared = []
        thread = threading.Thread(target=lambda: cleared.append(clear_weights()))
        thread.start()
        thread.join(30)
        assert cleared == [[]]
    assert [row["cache"] for row in clear_weights()] == ["unfinished"]
    assert list_weights() == []


def test_a_file_of_the_hub_put_by_hand_is_compared_with_the_hubs_hash(hub, surroundings, monkeypatch):
    path = Path(where_weights([f"hf-hub:{REPO}"])[0]["path"])
    put(path)
    assert [row["verdict"] for row in verify_weights([f"hf-hub:{REPO}"])] == ["as promised"]
    other = save({"weight": STATE["weight"] + 1, "bias": STATE["bias"]})
    assert len(other) == len(CONTENT)
    path.write_bytes(other)
    (row,) = verify_weights([f"hf-hub:{REPO}"])
    assert row["verdict"] == f"SHA-256 is {hashlib.sha256(other).hexdigest()}, not {DIGEST}"
    monkeypatch.setenv("KILN_OFFLINE", "1")
    assert verify_weights([f"hf-hub:{REPO}"])[0]["verdict"] == "its form is whole; no hash is known"
    assert verify_weights([str(path)])[0]["whole"]
    with pytest.raises(ArtifactError, match=r"are not here[\s\S]*kiln weights fetch hf-hub:me/other"):
        verify_weights(["hf-hub:me/other"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ftch"], "did you mean: fetch"),
        (["fetch"], "kiln weights fetch resnet18"),
        (["where"], "needs a name"),
        (["list", "a", "b"], "one pattern"),
    ],
)
def test_usage(arguments, words, capsys):
    assert main(["weights", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_what_a_person_reads(hub, capsys):
    assert main(["weights"]) == 0
    assert "0 files here" in capsys.readouterr().out
    assert main(["weights", "fetch", f"hf-hub:{REPO}"]) == 0
    out = capsys.readouterr().out
    assert f"SHA-256  {DIGEST}" in out
    assert "2.0 MB  fetched" in out
    assert main(["weights", "where", f"hf-hub:{REPO}", SAMPLE, "torchvision/resnet50"]) == 0
    out = capsys.readouterr().out
    for words in ("starts with 11ad3fa6", "pins it", DIGEST, "%USERPROFILE%", "me--net--model.safetensors, in the"):
        assert words in out
    assert main(["weights", "verify"]) == 0
    assert "as promised" in capsys.readouterr().out
    assert main(["weights", "clear", f"hf-hub:{REPO}"]) == 0
    assert "1 files removed, 2 MB" in capsys.readouterr().out


def test_a_model_says_where_its_weights_came_from(hub, in_process):
    made = create_model("kiln/small_cnn", num_classes=3, img_size=8, kwargs={"widths": [4, 8]})
    content = save(made.model.state_dict())
    digest = hashlib.sha256(content).hexdigest()
    hub.files["/a/cnn.safetensors"] = content
    again = create_model(
        "kiln/small_cnn",
        num_classes=3,
        img_size=8,
        kwargs={"widths": [4, 8]},
        seed=1,
        weights=f"{hub.address}/a/cnn.safetensors#sha256={digest}",
    )
    assert again.report.missing == ()
    assert again.report.origin.sha256 == digest
    assert load_file(again.report.origin.path).keys() == made.model.state_dict().keys()
    assert f"weights of {hub.address}/a/cnn.safetensors, SHA-256 {digest}" in again.notes
