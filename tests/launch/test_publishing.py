"""The tables show a sweep from its launch: its plan at once, and each change soon after."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import duckdb
import pytest

from scalelab.launch import publishing
from scalelab.launch.base import LaunchView
from scalelab.launch.execute import save
from scalelab.launch.proposal import propose
from scalelab.records.sweep_dir import Results
from scalelab.store.collect import LOCK_WAIT_S
from scalelab.store.live import collector_lock, live_folder, open_snapshot, snapshot_path
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.spec import sweep_from_mapping
from scalelab.sweep.speeds import unmeasured_cpu_speed

WAIT_S = 60.0
"""More than a busy machine needs; the test ends as soon as the tables change."""


@pytest.fixture
def planned(tmp_path: Path) -> tuple[Results, str]:
    """Return a results folder with a saved plan, and the first of its runs."""
    text, results = tmp_path / "text.d", Results(tmp_path / "results")
    text.mkdir()
    for number in range(20):
        (text / f"{number}.txt").write_text(f"{number} of many lines\n" * 400)
    sweep = sweep_from_mapping(
        {
            "kind": "grid",
            "name": "tiny",
            "n_params": "12K,30K",
            "n_tokens": 20_000,
            "data": {"paths": (str(text),), "eval_tokens": 4096},
            "train": {"seq_len": 32, "batch_seqs": 8},
        },
        source="the test",
    )
    proposal = propose(
        sweep,
        results,
        execution=ExecutionSpec(step="direct"),
        n_workers=1,
        is_dry_run=False,
        speed=unmeasured_cpu_speed(1),
    )
    return results, save(proposal, results).run_ids[0]


def states(results: Results) -> dict[str, int]:
    if not snapshot_path(results.path).exists():
        return {}
    with open_snapshot(results.path) as connection:
        query = "SELECT coalesce(status, 'planned'), count(*) FROM runs GROUP BY 1"
        return dict(connection.execute(query).fetchall())


def wait_for(found: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not found():
        assert time.monotonic() < deadline, "the tables were not published"
        time.sleep(0.02)


def test_the_plan_is_published_at_once_and_a_started_run_at_its_event(
    planned: tuple[Results, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only the event can be the reason of the second collection.
    monkeypatch.setattr(publishing, "PROGRESS", replace(publishing.PROGRESS, pause_s=10 * WAIT_S))
    results, run_id = planned
    with publishing.publishing(results.path) as watch:
        wait_for(lambda: states(results) == {"planned": 2})
        results.run(run_id).claim()
        watch(LaunchView(statuses={}, running=(run_id,), started_s=0.0, note="started"))
        wait_for(lambda: states(results) == {"planned": 1, "running": 1})


def test_a_collection_that_fails_ends_nothing(
    planned: tuple[Results, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def fails(results: Path, *, wait_s: float) -> None:
        tried.append(wait_s)
        raise duckdb.IOException("the disk is full")

    monkeypatch.setattr(publishing, "PROGRESS", replace(publishing.PROGRESS, pause_s=0.01))
    monkeypatch.setattr(publishing, "collect", fails)
    with publishing.publishing(planned[0].path):
        wait_for(lambda: len(tried) > 2)
    assert set(tried) == {0.0}


def test_another_collector_is_not_waited_for(planned: tuple[Results, str]) -> None:
    results, _ = planned
    with collector_lock(live_folder(results.path)):
        started = time.monotonic()
        with publishing.publishing(results.path):
            pass
        assert time.monotonic() - started < LOCK_WAIT_S
    assert not snapshot_path(results.path).exists()


@pytest.mark.parametrize("limits", ["PROGRESS", "EVENT"])
def test_a_slow_file_system_is_read_less_often(
    planned: tuple[Results, str], monkeypatch: pytest.MonkeyPatch, limits: str
) -> None:
    began = []

    def slow(results: Path, *, wait_s: float) -> None:
        began.append(time.monotonic())
        time.sleep(0.1)

    for name in ("PROGRESS", "EVENT"):
        quick = replace(getattr(publishing, name), pause_s=0.01)
        monkeypatch.setattr(publishing, name, quick)
    monkeypatch.setattr(publishing, "collect", slow)
    event = LaunchView(statuses={}, running=(), started_s=0.0, note="an event")
    with publishing.publishing(planned[0].path) as watch:

        def goes_on() -> bool:
            if limits == "EVENT":
                watch(event)
            return len(began) > 3

        wait_for(goes_on)
    pauses = [later - before for before, later in pairwise(began)]
    assert min(pauses[1:]) >= 0.1 + 0.1 / getattr(publishing, limits).time_share


def test_an_event_is_shown_in_time_where_a_collection_takes_a_second() -> None:
    """An event that just misses a collection waits for it, a pause and the next collection."""
    assert 1.0 + publishing.EVENT.after(took_s=1.0, cpu_s=0.2) + 1.0 < 5.0
