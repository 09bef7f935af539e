"""Evaluations of a run's kept weights: the file ``evaluations.jsonl`` in the run folder.

One JSON object a line, one line for each evaluation. The file is replaced by rename, so readers see
whole files and the run folder's time of change moves.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from scalelab.records.files import read_file, write_atomically

EVALUATIONS_FILE = "evaluations.jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """One evaluation of a run's weights; the columns of the table ``evals`` describe the numbers.

    Attributes
    ----------
    step : int
        Steps that the run had taken.
    set : str
        Name of the task or text.
    kind : str
        ``task`` (items with choices) or ``text``.
    fingerprint : str
        Hash of the items or tokens, and of the way in which they are scored.
    loss_nats, bits_per_byte, accuracy, stderr : float or None
    n_tokens, n_bytes, n_items : int or None
    """

    step: int
    set: str
    kind: str
    fingerprint: str
    loss_nats: float | None = None
    bits_per_byte: float | None = None
    accuracy: float | None = None
    stderr: float | None = None
    n_tokens: int | None = None
    n_bytes: int | None = None
    n_items: int | None = None

    @property
    def key(self) -> tuple[int, str, str]:
        """What it is an evaluation of; a later one replaces it."""
        return self.step, self.set, self.kind


_FIELDS = {item.name for item in fields(Evaluation)}
_REQUIRED = {item.name for item in fields(Evaluation) if item.default is MISSING}


def read_evaluations(run: str | Path) -> tuple[Evaluation, ...]:
    """Return the evaluations in a run folder; lines that are none are left out."""
    content = read_file(f"{run}/{EVALUATIONS_FILE}")
    if content is None:
        return ()
    found = []
    for line in content.splitlines():
        with contextlib.suppress(ValueError, TypeError):
            if (evaluation := _parse(json.loads(line))) is not None:
                found.append(evaluation)
    return tuple(found)


def save_evaluations(run: Path, new: Sequence[Evaluation]) -> None:
    """Add evaluations to a run folder, in place of earlier ones of the same step, set and kind."""
    with _only_writer(run):
        known = {found.key: found for found in read_evaluations(run)}
        write_evaluations(run, [*(known | {found.key: found for found in new}).values()])


def write_evaluations(run: Path, evaluations: Sequence[Evaluation]) -> None:
    """Replace the evaluations in a run folder."""
    write_atomically(run / EVALUATIONS_FILE, evaluations_text(evaluations), durable=True)


def evaluations_text(evaluations: Sequence[Evaluation]) -> str:
    """Return the content of the file."""
    return "".join(json.dumps(asdict(found)) + "\n" for found in evaluations)


def _parse(content: Any) -> Evaluation | None:
    if not isinstance(content, Mapping) or not content.keys() >= _REQUIRED:
        return None
    values = {name: value for name, value in content.items() if name in _FIELDS}
    texts = (values["set"], values["kind"], values["fingerprint"])
    is_valid = all(isinstance(text, str) for text in texts) and type(values["step"]) is int
    numbers = [value for name, value in values.items() if name not in _REQUIRED]
    is_valid &= all(value is None or type(value) in (int, float) for value in numbers)
    return Evaluation(**values) if is_valid else None


@contextlib.contextmanager
def _only_writer(run: Path) -> Iterator[None]:
    """Wait until no other process adds evaluations to this run."""
    descriptor = os.open(run, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
