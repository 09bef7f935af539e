"""Take the tables out: CSV for people and spreadsheets, Parquet for programs."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING

from scalelab.errors import DataError, UsageError
from scalelab.store.db import open_snapshot
from scalelab.store.schema import IMPORTS, RUNS, SWEEPS, TABLES
from scalelab.store.table_source import first_line

if TYPE_CHECKING:
    import duckdb

FORMATS = ("csv", "parquet")
SUFFIXES = {".csv": "csv", ".parquet": "parquet", ".pq": "parquet"}
"""Endings that promise a format."""


def export_table(
    results: Path,
    table: str,
    format: str | None,
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
    format : str or None
        One of `FORMATS`; None takes what the ending of the file says, else CSV.
    target : Path or binary stream
        A file appears whole or not at all.
    sweep : str, optional
        Only the runs of this sweep; ``runs`` then has the columns of ``sweeps`` before its own, in
        the order of the plan. Of ``imports``, only the rows of the import of this name.

    Raises
    ------
    UsageError
        When there is no such table or format, the file's ending promises another format, or the
        folder of the file does not exist.
    DataError
        When nothing was collected, there is no such sweep, or the file cannot be written.
    """
    promised = SUFFIXES.get(target.suffix.lower()) if isinstance(target, Path) else None
    format = format or promised or FORMATS[0]
    if format not in FORMATS:
        raise UsageError(f"format {format!r}", " or ".join(FORMATS), "Choose one with --format.")
    if promised not in (None, format):
        raise UsageError(
            f"--out {target} with --format {format}",
            f"a file whose ending does not promise {promised}",
            "Leave --format out, or rename the file.",
        )
    if isinstance(target, Path):
        return _export_to_file(results, table, format, target, sweep)
    with tempfile.TemporaryDirectory(prefix="scalelab-") as folder:
        file = Path(folder) / "export"
        n_rows = _export_to_file(results, table, format, file, sweep)
        with file.open("rb") as stream:
            shutil.copyfileobj(stream, target)
    return n_rows


def _export_to_file(results: Path, table: str, format: str, target: Path, sweep: str | None) -> int:
    import duckdb

    if not target.parent.is_dir() or target.is_dir():
        raise UsageError(
            f"--out {target}, "
            + ("a folder" if target.is_dir() else "whose folder does not exist"),
            "a file in an existing folder",
            "Name a file in it." if target.is_dir() else "Make it first.",
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
        except (OSError, duckdb.Error) as error:
            raise DataError(
                f"--out {target}, which cannot be written ({first_line(error)})",
                "a file that this user may write, on a disk with room",
                "Name another with --out.",
            ) from error
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
    return n_rows


def _select(
    connection: duckdb.DuckDBPyConnection, table: str, sweep: str | None
) -> duckdb.DuckDBPyRelation:
    known = {found.name: found for found in TABLES}
    if table not in known:
        raise UsageError(
            f"table {table!r}",
            f"one of {', '.join(known)}",
            "See docs/reference/tables.md for each.",
        )
    key = ", ".join(f't."{name}"' for name in known[table].key)
    if sweep is None:
        return connection.sql(f"SELECT * FROM {table} AS t ORDER BY {key}")
    sweeps = _names(connection, "sweep", SWEEPS.name)
    imports = _names(connection, "import", IMPORTS.name)
    what, names = ("import", imports) if table == IMPORTS.name else ("sweep", sweeps)
    if sweep not in names:
        is_import = sweep in imports
        raise DataError(
            f"{what} {sweep!r}, which is "
            + ("an import" if is_import else "not among the collected ones"),
            f"one of {', '.join(names)}" if names else f"{what}s, of which there are none yet",
            f"Add --table {IMPORTS.name}: the rows of imports are there."
            if is_import
            else "Check the name and --results; `scalelab collect` loads what is new.",
        )
    if table == IMPORTS.name:
        return connection.sql(
            f'SELECT * FROM {table} AS t WHERE "import" = ? ORDER BY {key}', params=[sweep]
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


def _names(connection: duckdb.DuckDBPyConnection, column: str, table: str) -> list[str]:
    found = connection.execute(f'SELECT DISTINCT "{column}" FROM {table} ORDER BY 1').fetchall()
    return [name for (name,) in found]
