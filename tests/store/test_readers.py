"""Several processes read the same as one, and helpers may fail."""

import subprocess
import sys
import threading
import time

import pytest

from scalelab.store import live, readers
from scalelab.store.collect import collect


@pytest.fixture
def many(make):
    """28 runs: finished, running, with long and torn curves, and one invalid folder."""
    for seed in range(18):
        make.done(seed)
    for seed in range(30, 38):
        attempt = make.attempt(make.run(seed), range(1, 90))
        if seed % 3:
            make.end(attempt)
        with attempt.metrics_path.open("a") as file:
            file.write('{"step": 3}\n{"step": 400, "tok')
    make.run(77)
    (make.path / "runs" / "nothing").mkdir()
    return make.path


@pytest.fixture
def helped(monkeypatch):
    """Use helpers from the first group on; return the list of started helpers."""
    started = []

    class Started(subprocess.Popen):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            started.append(self)

    monkeypatch.setattr(readers, "RUNS_READ_TOGETHER", 3)
    monkeypatch.setattr(readers, "HELP_IS_WORTH_S", 0.0)
    monkeypatch.setattr(readers, "_n_helpers", lambda: 2)
    monkeypatch.setattr(readers.subprocess, "Popen", Started)
    return started


def tables_after_collecting(path, tables_of):
    for name in (live.LIVE_FILE, live.SNAPSHOT_FILE):
        (path / name).unlink(missing_ok=True)
    report = collect(path)
    counts = (report.runs, report.runs_new, report.metric_rows_new, report.torn_lines)
    return counts, tuple(sorted(report.problems)), tables_of(path)


def slow_down(monkeypatch):
    """Give helpers time to answer, so that their portions are used."""
    read_portion = readers.read_portion

    def read_slowly(*args, **options):
        time.sleep(0.25)
        return read_portion(*args, **options)

    monkeypatch.setattr(readers, "read_portion", read_slowly)


def test_helpers_read_the_same_as_one_process(many, tables_of, helped, monkeypatch):
    with monkeypatch.context() as alone:
        alone.setattr(readers, "_n_helpers", lambda: 0)
        expected = tables_after_collecting(many, tables_of)
    assert not helped
    has_answer = threading.Event()
    unpacked, read_portion = readers._from_bytes, readers.read_portion

    def noted(data):
        has_answer.set()
        return unpacked(data)

    def read_after_an_answer(*args, **options):
        assert has_answer.wait(100), "no helper answers"
        return read_portion(*args, **options)

    monkeypatch.setattr(readers, "_from_bytes", noted)
    monkeypatch.setattr(readers, "read_portion", read_after_an_answer)
    assert tables_after_collecting(many, tables_of) == expected
    assert len(helped) == 2
    assert all(process.poll() is not None for process in helped)


def test_long_curves_continue_where_a_portion_ended(many, tables_of, helped, monkeypatch):
    expected = tables_after_collecting(many, tables_of)
    monkeypatch.setattr("scalelab.store.collect.ROWS_IN_A_TRANSACTION", 50)
    monkeypatch.setattr("scalelab.store.curves.CHUNK_BYTES", 3000)
    slow_down(monkeypatch)
    assert tables_after_collecting(many, tables_of) == expected


def test_a_helper_that_does_not_start_is_replaced(many, tables_of, helped, monkeypatch):
    expected = tables_after_collecting(many, tables_of)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    slow_down(monkeypatch)
    assert tables_after_collecting(many, tables_of) == expected


def test_a_killed_helper_is_replaced(many, tables_of, helped, monkeypatch):
    expected = tables_after_collecting(many, tables_of)
    unpacked = readers._from_bytes

    def kill_then_unpack(data):
        for process in helped:
            process.kill()
        return unpacked(data)

    monkeypatch.setattr(readers, "_from_bytes", kill_then_unpack)
    slow_down(monkeypatch)
    assert tables_after_collecting(many, tables_of) == expected


def test_an_interrupted_collection_leaves_no_helper(many, helped, monkeypatch):
    slow_down(monkeypatch)
    portions = readers.read_portions(
        str(many / "runs"), [(path.name, {}) for path in (many / "runs").iterdir()], max_rows=1000
    )
    next(portions)
    assert next(portions)
    assert [process.poll() for process in helped] == [None, None]
    portions.close()
    assert all(process.poll() is not None for process in helped)
