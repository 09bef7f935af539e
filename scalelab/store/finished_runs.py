"""Runs of all sweeps and imports, to score registered forecasts and to know when they began."""

from __future__ import annotations

import math
from pathlib import Path

from scalelab.records.sweep_dir import OFF_RULE_KINDS
from scalelab.records.types import KnownRun
from scalelab.store.live import open_snapshot, snapshot_path
from scalelab.theory.accounting import PARAM_CONVENTIONS

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


def finished_runs(results: Path) -> tuple[KnownRun, ...]:
    """Return every finished run and every imported row; none if nothing was collected.

    Raises
    ------
    DataError
        If another version of scalelab published the snapshot.
    """
    return _known_runs(results, FINISHED)


def begun_runs(results: Path) -> tuple[KnownRun, ...]:
    """Return every run that has begun and every imported row; none if nothing was collected.

    Raises
    ------
    DataError
        If another version of scalelab published the snapshot.
    """
    return _known_runs(results, BEGUN)


def _known_runs(results: Path, chosen: str) -> tuple[KnownRun, ...]:
    if not snapshot_path(results).exists():
        return ()
    with open_snapshot(results) as connection:
        runs = connection.execute(_RUNS.format(chosen=chosen)).fetchall()
        imports = connection.execute(_IMPORTS).fetchall()
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
            loss_nats=math.nan if loss is None else loss,
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
                loss_nats=loss,
                eval_fingerprint=None,
                known_s=imported_s or 0.0,
                is_start_known=False,
            )
            for name, line, n_tokens, loss, convention, n_params, imported_s in imports
        ),
    )
