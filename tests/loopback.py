"""A web server of the test's own, on this machine."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

CONTENT = np.random.default_rng(0).bytes(300_000)


class Web:
    """A loopback server: ``answers`` maps a path to what it does; ``requests`` remembers what was asked."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.answers: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                web.requests.append((self.path, dict(self.headers)))
                web.answers[self.path](self)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def file(
        self,
        path: str,
        content: bytes = CONTENT,
        etag: str | None = '"v1"',
        cuts: int = 0,
        ranges: bool = True,
        if_range: bool = True,
    ) -> str:
        """Offer a file; the first ``cuts`` answers break off half way through what they promise."""
        left = [cuts]

        def answer(handler: BaseHTTPRequestHandler) -> None:
            asked = handler.headers.get("Range") if ranges else None
            if if_range and handler.headers.get("If-Range") not in (None, etag):
                asked = None
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
            if start >= len(content):
                handler.send_error(416)
                return
            body = content[start:]
            handler.send_response(206 if asked else 200)
            handler.send_header("Content-Length", str(len(body)))
            if asked:
                handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            if etag:
                handler.send_header("ETag", etag)
            handler.end_headers()
            left[0] -= 1
            handler.wfile.write(body[: len(body) // 2] if left[0] >= 0 else body)

        self.answers[path] = answer
        return self.url + path

    def status(self, path: str, *codes: int, then: Callable[[BaseHTTPRequestHandler], None] | None = None) -> str:
        """Answer with each status code in turn, the last one (or ``then``) for ever after."""
        left = list(codes)

        def answer(handler: BaseHTTPRequestHandler) -> None:
            if not left and then:
                then(handler)
                return
            handler.send_response(left.pop(0) if len(left) > 1 or then else left[0])
            handler.send_header("Content-Length", "0")
            handler.end_headers()

        self.answers[path] = answer
        return self.url + path
