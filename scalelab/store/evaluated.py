"""Read which text and tokenizer the losses of a table are of."""

from __future__ import annotations

import json

from scalelab.records.evaluated import UNKNOWN, EvaluatedOn
from scalelab.records.metric import Metric
from scalelab.store.read_options import ReadOptions
from scalelab.store.table_source import TableSource


def evaluated_on(source: TableSource, options: ReadOptions, metric: Metric) -> EvaluatedOn:
    """Return the evaluated text and the tokenizers of the selected rows.

    They are in the columns ``tokenizer``, ``eval_fingerprint`` and ``eval_sets`` of sweeps and of
    tables that have these columns. The index of the public tables names them.
    """
    # A mapped loss may be of any text.
    is_mapped = "loss_nats" in options.mapping
    if source.evaluated is not None:
        return source.evaluated if metric.is_heldout and not is_mapped else UNKNOWN
    return EvaluatedOn(
        texts=() if is_mapped else _texts(source, options, metric),
        tokenizers=_distinct(source, options, "tokenizer"),
    )


def _texts(source: TableSource, options: ReadOptions, metric: Metric) -> tuple[str, ...]:
    if metric.is_heldout:
        return _distinct(source, options, "eval_fingerprint")
    names = sorted({term.name for term in metric.terms})
    found = set()
    for text in _distinct(source, options, "eval_sets"):
        try:
            known = {each["name"]: each["fingerprint"] for each in json.loads(text)}
        except (ValueError, TypeError, KeyError):
            return ()
        if not all(name in known for name in names):
            return ()
        found.add(" ".join(known[name] for name in names))
    return tuple(sorted(found))


def _distinct(source: TableSource, options: ReadOptions, column: str) -> tuple[str, ...]:
    if column not in source.types:
        return ()
    return tuple(
        sorted(
            source.texts(
                f"SELECT DISTINCT {column} AS stated FROM (SELECT * FROM rows WHERE (\n"
                f"{options.where or True}\n)) WHERE {column} IS NOT NULL"
            )
        )
    )
