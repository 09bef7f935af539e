"""Published snapshots made for tests: a law's runs with known noise, in any number and state."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd

from scalelab.store.live import snapshot_path
from scalelab.store.schema import create_statements

HOSTILE = "<img src=x onerror=alert(1)> **bold** '; DROP TABLE runs; --"
HOSTILE_NAME = "<img src=x onerror=alert(1)> `a` **b** $x^2$ [x](javascript:alert(1)) '; DROP --"


def generated(
    results: Path,
    n_runs: int,
    *,
    name: str = "generated",
    seed: int = 0,
    is_added: bool = False,
    change: Callable[[duckdb.DuckDBPyConnection], None] | None = None,
) -> None:
    """Publish a finished isoFLOP sweep of the Chinchilla law, the best 1,000 runs with curves."""
    rng = np.random.default_rng(seed)
    n_budgets = int(np.clip(n_runs // 20, 4, 50))
    budgets = np.geomspace(1e17, 1e21, n_budgets)
    which = np.arange(n_runs) % n_budgets
    budget = budgets[which]
    best = 0.6 * (budget / 6) ** 0.5 * 0.3
    n_params = np.round(best * np.exp(rng.uniform(-1.6, 1.6, n_runs)))
    n_tokens = np.round(budget / (6 * n_params))
    law = 1.82 + 482.0 / n_params**0.3478 + 2085.0 / n_tokens**0.3658
    publish(
        results,
        name,
        pd.DataFrame(
            {
                "n_params": n_params,
                "n_tokens": n_tokens,
                "budget": budget,
                "loss_nats": law * np.exp(rng.normal(0, 0.002, n_runs)),
                "status": "done",
                "reason": None,
            }
        ),
        is_added=is_added,
        change=change,
    )


def running(results: Path, *, n_runs: int = 80, is_added: bool = False) -> None:
    """Publish a running sweep: most runs done, two running, two failed, the rest planned."""

    def stop(connection: duckdb.DuckDBPyConnection) -> None:
        connection.execute(
            "CREATE TEMP TABLE o AS SELECT run_id FROM sweeps WHERE sweep = 'half-done' "
            "ORDER BY position"
        )
        for status, low, high in (("running", 0, 2), ("planned", 2, 12), ("failed", 12, 14)):
            connection.execute(
                "UPDATE runs SET status = ?, loss_nats = NULL, reason = ? WHERE run_id IN "
                "(SELECT run_id FROM o LIMIT ? OFFSET ?)",
                [status, HOSTILE if status == "failed" else None, high - low, low],
            )

    generated(results, n_runs, name="half-done", is_added=is_added, change=stop)


def withdraw(results: Path) -> None:
    """Take the snapshot away."""
    snapshot_path(results).unlink(missing_ok=True)


def publish(
    results: Path,
    name: str,
    frame: pd.DataFrame,
    *,
    is_added: bool = False,
    change: Callable[[duckdb.DuckDBPyConnection], None] | None = None,
) -> None:
    """Publish a snapshot that holds this sweep, alone or added to those before.

    ``change`` edits the tables before the page can see them.
    """
    results.mkdir(parents=True, exist_ok=True)
    path = snapshot_path(results)
    building = path.with_suffix(".building")
    building.unlink(missing_ok=True)
    n_before = 0
    if is_added:
        shutil.copyfile(path, building)
        with duckdb.connect(str(building)) as connection:
            counted = connection.execute("SELECT count(DISTINCT sweep) FROM sweeps").fetchone()
        n_before = counted[0] if counted else 0
    n = len(frame)
    flops = 6 * frame.n_params * frame.n_tokens
    runs = frame.drop(columns="budget").assign(
        run_id=[hashlib.sha256(f"{name} {i}".encode()).hexdigest()[:12] for i in range(n)],
        flops=flops * 1.02,
        **{f"n_params_{c}": frame.n_params for c in ("chinchilla", "matmul", "active")},
        n_params_kaplan=np.round(frame.n_params * 0.9 - 2e5).clip(lower=1e4),
        flops_6nd=flops,
        flops_6nd_kaplan=flops * 0.9,
        flops_exact=flops * 1.02,
        flops_palm=flops * 1.05,
        n_layers=8,
        d_model=512,
        seq_len=1024,
        batch_seqs=64,
        n_steps=1000,
        steps_taken=1000,
        lr=1e-3,
        seed=0,
        attempts=1,
        accepted_attempt=1,
        unique_tokens=frame.n_tokens,
        epochs=1.0,
        wall_s=flops / 1e15,
        device="cuda",
        device_name="NVIDIA H100 80GB HBM3",
        precision="bf16",
    )
    sweeps = pd.DataFrame(
        {
            "sweep": name,
            "run_id": runs.run_id,
            "position": np.arange(1, n + 1),
            "budget_flops": frame.budget,
            "kind": "isoflop",
            "created_s": 1.7e9 + n_before,
        }
    )
    with duckdb.connect(str(building)) as connection:
        if not is_added:
            connection.execute(create_statements())
        connection.register("new_runs", runs)
        connection.register("new_sweeps", sweeps)
        connection.execute("INSERT INTO runs BY NAME SELECT * FROM new_runs")
        connection.execute("INSERT INTO sweeps BY NAME SELECT * FROM new_sweeps")
        connection.execute(
            "INSERT INTO attempts BY NAME SELECT run_id, 1 AS attempt, 'done' AS status, "
            "0 AS curve_after_step FROM new_runs"
        )
        connection.execute(
            "INSERT INTO attempt_metrics BY NAME SELECT run_id, 1 AS attempt, "
            "CAST(i * 1000 / 60 AS BIGINT) AS step, CAST(n_tokens * i / 60 AS BIGINT) AS tokens, "
            "loss_nats + 6 * exp(-i / 6) AS loss_nats, 1e-3 * cos(i / 40) AS lr, "
            "0.3 + 1 / i AS grad_norm, 4e5 AS tokens_per_s, 380.0 AS tflops_per_s, 0.38 AS mfu "
            "FROM (SELECT * FROM new_runs ORDER BY loss_nats LIMIT 1000), range(1, 61) AS t(i)"
        )
        if change is not None:
            change(connection)
        connection.execute("CHECKPOINT")
    building.replace(path)
