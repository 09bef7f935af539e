"""``tracker_metrics.jsonl`` of levanter and marin.

Layout: ``levanter/tracker/wandb.py``, WandbTracker._write_replicate_file: one line
``{"config": .., "summary": ..}`` with the last value of each metric. Step s is logged after s + 1
updates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from scalelab.logs.files import read_lines, unreadable
from scalelab.logs.types import RawRun
from scalelab.logs.values import as_number, as_step, flatten, load_json


class Marin:
    """levanter and marin."""

    name = "marin"
    title = "marin and levanter (tracker_metrics.jsonl)"

    def sniff(self, path: Path, head: bytes) -> bool:
        """Return whether the file has marin's name, or its two objects in one line."""
        return path.name.startswith("tracker_metrics.jsonl") or (
            head.startswith(b'{"config": {') and b'"summary": {' in head and b"throughput/" in head
        )

    def read(self, path: Path) -> Iterator[RawRun]:
        """Yield a run for each line."""
        lines = [row for line in read_lines(path) if (row := load_json(line)) is not None]
        rows = [row for row in lines if isinstance(row, Mapping) and "summary" in row]
        if not rows:
            raise unreadable(path, 'no line has a "summary"')
        for i, row in enumerate(rows):
            name = path.parent.name if path.stem.startswith("tracker_metrics") else path.stem
            run = RawRun(
                reader=self.name, path=path, name=name if len(rows) == 1 else f"{name} {i + 1}",
                config=flatten(row.get("config")), is_step_from_zero=True,
            )  # fmt: skip
            for key, value in flatten(row["summary"]).items():
                if (number := as_number(value)) is not None:
                    run.summary[key] = number
            step = as_step(run.summary.get("global_step", run.summary.get("_step")))
            run.steps_done = None if step is None else step + 1
            yield run
