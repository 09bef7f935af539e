"""Answers without TCP's delay of small packets, which costs 40 ms a file.

A server that writes in parts, as Streamlit's does, sends the second part when the browser has
confirmed the first (Nagle's algorithm), and a browser waits 40 ms before it confirms. asyncio
turns this off only for sockets that name TCP as their protocol; Streamlit's names none.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

OPEN_FILES = "/dev/fd"
"""Lists the open files of a process, on Linux and macOS."""


@asynccontextmanager
async def lifespan(_: object) -> AsyncIterator[None]:
    """Run a server whose sockets send at once; they are open when this starts."""
    send_at_once()
    yield


def send_at_once() -> None:
    """Turn the delay off for the process's sockets; a connection inherits it from its listener."""
    for number in map(int, os.listdir(OPEN_FILES) if os.path.isdir(OPEN_FILES) else ()):
        with suppress(OSError):  # the listing itself is closed again
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                found = socket.socket(fileno=number)
                try:
                    if found.family in (socket.AF_INET, socket.AF_INET6):
                        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                finally:
                    found.detach()  # it belongs to the server
