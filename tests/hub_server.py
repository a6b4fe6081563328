"""A Hugging Face hub on this machine: as much of one as its client calls to make a repository and commit files to it."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

LARGE = (".safetensors", ".onnx")


@dataclass
class Hub:
    """What it holds, and how it fails.

    Attributes:
        token: the only one that may write.
        repos: name -> file -> content, of what was committed.
        private: repositories that were made private.
        stored: SHA-256 -> content, of large files that arrived.
        refuse: the beginning of a path -> the status to answer there; 0 cuts the connection.
        asked: method and path of each request.
    """

    token: str
    address: str = ""
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    stored: dict[str, bytes] = field(default_factory=dict)
    refuse: dict[str, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers the client's requests for a `Hub`."""

    hub: Hub

    def do_POST(self):
        self._answer({
            "/api/repos/create": self._create, "/api/validate-yaml": self._validate, "/preupload/": self._preupload,
            "/objects/batch": self._batch, "/commit/": self._commit,
        })  # fmt: skip

    def do_PUT(self):
        self._answer({"/upload/": self._store})

    def do_GET(self):
        self._answer({"/revision/": self._info, "/api/models/": self._info})

    def _answer(self, routes: dict[str, Callable[[bytes], None]]):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.hub.asked.append(f"{self.command} {self.path}")
        for place, status in self.hub.refuse.items():
            if place in self.path:
                self._refuse(status)
                return
        if self.command != "PUT" and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self._refuse(401)
            return
        for place, answer in routes.items():
            if place in self.path:
                answer(body)
                return
        self._refuse(404)

    def _refuse(self, status: int):
        if status == 0:
            self.close_connection = True
            self.connection.close()
            return
        self._say({"error": f"refused with {status}; you sent {self.headers.get('Authorization')}"}, status)

    def _say(self, content: dict, status: int = 200):
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _repo(self) -> str:
        path = self.path.split("/api/models/")[-1] if "/api/models/" in self.path else self.path.lstrip("/")
        return "/".join(path.split("/")[:2]).removesuffix(".git")

    def _create(self, body: bytes):
        asked = json.loads(body)
        repo = f"{asked['organization']}/{asked['name']}"
        if repo in self.hub.repos:
            self._say({"error": "You already created this model repo", "url": f"{self.hub.address}/{repo}"}, 409)
            return
        self.hub.repos[repo] = {}
        if asked.get("private") or asked.get("visibility") == "private":
            self.hub.private.add(repo)
        self._say({"url": f"{self.hub.address}/{repo}"})

    def _validate(self, body: bytes):
        good = json.loads(body)["content"].startswith("---\n")
        self._say({"errors": [] if good else [{"message": "no metadata"}], "warnings": []}, 200 if good else 400)

    def _preupload(self, body: bytes):
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        self._say({"files": files})

    def _batch(self, body: bytes):
        objects = []
        for one in json.loads(body)["objects"]:
            href = f"{self.hub.address}/upload/{one['oid']}"
            known = one["oid"] in self.hub.stored
            objects.append({**one, **({} if known else {"actions": {"upload": {"href": href, "header": {}}}})})
        self._say({"transfer": "basic", "objects": objects})

    def _store(self, body: bytes):
        self.hub.stored[hashlib.sha256(body).hexdigest()] = body
        self._say({})

    def _commit(self, body: bytes):
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                self.hub.repos[self._repo()][entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            elif entry["key"] == "lfsFile":
                self.hub.repos[self._repo()][entry["value"]["path"]] = self.hub.stored[entry["value"]["oid"]]
        oid = "a" * 40
        self._say({"commitUrl": f"{self.hub.address}/{self._repo()}/commit/{oid}", "commitOid": oid})

    def _info(self, body: bytes):
        if self._repo() not in self.hub.repos:
            self._refuse(404)
            return
        self._say({"id": self._repo(), "sha": "a" * 40, "siblings": []})

    def log_message(self, format, *args):  # noqa: A002 (the name that the base class gave it)
        pass


@contextmanager
def hub_serving(token: str) -> Iterator[Hub]:
    """A hub on a port of this machine."""
    hub = Hub(token)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("OwnHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
