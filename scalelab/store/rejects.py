"""Rows of a table that cannot be used: each with its line and reason, and the error if all are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from scalelab.errors import DataError
from scalelab.store.table_read import Reject
from scalelab.store.table_source import TableSource, quote


def rejects_of(
    source: TableSource,
    mapping: Mapping[str, str],
    row: NDArray[np.int64],
    bad: Mapping[str, NDArray[np.bool_]],
) -> tuple[Reject, ...]:
    """Return the rejects in the order of the table, each with its first invalid column.

    Parameters
    ----------
    source : TableSource
    mapping : Mapping[str, str]
        Source of each of our columns: a column of the table, or an expression.
    row : ndarray of shape (n,)
        Number of each row in the source.
    bad : Mapping[str, ndarray of shape (n,)]
        Whether our column is unusable in each row.
    """
    if any(column.any() for column in bad.values()):
        source.count_lines()
    rejects = [
        Reject(line=line, column="", value=text, reason=reason)
        for line, text, reason in source.malformed
    ]
    seen = np.zeros(len(row), bool)
    for name, column in bad.items():
        at = np.flatnonzero(column & ~seen)
        seen |= column
        theirs = mapping[name]
        expression = quote(theirs) if theirs in source.types else f"({theirs})"
        texts = source.cells(expression, row[at]) if len(at) else []
        rejects += [
            Reject(line=int(line), column=name, value=text or "", reason=_reason(name, text))
            for line, text in zip(source.lines(row[at]), texts, strict=True)
        ]
    return tuple(sorted(rejects, key=lambda reject: reject.line))


def nothing_left(name: str, where: str | None, rejects: tuple[Reject, ...]) -> DataError:
    """Return the error about a table without a usable row, or without any row."""
    if rejects:
        first = rejects[0]
        return DataError(
            f"{name} without a usable row (line {first.line}: {first.reason})",
            "finite n_params, n_tokens and losses above zero",
            "Give those columns numbers above zero, or read others, for example --map "
            "loss_nats=val_loss.",
        )
    return DataError(
        f"{name} without rows" + (f" where {where}" if where else ""),
        "at least one row",
        'Use a condition that selects rows, for example --where "n_params > 1e6".'
        if where
        else "Add rows below the line of column names.",
    )


def _reason(name: str, text: str | None) -> str:
    if text is None:
        return f"{name} is missing"
    try:
        value = float(text)
    except ValueError:
        return f"{name} is not a number: {text!r}"
    return f"{name} is not {'above zero' if np.isfinite(value) else 'finite'}: {text}"
