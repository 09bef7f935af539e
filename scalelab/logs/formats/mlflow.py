"""Runs of MLflow: its SQLite database, and its folders of files.

Layout: the tables ``runs``, ``params``, ``metrics`` of ``mlflow/store/tracking/dbmodels/models.py``
(a NaN is 0.0 with ``is_nan``, infinity the largest double); in files, a folder of a run in
``mlruns/<experiment>/`` with ``meta.yaml``, ``params/<name>`` and ``metrics/<name>``, lines of
``timestamp value step`` (``mlflow/store/tracking/file_store.py``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from scalelab.logs.databases import MAGIC, open_database, tables_of
from scalelab.logs.files import read_lines, unreadable, walk
from scalelab.logs.simple_yaml import parse_scalar, parse_settings
from scalelab.logs.types import RawRun
from scalelab.logs.values import as_number, as_step

_LARGEST = 1.79e308
_STATUS = {"1": "running", "2": "scheduled", "3": "finished", "4": "failed", "5": "killed"}
_LONGEST_PARAM = 8_000


class MlflowSql:
    """MLflow's database."""

    name = "mlflow"
    title = "MLflow (SQLite)"

    def sniff(self, path: Path, head: bytes) -> bool:
        """Return whether it is an SQLite file with MLflow's tables."""
        return head.startswith(MAGIC) and {"runs", "metrics", "params"} <= tables_of(path)

    def read(self, path: Path) -> Iterator[RawRun]:
        """Yield the runs that were not deleted."""
        runs: dict[str, RawRun] = {}
        with open_database(path) as database:
            for row in database.execute("SELECT run_uuid, name, status, lifecycle_stage FROM runs"):
                run_id, name, status, stage = (str(cell or "") for cell in row)
                if stage != "deleted":
                    runs[run_id] = RawRun(
                        reader=self.name, path=path, name=name or run_id, status=status.lower()
                    )
            for run_id, key, value in database.execute("SELECT run_uuid, key, value FROM params"):
                if (run := runs.get(str(run_id))) is not None:
                    run.config[str(key)] = parse_scalar(str(value)[:_LONGEST_PARAM])
            # In the order of writing: the value written last for a step counts.
            metrics = "SELECT run_uuid, key, value, step, is_nan FROM metrics ORDER BY rowid"
            for run_id, key, value, step, is_nan in database.execute(metrics):
                run, at, number = runs.get(str(run_id)), as_step(step), as_number(value)
                if run is not None and at is not None and number is not None:
                    run.history.add(at, str(key), math.nan if is_nan else _unlimited(number))
        yield from runs.values()


class MlflowFiles:
    """MLflow's folders."""

    name = "mlflow"
    title = "MLflow (mlruns folder)"

    def sniff(self, path: Path, head: bytes) -> bool:
        """Return whether it is the ``meta.yaml`` of a run."""
        return path.name == "meta.yaml" and (path.parent / "metrics").is_dir() and b"run_" in head

    def read(self, path: Path) -> Iterator[RawRun]:
        """Yield the run."""
        home = path.parent
        about = parse_settings("\n".join(read_lines(path)))
        if about.get("lifecycle_stage") == "deleted":
            return
        status = str(about.get("status") or "")
        run = RawRun(
            reader=self.name, path=home, name=str(about.get("run_name") or home.name),
            status=_STATUS.get(status, status.lower()),
        )  # fmt: skip
        for folder in ("params", "metrics"):
            base = home / folder
            for file in walk(base) if base.is_dir() else ():
                name = file.relative_to(base).as_posix()
                if folder == "params":
                    text = next(iter(read_lines(file)), "")
                    run.config[name] = parse_scalar(text[:_LONGEST_PARAM])
                    continue
                for line in read_lines(file):
                    parts = line.split()
                    at = as_step(parts[2]) if len(parts) > 2 else None
                    number = as_number(parts[1]) if at is not None else None
                    if at is not None and number is not None:
                        run.history.add(at, name, _unlimited(number))
        if not run.history.series and not run.config:
            raise unreadable(path, "the run has no metrics")
        yield run


def _unlimited(value: float) -> float:
    return math.copysign(math.inf, value) if abs(value) >= _LARGEST else value
