"""Bring the tables up to date with the files of the results folder: the collector.

What the tables hold is a function of the files alone, so both databases can be deleted at any time.
Rows and what was read of each file are written in one transaction: a collector that is killed loses
and doubles nothing, and collecting twice changes nothing.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

from scalelab.errors import DataError, ScalelabError
from scalelab.store import live, scan
from scalelab.store.curves import CurveRows, Progress, read_new_rows
from scalelab.store.rows import Row, arrow_columns, as_arrow, attempt_rows, run_row
from scalelab.store.schema import ATTEMPT_METRICS, ATTEMPTS, RUNS
from scalelab.store.sources import refresh_imports, refresh_sweeps

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

RUNS_IN_A_TRANSACTION = 20_000
RUNS_READ_TOGETHER = 100
READERS = 4
READ_AHEAD = 20
ROWS_IN_A_TRANSACTION = 250_000
LOCK_WAIT_S = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class CollectReport:
    """What a collection did.

    Attributes
    ----------
    runs_new, runs_changed, runs_removed : int
        Runs that were first seen, had changed files, or whose folder is gone.
    metric_rows_new : int
        Rows of training curves that were added.
    torn_lines : int
        Lines of curves that could not be read and were dropped.
    runs : int
        Runs in the tables now.
    is_published : bool
        Whether a new snapshot was published.
    problems : tuple of str
        What was left out, and why; warnings.
    wall_s : float
        How long it took.
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
    """What goes into one transaction."""

    run_rows: list[Row] = field(default_factory=list)
    attempt_rows: list[Row] = field(default_factory=list)
    curves: CurveRows = field(default_factory=CurveRows)
    signatures: dict[str, str] = field(default_factory=dict)
    progress: dict[tuple[str, int], Progress] = field(default_factory=dict)
    restarted: list[str] = field(default_factory=list)

    def clear(self) -> None:
        """Empty it for the next transaction."""
        for name in ("run_rows", "attempt_rows", "signatures", "progress", "restarted"):
            getattr(self, name).clear()
        self.curves = CurveRows()

    def is_full(self) -> bool:
        """Say whether it should be written before more is gathered."""
        return (
            len(self.run_rows) >= RUNS_IN_A_TRANSACTION or len(self.curves) >= ROWS_IN_A_TRANSACTION
        )


def collect(results: Path, *, wait_s: float = LOCK_WAIT_S) -> CollectReport:
    """Load what is new in the results folder, and publish a snapshot when anything changed.

    Parameters
    ----------
    results : Path
        The results folder.
    wait_s : float
        How long to wait for another collector (``collect --watch`` beside a sweep that ends).

    Raises
    ------
    DataError
        When the folder is missing or cannot be written, or another collector is at work.
    """
    started = time.perf_counter()
    if not results.is_dir():
        raise DataError(
            f"results folder {results}, which does not exist",
            "a folder with runs",
            "Launch a sweep, import a table, or name the folder with --results.",
        )
    folder = live.live_folder(results)
    with live.collector_lock(folder, wait_s=wait_s):
        connection, discarded = live.open_live(folder)
        try:
            collection = _Collection(connection, results)
            if discarded:
                collection.problems.append(f"live database built anew: it was {discarded}")
            collection.run()
            torn_lines = max(collection.count_torn() - collection.torn_before, 0)
            must_publish = not live.is_published(connection, results)
        finally:
            connection.close()
        if must_publish:
            live.publish(folder, results)
    kind = live.network_file_system(folder)
    if kind:
        collection.problems.append(
            f"{folder} is on a network file system ({kind}), where databases are slow and locks "
            f"unsure: set {live.LIVE_DIR_VARIABLE} to a folder on a local disk"
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
    """Collect again and again, and hand over each report; never ends by itself."""
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
        """Return the torn lines of all attempts."""
        query = "SELECT coalesce(sum(torn_lines), 0) FROM attempts"
        return int(self.connection.execute(query).fetchall()[0][0])

    def run(self) -> None:
        """Bring every table up to date."""
        names = scan.run_names(self.runs_folder)
        self._remove(sorted(self.known.keys() - set(names)))
        changed = [
            name
            for name in names
            if (signature := self.known.get(name)) is None
            or not scan.is_unchanged(f"{self.runs_folder}/{name}", signature)
        ]
        progress = self._load_progress(changed)
        batch = _Batch()
        for name, read in self._read_ahead(changed):
            self._take_run(name, read, progress, batch)
            if batch.is_full():
                self._commit(batch)
        self._commit(batch)
        with self._transaction():
            refreshed = [
                refresh_sweeps(self.connection, self.results, self.problems),
                refresh_imports(self.connection, self.results, self.problems),
            ]
            if any(refreshed):
                self._raise_generation()

    def _read_ahead(self, names: list[str]) -> Iterator[tuple[str, scan.RunFiles | Exception]]:
        """Yield each run, or why it could not be read, in order.

        A few threads read ahead: while one waits for the file system another parses.
        """
        size = RUNS_READ_TOGETHER
        groups = [names[i : i + size] for i in range(0, len(names), size)]
        with ThreadPoolExecutor(READERS) as pool:
            ahead: deque[Future[list[tuple[str, scan.RunFiles | Exception]]]] = deque()
            for group in groups:
                ahead.append(pool.submit(self._read_runs, group))
                if len(ahead) > READ_AHEAD:
                    yield from ahead.popleft().result()
            while ahead:
                yield from ahead.popleft().result()

    def _read_runs(self, names: Sequence[str]) -> list[tuple[str, scan.RunFiles | Exception]]:
        found: list[tuple[str, scan.RunFiles | Exception]] = []
        for name in names:
            try:
                found.append((name, scan.read_run(f"{self.runs_folder}/{name}")))
            except (ScalelabError, OSError) as error:
                found.append((name, error))
        return found

    def _take_run(
        self,
        name: str,
        run: scan.RunFiles | Exception,
        progress: dict[str, dict[int, Progress]],
        batch: _Batch,
    ) -> None:
        if isinstance(run, ScalelabError):
            self.problems.append(f"run {name} left out: {run}")
            self._remove([name] if name in self.known else [])
            return
        if isinstance(run, Exception):
            self.problems.append(f"run {name} not read, as it was before: {run}")
            return
        torn = self._read_curves(run, progress.get(name, {}), batch)
        batch.run_rows.append(run_row(run))
        batch.attempt_rows += attempt_rows(run, torn)
        batch.signatures[name] = run.signature

    def _read_curves(
        self, run: scan.RunFiles, earlier: dict[int, Progress], batch: _Batch
    ) -> dict[int, int]:
        """Gather the new rows of a run's attempts; return the torn lines of each in all."""
        found = {attempt.number: attempt for attempt in run.attempts}
        if any(
            number not in found
            or found[number].token != progress.token
            or found[number].metrics_bytes < progress.bytes_read
            for number, progress in earlier.items()
        ):
            # Another folder of the same name, or a curve cut short: nothing of before holds.
            batch.restarted.append(run.run_id)
            earlier = {}
        torn = {}
        for number, attempt in found.items():
            progress = earlier.get(number) or Progress(token=attempt.token)
            is_over = (
                run.accepted is not None or attempt is not run.attempts[-1] or bool(attempt.end)
            )
            while progress.bytes_read < attempt.metrics_bytes:
                rows, reached = read_new_rows(f"{attempt.folder}/metrics.jsonl", progress)
                if reached == progress:
                    break
                self.metric_rows_new += len(rows)
                batch.curves.add(run.run_id, attempt.number, rows)
                batch.progress[run.run_id, number] = progress = reached
                if batch.is_full():
                    self._commit(batch)
            # An unfinished last line is not read past: who was given up for dead may yet finish it.
            torn[number] = progress.torn + (is_over and progress.bytes_read < attempt.metrics_bytes)
        return torn

    def _commit(self, batch: _Batch) -> None:
        """Write the batch in one transaction and empty it."""
        if not (batch.signatures or batch.progress or batch.restarted):
            return
        with self._transaction():
            self._delete(batch.restarted, ("attempt_metrics", "collector.files"))
            replaced = [name for name in batch.signatures if name in self.known]
            self._delete(replaced, ("runs", "attempts", "collector.runs"))
            self._insert("runs", as_arrow(RUNS, batch.run_rows))
            self._insert("attempts", as_arrow(ATTEMPTS, batch.attempt_rows))
            self._insert("attempt_metrics", arrow_columns(ATTEMPT_METRICS, batch.curves.columns()))
            self._save_progress(batch.progress)
            signatures = {
                "run_id": list(batch.signatures),
                "signature": list(batch.signatures.values()),
            }
            self._insert("collector.runs", _text_table(signatures))
            self._raise_generation()
        self.runs_changed += len(replaced)
        self.runs_new += len(batch.signatures) - len(replaced)
        self.known |= batch.signatures
        batch.clear()

    def _remove(self, names: list[str]) -> None:
        """Remove runs whose folder is gone or cannot be used."""
        if not names:
            return
        with self._transaction():
            tables = ("runs", "attempts", "attempt_metrics", "collector.runs", "collector.files")
            self._delete(names, tables)
            self._raise_generation()
        for name in names:
            del self.known[name]
        self.runs_removed += len(names)

    def _load_progress(self, names: list[str]) -> dict[str, dict[int, Progress]]:
        """Return how far the curves of these runs were read, by run and attempt."""
        found: dict[str, dict[int, Progress]] = {}
        if not names:
            return found
        self.connection.register("named", _text_table({"run_id": names}))
        rows = self.connection.execute(
            "SELECT run_id, attempt, token, bytes_read, last_step, torn FROM collector.files "
            "SEMI JOIN named USING (run_id)"
        ).fetchall()
        self.connection.unregister("named")
        for run_id, attempt, token, bytes_read, last_step, torn in rows:
            found.setdefault(run_id, {})[attempt] = Progress(
                token=token, bytes_read=bytes_read, last_step=last_step, torn=torn
            )
        return found

    def _save_progress(self, progress: dict[tuple[str, int], Progress]) -> None:
        if not progress:
            return
        import pyarrow as pa

        values = list(progress.values())
        table = pa.table(
            {
                "run_id": [run_id for run_id, _ in progress],
                "attempt": [attempt for _, attempt in progress],
                **{f.name: [getattr(value, f.name) for value in values] for f in fields(Progress)},
            }
        )
        self.connection.register("reached", table)
        self.connection.execute(
            "DELETE FROM collector.files AS f USING reached AS r "
            "WHERE f.run_id = r.run_id AND f.attempt = r.attempt"
        )
        self.connection.execute("INSERT INTO collector.files BY NAME SELECT * FROM reached")
        self.connection.unregister("reached")

    def _delete(self, names: list[str], tables: tuple[str, ...]) -> None:
        if not names:
            return
        self.connection.register("named", _text_table({"run_id": names}))
        for table in tables:
            self.connection.execute(
                f"DELETE FROM {table} WHERE run_id IN (SELECT run_id FROM named)"
            )
        self.connection.unregister("named")

    def _insert(self, table: str, rows: pa.Table) -> None:
        if not rows.num_rows:
            return
        self.connection.register("incoming", rows)
        self.connection.execute(f"INSERT INTO {table} BY NAME SELECT * FROM incoming")
        self.connection.unregister("incoming")

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


def _text_table(columns: dict[str, list[str]]) -> pa.Table:
    import pyarrow as pa

    return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
