"""Runs of all sweeps and imports, to score registered forecasts and to know when they began."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from scalelab.records.metric import ACCURACY, BPB, HELDOUT, LOSS, TASK, Metric, parse_metric
from scalelab.records.sweep_dir import OFF_RULE_KINDS
from scalelab.records.types import KnownRun
from scalelab.store.eval_rows import TASK as TASK_ROW
from scalelab.store.eval_rows import TEXT
from scalelab.store.live import open_snapshot, snapshot_path
from scalelab.theory.accounting import PARAM_CONVENTIONS

if TYPE_CHECKING:
    import duckdb

_RUNS = f"""
SELECT r.run_id, min(s.sweep), any_value(r.n_tokens), any_value(r.loss_nats),
  any_value(r.eval_fingerprint), min(a.started_s),
  {", ".join(f"any_value(r.n_params_{name})" for name in PARAM_CONVENTIONS)}
FROM runs AS r JOIN sweeps AS s USING (run_id) LEFT JOIN attempts AS a USING (run_id)
WHERE {{chosen}} AND s.kind NOT IN {OFF_RULE_KINDS}
GROUP BY r.run_id ORDER BY r.run_id
"""
_IMPORTS = """
SELECT "import", line, n_tokens, loss_nats, param_convention, n_params, imported_s
FROM imports ORDER BY ALL
"""
FINISHED = "r.status = 'done'"
BEGUN = f"({FINISHED} OR a.started_s IS NOT NULL)"


_OF_METRIC = """
SELECT run_id, set, kind, arg_max({number}, coalesce(step, 0)) FROM evals
WHERE is_final AND set IN $names AND {number} IS NOT NULL GROUP BY ALL
"""
_MEASURED = "SELECT DISTINCT run_id FROM evals WHERE source = 'import'"
_NUMBERS = {LOSS: "loss_nats", BPB: "bits_per_byte", TASK: "bits_per_byte", ACCURACY: "accuracy"}
"""Column of ``evals`` by kind of a term."""


def finished_runs(results: Path, metric: str = HELDOUT.text) -> tuple[KnownRun, ...]:
    """Return every finished run and every imported row; none if nothing was collected.

    Parameters
    ----------
    results : Path
        The results folder.
    metric : str
        Which loss they have, as after ``--metric``; NaN for a run without it.

    Raises
    ------
    DataError
        If another version of scalelab published the snapshot.
    """
    return _known_runs(results, FINISHED, metric)


def begun_runs(results: Path, metric: str = HELDOUT.text) -> tuple[KnownRun, ...]:
    """Return every run that has begun and every imported row; none if nothing was collected.

    Parameters are those of `finished_runs`.

    Raises
    ------
    DataError
        If another version of scalelab published the snapshot.
    """
    return _known_runs(results, BEGUN, metric)


def _known_runs(results: Path, chosen: str, metric: str) -> tuple[KnownRun, ...]:
    if not snapshot_path(results).exists():
        return ()
    with open_snapshot(results) as connection:
        runs = connection.execute(_RUNS.format(chosen=chosen)).fetchall()
        imports = connection.execute(_IMPORTS).fetchall()
        of_metric = _losses(connection, parse_metric(metric))
        measured = {each for (each,) in connection.execute(_MEASURED).fetchall()}
    is_default = metric == HELDOUT.text
    found = [
        KnownRun(
            run_id=run_id,
            source=f"sweep {sweep}",
            n_params={
                name: float(n)
                for name, n in zip(PARAM_CONVENTIONS, counts, strict=True)
                if n is not None
            },
            n_tokens=float(n_tokens),
            loss_nats=_known(loss) if is_default else of_metric.get(run_id, math.nan),
            eval_fingerprint=evaluation,
            known_s=started_s or 0.0,
            is_start_known=True,
        )
        for run_id, sweep, n_tokens, loss, evaluation, started_s, *counts in runs
    ]
    return (
        *found,
        *(
            KnownRun(
                run_id=f"{name}:{line}",
                source=f"import {name}",
                n_params={convention: n_params},
                n_tokens=n_tokens,
                loss_nats=of_metric.get(
                    f"{name}/{line}",
                    loss if is_default and f"{name}/{line}" not in measured else math.nan,
                ),
                eval_fingerprint=None,
                known_s=imported_s or 0.0,
                is_start_known=False,
            )
            for name, line, n_tokens, loss, convention, n_params, imported_s in imports
        ),
    )


def _known(loss: float | None) -> float:
    return math.nan if loss is None else loss


def _losses(connection: duckdb.DuckDBPyConnection, metric: Metric) -> dict[str, float]:
    """Return the metric of each run that has all of its terms, and of imported rows."""
    sums: dict[str, list[float]] = {}
    for term in metric.terms:
        query = _OF_METRIC.format(number=_NUMBERS[term.kind])
        found = connection.execute(query, {"names": [term.name]}).fetchall()
        kind = TASK_ROW if term.kind in (TASK, ACCURACY) else TEXT
        for run_id, _, of_kind, value in found:
            if of_kind == kind:
                share = term.weight * (1 - value if term.kind == ACCURACY else value)
                sums.setdefault(run_id, []).append(share)
    return {run: math.fsum(parts) for run, parts in sums.items() if len(parts) == len(metric.terms)}
