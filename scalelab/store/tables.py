"""A table made elsewhere becomes `Observations`: columns mapped, rows filtered, bad rows set aside.

DuckDB reads the file (CSV, TSV or Parquet), evaluates the user's SQL conditions on its rows, and
hands over NumPy columns. Rows that cannot be used come back as `Reject`s with the line of the file
and the reason; nothing is guessed and nothing is dropped in silence.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scalelab.errors import DataError, UsageError
from scalelab.records.types import Curves, Observations
from scalelab.store.table_source import TableSource, is_numeric, open_file, open_frame, quote
from scalelab.theory.accounting import FLOP_CONVENTIONS, PARAM_CONVENTIONS, train_flops_6nd
from scalelab.theory.laws import LAWS

if TYPE_CHECKING:
    import pandas as pd

FloatArray = NDArray[np.float64]

ALIASES: Mapping[str, tuple[str, ...]] = {
    "n_params": (),
    "n_tokens": (),
    "loss_nats": ("loss",),
    "flops": (),
    "budget": ("isoflop_budget", "flops_budget"),
    "cluster": ("run_id", "run"),
}
"""Our columns, and the names that are taken for them when nothing is mapped."""

CORE = ("n_params", "n_tokens", "loss_nats", "flops")
"""The columns without which a row is not an observation (one of N, D, C may be derived)."""

MAPPED = tuple(
    dict.fromkeys(
        (
            *ALIASES,
            *(column for law in LAWS for column in (law.target, *law.columns)),
            *("fraction_elapsed", "weight", "lr", "batch_tokens", "batch_seqs", "seq_len"),
        )
    )
)
"""Every name of ours that a column can be mapped to: what a fit, a law or `tune` reads by name."""

NON_EMBEDDING = ("nonembed", "nonembedding")
"""What a column of parameters without embeddings is called, underscores aside."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reject:
    """One row that was set aside.

    Attributes
    ----------
    line : int
        Line of the file where the row ends, the header being line 1; the row's number in Parquet.
    column : str
        Our name of the column at fault, empty when the whole row is malformed.
    value : str
        The cell as the file has it.
    reason : str
        What is wrong with it, in words.
    """

    line: int
    column: str
    value: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TableRead:
    """What a file held.

    Attributes
    ----------
    observations : Observations
        The usable rows that the conditions select, in the order of the file.
    lines : ndarray of int, shape (n,)
        The line of the file of each of them.
    rejects : tuple of Reject
        The selected rows that cannot be used.
    marks : Mapping[str, ndarray of bool, shape (n,)]
        For each named condition, the rows for which it is true.
    mapping : Mapping[str, str]
        Our column name to the file's column or SQL expression that was read for it.
    notes : Mapping[str, str]
        What was decided without being asked, by code: ``derived_flops``, ``duplicate_rows``, ..
    curves : Curves or None
        The runs' training curves, where the rows are those of a sweep.
    """

    observations: Observations
    lines: NDArray[np.int64]
    rejects: tuple[Reject, ...] = ()
    marks: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    mapping: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    curves: Curves | None = None


def parse_map(texts: Sequence[str]) -> dict[str, str]:
    """Return ``{our column: their column or SQL expression}`` from ``n_params=params,flops=c``.

    Raises
    ------
    UsageError
        When an item is not of the form OURS=THEIRS or names a column twice.
    """
    mapping: dict[str, str] = {}
    for text in texts:
        for item in re.split(r",(?![^()]*\))", text):
            ours, equals, theirs = (part.strip() for part in item.partition("="))
            if not (equals and ours.isidentifier() and theirs) or ours in mapping:
                raise UsageError(
                    f"--map {item.strip()!r}",
                    "OURS=THEIRS, each of ours once",
                    "Write --map n_params=params,loss_nats=val_loss, for example.",
                )
            mapping[ours] = theirs
    return mapping


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadOptions:
    """How to read a table.

    Attributes
    ----------
    mapping : Mapping[str, str]
        Our column name to the table's column name, or to a DuckDB expression over its columns
        (``n_tokens = steps * 524288``). One of `MAPPED`; beyond `ALIASES` it goes into ``extra``.
    where : str or None
        DuckDB condition on the table's own columns; rows for which it is not true are left out.
    marks : Mapping[str, str]
        Named conditions to evaluate on the rows that remain.
    text_columns : sequence of str
        Columns of text to keep in ``extra`` beside the numeric ones, which are all kept.
    param_convention, flop_convention : str
        How the table counts; ``unstated`` unless the caller knows.
    """

    mapping: Mapping[str, str] = field(default_factory=dict)
    where: str | None = None
    marks: Mapping[str, str] = field(default_factory=dict)
    text_columns: Sequence[str] = ()
    param_convention: str = "unstated"
    flop_convention: str = "unstated"

    def __post_init__(self) -> None:
        if self.where is not None and not self.where.strip():
            raise UsageError(
                "an empty condition (--where)",
                'a condition on the table\'s columns, such as "n_params > 1e6"',
                "Leave it out to take every row; a shell variable may be unset.",
            )
        for name in self.mapping:
            if name not in MAPPED:
                near = difflib.get_close_matches(name, MAPPED, n=1)
                raise UsageError(
                    f"--map {name}={self.mapping[name]}, where {name} is no column of ours",
                    f"OURS=THEIRS with OURS one of {', '.join(MAPPED)}",
                    f"Write {near[0]}=, if that is meant." if near else "Mend the name before '='.",
                )


def read_table(path: str | Path, options: ReadOptions | None = None) -> TableRead:
    """Return the observations of a CSV, TSV or Parquet file (``.csv.gz`` too).

    Raises
    ------
    DataError
        When the file cannot be read, a needed column is missing, or no usable row is left.
    UsageError
        When a condition or expression is not valid SQL over the file's columns.
    """
    with open_file(Path(path)) as source:
        return read_source(source, options or ReadOptions())


def read_frame(frame: pd.DataFrame, options: ReadOptions | None = None) -> TableRead:
    """Return the observations of a pandas frame; raises as `read_table`."""
    with open_frame(frame) as source:
        return read_source(source, options or ReadOptions())


def read_source(source: TableSource, options: ReadOptions) -> TableRead:
    """Return the observations of a table that is open already; raises as `read_table`."""
    return _Reader(source, options).read()


class _Reader:
    """One table being read."""

    def __init__(self, source: TableSource, options: ReadOptions) -> None:
        self.source = source
        self.options = options
        self.notes: dict[str, str] = {}
        self.mapping = self._resolve()
        source.make_numeric([self.mapping[n] for n in (*CORE, "budget") if n in self.mapping])

    def _resolve(self) -> dict[str, str]:
        """Return where each of our columns comes from; two of N, D, C are enough."""
        lower = {name.lower(): name for name in self.source.types}
        found = {
            ours: lower.get(theirs.lower(), theirs) for ours, theirs in self.options.mapping.items()
        }
        for ours, aliases in ALIASES.items():
            hit = next((lower[name] for name in (ours, *aliases) if name in lower), None)
            if ours not in found and hit is not None:
                found[ours] = hit
        for ours, theirs in found.items():
            if theirs.lower() in self.source.repeated:
                raise DataError(
                    f"{self.source.name} with several columns {theirs}, wanted for {ours} "
                    "(upper and lower case are alike)",
                    "one column of each name that is read",
                    "Rename all but one of them in the table.",
                )
        missing = [name for name in ("loss_nats",) if name not in found]
        if sum(name in found for name in ("n_params", "n_tokens", "flops")) < 2:
            missing += [name for name in ("n_params", "n_tokens") if name not in found]
        if missing:
            raise DataError(
                f"{self.source.name} with the columns {', '.join(self.source.types)}",
                f"{' and '.join(missing)} among them (two of n_params, n_tokens, flops do)",
                f"Map them: --map {','.join(f'{name}=THEIR_NAME' for name in missing)}.",
            )
        return found

    def read(self) -> TableRead:
        options, picked = self.options, set(self.mapping)
        columns = self._columns()
        row = columns.pop("source_row").astype(np.int64)
        core = {name: columns.pop(name) for name in CORE if name in picked}
        bad = {name: ~(np.isfinite(values) & (values > 0)) for name, values in core.items()}
        flop_convention = self._derive(core)
        is_bad = np.logical_or.reduce(list(bad.values()))
        rejects = self._explain(row, bad)
        keep = np.flatnonzero(~is_bad)
        if not len(keep):
            raise self._nothing_left(rejects)
        marks = {name: columns.pop(f"mark:{name}")[keep].astype(bool) for name in options.marks}
        budget, cluster = columns.pop("budget", None), columns.pop("cluster", None)
        observations = Observations(
            **{name: core[name][keep] for name in CORE},
            budget=None if budget is None else _positive_or_nan(budget[keep]),
            cluster=None if cluster is None else cluster[keep].astype(np.str_),
            extra={name: column[keep] for name, column in columns.items()},
            param_convention=self._convention(
                "n_params", PARAM_CONVENTIONS, options.param_convention
            ),
            flop_convention=self._convention("flops", FLOP_CONVENTIONS, flop_convention),
            source=self.source.name + (f" where {options.where}" if options.where else ""),
        )
        self._note_duplicates(observations)
        return TableRead(
            observations=observations,
            lines=self.source.lines(row[keep]),
            rejects=rejects,
            marks=marks,
            mapping=self.mapping,
            notes=self.notes,
        )

    def _columns(self) -> dict[str, NDArray[Any]]:
        """Fetch our columns, every other numeric one, and the marks, in the table's order."""
        source, options = self.source, self.options
        select = {"source_row": "source_row"}
        for ours, theirs in self.mapping.items():
            expression = quote(theirs) if theirs in source.types else f"(\n{theirs}\n)"
            kind = "VARCHAR" if ours == "cluster" else "DOUBLE"
            source.check(f"SELECT {expression} FROM rows", f"--map {ours}={theirs}")
            select[ours] = f"TRY_CAST({expression} AS {kind})"
        used = set(self.mapping.values())
        for name, kind in source.types.items():
            if name in select or (name in used and name not in options.text_columns):
                continue
            if name in options.text_columns:
                select[name] = f"CAST({quote(name)} AS VARCHAR)"
            elif is_numeric(kind):
                select[name] = f"CAST({quote(name)} AS DOUBLE)"
        for name, condition in options.marks.items():
            source.check(f"SELECT * FROM rows WHERE (\n{condition}\n)", condition)
            select[f"mark:{name}"] = f"coalesce((\n{condition}\n), false)"
        listed = ", ".join(f"{value} AS {quote(name)}" for name, value in select.items())
        query = f"SELECT {listed} FROM rows"
        if options.where:
            source.check(f"SELECT * FROM rows WHERE (\n{options.where}\n)", options.where)
            query += f" WHERE (\n{options.where}\n)"
        return source.fetch(query + " ORDER BY source_row", options.where or "")

    def _derive(self, core: dict[str, FloatArray]) -> str:
        """Fill in the one of N, D, C that the table lacks from C = 6 N D, and say so."""
        with np.errstate(all="ignore"):
            if "flops" not in core:
                core["flops"] = train_flops_6nd(core["n_params"], core["n_tokens"])
                self.notes["derived_flops"] = "The table has no flops column: C = 6 N D was taken."
                return "6nd"
            for name, other in (("n_tokens", "n_params"), ("n_params", "n_tokens")):
                if name not in core:
                    core[name] = core["flops"] / train_flops_6nd(core[other], np.ones(1))
                    self.notes[f"derived_{name}"] = (
                        f"The table has no {name} column: it was taken from C = 6 N D."
                    )
                    return "6nd"
        return self.options.flop_convention

    def _convention(self, ours: str, known: Mapping[str, str], otherwise: str) -> str:
        """Return the convention that the name of the column read says, else ``otherwise``."""
        theirs = self.mapping.get(ours, "").lower().removeprefix(f"{ours}_")
        if theirs.replace("_", "") in NON_EMBEDDING:
            return "kaplan"
        return theirs if theirs in known else otherwise

    def _explain(
        self, row: NDArray[np.int64], bad: Mapping[str, NDArray[np.bool_]]
    ) -> tuple[Reject, ...]:
        """Return the rejects in the order of the table, each for the first column at fault."""
        if any(column.any() for column in bad.values()):
            self.source.count_lines()
        rejects = [
            Reject(line=line, column="", value=text, reason=reason)
            for line, text, reason in self.source.malformed
        ]
        seen = np.zeros(len(row), bool)
        for name, column in bad.items():
            at = np.flatnonzero(column & ~seen)
            seen |= column
            theirs = self.mapping[name]
            expression = quote(theirs) if theirs in self.source.types else f"({theirs})"
            texts = self.source.cells(expression, row[at]) if len(at) else []
            rejects += [
                Reject(line=int(line), column=name, value=text or "", reason=_reason(name, text))
                for line, text in zip(self.source.lines(row[at]), texts, strict=True)
            ]
        return tuple(sorted(rejects, key=lambda reject: reject.line))

    def _nothing_left(self, rejects: tuple[Reject, ...]) -> DataError:
        where = self.options.where
        if rejects:
            first = rejects[0]
            return DataError(
                f"{self.source.name} with no usable row (line {first.line}: {first.reason})",
                "finite n_params, n_tokens and losses above zero",
                "Mend the rows, or map other columns with --map.",
            )
        return DataError(
            f"{self.source.name} with no row" + (f" where {where}" if where else ""),
            "at least one row",
            "Loosen the condition." if where else "Check that the file is whole.",
        )

    def _note_duplicates(self, observations: Observations) -> None:
        mixed = np.zeros(len(observations), dtype=np.uint64)
        for name in CORE:
            # Equal rows hash alike; sorting whole rows would take seconds on a million of them.
            bits = np.ascontiguousarray(getattr(observations, name)).view(np.uint64)
            mixed = (mixed ^ bits) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(29)
        extra = len(mixed) - len(np.unique(mixed))
        if extra:
            self.notes["duplicate_rows"] = (
                f"{extra} rows repeat another row exactly; each counts as a run of its own. "
                "Remove them unless they are."
            )


def _reason(name: str, text: str | None) -> str:
    if text is None:
        return f"{name} is missing"
    try:
        value = float(text)
    except ValueError:
        return f"{name} is not a number: {text!r}"
    return f"{name} is not {'above zero' if np.isfinite(value) else 'finite'}: {text}"


def _positive_or_nan(budget: FloatArray) -> FloatArray:
    return np.where(np.isfinite(budget) & (budget > 0), budget, np.nan)
