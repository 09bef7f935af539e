"""A page keeps its answers until those about new runs are there, and not forever."""

from __future__ import annotations

import time
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from scalelab_dashboard import held, queries
from scalelab_dashboard.fits import FitKey, Job


class Page:
    """A page with one answer about a table, and the jobs that were asked for its new rows."""

    def __init__(self, file: Path) -> None:
        self.file, self.asked = file, list[Job]()
        self.write(1)
        key = FitKey(stamp="", results=str(file.parent), file=str(file))
        self.shown = self.job("fit", held.newest(key))

    def write(self, n_rows: int) -> None:
        self.file.write_text("row\n" * n_rows)

    def job(self, kind: str, key: FitKey) -> Job:
        return Job(kind=kind, key=key, work=str, future=Future[Any](), started_s=time.monotonic())

    def again(self, job: Job, key: FitKey) -> Job:
        known = {each.key: each for each in (self.shown, *self.asked)}
        if key not in known:
            self.asked.append(self.job(job.kind, key))
        return known.get(key) or self.asked[-1]


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Page:
    monkeypatch.setattr(held.st, "session_state", {})
    found = Page(tmp_path / "runs.csv")
    monkeypatch.setattr(queries, "fits", lambda: SimpleNamespace(again=found.again))
    held.begin()
    held.note(found.shown)
    return found


def test_the_page_stays_until_the_answer_about_new_rows_is_there(page: Page) -> None:
    page.shown.future.set_result("fit")
    assert not held.is_held()  # the rows are the same
    page.write(2)
    assert held.is_held()
    assert held.is_held()
    assert [each.key for each in page.asked] == [held.newest(page.shown.key)]
    page.asked[0].future.set_result("fit of new rows")
    assert not held.is_held()


def test_rows_that_come_while_the_page_waits_are_asked_for_when_the_worker_is_free(
    page: Page,
) -> None:
    page.shown.future.set_result("fit")
    page.write(2)
    assert held.is_held()
    page.write(3)
    assert held.is_held()
    assert len(page.asked) == 1
    page.asked[0].future.set_result("fit of new rows")
    assert held.is_held()
    assert page.asked[1].key == held.newest(page.shown.key)


def test_a_page_that_waits_itself_is_drawn_at_once(page: Page) -> None:
    page.write(2)
    assert not held.is_held()
    assert page.asked == []


def test_a_page_is_not_held_for_ever(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    page.shown.future.set_result("fit")
    page.write(2)
    assert held.is_held()
    monkeypatch.setattr(held, "HELD_S", 0.0)
    assert not held.is_held()


def test_a_page_that_is_drawn_again_holds_what_it_shows_then(page: Page) -> None:
    page.shown.future.set_result("fit")
    held.begin()
    page.write(2)
    assert not held.is_held()
