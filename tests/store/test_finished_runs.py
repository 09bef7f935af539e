import duckdb

from scalelab.store.finished_runs import begun_runs, finished_runs
from scalelab.store.live import SNAPSHOT_FILE
from scalelab.store.schema import create_statements


def test_runs_have_their_start_and_imports_the_time_of_the_import(tmp_path):
    assert finished_runs(tmp_path) == ()
    with duckdb.connect(str(tmp_path / SNAPSHOT_FILE)) as store:
        store.execute(create_statements())
        for name, status in (
            ("a", "done"),
            ("b", "done"),
            ("c", "running"),
            ("d", "done"),
            ("e", "running"),
        ):
            store.execute(
                "INSERT INTO runs (run_id, status, n_params_chinchilla, n_params_kaplan, "
                "n_tokens, loss_nats, eval_fingerprint) VALUES (?, ?, 2000, 1000, 7, 3.0, 'e')",
                [name, status],
            )
        for attempt, started in ((1, 50.0), (2, 90.0)):
            store.execute(
                "INSERT INTO attempts (run_id, attempt, started_s) VALUES ('a', ?, ?)",
                [attempt, started],
            )
        store.execute("INSERT INTO attempts (run_id, attempt, started_s) VALUES ('e', 1, 60.0)")
        for sweep, run, kind in (
            ("one", "a", "grid"),
            ("two", "a", "isoflop"),
            ("tuning", "b", "tune"),
            ("one", "c", "grid"),
            ("one", "d", "grid"),
            ("one", "e", "grid"),
        ):
            store.execute("INSERT INTO sweeps VALUES (?, ?, 1, NULL, ?, 1.0)", [sweep, run, kind])
        store.execute(
            'INSERT INTO imports ("import", line, n_params, n_tokens, loss_nats, '
            "param_convention, imported_s) VALUES ('theirs', 2, 1e8, 2e9, 3.1, 'kaplan', 70.0)"
        )
    run, unknown, row = finished_runs(tmp_path)
    # The first attempt began the run; a trial of a tuning study is off the rule.
    assert (run.run_id, run.source, run.known_s, run.is_start_known) == ("a", "sweep one", 50, True)
    assert run.n_params == {"chinchilla": 2000, "kaplan": 1000}
    assert (unknown.run_id, unknown.known_s) == ("d", 0)
    assert (row.run_id, row.n_params) == ("theirs:2", {"kaplan": 1e8})
    assert (row.known_s, row.is_start_known) == (70, False)
    begun = begun_runs(tmp_path)
    assert [each.run_id for each in begun] == ["a", "d", "e", "theirs:2"]
