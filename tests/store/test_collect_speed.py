"""Duration of a collection on a quiet machine, and why the second one is fast."""

import json
import time
from dataclasses import asdict, replace

import pytest

from scalelab.records import run_files
from scalelab.store import live
from scalelab.store.collect import collect
from scalelab.sweep.run_spec import to_json

N_RUNS = 10_000
ROWS_A_RUN = 20


def test_unchanged_settled_runs_are_not_opened(make, monkeypatch):
    for seed in range(5):
        make.done(seed)
    collect(make.path)

    def refuse(path):
        raise AssertionError(f"{path} was opened")

    monkeypatch.setattr(run_files, "read_file", refuse)
    monkeypatch.setattr(run_files, "read_json", refuse)
    report = collect(make.path)
    assert (report.runs, report.runs_changed) == (5, 0)


def write_many(make, base_spec, n_rows):
    """Write the files of `N_RUNS` finished runs, faster than the trainer does."""
    run = make.done()
    (attempt,) = run.attempts()
    record = json.loads((attempt.path / "record.json").read_text())
    note = (attempt.path / "attempt.json").read_text()
    curve = attempt.path / "curve.jsonl"  # one file for all, so that 10^8 rows fit on a disk
    curve.write_text("".join(json.dumps(asdict(make.row(k + 1))) + "\n" for k in range(n_rows)))
    for seed in range(1000, 1000 + N_RUNS - 1):
        spec = replace(base_spec, seed=seed)
        folder = make.path / "runs" / spec.run_id
        inner = folder / "attempts" / attempt.path.name
        inner.mkdir(parents=True)
        (folder / "spec.json").write_text(to_json(spec))
        (folder / "accepted").write_text(attempt.path.name)
        (inner / "attempt.json").write_text(note)
        (inner / "record.json").write_text(json.dumps({**record, "run_id": spec.run_id}))
        if n_rows:
            (inner / "metrics.jsonl").hardlink_to(curve)


def seconds(results, n=3):
    """Return the best of n first collections."""
    times = []
    for _ in range(n):
        for name in (live.LIVE_FILE, live.SNAPSHOT_FILE):
            (results / name).unlink(missing_ok=True)
        started = time.perf_counter()
        report = collect(results)
        times.append(time.perf_counter() - started)
        assert report.runs == N_RUNS
        assert not report.problems
    return min(times)


@pytest.mark.bench
def test_ten_thousand_records_take_one_second_and_half_a_second_again(make, base_spec):
    write_many(make, base_spec, 0)
    first = seconds(make.path)
    started = time.perf_counter()
    assert collect(make.path).runs_changed == 0
    again = time.perf_counter() - started
    print(f"10,000 records {first:.2f} s, again {again:.2f} s")
    assert first <= 1.0
    assert again < 0.5


@pytest.mark.bench
def test_two_hundred_thousand_rows_take_three_seconds(make, base_spec):
    write_many(make, base_spec, ROWS_A_RUN)
    taken = seconds(make.path)
    print(f"10,000 records with 200,000 rows {taken:.2f} s")
    assert taken <= 3.0
