"""Columns of a sweep or an import for each evaluation set, from the table ``evals``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scalelab.records.metric import ACCURACY, BPB, HELDOUT_SET, LOSS, TASK, Term
from scalelab.store.eval_rows import REPORTED, TEXT
from scalelab.store.eval_rows import TASK as TASK_ROW

if TYPE_CHECKING:
    import duckdb

_SETS = """
SELECT e.set, e.kind, count(e.loss_nats), count(e.bits_per_byte), count(e.accuracy), count(e.value)
FROM evals AS e JOIN {rows} USING (run_id) WHERE e.is_final GROUP BY ALL ORDER BY ALL
"""
_NUMBERS = ("loss_nats", "bits_per_byte", "accuracy", "value")
_METRICS = {
    (TEXT, "loss_nats"): LOSS,
    (TEXT, "bits_per_byte"): BPB,
    (TASK_ROW, "bits_per_byte"): TASK,
    (TASK_ROW, "accuracy"): ACCURACY,
    (REPORTED, "value"): LOSS,
}
"""Kind of the metric by kind of the row and column of ``evals``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricColumn:
    """One number of one evaluation set as a column.

    Attributes
    ----------
    metric : str
        The metric that reads it, such as ``bpb:code``.
    name : str
        Its name, such as ``bpb_code``.
    sql : str
        Expression over a run's rows of ``evals``, named ``e``; the last step counts.
    """

    metric: str
    name: str
    sql: str


def metric_columns(connection: duckdb.DuckDBPyConnection, rows: str) -> list[MetricColumn]:
    """Return a column for each number of each evaluation set of some runs.

    The held-out loss in nats is a column of these runs already.

    Parameters
    ----------
    connection : DuckDBPyConnection
    rows : str
        Table of the runs, with ``run_id``.
    """
    described = connection.execute(f"DESCRIBE {rows}").fetchall()
    taken = {str(name).lower() for name, *_ in described}
    found: dict[str, MetricColumn] = {}
    for name, kind, *counts in connection.execute(_SETS.format(rows=rows)).fetchall():
        for number, count in zip(_NUMBERS, counts, strict=True):
            of = _METRICS.get((kind, number))
            if not count or of is None or (of == LOSS and name == HELDOUT_SET):
                continue
            metric = Term(kind=of, name=name).text
            if metric in found:
                continue
            column = name if kind == REPORTED else f"{BPB if of == TASK else of}_{name}"
            while column.lower() in taken:
                column += "_final"
            taken.add(column.lower())
            chosen = f"e.set = {_text(name)} AND e.kind = {_text(kind)}"
            found[metric] = MetricColumn(
                metric=metric,
                name=column,
                sql=f"arg_max(e.{number}, coalesce(e.step, 0)) FILTER (WHERE {chosen})",
            )
    return list(found.values())


def _text(value: str) -> str:
    """Return an SQL text."""
    return "'" + value.replace("'", "''") + "'"
