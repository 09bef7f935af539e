import shutil
from pathlib import Path

import duckdb
import numpy as np
import pytest

from scalelab.errors import DataError, UsageError
from scalelab.store.live import SNAPSHOT_FILE
from scalelab.store.read_options import ReadOptions
from scalelab.store.results import read_results
from scalelab.store.schema import create_statements

RUN = (
    "INSERT INTO runs (run_id, status, n_params, n_params_kaplan, n_tokens, flops, loss_nats, "
    "n_layers, d_model, d_ff, lr, batch_seqs, seed, device, precision, schedule, seq_len) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, 2, ?, 64, 0.01, 16, 0, ?, 'fp32', ?, 64)"
)
SWEEP = "INSERT INTO sweeps VALUES (?, ?, ?, ?, ?, ?)"


@pytest.fixture
def results(snapshot, tmp_path) -> Path:
    """Return a results folder of the test's own, with a copy of the snapshot."""
    shutil.copy(snapshot, tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory) -> Path:
    """Return a snapshot with two sweeps and an import."""
    path = tmp_path_factory.mktemp("snapshot") / SNAPSHOT_FILE
    with duckdb.connect(str(path)) as store:
        store.execute(create_statements())
        for i in range(6):
            status = "diverged" if i == 5 else "done"
            loss = None if i == 5 else 3.0 - 0.1 * i
            device = "cuda" if i == 3 else "cpu"
            n = 1_000_000 * (i + 1)
            kind = "wsd" if i == 4 else "cosine"
            found = [f"r{i}", status, n, n - 999, 7 * n, 50.0 * n * n, loss, 32, device, kind]
            store.execute(RUN, found)
        for place, i in enumerate([2, 0, 1, 5], start=1):
            store.execute(SWEEP, ["old", f"r{i}", place, 1e14, "isoflop", 100.0])
        for place, i in enumerate([3, 4], start=1):
            store.execute(SWEEP, ["new", f"r{i}", place, None, "ladder", 200.0])
        store.execute(SWEEP, ["empty", "r5", 1, None, "grid", 300.0])
        store.execute(
            'INSERT INTO imports ("import", line, n_params, n_tokens, loss_nats, flops, '
            "budget_flops, cluster, param_convention, flop_convention, extra) VALUES "
            "('theirs', 2, 1e8, 2e9, 3.1, 1.3e18, NULL, 'a', 'kaplan', '6nd', '{}'), "
            "('theirs', 3, 2e8, 2e9, 3.0, 2.6e18, NULL, 'a', 'kaplan', '6nd', '{}')"
        )
    return path


def test_a_sweeps_finished_runs_come_in_the_order_of_its_plan(results):
    read = read_results(results, "old", ReadOptions())
    rows = read.observations
    np.testing.assert_array_equal(rows.n_params, [3e6, 1e6, 2e6])
    np.testing.assert_array_equal(rows.n_tokens, 7 * rows.n_params)
    np.testing.assert_allclose(rows.loss_nats, [2.8, 3.0, 2.9])
    np.testing.assert_array_equal(rows.budget, 1e14)
    assert (rows.param_convention, rows.flop_convention) == ("chinchilla", "exact")
    assert rows.source == "sweep old"
    np.testing.assert_array_equal(rows.extra["fraction_elapsed"], 1.0)
    assert read.notes["unfinished_runs"].startswith("1 of 4 runs")
    assert "mixed_runs" not in read.notes


def test_the_latest_sweep_with_results_is_the_default(results):
    read = read_results(results, None, ReadOptions())
    assert read.observations.source == "sweep new"
    assert "differ in schedule (cosine, wsd); device (cpu, cuda)" in read.notes["mixed_runs"]


def test_runs_on_different_datasets_give_a_note(results):
    with duckdb.connect(str(results / SNAPSHOT_FILE)) as store:
        store.execute(
            "UPDATE runs SET data_fingerprint = CASE run_id WHEN 'r0' THEN 'a' ELSE 'b' END"
        )
    notes = read_results(results, "old", ReadOptions()).notes
    assert "differ in data_fingerprint (a, b)" in notes["mixed_runs"]
    assert "--where \"data_fingerprint = 'a'\"" in notes["mixed_runs"]
    kept = read_results(results, "old", ReadOptions(where="data_fingerprint = 'a'"))
    assert len(kept.observations) == 1
    assert "mixed_runs" not in kept.notes


@pytest.mark.parametrize("column", ["step_mode", "kernels", "attention"])
def test_runs_that_were_executed_in_different_ways_are_named(results, column):
    with duckdb.connect(str(results / SNAPSHOT_FILE)) as store:
        store.execute(f"UPDATE runs SET {column} = CASE run_id WHEN 'r1' THEN 'a' ELSE 'b' END")
    assert column in read_results(results, "old", ReadOptions()).notes["mixed_runs"]


def test_without_a_finished_sweep_the_latest_import_is_the_default(results):
    with duckdb.connect(str(results / SNAPSHOT_FILE)) as store:
        store.execute("UPDATE runs SET status = 'failed'")
    assert read_results(results, None, ReadOptions()).observations.source == "import theirs"


def test_branches_of_one_trunk_are_one_cluster(results):
    ladder = read_results(results, "new", ReadOptions()).observations.cluster
    assert ladder is not None
    assert ladder[0] == ladder[1]
    separate = read_results(results, "old", ReadOptions()).observations.cluster
    assert separate is not None
    assert len(set(separate.tolist())) == 3


def test_another_parameter_column_sets_its_convention(results):
    read = read_results(results, "old", ReadOptions(mapping={"n_params": "n_params_kaplan"}))
    np.testing.assert_array_equal(read.observations.n_params, [3e6 - 999, 1e6 - 999, 2e6 - 999])
    assert read.observations.param_convention == "kaplan"


def test_conditions_use_the_columns_of_the_runs_table(results):
    rows = read_results(results, "old", ReadOptions(where="run_id <> 'r0'")).observations
    assert len(rows) == 2


def test_a_sweeps_training_curves_come_smoothed_and_without_warm_up(results):
    with duckdb.connect(str(results / SNAPSHOT_FILE)) as store:
        store.execute(
            "INSERT INTO attempts (run_id, attempt, curve_after_step) VALUES ('r0', 1, 0)"
        )
        store.execute(
            "INSERT INTO attempt_metrics (run_id, attempt, step, tokens, loss_nats) "
            "SELECT 'r0', 1, step, 7000 * step, 3.0 + 0.5 * (-1) ** step "
            "FROM range(1, 1001) t(step)"
        )
    curves = read_results(results, "old", ReadOptions()).curves
    assert set(curves.run_id) == {"r0"}
    assert curves.n_tokens.min() > 0.05 * 7e6
    assert len(curves.n_tokens) == pytest.approx(4 * np.log(20), abs=2)
    np.testing.assert_allclose(curves.loss_nats, 3.0, atol=0.5 / 12)


def test_an_import_is_found_by_its_name(results):
    rows = read_results(results, "theirs", ReadOptions()).observations
    np.testing.assert_array_equal(rows.n_params, [1e8, 2e8])
    assert (rows.param_convention, rows.flop_convention) == ("kaplan", "6nd")
    assert rows.cluster is not None
    assert rows.cluster.tolist() == ["a", "a"]


def test_an_unknown_sweep_lists_the_known_ones(results):
    with pytest.raises(UsageError, match="runs: new, old, theirs"):
        read_results(results, "nosuch", ReadOptions())


def test_a_sweep_without_finished_runs_is_an_error(results):
    with pytest.raises(DataError, match="0 of whose 1 runs are done"):
        read_results(results, "empty", ReadOptions())


def test_a_folder_without_a_snapshot_names_the_command_to_run(tmp_path):
    with pytest.raises(DataError, match="scalelab sweep isoflop"):
        read_results(tmp_path, None, ReadOptions())


def test_the_snapshot_is_only_read(results):
    path = results / SNAPSHOT_FILE
    before = path.read_bytes()
    read_results(results, None, ReadOptions())
    assert path.read_bytes() == before
    assert {p.name for p in results.iterdir()} == {SNAPSHOT_FILE}
