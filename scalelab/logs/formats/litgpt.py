"""``metrics.csv`` of Lightning's CSVLogger, as Lightning and litgpt write it.

Layout: ``lightning/fabric/loggers/csv_logs.py``: one row a call, empty cells for values that the
call did not log. In litgpt the column ``step`` is the micro-batch iteration minus 1; its settings
are ``hyperparameters.yaml`` and ``model_config.yaml`` in the output folder, three folders above.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from scalelab.errors import DataError
from scalelab.logs.files import HEAD_BYTES, read_head, read_lines, unreadable
from scalelab.logs.simple_yaml import parse_settings
from scalelab.logs.types import Derived, RawRun
from scalelab.logs.values import Scalar, as_number, as_step

_SETTINGS = ("hyperparameters.yaml", "model_config.yaml", "hparams.yaml", "config.yaml")
_PARAMETERS = re.compile(r"Total parameters: ([\d,]+)")
_LARGEST_TEXT = 1 << 20
_MOST_LOGS = 20


class LightningCsv:
    """Lightning and litgpt."""

    name = "lightning"
    title = "Lightning and litgpt (metrics.csv)"

    def sniff(self, path: Path, head: bytes) -> bool:
        """Return whether it is a ``metrics.csv`` with steps and losses."""
        header = head.partition(b"\n")[0].decode("utf-8", "replace").lower()
        cells = [cell.strip() for cell in header.split(",")]
        return path.name == "metrics.csv" and "step" in cells and "loss" in header

    def read(self, path: Path) -> Iterator[RawRun]:
        """Yield the run."""
        home = path.parent
        if re.fullmatch(r"version_\d+", home.name):
            parents = list(home.parents)
            home = parents[2] if len(parents) > 2 and parents[1].name == "logs" else home
        run = RawRun(reader=self.name, path=path, name=home.name or path.stem)
        try:
            self._read_rows(run, path)
        except (csv.Error, ValueError) as error:
            raise unreadable(path, str(error)) from None
        if not run.history.series:
            raise unreadable(path, "no row has a step")
        run.config = _settings(home, path.parent)
        run.n_params = _printed_params(home)
        planned = as_number(run.config.get("train/max_tokens"))
        run.planned_tokens = planned if planned and planned > 0 else None
        left = run.history.series.get("remaining_time")
        if left is not None and (end := left.last()) is not None and end[1] > 1.0:
            run.unfinished = f"litgpt expected {end[1]:,.1f} s more when the log ended"
        yield run

    def _read_rows(self, run: RawRun, path: Path) -> None:
        for row in csv.DictReader(read_lines(path)):
            step = as_step(row.get("step"))
            if step is None:
                continue
            row.pop(None, None)
            run.history.add_row(step, {k: v for k, v in row.items() if v}, skip=("step",))


def _settings(*folders: Path) -> dict[str, Scalar]:
    """Return the settings beside the log, or in the output folder."""
    found: dict[str, Scalar] = {}
    for folder in folders:
        for place in (folder, folder / "final"):
            for name in _SETTINGS:
                file = place / name
                if file.is_file() and file.stat().st_size <= _LARGEST_TEXT:
                    text = file.read_text(encoding="utf-8", errors="replace")
                    found |= {k: v for k, v in parse_settings(text).items() if k not in found}
    return found


def _printed_params(home: Path) -> Derived | None:
    """Return N from a log of litgpt's output in the output folder."""
    for file in sorted(home.glob("*.log"))[:_MOST_LOGS]:
        try:
            text = read_head(file) if file.stat().st_size <= HEAD_BYTES else b""
            text = (
                text
                or "\n".join(
                    line for _, line in zip(range(400), read_lines(file), strict=False)
                ).encode()
            )
        except (DataError, OSError):
            continue
        found = _PARAMETERS.search(text.decode("utf-8", "replace"))
        if found and (value := as_number(found[1])):
            return Derived(value=value, source=f"Total parameters, printed in {file.name}")
    return None
