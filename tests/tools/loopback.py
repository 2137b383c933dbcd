"""A small file server on this machine that can be told to misbehave, for the tests of downloads."""

import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Page:
    content: bytes
    status: int = 200
    rate: float = 0.0  # bytes/s; 0: as fast as it goes
    quick_until: int = 0  # bytes sent at full speed before `rate` sets in
    ranges: str = "yes"  # "yes", "ignored" (answers 200 with everything) or "refused" (answers 416)
    breaks: list = field(default_factory=list)  # for each request: after how many bytes it is dropped
    stalls_after: int | None = None
    announced: int | None = None  # Content-Length, if not the truth; -1: not sent
    kind: str = "application/octet-stream"  # Content-Type


class Site:
    def __init__(self, pages):
        self.pages, self.requests, self.sent, self.closing = pages, [], 0, threading.Event()

    def url(self, path):
        return f"http://127.0.0.1:{self.port}{path}"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        site = self.server.site
        page = site.pages.get(self.path, Page(b"no such page", status=404))
        asked = self.headers.get("Range")
        site.requests.append((self.path, asked))
        status, start = page.status, 0
        if asked and status == 200 and page.ranges == "refused":
            status = 416
        elif asked and status == 200 and page.ranges == "yes":
            status, start = 206, int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
        body = page.content[start:] if status in (200, 206) else b""
        self.send_response(status)
        self.send_header("Content-Type", page.kind)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(page.content) - 1}/{len(page.content)}")
        if page.announced != -1:
            self.send_header("Content-Length", str(len(body) if page.announced is None else page.announced))
        self.end_headers()
        stop = page.breaks.pop(0) if page.breaks and body else None
        self._send(page, body[:stop])

    def _send(self, page, body):
        step = max(1, int(page.rate / 50)) if page.rate else 1 << 16
        for start in range(0, len(body), step):
            if page.stalls_after is not None and start >= page.stalls_after:
                self.server.site.closing.wait(30)
                return
            piece = body[start:start + step]
            self.server.site.sent += len(piece)     # before it goes: the client may look once it has all
            try:
                self.wfile.write(piece)
            except OSError:  # the client has left
                return
            if page.rate and start >= page.quick_until and self.server.site.closing.wait(step / page.rate):
                return


@contextmanager
def serve(pages):
    """Serve {path: Page} in a thread; yields the Site, which notes (path, Range header) of each request."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.block_on_close = False
    server.site = Site(pages)
    server.site.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server.site
    finally:
        server.site.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
