"""The lock of a verdict: one worker measures for the others, and a dead one holds up nobody."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from scalelab.records.qualification import is_measuring
from scalelab.train.qualify import lock


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    # A holder that a busy machine does not run for less than STALE_S must not count as dead.
    for name, seconds in {"BEAT_S": 0.02, "STALE_S": 2.0, "POLL_S": 0.01}.items():
        monkeypatch.setattr(lock, name, seconds)


def workers(
    path: Path, n: int, measure: Callable[[], object] = lambda: None, *, wait_s: float = 100.0
) -> list[bool]:
    """Let workers want a file at once; return for each whether it made the file."""
    made: list[bool] = []

    def work() -> None:
        with lock.held(path, wait_s=wait_s, is_needed=lambda: not path.exists()) as is_needed:
            if is_needed:
                measure()
                path.write_text("verdict")
            made.append(is_needed)

    threads = [threading.Thread(target=work) for _ in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return made


def test_one_of_several_workers_measures_and_the_others_wait(tmp_path: Path) -> None:
    # The holder works longer than STALE_S: it is alive because its claim changes.
    made = workers(tmp_path / "verdict.json", 4, lambda: time.sleep(1.25 * lock.STALE_S))
    assert sorted(made) == [False, False, False, True]


def test_a_dead_holder_is_replaced_by_exactly_one(tmp_path: Path) -> None:
    path = tmp_path / "verdict.json"
    folder = path.with_suffix(".lock")
    folder.mkdir()
    (folder / "7").write_text("host 1234 5")
    started = time.monotonic()
    assert sorted(workers(path, 4, lambda: time.sleep(0.1))) == [False, False, False, True]
    assert time.monotonic() - started >= lock.STALE_S
    assert (folder / "8").read_text() == "released"


def test_others_see_that_a_worker_measures_until_it_releases_the_lock(tmp_path: Path) -> None:
    assert not is_measuring(tmp_path)
    with lock.held(tmp_path / "verdict.json", wait_s=1.0, is_needed=lambda: True):
        assert is_measuring(tmp_path)
    assert not is_measuring(tmp_path)


def test_the_wait_is_limited_and_the_worker_then_measures_itself(tmp_path: Path) -> None:
    both = threading.Barrier(2, timeout=100)
    assert workers(tmp_path / "verdict.json", 2, both.wait, wait_s=0.1) == [True, True]


def test_a_released_lock_is_taken_at_once(tmp_path: Path) -> None:
    path = tmp_path / "verdict.json"
    assert workers(path, 1) == [True]
    path.unlink()
    started = time.monotonic()
    assert workers(path, 1) == [True]
    assert time.monotonic() - started < lock.STALE_S


def test_a_folder_that_cannot_be_written_needs_no_lock(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with lock.held(tmp_path / "file" / "x.json", wait_s=1, is_needed=lambda: True) as is_needed:
        assert is_needed
