"""The table ``evals`` has the losses of every run on every set."""

import json
import math
import time
from dataclasses import replace

import duckdb
import pytest

from scalelab.cli.main import main
from scalelab.records.archive import parts_of
from scalelab.records.parts import DATASET
from scalelab.records.removal import unused_datasets
from scalelab.records.run_dir import RunDir
from scalelab.records.sweep_dir import Results
from scalelab.records.types import EvalRow
from scalelab.store.collect import collect
from scalelab.store.live import open_snapshot
from scalelab.sweep.run_spec import EvalSetRef


def rows_of(results, columns="*", where="true"):
    with open_snapshot(results) as connection:
        return connection.execute(
            f"SELECT {columns} FROM evals WHERE {where} ORDER BY run_id, step, set"
        ).fetchall()


def test_every_done_run_has_its_held_out_loss(make):
    done = make.done(seed=1)
    make.attempt(make.run(seed=2))
    make.finish(make.attempt(make.run(seed=3)), None)
    collect(make.path)
    columns = "run_id, step, set, kind, loss_nats, stderr, bits_per_byte, is_final, source"
    n_steps = done.read_spec().n_steps
    assert rows_of(make.path, columns) == [
        (done.run_id, n_steps, "heldout", "text", 1.4375, 0.011, None, True, "training")
    ]


def test_the_held_out_loss_per_byte_and_its_bytes(make):
    run = make.done()
    path = run.accepted().path / "record.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "bytes_per_token": 4.0, "eval_tokens": 1000}))
    collect(make.path)
    ((bits, n_tokens, n_bytes),) = rows_of(make.path, "bits_per_byte, n_tokens, n_bytes")
    assert bits == 1.4375 / math.log(2) / 4
    assert (n_tokens, n_bytes) == (1000, 4000)


def test_a_removed_run_leaves_the_table(make):
    import shutil

    run, kept = make.done(seed=1), make.done(seed=2)
    collect(make.path)
    shutil.rmtree(run.path)
    collect(make.path)
    assert rows_of(make.path, "run_id") == [(kept.run_id,)]


def finished(make, base_spec, n_sets=2, seed=1, steps=(40, 80)):
    """Return a done run with evaluations of its sets at some steps and at its end."""
    sets = tuple(EvalSetRef(f"set{i}", "f" * 16, 500) for i in range(n_sets))
    spec = replace(base_spec, seed=seed, eval_sets=sets, eval_every=0.25)
    run = RunDir(make.path / "runs" / spec.run_id)
    run.write_spec(spec)
    attempt = make.attempt(run)
    n_steps = run.read_spec().n_steps
    for step in (*steps, n_steps):
        attempt.append_evals(
            [
                EvalRow(step=step, set=name, loss_nats=loss, stderr_nats=0.1, n_tokens=512,
                        n_bytes=1024)
                for loss, name in enumerate(("heldout", *(ref.name for ref in sets)), start=1)
            ]
        )  # fmt: skip
    make.finish(attempt)
    return run


def test_evaluations_of_named_sets_are_collected(make, base_spec):
    run = finished(make, base_spec)
    collect(make.path)
    n_steps = run.read_spec().n_steps
    rows = rows_of(make.path, "step, set, loss_nats, bits_per_byte, stderr, n_bytes, is_final")
    assert [row[:2] for row in rows] == [
        (step, name) for step in (40, 80, n_steps) for name in ("heldout", "set0", "set1")
    ]
    assert rows[1][2:] == (2.0, 2.0 / math.log(2) / 2, 0.1, 1024, False)
    assert [row[-1] for row in rows] == [False] * 6 + [True] * 3
    # The final held-out loss is that of the record.
    assert rows[6][2] == 1.4375


def test_collecting_again_changes_nothing(make, base_spec, tables_of):
    finished(make, base_spec)
    collect(make.path)
    before = tables_of(make.path)
    report = collect(make.path)
    assert (report.runs_changed, report.is_published) == (0, False)
    assert tables_of(make.path) == before


def test_unreadable_lines_are_counted_with_those_of_the_curve(make, base_spec):
    run = finished(make, base_spec)
    path = run.attempts()[0].path / "evals.jsonl"
    path.write_text(path.read_text() + '{"step": 40, "se\n\n[1]\n')
    collect(make.path)
    with open_snapshot(make.path) as connection:
        assert connection.execute("SELECT torn_lines FROM attempts").fetchall() == [(3,)]
    assert len(rows_of(make.path)) == 9


def test_measurements_of_a_program_are_rows_of_their_own_kind(make):
    run = make.done()
    attempt = run.accepted()
    note = attempt.read_note()
    ended = {**note["ended"], "evals": {"hellaswag": 0.31, "code": 2.5, "note": "text"}}
    attempt.write_note({**note, "ended": ended})
    collect(make.path)
    found = rows_of(make.path, "set, kind, value, loss_nats, is_final")
    assert found == [
        ("code", "reported", 2.5, None, True),
        ("heldout", "text", None, 1.4375, True),
        ("hellaswag", "reported", 0.31, None, True),
    ]


def test_a_database_and_run_folders_of_schema_8_open_unchanged(make, tables_of):
    """An older version left its database; its runs have neither sets nor evaluations."""
    run = make.done()
    spec = json.loads((run.path / "spec.json").read_text())
    for name in ("eval_sets", "eval_every", "mixture"):
        spec.pop(name)
    (run.path / "spec.json").write_text(json.dumps(spec))
    collect(make.path)
    expected = tables_of(make.path)
    with duckdb.connect(str(make.path / ".scalelab-live.duckdb")) as connection:
        connection.execute("UPDATE collector.store SET schema = 8; DROP TABLE evals;")
    report = collect(make.path)
    assert any("rebuilt: it was of schema 8" in problem for problem in report.problems)
    assert tables_of(make.path) == expected
    assert rows_of(make.path, "set, loss_nats") == [("heldout", 1.4375)]


@pytest.mark.slow
def test_two_hundred_runs_with_five_sets_are_collected_quickly(make, base_spec):
    for seed in range(200):
        finished(make, base_spec, n_sets=5, seed=seed, steps=(20, 40, 60))
    started = time.process_time()
    collect(make.path)
    took_s = time.process_time() - started
    assert len(rows_of(make.path)) == 200 * 6 * 4
    assert took_s < 3
    started = time.process_time()
    collect(make.path)
    assert time.process_time() - started < 0.5


def test_the_sets_of_a_run_stay_when_unused_data_is_removed_and_are_archived(make, base_spec):
    run = finished(make, base_spec, n_sets=1)
    for name in (run.read_spec().data_fingerprint, "f" * 16, "other"):
        folder = make.path / "data" / name
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
    assert unused_datasets(Results(make.path)) == ["other"]
    make.sweep("sets", [run])
    kept = {part.name for part in parts_of(make.path, "sets") if part.kind == DATASET}
    assert kept == {run.read_spec().data_fingerprint, "f" * 16}


def test_merged_runs_keep_their_evaluations(make, base_spec, tmp_path):
    run = finished(make, base_spec)
    make.sweep("sets", [run])
    collect(make.path)
    merged = tmp_path / "merged"
    merged.mkdir()
    assert main(["merge", str(make.path), "--results", str(merged)]) == 0
    collect(merged)
    assert rows_of(merged) == rows_of(make.path)
