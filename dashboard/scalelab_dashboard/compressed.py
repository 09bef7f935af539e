"""Streamlit's own files, compressed once and kept: a third of the bytes of a first visit.

Streamlit sends its scripts as they are, because compressing them at every request takes time. Here
each is compressed once, and the largest ones when the server starts.
"""

from __future__ import annotations

import asyncio
import gzip
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

STATIC = Path(streamlit.__file__).parent / "static"
ENDINGS = {".js": b"application/javascript", ".css": b"text/css"}
FIRST = ("PlotlyChart.*.js", "index.*.js", "index.*.css", "react-dom.*.js")
"""Files of the first view that are compressed at the start."""
GZIP, BROTLI = "gzip", "br"
LEVELS = {GZIP: 6, BROTLI: 9}
"""Level by encoding; browsers accept Brotli from this machine and over HTTPS."""
LEAST_BYTES = 2_000


class Compressed:
    """ASGI middleware that answers requests for Streamlit's scripts from compressed copies."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._kept: dict[tuple[Path, str], bytes] = {}
        threading.Thread(target=self._prepare, daemon=True).start()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        found = file_of(scope)
        if found is None:
            await self.app(scope, receive, send)
            return
        path, encoding = found
        body = self._kept.get(found)
        if body is None:
            body = await asyncio.to_thread(self._compress, *found)
        headers = [
            (b"content-type", ENDINGS[path.suffix]),
            (b"content-encoding", encoding.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"vary", b"accept-encoding"),
            # The names contain a hash of the content.
            (b"cache-control", b"public, immutable, max-age=31536000"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _compress(self, path: Path, encoding: str) -> bytes:
        content = path.read_bytes()
        if encoding == BROTLI:
            import pyarrow as pa

            codec = pa.Codec("brotli", compression_level=LEVELS[BROTLI])
            body = bytes(codec.compress(content, asbytes=True))
        else:
            body = gzip.compress(content, LEVELS[GZIP], mtime=0)
        self._kept[path, encoding] = body
        return body

    def _prepare(self) -> None:
        for pattern in FIRST:
            for path in STATIC.glob(f"static/*/{pattern}"):
                self._compress(path, BROTLI)


def file_of(scope: Scope) -> tuple[Path, str] | None:
    """Return the file to answer with and its encoding; None if Streamlit answers itself."""
    if scope["type"] != "http" or scope["method"] != "GET":
        return None
    headers = dict(scope["headers"])
    accepted = {
        word.split(";")[0].strip()
        for word in headers.get(b"accept-encoding", b"").decode("latin-1").split(",")
    }
    encoding = next((each for each in (BROTLI, GZIP) if each in accepted), None)
    if encoding is None or b"range" in headers:
        return None
    parts = scope["path"].strip("/").split("/")
    if len(parts) != 3 or parts[0] != "static" or ".." in parts:
        return None
    path = STATIC.joinpath(*parts)
    if path.suffix not in ENDINGS or not path.is_file() or path.stat().st_size < LEAST_BYTES:
        return None
    return path, encoding
