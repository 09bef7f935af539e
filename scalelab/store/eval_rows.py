"""Rows of the table ``evals``: evaluations of a run, and losses of an imported row."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic_core import from_json

from scalelab.corpus.eval_text import HELD_OUT
from scalelab.records.files import read_file
from scalelab.records.run_dir import EVALS_FILE
from scalelab.records.run_files import AttemptFiles, RunFiles
from scalelab.store.rows import Row

TEXT, TASK, REPORTED = "text", "task", "reported"
"""The kinds of rows."""
TRAINING, EVALUATE, PROGRAM, IMPORT = "training", "evaluate", "program", "import"
"""Where rows come from."""


def eval_rows(run: RunFiles) -> tuple[list[Row], dict[int, int]]:
    """Return the run's rows of ``evals``, and by attempt the lines that cannot be read.

    Only the attempts that form the run's curve count, and only with the steps with which they do.
    """
    rows: dict[tuple[str, str, int], Row] = {}
    torn: dict[int, int] = {}
    if any(run.spec.get(name) for name in ("eval_sets", "eval_every", "mixture")):
        by_number = {attempt.number: attempt for attempt in run.attempts}
        for number, (after, to) in sorted(run.curve_segments().items()):
            for line in _lines(by_number[number]):
                if line is None:
                    torn[number] = torn.get(number, 0) + 1
                elif after < line["step"] and (to is None or line["step"] <= to):
                    row = _training_row(run, line)
                    rows[row["set"], TEXT, row["step"]] = row
    for row in _final_rows(run):
        rows[row["set"], row["kind"], row["step"]] = row
    return list(rows.values()), torn


def _lines(attempt: AttemptFiles) -> Iterator[Mapping[str, Any] | None]:
    """Yield the complete lines of an attempt's evaluations; None for one that is no row."""
    content = read_file(f"{attempt.folder}/{EVALS_FILE}") or b""
    for line in content.split(b"\n")[:-1]:
        try:
            row = from_json(line)
        except ValueError:
            row = None
        is_row = (
            isinstance(row, dict)
            and type(row.get("step")) is int
            and row["step"] > 0
            and isinstance(row.get("set"), str)
            and type(row.get("loss_nats")) in (int, float)
        )
        yield row if is_row else None


def _training_row(run: RunFiles, line: Mapping[str, Any]) -> Row:
    record = None if run.accepted is None else run.accepted.record
    n_tokens, n_bytes = (_count(line.get(name)) for name in ("n_tokens", "n_bytes"))
    loss = line["loss_nats"]
    return {
        "run_id": run.run_id,
        "step": line["step"],
        "set": line["set"],
        "kind": TEXT,
        "loss_nats": loss,
        "bits_per_byte": loss * n_tokens / n_bytes / math.log(2) if n_tokens and n_bytes else None,
        "ema_loss_nats": line.get("ema_loss_nats"),
        "stderr": line.get("stderr_nats"),
        "n_tokens": n_tokens,
        "n_bytes": n_bytes,
        "is_final": record is not None
        and (record.status, record.n_steps) == ("done", line["step"]),
        "source": TRAINING,
    }


def _count(value: Any) -> int | None:
    return value if type(value) is int and value > 0 else None


def _final_rows(run: RunFiles) -> Iterator[Row]:
    """Yield what the record and the end of the accepted attempt say."""
    if run.accepted is None or (record := run.accepted.record) is None or record.status != "done":
        return
    n_tokens, loss, found = record.eval_tokens, record.loss_nats, record.bytes_per_token
    per_token = found if isinstance(found, int | float) and found > 0 else None
    source = PROGRAM if run.spec.get("program") else TRAINING
    common = {"run_id": run.run_id, "step": record.n_steps, "is_final": True, "source": source}
    yield {
        **common,
        "set": HELD_OUT,
        "kind": TEXT,
        "loss_nats": loss,
        "bits_per_byte": loss / math.log(2) / per_token if per_token and loss is not None else None,
        "ema_loss_nats": record.ema_loss_nats,
        "stderr": record.loss_se_nats,
        "n_tokens": n_tokens,
        "n_bytes": round(n_tokens * per_token) if per_token and n_tokens else None,
    }
    reported = run.accepted.end.get("evals")
    for name, value in reported.items() if isinstance(reported, dict) else ():
        if type(value) in (int, float):
            yield {**common, "set": name, "kind": REPORTED, "value": value}
