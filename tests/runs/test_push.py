"""`kiln push` against a hub on this machine, driven by the real client; and the card that a run writes."""

from __future__ import annotations

import json

import pytest
import yaml
from albums import FLAGS, command, split_folders

import kiln
from hub_server import hub_serving
from kiln.errors import ArtifactError, KilnError, SecurityError, UsageError
from kiln.reports.card import write_card
from kiln.run import Run

# the client hands its own HTTP library bytes in a way that the library is about to give up
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
SECRET = "hf_abcdefghijklmnopqrstuvwx"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on data under an absolute path, as most are."""
    place = tmp_path_factory.mktemp("home of someone")
    split_folders(place / "photos")
    made = command("train", place / "photos", *FLAGS, "--output", place / "runs", "--name", "one")
    assert made.status == 0, made.err
    return Run(place / "runs" / "one")


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # the hub below speaks LFS only
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between the client's tries
    for name in ("KILN_OFFLINE", "HF_HUB_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MY_TOKEN", SECRET)
    with hub_serving(SECRET) as served:
        yield served


def pushed(run, hub, *more):
    return command("push", run.path, "me/shirts", "--token-env", "MY_TOKEN", "--endpoint", hub.address, *more)


def test_what_goes_out_is_shown_and_arrives_whole(run, hub):
    write_card(run)
    said = pushed(run, hub, "--yes", "--private")
    assert said.status == 0, said.err
    lines = said.out.splitlines()
    assert lines[0].startswith("upload 4 files, ")
    assert [line.split()[0] for line in lines[2:6]] == [
        "model.safetensors",
        "README.md",
        "resolved.yaml",
        "recipe.yaml",
    ]
    assert lines[-1] == f"done   {hub.address}/me/shirts/commit/{'a' * 40}"
    files = hub.repos["me/shirts"]
    assert hub.private == {"me/shirts"}
    assert files["model.safetensors"] == run.model_file.read_bytes()
    assert files["README.md"].decode().startswith("---\n")
    assert SECRET not in said.out + said.err


def test_no_place_of_this_machine_and_no_secret_goes_out(run, hub, monkeypatch):
    card = write_card(run)
    card.write_text(card.read_text() + f"\nTrained in {run.path.parent} with token={SECRET}.\n")
    jpeg = "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgGBgcGBQgHBwcJ"
    page = f'<p>{run.recipe.data.path}</p><script>{json.dumps(str(run.path.resolve()))}</script><img src="data:;base64,{jpeg}">'
    (run.path / "report.html").write_text(page)
    try:
        assert pushed(run, hub, "--yes").status == 0
    finally:
        (run.path / "report.html").unlink()
        write_card(run)
    files = hub.repos["me/shirts"]
    assert set(files) == {"model.safetensors", "README.md", "report.html", "resolved.yaml", "recipe.yaml"}
    home = str(run.path.parents[1])
    for name, content in files.items():
        assert home.encode() not in content, name
        assert SECRET.encode() not in content, name
    assert "Trained in runs with token=[redacted]" in files["README.md"].decode()
    assert files["report.html"].decode() == f'<p>photos</p><script>"one"</script><img src="data:;base64,{jpeg}">'
    assert yaml.safe_load(files["resolved.yaml"])["values"]["data.path"] == "photos"


def test_a_second_push_sends_the_weights_only_once(run, hub):
    assert pushed(run, hub, "--yes").status == 0
    said = pushed(run, hub, "--yes", "--json")
    assert said.json["repo"] == "me/shirts"
    assert said.json["files"]["model.safetensors"] == run.model_file.stat().st_size
    assert sum(asked.startswith("PUT /upload/") for asked in hub.asked) == 1


def test_nothing_goes_out_unless_confirmed(run, hub):
    said = pushed(run, hub)
    assert said.status == 2
    assert "nothing was uploaded: it was not confirmed" in said.err
    assert "--yes uploads without asking" in said.err
    assert hub.asked == []


@pytest.mark.parametrize(
    ("place", "status", "words"),
    [
        ("/api/repos/create", 401, "status 401"),
        ("/api/repos/create", 403, "may not write there"),
        ("/preupload/", 404, "status 404"),
        ("/commit/", 409, "somebody else changed the repository"),
        ("/commit/", 412, "push again"),
        ("/api/repos/create", 0, "was not uploaded to 127.0.0.1"),
        ("/upload/", 0, "was not uploaded to 127.0.0.1"),
        ("/upload/", 403, "status 403"),
        ("/commit/", 0, "was not uploaded to 127.0.0.1"),
    ],
)
def test_what_a_hub_refuses_is_said_with_advice(run, hub, place, status, words):
    hub.refuse[place] = status
    said = pushed(run, hub, "--yes")
    assert said.status == ArtifactError.exit_code
    assert "error E309" in said.err
    assert words in said.err
    assert "  next: " in said.err
    assert SECRET not in said.out + said.err
    assert hub.repos.get("me/shirts", {}) == {}
    hub.refuse.clear()
    assert pushed(run, hub, "--yes").status == 0  # the same command, when the trouble is over


def test_a_card_that_the_hub_does_not_take_is_said(run, hub):
    card = run.path / "MODEL_CARD.md"
    card.write_text("no front matter\n")
    try:
        said = pushed(run, hub, "--yes")
    finally:
        write_card(run)
    assert said.status == ArtifactError.exit_code
    assert "no metadata" in said.err
    assert "correct MODEL_CARD.md" in said.err


@pytest.mark.parametrize(
    ("repo", "options", "error", "words"),
    [
        ("shirts", {}, UsageError, "OWNER/NAME"),
        ("me/shirts", {"endpoint": "http://example.org"}, SecurityError, "https only"),
        ("me/shirts", {"endpoint": "ftp://127.0.0.1"}, SecurityError, "https only"),
        ("me/shirts", {"token_env": "NO_SUCH_TOKEN"}, UsageError, "NO_SUCH_TOKEN is not set"),
    ],
)
def test_wrong_asks_are_refused_before_anything_is_sent(run, hub, repo, options, error, words):
    with pytest.raises(error, match=words):
        kiln.push(run, repo, **{"endpoint": hub.address, "token_env": "MY_TOKEN", **options})
    assert hub.asked == []


def test_offline_means_offline(run, hub, monkeypatch):
    monkeypatch.setenv("KILN_OFFLINE", "1")
    with pytest.raises(KilnError, match="KILN_OFFLINE is set"):
        kiln.push(run, "me/shirts", endpoint=hub.address, token_env="MY_TOKEN")
    assert hub.asked == []


def test_onnx_goes_with_it_when_asked(run, hub):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    done = kiln.push(run, "me/shirts", endpoint=hub.address, token_env="MY_TOKEN", with_onnx=True)
    assert "model.onnx" in {file.name for file in done.files}
    assert len(hub.repos["me/shirts"]["model.onnx"]) > 1000
    assert not (run.path / "model.onnx").exists()


def test_the_card_says_what_the_run_knows(run):
    from huggingface_hub import ModelCard

    path = write_card(run, license_name="apache-2.0")
    card, result = ModelCard.load(path), run.result
    assert (card.data.license, card.data.library_name, card.data.pipeline_tag) == (
        "apache-2.0",
        "kiln",
        "image-classification",
    )
    claimed = {(one.dataset_split, one.metric_type): one.metric_value for one in card.data.eval_results}
    for split, name in (("val", "validation"), ("test", "test")):
        for metric, found in result["metrics"][split].items():
            if isinstance(found["value"], float):
                assert claimed[name, metric] == pytest.approx(found["value"], abs=1e-6)
    text = path.read_text()
    measured = result["metrics"]["test"]["accuracy"]
    assert (
        f"| test | accuracy | {measured['value']:.3f} | {measured['low']:.3f} to {measured['high']:.3f} | 6 |" in text
    )
    assert run.resolved["facts"]["data"]["fingerprint"] in text
    assert "Classes: `blue`, `green`, `red`." in text
    assert "kiln train DATA --recipe recipe.yaml" in text
    assert str(run.path.parents[1]) not in text
    write_card(run)
    assert ModelCard.load(path).data.license == "unknown"


def test_a_card_without_test_data_says_what_was_not_measured(tmp_path):
    from albums import class_folders

    photos = class_folders(tmp_path / "photos")
    assert command("train", photos, *FLAGS, "--output", tmp_path / "runs", "--name", "one").status == 0
    text = write_card(Run(tmp_path / "runs" / "one")).read_text()
    assert "There was no test split" in text
    assert "Not measured: images of another origin" in text
