"""The collector: update the tables from the files of the results folder.

The tables depend only on the files, so both databases can be deleted at any time. Rows and the
progress of each file are written in one transaction: a killed collector loses and duplicates no
row, and collecting twice changes nothing.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

from scalelab.errors import FIRST_SWEEP, DataError, unwritable
from scalelab.records import run_files
from scalelab.records.files import list_folders
from scalelab.records.overlapped import overlapped
from scalelab.store import live
from scalelab.store.arrow_columns import text_table
from scalelab.store.curves import Progress
from scalelab.store.portions import Portion
from scalelab.store.readers import read_portions
from scalelab.store.schema import RUN_TABLES
from scalelab.store.sources import insert_rows, query_with, refresh_sources

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

RUNS_IN_A_TRANSACTION = 4_000
"""Several transactions, because helpers continue to read while one is written."""
ROWS_IN_A_TRANSACTION = 250_000
LOCK_WAIT_S = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class CollectReport:
    """The result of a collection.

    Attributes
    ----------
    runs_new, runs_changed, runs_removed : int
        Runs that are new, have changed files, or whose folder was removed.
    metric_rows_new : int
        Added rows of training curves.
    torn_lines : int
        Unreadable lines of curves, which were dropped.
    runs : int
        Runs in the tables now.
    is_published : bool
        Whether a new snapshot was published.
    problems : tuple of str
        Warnings: what was skipped, and why.
    wall_s : float
        Duration, seconds.
    """

    runs_new: int
    runs_changed: int
    runs_removed: int
    metric_rows_new: int
    torn_lines: int
    runs: int
    is_published: bool
    problems: tuple[str, ...]
    wall_s: float


@dataclass(slots=True)
class _Batch:
    """Portions of one transaction."""

    portions: list[Portion] = field(default_factory=list)
    n_runs: int = 0
    n_rows: int = 0

    def add(self, portion: Portion) -> None:
        self.portions.append(portion)
        self.n_runs += len(portion.signatures)
        self.n_rows += portion.tables["attempt_metrics"].num_rows

    def is_full(self) -> bool:
        return (
            self.n_runs >= RUNS_IN_A_TRANSACTION
            or self.n_rows >= ROWS_IN_A_TRANSACTION
            # The next portion continues a run of this batch.
            or bool(self.portions and self.portions[-1].rest)
        )


def collect(results: Path, *, wait_s: float = LOCK_WAIT_S) -> CollectReport:
    """Load new results, and publish a snapshot if anything changed.

    Waits up to ``wait_s`` seconds for another collector, such as ``collect --watch``.

    Raises
    ------
    DataError
        If the folder is missing or cannot be written, or another collector is running.
    """
    started = time.perf_counter()
    if not results.is_dir():
        raise DataError(
            f"results folder {results}, which does not exist",
            "a folder with runs",
            f"Launch a sweep with {FIRST_SWEEP}, or import a table with `scalelab import "
            "runs.csv`, or name another folder with --results.",
        )
    folder = live.live_folder(results)
    for path in (live.snapshot_path(results), folder / live.LIVE_FILE):
        if path.is_dir():
            raise DataError(
                f"{path}, which is a folder",
                "a database that the collector wrote, or nothing",
                "Move the folder away; the collector then creates the file from the run folders.",
            )
    with live.collector_lock(folder, wait_s=wait_s):
        connection, discarded = live.open_live(folder)
        try:
            collection = _Collection(connection, results)
            if discarded:
                collection.problems.append(f"live database rebuilt: it was {discarded}")
            collection.run()
            torn_lines = max(collection.count_torn() - collection.torn_before, 0)
            must_publish = not live.is_published(connection, results)
        finally:
            connection.close()
        if must_publish:
            try:
                live.publish(folder, results)
            except OSError as error:
                raise unwritable(live.snapshot_path(results), "the tables", error) from error
    kind = live.network_file_system(folder)
    if kind:
        collection.problems.append(
            f"{folder} is on a network file system ({kind}), where databases are slow and locks "
            f"may fail; set {live.LIVE_DIR_VARIABLE} to a folder on a local disk"
        )
    return CollectReport(
        runs_new=collection.runs_new,
        runs_changed=collection.runs_changed,
        runs_removed=collection.runs_removed,
        metric_rows_new=collection.metric_rows_new,
        torn_lines=torn_lines,
        runs=len(collection.known),
        is_published=must_publish,
        problems=tuple(collection.problems),
        wall_s=time.perf_counter() - started,
    )


def watch(
    results: Path, *, interval_s: float, sleep: Callable[[float], None] = time.sleep
) -> Iterator[CollectReport]:
    """Collect repeatedly and yield each report; does not end by itself."""
    while True:
        report = collect(results)
        yield report
        sleep(max(interval_s, 2 * report.wall_s))


class _Collection:
    """One pass over the results folder."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, results: Path) -> None:
        self.connection = connection
        self.results = results
        self.runs_folder = str(results / "runs")
        self.problems: list[str] = []
        self.runs_new = self.runs_changed = self.runs_removed = 0
        self.metric_rows_new = 0
        self.torn_before = self.count_torn()
        self.known: dict[str, str] = dict(
            connection.execute("SELECT run_id, signature FROM collector.runs").fetchall()
        )

    def count_torn(self) -> int:
        """Return the number of torn lines of all attempts."""
        query = "SELECT coalesce(sum(torn_lines), 0) FROM attempts"
        return int(self.connection.execute(query).fetchall()[0][0])

    def run(self) -> None:
        """Update all tables."""
        names = list_folders(self.runs_folder)
        self._remove(sorted(self.known.keys() - set(names)))
        # A check that fails leaves the run to the reader, which reports the reason.
        unchanged = overlapped(self._is_unchanged, names)
        changed = [
            name for name, is_same in zip(names, unchanged, strict=True) if is_same is not True
        ]
        progress = self._load_progress(changed)
        group = [(name, progress.get(name, {})) for name in changed]
        batch = _Batch()
        for portion in read_portions(self.runs_folder, group, max_rows=ROWS_IN_A_TRANSACTION):
            for name, why in portion.unread.items():
                self.problems.append(f"run {name} not updated: {why}")
            for name, why in portion.refused.items():
                self.problems.append(f"run {name} skipped: {why}")
            self._remove([name for name in portion.refused if name in self.known])
            if portion.restarted:
                self._commit(batch)
                batch = _Batch()
            batch.add(portion)
            if batch.is_full():
                self._commit(batch)
                batch = _Batch()
        self._commit(batch)
        with self._transaction():
            if refresh_sources(self.connection, self.results, self.problems):
                self._raise_generation()

    def _is_unchanged(self, name: str) -> bool:
        signature = self.known.get(name)
        return signature is not None and run_files.is_unchanged(
            f"{self.runs_folder}/{name}", signature
        )

    def _commit(self, batch: _Batch) -> None:
        """Write the batch in one transaction."""
        import pyarrow as pa

        if not batch.portions:
            return
        signatures = {n: s for portion in batch.portions for n, s in portion.signatures.items()}
        restarted = [name for portion in batch.portions for name in portion.restarted]
        tables = {
            name: pa.concat_tables([portion.tables[name] for portion in batch.portions])
            for name in batch.portions[0].tables
        }
        if not (signatures or restarted or tables["collector.files"].num_rows):
            return
        columns = {"run_id": list(signatures), "signature": list(signatures.values())}
        tables["collector.runs"] = text_table(columns)
        replaced = [name for name in signatures if name in self.known]
        with self._transaction():
            self._delete(restarted, ("attempt_metrics", "collector.files"))
            self._delete(replaced, ("runs", "attempts", "evals", "mixtures", "collector.runs"))
            self._forget_progress(tables["collector.files"])
            for name, rows in tables.items():
                insert_rows(self.connection, name, rows)
            self._raise_generation()
        self.runs_changed += len(replaced)
        self.runs_new += len(signatures) - len(replaced)
        self.metric_rows_new += batch.n_rows
        self.known |= signatures

    def _remove(self, names: list[str]) -> None:
        """Remove runs whose folder was removed or is inconsistent."""
        if not names:
            return
        with self._transaction():
            self._delete(names, tuple(table.name for table in RUN_TABLES))
            self._delete(names, ("collector.runs", "collector.files"))
            self._raise_generation()
        for name in names:
            del self.known[name]
        self.runs_removed += len(names)

    def _load_progress(self, names: list[str]) -> dict[str, dict[int, Progress]]:
        """Return the reading progress of these runs by attempt."""
        found: dict[str, dict[int, Progress]] = {}
        if not names:
            return found
        columns = [item.name for item in fields(Progress)]
        rows = query_with(
            self.connection,
            text_table({"run_id": names}),
            f"SELECT run_id, attempt, {', '.join(columns)} FROM collector.files "
            "SEMI JOIN incoming USING (run_id)",
        )
        for run_id, attempt, *values in rows:
            progress = Progress(**dict(zip(columns, values, strict=True)))
            found.setdefault(run_id, {})[attempt] = progress
        return found

    def _forget_progress(self, reached: pa.Table) -> None:
        """Remove the earlier progress of curves that were read further."""
        query = "DELETE FROM collector.files AS f USING incoming AS r WHERE f.run_id = r.run_id"
        query_with(self.connection, reached, f"{query} AND f.attempt = r.attempt")

    def _delete(self, names: list[str], tables: tuple[str, ...]) -> None:
        rows = text_table({"run_id": names})
        for table in tables:
            query = f"DELETE FROM {table} WHERE run_id IN (SELECT run_id FROM incoming)"
            query_with(self.connection, rows, query)

    def _raise_generation(self) -> None:
        self.connection.execute("UPDATE collector.store SET generation = generation + 1")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self.connection.execute("BEGIN")
        try:
            yield
        except BaseException:
            self.connection.execute("ROLLBACK")
            raise
        self.connection.execute("COMMIT")
