"""Read run folders into Arrow columns, without a database.

This is the slow part of a collection. It depends only on the files and on how much of their curves
was read before, so several processes can share it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from scalelab.errors import ScalelabError
from scalelab.records import run_files
from scalelab.records.overlapped import overlapped
from scalelab.store.arrow_columns import arrow_array, arrow_columns
from scalelab.store.curves import CurveRows, Progress, read_new_rows
from scalelab.store.eval_rows import eval_rows
from scalelab.store.evaluation_rows import evaluation_rows
from scalelab.store.mixture_rows import mixture_rows
from scalelab.store.rows import Row, as_arrow, attempt_rows, run_row
from scalelab.store.schema import ATTEMPT_METRICS, ATTEMPTS, EVALS, MIXTURES, RUNS
from scalelab.store.table_types import INT, TEXT

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_AS_OBJECTS = 20_000

Group = Sequence[tuple[str, Mapping[int, Progress]]]
"""Runs to read: name, and how much of each attempt's curve was read before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Portion:
    """New rows of the tables from some runs.

    Attributes
    ----------
    tables : Mapping[str, pyarrow.Table]
        Rows of ``runs``, ``attempts``, ``evals``, ``mixtures``, ``attempt_metrics`` and
        ``collector.files``.
    signatures : Mapping[str, str]
        By completely read run, for `scalelab.records.run_files.is_unchanged`.
    restarted : tuple of str
        Runs whose earlier curve rows are invalid and must be deleted.
    refused, unread : Mapping[str, str]
        Reason by run: its files are inconsistent, or could not be read.
    rest : tuple
        Runs not yet read completely, as the next `Group`.
    """

    tables: Mapping[str, pa.Table]
    signatures: Mapping[str, str]
    restarted: tuple[str, ...]
    refused: Mapping[str, str]
    unread: Mapping[str, str]
    rest: tuple[tuple[str, Mapping[int, Progress]], ...]


def read_portion(runs: str, group: Group, *, max_rows: int) -> Portion:
    """Return the new rows of these runs, up to about ``max_rows`` rows of curves.

    Parameters
    ----------
    runs : str
        The folder with the run folders.
    group : Group
    max_rows : int
        Rows of curves after which the remaining runs go to `Portion.rest`. Files are read in chunks
        of `scalelab.store.curves.CHUNK_BYTES`, so the portion may have more rows.
    """
    reading = _Reading(max_rows=max_rows)
    found = overlapped(run_files.read_run, [f"{runs}/{name}" for name, _ in group])
    for index, (name, earlier) in enumerate(group):
        if reading.is_full():
            reading.rest += group[index:]
            break
        run = next(found)
        try:
            if isinstance(run, Exception):
                raise run
            reading.take(run, earlier)
        except ScalelabError as error:
            reading.refused[name] = str(error)
        except OSError as error:
            reading.unread[name] = str(error)
    return reading.portion()


@dataclass(slots=True)
class _Reading:
    """A portion while it is read."""

    max_rows: int
    run_rows: list[Row] = field(default_factory=list)
    attempt_rows: list[Row] = field(default_factory=list)
    eval_rows: list[Row] = field(default_factory=list)
    mixture_rows: list[Row] = field(default_factory=list)
    curves: CurveRows = field(default_factory=CurveRows)
    curve_tables: list[pa.Table] = field(default_factory=list)
    progress: dict[tuple[str, int], Progress] = field(default_factory=dict)
    signatures: dict[str, str] = field(default_factory=dict)
    restarted: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)
    rest: list[tuple[str, Mapping[int, Progress]]] = field(default_factory=list)

    def is_full(self) -> bool:
        return len(self.curves) + sum(map(len, self.curve_tables)) >= self.max_rows

    def take(self, run: run_files.RunFiles, earlier: Mapping[int, Progress]) -> None:
        """Add a run; if its curves are too long for this portion, the run goes to the rest."""
        found = {attempt.number: attempt for attempt in run.attempts}
        if any(
            number not in found
            or found[number].token != progress.token
            or found[number].metrics_bytes < progress.bytes_read
            for number, progress in earlier.items()
        ):
            # The folder was replaced or a curve was truncated: read all curves again.
            self.restarted.append(run.run_id)
            earlier = {}
        reached = dict(earlier)
        torn = {}
        for number, attempt in found.items():
            progress = reached.get(number) or Progress(token=attempt.token)
            is_over = (
                run.accepted is not None or attempt is not run.attempts[-1] or bool(attempt.end)
            )
            while progress.bytes_read < attempt.metrics_bytes:
                if self.is_full():
                    self.rest.append((run.run_id, reached))
                    return
                rows, further = read_new_rows(f"{attempt.folder}/metrics.jsonl", progress)
                if further == progress:
                    break
                reached[number] = self.progress[run.run_id, number] = progress = further
                self._add_curve(run.run_id, number, rows)
            # Stop before an unfinished last line: a worker that was taken for dead may finish it.
            torn[number] = progress.torn + (is_over and progress.bytes_read < attempt.metrics_bytes)
        evaluations, torn_evaluations = eval_rows(run)
        torn |= {number: torn[number] + n for number, n in torn_evaluations.items()}
        self.run_rows.append(run_row(run))
        self.attempt_rows += attempt_rows(run, torn)
        self.eval_rows += evaluations + evaluation_rows(run, evaluations)
        self.mixture_rows += mixture_rows(run)
        self.signatures[run.run_id] = run.signature

    def _add_curve(self, run_id: str, number: int, rows: list[Mapping[str, Any]]) -> None:
        self.curves.add(run_id, number, rows)
        if len(self.curves) >= ROWS_AS_OBJECTS:
            self._convert_curves()

    def _convert_curves(self) -> None:
        """Convert the rows to columns, which take a tenth of the memory."""
        self.curve_tables.append(arrow_columns(ATTEMPT_METRICS, self.curves.columns()))
        self.curves = CurveRows()

    def portion(self) -> Portion:
        import pyarrow as pa

        self._convert_curves()
        values = list(self.progress.values())
        columns: dict[str, list[Any]] = {
            "run_id": [run_id for run_id, _ in self.progress],
            "attempt": [attempt for _, attempt in self.progress],
            **{f.name: [getattr(value, f.name) for value in values] for f in fields(Progress)},
        }
        types = {"run_id": TEXT, "token": TEXT}
        files = {name: arrow_array(v, types.get(name, INT)) for name, v in columns.items()}
        return Portion(
            tables={
                "runs": as_arrow(RUNS, self.run_rows),
                "attempts": as_arrow(ATTEMPTS, self.attempt_rows),
                "evals": as_arrow(EVALS, self.eval_rows),
                "mixtures": as_arrow(MIXTURES, self.mixture_rows),
                "attempt_metrics": pa.concat_tables(self.curve_tables),
                "collector.files": pa.table(files),
            },
            signatures=self.signatures,
            restarted=tuple(self.restarted),
            refused=self.refused,
            unread=self.unread,
            rest=tuple(self.rest),
        )
