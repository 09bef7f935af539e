"""Collect the tables ``sweeps`` and ``imports`` from the plans and imported files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalelab.records.files import list_folders, read_json, stamp_of, stat_of
from scalelab.store.rows import as_arrow
from scalelab.store.schema import EVALS, IMPORTS, SWEEPS
from scalelab.store.table_types import Table

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

PLAN_FILE = "plan.json"
IMPORT_FILE = "data.parquet"
CURVES_FILE = "curves.parquet"

_IMPORT_CORE = ("n_params", "n_tokens", "loss_nats", "flops", "budget_flops", "cluster", "line")


def query_with(connection: duckdb.DuckDBPyConnection, rows: pa.Table, query: str) -> list[Any]:
    """Return the result of a query that reads these rows as ``incoming``; none without rows."""
    if not rows.num_rows:
        return []
    connection.register("incoming", rows)
    found = connection.execute(query).fetchall()
    connection.unregister("incoming")
    return found


def insert_rows(connection: duckdb.DuckDBPyConnection, table: str, rows: pa.Table) -> None:
    """Add rows to a table, by the names of their columns."""
    query_with(connection, rows, f"INSERT INTO {table} BY NAME SELECT * FROM incoming")


def refresh_sources(
    connection: duckdb.DuckDBPyConnection, results: Path, problems: list[str]
) -> bool:
    """Update ``sweeps`` and ``imports``; return whether anything changed."""
    sweeps = (SWEEPS, "sweep", results / "sweeps", PLAN_FILE, _sweep_rows)
    imports = (IMPORTS, "import", results / "imports", IMPORT_FILE, _import_rows)
    changed = [_refresh(connection, problems, *source) for source in (sweeps, imports)]
    return any(changed)


def _refresh(
    connection: duckdb.DuckDBPyConnection,
    problems: list[str],
    table: Table,
    kind: str,
    folder: Path,
    file: str,
    read: Callable[[Path, str], Mapping[str, pa.Table]],
) -> bool:
    known = dict(
        connection.execute(
            "SELECT name, signature FROM collector.sources WHERE kind = ?", [kind]
        ).fetchall()
    )
    found = {
        name: stamp_of(stat)
        for name in list_folders(str(folder))
        if (stat := stat_of(folder / name / file)) is not None
    }
    stale = sorted(
        name for name in known.keys() | found.keys() if known.get(name) != found.get(name)
    )
    for name in stale:
        connection.execute(f'DELETE FROM {table.name} WHERE "{kind}" = ?', [name])
        if table is IMPORTS:
            connection.execute("DELETE FROM evals WHERE starts_with(run_id, ?)", [f"{name}/"])
        connection.execute(
            "DELETE FROM collector.sources WHERE kind = ? AND name = ?", [kind, name]
        )
        if name not in found:
            continue
        try:
            tables = read(folder / name, name)
        except (OSError, ValueError, KeyError, TypeError) as error:
            problems.append(f"{kind} {name} skipped: {folder / name / file}: {error!r}")
            continue
        for target, rows in tables.items():
            insert_rows(connection, target, rows)
        connection.execute(
            "INSERT INTO collector.sources VALUES (?, ?, ?)", [kind, name, found[name]]
        )
    return bool(stale)


def _sweep_rows(folder: Path, name: str) -> dict[str, pa.Table]:
    plan = read_json(folder / PLAN_FILE)
    if plan is None:
        raise ValueError("not a JSON object")
    # A run that a plan lists twice is one row.
    members = {row["run_id"]: row.get("budget_flops") for row in plan["rows"]}
    rows: list[dict[str, Any]] = [
        {
            "sweep": name,
            "run_id": run_id,
            "position": position,
            "budget_flops": budget,
            "kind": plan.get("kind"),
            "created_s": plan.get("created_s"),
        }
        for position, (run_id, budget) in enumerate(members.items(), start=1)
    ]
    return {SWEEPS.name: as_arrow(SWEEPS, rows)}


def _import_rows(folder: Path, name: str) -> dict[str, pa.Table]:
    import pyarrow.parquet as pq

    from scalelab.store.import_evals import import_eval_rows

    table = pq.read_table(folder / IMPORT_FILE)
    about: Mapping[str, Any] = read_json(folder / "mapping.json") or {}
    rows, given = [], table.to_pylist()
    for row in given:
        extra = {key: value for key, value in row.items() if key not in _IMPORT_CORE}
        rows.append(
            {
                "import": name,
                **{key: row.get(key) for key in _IMPORT_CORE},
                "cluster": row.get("cluster") or f"{name}:{row['line']}",
                "param_convention": about.get("param_convention", "unstated"),
                "flop_convention": about.get("flop_convention", "unstated"),
                "imported_s": about.get("imported_s"),
                "extra": json.dumps(extra, sort_keys=True, default=str) if extra else None,
            }
        )
    evals = import_eval_rows(name, given, about)
    return {IMPORTS.name: as_arrow(IMPORTS, rows), EVALS.name: as_arrow(EVALS, evals)}
