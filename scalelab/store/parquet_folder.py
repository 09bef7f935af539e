"""The public tables as a folder of Parquet files, partitioned by sweep.

Other engines read such a folder where it is, also from object storage. Each run is in the partition
of the first sweep that planned it, so a row occurs once; the table ``sweeps`` has all memberships.
A partition is written again only when its runs have changed.
"""

from __future__ import annotations

import json
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from scalelab.errors import DataError, UsageError
from scalelab.records.files import write_atomically
from scalelab.store.live import open_snapshot
from scalelab.store.schema import SCHEMA_VERSION, TABLES
from scalelab.store.table_source import first_line
from scalelab.store.table_types import Table

if TYPE_CHECKING:
    import duckdb

NO_SWEEP = "__HIVE_DEFAULT_PARTITION__"
"""Partition of runs in no sweep; DuckDB, Spark and Arrow read this name as NULL."""
MANIFEST_FILE = "manifest.json"
VIEWS_FILE = "views.sql"
FILE = "data.parquet"
ROW_GROUP = 122_880

# The first sweep of each run, and a value that changes with each collected change of a run.
_HOMES = """
CREATE TEMP TABLE homes AS
SELECT run_id, first(sweep ORDER BY created_s, sweep) AS home FROM sweeps GROUP BY run_id
UNION ALL SELECT run_id, NULL FROM runs WHERE run_id NOT IN (SELECT run_id FROM sweeps)
UNION ALL SELECT DISTINCT run_id, NULL FROM evals WHERE run_id NOT IN (SELECT run_id FROM runs)
"""
_DIGESTS = """
SELECT home, printf('%d %x', count(*), bit_xor(hash(run_id, coalesce(signature, '')))) AS digest
FROM homes LEFT JOIN collector.runs USING (run_id) GROUP BY home
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ParquetReport:
    """What `write_parquet` did.

    Attributes
    ----------
    partitions : int
        Partitions in the folder.
    written : int
        Those that were written now; the others had not changed.
    """

    partitions: int
    written: int


def write_parquet(results: Path, folder: Path) -> ParquetReport:
    """Write the collected tables to ``folder``, as TABLE/sweep=NAME/data.parquet.

    ``folder/views.sql`` creates a view of each table, so that a query on the tables of the results
    folder gives the same rows.

    Raises
    ------
    UsageError
        If the folder holds something else.
    DataError
        When nothing was collected, or the files cannot be written.
    """
    import duckdb

    before = _known(folder)
    with open_snapshot(results) as connection:
        connection.execute(_HOMES)
        digests = {_partition(home): digest for home, digest in _rows(connection, _DIGESTS)}
        homes = {
            _partition(home): home
            for (home,) in _rows(connection, "SELECT DISTINCT home FROM homes")
        }
        changed = [name for name in homes if before.get(name) != digests.get(name)]
        try:
            for table in _by_run():
                for name in changed:
                    _write_partition(connection, table, homes[name], folder / table.name / name)
            for table in _whole():
                _write(connection, f"SELECT * FROM {table.name}", folder / table.name)
            for name in before.keys() - homes.keys():
                for table in _by_run():
                    shutil.rmtree(folder / table.name / name, ignore_errors=True)
            (folder / VIEWS_FILE).write_text(_views(), encoding="utf-8")
            manifest = {"schema": SCHEMA_VERSION, "partitions": digests}
            write_atomically(folder / MANIFEST_FILE, json.dumps(manifest, indent=1) + "\n")
        except (OSError, duckdb.Error) as error:
            raise DataError(
                f"--to parquet {folder}, which cannot be written ({first_line(error)})",
                "a folder that this user may write, on a disk with free space",
                "Name another folder. What was written before stays.",
            ) from error
    return ParquetReport(partitions=len(homes), written=len(changed))


def _by_run() -> list[Table]:
    """Return the tables whose rows belong to a run; ``sweeps`` has several rows for a run."""
    return [table for table in TABLES if table.key[0] == "run_id"]


def _whole() -> list[Table]:
    return [table for table in TABLES if table.key[0] != "run_id"]


def _rows(connection: duckdb.DuckDBPyConnection, query: str) -> list[tuple[str, ...]]:
    return connection.execute(query).fetchall()


def _partition(home: str | None) -> str:
    return f"sweep={NO_SWEEP if home is None else quote(home, safe='')}"


def _write_partition(
    connection: duckdb.DuckDBPyConnection, table: Table, home: str | None, folder: Path
) -> None:
    query = (
        f"SELECT t.* FROM {table.name} AS t JOIN homes USING (run_id) "
        "WHERE home IS NOT DISTINCT FROM $home"
    )
    _write(connection, query, folder, home=home)


def _write(
    connection: duckdb.DuckDBPyConnection, query: str, folder: Path, **parameters: str | None
) -> None:
    """Write the rows of a query to ``folder/data.parquet``, complete or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{secrets.token_hex(4)}"
    try:
        rows = connection.sql(query, params=parameters or None)
        rows.write_parquet(str(partial), compression="zstd", row_group_size=ROW_GROUP)
        partial.replace(folder / FILE)
    finally:
        partial.unlink(missing_ok=True)


def _known(folder: Path) -> dict[str, str]:
    """Return the digest of each partition that the folder has; empty for a new folder."""
    try:
        content = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        is_ours = isinstance(content["partitions"], dict)
    except FileNotFoundError:
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return {}
        is_ours = False
    except (OSError, ValueError, KeyError, TypeError):
        is_ours = False
    if not is_ours:
        raise UsageError(
            f"--to parquet {folder}, which holds something else",
            "a new or empty folder, or one that this command wrote",
            "Name another folder.",
        )
    is_same = content["schema"] == SCHEMA_VERSION
    return {str(k): str(v) for k, v in content["partitions"].items()} if is_same else {}


def _views() -> str:
    """Return SQL that creates a view of each table; run it from the folder."""
    lines = ["-- Run in this folder: duckdb -init views.sql"]
    for table in _by_run():
        lines.append(
            f"CREATE VIEW {table.name} AS SELECT * EXCLUDE (sweep) FROM read_parquet("
            f"'{table.name}/*/{FILE}', hive_partitioning = true, union_by_name = true);"
        )
    for table in _whole():
        lines.append(
            f"CREATE VIEW {table.name} AS SELECT * FROM read_parquet('{table.name}/{FILE}');"
        )
    return "\n".join(lines) + "\n"
