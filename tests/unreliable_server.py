"""A web server on this machine that fails as told: it cuts, lies, stalls, redirects, or is busy."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Site:
    """What is served, and how.

    Attributes:
        files: path -> content.
        behave: path -> what to do with the n-th request of that path (from 0); None serves the file well.
        requests: method, path and Range header of each request, in order.
        headers: of each request, names in lower case.
        store: where it keeps its large files, if that is another site.
    """

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    behave: dict[str, Callable[[Handler, int], None]] = field(default_factory=dict)
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    store: Site | None = None

    def gets(self, path: str) -> list[str]:
        """The Range headers of the GET requests of a path."""
        return [ranged for method, asked, ranged in self.requests if method == "GET" and asked == path]


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves a `Site`, with ranges as RFC 9110 has them."""

    site: Site
    etag = '"v1"'

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        number = sum(asked == self.path and method == self.command for method, asked, _ in self.site.requests)
        self.site.requests.append((self.command, self.path, self.headers.get("Range", "")))
        self.site.headers.append({name.lower(): value for name, value in self.headers.items()})
        self.site.behave.get(self.path, lambda handler, _: handler.serve())(self, number)

    def serve(self, *, ranges=True, cut=None, stated=None, etag=None, extra=None, drip=None):
        """Serve the file of this path.

        Args:
            ranges: whether ranges are honoured.
            cut: close the connection after so many bytes of the body.
            stated: Content-Length, where it is not the true one.
            etag: of the file; "" sends none.
            extra: further headers.
            drip: (bytes, seconds): so many at a time.
        """
        content = self.site.files.get(self.path)
        if content is None:
            self.refuse(404)
            return
        etag = self.etag if etag is None else etag
        start = 0
        asked = self.headers.get("Range", "")
        if ranges and asked and self.headers.get("If-Range", etag) == etag:
            start = int(asked.removeprefix("bytes=").partition("-")[0])
        if start and start >= len(content):
            self.refuse(416, {"Content-Range": f"bytes */{len(content)}"})
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        length = len(content) - start if stated is None else stated
        for name, value in {"Content-Length": str(length), **({"ETag": etag} if etag else {}), **(extra or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        body = content[start : None if cut is None else start + cut]
        step, pause = drip or (len(body) or 1, 0.0)
        try:
            for at in range(0, len(body), step):
                self.wfile.write(body[at : at + step])
                self.wfile.flush()
                time.sleep(pause)
        except OSError:
            pass  # the client left
        self.close_connection = True

    def refuse(self, status, headers=None):
        """An answer without a body."""
        self.send_response(status)
        for name, value in {"Content-Length": "0", **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format, *args):  # noqa: A002 (the name that the base class gave it)
        pass


@contextmanager
def serving(etag: str = '"v1"') -> Iterator[Site]:
    """A site on a port of this machine."""
    site = Site()
    handler = type("OwnHandler", (Handler,), {"site": site, "etag": etag})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    site.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
