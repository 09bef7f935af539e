"""The verbs for a training program of yours: `check_program` and `probe_program`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalelab.api.data import DEFAULT_RESULTS
from scalelab.api.sweeps import propose
from scalelab.errors import UsageError

if TYPE_CHECKING:
    from scalelab.launch.programs.probe import ProbedRow
    from scalelab.launch.proposal import Proposal
    from scalelab.sweep.program_render import Value
    from scalelab.sweep.program_table import ProgramTable
    from scalelab.sweep.size_table import SizeRow
    from scalelab.sweep.spec import SweepSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class ProgramCheck:
    """What a check of a program found.

    Attributes
    ----------
    proposal : Proposal
        The plan, with the commands of three runs.
    placeholders : Mapping
        The value of every placeholder, for the smallest run.
    problems : tuple of UsageError
        What a launch would refuse.
    warnings : tuple of str
        What a launch accepts and says.
    """

    proposal: Proposal
    placeholders: Mapping[str, Value]
    problems: tuple[UsageError, ...]
    warnings: tuple[str, ...]


def check_program(
    sweep: SweepSpec | Mapping[str, Any],
    *,
    results: str | Path = DEFAULT_RESULTS,
    device: str | None = None,
) -> ProgramCheck:
    """Plan a sweep of a program, render its commands, and return every problem.

    Nothing is prepared or started.

    Raises
    ------
    UsageError
        If the sweep has no program, or cannot be planned.
    """
    from scalelab.launch.programs.ready import planned_place
    from scalelab.launch.proposal import program_problems
    from scalelab.records.sweep_dir import Results
    from scalelab.sweep.program_render import values

    spec, table = _with_program(sweep)
    proposal = propose(spec, results=results, device=device, is_dry_run=True, keep_problems=True)
    problems = program_problems(proposal, Results(Path(results)))
    row = min(proposal.plan.rows, key=lambda row: row.flops)
    place = planned_place(
        row.spec,
        proposal.execution_of(row.spec),
        sweep=proposal.plan.name,
        results=Path(results).absolute(),
    )
    return ProgramCheck(
        proposal=proposal,
        placeholders=values(row.spec, table.execution(), place),
        problems=problems,
        warnings=proposal.plan.notes,
    )


def probe_program(
    sweep: SweepSpec | Mapping[str, Any],
    *,
    results: str | Path = DEFAULT_RESULTS,
    device: str | None = None,
    steps: int = 1,
    by: str = "report",
    all_rows: bool = False,
    out: str | Path | None = None,
    watch: Callable[[SizeRow, int, int], None] | None = None,
) -> tuple[Path, list[ProbedRow]]:
    """Train each model of a table of sizes for some steps, and write what it reports to the table.

    Parameters
    ----------
    sweep : SweepSpec or Mapping
        With a program and a table of sizes.
    device : str, optional
        ``cpu`` or ``cuda``; default: ``cuda`` if there is a GPU.
    steps : int
        Optimizer steps; more than one measure the speed too.
    by : str
        Where N comes from: ``report`` or ``checkpoint``.
    all_rows : bool
        Whether to probe rows that have parameters too.
    out : str or Path, optional
        The CSV file to write; default: that of ``program.size.table``.
    watch : callable, optional
        Called with a row, its number and the number of rows before each run.

    Returns
    -------
    (Path, list of ProbedRow)
        The file, and what was measured.

    Raises
    ------
    UsageError
        If there is no table of sizes, or no file to write.
    RunsFailedError
        If a run fails or states no parameters.
    """
    from scalelab.launch.programs.probe import SOURCES, probe_rows, write_table
    from scalelab.launch.speed import default_device
    from scalelab.records.sweep_dir import Results

    spec, table = _with_program(sweep)
    if by not in SOURCES:
        raise UsageError(f"--by {by}", " or ".join(SOURCES), "Write --by report.")
    listed = table.size.table
    target = Path(out) if out is not None else None
    if target is None and isinstance(listed, str):
        target = table.path(listed)
    if target is None and table.size.by == "table":
        raise UsageError(
            "a probe of a table of sizes in the sweep file itself",
            "a CSV file to write",
            "Add for example --out sizes.csv, then write size.table = 'sizes.csv'.",
        )
    execution = spec.execution.request(device or default_device())
    probed = probe_rows(
        spec,
        table,
        replace(execution, program=table.execution()),
        Results(Path(results)),
        n_steps=steps,
        source=by,
        probes_all=all_rows,
        watch=watch or (lambda row, number, n_rows: None),
    )
    assert target is not None
    write_table(target, table.rows(), probed)
    return target, probed


def _with_program(sweep: SweepSpec | Mapping[str, Any]) -> tuple[SweepSpec, ProgramTable]:
    from scalelab.sweep.spec import sweep_from_mapping

    spec = sweep_from_mapping(sweep, source="the mapping") if isinstance(sweep, Mapping) else sweep
    if spec.program is None:
        raise UsageError(
            "a sweep without [program]",
            "a sweep file with the table [program]",
            "Add [program] with command = ['{python}', 'train.py', ..].",
        )
    return spec, spec.program
