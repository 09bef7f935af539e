"""Rows of the table ``evals`` from `scalelab evaluate`: evaluations of a run's kept weights."""

from __future__ import annotations

from dataclasses import asdict

from scalelab.records.run_files import RunFiles
from scalelab.store.eval_rows import EVALUATE
from scalelab.store.rows import Row


def evaluation_rows(run: RunFiles, known: list[Row]) -> list[Row]:
    """Return the rows of a finished run whose step, set and kind are not in ``known`` yet."""
    record = None if run.accepted is None else run.accepted.record
    if record is None or record.status != "done":
        return []
    taken = {(row["step"], row["set"], row["kind"]) for row in known}
    return [
        {
            "run_id": run.run_id,
            **{name: value for name, value in asdict(found).items() if name != "fingerprint"},
            "is_final": found.step == record.n_steps,
            "source": EVALUATE,
        }
        for found in run.evaluations
        if found.key not in taken
    ]
