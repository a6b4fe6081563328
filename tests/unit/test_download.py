"""Downloads from servers that cut, lie, stall, redirect and are busy (RELIABILITY S04): whole and verified, or not there."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple

import pytest

from kiln.errors import ArtifactError, ResourceError, SecurityError
from kiln.models import download as download_module
from kiln.models import partial as partial_module
from kiln.models.download import Patience, download, mirrors, public_address, refuse_insecure, with_mirrors
from kiln.models.integrity import Promise, form_problem, hash_in_name
from unreliable_server import serving

CONTENT = random.Random(0).randbytes(3_000_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
KNOWN = Promise(DIGEST, len(CONTENT))
QUICK = Patience(silence_seconds=5, tries=3, pause_seconds=0)
PATH = "/files/a.bin"


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    monkeypatch.setenv("KILN_CACHE", str(tmp_path / "cache"))
    for name in ("KILN_OFFLINE", "HF_HUB_OFFLINE", "KILN_MIRROR", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def site():
    with serving() as site:
        site.files[PATH] = CONTENT
        yield site


@pytest.fixture
def target(tmp_path):
    return tmp_path / "there" / "a.bin"


def fetch(site, target, promise=KNOWN, patience=QUICK, **arguments):
    return download((site.address + PATH,), target, promise=promise, patience=patience, **arguments)


def left_in(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize("promise", [KNOWN, Promise(DIGEST[:8]), Promise()])
def test_a_good_server_is_asked_once(site, target, promise):
    assert fetch(site, target, promise) == site.address + PATH
    assert target.read_bytes() == CONTENT
    assert left_in(target.parent) == ["a.bin"]
    assert site.gets(PATH) == [""]
    if promise.sha256:
        assert fetch(site, target, promise) == ""
        assert len(site.requests) == 1


@pytest.mark.parametrize("promise", [KNOWN, Promise()])
def test_a_cut_connection_is_gone_on_with(site, target, promise):
    site.behave[PATH] = lambda handler, number: handler.serve(cut=1_200_000 if number < 2 else None)
    fetch(site, target, promise)
    assert target.read_bytes() == CONTENT
    assert site.gets(PATH) == ["", "bytes=1200000-", "bytes=2400000-"]
    assert left_in(target.parent) == ["a.bin"]


def test_another_call_goes_on_where_the_last_gave_up(site, target):
    site.behave[PATH] = lambda handler, number: handler.serve(cut=500_000) if number == 0 else handler.refuse(503)
    with pytest.raises(ArtifactError, match=r"answered 503 .*given up after 3 tries") as caught:
        fetch(site, target)
    assert caught.value.code == "E301"
    assert caught.value.kept.startswith("500,000 bytes in ")
    assert not target.exists()
    site.behave.clear()
    fetch(site, target)
    assert site.gets(PATH)[-1] == "bytes=500000-"
    assert target.read_bytes() == CONTENT


def test_a_server_without_ranges_gives_all_again(site, target):
    site.behave[PATH] = lambda handler, number: handler.serve(ranges=False, cut=2_000_000 if number == 0 else None)
    fetch(site, target)
    assert site.gets(PATH) == ["", "bytes=2000000-"]
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("promise", [Promise(hashlib.sha256(CONTENT[::-1]).hexdigest()), Promise()])
def test_a_file_that_changed_meanwhile_is_fetched_anew(site, target, promise):
    def change(handler, number):
        if number == 0:
            handler.serve(cut=1_000_000)
        else:
            site.files[PATH] = CONTENT[::-1]
            handler.serve(etag='"v2"')

    site.behave[PATH] = change
    fetch(site, target, promise)
    assert site.headers[1]["if-range"] == '"v1"'
    assert target.read_bytes() == CONTENT[::-1]


def test_pieces_of_two_files_are_noticed_and_fetched_once_more(site, target):
    """A server that changes the file and says nothing: no ETag, ranges honoured."""

    def change(handler, number):
        if number == 1:
            site.files[PATH] = CONTENT[::-1]
        handler.serve(etag="", cut=1_500_000 if number == 0 else None)

    site.behave[PATH] = change
    fetch(site, target, Promise(hashlib.sha256(CONTENT[::-1]).hexdigest()))
    assert site.gets(PATH) == ["", "bytes=1500000-", ""]
    assert target.read_bytes() == CONTENT[::-1]


def test_without_hash_and_validator_nothing_is_pieced_together(site, target):
    site.behave[PATH] = lambda handler, number: handler.serve(etag="", cut=1_500_000 if number == 0 else None)
    fetch(site, target, Promise())
    assert site.gets(PATH) == ["", ""]
    assert target.read_bytes() == CONTENT


def test_wrong_bytes_are_not_kept(site, target):
    site.files[PATH] = CONTENT[:-1] + b"x"
    with pytest.raises(ArtifactError, match=r"gave another file than promised: SHA-256 is") as caught:
        fetch(site, target)
    assert caught.value.code == "E307"
    assert left_in(target.parent) == []
    assert "put it at " + str(target) in str(caught.value)


def test_an_older_file_stays_until_the_new_one_is_verified(site, target):
    target.parent.mkdir()
    target.write_bytes(b"old")
    site.files[PATH] = b"wrong"
    with pytest.raises(ArtifactError):
        fetch(site, target, Promise(DIGEST))
    assert target.read_bytes() == b"old"
    site.files[PATH] = CONTENT
    fetch(site, target, Promise(DIGEST))
    assert target.read_bytes() == CONTENT


def test_a_length_that_is_too_small_gives_no_half_file(site, target):
    site.behave[PATH] = lambda handler, _: handler.serve(stated=1000)
    with pytest.raises(ArtifactError, match="another file than promised"):
        fetch(site, target, Promise(DIGEST))
    with pytest.raises(ArtifactError, match="it would give 1,000 bytes instead of 3,000,000"):
        fetch(site, target)
    assert left_in(target.parent) == []


@pytest.mark.parametrize("ranges", [True, False])
def test_a_length_that_is_too_large(site, target, ranges):
    site.behave[PATH] = lambda handler, _: handler.serve(stated=4_000_000, ranges=ranges)
    fetch(site, target, Promise(DIGEST))  # the hash tells that all is here
    assert target.read_bytes() == CONTENT
    target.unlink()
    if not ranges:
        with pytest.raises(ArtifactError, match="the connection ended at 3,000,000 of 4,000,000 bytes"):
            fetch(site, target, Promise())
        assert not target.exists()


def test_a_length_beyond_the_disk_is_refused_before_a_byte_is_written(site, target, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**10, 0, 10**9))
    site.behave[PATH] = lambda handler, _: handler.serve(stated=10**10)
    with pytest.raises(ResourceError, match=r"10,000 MB are to come, and 1,000 MB are free") as caught:
        fetch(site, target, Promise(DIGEST))
    assert caught.value.code == "E401"
    assert left_in(target.parent) == []


@pytest.mark.parametrize("promise", [Promise(DIGEST), Promise()])
def test_an_empty_file_is_none(site, target, promise):
    site.files[PATH] = b""
    with pytest.raises(ArtifactError, match="another file than promised: it is empty"):
        fetch(site, target, promise)
    assert left_in(target.parent) == []


def test_a_stream_without_an_end_stops_before_the_disk_is_full(site, target, monkeypatch):
    monkeypatch.setattr(partial_module, "SYNC_BYTES", 1 << 20)
    usage = namedtuple("usage", "total used free")
    asked = []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: asked.append(1) or usage(0, 0, 10**9 if len(asked) < 3 else 10))

    def endless(handler, _):
        handler.send_response(200)
        handler.end_headers()
        handler.close_connection = True
        try:
            while True:
                handler.wfile.write(CONTENT)
        except OSError:
            pass  # the client left

    site.behave[PATH] = endless
    with pytest.raises(ResourceError, match="34 MB are to come, and 0 MB are free"):
        fetch(site, target, Promise(DIGEST))
    assert left_in(target.parent) == []


def test_a_piece_that_nobody_asked_for_is_not_taken(site, target):
    def other(handler, number):
        if number > 1:
            handler.serve()
            return
        handler.send_response(206)
        handler.send_header("Content-Range", "bytes 0-9/10" if number == 0 else "bytes 7-9/10")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    site.behave[PATH] = other
    fetch(site, target, Promise())
    assert site.gets(PATH) == ["", "", ""]
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refusal_is_not_asked_again(site, target, status):
    site.behave[PATH] = lambda handler, _: handler.refuse(status)
    with pytest.raises(ArtifactError, match=f"{PATH}: the server answered {status}") as caught:
        fetch(site, target)
    assert caught.value.code == "E301"
    assert len(site.requests) == 1
    assert left_in(target.parent) == []


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(site, target, status):
    site.behave[PATH] = lambda handler, number: handler.serve() if number == 2 else handler.refuse(status)
    fetch(site, target)
    assert target.read_bytes() == CONTENT
    assert len(site.requests) == 3


def test_retry_after_is_respected_and_pauses_grow_within_bounds(site, target, monkeypatch):
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    answers = [{"Retry-After": "7"}, {"Retry-After": "9999"}, {}, {}]
    site.behave[PATH] = lambda handler, number: handler.refuse(503, answers[min(number, 3)])
    with pytest.raises(ArtifactError):
        fetch(site, target, patience=Patience(tries=5, pause_seconds=1))
    assert slept == [7, 30, 4, 8]


def test_a_drip_is_given_up(site, target):
    site.behave[PATH] = lambda handler, _: handler.serve(drip=(10, 0.02))
    with pytest.raises(ArtifactError, match=r"only [\d,]+ bytes came in 0 s"):
        fetch(site, target, patience=Patience(tries=2, pause_seconds=0, slow_seconds=0.1, slow_bytes=100_000))
    assert not target.exists()


def test_a_silent_server_is_given_up(site, target):
    silence = threading.Event()
    site.behave[PATH] = lambda _handler, _number: silence.wait(10) and None
    began = time.monotonic()
    with pytest.raises(ArtifactError, match="timed out"):
        fetch(site, target, patience=Patience(silence_seconds=0.3, tries=2, pause_seconds=0))
    assert time.monotonic() - began < 8
    silence.set()


def test_redirections(site, target):
    site.behave["/moved"] = lambda handler, _: handler.refuse(302, {"Location": PATH})
    download(
        (site.address + "/moved",), target, promise=KNOWN, headers={"Authorization": "Bearer secret"}, patience=QUICK
    )
    assert target.read_bytes() == CONTENT
    assert [headers.get("authorization") for headers in site.headers] == ["Bearer secret", None]
    target.unlink()
    site.behave[PATH] = lambda handler, number: handler.serve(cut=1_000_000 if number == 1 else None)
    download((site.address + "/moved",), target, promise=KNOWN, patience=QUICK)
    assert site.gets(PATH)[-1] == "bytes=1000000-"  # a redirection is followed anew: signed addresses expire


@pytest.mark.parametrize("place", ["http://example.org/a", "ftp://example.org/a", "file:///etc/passwd"])
def test_redirections_to_what_is_not_https_are_refused(site, target, place):
    site.behave[PATH] = lambda handler, _: handler.refuse(302, {"Location": place})
    with pytest.raises((SecurityError, ArtifactError), match=r"https only|not allowed"):
        fetch(site, target)
    assert left_in(target.parent) == []


def test_https_is_not_left_for_this_machine_either(site):
    request = download_module.urllib.request.Request("https://example.org/a")
    with (
        open(os.devnull, "rb") as body,
        pytest.raises(SecurityError, match=r"https://example.org/a leads to http://127.*not encrypted") as caught,
    ):
        download_module._Redirections().redirect_request(request, body, 302, "", {}, site.address + PATH)
    assert caught.value.code == "E704"


def test_which_addresses_are_secure(monkeypatch):
    for good in ("https://a.org/x", "http://localhost:1/x", "http://127.0.0.1/x", "http://[::1]/x"):
        refuse_insecure(good)
    for bad in ("http://a.org/x", "ftp://a.org/x", "file:///x", "x", "http://localhost.evil.org/", "http://10.0.0.1/"):
        with pytest.raises(SecurityError, match="over https only"):
            refuse_insecure(bad)
    monkeypatch.setenv("KILN_MIRROR", "http://mirror.lan/a")
    refuse_insecure("http://mirror.lan/a/b")
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.lan")
    with pytest.raises(SecurityError):
        refuse_insecure("http://hub.lan/b")  # named as https


def test_mirrors_come_first_and_in_order(monkeypatch, site, target):
    assert mirrors() == ()
    assert with_mirrors("https://a.org/x/y?z=1") == ("https://a.org/x/y?z=1",)
    monkeypatch.setenv("KILN_MIRROR", f"{site.address}/one/, {site.address}/two")
    publisher = f"{site.address}{PATH}"
    host = site.address.removeprefix("http://")
    assert with_mirrors(publisher) == (
        f"{site.address}/one/{host}{PATH}",
        f"{site.address}/two/{host}{PATH}",
        publisher,
    )
    site.files[f"/two/{host}{PATH}"] = b"not the file"
    assert download(with_mirrors(publisher), target, promise=KNOWN, patience=QUICK) == publisher
    assert target.read_bytes() == CONTENT
    site.files[PATH] = b"wrong too"
    target.unlink()
    with pytest.raises(ArtifactError) as caught:
        download(with_mirrors(publisher), target, promise=Promise(DIGEST), patience=QUICK)
    assert [line.partition(": ")[2][:24] for line in caught.value.details[:1]] == ["the server answered 404 "]
    assert sum("another file than promised" in line for line in caught.value.details) == 2


@pytest.mark.parametrize("variable", ["KILN_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_nothing_is_asked(monkeypatch, site, target, variable):
    monkeypatch.setenv(variable, "1")
    with pytest.raises(ArtifactError, match=rf"a.bin is not here, and {variable} is set[\s\S]*put it at") as caught:
        fetch(site, target)
    assert caught.value.code == "E301"
    assert site.requests == []


def test_compressed_transfer_and_web_pages_are_not_taken_for_files(site, target):
    site.behave[PATH] = lambda handler, _: handler.serve(extra={"Content-Encoding": "gzip"})
    with pytest.raises(ArtifactError, match=r"in another form \(gzip\)"):
        fetch(site, target, Promise())
    site.behave.clear()
    site.files["/a.safetensors"] = b"neither the one nor the other"
    with pytest.raises(ArtifactError, match="its safetensors header cannot be read"):
        download((f"{site.address}/a.safetensors",), target.with_name("a.safetensors"), patience=QUICK)
    site.files[PATH] = b"\n<!doctype html><title>Log in</title>"
    with pytest.raises(ArtifactError, match="it is a web page"):
        fetch(site, target, Promise())
    assert left_in(target.parent) == []


def test_the_form_tells_what_is_cut(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save

    whole = save({"a": torch.ones(100), "b": torch.zeros(3)})
    torch.save({"a": torch.ones(100)}, tmp_path / "whole.pth")
    for name, content in (("a.safetensors", whole), ("b.pth", (tmp_path / "whole.pth").read_bytes())):
        path = tmp_path / name
        path.write_bytes(content)
        assert form_problem(path) == ""
        for cut in (content[:-1], content[: len(content) // 2], b""):
            path.write_bytes(cut)
            assert form_problem(path)
    path.write_bytes(b"not a safetensors file")
    assert form_problem(path.rename(tmp_path / "c.safetensors")) == "its safetensors header cannot be read"
    for name, content, problem in (("c.json", b'{"cfg": {"a": 1}}', ""), ("d.json", b'{"cfg": {', "it is not JSON")):
        (tmp_path / name).write_bytes(content)
        assert form_problem(tmp_path / name) == problem
    assert hash_in_name("resnet18-f37072fd.pth") == "f37072fd"
    assert hash_in_name("model.safetensors") == ""


def test_a_full_disk_is_told_apart_from_the_network(site, target, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(partial_module.os, "fsync", full)
    with pytest.raises(ResourceError, match="the disk is full"):
        fetch(site, target)
    assert len(site.requests) == 1
    assert not target.exists()


def test_after_a_power_cut_only_what_was_synced_counts_without_a_hash(site, target, monkeypatch):
    monkeypatch.setattr(partial_module, "SYNC_BYTES", 1 << 20)
    site.behave[PATH] = lambda handler, number: handler.serve(cut=2_500_000) if number == 0 else handler.refuse(404)
    with pytest.raises(ArtifactError):
        fetch(site, target, Promise())
    part, note = target.with_name(".a.bin.part"), target.with_name(".a.bin.part.json")
    noted = json.loads(note.read_text())
    assert noted["synced"] == 2_500_000
    note.write_text(json.dumps(noted | {"synced": 1_000_000}))  # as if the rest had only been on its way
    part.write_bytes(part.read_bytes()[:1_000_000] + bytes(1_500_000))
    site.behave.clear()
    fetch(site, target, Promise())
    assert site.gets(PATH)[-1] == "bytes=1000000-"
    assert target.read_bytes() == CONTENT


def test_an_address_is_written_down_without_its_secrets(site, target):
    assert public_address("https://me:secret@a.org/b/c.pth?sig=secret#x") == "https://a.org/b/c.pth"
    site.behave[f"{PATH}?sig=secret"] = lambda handler, number: (
        handler.refuse(403) if number else (site.files.update({handler.path: CONTENT}), handler.serve(cut=1000))
    )
    with pytest.raises(ArtifactError) as caught:
        download((f"{site.address}{PATH}?sig=secret",), target, promise=KNOWN, patience=QUICK)
    assert "secret" not in str(caught.value)
    assert b"secret" not in b"".join(path.read_bytes() for path in target.parent.glob(".*.json"))


CHILD = """
import sys
from pathlib import Path
from kiln.models.download import Patience, download
from kiln.models.integrity import Promise
print("ready", flush=True)
download((sys.argv[1],), Path(sys.argv[2]), promise=Promise(sys.argv[3]), patience=Patience(pause_seconds=0))
"""


def start(site, target):
    command = [sys.executable, "-c", CHILD, site.address + PATH, str(target), DIGEST]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_process_leaves_no_file_and_the_next_goes_on(site, target):
    site.behave[PATH] = lambda handler, number: handler.serve(drip=None if number else (1_000_000, 0.7))
    child = start(site, target)
    part = target.with_name(".a.bin.part")
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size >= 1_000_000) and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.communicate(timeout=30)
    assert not target.exists()
    kept = part.stat().st_size
    assert 1_000_000 <= kept < len(CONTENT)
    fetch(site, target)
    assert site.gets(PATH) == ["", f"bytes={kept}-"]
    assert target.read_bytes() == CONTENT
    assert left_in(target.parent) == ["a.bin"]


def test_two_processes_at_once_fetch_it_once(site, target):
    site.behave[PATH] = lambda handler, _: handler.serve(drip=(500_000, 0.5))
    children = [start(site, target) for _ in range(2)]
    said = [child.communicate(timeout=120)[1] for child in children]
    assert [child.returncode for child in children] == [0, 0], said
    assert sorted("waiting for another process that fetches a.bin" in text for text in said) == [False, True]
    assert site.gets(PATH) == [""]
    assert target.read_bytes() == CONTENT
    assert left_in(target.parent) == ["a.bin"]


def test_progress_is_drawn_on_a_terminal_only(site, target, tmp_path):
    pty, termios = pytest.importorskip("pty"), pytest.importorskip("termios")
    site.behave[PATH] = lambda handler, _: handler.serve(drip=(1_000_000, 0.2))
    screen, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 100))
    command = [sys.executable, "-c", CHILD, site.address + PATH, str(target), DIGEST]
    with subprocess.Popen(command, stdout=terminal, stderr=terminal) as child:
        os.close(terminal)
        drawn = b""
        try:
            while read := os.read(screen, 4096):
                drawn += read
        except OSError:  # the terminal is gone with its last user
            pass
    os.close(screen)
    assert child.returncode == 0
    assert b"a.bin:" in drawn
    assert b"3.00M" in drawn
    site.files[PATH] = CONTENT
    plain = start(site, tmp_path / "a.bin").communicate(timeout=60)
    assert plain == ("ready\n", "")
