"""Read finished runs of a sweep, or rows of an import, from the snapshot as `Observations`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scalelab.errors import FIRST_SWEEP, DataError, UsageError, did_you_mean
from scalelab.records.metric import BITS_PER_BYTE, HELDOUT, HELDOUT_BPB, Metric, parse_metric
from scalelab.records.sweep_dir import OFF_RULE_KINDS
from scalelab.records.types import Curves
from scalelab.store.live import open_snapshot
from scalelab.store.metric import list_metrics
from scalelab.store.metric_columns import metric_columns
from scalelab.store.read_options import ReadOptions
from scalelab.store.sources import CURVES_FILE
from scalelab.store.table_read import TableRead
from scalelab.store.table_source import TableSource, quote
from scalelab.store.tables import read_source
from scalelab.theory.accounting import DEFAULT_FLOP_CONVENTION, DEFAULT_PARAM_CONVENTION
from scalelab.units import plural

if TYPE_CHECKING:
    import duckdb

ALIKE = (
    *("tokenizer", "data_fingerprint", "eval_fingerprint", "seq_len", "schedule", "optimizer"),
    *("parametrization", "numerics_revision", "device", "device_name", "step_mode", "kernels"),
    *("attention", "precision", "program", "program_version", "mixture"),
)
"""Columns that may affect the loss and are in no law; a fit warns if its runs differ in one."""
OF_TOKENS = ("tokenizer", "data_fingerprint", "eval_fingerprint")
"""Columns in which runs of different tokenizers differ."""
OF_EXPERTS = ("n_experts", "n_active_experts")
"""The same, but for laws of mixtures, which have one of `EXPERT_COLUMNS`."""
EXPERT_COLUMNS = ("n_experts", "granularity", "density")

_LATEST = f"""
SELECT s.sweep FROM sweeps AS s JOIN runs AS r USING (run_id)
WHERE r.status = 'done' AND s.kind NOT IN {OFF_RULE_KINDS}
GROUP BY s.sweep ORDER BY max(s.created_s) DESC, s.sweep LIMIT 1
"""
_PLANNED = "SELECT count(*) FROM sweeps WHERE sweep = $name"
_WITH_ROWS = """
SELECT sweep FROM sweeps JOIN runs USING (run_id) WHERE status = 'done'
UNION SELECT "import" FROM imports ORDER BY 1
"""
_IN_BITS = """
SELECT count(*) FROM evals AS e JOIN chosen USING (run_id)
WHERE e.set = 'heldout' HAVING count(e.loss_nats) = 0 AND count(e.bits_per_byte) > 0
"""
_LATEST_IMPORT = 'SELECT "import" FROM imports ORDER BY imported_s DESC, 1 LIMIT 1'
# Branches of one trunk share everything but their tokens: one label for the cluster bootstrap.
_RUNS = """
SELECT r.*, s.budget_flops AS budget, s.position, s.sweep, 1.0 AS fraction_elapsed,
  CASE WHEN s.kind = 'ladder'
       THEN concat_ws('/', r.n_layers, r.d_model, r.d_ff, r.n_experts, r.n_active_experts,
                      r.d_shared_expert, r.lr, r.batch_seqs, r.seed)
       ELSE r.run_id END AS cluster
FROM sweeps AS s JOIN runs AS r USING (run_id)
WHERE s.sweep IN $names AND r.status = 'done'
QUALIFY row_number() OVER (PARTITION BY r.run_id ORDER BY list_position($names, s.sweep)) = 1
"""
_IN_PLAN = "list_position($names, sweep), position"
_WITH_EXPERTS = "SELECT n_experts FROM rows WHERE n_experts > 1 LIMIT 1"
# A quarter of an e-fold of tokens averages enough steps to suppress the noise of batches. The first
# twentieth of a run is warmup.
_CURVES = """
SELECT m.run_id, exp(avg(ln(m.tokens))) AS n_tokens, avg(m.loss_nats) AS loss_nats
FROM metrics AS m
JOIN runs AS r USING (run_id) JOIN sweeps AS s USING (run_id)
WHERE s.sweep IN $names AND r.status = 'done' AND m.tokens > 0.05 * r.n_tokens
  AND isfinite(m.loss_nats) AND m.loss_nats > 0
GROUP BY m.run_id, floor(4 * ln(m.tokens)) ORDER BY m.run_id, n_tokens
"""
_IMPORT = """
SELECT * RENAME (budget_flops AS budget), concat("import", '/', line) AS run_id
FROM imports WHERE "import" IN $names
"""


def read_results(results: Path, sweep: str | None, options: ReadOptions) -> TableRead:
    """Return the finished runs of a sweep, or the rows of an import of that name.

    Parameters
    ----------
    results : Path
        The results folder.
    sweep : str or None
        Name of a sweep or import, or several sweeps with commas, whose runs are read together; None
        takes the newest sweep with results, else the newest import.
    options : ReadOptions
        As for a file; conditions and mappings use the columns of the ``runs`` table. Without a
        mapping of ``n_params``, N counts all parameters, or the active ones if runs have experts:
        C = 6 N D and the laws of mixtures hold for these.

    Raises
    ------
    DataError
        If there is no snapshot, or no finished run of that name.
    """
    chosen = replace(
        options, param_convention=DEFAULT_PARAM_CONVENTION, flop_convention=DEFAULT_FLOP_CONVENTION
    )
    with open_runs(results, sweep) as (connection, source, names, planned):
        if not planned:
            (name,) = names
            if options.reading.metric is None and _first(connection, _IN_BITS):
                reading = replace(options.reading, metric=HELDOUT_BPB.text)
                options = replace(options, reading=reading)
            rows = _imported(source, options)
            curves = _imported_curves(results / "imports" / name)
            return replace(rows, curves=None if options.reading.metric else curves)
        if "n_params" not in chosen.mapping and source.texts(_WITH_EXPERTS):
            chosen = replace(chosen, mapping={**chosen.mapping, "n_params": "n_params_active"})
        default = f"coalesce(flop_convention, '{DEFAULT_FLOP_CONVENTION}')"
        counted = source.texts(f"SELECT DISTINCT {default} FROM rows")
        chosen = replace(chosen, flop_convention=counted[0] if len(counted) == 1 else "mixed")
        rows = read_source(source, chosen)
        notes = {**rows.notes, **_unfinished(planned, len(source)), **_mixed(source, chosen)}
        # Training curves are those of the training loss, not of another metric.
        is_of_training = options.reading.metric is None
        curves = _curves(connection, names) if is_of_training else None
        return replace(rows, notes=notes, curves=curves)


@contextmanager
def open_runs(
    results: Path, sweep: str | None
) -> Iterator[tuple[duckdb.DuckDBPyConnection, TableSource, list[str], int]]:
    """Yield the snapshot, the finished runs of sweeps or the rows of an import, names and size.

    The size is the number of planned runs, 0 for an import. Parameters and errors are those of
    `read_results`.
    """
    with open_snapshot(results) as connection:
        name = sweep or _first(connection, _LATEST) or _first(connection, _LATEST_IMPORT)
        if name is None:
            raise DataError(
                f"results folder {results}, which has no finished run",
                "a sweep with results",
                f"Launch a sweep: {FIRST_SWEEP}. Or fit a table: `scalelab fit --from runs.csv`.",
            )
        names = split_names(name)
        counts = {each: _first(connection, _PLANNED, each) for each in names}
        planned = sum(counts.values())
        if len(names) > 1 and not all(counts.values()):
            name = next(each for each, count in counts.items() if not count)
            raise _not_collected(connection, name, 0)
        if planned:
            title = f"{'sweep' if len(names) == 1 else 'sweeps'} {', '.join(names)}"
            source = _source(connection, _RUNS, _IN_PLAN, names, title)
            source.data = results / "data"
        else:
            source = _source(connection, _IMPORT, "line", names, f"import {name}")
        if not len(source):
            raise _not_collected(connection, name, planned)
        yield connection, source, names, planned


def results_metrics(results: Path, sweep: str | None) -> tuple[Metric, ...]:
    """Return every metric of the runs that `read_results` reads; raises as it does."""
    with open_runs(results, sweep) as (_, source, *_others):
        return list_metrics(source, {})


def split_names(text: str) -> list[str]:
    """Return the sweeps of ``a,b``.

    Raises
    ------
    UsageError
        If a name is empty or given twice.
    """
    names = [name.strip() for name in text.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise UsageError(
            f"--sweep {text}", "different names with commas", "Write for example --sweep a,b."
        )
    return names


def _not_collected(
    connection: duckdb.DuckDBPyConnection, name: str, planned: int
) -> DataError | UsageError:
    with_rows = [row[0] for row in connection.execute(_WITH_ROWS).fetchall()]
    return (DataError if planned else UsageError)(
        f"sweep {name!r}, "
        + (f"0 of whose {planned} runs are done" if planned else "which was not collected"),
        f"a sweep or import with finished runs: {', '.join(with_rows) or 'there are none'}",
        _advice(name, with_rows, is_planned=bool(planned)),
    )


def _source(
    connection: duckdb.DuckDBPyConnection, query: str, order: str, names: list[str], title: str
) -> TableSource:
    """Return the rows of a query with a column for each number of each evaluation set."""
    connection.execute(f"CREATE TEMP TABLE chosen AS {query}", {"names": names})
    columns = metric_columns(connection, "chosen")
    wide = "".join(f", {column.sql} AS {quote(column.name)}" for column in columns)
    connection.execute(
        f"CREATE TEMP TABLE wide AS SELECT e.run_id{wide} FROM evals AS e "
        "JOIN chosen USING (run_id) WHERE e.is_final GROUP BY e.run_id"
    )
    connection.execute(
        "CREATE TEMP TABLE source AS SELECT chosen.*, wide.* EXCLUDE (run_id) "
        f"FROM chosen LEFT JOIN wide USING (run_id) ORDER BY {order}",
        {"names": names} if "$names" in order else {},
    )
    source = TableSource(connection, title, 1)
    source.metrics = {column.metric: column.name for column in columns}
    return source


def _advice(name: str, with_rows: Sequence[str], *, is_planned: bool) -> str:
    """Return what to do when a sweep or import has no rows to fit."""
    if is_planned:
        return f"Continue the sweep with `scalelab resume {name}`."
    if not with_rows:
        return f"Launch a sweep: {FIRST_SWEEP}. Or fit a table: `scalelab fit --from runs.csv`."
    near = did_you_mean(name, with_rows)
    return near or f"Use one of these, for example --sweep {with_rows[0]}."


def _first(connection: duckdb.DuckDBPyConnection, query: str, name: str | None = None) -> Any:
    """Return the first value of a query, None if it has no row."""
    row = connection.execute(query, {} if name is None else {"name": name}).fetchone()
    return None if row is None else row[0]


def _curves(connection: duckdb.DuckDBPyConnection, names: list[str]) -> Curves:
    columns = connection.execute(_CURVES, {"names": names}).fetchnumpy()
    return Curves(
        run_id=np.asarray(columns["run_id"]).astype(str),
        n_tokens=np.asarray(columns["n_tokens"]),
        loss_nats=np.asarray(columns["loss_nats"]),
    )


def _imported(source: TableSource, options: ReadOptions) -> TableRead:
    stated = {
        name: source.texts(f"SELECT DISTINCT {name} AS stated FROM rows")
        for name in ("param_convention", "flop_convention")
    }
    params, flops = (words[0] if len(words) == 1 else "mixed" for words in stated.values())
    return read_source(source, replace(options, param_convention=params, flop_convention=flops))


def _imported_curves(folder: Path) -> Curves | None:
    """Return the training curves of imported run logs."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        columns = pq.read_table(folder / CURVES_FILE)
    except (OSError, pa.ArrowInvalid):
        return None
    return Curves(
        run_id=np.array(columns["run_id"].to_pylist(), dtype=np.str_),
        n_tokens=columns["n_tokens"].to_numpy(),
        loss_nats=columns["loss_nats"].to_numpy(),
    )


def _unfinished(planned: int, done: int) -> dict[str, str]:
    if planned == done:
        return {}
    return {
        "unfinished_runs": f"{planned - done} of {plural(planned, 'run')} are not done and "
        "not in the fit; `scalelab resume` continues them."
    }


def _mixed(source: TableSource, options: ReadOptions) -> dict[str, str]:
    """Return a note if the selected runs differ in a column that may affect their loss."""
    kept = f"SELECT * FROM rows WHERE (\n{options.where or True}\n)"
    mixed: dict[str, list[str]] = {}
    is_of_experts = bool(set(EXPERT_COLUMNS) & set(options.law_columns))
    for name in ALIKE if is_of_experts else (*OF_EXPERTS, *ALIKE):
        values = source.texts(
            f"SELECT DISTINCT {name} AS stated FROM ({kept}) WHERE {name} IS NOT NULL"
        )
        if len(values) > 1:
            mixed[name] = sorted(values)
    if "tokenizer" in mixed:
        metric = parse_metric(options.reading.metric or HELDOUT.text)
        if metric.unit != BITS_PER_BYTE:
            named = ", ".join(mixed["tokenizer"])
            return {
                "mixed_runs": f"The runs have different tokenizers ({named}), whose losses in "
                "nats per token do not compare. Bits per byte do: add --metric bpb:heldout."
            }
        # Bits per byte of the same documents compare over tokenizers.
        mixed = {name: values for name, values in mixed.items() if name not in OF_TOKENS}
    if not mixed:
        return {}
    words = [
        f"{name} ({'weights of sources' if name == 'mixture' else ', '.join(values)})"
        for name, values in mixed.items()
    ]
    name, (value, *_) = next(iter(mixed.items()))
    if name == "mixture":
        return {
            "mixed_runs": f"The runs differ in {words[0]}, which a law of N and D does not know. "
            "Fit the weights with `scalelab fit --form mixture`."
        }
    return {
        "mixed_runs": f"The runs differ in {'; '.join(words)}, which may affect their losses. "
        f"Select one kind with --where, for example: --where \"{name} = '{value}'\""
    }
