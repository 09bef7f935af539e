"""What the files of some runs add to the tables: read and made into columns, without a database.

Everything costly about a collection happens here, as a function of the files and of how far their
curves were read, so that several processes can share it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from scalelab.errors import ScalelabError
from scalelab.store import scan
from scalelab.store.curves import CurveRows, Progress, read_new_rows
from scalelab.store.rows import Row, arrow_columns, as_arrow, attempt_rows, run_row
from scalelab.store.schema import ATTEMPT_METRICS, ATTEMPTS, RUNS

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_AS_OBJECTS = 20_000

Group = Sequence[tuple[str, Mapping[int, Progress]]]
"""Runs to read: name and how far the curve of each attempt was read before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Portion:
    """What the files of some runs add to the tables.

    Attributes
    ----------
    tables : Mapping[str, pyarrow.Table]
        Rows of ``runs``, ``attempts``, ``attempt_metrics`` and ``collector.files``.
    signatures : Mapping[str, str]
        By run that was read to its end, for `scalelab.store.scan.is_unchanged`.
    restarted : tuple of str
        Runs of whose curves nothing that was read before holds.
    refused, unread : Mapping[str, str]
        By run that does not hold together, or that the file system did not give: why.
    rest : tuple
        Runs that are not yet read to their end, as a `Group` to go on with.
    """

    tables: Mapping[str, pa.Table]
    signatures: Mapping[str, str]
    restarted: tuple[str, ...]
    refused: Mapping[str, str]
    unread: Mapping[str, str]
    rest: tuple[tuple[str, Mapping[int, Progress]], ...]


def read_portion(runs: str, group: Group, *, max_rows: int) -> Portion:
    """Return what these runs add, up to about ``max_rows`` rows of curves.

    Parameters
    ----------
    runs : str
        The folder with the run folders.
    group : Group
    max_rows : int
        After so many rows what remains is left for another call; a chunk of a file is always read
        whole (`scalelab.store.curves.CHUNK_BYTES`).
    """
    reading = _Reading(max_rows=max_rows)
    for index, (name, earlier) in enumerate(group):
        if reading.is_full():
            reading.rest += group[index:]
            break
        try:
            reading.take(scan.read_run(f"{runs}/{name}"), earlier)
        except ScalelabError as error:
            reading.refused[name] = str(error)
        except OSError as error:
            reading.unread[name] = str(error)
    return reading.portion()


@dataclass(slots=True)
class _Reading:
    """A portion while it grows."""

    max_rows: int
    run_rows: list[Row] = field(default_factory=list)
    attempt_rows: list[Row] = field(default_factory=list)
    curves: CurveRows = field(default_factory=CurveRows)
    curve_tables: list[pa.Table] = field(default_factory=list)
    progress: dict[tuple[str, int], Progress] = field(default_factory=dict)
    signatures: dict[str, str] = field(default_factory=dict)
    restarted: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)
    rest: list[tuple[str, Mapping[int, Progress]]] = field(default_factory=list)

    def is_full(self) -> bool:
        """Say whether enough rows of curves were read."""
        return len(self.curves) + sum(map(len, self.curve_tables)) >= self.max_rows

    def take(self, run: scan.RunFiles, earlier: Mapping[int, Progress]) -> None:
        """Add a run; where its curves are too long for this portion it goes to the rest."""
        found = {attempt.number: attempt for attempt in run.attempts}
        if any(
            number not in found
            or found[number].token != progress.token
            or found[number].metrics_bytes < progress.bytes_read
            for number, progress in earlier.items()
        ):
            # Another folder of the same name, or a curve cut short: nothing of before holds.
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
            # An unfinished last line is not read past: who was given up for dead may yet finish it.
            torn[number] = progress.torn + (is_over and progress.bytes_read < attempt.metrics_bytes)
        self.run_rows.append(run_row(run))
        self.attempt_rows += attempt_rows(run, torn)
        self.signatures[run.run_id] = run.signature

    def _add_curve(self, run_id: str, number: int, rows: list[Mapping[str, Any]]) -> None:
        self.curves.add(run_id, number, rows)
        if len(self.curves) >= ROWS_AS_OBJECTS:
            self._convert_curves()

    def _convert_curves(self) -> None:
        """Make columns of the rows so far, which take a tenth of their memory."""
        self.curve_tables.append(arrow_columns(ATTEMPT_METRICS, self.curves.columns()))
        self.curves = CurveRows()

    def portion(self) -> Portion:
        """Return what was read."""
        import pyarrow as pa

        self._convert_curves()
        values = list(self.progress.values())
        columns: dict[str, list[Any]] = {
            "run_id": [run_id for run_id, _ in self.progress],
            "attempt": [attempt for _, attempt in self.progress],
            **{f.name: [getattr(value, f.name) for value in values] for f in fields(Progress)},
        }
        types = {"run_id": pa.string(), "token": pa.string()}
        files = {name: pa.array(v, types.get(name, pa.int64())) for name, v in columns.items()}
        return Portion(
            tables={
                "runs": as_arrow(RUNS, self.run_rows),
                "attempts": as_arrow(ATTEMPTS, self.attempt_rows),
                "attempt_metrics": pa.concat_tables(self.curve_tables),
                "collector.files": pa.table(files),
            },
            signatures=self.signatures,
            restarted=tuple(self.restarted),
            refused=self.refused,
            unread=self.unread,
            rest=tuple(self.rest),
        )
