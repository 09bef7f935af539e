"""Fill a table of sizes: train each model of a program for a few steps and read what it reports."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scalelab.corpus.dataset import prepare
from scalelab.errors import RunsFailedError, UsageError
from scalelab.launch.programs.plan import has_prepared_text, identity_of, program_facts
from scalelab.launch.programs.ready import require_format
from scalelab.launch.programs.run import run_program
from scalelab.records.files import write_atomically
from scalelab.records.sweep_dir import Results
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.planned_run import planned_run
from scalelab.sweep.program_table import ProgramTable
from scalelab.sweep.run_size import REPORTED, TABLE_FLOPS
from scalelab.sweep.run_spec import PRECISIONS, RunSpec
from scalelab.sweep.size_table import N_PARAMS, TOKENS_PER_S, SizeRow, read_csv
from scalelab.sweep.spec import SweepSpec
from scalelab.theory.accounting import DEFAULT_PARAM_CONVENTION

PROBE_LR = 1e-4
PROBE_BATCH_SEQS = 8
SOURCES = ("report", "checkpoint")


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbedRow:
    """What a probe found out about a row of a table of sizes.

    Attributes
    ----------
    row : SizeRow
        The row as it was.
    n_params : int
        Parameters that the program reports, or its checkpoint has.
    flops_per_token : float or None
        Training FLOPs per token that it reports.
    tokens_per_s : float or None
        Its speed at the last step; None after one step, which includes the start.
    """

    row: SizeRow
    n_params: int
    flops_per_token: float | None
    tokens_per_s: float | None

    def cells(self) -> dict[str, str]:
        """Return the cells of the table to fill in."""
        found: dict[str, float | None] = {
            N_PARAMS: self.n_params,
            TABLE_FLOPS: self.flops_per_token,
            TOKENS_PER_S: self.tokens_per_s,
        }
        return {name: f"{value:.10g}" if isinstance(value, float) else str(value)
                for name, value in found.items() if value is not None}  # fmt: skip


def probe_rows(
    sweep: SweepSpec,
    table: ProgramTable,
    execution: ExecutionSpec,
    results: Results,
    *,
    n_steps: int,
    source: str,
    probes_all: bool,
    watch: Callable[[SizeRow, int, int], None],
) -> list[ProbedRow]:
    """Train each row that has no parameters for some steps, in a temporary folder.

    Parameters
    ----------
    sweep : SweepSpec
    table : ProgramTable
        With a table of sizes.
    execution : ExecutionSpec
        With the execution of the program.
    results : Results
        Where the text of ``[data]`` is prepared, if the program trains on it.
    n_steps : int
        Optimizer steps of each run.
    source : str
        Where N comes from: ``report`` or ``checkpoint``.
    probes_all : bool
        Whether to probe the rows that have parameters too.
    watch : callable
        Called with the row, its number and the number of rows before each run.

    Raises
    ------
    UsageError
        If the program has no table of sizes.
    RunsFailedError
        If a run fails or states no parameters.
    """
    if table.size.by != "table":
        raise UsageError(
            f"a probe of a program with size.by = {table.size.by}",
            "a program with a table of sizes",
            "Write size = {by = 'table', table = 'sizes.csv'}, with a column that the command "
            "uses, for example depth.",
        )
    require_format(table)
    rows = [row for row in table.rows() if probes_all or not row.n_params]
    dataset = None
    if has_prepared_text(table):
        prepared = prepare(sweep.data.source(), results.path)
        dataset = results.dataset(prepared.fingerprint)
    found = []
    with tempfile.TemporaryDirectory(prefix="scalelab-probe-") as folder:
        for number, row in enumerate(rows, start=1):
            watch(row, number, len(rows))
            spec = _probe_spec(sweep, table, row, results.path, n_steps=n_steps, source=source)
            found.append(_probed(row, spec, execution, Results(Path(folder)), dataset))
    return found


def write_table(path: Path, rows: Sequence[SizeRow], probed: Sequence[ProbedRow]) -> None:
    """Write a table of sizes as CSV, with the cells that were probed.

    Other cells of an existing file stay as they were written.
    """
    cells = [{name: str(value) for name, value in row.cells} for row in rows]
    if path.exists():
        cells = [dict(line) for line in read_csv(path)]
    by_row = {each.row.identity: each for each in probed}
    for row, line in zip(rows, cells, strict=True):
        if row.identity in by_row:
            line.update(by_row[row.identity].cells())
    names = list(dict.fromkeys(name for line in cells for name in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(cells)
    write_atomically(path, text.getvalue())


def _probe_spec(
    sweep: SweepSpec, table: ProgramTable, row: SizeRow, results: Path, *, n_steps: int, source: str
) -> RunSpec:
    program = dataclasses.replace(
        identity_of(table, results, version="probe", is_dry_run=True),
        size_by=source,
        size=row.identity,
    )
    changes: Mapping[str, object] = {
        "lr": sweep.train.lr or PROBE_LR,
        "batch_seqs": sweep.train.batch_seqs or PROBE_BATCH_SEQS,
        "warmup": None,
        "decay": None,
    }
    train = sweep.train.model_copy(update=dict(changes))
    n_tokens = float(n_steps * train.seq_len * (train.batch_seqs or PROBE_BATCH_SEQS))
    facts = program_facts(table, None)
    shape = row.shape(table.vocab_size)
    return planned_run(shape, n_tokens, None, train, facts, PRECISIONS[0], program).spec


def _probed(
    row: SizeRow, spec: RunSpec, execution: ExecutionSpec, results: Results, dataset: Path | None
) -> ProbedRow:
    run = results.run(spec.run_id)
    run.write_spec(spec)
    # Stdout of the command is the answer.
    with contextlib.redirect_stdout(sys.stderr):
        status = run_program(run.path, execution, dataset=dataset, host_note={"sweep": "probe"})
    attempt = run.accepted()
    record = None if attempt is None else attempt.read_record()
    if attempt is None or record is None or status != "done":
        attempts = run.attempts()
        ended = attempts[-1].read_note().get("ended", {}) if attempts else {}
        raise RunsFailedError(
            f"the probe of {row.label()}, which {status}: {ended.get('reason', 'no reason')}",
            "a run that ends with its parameters stated",
            "Try the command by hand: `scalelab program check FILE` prints it.",
        )
    last = attempt.last_metrics()
    return ProbedRow(
        row=row,
        n_params=record.n_params[DEFAULT_PARAM_CONVENTION],
        flops_per_token=record.flops[REPORTED] / record.n_tokens
        if record.flops.get(REPORTED)
        else None,
        tokens_per_s=last.tokens_per_s if last is not None and spec.n_steps > 1 else None,
    )
