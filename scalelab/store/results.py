"""Finished runs of a sweep, or of an import, from the published snapshot as `Observations`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from scalelab.errors import DataError, UsageError
from scalelab.records.sweep_dir import OFF_RULE_KINDS
from scalelab.records.types import Curves
from scalelab.store.live import snapshot_path
from scalelab.store.table_source import Snapshot, TableSource, open_snapshot
from scalelab.store.tables import ReadOptions, TableRead, read_source
from scalelab.theory.accounting import DEFAULT_FLOP_CONVENTION, DEFAULT_PARAM_CONVENTION

ALIKE = (
    *("tokenizer", "data_fingerprint", "eval_fingerprint", "seq_len", "schedule", "optimizer"),
    *("parametrization", "numerics_revision", "device", "device_name", "step_mode", "kernels"),
    *("attention", "precision"),
)
"""What could matter to a run's loss beside what a law is about, and should not be mixed unsaid."""

_LATEST = f"""
SELECT s.sweep FROM store.sweeps AS s JOIN store.runs AS r USING (run_id)
WHERE r.status = 'done' AND s.kind NOT IN {OFF_RULE_KINDS}
GROUP BY s.sweep ORDER BY max(s.created_s) DESC, s.sweep LIMIT 1
"""
_NAMES = 'SELECT sweep FROM store.sweeps UNION SELECT "import" FROM store.imports ORDER BY 1'
_LATEST_IMPORT = 'SELECT "import" FROM store.imports ORDER BY imported_s DESC, 1 LIMIT 1'
# Branches of one trunk share everything but their tokens: one label for the cluster bootstrap.
_RUNS = """
SELECT r.*, s.budget_flops AS budget, s.position, 1.0 AS fraction_elapsed,
  CASE WHEN s.kind = 'ladder'
       THEN concat_ws('/', r.n_layers, r.d_model, r.d_ff, r.lr, r.batch_seqs, r.seed)
       ELSE r.run_id END AS cluster
FROM store.sweeps AS s JOIN store.runs AS r USING (run_id)
WHERE s.sweep = $name AND r.status = 'done' ORDER BY s.position
"""
# A quarter of an e-fold of tokens holds enough steps to see a curve through the noise of batches;
# the first twentieth of a run is warm-up.
_CURVES = """
SELECT m.run_id, exp(avg(ln(m.tokens))) AS n_tokens, avg(m.loss_nats) AS loss_nats
FROM store.metrics AS m
JOIN store.runs AS r USING (run_id) JOIN store.sweeps AS s USING (run_id)
WHERE s.sweep = $name AND r.status = 'done' AND m.tokens > 0.05 * r.n_tokens
  AND isfinite(m.loss_nats) AND m.loss_nats > 0
GROUP BY m.run_id, floor(4 * ln(m.tokens)) ORDER BY m.run_id, n_tokens
"""
_IMPORT = """
SELECT * RENAME (budget_flops AS budget) FROM store.imports WHERE "import" = $name ORDER BY line
"""


def read_results(results: Path, sweep: str | None, options: ReadOptions) -> TableRead:
    """Return the finished runs of a sweep, or the rows of an import of that name.

    Parameters
    ----------
    results : Path
        The results folder, in which the collector publishes its snapshot.
    sweep : str or None
        Name of a sweep or import; None takes the latest sweep that has results, or the latest
        import where no sweep has.
    options : ReadOptions
        As for a file; conditions and mappings are over the columns of the ``runs`` table.

    Raises
    ------
    DataError
        When there is no snapshot, or no finished run under that name.
    """
    path = snapshot_path(results)
    if not path.is_file():
        raise DataError(
            f"{results} without {path.name}",
            "a results folder with collected runs, or --from FILE",
            "Run `scalelab collect`, name another --results, or fit a file with --from.",
        )
    chosen = replace(
        options, param_convention=DEFAULT_PARAM_CONVENTION, flop_convention=DEFAULT_FLOP_CONVENTION
    )
    with open_snapshot(path) as snapshot:
        name = sweep or snapshot.first(_LATEST) or snapshot.first(_LATEST_IMPORT)
        if name is None:
            raise DataError(
                f"no finished run in {results}",
                "a sweep with results",
                "Run a sweep first, or fit a file with --from.",
            )
        name = str(name)
        planned = snapshot.first("SELECT count(*) FROM store.sweeps WHERE sweep = $name", name)
        if planned:
            source = snapshot.load(_RUNS, name, f"sweep {name}")
            rows = read_source(source, chosen) if snapshot.rows(source) else None
        else:
            source = snapshot.load(_IMPORT, name, f"import {name}")
            rows = _imported(source, options) if snapshot.rows(source) else None
        if rows is None:
            known = snapshot.column(_NAMES)
            raise (DataError if planned else UsageError)(
                f"sweep {name!r}" + (f", none of whose {planned} runs is done" if planned else ""),
                f"a sweep or import with finished runs; there are: {', '.join(known) or 'none'}",
                "See `scalelab status`, or resume the sweep.",
            )
        curves = _curves(snapshot, name) if planned else None
        notes = dict(rows.notes)
        if planned:
            notes |= _unfinished(int(planned), snapshot.rows(source)) | _mixed(source, chosen.where)
        return replace(rows, notes=notes, curves=curves)


def _curves(snapshot: Snapshot, name: str) -> Curves:
    columns = snapshot.arrays(_CURVES, name)
    return Curves(
        run_id=columns["run_id"].astype(str),
        n_tokens=columns["n_tokens"],
        loss_nats=columns["loss_nats"],
    )


def _imported(source: TableSource, options: ReadOptions) -> TableRead:
    said = {
        name: source.texts(f"SELECT DISTINCT {name} AS said FROM rows")
        for name in ("param_convention", "flop_convention")
    }
    params, flops = (words[0] if len(words) == 1 else "mixed" for words in said.values())
    return read_source(source, replace(options, param_convention=params, flop_convention=flops))


def _unfinished(planned: int, done: int) -> dict[str, str]:
    if planned == done:
        return {}
    return {
        "unfinished_runs": f"{planned - done} of {planned} runs of the sweep are not done and are "
        "left out; `scalelab resume` finishes what can be finished."
    }


def _mixed(source: TableSource, where: str | None) -> dict[str, str]:
    """Say when the runs that a condition keeps differ in what could matter to their loss."""
    kept = f"SELECT * FROM rows WHERE (\n{where or True}\n)"
    mixed: dict[str, list[str]] = {}
    for name in ALIKE:
        values = source.texts(
            f"SELECT DISTINCT {name} AS said FROM ({kept}) WHERE {name} IS NOT NULL"
        )
        if len(values) > 1:
            mixed[name] = sorted(values)
    if not mixed:
        return {}
    words = [f"{name} ({', '.join(values)})" for name, values in mixed.items()]
    name, (value, *_) = next(iter(mixed.items()))
    return {
        "mixed_runs": f"The runs differ in {'; '.join(words)}, and so may their losses. Keep one "
        f"kind with --where, such as --where \"{name} = '{value}'\"."
    }
