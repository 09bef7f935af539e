"""Runs of mixtures from a results folder: weights, losses of each source, conditions."""

import duckdb
import numpy as np
import pytest

from scalelab.errors import DataError, UsageError
from scalelab.store.live import snapshot_path
from scalelab.store.mixture_runs import read_sweep_mixtures
from scalelab.store.schema import create_statements


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Return a results folder with six runs over two sources, one of which is not done."""
    folder = tmp_path_factory.mktemp("results")
    with duckdb.connect(str(snapshot_path(folder))) as connection:
        connection.execute(create_statements())
        for i in range(6):
            run, share = f"r{i}", i / 5
            status = "failed" if i == 5 else "done"
            connection.execute(
                "INSERT INTO runs (run_id, status, n_params, n_tokens) VALUES (?, ?, ?, ?)",
                [run, status, 1000 * (1 + i % 2), 50_000],
            )
            connection.execute(
                "INSERT INTO sweeps (sweep, run_id, position) VALUES ('mix', ?, ?)", [run, i]
            )
            for source, weight in (("code", share), ("web", 1 - share)):
                connection.execute(
                    "INSERT INTO mixtures (run_id, source, weight, unique_tokens) "
                    "VALUES (?, ?, ?, 9000)",
                    [run, source, weight],
                )
            for name, loss in (("code", 3 - share), ("web", 2 + share), ("heldout", 2.5)):
                connection.execute(
                    "INSERT INTO evals (run_id, step, set, kind, loss_nats, is_final) "
                    "VALUES (?, 10, ?, 'text', ?, true)",
                    [run, name, loss],
                )
    return folder


def test_the_finished_runs_have_weights_losses_and_unique_tokens(results):
    runs = read_sweep_mixtures(results, None)
    assert (runs.sources, runs.names) == (("code", "web"), ("r0", "r1", "r2", "r3", "r4"))
    assert runs.weights[:, 0] == pytest.approx(np.arange(5) / 5)
    assert runs.losses["code"] == pytest.approx(3 - np.arange(5) / 5)
    assert runs.unique_tokens == {"code": 9000, "web": 9000}
    assert runs.scale == ("n_params",)


def test_the_held_out_loss_is_read_only_by_name(results):
    assert set(read_sweep_mixtures(results, "mix").losses) == {"code", "web"}
    assert set(read_sweep_mixtures(results, "mix", sets=["heldout"]).losses) == {"heldout"}


def test_conditions_select_runs_and_name_mistakes(results):
    assert read_sweep_mixtures(results, "mix", where="n_params > 1500").names == ("r1", "r3")
    with pytest.raises(UsageError, match="n_parms"):
        read_sweep_mixtures(results, "mix", where="n_parms > 1500")
    with pytest.raises(DataError, match="no finished run of a mixture"):
        read_sweep_mixtures(results, "other")
    with pytest.raises(UsageError, match="Did you mean code"):
        read_sweep_mixtures(results, "mix", sets=["cod"])
