"""Streamlit's own files, compressed once and kept: a third of the bytes of a first visit.

Streamlit sends its scripts as they are, because compressing them at every request takes time. Here
each is compressed once, and the largest ones when the server starts. The first page also names the
scripts of the first view, so that the browser loads and compiles Plotly while it waits for the
answer; Streamlit asks for it only when the first figure has arrived.
"""

from __future__ import annotations

import asyncio
import gzip
import re
import threading
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

STATIC = Path(streamlit.__file__).parent / "static"
ENDINGS = {".js": b"application/javascript", ".css": b"text/css"}
FIRST = ("PlotlyChart.*.js", "index.*.js", "index.*.css", "react-dom.*.js")
"""Files of the first view that are compressed at the start."""
PARTS = ("PlotlyChart", "Radio", "Selectbox", "TextInput", "Html", "Expander")
"""Scripts of the first view that Streamlit loads when an element of theirs arrives."""
PAGES = ("/", "/index.html")
_IMPORT = re.compile(r'(?:from|import)\s*"\./([\w.-]+\.js)"')
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
        if scope["type"] == "http" and scope["method"] == "GET" and scope["path"] in PAGES:
            await _answer(send, await asyncio.to_thread(first_page))
            return
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
        first_page()
        for pattern in FIRST:
            for path in STATIC.glob(f"static/*/{pattern}"):
                self._compress(path, BROTLI)


@lru_cache(maxsize=1)
def first_page() -> bytes:
    """Return Streamlit's page with the scripts of the first view named as well."""
    text = (STATIC / "index.html").read_text(encoding="utf-8")
    links = [
        f'<link rel="modulepreload" crossorigin href="./static/js/{name}">'
        for name in scripts_of(PARTS)
        if f"/{name}" not in text
    ]
    return text.replace("</head>", "\n".join([*links, "</head>"]), 1).encode()


def scripts_of(parts: tuple[str, ...]) -> list[str]:
    """Return the files of some scripts and of what they import, in the order of their names.

    Parameters
    ----------
    parts : tuple of str
        Names without their hash; one that this version of Streamlit does not have is left out.
    """
    folder = STATIC / "static" / "js"
    found: set[str] = set()
    waiting = [path.name for part in parts for path in folder.glob(f"{part}.*.js")]
    while waiting:
        name = waiting.pop()
        if name not in found and (folder / name).is_file():
            found.add(name)
            waiting += _IMPORT.findall((folder / name).read_text(encoding="utf-8"))
    return sorted(found)


async def _answer(send: Send, page: bytes) -> None:
    headers = [
        (b"content-type", b"text/html; charset=utf-8"),
        (b"content-length", str(len(page)).encode()),
        # as Streamlit sends it: the page names other scripts after an upgrade
        (b"cache-control", b"no-cache"),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": page})


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
