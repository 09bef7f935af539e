"""Read runs of data mixtures: weights of sources, losses on evaluation sets, N and D."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.errors import DataError, UsageError, did_you_mean, listed
from scalelab.fit.mixture_runs import MixtureRuns
from scalelab.records.metric import BITS_PER_BYTE, BPB, HELDOUT_SET, LOSS, NATS, parse_metric
from scalelab.store.live import open_snapshot
from scalelab.store.metric import metrics_of
from scalelab.store.reading import Reading
from scalelab.store.table_files import open_file
from scalelab.store.table_source import TableSource, first_line, open_frame, quote
from scalelab.units import parse_quantity

if TYPE_CHECKING:
    import duckdb
    import pandas as pd

WEIGHT_STARTS = ("weight_", "proportion_", "share_", "ratio_")
SIZE_COLUMNS = ("n_params", "num_params", "params")
TOKEN_COLUMNS = ("n_tokens", "num_tokens", "tokens")
SIZE_NAMES = ("group", "model", "model_size", "size")
"""Columns of text such as 70M, read as N where the table has no column of N."""
RUN_NAMES = ("run_id", "run", "name", "run_name")
_SWEEP = """
SELECT r.run_id, r.n_params, r.n_tokens, m.source, m.weight, m.unique_tokens,
  e."set" AS set_name, e.loss_nats
FROM sweeps AS s JOIN runs AS r USING (run_id) JOIN mixtures AS m USING (run_id)
JOIN evals AS e USING (run_id)
WHERE s.sweep = $name AND r.status = 'done' AND e.is_final AND e.kind = 'text'
  AND isfinite(e.loss_nats) {where}
ORDER BY s.position, m.source, set_name
"""
_LATEST = """
SELECT s.sweep FROM sweeps AS s JOIN mixtures AS m USING (run_id) JOIN runs AS r USING (run_id)
WHERE r.status = 'done' GROUP BY s.sweep ORDER BY max(s.created_s) DESC, s.sweep LIMIT 1
"""


def read_mixtures(
    path: Path | pd.DataFrame,
    *,
    mapping: Mapping[str, str] | None = None,
    where: str | None = None,
    reading: Reading | None = None,
    sets: Sequence[str] | None = None,
) -> MixtureRuns:
    """Return the runs of a table.

    Parameters
    ----------
    path : Path or DataFrame
        A table with one row per run. Weights are in ``weight_SOURCE`` or ``proportion_SOURCE``,
        losses in ``loss_SET`` (nats per token) or ``bpb_SET`` (bits per byte).
    mapping : Mapping[str, str], optional
        ``weight_SOURCE``, ``loss_SET``, ``n_params`` or ``n_tokens`` to a column or SQL expression.
    where : str, optional
        SQL condition; other rows are ignored.
    reading : Reading, optional
        Format of the file.
    sets : sequence of str, optional
        Evaluation sets to keep; default: all.

    Raises
    ------
    UsageError, DataError
        If a column is missing or the weights cannot be used.
    """
    opened = open_file(path, reading) if isinstance(path, Path) else open_frame(path)
    with opened as table:
        return _read(table, dict(mapping or {}), where, sets)


def _read(
    table: TableSource, mapping: dict[str, str], where: str | None, sets: Sequence[str] | None
) -> MixtureRuns:
    weights = _weight_columns(table, mapping)
    losses, unit = _loss_columns(table, mapping, set(weights.values()))
    chosen = _chosen(losses, sets)
    size = mapping.get("n_params") or _present(SIZE_COLUMNS, table)
    tokens = mapping.get("n_tokens") or _present(TOKEN_COLUMNS, table)
    named = None if size else _present(SIZE_NAMES, table)
    label = _present(RUN_NAMES, table)
    sizes = [name for name in (size, tokens) if name is not None]
    numeric = [*weights.values(), *chosen.values(), *sizes]
    table.make_numeric([name for name in numeric if name in table.types])
    wanted = {f"w{j}": c for j, c in enumerate(weights.values())}
    wanted |= {f"l{j}": c for j, c in enumerate(chosen.values())}
    wanted |= {k: c for k, c in (("size", size), ("tokens", tokens), ("named", named),
                                 ("label", label)) if c}  # fmt: skip
    parts = ", ".join(f"{_expression(c, table)} AS {k}" for k, c in wanted.items())
    condition = f"WHERE ({where})" if where else ""
    if where:
        table.check(f"SELECT 1 FROM rows {condition}", where)
    for key, column in wanted.items():
        if column not in table.types:
            table.check(f"SELECT {column} AS {key} FROM rows", column)
    rows = table.fetch(f"SELECT {parts} FROM rows {condition} ORDER BY source_row", where or "")
    n = len(rows["w0"])
    if not n:
        raise DataError(f"{table.name}, which has no row to fit", "rows", "Check --where.")
    losses_read = {name: np.asarray(rows[f"l{j}"], float) for j, name in enumerate(chosen)}
    kept = np.isfinite(np.array(list(losses_read.values()))).all(axis=0)
    for name, values in losses_read.items():
        if not np.isfinite(values).any():
            raise DataError(
                f"evaluation set {name} of {table.name}, which has no loss",
                "a number in each row",
                f"Leave it out: --metric {next((s for s in chosen if s != name), 'SET')}.",
            )
    if (np.array([c[kept] for c in losses_read.values()]) <= 0).any():
        raise DataError(
            f"a loss of 0 or less in {table.name}", "losses above 0", "Leave it out with --where."
        )
    N = _numbers(rows, "size")
    if N is None and named is not None:
        N = _sizes([str(v) for v in rows["named"]])
    D = _numbers(rows, "tokens")
    texts = [str(v) for v in rows["label"]] if label else [f"row {i + 1}" for i in range(n)]
    if named is not None and not label:
        texts = [f"{t} ({v})" for t, v in zip(texts, rows["named"], strict=True)]
    return MixtureRuns(
        sources=tuple(weights),
        weights=np.stack([np.asarray(rows[f"w{j}"], float)[kept] for j in range(len(weights))], 1),
        losses={name: values[kept] for name, values in losses_read.items()},
        n_params=None if N is None else N[kept],
        n_tokens=None if D is None else D[kept],
        unit=unit,
        names=tuple(t for t, keep in zip(texts, kept, strict=True) if keep),
        source=table.name,
        n_incomplete=int((~kept).sum()),
    )


def read_sweep_mixtures(
    results: Path,
    sweep: str | None,
    *,
    where: str | None = None,
    sets: Sequence[str] | None = None,
) -> MixtureRuns:
    """Return the finished runs of a sweep of mixtures; default: the latest such sweep.

    ``where`` is an SQL condition on the columns of the table ``runs``.

    Raises
    ------
    DataError
        If there is no such sweep, or it has no finished run.
    UsageError
        If an evaluation set is unknown.
    """
    with open_snapshot(results) as connection:
        name = sweep or _latest(connection)
        rows = _sweep_rows(connection, name, where) if name else {}
    if not name or not len(rows["run_id"]):
        raise DataError(
            f"sweep {name!r}, which has no finished run of a mixture"
            if name
            else f"results folder {results}, which has no finished run of a mixture",
            "a sweep whose runs mix sources",
            "Train one with `scalelab sweep mixture`, or fit a table with --from.",
        )
    runs = list(dict.fromkeys(rows["run_id"].tolist()))
    sources = list(dict.fromkeys(rows["source"].tolist()))
    names = list(dict.fromkeys(rows["set_name"].tolist()))
    place = {run: i for i, run in enumerate(runs)}
    weights = np.zeros((len(runs), len(sources)))
    losses = {each: np.full(len(runs), np.nan) for each in names}
    N, D = np.zeros(len(runs)), np.zeros(len(runs))
    unique: dict[str, float] = {}
    columns = [rows[key].tolist() for key in (
        "run_id", "source", "weight", "set_name", "loss_nats", "n_params", "n_tokens",
        "unique_tokens",
    )]  # fmt: skip
    for run, source, weight, each, loss, n_params, n_tokens, distinct in zip(*columns, strict=True):
        i = place[run]
        weights[i, sources.index(source)] = weight
        losses[each][i], N[i], D[i] = loss, n_params, n_tokens
        if distinct:
            unique[source] = float(distinct)
    complete = {k: v for k, v in losses.items() if np.isfinite(v).all()}
    if set(sources) <= set(complete) and HELDOUT_SET not in (sets or ()):
        # The mean over the sources, which their laws give.
        complete.pop(HELDOUT_SET, None)
    chosen = _chosen({k: k for k in complete}, sets)
    return MixtureRuns(
        sources=tuple(sources),
        weights=weights,
        losses={k: complete[k] for k in chosen},
        n_params=N,
        n_tokens=D,
        names=tuple(runs),
        unique_tokens=unique,
        source=f"sweep {name}",
    )


def _sweep_rows(
    connection: duckdb.DuckDBPyConnection, name: str, where: str | None
) -> dict[str, Any]:
    import duckdb

    query = _SWEEP.format(
        where=f"AND run_id IN (SELECT run_id FROM runs WHERE (\n{where}\n))" if where else ""
    )
    try:
        found: dict[str, Any] = connection.execute(query, {"name": name}).fetchnumpy()
    except duckdb.Error as error:
        raise UsageError(
            f"{where!r} ({first_line(error)})",
            "DuckDB SQL over the columns of the table runs",
            "Write for example --where 'n_params > 1e6'.",
        ) from None
    return found


def _latest(connection: duckdb.DuckDBPyConnection) -> str | None:
    row = connection.execute(_LATEST).fetchone()
    return None if row is None else str(row[0])


def _weight_columns(table: TableSource, mapping: Mapping[str, str]) -> dict[str, str]:
    """Return the column or expression of each source's weight."""
    mapped = {k.removeprefix("weight_"): c for k, c in mapping.items() if k.startswith("weight_")}
    if mapped:
        return mapped
    for start in WEIGHT_STARTS:
        found = {c[len(start) :]: c for c in table.types if c.lower().startswith(start)}
        if len(found) > 1:
            return found
    raise DataError(
        f"{table.name}, which has no columns of weights",
        f"columns weight_SOURCE or proportion_SOURCE (it has {listed(table.types)})",
        "Name them, for example --map weight_code=COLUMN,weight_web=COLUMN.",
    )


def _loss_columns(
    table: TableSource, mapping: Mapping[str, str], used: set[str]
) -> tuple[dict[str, str], str]:
    """Return the column or expression of each evaluation set's loss, and their unit."""
    mapped = {
        HELDOUT_SET if k == "loss_nats" else k.removeprefix("loss_"): c
        for k, c in mapping.items()
        if k.startswith("loss_")
    }
    if mapped:
        return mapped, NATS
    named = metrics_of(name for name in table.types if name not in used)
    for kind, unit in ((LOSS, NATS), (BPB, BITS_PER_BYTE)):
        found = {}
        for metric, column in named.items():
            (term,) = parse_metric(metric).terms
            if term.kind == kind:
                found[term.name] = column
        if found:
            return found, unit
    one = _present(("loss_nats", "loss"), table)
    if one:
        return {HELDOUT_SET: one}, NATS
    raise DataError(
        f"{table.name}, which has no columns of losses",
        f"columns loss_SET or bpb_SET (it has {listed(table.types)})",
        "Name them, for example --map loss_code=COLUMN,loss_web=COLUMN.",
    )


def _chosen(losses: Mapping[str, str], sets: Sequence[str] | None) -> dict[str, str]:
    for name in sets or ():
        if name not in losses:
            raise UsageError(
                f"evaluation set {name!r}",
                f"one of {', '.join(losses)}",
                did_you_mean(name, losses) or "Leave --metric out to fit all sets.",
            )
    return {name: losses[name] for name in sets or losses}


def _present(names: Iterable[str], table: TableSource) -> str | None:
    lower = {c.lower(): c for c in table.types}
    return next((lower[name] for name in names if name in lower), None)


def _expression(column: str, table: TableSource) -> str:
    return quote(column) if column in table.types else f"({column})"


def _numbers(rows: Mapping[str, FloatArray], key: str) -> FloatArray | None:
    if key not in rows:
        return None
    column = np.asarray(rows[key], dtype=np.float64)
    return column if np.isfinite(column).all() and (column > 0).all() else None


def _sizes(names: Sequence[str]) -> FloatArray | None:
    """Return the parameters that names such as 70M state; None if one does not."""
    if not all(re.fullmatch(r"\d+(\.\d+)?\s*[KMBTkmbt]", name.strip()) for name in names):
        return None
    return np.array([parse_quantity(name) for name in names])
