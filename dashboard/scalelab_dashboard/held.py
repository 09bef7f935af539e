"""A page that stays as it is until the answers about new runs are there.

In a sweep that runs, the fit is asked for again whenever a run is done. Drawn at once, the page
would lose its answers while they are computed, and its readers their place.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import streamlit as st

from scalelab_dashboard import queries

if TYPE_CHECKING:
    from scalelab_dashboard.fits import FitKey, Job

HELD_S = 30.0
"""Longest time for which a page shows answers about earlier runs; then it says that it waits."""
SHOWN, NEXT, SINCE = "answers_shown", "answers_next", "answers_held_since"


def begin() -> None:
    """Forget the answers of the page that was drawn last; called first."""
    for key in (SHOWN, NEXT, SINCE):
        st.session_state.pop(key, None)


def note(job: Job) -> None:
    """Remember that the page shows the answer of this job."""
    st.session_state.setdefault(SHOWN, {})[job.kind, job.key] = job


def is_held() -> bool:
    """Return whether the page shows answers whose successors, about new runs, are not there yet.

    The first call asks for them. A page that waits for an answer itself is not held.
    """
    shown = tuple(st.session_state.get(SHOWN, {}).values())
    since = st.session_state.setdefault(SINCE, time.monotonic())
    if not all(job.future.done() for job in shown) or time.monotonic() - since > HELD_S:
        return False
    asked = st.session_state.get(NEXT, ())
    if all(job.future.done() for job in asked):
        # None was asked, or still newer runs may have come meanwhile.
        asked = tuple(queries.fits().again(job, newest(job.key)) for job in shown)
        st.session_state[NEXT] = asked
    return not all(job.future.done() for job in asked)


def newest(key: FitKey) -> FitKey:
    """Return the same request for the runs as they are now; unchanged if they are gone."""
    if key.file is not None:
        return replace(key, stamp=queries.stamp_of(key.results, key.file))
    source = queries.source_now(key.results, key.sweep)
    return key if source is None else replace(key, stamp=source.rows_stamp)
