"""Find the columns of a table that a metric reads, and all metrics that a table has."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from scalelab.errors import DataError, UsageError, did_you_mean, listed
from scalelab.logs.losses import BITS, PERPLEXITY, plain, rank_losses, unit_of
from scalelab.logs.losses import BPB as BPB_UNIT
from scalelab.records.metric import (
    ACCURACY,
    BPB,
    HELDOUT,
    HELDOUT_SET,
    LOSS,
    TASK,
    Metric,
    Term,
)
from scalelab.records.metric import parse_metric as parse_metric
from scalelab.store.columns import ALIASES, USUAL_NAMES
from scalelab.store.found_columns import find
from scalelab.store.table_source import TableSource, quote
from scalelab.units import plural

Metrics = Mapping[str, str]
"""Column by metric, such as ``bpb:code``."""

_PREFIXES = ("eval", "evaluation", "val", "valid", "validation", "test", "metrics")
_WORDS = {
    "bits_per_byte": BPB,
    "bpb": BPB,
    "cross_entropy": LOSS,
    "perplexity": LOSS,
    "loss_nats": LOSS,
    "loss": LOSS,
    "ppl": LOSS,
    "nll": LOSS,
    "ce": LOSS,
    "accuracy": ACCURACY,
    "acc": ACCURACY,
}
"""Words of a column's name that say what it holds."""
_NOT_SETS = (
    *("train", "training", "final", "last", "smooth", "smoothed", "mean", "avg", "average"),
    *("total", "predicted", "pred", "initial", "current", "macro", "micro", "norm", "raw"),
    *("uncond", "per_char", "per_token", "se", "se_nats", "ema", "macro_loss", "micro_loss"),
)
"""What remains of names such as ``final_loss``, which is no evaluation set."""


@dataclass(frozen=True, slots=True)
class _Found:
    """What a column holds by its name."""

    kind: str
    name: str


def metrics_of(columns: Iterable[str]) -> Metrics:
    """Return the column of each metric that a table has, by the names of its columns.

    ``loss_code``, ``code_loss`` and ``eval/code/loss`` hold the loss on ``code``, and ``bpb_code``
    its bits per byte. Where ``acc_code`` exists, ``code`` is a task.
    """
    names = list(columns)
    losses = set(rank_losses(names))
    parsed = {name: found for name in names if (found := _parse(name, losses)) is not None}
    tasks = {found.name for found in parsed.values() if found.kind == ACCURACY}
    metrics: dict[str, str] = {}
    for column, found in parsed.items():
        kind = TASK if found.kind == BPB and found.name in tasks else found.kind
        metrics.setdefault(Term(kind=kind, name=found.name).text, column)
    return metrics


def _parse(column: str, losses: set[str]) -> _Found | None:
    """Return the kind and set of a column; None if it is not one of a named set."""
    word = plain(column)
    while (head := word.partition("_"))[0] in _PREFIXES and head[2]:
        word = head[2]
    for text, kind in _WORDS.items():
        if kind != ACCURACY and column not in losses and kind != BPB:
            continue
        if word == text:
            return _Found(BPB, HELDOUT_SET) if kind == BPB else None
        for pattern in (rf"{text}_(.+)", rf"(.+)_{text}"):
            found = re.fullmatch(pattern, word)
            if found and found[1] not in _NOT_SETS:
                return _Found(kind, found[1].strip("_"))
    return None


def metric_expression(
    source: TableSource, metric: Metric, heldout: str | None, loss_unit: str | None
) -> tuple[str, list[str]]:
    """Return the SQL expression of a metric over a table's columns, and the columns in it.

    Parameters
    ----------
    source : TableSource
    metric : Metric
        Not ``all``.
    heldout : str or None
        Column or expression of the held-out loss; None if the table has none.
    loss_unit : str or None
        What the user says about the unit of the losses.

    Raises
    ------
    UsageError
        If the table lacks a set, or has it in another unit.
    """
    known = known_metrics(source)
    parts, columns = [], []
    for term in metric.terms:
        column = _column(source, term, known, loss_unit)
        is_nats = column is None and term.name == HELDOUT_SET and term.kind in (LOSS, BPB)
        column = heldout if is_nats else column
        per_byte = _bytes_column(source) if is_nats and term.kind == BPB else None
        if column is None or (is_nats and term.kind == BPB and per_byte is None):
            raise _unknown(source, term, known, has_heldout=heldout is not None)
        is_column = column in source.types
        columns += [
            name for name in (column, per_byte) if name is not None and name in source.types
        ]
        values = quote(column) if is_column else f"(\n{column}\n)"
        # The loss of logged runs is converted when they are read.
        is_converted = is_nats and source.is_log
        if not is_converted:
            values = _in_unit(values, column if is_column else "", term, loss_unit)
        if per_byte is not None:
            values = f"{values} / ln(2) / {quote(per_byte)}"
        parts.append(values if term.weight == 1 else f"{term.weight!r} * {values}")
    return " + ".join(parts), columns


def list_metrics(source: TableSource, mapping: Mapping[str, str]) -> tuple[Metric, ...]:
    """Return every metric that a source has: the held-out loss first, then by name.

    Parameters
    ----------
    source : TableSource
    mapping : Mapping[str, str]
        The user's mapping of columns.
    """
    lower = {name.lower() for name in source.types}
    own = {"loss_nats", *ALIASES["loss_nats"]}
    has_heldout = "loss_nats" in mapping or bool(own & lower)
    has_heldout = has_heldout or bool(find(["loss_nats"], source.types))
    names = [name for name in known_metrics(source) if name != HELDOUT.text]
    return (*([HELDOUT] if has_heldout else []), *map(parse_metric, names))


def to_compare(metrics: Sequence[Metric]) -> tuple[Metric, ...]:
    """Return the metrics that ``all`` compares: one of each set and task.

    The loss in nats per token, else bits per byte; of a task, bits per byte of the right answer.
    """
    ranks = (LOSS, TASK, BPB)
    by_name: dict[str, Metric] = {}
    for metric in metrics:
        (term,) = metric.terms
        if term.kind not in ranks:
            continue
        other = by_name.get(term.name)
        if other is None or ranks.index(term.kind) < ranks.index(other.terms[0].kind):
            by_name[term.name] = metric
    return tuple(by_name.values())


def known_metrics(source: TableSource) -> Metrics:
    """Return the column of each metric that a source has, the held-out loss aside."""
    if source.metrics is not None:
        return source.metrics
    usual = USUAL_NAMES["loss_nats"]
    return {
        name: column
        for name, column in metrics_of(source.types).items()
        if plain(column) not in usual
    }


def _column(source: TableSource, term: Term, known: Metrics, loss_unit: str | None) -> str | None:
    """Return the column of a term, None if the table has none for it alone."""
    kinds = [term.kind]
    if source.metrics is None:
        # A table without acc_NAME does not tell a task from a set.
        kinds += {TASK: [BPB], BPB: [TASK]}.get(term.kind, [])
    if term.kind == BPB and loss_unit == BPB_UNIT:
        kinds.append(LOSS)
    for kind in kinds:
        for name in (term.name, plain(term.name)):
            text = Term(kind=kind, name=name).text
            if text in known:
                return known[text]
    if term.kind == LOSS and source.metrics is None and term.name != HELDOUT_SET:
        lower = {name.lower(): name for name in source.types}
        return lower.get(term.name.lower())
    return None


def _bytes_column(source: TableSource) -> str | None:
    return next((name for name in source.types if plain(name) == "bytes_per_token"), None)


def _in_unit(values: str, column: str, term: Term, loss_unit: str | None) -> str:
    """Return an expression in the unit of the term."""
    if term.kind == ACCURACY:
        return f"(1 - {values})"
    unit = loss_unit or unit_of(column)
    if term.kind == LOSS and unit == PERPLEXITY:
        return f"ln({values})"
    if term.kind == LOSS and unit == BITS:
        return f"(ln(2) * {values})"
    if term.kind == LOSS and unit == BPB_UNIT:
        raise UsageError(
            f"--metric {term.text}, whose losses ({column or values}) are in bits per byte",
            "a loss in nats per token",
            f"Did you mean --metric {BPB}:{term.name}?",
        )
    return values


def _unknown(source: TableSource, term: Term, known: Metrics, *, has_heldout: bool) -> UsageError:
    """Return the error for a metric that a table does not have."""
    names = [*([HELDOUT.text] if has_heldout else []), *known]
    same = [name for name in names if name.rpartition(":")[2] == term.name]
    if same:
        do = f"Did you mean --metric {same[0]}?"
    elif names:
        do = did_you_mean(term.text, names, prefix="--metric ") or (
            f"Write for example --metric {names[-1]}."
        )
    else:
        do = "Name its columns by what they hold, for example loss_code for the loss on code."
    return UsageError(
        f"--metric {term.text}, which {source.name} does not have",
        f"one of its metrics: {listed(names, term.text) or 'it has none'}",
        do.strip(),
    )


def without_metric(
    source: TableSource, metric: Metric, values: str, conditions: Sequence[str]
) -> tuple[str, dict[str, str]]:
    """Return the condition that leaves out rows without the metric, and a note that counts them.

    Parameters
    ----------
    source : TableSource
    metric : Metric
    values : str
        The metric's SQL expression.
    conditions : sequence of str
        SQL conditions that select rows; empty ones do not apply.

    Raises
    ------
    DataError
        If no row has it.
    """
    where = " AND ".join(f"(\n{each}\n)" for each in conditions if each)
    counted = source.fetch(
        f"SELECT count(\n{values}\n) AS found, count(*) AS n FROM rows WHERE {where or 'true'}",
        where,
    )
    n_found, n_rows = int(counted["found"][0]), int(counted["n"][0])
    if n_rows and not n_found:
        raise DataError(
            f"--metric {metric.text}, which no row of {source.name} has",
            "rows with that metric",
            "Name another metric, or add this evaluation set to the runs.",
        )
    notes: dict[str, str] = {}
    if n_found < n_rows:
        notes["no_metric"] = (
            f"{plural(n_rows - n_found, 'row')} of {n_rows:,} left out: no {metric.text}. Only "
            f"the other {n_found:,} are compared."
        )
    return f"({values}\n) IS NOT NULL", notes
