"""Histories exported from Weights & Biases: the CSV of a chart, or the rows of a run.

Layout: a chart's CSV has the axis (``Step``) and columns ``RUN - METRIC``, ``.. __MIN`` and
``.. __MAX`` for each run. ``run.history()`` and ``scan_history()`` give rows with ``_step``,
kept as CSV, JSON or JSON Lines; ``config.yaml`` and ``wandb-summary.json`` may lie beside them.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from scalelab.logs.files import read_document, read_lines, sibling_document, unreadable
from scalelab.logs.formats.wandb import AXES
from scalelab.logs.simple_yaml import parse_settings
from scalelab.logs.types import RawRun
from scalelab.logs.values import as_number, as_step, flatten, load_json

_BETWEEN = " - "
_LARGEST_TEXT = 1 << 20
_OF_TABLES = {"name", "state", "id", "run", "run_id", "run_name", "runid"}
"""Columns that a table of runs has, and the history of one run has not."""


class WandbExport:
    """Weights & Biases, exported."""

    name = "wandb-export"
    title = "W&B exported history (CSV, JSON)"

    def sniff(self, path: Path, head: bytes) -> bool:
        """Return whether it is a chart's CSV, or rows with ``_step``."""
        if path.name.lower().endswith((".csv", ".csv.gz")):
            return _is_history(head.decode("utf-8", "replace"))
        return (
            path.name.lower().endswith((".json", ".jsonl", ".ndjson"))
            and head.lstrip()[:1] in (b"[", b"{")
            and b'"_step"' in head
            and b'"_timestamp"' in head
            and b'"summary"' not in head
            and path.name != "wandb-summary.json"
        )

    def read(self, path: Path) -> Iterator[RawRun]:
        """Yield the runs."""
        if path.name.lower().endswith((".csv", ".csv.gz")):
            try:
                rows = csv.DictReader(read_lines(path))
                names = list(rows.fieldnames or ())
                if any("__MIN" in name for name in names):
                    yield from self._chart(path, rows, names)
                    return
                runs = [self._history(path, rows)]
            except (csv.Error, ValueError) as error:
                raise unreadable(path, str(error)) from None
            yield from runs
            return
        yield self._history(path, _json_rows(path))

    def _chart(
        self, path: Path, rows: Iterator[dict[str, Any]], names: list[str]
    ) -> Iterator[RawRun]:
        axis = names[0]
        runs: dict[str, RawRun] = {}
        columns = [n for n in names if _BETWEEN in n and not n.endswith(("__MIN", "__MAX"))]
        if not columns:
            raise unreadable(path, "no column is named RUN - METRIC")
        for row in rows:
            step = as_step(row.get(axis))
            for column in columns if step is not None else ():
                name, _, metric = column.rpartition(_BETWEEN)
                value = as_number(row.get(column) or None)
                if value is not None and step is not None:
                    run = runs.setdefault(name, RawRun(reader=self.name, path=path, name=name))
                    run.history.add(step, metric, value)
        for run in runs.values():
            run.key = run.name
            run.order = (path.name,)
            yield run

    def _history(self, path: Path, rows: Iterator[Any]) -> RawRun:
        run = RawRun(reader=self.name, path=path, name=path.stem)
        axis: str | None = None
        for row in rows:
            if not isinstance(row, Mapping):
                continue
            if axis is None:
                axis = next((name for name in AXES if as_step(row.get(name)) is not None), "_step")
            step = as_step(row.get(axis))
            if step is not None:
                kept = {
                    k: v for k, v in row.items() if k and not str(k).startswith("_") and v != ""
                }
                run.history.add_row(step, kept, skip=(axis,))
        if not run.history.series:
            raise unreadable(path, "no row has a step and a number")
        summary = flatten(sibling_document(path.parent / "wandb-summary.json"))
        for name, value in summary.items():
            number = as_number(value)
            if number is not None and not name.startswith("_"):
                run.summary[name] = number
        config = path.parent / "config.yaml"
        if config.is_file() and config.stat().st_size <= _LARGEST_TEXT:
            settings = parse_settings(config.read_text(encoding="utf-8", errors="replace"))
            run.config = {
                name.removesuffix("/value"): value
                for name, value in settings.items()
                if not name.endswith("/desc") and not name.startswith("_wandb")
            }
        return run


def _is_history(head: str) -> bool:
    """Return whether the beginning of a CSV file is a chart, or one run's rows in order of steps.

    A table of runs may have a column ``_step`` too: the last step of each run.
    """
    lines = head.splitlines()
    try:
        names, *rows = list(csv.reader(lines[:-1] if len(lines) > 2 else lines))
    except (csv.Error, ValueError):
        return False
    if names and names[0] in ("Step", "global_step", "_step") and any("__MIN" in n for n in names):
        return True
    if "_step" not in names or {name.lower() for name in names} & _OF_TABLES:
        return False
    at = names.index("_step")
    steps = [as_step(row[at]) for row in rows if len(row) > at]
    known = [step for step in steps if step is not None]
    return len(known) > 1 and known == sorted(set(known))


def _json_rows(path: Path) -> Iterator[Any]:
    first = next((line.lstrip()[:1] for line in read_lines(path) if line.strip()), "")
    if first == "[":
        found = read_document(path)
        yield from found if isinstance(found, list) else ()
        return
    for line in read_lines(path):
        yield load_json(line) if line.strip() else None
