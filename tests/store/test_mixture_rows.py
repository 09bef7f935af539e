"""The table ``mixtures`` has the sources of every run."""

import json
from dataclasses import replace

from scalelab.records.archive import parts_of
from scalelab.records.parts import DATASET
from scalelab.records.removal import unused_datasets
from scalelab.records.run_dir import RunDir
from scalelab.store.collect import collect
from scalelab.store.live import open_snapshot
from scalelab.store.read_options import ReadOptions
from scalelab.sweep.run_spec import SourceWeight


def mixed_run(make, weight: float) -> RunDir:
    base = make.run().read_spec()
    shares = {"code": weight, "web": 1 - weight}
    spec = replace(
        base,
        mixture=tuple(
            SourceWeight(name=name, fingerprint=name * 4, weight=share)
            for name, share in shares.items()
        ),
    )
    run = RunDir(make.path / "runs" / spec.run_id)
    run.write_spec(spec)
    return run


def rows_of(results, columns="*"):
    with open_snapshot(results) as connection:
        return connection.execute(
            f"SELECT {columns} FROM mixtures ORDER BY run_id, source"
        ).fetchall()


def test_planned_draws_and_epochs_after_the_end(make):
    run = mixed_run(make, 0.7)
    make.run(seed=99)
    collect(make.path)
    n = run.read_spec().n_tokens
    rows = rows_of(make.path)
    assert [row[:3] for row in rows] == [(run.run_id, "code", 0.7), (run.run_id, "web", 1 - 0.7)]
    assert sum(row[3] for row in rows) == n
    assert abs(rows[0][3] - 0.7 * n) <= 2 * run.read_spec().seq_len
    assert [row[4:] for row in rows] == [(None, None)] * 2
    make.finish(make.attempt(run), 2.5)
    path = run.accepted().path / "record.json"
    record = {**json.loads(path.read_text()), "source_tokens": {"code": 100_000, "web": 10_000}}
    path.write_text(json.dumps(record))
    collect(make.path)
    found = rows_of(make.path, "source, unique_tokens, epochs")
    assert found == [
        ("code", 100_000, rows[0][3] / 100_000),
        ("web", 10_000, rows[1][3] / 10_000),
    ]


def test_the_data_of_the_sources_belong_to_the_run(make):
    run = mixed_run(make, 0.7)
    for name in (run.read_spec().data_fingerprint, "code" * 4, "web" * 4, "other"):
        folder = make.path / "data" / name
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
    from scalelab.records.sweep_dir import Results

    assert unused_datasets(Results(make.path)) == ["other"]
    make.sweep("mix", [run])
    kept = {part.name for part in parts_of(make.path, "mix") if part.kind == DATASET}
    assert kept == {run.read_spec().data_fingerprint, "code" * 4, "web" * 4}


def test_a_law_of_n_and_d_says_that_mixtures_differ(make):
    from scalelab.store.results import read_results

    runs = [mixed_run(make, weight) for weight in (0.7, 0.4)]
    for run in runs:
        make.finish(make.attempt(run), 2.5)
    make.sweep("mix", runs)
    collect(make.path)
    notes = read_results(make.path, "mix", ReadOptions()).notes
    assert "differ in mixture (weights of sources)" in notes["mixed_runs"]
    assert "fit --form mixture" in notes["mixed_runs"]
