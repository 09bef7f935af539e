"""What a view waits for: a fit that has just started, and rows that were not read yet."""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scalelab_dashboard import assess, queries, waiting
from scalelab_dashboard.fits import FitKey, Job

LONG_S = 30.0


def old_job() -> Job:
    return Job(
        kind="fit",
        key=FitKey(stamp="", results=""),
        work=str,
        future=Future(),
        started_s=time.monotonic() - LONG_S,
    )


def test_a_view_does_not_wait_for_a_fit_that_an_earlier_one_has_waited_for() -> None:
    job = old_job()
    before = time.monotonic()
    assert waiting._soon(job, LONG_S) is None
    assert time.monotonic() - before < LONG_S / 2


def test_a_fit_that_is_done_is_shown_however_old_it_is() -> None:
    job = old_job()
    job.future.set_result("fit")
    assert waiting._soon(job, LONG_S) == "fit"


def test_rows_are_read_once_for_all_levels_and_laws(
    small_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, read = [], assess.used_rows
    monkeypatch.setattr(assess, "used_rows", lambda **options: asked.append(1) or read(**options))
    key = FitKey(stamp="rows read once", results=str(small_store))
    first: Any = queries.observed(key)
    other: Any = queries.observed(replace(key, level=0.8, form="kaplan"))
    assert len(asked) == 1
    assert first[0] is other[0]
    width = [each[1].curves[0].n_params for each in (first, other)]
    assert width[1].high - width[1].low < width[0].high - width[0].low
    queries.observed(replace(key, where="n_params > 0"))
    assert len(asked) == 2
