"""A click on a run in any figure opens that run; a click on a curve does not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import streamlit as st
from scalelab_dashboard import point, queries
from scalelab_dashboard.choice import Choice
from scalelab_dashboard.fits import FitKey


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (["1M", "2B", "r7"], "r7"),
        (["1M", "2B", "a&lt;b", "a<b"], "a<b"),
        (["1.2e20", "1M", "2B"], None),
        (["1M", "2B"], None),
    ],
)
def test_only_a_run_is_taken_from_a_click(
    monkeypatch: pytest.MonkeyPatch, data: list[str], expected: str | None
) -> None:
    address: dict[str, str] = {}
    state: dict[str, Any] = {"figure": {"selection": {"points": [{"customdata": data}]}}}
    monkeypatch.setattr(st, "session_state", state)
    monkeypatch.setattr(st, "query_params", address)
    rows = SimpleNamespace(names=["r7", "a<b"])
    monkeypatch.setattr(queries, "observed", lambda key: (rows, None))
    key = FitKey(stamp="", results="", holdout="n_params > 1")
    point.clicks(Choice(results="", stamp="", whole=key))("figure")
    assert address.get(point.RUN) == expected
