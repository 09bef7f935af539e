"""The server's sockets send at once; see `scalelab_dashboard.at_once`."""

from __future__ import annotations

import asyncio
import socket

from scalelab_dashboard import at_once


def test_a_connection_of_a_listening_socket_has_no_delay() -> None:
    """As Streamlit makes it: without a protocol, so that asyncio leaves the delay on."""
    with socket.socket() as listener, socket.socket() as browser:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        async def connect() -> int:
            async with at_once.lifespan(None):
                browser.connect(listener.getsockname())
                with listener.accept()[0] as found:
                    return found.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

        assert asyncio.run(connect()) != 0
        assert listener.getsockname()  # the socket is still open


def test_the_server_starts_with_it() -> None:
    from scalelab_dashboard import server

    assert server.app._user_lifespan is at_once.lifespan
