"""The end of a run is heard before the next run starts; see `scalelab_dashboard.in_order`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from scalelab_dashboard import in_order
from streamlit.proto.ClientState_pb2 import ClientState
from streamlit.runtime.app_session import AppSession, AppSessionState
from streamlit.runtime.forward_msg_queue import ForwardMsgQueue
from streamlit.runtime.scriptrunner import ScriptRunnerEvent as Event
from streamlit.runtime.scriptrunner_utils.run_descriptor import RunDescriptor

PART = "a part that reruns by itself"


class Runner:
    """A runner whose thread has ended: it refuses runs."""

    def request_rerun(self, asked: Any) -> bool:
        return False


class Session(AppSession):
    """A session without a server; it has nothing to end."""

    def has_fragment(self, fragment_id: str) -> bool:
        return fragment_id == PART

    def __del__(self) -> None:
        pass


class Started(Runner):
    """A runner that a session has started."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def request_rerun(self, asked: Any) -> bool:
        self.asked.append(asked)
        return True


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the runs that sessions start, with the change of the page's server."""
    found: list[Any] = []

    def create(session: AppSession, asked: Any) -> None:
        session._scriptrunner = Started()  # type: ignore[assignment]
        found.append(asked)

    monkeypatch.setattr(AppSession, "_create_scriptrunner", create)
    monkeypatch.setattr(in_order, "_create", create)
    in_order.install()
    return found


def session_of(runner: Runner) -> AppSession:
    """Return a session whose page has a part, and whose runner is about to be heard."""
    session = Session.__new__(Session)
    session._event_loop = asyncio.get_running_loop()
    session._state = AppSessionState.APP_IS_RUNNING
    session._scriptrunner = runner  # type: ignore[assignment]
    session._browser_queue = ForwardMsgQueue()
    session._message_enqueued_callback = None
    session._local_sources_watcher = None
    session._settled = None
    session._client_state = ClientState()
    return session


def tick() -> ClientState:
    """Return what the browser sends when a part's time has come."""
    return ClientState(fragment_id=PART, is_auto_rerun=True)


def test_the_end_of_a_run_is_heard_when_a_part_asks_at_that_moment(started: list[Any]) -> None:
    ended = Runner()

    async def page() -> list[str | None]:
        session = session_of(ended)
        end, of = Event.SCRIPT_STOPPED_WITH_SUCCESS, RunDescriptor.create()
        session._on_scriptrunner_event(ended, end, run_descriptor=of)
        session._on_scriptrunner_event(ended, event=Event.SHUTDOWN)
        session.request_rerun(tick())
        await until(lambda: bool(started))
        return [each.WhichOneof("type") for each in session._browser_queue._queue]

    assert "script_finished" in asyncio.run(page())
    assert [each.fragment_id for each in started] == [PART]


@pytest.mark.parametrize("is_auto", [True, False])
def test_a_newer_run_of_the_page_is_not_run_again_for_a_timer(
    started: list[Any], is_auto: bool
) -> None:
    """What a user asks of a part is run; what a timer asks comes again with newer choices."""
    newer = Started()

    async def page() -> None:
        session = session_of(Runner())
        asked = tick()
        asked.is_auto_rerun = is_auto
        session.request_rerun(asked)
        session._scriptrunner = newer  # type: ignore[assignment]
        if is_auto:
            await asyncio.sleep(10 * in_order.RETRY_S)
        else:
            await until(lambda: bool(newer.asked))

    asyncio.run(page())
    assert started == []
    assert len(newer.asked) == (0 if is_auto else 1)


def test_a_session_that_ends_starts_nothing(started: list[Any]) -> None:
    async def page() -> None:
        session = session_of(Runner())
        session.request_rerun(tick())
        session._state = AppSessionState.SHUTDOWN_REQUESTED
        await asyncio.sleep(10 * in_order.RETRY_S)

    asyncio.run(page())
    assert started == []


def test_the_server_starts_with_it() -> None:
    from scalelab_dashboard import server

    assert server.app is not None
    assert AppSession._create_scriptrunner is in_order.start


async def until(is_done: Callable[[], bool]) -> None:
    """Wait, for a minute at least, until something is done."""
    for _ in range(60_000):
        if is_done():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("nothing started")
