"""Runs of the page one after the other, so that the browser hears the end of each.

Streamlit's session runs the page in a thread and hears of its end through its event loop. A part
that reruns by itself may ask between the two: the thread is done, its last events still wait. The
session then starts another thread and ignores what the one before it has still to say. The
browser never hears that a run of the whole page ended, and keeps what that run no longer draws,
such as "This view updates when it is done", until the next one.
"""

from __future__ import annotations

from typing import Any

from streamlit.runtime.app_session import AppSession, AppSessionState

RETRY_S = 0.002
_create = AppSession._create_scriptrunner


def install() -> None:
    """Make every session of this process start a run when the last one's end has been heard."""
    AppSession._create_scriptrunner = start  # type: ignore[method-assign, assignment]


def start(session: AppSession, asked: Any) -> None:
    """Start a run of the page, at once or when the events of the last run have been heard.

    Parameters
    ----------
    session : AppSession
        With a runner only if that runner has refused this run, because it has ended.
    asked : RerunData
        What to run.
    """
    ended = session._scriptrunner
    if ended is None:
        _create(session, asked)
        return

    def wait() -> None:
        # The runner's last event, which waits in the loop or comes soon, sets it to None.
        session._event_loop.call_later(RETRY_S, _again, session, ended, asked)

    session._call_soon_on_event_loop(wait)


def _again(session: AppSession, ended: Any, asked: Any) -> None:
    """Start the run, or leave it to the runner that another request has started meanwhile."""
    if session._state == AppSessionState.SHUTDOWN_REQUESTED:
        return
    now = session._scriptrunner
    if now is None or now is ended:
        start(session, asked)
        return
    if asked.is_auto_rerun:
        return  # its timer asks again, with the choices of that moment
    if not now.request_rerun(asked):
        start(session, asked)
