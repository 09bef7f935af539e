"""Reading runs of other tools from a table: finds the columns of learning rate and batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.errors import DataError, UsageError
from scalelab.fit.outcome import FitWarning
from scalelab.store.read_options import ReadOptions
from scalelab.store.reading import Reading
from scalelab.store.table_files import open_file
from scalelab.store.table_read import TableRead
from scalelab.store.table_source import TableSource
from scalelab.store.tables import read_source
from scalelab.tune.runs_table import TunedRuns
from scalelab.units import plural

SIZE_NAMES = ("params", "num_params")
LR_NAMES = ("lr", "learning_rate", "peak_lr", "max_lr")
TOKEN_NAMES = ("batch_tokens", "batch_size_tokens", "tokens_per_step")
SEQUENCE_NAMES = ("batch_seqs", "batch_sequences")
EITHER_NAMES = ("batch", "batch_size", "global_batch_size")
"""Counted in sequences if their length is given, else in tokens."""

OF_A_LAW = ("derived_flops", "swept_settings", "seed_replicates", "checkpoints")
"""Notes of a table that concern laws of N and D only: here the settings are what is fitted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TunedTable:
    """The runs of a file, and warnings about assumptions made while reading it."""

    runs: TunedRuns
    warnings: tuple[FitWarning, ...]


def read_tuned_runs(
    path: str | Path,
    *,
    mapping: Mapping[str, str] | None = None,
    where: str | None = None,
    seq_len: int | None = None,
    metric: str | None = None,
) -> TunedTable:
    """Return the runs of a CSV or Parquet file.

    Parameters
    ----------
    path : str or Path
    mapping : Mapping[str, str], optional
        Maps ``n_params``, ``n_tokens``, ``loss_nats``, ``lr``, ``batch_tokens`` or ``batch_seqs``,
        and ``cluster`` (a label that separates cells of the same N and D) to a column of the file
        or a DuckDB expression. Columns with these names need no mapping.
    where : str, optional
        DuckDB condition on the file's columns.
    seq_len : int, optional
        Sequence length, tokens; the batch is then counted in sequences.
    metric : str, optional
        Which loss, as after ``--metric``; default: the held-out loss.

    Raises
    ------
    DataError
        If the file cannot be read, or a column is missing.
    UsageError
        If a condition is not valid SQL, or a batch in sequences has no sequence length.
    """
    reading = Reading(metric=metric)
    with open_file(Path(path), reading) as source:
        wanted = {name: theirs for name, theirs in (mapping or {}).items() if name != "loss"}
        if "loss" in (mapping or {}):
            wanted.setdefault("loss_nats", (mapping or {})["loss"])
        wanted = _with_found_columns(source, wanted, has_length=seq_len is not None)
        table = read_source(source, ReadOptions(mapping=wanted, where=where, reading=reading))
    return _as_runs(table, seq_len, is_labelled="cluster" in wanted)


def _with_found_columns(
    source: TableSource, mapping: Mapping[str, str], *, has_length: bool
) -> dict[str, str]:
    """Return the mapping, with lr, batch and N found by common column names if not mapped."""
    found = dict(mapping)
    lower = {name.lower(): name for name in source.types}

    def first(names: tuple[str, ...]) -> str | None:
        return next((lower[name] for name in names if name in lower), None)

    for ours, names in (("lr", LR_NAMES), ("n_params", ("n_params", *SIZE_NAMES))):
        given = next((found.pop(name) for name in names if name in found), None) or first(names)
        if given is not None:
            found[ours] = given
    sizes = [name for name in source.types if name.lower().startswith("n_params")]
    if "n_params" not in found and len(sizes) == 1:
        found["n_params"] = sizes[0]
    batch = _batch_column(found, first, has_length=has_length)
    missing = [name for name, ok in (("lr", "lr" in found), ("batch_tokens", batch)) if not ok]
    if missing:
        raise DataError(
            f"{source.name} without a column for {' and '.join(missing)}; its columns are "
            f"{', '.join(source.types)}",
            "a table with learning rate and batch",
            "Name the columns: --map lr=COLUMN,batch_tokens=COLUMN, or with --seq-len 2048: "
            "--map lr=COLUMN,batch_seqs=COLUMN",
        )
    return found


def _batch_column(
    found: dict[str, str], first: Callable[[tuple[str, ...]], str | None], *, has_length: bool
) -> bool:
    """Put ``batch_tokens`` or ``batch_seqs`` into the mapping; return whether one was found."""
    either = "batch_seqs" if has_length else "batch_tokens"
    kinds = (("batch_tokens", TOKEN_NAMES), ("batch_seqs", SEQUENCE_NAMES), (either, EITHER_NAMES))

    def mapped(names: tuple[str, ...]) -> str | None:
        return next((found.pop(name) for name in names if name in found), None)

    for find in (mapped, first):
        for ours, names in kinds:
            if (theirs := find(names)) is not None:
                found[ours] = theirs
                return True
    return False


def _as_runs(table: TableRead, seq_len: int | None, *, is_labelled: bool) -> TunedTable:
    rows, extra = table.observations, table.observations.extra
    warnings = [FitWarning(code=code, message=text) for code, text in table.notes.items()]
    batch, note = _batch_in_tokens(extra, seq_len)
    if note:
        warnings.append(FitWarning(code="batch_in_sequences", message=note))
    keep = np.isfinite(extra["lr"]) & (extra["lr"] > 0) & np.isfinite(batch) & (batch > 0)
    n_diverged = sum(reject.column == "loss_nats" for reject in table.rejects)
    n_other = len(table.rejects) - n_diverged + int(np.sum(~keep))
    if n_other:
        warnings.append(
            FitWarning(
                code="rejected_rows",
                message=f"Left out {plural(n_other, 'row')} without a usable N, D, learning rate "
                "or batch.",
            )
        )
    if not keep.any():
        raise DataError(
            f"{rows.source} without a row that has both a learning rate and a batch",
            "finite learning rates and batches above zero",
            "Name other columns: --map lr=COLUMN,batch_tokens=COLUMN",
        )
    runs = TunedRuns(
        n_params=rows.n_params[keep],
        n_tokens=rows.n_tokens[keep],
        lr=extra["lr"][keep],
        batch_tokens=batch[keep],
        loss=rows.loss_nats[keep],
        label=rows.cluster[keep] if is_labelled and rows.cluster is not None else None,
        param_convention=rows.param_convention,
        n_diverged=n_diverged,
    )
    return TunedTable(runs=runs, warnings=tuple(w for w in warnings if w.code not in OF_A_LAW))


def _batch_in_tokens(
    extra: Mapping[str, FloatArray], seq_len: int | None
) -> tuple[FloatArray, str]:
    """Return the batch in tokens, and a note about its unit if that was assumed."""
    length: FloatArray | float | None = seq_len
    if length is None and "seq_len" in extra:
        length = extra["seq_len"]
    if "batch_tokens" in extra:
        tokens = extra["batch_tokens"]
        # A step holds at least one sequence, so smaller numbers cannot be tokens.
        if seq_len is None or not np.any(tokens < seq_len):
            return tokens, ""
        return tokens * seq_len, (
            f"batch_tokens has values below the sequence length of {seq_len} tokens: they were "
            "read as sequences. If they are tokens, correct --seq-len."
        )
    if length is None:
        raise UsageError(
            "a batch in sequences without a sequence length",
            "the sequence length in tokens",
            "Add --seq-len 2048, or give tokens: --map batch_tokens='COLUMN * 2048'",
        )
    return np.asarray(extra["batch_seqs"] * length), ""
