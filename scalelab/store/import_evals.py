"""Rows of the table ``evals`` of an import: the losses and accuracies of its columns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from scalelab.logs.losses import BITS, PERPLEXITY, unit_of
from scalelab.records.metric import ACCURACY, HELDOUT, LOSS, TASK, Term, parse_metric
from scalelab.store.eval_rows import IMPORT, REPORTED, TEXT
from scalelab.store.eval_rows import TASK as TASK_ROW
from scalelab.store.metric import metrics_of
from scalelab.store.rows import Row

MAIN = "loss_nats"
"""Column of the loss that an import reads; its unit is that of the import's metric."""


def import_eval_rows(
    name: str, rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any]
) -> list[Row]:
    """Return the rows of ``evals`` of an import, one for each row and set.

    Parameters
    ----------
    name : str
        The import.
    rows : sequence of Mapping
        Its rows, with ``line``.
    about : Mapping
        Content of its ``mapping.json``.
    """
    columns = list(rows[0]) if rows else []
    terms = {
        column: parse_metric(text).terms[0]
        for text, column in metrics_of(columns).items()
        if column != MAIN
    }
    main = parse_metric(about.get("metric", HELDOUT.text))
    if len(main.terms) == 1:
        terms[MAIN] = main.terms[0]
    found = []
    for row in rows:
        sets: dict[tuple[str, str], Row] = {}
        for column, term in terms.items():
            value = _number(row.get(column))
            if value is None:
                continue
            kind = TASK_ROW if term.kind in (TASK, ACCURACY) else TEXT
            cells = sets.setdefault((term.name, kind), {})
            cells.setdefault(*_cell(term, column, value))
        if len(main.terms) > 1:
            sets[main.text, REPORTED] = {"value": row[MAIN]}
        found += [
            {
                "run_id": f"{name}/{row['line']}",
                "set": set_name,
                "kind": kind,
                "is_final": True,
                "source": IMPORT,
                **cells,
            }
            for (set_name, kind), cells in sets.items()
        ]
    return found


def _cell(term: Term, column: str, value: float) -> tuple[str, float]:
    """Return the column of ``evals`` that holds a value, and the value in its unit."""
    if term.kind == ACCURACY:
        return "accuracy", value if column != MAIN else 1 - value
    if term.kind != LOSS:
        return "bits_per_byte", value
    if column != MAIN and unit_of(column) == PERPLEXITY:
        return "loss_nats", math.log(value) if value > 0 else math.nan
    if column != MAIN and unit_of(column) == BITS:
        return "loss_nats", value * math.log(2)
    return "loss_nats", value


def _number(cell: Any) -> float | None:
    """Return a cell as a finite number, None if it is not one."""
    try:
        value = float(cell)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None
