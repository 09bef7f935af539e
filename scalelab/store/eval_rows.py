"""Rows of the table ``evals``: evaluations of a run, and losses of an imported row."""

from __future__ import annotations

import math

from scalelab.records.run_files import RunFiles
from scalelab.store.rows import Row
from scalelab.sweep.run_spec import HELD_OUT

TEXT, TASK, REPORTED = "text", "task", "reported"
"""The kinds of rows."""
TRAINING, EVALUATE, PROGRAM, IMPORT = "training", "evaluate", "program", "import"
"""Where rows come from."""


def eval_rows(run: RunFiles) -> list[Row]:
    """Return the run's rows of ``evals``; none before it is done."""
    if run.accepted is None or (record := run.accepted.record) is None or record.status != "done":
        return []
    n_tokens, loss, found = record.eval_tokens, record.loss_nats, record.bytes_per_token
    per_token = found if isinstance(found, int | float) and found > 0 else None
    source = PROGRAM if run.spec.get("program") else TRAINING
    return [
        {
            "run_id": run.run_id,
            "step": record.n_steps,
            "set": HELD_OUT,
            "kind": TEXT,
            "loss_nats": loss,
            "bits_per_byte": loss / math.log(2) / per_token
            if per_token and loss is not None
            else None,
            "stderr": record.loss_se_nats,
            "n_tokens": n_tokens,
            "n_bytes": round(n_tokens * per_token) if per_token and n_tokens else None,
            "is_final": True,
            "source": source,
        }
    ]
