"""Logged runs of other trainers as one table: a row a run, with the curves beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.errors import DataError
from scalelab.logs.losses import NATS
from scalelab.logs.registry import LogsRead, read_logs
from scalelab.logs.types import UNFINISHED, LoggedRun
from scalelab.logs.values import as_number
from scalelab.records.types import Curves
from scalelab.store.columns import ALIASES
from scalelab.units import plural

if TYPE_CHECKING:
    import pyarrow as pa

FIRST = ("n_params", "n_tokens", "loss_nats", "n_params_chinchilla", "n_params_kaplan",
         "n_params_active", "lr", "batch_tokens", "seq_len", "seed")  # fmt: skip
"""Derived columns, in the order of the table."""
MOST_COLUMNS = 400
MOST_NAMED = 5
WARMUP_SHARE = 0.05
"""Share of a run at its start that curves leave out."""
POINTS_PER_E_FOLD = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class LogTable:
    """The runs of some logs.

    Attributes
    ----------
    rows : pyarrow.Table
        One row a run: name, status, derived columns, settings and last logged values.
    notes : Mapping[str, str]
        Notes for the user by code.
    curves : Curves or None
        Smoothed training curves, in the unit of the losses.
    param_convention : str
        How N is counted; ``unstated`` where a log states a number without saying how.
    """

    rows: pa.Table
    notes: Mapping[str, str]
    curves: Curves | None
    param_convention: str = "unstated"


def read_log_table(
    path: Path,
    *,
    format: str | None = None,
    loss_unit: str | None = None,
    includes_unfinished: bool = False,
) -> LogTable:
    """Return the runs of a log, or of all logs below a folder, as a table.

    Raises
    ------
    UsageError
        If the format or the unit is not known.
    DataError
        If no log can be read, or every run is unfinished.
    """
    read = read_logs(path, format=format, loss_unit=loss_unit)
    unfinished = [run for run in read.runs if run.status == UNFINISHED]
    runs = [run for run in read.runs if includes_unfinished or run.status != UNFINISHED]
    if not runs:
        raise DataError(
            f"{path}, whose {plural(len(unfinished), 'run')} did not end as planned "
            f"({_listed(unfinished)})",
            "at least one finished run",
            "Include them with --include-unfinished.",
        )
    notes = _notes(path, read, runs, [] if includes_unfinished else unfinished)
    is_counted = all(
        run.derived["n_params"].is_counted for run in runs if "n_params" in run.derived
    )
    return LogTable(
        rows=_as_arrow(runs),
        notes=notes,
        curves=_curves(runs),
        param_convention="chinchilla" if is_counted else "unstated",
    )


def _listed(runs: Sequence[LoggedRun]) -> str:
    words = [f"{run.name}: {run.incomplete}" for run in runs[:MOST_NAMED]]
    more = f"; and {len(runs) - MOST_NAMED} more" if len(runs) > MOST_NAMED else ""
    return "; ".join(words) + more


def _notes(
    path: Path, read: LogsRead, runs: Sequence[LoggedRun], unfinished: Sequence[LoggedRun]
) -> dict[str, str]:
    columns = [
        f"{name} = {source}" for name in FIRST[:3] if (source := _sources(runs, name)) is not None
    ]
    notes: dict[str, str] = {}
    notes["run_logs"] = (
        f"Read {plural(len(runs), 'run')} of {' and '.join(read.readers)} in {path}: "
        f"{'; '.join(columns)}."
    )
    if unfinished:
        verb = "is" if len(unfinished) == 1 else "are"
        notes["unfinished_logs"] = (
            f"{len(unfinished)} of {plural(len(read.runs), 'run')} {verb} unfinished and left out "
            f"({_listed(unfinished)}). Include with --include-unfinished."
        )
    no_size = [run.name for run in runs if "n_params" not in run.derived]
    if no_size and len(no_size) < len(runs):
        notes["unknown_size"] = (
            f"{plural(len(no_size), 'run')} without a model size: "
            f"{', '.join(no_size[:MOST_NAMED])}. Their logs hold neither a parameter count nor "
            "the shape of the model."
        )
    units = Counter(run.loss_unit for run in runs if "loss_nats" in run.derived)
    if len(units) > 1:
        listed = " and ".join(f"{unit} ({plural(n, 'run')})" for unit, n in units.items())
        notes["mixed_units"] = (
            f"The losses are in {listed}, which do not compare. Select one, for example with "
            f"--where \"loss_unit = '{next(iter(units))}'\"."
        )
    elif units and NATS not in units:
        unit = next(iter(units))
        notes["loss_unit"] = f"The losses are in {unit}; every loss of this fit is in that unit."
    trained = sum(not run.is_validation for run in runs if "loss_nats" in run.derived)
    if trained:
        notes["training_losses"] = (
            f"{plural(trained, 'run')} logged no held-out loss; their last training loss is used, "
            "which is noisier and too low where data repeats."
        )
    details = [f"{run.name}: {note}" for run in runs for note in run.notes]
    if details:
        more = f"; and {len(details) - MOST_NAMED} more" if len(details) > MOST_NAMED else ""
        notes["log_details"] = "; ".join(details[:MOST_NAMED]) + more + "."
    if read.problems:
        notes["unreadable_logs"] = "; ".join(read.problems[:MOST_NAMED]) + "."
    return notes


def _sources(runs: Iterable[LoggedRun], name: str) -> str | None:
    """Return where a derived column comes from, the most frequent source first."""
    counted = Counter(run.derived[name].source for run in runs if name in run.derived)
    if not counted:
        return None
    first = counted.most_common(1)[0][0]
    others = len(counted) - 1
    return first + (f" (and {plural(others, 'other source')})" if others else "")


def _as_arrow(runs: Sequence[LoggedRun]) -> pa.Table:
    import pyarrow as pa

    columns: dict[str, list[Any]] = {
        "run": [run.name for run in runs],
        "status": [run.status for run in runs],
        "format": [run.reader for run in runs],
        "loss_unit": [run.loss_unit for run in runs],
        "last_step": [run.last_step for run in runs],
    }
    for name in FIRST:
        if any(name in run.derived for run in runs):
            columns[name] = [
                run.derived[name].value if name in run.derived else None for run in runs
            ]
    reserved = {*ALIASES, *sum(ALIASES.values(), ())}
    taken = {name.lower() for name in columns}
    for part in ("config", "final"):
        for name in dict.fromkeys(name for run in runs for name in getattr(run, part)):
            own = f"logged_{name}" if name.lower() in reserved else name
            if own.lower() in taken or len(columns) >= MOST_COLUMNS:
                continue
            taken.add(own.lower())
            columns[own] = _cells([getattr(run, part).get(name) for run in runs])
    return pa.table({name: pa.array(cells) for name, cells in columns.items()})


def _cells(values: list[Any]) -> list[Any]:
    """Return the cells as numbers if all of them are, else as text."""
    numbers = [None if value is None else as_number(value) for value in values]
    if all(n is not None for n, value in zip(numbers, values, strict=True) if value is not None):
        return numbers
    return [None if value is None else str(value) for value in values]


def _curves(runs: Sequence[LoggedRun]) -> Curves | None:
    """Return the training curves of runs whose losses are in nats."""
    parts = [
        (run.name, *smoothed(run.curve["tokens"], run.curve["loss_nats"]))
        for run in runs
        if run.loss_unit == NATS and len(run.curve["step"])
    ]
    if not any(len(tokens) for _, tokens, _ in parts):
        return None
    return Curves(
        run_id=np.concatenate([np.full(len(tokens), name) for name, tokens, _ in parts]),
        n_tokens=np.concatenate([tokens for _, tokens, _ in parts]),
        loss_nats=np.concatenate([losses for *_, losses in parts]),
    )


def smoothed(tokens: FloatArray, losses: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return a curve averaged over quarters of an e-fold of tokens, without its warmup.

    The same bins as `scalelab.store.results` uses for our own runs.
    """
    known = np.isfinite(tokens) & np.isfinite(losses) & (tokens > 0) & (losses > 0)
    if known.any():
        known &= tokens > WARMUP_SHARE * tokens[known].max()
    x, y = np.log(tokens[known]), losses[known]
    if not len(x):
        return x, y
    _, group = np.unique(np.floor(POINTS_PER_E_FOLD * x), return_inverse=True)
    count = np.bincount(group)
    return np.exp(np.bincount(group, x) / count), np.bincount(group, y) / count
