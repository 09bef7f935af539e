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
    texts = () if is_mapped else _texts(source, options, metric)
    return EvaluatedOn(
        texts=texts,
        tokenizers=_distinct(source, options, "tokenizer"),
        sources=() if is_mapped else _sources(source, options, metric, texts),
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


def _sources(
    source: TableSource, options: ReadOptions, metric: Metric, texts: tuple[str, ...]
) -> tuple[str, ...]:
    """Return the fingerprints of the documents, which the prepared data states."""
    if source.data is None:
        return ()
    from scalelab.corpus.text_identity import text_of  # costs 20 ms, and few tables have data

    # A set is prepared data of its own; the held-out part is that of the training text.
    sets = _distinct(source, options, "data_fingerprint") if metric.is_heldout else texts
    found = set()
    for each in sets:
        parts = [text_of(source.data, part) for part in each.split()]
        if None in parts:
            return ()
        found.add(" ".join(part for part in parts if part))
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
