"""SQLite files of trackio, one for each project.

Layout: ``trackio/sqlite_storage.py``: tables ``configs`` (run_id, run_name, config as JSON) and
``metrics`` (run_id, run_name, step, metrics as JSON, where NaN is the text ``"NaN"``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from scalelab.logs.databases import MAGIC, open_database, tables_of
from scalelab.logs.formats.wandb import AXES
from scalelab.logs.types import RawRun
from scalelab.logs.values import as_step, flatten, load_json


class Trackio:
    """trackio."""

    name = "trackio"
    title = "trackio (SQLite)"

    def sniff(self, path: Path, head: bytes) -> bool:
        """Return whether it is an SQLite file with trackio's tables."""
        return head.startswith(MAGIC) and {"configs", "metrics"} <= tables_of(path)

    def read(self, path: Path) -> Iterator[RawRun]:
        """Yield the runs."""
        runs: dict[str, RawRun] = {}
        with open_database(path) as database:
            columns = {str(row[1]) for row in database.execute("PRAGMA table_info(metrics)")}
            key = "run_id" if "run_id" in columns else "run_name"
            for run_id, name, config in database.execute(
                f"SELECT {key}, run_name, config FROM configs ORDER BY rowid"
            ):
                run = _run_of(runs, self.name, path, run_id, name)
                settings = flatten(_object(config))
                run.config |= {k: v for k, v in settings.items() if not k.startswith("_")}
            for run_id, name, step, text in database.execute(
                f"SELECT {key}, run_name, step, metrics FROM metrics ORDER BY rowid"
            ):
                run = _run_of(runs, self.name, path, run_id, name)
                row = _object(text)
                if not isinstance(row, Mapping):
                    continue
                axis = next((column for column in AXES if as_step(row.get(column)) is not None), "")
                at = as_step(row[axis] if axis else step)
                if at is not None:
                    run.history.add_row(at, row, skip=(axis,))
        yield from runs.values()


def _object(cell: object) -> object:
    return load_json(cell) if isinstance(cell, (str, bytes)) else None


def _run_of(
    runs: dict[str, RawRun], reader: str, path: Path, run_id: object, name: object
) -> RawRun:
    return runs.setdefault(str(run_id), RawRun(reader=reader, path=path, name=str(name or run_id)))
