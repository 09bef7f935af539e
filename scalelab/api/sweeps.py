"""The verbs that plan and run sweeps: `plan`, `propose`, `launch`, `resume`.

``results`` is always the results folder, and ``name`` a sweep in it, by default the latest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalelab.api.data import DEFAULT_RESULTS
from scalelab.api.saved_sweeps import saved_sweep
from scalelab.errors import UsageError

if TYPE_CHECKING:
    from scalelab.api.sweep_reports import LaunchReport, Plan, Proposal
    from scalelab.launch import proposal as proposals
    from scalelab.launch.base import LaunchView, Watcher
    from scalelab.launch.slurm.preview import SlurmPreview
    from scalelab.records.sweep_dir import SavedPlan
    from scalelab.sweep.execution import ExecutionSpec
    from scalelab.sweep.spec import SweepSpec
    from scalelab.sweep.tables import ExecutionTable, LauncherTable


def plan(sweep: SweepSpec | Mapping[str, Any], *, results: str | Path = DEFAULT_RESULTS) -> Plan:
    """Return the runs of a sweep; nothing is prepared or started.

    Parameters
    ----------
    sweep : SweepSpec or Mapping
        For example ``{"kind": "isoflop", "budgets": "1e18..1e20"}``.

    Raises
    ------
    UsageError
        If the sweep is invalid.
    """
    from scalelab.api.sweep_reports import Plan

    return Plan.of(propose(sweep, results=results, is_dry_run=True).plan)


def propose(
    sweep: SweepSpec | Mapping[str, Any],
    *,
    results: str | Path = DEFAULT_RESULTS,
    device: str | None = None,
    workers: int | None = None,
    keep_weights: bool = False,
    is_dry_run: bool = False,
    is_plan_only: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
    allow_source_change: bool = False,
    keep_problems: bool = False,
) -> Proposal:
    """Return the plan of a sweep with its cost. The data is prepared unless it is a dry run.

    Parameters
    ----------
    sweep : SweepSpec or Mapping
        What to run.
    device : str, optional
        ``cpu`` or ``cuda``; default: ``cuda`` if there is a GPU.
    workers : int, optional
        Runs at the same time; default: one per core, or one per GPU.
    keep_weights : bool
        Whether to keep the last checkpoint of each run.
    is_dry_run : bool
        Whether to estimate the tokens from file sizes and not measure the speed.
    is_plan_only : bool
        Whether the runs are to be trained on another machine: the device need not exist here, and
        the cost is that of the GPU of ``[launcher.slurm]``.
    progress : callable, optional
        Receives the progress of data preparation.
    allow_source_change : bool
        Whether a saved sweep of that name continues with the version of its program for which it
        was planned, although the program's files have changed.
    keep_problems : bool
        As in `check_program`: whether problems of a program's commands are no errors.

    Raises
    ------
    UsageError, DataError
        For a sweep, a text or a device that cannot be used.
    """
    from dataclasses import replace

    from scalelab.api.sweep_reports import Proposal
    from scalelab.launch.proposal import propose as propose_sweep
    from scalelab.launch.speed import slurm_speed
    from scalelab.records.sweep_dir import Results
    from scalelab.sweep.spec import SweepSpec, sweep_from_mapping
    from scalelab.tune.noise import with_noise_rule
    from scalelab.tune.rule import with_tuned_rule

    if isinstance(sweep, Mapping):
        sweep = sweep_from_mapping(sweep, source="the mapping")
    if not isinstance(sweep, SweepSpec):
        raise UsageError(
            f"a sweep of type {type(sweep).__name__}",
            "a dict of its options, or a SweepSpec",
            'Write plan({"kind": "isoflop", "budgets": "1e18..1e20"}).',
        )
    sweep = with_noise_rule(with_tuned_rule(sweep, Results(Path(results))), Results(Path(results)))
    execution, n_workers = _execution(
        sweep.execution, sweep.launcher, device, workers, keep_weights, is_plan_only=is_plan_only
    )
    if sweep.program is not None:
        execution = replace(execution, program=sweep.program.execution())
    speed = None
    if is_plan_only or sweep.launcher.name != "local":
        slurm = sweep.launcher.slurm
        if is_plan_only:
            slurm = slurm.model_copy(update={"array_parallelism": n_workers})
        speed = slurm_speed(slurm, execution)
    return Proposal.of(
        propose_sweep(
            sweep,
            Results(Path(results)),
            execution=execution,
            n_workers=n_workers,
            is_dry_run=is_dry_run,
            progress=progress,
            speed=speed,
            is_elsewhere=is_plan_only,
            allow_source_change=allow_source_change,
            keep_problems=keep_problems,
        )
    )


def _execution(
    table: ExecutionTable,
    launcher: LauncherTable,
    device: str | None,
    workers: int | None,
    keep_weights: bool,
    *,
    is_plan_only: bool = False,
) -> tuple[ExecutionSpec, int]:
    """Return the request to execute the runs, and how many run at the same time."""
    from dataclasses import replace

    from scalelab.launch.speed import default_device, default_workers
    from scalelab.sweep.gpu_counts import gpu_numbers

    is_local = launcher.name == "local"
    if not is_local:
        device = device or ("cuda" if launcher.slurm.uses_gpus else "cpu")
    execution = table.request(device or default_device(), keeps_weights=keep_weights)
    if not is_local:
        n_devices = max(1, *gpu_numbers(launcher.slurm.gpus_per_run))
        execution = replace(
            execution, n_devices=n_devices, tensor_parallel=launcher.slurm.tensor_parallel
        )
    if is_plan_only:
        return execution, workers or 1
    room = default_workers(execution.device) if is_local else launcher.slurm.array_parallelism
    return execution, workers or room


def preview(
    proposal: proposals.Proposal, *, results: str | Path = DEFAULT_RESULTS
) -> SlurmPreview | None:
    """Return what a proposal would submit to SLURM, or None if it runs on this machine.

    The limits on GPU-hours apply to both.

    Parameters
    ----------
    proposal : Proposal
        From `propose`.

    Raises
    ------
    UsageError
        If it would exceed a limit.
    """
    if proposal.sweep.launcher.name == "local":
        from scalelab.launch.caps import refuse_over_cap

        refuse_over_cap(
            proposal.sweep.launcher.slurm,
            0.0,
            sum(proposal.cost.run_seconds) / 3600,
            proposal.cost.speed.usd_per_worker_hour,
            is_gpu=proposal.execution.device == "cuda",
            is_known=proposal.cost.speed.is_known,
        )
        return None
    from scalelab.launch.slurm.preview import preview_slurm
    from scalelab.records.sweep_dir import Results

    return preview_slurm(proposal, Results(Path(results)))


def save_plan(
    proposal: proposals.Proposal, *, results: str | Path = DEFAULT_RESULTS, extend: bool = False
) -> SavedPlan:
    """Save a proposal's plan, tokens and run folders, and train nothing.

    Parameters
    ----------
    proposal : Proposal
        From `propose` without ``is_dry_run``.
    extend : bool
        As in `launch`.
    """
    from scalelab.launch.execute import save
    from scalelab.records.sweep_dir import Results

    return save(proposal, Results(Path(results)), extend=extend)


def launch(
    proposal: proposals.Proposal,
    *,
    results: str | Path = DEFAULT_RESULTS,
    extend: bool = False,
    detach: bool = False,
    watch: Watcher | None = None,
) -> LaunchReport:
    """Run a proposal to its end and collect the results.

    Parameters
    ----------
    proposal : Proposal
        From `propose` without ``is_dry_run``.
    extend : bool
        Whether to add the runs to an existing sweep of that name with another specification.
    detach : bool
        SLURM: whether to return after submission.
    watch : callable, optional
        Receives a `LaunchView` after each change.
    """
    from scalelab.api.sweep_reports import LaunchReport
    from scalelab.launch.execute import launch as launch_proposal
    from scalelab.records.sweep_dir import Results

    report = launch_proposal(
        proposal, Results(Path(results)), watch or ignore, extend=extend, is_detached=detach
    )
    return LaunchReport.of(report)


def resume(
    name: str | None = None,
    *,
    results: str | Path = DEFAULT_RESULTS,
    device: str | None = None,
    workers: int | None = None,
    keep_weights: bool = False,
    retry_failed: bool = False,
    launch: Mapping[str, Any] | None = None,
    execution: Mapping[str, Any] | None = None,
    detach: bool = False,
    allow_source_change: bool = False,
    watch: Watcher | None = None,
) -> LaunchReport:
    """Run the unfinished runs of a sweep to their end and collect the results.

    Parameters
    ----------
    device, workers, keep_weights, detach, watch
        As in `propose` and `launch`.
    retry_failed : bool
        Whether to start failed runs again.
    launch : Mapping, optional
        Fields of ``[launcher]`` to change from now on.
    execution : Mapping, optional
        Fields of ``[execution]`` to change from now on. A run that has a checkpoint continues as
        it began.
    allow_source_change : bool
        Whether the program of the sweep may have changed since its runs were planned.
    """
    from dataclasses import replace

    from scalelab.api.sweep_reports import LaunchReport
    from scalelab.launch.execute import resume as resume_sweep
    from scalelab.launch.programs.source import saved_program
    from scalelab.launch.saved_options import changed_options, save_options, saved_options
    from scalelab.sweep.tables import ExecutionTable, LauncherTable

    folder, saved = saved_sweep(name, results)
    launcher = changed_options(saved_options(folder, saved.name, LauncherTable), launch or {})
    table = changed_options(saved_options(folder, saved.name, ExecutionTable), execution or {})
    if launch or execution:
        save_options(folder, saved.name, launcher, table)
    request, n_workers = _execution(table, launcher, device, workers, keep_weights)
    request = replace(request, program=saved_program(folder, saved.name))
    report = resume_sweep(
        saved,
        folder,
        watch or ignore,
        execution=request,
        n_workers=n_workers,
        retry_failed=retry_failed,
        is_detached=detach,
        allow_source_change=allow_source_change,
    )
    return LaunchReport.of(report)


def ignore(view: LaunchView) -> None:
    """Ignore the state of a launch."""
