"""Streamlit's scripts are sent compressed, and nothing else is touched."""

from __future__ import annotations

import asyncio
import gzip
from typing import Any

import pyarrow as pa
import pytest
from scalelab_dashboard.compressed import STATIC, Compressed, file_of


def request(path: str, accepted: str = "gzip, deflate, br, zstd", **more: Any) -> dict[str, Any]:
    headers = [(b"accept-encoding", accepted.encode()), *more.pop("headers", [])]
    return {"type": "http", "method": "GET", "path": path, "headers": headers, **more}


def script() -> str:
    return next(each.name for each in (STATIC / "static" / "js").glob("index.*.js"))


@pytest.mark.parametrize("encoding", ["br", "gzip"])
def test_a_script_is_sent_compressed_with_its_content(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scalelab_dashboard.compressed.FIRST", ())
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    middleware = Compressed(None)  # type: ignore[arg-type]
    scope = request(f"/static/js/{script()}", f"deflate, {encoding};q=0.9")
    asyncio.run(middleware(scope, None, send))  # type: ignore[arg-type]
    headers, body = dict(sent[0]["headers"]), sent[1]["body"]
    original = (STATIC / "static" / "js" / script()).read_bytes()
    assert headers[b"content-encoding"] == encoding.encode()
    assert int(headers[b"content-length"]) == len(body) < len(original) / 2
    plain = (
        gzip.decompress(body)
        if encoding == "gzip"
        else pa.decompress(body, len(original), "brotli", asbytes=True)
    )
    assert plain == original


@pytest.mark.parametrize(
    "scope",
    [
        request("/static/js/no-such-file.js"),
        request("/static/../app.py"),
        request("/static/js/../../../../../../etc/passwd.js"),
        request("/_stcore/health"),
        request("/"),
        {"type": "websocket", "path": "/_stcore/stream", "headers": []},
        {**request("/static/js/x.js"), "method": "POST"},
    ],
)
def test_other_requests_are_left_to_streamlit(scope: dict[str, Any]) -> None:
    assert file_of(scope) is None


def test_a_client_that_takes_no_compression_or_a_part_gets_the_file_itself() -> None:
    assert file_of(request(f"/static/js/{script()}")) is not None
    assert file_of(request(f"/static/js/{script()}", "identity")) is None
    assert file_of(request(f"/static/js/{script()}", headers=[(b"range", b"bytes=0-1")])) is None


def test_the_first_page_names_the_scripts_of_the_first_view() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def streamlit(*_: Any) -> None:
        raise AssertionError("the first page is answered here")

    async def receive() -> Any:
        raise AssertionError("the first page has no body to read")

    asyncio.run(Compressed(streamlit)(request("/"), receive, send))
    page = sent[1]["body"].decode()
    folder = STATIC / "static" / "js"
    linked = [part.split('"')[0] for part in page.split("./static/js/")[1:]]
    assert int(dict(sent[0]["headers"])[b"content-length"]) == len(sent[1]["body"])
    assert len(linked) == len(set(linked))
    assert all((folder / name).is_file() for name in linked)
    parts = {name.split(".")[0] for name in linked}
    assert {"PlotlyChart", "Radio", "Selectbox", "withFullScreenWrapper"} <= parts
    assert page.endswith((STATIC / "index.html").read_text().split("</head>", 1)[1])
