"""``metrics.jsonl`` of facebookresearch/lingua.

Layout: ``lingua/metrics.py`` (MetricLogger) at commit 437d680, one flat object a line with
``global_step`` and ``optim/total_tokens``; ``config.yaml`` beside it. A restart appends.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path

from scalelab.logs.files import read_lines, unreadable
from scalelab.logs.simple_yaml import parse_settings
from scalelab.logs.types import RawRun
from scalelab.logs.values import as_number, as_step, load_json

_AXES = ("global_step", "acc_step", "created_at")
_CONFIG_BYTES = 1 << 20
_LINES_PARSED_TOGETHER = 500


class Lingua:
    """lingua."""

    name = "lingua"
    title = "lingua (metrics.jsonl)"

    def sniff(self, path: Path, head: bytes) -> bool:
        """Return whether the first line is one of lingua's logger."""
        first = head.partition(b"\n")[0]
        return first.startswith(b"{") and b'"global_step"' in first and b'"loss/out"' in head

    def read(self, path: Path) -> Iterator[RawRun]:
        """Yield the run."""
        name = path.parent.name if path.stem == "metrics" else path.stem
        run = RawRun(reader=self.name, path=path, name=name or path.stem)
        broken = 0
        for part in _parts(line for line in read_lines(path) if line):
            rows = load_json(f"[{','.join(part)}]")
            # A broken line breaks its part: its lines are then read one by one.
            rows = rows if isinstance(rows, list) else [load_json(line) for line in part]
            good = [
                (step, row)
                for row in rows
                if isinstance(row, Mapping)
                and (step := as_step(row.get("global_step"))) is not None
            ]
            broken += len(part) - len(good)
            run.history.add_rows([step for step, _ in good], [row for _, row in good], skip=_AXES)
        if not run.history.series:
            raise unreadable(path, "no line has a global_step")
        if broken:
            run.notes.append(f"lines that are not complete objects: {broken}")
        config = path.parent / "config.yaml"
        if config.is_file() and config.stat().st_size <= _CONFIG_BYTES:
            run.config = parse_settings(config.read_text(encoding="utf-8", errors="replace"))
            # lingua's own name of the planned steps is too short to be looked up in other configs.
            run.planned_steps = as_number(run.config.get("steps"))
        yield run


def _parts(lines: Iterable[str]) -> Iterator[list[str]]:
    """Yield the lines in parts, which are parsed faster than single lines."""
    left = iter(lines)
    while part := list(islice(left, _LINES_PARSED_TOGETHER)):
        yield part
