"""Read an imported table as `Observations`: map columns, select rows, reject unusable rows.

DuckDB holds the table and evaluates the user's SQL conditions. Each unusable
row is returned as a `Reject` with its line and the reason.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scalelab.arrays import FloatArray
from scalelab.errors import DataError, UsageError
from scalelab.logs.losses import BPB
from scalelab.records.metric import HELDOUT, HELDOUT_BPB, NATS
from scalelab.records.names import text_of_names
from scalelab.records.types import Observations
from scalelab.store.columns import (
    ALIASES,
    CORE,
    NON_EMBEDDING,
    SIZES,
    likely_columns,
    map_option,
)
from scalelab.store.comparable import finished_condition, select, settings_as_text
from scalelab.store.evaluated import evaluated_on
from scalelab.store.excluded import is_excluded, name_column
from scalelab.store.found_columns import find_needed
from scalelab.store.loss_units import convert_loss
from scalelab.store.metric import metric_expression, parse_metric, without_metric
from scalelab.store.plausible import plausibility_notes
from scalelab.store.public_tables import published_text
from scalelab.store.read_options import ReadOptions
from scalelab.store.rejects import nothing_left, rejects_of
from scalelab.store.table_files import open_file
from scalelab.store.table_read import TableRead
from scalelab.store.table_source import TableSource, is_numeric, open_frame, quote
from scalelab.theory.accounting import FLOP_CONVENTIONS, PARAM_CONVENTIONS, train_flops_6nd
from scalelab.units import plural

if TYPE_CHECKING:
    import pandas as pd


def read_table(path: str | Path, options: ReadOptions | None = None) -> TableRead:
    """Return the observations of a table, or of the run logs of another trainer.

    Raises
    ------
    DataError
        If the file cannot be read, a required column is missing, or no row is usable.
    UsageError
        If a condition or expression is not valid SQL over the file's columns.
    """
    options = options or ReadOptions()
    with open_file(Path(path), options.reading) as source:
        source.evaluated = published_text(Path(path))
        return read_source(source, options)


def read_frame(frame: pd.DataFrame, options: ReadOptions | None = None) -> TableRead:
    """Return the observations of a pandas frame; raises as `read_table`."""
    with open_frame(frame) as source:
        return read_source(source, options or ReadOptions())


def read_source(source: TableSource, options: ReadOptions) -> TableRead:
    """Return the observations of an open table; raises as `read_table`."""
    return _Reader(source, options).read()


_FOR_LOGS = {
    "n_params": "124e6",
    "n_tokens": "last_step*524288",
    "loss_nats": "COLUMN",
    "flops": "1e18",
}
"""Examples of what a log may lack."""


NAME = "mark of the run"
"""Name of the fetched column that names the run of each row."""


class _Reader:
    """One table being read."""

    def __init__(self, source: TableSource, options: ReadOptions) -> None:
        self.source = source
        self.options = options
        self.notes: dict[str, str] = dict(source.notes)
        self.metric = (
            None if options.reading.metric is None else parse_metric(options.reading.metric)
        )
        if self.metric is not None and not self.metric.terms:
            raise UsageError(
                "--metric all, for an answer about one loss",
                "one metric",
                "Write for example --metric code. `scalelab fit --metric all` compares them.",
            )
        self.of_metric: list[str] = []
        self.mapping = self._resolve()
        loss = self.mapping.get("loss_nats", "")
        written = [self.mapping[n] for n in (*CORE, "budget") if n in self.mapping]
        source.make_numeric(
            [*written, *self.of_metric, *settings_as_text(source, self.options.text_columns)],
            small=[loss, *self.of_metric],
        )

    def _resolve(self) -> dict[str, str]:
        """Return the source of each of our columns; the loss and the needed sizes are required."""
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
                    f"{self.source.name} with several columns {theirs}, one of which is needed for "
                    f"{ours} (upper and lower case are equal)",
                    "one column of that name",
                    f"Rename the other columns, or name one of them: --map {ours}=COLUMN",
                )
        if not self.source.is_log:
            able, note = find_needed(self.source, found, self.options.needs)
            found |= able
            self.notes |= note
        if self.metric is not None:
            found["loss_nats"] = self._metric_source(found.get("loss_nats"))
        missing = [name for name in ("loss_nats",) if name not in found]
        sizes = [name for name in SIZES if name not in found]
        unused = [name for name in self.source.types if name not in found.values()]
        if not self.source.is_log:
            sizes.sort(key=lambda name: not likely_columns(name, unused))
        # Two of the three sizes give the third.
        if len(sizes) > 1:
            needed = [name for name in sizes if name in self.options.needs]
            missing += needed[: len(sizes) - 1]
        if missing:
            raise self._missing(missing, unused)
        return found

    def _metric_source(self, heldout: str | None) -> str:
        """Return the SQL expression of the metric; ``heldout`` is the held-out loss."""
        assert self.metric is not None
        mapped = self.options.mapping.get("loss_nats")
        if mapped is not None and not self.metric.is_heldout:
            raise UsageError(
                f"--metric {self.metric.text} with --map loss_nats={mapped}",
                "one of them",
                "Remove --map loss_nats to read the metric.",
            )
        found, self.of_metric = metric_expression(
            self.source, self.metric, heldout, self.options.reading.loss_unit
        )
        return found

    def _missing(self, missing: list[str], unused: list[str]) -> DataError:
        if self.source.is_log:
            return DataError(
                f"{self.source.name}, whose logs hold no {' and no '.join(missing)}; the columns "
                f"read from them are {', '.join(self.source.types)}",
                "a number or an expression over these columns for each",
                "Write it, for example --map "
                + shlex.quote(",".join(f"{name}={_FOR_LOGS[name]}" for name in missing)),
            )
        given = []
        for name in missing:
            likely = ", ".join(likely_columns(name, unused)[:3])
            given.append(name + (f" (likely: {likely})" if likely else ""))
        return DataError(
            f"{self.source.name} without {' and '.join(given)}; its columns are "
            f"{', '.join(self.source.types)}",
            "a loss and two of n_params, n_tokens, flops"
            if tuple(self.options.needs) == SIZES
            else " and ".join(("a loss", *self.options.needs)),
            f"Add {map_option(missing, unused)}",
        )

    def read(self) -> TableRead:
        options, picked = self.options, set(self.mapping)
        columns = self._columns()
        row = columns.pop("source_row").astype(np.int64)
        names = columns.pop(NAME, None)
        core = {name: columns.pop(name) for name in CORE if name in picked}
        metric = self.metric
        if metric is None:
            unit, note = convert_loss(core, self.mapping["loss_nats"], self.source, options)
            self.notes |= note
            metric = HELDOUT_BPB if unit == BPB else HELDOUT
        bad = {
            name: ~(np.isfinite(values) & (values > 0 if self._is_positive(name) else True))
            for name, values in core.items()
        }
        flop_convention = self._derive(core)
        is_bad = np.logical_or.reduce(list(bad.values()))
        rejects = rejects_of(self.source, self.mapping, row, bad)
        keep = np.flatnonzero(~is_bad)
        if not len(keep):
            raise nothing_left(self.source.name, options.where, rejects)
        names = self.source.lines(row) if names is None else names.astype(np.str_)
        source = self.source.name + (f" where {options.where}" if options.where else "")
        if asked := options.reading.exclude:
            self.source.count_lines()
            lines = self.source.lines(row[keep])
            is_out = is_excluded(asked, names[keep], lines, self.source.name)
            keep = keep[~is_out]
            n_out = int(is_out.sum())
            source += f" without {plural(n_out, 'excluded row')}"
            self.notes["excluded_runs"] = (
                f"{plural(n_out, 'row')} left out by --exclude {text_of_names(asked)}."
            )
        marks = {name: columns.pop(f"mark:{name}")[keep].astype(bool) for name in options.marks}
        budget, cluster = columns.pop("budget", None), columns.pop("cluster", None)
        observations = Observations(
            **{name: core[name][keep] for name in CORE},
            budget=None if budget is None else _positive_or_nan(budget[keep]),
            cluster=None if cluster is None else cluster[keep].astype(np.str_),
            names=names[keep],
            extra={name: column[keep] for name, column in columns.items()},
            param_convention=self._convention(
                "n_params",
                PARAM_CONVENTIONS,
                self.source.param_convention
                if options.param_convention == "unstated"
                else options.param_convention,
            ),
            flop_convention=self._convention("flops", FLOP_CONVENTIONS, flop_convention),
            source=source,
            is_signed=options.is_signed,
            metric=metric,
            evaluated=evaluated_on(self.source, options, metric),
        )
        self._note_duplicates(observations)
        observations, kept, notes = select(observations, marks, options.reading)
        self.notes |= notes
        self.notes |= plausibility_notes(observations, is_nats=metric.unit == NATS)
        return TableRead(
            observations=observations,
            lines=self.source.lines(row[keep][kept]),
            rejects=rejects,
            marks={name: mark[kept] for name, mark in marks.items()},
            mapping=self.mapping,
            notes=self.notes,
            curves=self.source.curves,
        )

    def _columns(self) -> dict[str, NDArray[Any]]:
        """Fetch our columns, all other numeric columns and the marks, in the order of the table."""
        source, options = self.source, self.options
        select = {"source_row": "source_row"}
        for ours, theirs in self.mapping.items():
            expression = quote(theirs) if theirs in source.types else f"(\n{theirs}\n)"
            kind = "VARCHAR" if ours == "cluster" else "DOUBLE"
            source.check(f"SELECT {expression} FROM rows", f"--map {ours}={theirs}")
            select[ours] = f"TRY_CAST({expression} AS {kind})"
        used = set(self.mapping.values())
        texts = self._texts()
        for name, kind in source.types.items():
            if name in select or (name in used and name not in texts):
                continue
            if name in texts:
                select[name] = f"CAST({quote(name)} AS VARCHAR)"
            elif is_numeric(kind):
                select[name] = f"CAST({quote(name)} AS DOUBLE)"
        if named := name_column(source.types):
            select[NAME] = f"CAST({quote(named)} AS VARCHAR)"
        for name, condition in options.marks.items():
            source.check(f"SELECT * FROM rows WHERE (\n{condition}\n)", condition)
            select[f"mark:{name}"] = f"coalesce((\n{condition}\n), false)"
        listed = ", ".join(f"{value} AS {quote(name)}" for name, value in select.items())
        query = f"SELECT {listed} FROM rows"
        conditions, note = finished_condition(source, options.reading)
        self.notes |= note
        if self.metric is not None:
            condition, note = without_metric(
                source, self.metric, self.mapping["loss_nats"], [*conditions, options.where or ""]
            )
            self.notes |= note
            conditions.append(condition)
        if options.where:
            source.check(f"SELECT * FROM rows WHERE (\n{options.where}\n)", options.where)
            conditions.append(options.where)
        if conditions:
            query += " WHERE " + " AND ".join(f"(\n{condition}\n)" for condition in conditions)
        return source.fetch(query + " ORDER BY source_row", options.where or "")

    def _texts(self) -> set[str]:
        """Return the text columns to keep: those asked for, and those that select rows."""
        reading = self.options.reading
        asked = {*reading.best_of, *reading.mean_of, reading.last_of}
        named = {n for n, kind in self.source.types.items() if n in asked and kind == "VARCHAR"}
        return {*self.options.text_columns, *named}

    def _is_positive(self, name: str) -> bool:
        return not (self.options.is_signed and name == "loss_nats")

    def _derive(self, core: dict[str, FloatArray]) -> str:
        """Compute a missing one of N, D, C from C = 6 N D; return how C is counted.

        Where two are missing they stay unknown: NaN in every row.
        """
        missing = [name for name in SIZES if name not in core]
        if len(missing) > 1:
            core.update({name: np.full(len(core["loss_nats"]), np.nan) for name in missing})
            return self.options.flop_convention
        with np.errstate(all="ignore"):
            if "flops" not in core:
                core["flops"] = train_flops_6nd(core["n_params"], core["n_tokens"])
                self.notes["derived_flops"] = "The table has no flops column; C = 6 N D is used."
                return "6nd"
            for name, other in (("n_tokens", "n_params"), ("n_params", "n_tokens")):
                if name not in core:
                    core[name] = core["flops"] / train_flops_6nd(core[other], np.ones(1))
                    self.notes[f"derived_{name}"] = (
                        f"The table has no {name} column; it is computed from C = 6 N D."
                    )
                    return "6nd"
        return self.options.flop_convention

    def _convention(self, ours: str, known: Mapping[str, str], otherwise: str) -> str:
        """Return the convention that the column's name states, else ``otherwise``."""
        theirs = self.mapping.get(ours, "").lower().removeprefix(f"{ours}_")
        if any(word in theirs.replace("_", "") for word in NON_EMBEDDING):
            return "kaplan"
        return theirs if theirs in known else otherwise

    def _note_duplicates(self, observations: Observations) -> None:
        mixed = np.zeros(len(observations), dtype=np.uint64)
        for name in CORE:
            # Equal rows have equal hashes; sorting a million rows would take seconds.
            bits = np.ascontiguousarray(getattr(observations, name)).view(np.uint64)
            mixed = (mixed ^ bits) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(29)
        extra = len(mixed) - len(np.unique(mixed))
        if extra:
            self.notes["duplicate_rows"] = (
                f"{plural(extra, 'row')} {'repeats' if extra == 1 else 'repeat'} another row "
                "exactly. Each counts as a separate run; remove rows that are copies."
            )


def _positive_or_nan(budget: FloatArray) -> FloatArray:
    return np.where(np.isfinite(budget) & (budget > 0), budget, np.nan)
