"""From a sweep specification to a proposal: plan, cost, and the runs that are already finished.

A dry run does not prepare the text and does not need the trainer: it estimates the size of the text
from its files and uses the cached speed of this machine, if there is one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from scalelab.errors import UsageError
from scalelab.launch.devices import gpu_names
from scalelab.launch.executable import require_executable
from scalelab.launch.programs.plan import (
    UNKNOWN,
    has_prepared_text,
    identity_of,
    program_facts,
    program_notes,
)
from scalelab.launch.programs.ready import (
    RenderedRun,
    place_problems,
    planned_place,
    render_problems,
    require_format,
    shown_runs,
)
from scalelab.launch.programs.source import saved_version
from scalelab.launch.programs.speed import (
    learned_rates,
    program_speed,
    sweep_run_ids,
    table_rates,
)
from scalelab.launch.slurm.resources import run_gpus
from scalelab.launch.speed import machine_speed, speed_for, with_devices
from scalelab.launch.text_facts import Progress, text_facts
from scalelab.launch.trackers import require_installed
from scalelab.launch.verdicts import Verdict, local_verdict, taken_execution
from scalelab.records.states import FINAL, PRUNED
from scalelab.records.sweep_dir import Results
from scalelab.sweep.cost import PlanCost, Speed, plan_cost
from scalelab.sweep.execution import ExecutionSpec, default_precision, planned_execution
from scalelab.sweep.largest import largest_runs
from scalelab.sweep.plan import Plan, make_plan
from scalelab.sweep.planned_run import PlannedRun
from scalelab.sweep.precision import require_precision
from scalelab.sweep.program_render import Place, rendered
from scalelab.sweep.program_table import ProgramTable
from scalelab.sweep.run_spec import PRECISIONS, RunSpec
from scalelab.sweep.spec import SweepSpec
from scalelab.sweep.speeds import compared_speeds

NOT_TRAINED = (*FINAL, PRUNED)
ASK_ABOVE_S = 3600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Proposal:
    """A planned sweep and its cost.

    Attributes
    ----------
    sweep : SweepSpec
        The specification.
    plan : Plan
        The runs.
    cost : PlanCost
        Cost of the unfinished runs on this machine.
    elsewhere : tuple of PlanCost
        Cost on one device of several named types, at the stated utilisation.
    execution : ExecutionSpec
        How the runs are executed, as requested.
    finished : frozenset of str
        run_ids that a launch does not train: with an accepted record, or pruned.
    verdict : Mapping or None
        What qualification found out about this machine's GPU; None for another device, or if
        nothing is known.
    gpus : Mapping[str, int]
        GPUs of each run by run_id on SLURM; empty on this machine.
    commands : tuple of RenderedRun
        Commands of the smallest, the middle and the largest run of a program.
    allows_source_change : bool
        Whether a program may train runs that were planned with another version of its files.
    """

    sweep: SweepSpec
    plan: Plan
    cost: PlanCost
    elsewhere: tuple[PlanCost, ...]
    execution: ExecutionSpec
    finished: frozenset[str]
    verdict: Verdict | None = None
    gpus: Mapping[str, int] = field(default_factory=dict)
    commands: tuple[RenderedRun, ...] = ()
    allows_source_change: bool = False

    def execution_of(self, spec: RunSpec) -> ExecutionSpec:
        """Return the requested execution of a run, on its own number of devices."""
        n_gpus = self.gpus.get(spec.run_id, self.execution.n_devices)
        return replace(self.execution, n_devices=max(1, n_gpus))

    def taken(self) -> tuple[ExecutionSpec, ...] | None:
        """Return the ways that earlier verdicts take for the runs, each once; None if unknown."""
        found = [taken_execution(self.execution, r.spec, self.verdict) for r in self.plan.rows]
        known = [way for way in found if way is not None]
        return tuple(dict.fromkeys(known)) if found and len(known) == len(found) else None

    def largest(self) -> tuple[PlannedRun, ...]:
        """Return the runs that `largest_last` trains after all others; empty without the option."""
        last = _largest(self.sweep, self.plan)
        return tuple(row for row in self.plan.rows if row.spec.run_id in last)

    def planned(self) -> tuple[ExecutionSpec, ...]:
        """Return the ways in which the runs are expected to be executed, each once."""
        ways = (planned_execution(self.execution_of(row.spec), row.spec) for row in self.plan.rows)
        return tuple(dict.fromkeys(ways))


def propose(
    sweep: SweepSpec,
    results: Results,
    *,
    execution: ExecutionSpec,
    n_workers: int,
    is_dry_run: bool,
    progress: Progress | None = None,
    speed: Speed | None = None,
    is_elsewhere: bool = False,
    allow_source_change: bool = False,
    keep_problems: bool = False,
) -> Proposal:
    """Return the proposal of a sweep.

    Parameters
    ----------
    sweep : SweepSpec
    results : Results
    execution : ExecutionSpec
        How runs are executed, as requested; its device sets the precision if the sweep does not.
    n_workers : int
        Runs at once.
    is_dry_run : bool
        Whether to estimate the size of the text and skip speed measurements.
    progress : callable, optional
        Called during the preparation of the text.
    speed : Speed, optional
        Speed for the cost if the runs are executed elsewhere.
    is_elsewhere : bool
        Whether a program need not exist on this machine.
    allow_source_change : bool
        Whether a saved sweep keeps the version of its program for which it was planned.
    keep_problems : bool
        Whether to return a program's proposal whose commands have problems (`program_problems`).

    Raises
    ------
    UsageError
        If the axes do not make a plan, a tracker is not installed, or the runs cannot be executed
        as requested.
    DataError
        If the text cannot be used.
    """
    require_installed(sweep.launcher.trackers)
    table, program = sweep.program, None
    facts = None
    if table is None or has_prepared_text(table):
        facts = text_facts(sweep, results, is_dry_run=is_dry_run, progress=progress)
    precision = sweep.train.precision or default_precision(execution.device)
    if table is not None:
        require_format(table)
        version = saved_version(results, sweep.default_name()) if allow_source_change else ""
        program = identity_of(
            table, results.path, version=version, is_dry_run=is_dry_run or is_elsewhere
        )
        facts, precision = program_facts(table, facts), PRECISIONS[0]
        if program.version == UNKNOWN:
            facts = replace(facts, is_estimated=True)
    assert facts is not None
    plan = make_plan(sweep, facts, precision=precision, program=program)
    is_local = sweep.launcher.name == "local"
    verdict = None
    if table is None:
        verdict = local_verdict(results, execution) if is_local else None
        require_executable(execution, [row.spec for row in plan.rows], verdict)
        # Another machine's GPUs are not known here; its workers check their own.
        names = gpu_names() if is_local else ()
        for row in plan.rows:
            require_precision(row.spec, execution.device, names)
    if table is not None:
        base = speed or machine_speed(execution, n_workers, precision=precision)
        ids = sweep_run_ids(results, plan.name)
        learned = learned_rates(results, ids, table.command)
        speed = program_speed(base, table.tokens_per_s, table_rates(table), learned)
    if speed is None:
        speed = (
            machine_speed(execution, n_workers, precision=precision)
            if is_dry_run
            else speed_for(plan, execution, n_workers)
        )
    gpus: dict[str, int] = {}
    if not is_local:
        slurm, budgets = sweep.launcher.slurm, {r.spec.run_id: r.budget_flops for r in plan.rows}
        gpus = run_gpus(slurm, [row.spec for row in plan.rows], budgets)
        speed = with_devices(speed, slurm, gpus)
    finished = frozenset(
        row.spec.run_id
        for row in plan.rows
        if not facts.is_estimated and results.run(row.spec.run_id).status() in NOT_TRAINED
    )
    last = _largest(sweep, plan)
    if sweep.launcher.largest_last and len(last) == len({r.spec.run_id for r in plan.rows}):
        raise UsageError(
            "--largest-last for a sweep of one budget",
            "a sweep with smaller budgets, from which the largest is forecast",
            "Add budgets, for example --budgets 1e17..1e18:3, or remove --largest-last.",
        )
    cost, *elsewhere = (
        plan_cost(plan, each, skip=finished, largest=last) for each in (speed, *compared_speeds())
    )
    proposal = Proposal(
        sweep=sweep,
        plan=plan,
        cost=cost,
        elsewhere=tuple(elsewhere),
        execution=execution,
        finished=finished,
        verdict=verdict,
        gpus=gpus,
        allows_source_change=allow_source_change,
    )
    if table is None:
        return proposal
    return _with_commands(
        proposal,
        table,
        results,
        is_dry_run=is_dry_run or is_elsewhere,
        is_checked=not keep_problems,
    )


def program_problems(proposal: Proposal, results: Results) -> tuple[UsageError, ...]:
    """Return what a launch of a program would refuse: its commands, and what is missing here."""
    table = proposal.sweep.program
    if table is None:
        return ()
    places = {row.spec.run_id: _place(proposal, row, results) for row in proposal.plan.rows}
    found = render_problems(proposal.plan.rows, places, table.execution())
    is_prepared = has_prepared_text(table)
    return (*found, *place_problems(table, proposal.commands, is_prepared=is_prepared))


def _with_commands(
    proposal: Proposal, table: ProgramTable, results: Results, *, is_dry_run: bool, is_checked: bool
) -> Proposal:
    """Return the proposal of a program with its commands and warnings.

    Raises
    ------
    UsageError
        If ``is_checked`` and a command cannot be rendered, two runs have the same, or, unless in a
        dry run, something is missing on this machine.
    """
    execution, commands = table.execution(), []
    for row in shown_runs(proposal.plan.rows):
        # Problems are said below, all together.
        with contextlib.suppress(UsageError):
            made = rendered(row.spec, execution, _place(proposal, row, results))
            commands.append(RenderedRun(row, made))
    plan = replace(proposal.plan, notes=program_notes(proposal.sweep, table))
    proposal = replace(proposal, plan=plan, commands=tuple(commands))
    problems = program_problems(proposal, results) if is_checked else ()
    is_here = len(commands) == len(shown_runs(plan.rows))
    missing = place_problems(table, commands, is_prepared=has_prepared_text(table))
    own = [each for each in problems if str(each) not in {str(other) for other in missing}]
    if own or (problems and not is_dry_run):
        raise (own or list(problems))[0]
    if not is_checked or not is_here:
        return proposal
    notes = (*plan.notes, *(f"a launch will fail: {each}" for each in missing))
    return replace(proposal, plan=replace(plan, notes=notes))


def _place(proposal: Proposal, row: PlannedRun, results: Results) -> Place:
    launcher = proposal.sweep.launcher
    return planned_place(
        row.spec,
        proposal.execution_of(row.spec),
        sweep=proposal.plan.name,
        results=results.path.absolute(),
        gpus_per_node=0 if launcher.name == "local" else launcher.slurm.gpus_per_node,
    )


def _largest(sweep: SweepSpec, plan: Plan) -> frozenset[str]:
    if not sweep.launcher.largest_last:
        return frozenset()
    return largest_runs(
        {row.spec.run_id: row.budget_flops for row in plan.rows},
        {row.spec.run_id: row.flops for row in plan.rows},
    )
