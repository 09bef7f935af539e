"""Open the published tables: connections that never see half a collection."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from scalelab.errors import DataError
from scalelab.store.live import snapshot_path
from scalelab.store.schema import SCHEMA_VERSION

if TYPE_CHECKING:
    import duckdb


def open_snapshot(results: Path) -> duckdb.DuckDBPyConnection:
    """Return a read-only connection to the tables as they were published last.

    It may be opened at any time, also while a collector runs, and goes on showing the snapshot that
    it opened. (The file is attached to a private database: DuckDB shares one instance of a path
    within a process, so opening it directly could show the file before the last one.)

    Raises
    ------
    DataError
        When nothing has been collected yet, or another version of scalelab published the file.
    """
    import duckdb

    path = snapshot_path(results)
    if not path.exists():
        raise DataError(
            f"results folder {results}, in which nothing has been collected",
            f"a folder with {path.name}",
            f"Run `scalelab collect --results {results}`, or name another folder with --results.",
        )
    connection = duckdb.connect()
    try:
        quoted = str(path).replace("'", "''")
        connection.execute(f"ATTACH '{quoted}' AS results (READ_ONLY); USE results;")
        found = connection.execute("SELECT schema FROM collector.store").fetchall()
    except duckdb.Error as error:
        connection.close()
        raise DataError(
            f"{path}, which cannot be opened ({str(error).splitlines()[0]})",
            "the snapshot that `scalelab collect` publishes",
            "Delete it and run `scalelab collect`: it is built anew from the run folders.",
        ) from None
    if found != [(SCHEMA_VERSION,)]:
        connection.close()
        raise DataError(
            f"{path} with schema {found[0][0] if found else 'unknown'}",
            f"schema {SCHEMA_VERSION}, which this version of scalelab reads",
            "Run `scalelab collect` with this version.",
        )
    return connection
