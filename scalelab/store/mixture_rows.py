"""Rows of the table ``mixtures``: the sources of a run."""

from __future__ import annotations

from collections.abc import Mapping

from scalelab.records.run_files import RunFiles
from scalelab.store.rows import Row
from scalelab.sweep.mixture import tokens_of_weights


def mixture_rows(run: RunFiles) -> list[Row]:
    """Return a row for each source of a run's mixture; none for a run over one text."""
    spec = run.spec
    if not spec.get("mixture"):
        return []
    weights = {source["name"]: float(source["weight"]) for source in spec["mixture"]}
    drawn = tokens_of_weights(weights, spec["n_steps"] * spec["batch_seqs"], spec["seq_len"])
    record = None if run.accepted is None else run.accepted.record
    unique = None if record is None else record.source_tokens
    unique = unique if isinstance(unique, Mapping) else {}
    return [
        {
            "run_id": run.run_id,
            "source": name,
            "weight": weight,
            "n_tokens": drawn[name],
            "unique_tokens": unique.get(name),
            "epochs": drawn[name] / unique[name] if unique.get(name) else None,
        }
        for name, weight in weights.items()
    ]
