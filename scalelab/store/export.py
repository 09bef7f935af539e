"""Export tables of the results: CSV, TSV, JSON, JSON lines, Parquet or Excel."""

from __future__ import annotations

import contextlib
import importlib.util
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING

from scalelab.errors import DataError, UsageError, did_you_mean
from scalelab.store.live import open_snapshot
from scalelab.store.schema import IMPORTS, RUNS, SWEEPS, TABLES
from scalelab.store.table_source import first_line

if TYPE_CHECKING:
    import duckdb

FORMATS = ("csv", "tsv", "json", "jsonl", "parquet", "xlsx")
TEXT_FORMATS = ("csv", "tsv", "json", "jsonl")
SUFFIXES = {f".{format}": format for format in FORMATS} | {".pq": "parquet", ".ndjson": "jsonl"}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
PLAIN_SUFFIXES = ("", ".txt", ".dat")
"""File endings that do not name a format; ``--format`` or CSV decides."""
EXCEL_ROWS = 1_048_575


def export_table(
    results: Path,
    table: str,
    format: str | None,
    target: Path | IO[bytes],
    *,
    sweep: str | None = None,
) -> int:
    """Write one public table, ordered by its key, and return its number of rows.

    Parameters
    ----------
    results : Path
        The results folder.
    table : str
        Name of the table.
    format : str or None
        One of `FORMATS`; None takes the format from the file's ending, or CSV.
    target : Path or binary stream
        A file appears complete or not at all. Text formats may end in ``.gz`` or ``.zst``.
    sweep : str, optional
        Only the runs of this sweep; ``runs`` then starts with the columns of ``sweeps``, in the
        order of the plan. For ``imports``: only the rows of the import with this name.

    Raises
    ------
    UsageError
        When the table or format is unknown, the file's ending names another format, or the folder
        of the file does not exist.
    DataError
        When nothing was collected, the sweep is unknown, or the file cannot be written.
    """
    if format is not None and format not in FORMATS:
        raise UsageError(
            f"format {format!r}",
            ", ".join(FORMATS),
            f"{did_you_mean(format, FORMATS)}Write for example --format parquet.",
        )
    if isinstance(target, Path):
        format, compression = _format_of(target, format)
        return _export_to_file(results, table, format, compression, target, sweep)
    with tempfile.TemporaryDirectory(prefix="scalelab-") as folder:
        file = Path(folder) / "export"
        n_rows = _export_to_file(results, table, format or FORMATS[0], None, file, sweep)
        with file.open("rb") as stream:
            shutil.copyfileobj(stream, target)
    return n_rows


def _format_of(target: Path, format: str | None) -> tuple[str, str | None]:
    """Return the format and the compression of a file; UsageError where they contradict."""
    suffixes = [suffix.lower() for suffix in target.suffixes]
    compression = COMPRESSIONS.get(suffixes[-1]) if suffixes else None
    if compression is not None:
        suffixes.pop()
    ending = suffixes[-1] if suffixes else ""
    named = SUFFIXES.get(ending)
    chosen = format or named or FORMATS[0]
    if format is not None and named not in (None, format):
        raise UsageError(
            f"--out {target} with --format {format}",
            f"a file name that ends in .{format}, or no --format",
            f"Write --out {target.with_suffix('.' + format)}, or remove --format {format}.",
        )
    if named is None and format is None and ending not in PLAIN_SUFFIXES:
        raise UsageError(
            f"--out {target}: scalelab does not write {ending} files",
            f"a file name that ends in {', '.join('.' + name for name in FORMATS)}; text formats "
            "also with .gz or .zst",
            "Write for example --out runs.csv, or add --format csv.",
        )
    if compression is not None and chosen not in TEXT_FORMATS:
        raise UsageError(
            f"--out {target}: {chosen} is already compressed",
            f"{', '.join(COMPRESSIONS)} after {', '.join('.' + name for name in TEXT_FORMATS)}",
            f"Write --out {target.with_suffix('')}.",
        )
    return chosen, compression


def _export_to_file(
    results: Path, table: str, format: str, compression: str | None, target: Path, sweep: str | None
) -> int:
    import duckdb

    if not target.parent.is_dir() or target.is_dir():
        raise UsageError(
            f"--out {target}, "
            + ("a folder" if target.is_dir() else "whose folder does not exist"),
            "a file in an existing folder",
            f"Write for example --out {target / 'runs.csv'}."
            if target.is_dir()
            else f"Create it: mkdir -p {target.parent}",
        )
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    with open_snapshot(results) as connection:
        rows = _select(connection, table, sweep)
        n_rows: int = rows.count("*").fetchall()[0][0]
        try:
            _write(rows, n_rows, format, compression, partial)
            partial.replace(target)
        except (OSError, duckdb.Error) as error:
            raise DataError(
                f"--out {target}, which cannot be written ({first_line(error)})",
                "a file that this user may write, on a disk with free space",
                "Write to another folder, for example --out ~/runs.csv.",
            ) from error
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
    return n_rows


def _write(
    rows: duckdb.DuckDBPyRelation, n_rows: int, format: str, compression: str | None, file: Path
) -> None:
    if format in ("csv", "tsv"):
        rows.write_csv(
            str(file), sep="\t" if format == "tsv" else ",", compression=compression or "none"
        )
    elif format == "parquet":
        rows.write_parquet(str(file))
    elif format == "xlsx":
        _write_excel(rows, n_rows, file)
    else:
        # JSON has no number for nan and infinity: they become null.
        columns = ", ".join(
            f'CASE WHEN isfinite("{name}") THEN "{name}" END AS "{name}"'
            if str(kind) in ("DOUBLE", "FLOAT")
            else f'"{name}"'
            for name, kind in zip(rows.columns, rows.types, strict=True)
        )
        quoted = str(file).replace("'", "''")
        rows.query(
            "exported",
            f"COPY (SELECT {columns} FROM exported) TO '{quoted}' (FORMAT json, "
            f"ARRAY {format == 'json'}, COMPRESSION {compression or 'none'})",
        )


def _write_excel(rows: duckdb.DuckDBPyRelation, n_rows: int, file: Path) -> None:
    if importlib.util.find_spec("openpyxl") is None:
        raise UsageError(
            "an .xlsx file, which needs the package openpyxl",
            "openpyxl installed, or .csv, .tsv, .json, .jsonl or .parquet",
            "Run pip install openpyxl, or export to .csv, which Excel opens too.",
        )
    if n_rows > EXCEL_ROWS:
        raise UsageError(
            f"{n_rows:,} rows in an .xlsx file",
            f"at most {EXCEL_ROWS:,} rows, the limit of Excel",
            "Export to .csv or .parquet.",
        )
    import pandas as pd

    with file.open("wb") as stream, pd.ExcelWriter(stream, engine="openpyxl") as book:
        rows.df().to_excel(book, index=False)


def _select(
    connection: duckdb.DuckDBPyConnection, table: str, sweep: str | None
) -> duckdb.DuckDBPyRelation:
    known = {found.name: found for found in TABLES}
    if table not in known:
        raise UsageError(
            f"table {table!r}",
            f"one of {', '.join(known)}",
            f"{did_you_mean(table, known)}Write for example --table {RUNS.name}.",
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
            else f"{did_you_mean(sweep, names)}Run `scalelab collect` to load new sweeps, or "
            "name another "
            "folder with --results.",
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
