"""Take the tables out: CSV for people and spreadsheets, Parquet for programs."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING

from scalelab.errors import DataError, UsageError
from scalelab.store.db import open_snapshot
from scalelab.store.schema import RUNS, SWEEPS, TABLES

if TYPE_CHECKING:
    import duckdb

FORMATS = ("csv", "parquet")


def export_table(
    results: Path,
    table: str,
    format: str,
    target: Path | IO[bytes],
    *,
    sweep: str | None = None,
) -> int:
    """Write one public table, ordered by its key, and return how many rows it has.

    Parameters
    ----------
    results : Path
        The results folder.
    table : str
        Name of the table.
    format : str
        One of `FORMATS`.
    target : Path or binary stream
        A file appears whole or not at all.
    sweep : str, optional
        Only the runs of this sweep; ``runs`` then has the columns of ``sweeps`` before its own, in
        the order of the plan.

    Raises
    ------
    UsageError
        When there is no such table or format, the table has no runs to choose by, or the folder of
        the file does not exist.
    DataError
        When nothing was collected, or there is no such sweep.
    """
    if format not in FORMATS:
        raise UsageError(f"format {format!r}", " or ".join(FORMATS), "Choose one with --format.")
    if isinstance(target, Path):
        return _export_to_file(results, table, format, target, sweep)
    with tempfile.TemporaryDirectory(prefix="scalelab-") as folder:
        file = Path(folder) / "export"
        n_rows = _export_to_file(results, table, format, file, sweep)
        with file.open("rb") as stream:
            shutil.copyfileobj(stream, target)
    return n_rows


def _export_to_file(results: Path, table: str, format: str, target: Path, sweep: str | None) -> int:
    if not target.parent.is_dir():
        raise UsageError(
            f"--out {target}, whose folder does not exist", "an existing folder", "Make it first."
        )
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    with open_snapshot(results) as connection:
        rows = _select(connection, table, sweep)
        n_rows: int = rows.count("*").fetchall()[0][0]
        try:
            if format == "csv":
                rows.write_csv(str(partial))
            else:
                rows.write_parquet(str(partial))
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
    return n_rows


def _select(
    connection: duckdb.DuckDBPyConnection, table: str, sweep: str | None
) -> duckdb.DuckDBPyRelation:
    known = {found.name: found for found in TABLES}
    if table not in known or (sweep is not None and "run_id" not in known[table].column_names()):
        names = [n for n, t in known.items() if sweep is None or "run_id" in t.column_names()]
        raise UsageError(
            f"table {table!r}" + (" of one sweep" if sweep is not None else ""),
            f"one of {', '.join(names)}",
            "See docs/tables.md for what each holds.",
        )
    key = ", ".join(f't."{name}"' for name in known[table].key)
    if sweep is None:
        return connection.sql(f"SELECT * FROM {table} AS t ORDER BY {key}")
    names = [n for (n,) in connection.execute("SELECT DISTINCT sweep FROM sweeps").fetchall()]
    if sweep not in names:
        raise DataError(
            f"sweep {sweep!r}, which is not among the collected ones",
            f"one of {', '.join(sorted(names))}" if names else "a sweep that was launched",
            "Check the name and --results; `scalelab collect` loads what is new.",
        )
    if table == SWEEPS.name:
        return connection.sql(
            f"SELECT * FROM {table} AS t WHERE sweep = ? ORDER BY position", params=[sweep]
        )
    columns = "t.*"
    if table == RUNS.name:
        own = [name for name in SWEEPS.column_names() if name != "run_id"]
        columns = ", ".join(f"s.{name}" for name in own) + ", t.*"
        key = "s.position"
    return connection.sql(
        f"SELECT {columns} FROM {table} AS t JOIN (SELECT * FROM sweeps WHERE sweep = ?) AS s "
        f"USING (run_id) ORDER BY {key}",
        params=[sweep],
    )
