"""Runs that start from published weights: fetched once, written down, and still written down after a resume."""

from __future__ import annotations

import hashlib

import pytest
from albums import FLAGS, TINY, class_folders, command
from safetensors.torch import save

import kiln
from kiln.models.create import create_model
from unreliable_server import serving


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.setenv("KILN_CACHE", str(tmp_path / "cache"))
    network = create_model(TINY["model"], num_classes=3, kwargs=TINY["kwargs"], seed=7).model
    with serving() as site:
        site.files["/nets/cnn.safetensors"] = save(network.state_dict())
        yield site


def test_a_run_says_where_its_weights_came_from(site, tmp_path):
    photos = class_folders(tmp_path / "photos")
    url, content = f"{site.address}/nets/cnn.safetensors", site.files["/nets/cnn.safetensors"]
    digest = hashlib.sha256(content).hexdigest()
    site.behave["/nets/cnn.safetensors"] = lambda handler, number: handler.serve(cut=None if number else 1000)
    flags = ("--weights", f"{url}#sha256={digest}", "--output", tmp_path / "runs", "--name", "one")
    said = command("train", photos, *FLAGS, *flags)
    assert said.status == 0, said.err
    assert f"weights of {url}, SHA-256 {digest}" in said.out
    assert site.gets("/nets/cnn.safetensors") == ["", "bytes=1000-"]
    recorded = kiln.Run(tmp_path / "runs/one").resolved["facts"]["weights"]
    assert (recorded["url"], recorded["sha256"]) == (url, digest)
    said = command("resume", tmp_path / "runs/one", "--extend", "1ep")
    assert said.status == 0, said.err
    assert kiln.Run(tmp_path / "runs/one").resolved["facts"]["weights"] == recorded
    said = command("train", photos, *FLAGS, "--output", tmp_path / "runs", "--name", "scratch")
    assert "weights" not in kiln.Run(tmp_path / "runs/scratch").resolved["facts"]


def test_wrong_weights_stop_a_training_before_it_starts(site, tmp_path):
    photos = class_folders(tmp_path / "photos")
    url = f"{site.address}/nets/cnn.safetensors#sha256={'0' * 64}"
    said = command("train", photos, *FLAGS, "--weights", url, "--output", tmp_path / "runs")
    assert said.status == 4
    assert "error E307" in said.err
    assert "another file than promised" in said.err
    assert list((tmp_path / "runs").iterdir()) == []
