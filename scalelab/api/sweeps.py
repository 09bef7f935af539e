"""The verbs that plan and launch: `plan`, `propose`, `launch`, `resume`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalelab.errors import DataError, UsageError

if TYPE_CHECKING:
    from scalelab.launch.base import LaunchReport, LaunchView
    from scalelab.launch.cancel import CancelReport
    from scalelab.launch.proposal import Proposal
    from scalelab.launch.slurm.preview import SlurmPreview
    from scalelab.records.sweep_dir import SavedPlan
    from scalelab.sweep.plan import Plan
    from scalelab.sweep.spec import SweepSpec

DEFAULT_RESULTS = Path("results")


def plan(sweep: SweepSpec | Mapping[str, Any], *, results: str | Path = DEFAULT_RESULTS) -> Plan:
    """Return the runs of a sweep; nothing is prepared or started.

    Parameters
    ----------
    sweep : SweepSpec or Mapping
        Such as ``{"kind": "isoflop", "budgets": "1e18..1e20"}``.
    results : str or Path
        The results folder.

    Raises
    ------
    UsageError
        When the axes cannot be a plan.
    """
    return propose(sweep, results=results, is_dry_run=True).plan


def propose(
    sweep: SweepSpec | Mapping[str, Any],
    *,
    results: str | Path = DEFAULT_RESULTS,
    device: str | None = None,
    workers: int | None = None,
    keep_weights: bool = False,
    is_dry_run: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Proposal:
    """Return a sweep's plan with what it costs; the text is prepared unless it is a dry run.

    Parameters
    ----------
    sweep : SweepSpec or Mapping
        What to run.
    results : str or Path
        The results folder.
    device : str, optional
        ``cpu`` or ``cuda``; default ``cuda`` where there is one.
    workers : int, optional
        Runs at once; default one a core, or one a GPU.
    keep_weights : bool
        Whether each run's last checkpoint is kept.
    is_dry_run : bool
        Whether to estimate the text from its files and leave the speed unmeasured.
    progress : callable, optional
        Told how the preparation of the text goes on.

    Raises
    ------
    UsageError, DataError
        As `scalelab.launch.proposal.propose`.
    """
    from scalelab.launch.proposal import default_execution
    from scalelab.launch.proposal import propose as propose_sweep
    from scalelab.launch.speed import default_workers, slurm_speed
    from scalelab.records.sweep_dir import Results
    from scalelab.sweep.spec import SweepSpec, sweep_from_mapping
    from scalelab.tune.rule import with_tuned_rule

    if not isinstance(sweep, SweepSpec):
        sweep = sweep_from_mapping(sweep, source="the mapping")
    sweep = with_tuned_rule(sweep, Results(Path(results)))
    table = sweep.launcher.slurm
    is_local = sweep.launcher.name == "local"
    if not is_local:
        device = device or ("cuda" if table.gpus_per_run else "cpu")
    execution = default_execution(device=device, keeps_weights=keep_weights)
    room = default_workers(execution.device) if is_local else table.array_parallelism
    return propose_sweep(
        sweep,
        Results(Path(results)),
        execution=execution,
        n_workers=workers or room,
        is_dry_run=is_dry_run,
        progress=progress,
        speed=None if is_local else slurm_speed(table, execution),
    )


def preview(proposal: Proposal, *, results: str | Path = DEFAULT_RESULTS) -> SlurmPreview | None:
    """Return what a proposal would submit to SLURM, None when it runs on this machine.

    The caps hold for both.

    Parameters
    ----------
    proposal : Proposal
        From `propose`.
    results : str or Path
        The results folder.

    Raises
    ------
    UsageError
        When it would pass a cap.
    """
    if proposal.sweep.launcher.name == "local":
        from scalelab.launch.caps import refuse_over_cap

        refuse_over_cap(
            proposal.sweep.launcher.slurm,
            0.0,
            sum(proposal.cost.run_seconds) / 3600,
            proposal.cost.speed.usd_per_worker_hour,
            is_gpu=proposal.execution.device == "cuda",
        )
        return None
    from scalelab.launch.slurm.preview import preview_slurm
    from scalelab.records.sweep_dir import Results

    return preview_slurm(proposal, Results(Path(results)))


def launch(
    proposal: Proposal,
    *,
    results: str | Path = DEFAULT_RESULTS,
    extend: bool = False,
    detach: bool = False,
    watch: Callable[[LaunchView], None] | None = None,
) -> LaunchReport:
    """Bring the runs of a proposal to their end, and collect their results.

    Parameters
    ----------
    proposal : Proposal
        From `propose` without ``is_dry_run``.
    results : str or Path
        The results folder.
    extend : bool
        Whether the runs may be added to a sweep of that name with another specification.
    detach : bool
        Whether to leave once everything is submitted, on SLURM.
    watch : callable, optional
        Told what happens.
    """
    from scalelab.launch.execute import launch as launch_proposal
    from scalelab.records.sweep_dir import Results

    return launch_proposal(
        proposal, Results(Path(results)), watch or _ignore, extend=extend, is_detached=detach
    )


def resume(
    name: str | None = None,
    *,
    results: str | Path = DEFAULT_RESULTS,
    device: str | None = None,
    workers: int | None = None,
    keep_weights: bool = False,
    retry_failed: bool = False,
    launch: Mapping[str, Any] | None = None,
    detach: bool = False,
    watch: Callable[[LaunchView], None] | None = None,
) -> LaunchReport:
    """Bring the runs of a sweep that are not finished to their end, and collect.

    Parameters
    ----------
    name : str, optional
        Of the sweep; default the latest.
    results, device, workers, keep_weights, watch
        As in `propose` and `launch`.
    retry_failed : bool
        Whether runs that failed are started again.
    launch : Mapping, optional
        Fields of ``[launcher]`` to change from now on.
    detach : bool
        Whether to leave once everything is submitted, on SLURM.
    """
    from scalelab.launch.execute import changed_launcher, save_launcher, saved_launcher
    from scalelab.launch.execute import resume as resume_sweep
    from scalelab.launch.proposal import default_execution
    from scalelab.launch.speed import default_workers
    from scalelab.records.sweep_dir import Results

    folder = Results(Path(results))
    saved = folder.load_plan(name or latest_sweep_name(results))
    launcher = saved_launcher(folder, saved.name)
    if launch:
        launcher = changed_launcher(launcher, launch)
        save_launcher(folder, saved.name, launcher)
    is_local = launcher.name == "local"
    if not is_local:
        device = device or ("cuda" if launcher.slurm.gpus_per_run else "cpu")
    execution = default_execution(device=device, keeps_weights=keep_weights)
    room = default_workers(execution.device) if is_local else launcher.slurm.array_parallelism
    return resume_sweep(
        saved,
        folder,
        watch or _ignore,
        execution=execution,
        n_workers=workers or room,
        retry_failed=retry_failed,
        is_detached=detach,
    )


def replace_diverged(
    name: str | None = None, *, lr_scale: float, results: str | Path = DEFAULT_RESULTS
) -> SavedPlan:
    """Add to a sweep a run for each diverged one, at a scaled learning rate and linked to the old.

    Parameters
    ----------
    name : str, optional
        Of the sweep; default the latest.
    lr_scale : float
        The new learning rate over the old, between 0 and 1.
    results : str or Path
        The results folder.

    Raises
    ------
    UsageError
        When nothing diverged, or the scale is no such number.
    """
    from scalelab.launch.replace_diverged import replace_diverged as replace_runs
    from scalelab.records.sweep_dir import Results

    folder = Results(Path(results))
    return replace_runs(folder, folder.load_plan(name or latest_sweep_name(results)), lr_scale)


def cancel(
    name: str | None = None,
    *,
    budget: str | float | None = None,
    runs: Sequence[str] | None = None,
    results: str | Path = DEFAULT_RESULTS,
) -> CancelReport:
    """Cancel a sweep, or only some of its runs; each leaves a checkpoint, and `resume` goes on.

    Parameters
    ----------
    name : str, optional
        Of the sweep; default the latest.
    budget : str or float, optional
        Only the runs of this budget.
    runs : sequence of str, optional
        Only these.
    results : str or Path
        The results folder.

    Raises
    ------
    UsageError
        When the sweep has no such budget or run.
    """
    from scalelab.launch.cancel import cancel_runs
    from scalelab.records.sweep_dir import Results
    from scalelab.units import format_flops, parse_quantity

    folder = Results(Path(results))
    saved = folder.load_plan(name or latest_sweep_name(results))
    chosen = list(saved.run_ids)
    if budget is not None:
        wanted = format_flops(parse_quantity(budget))
        labels = {r: format_flops(b) for r, b in saved.budgets.items() if b is not None}
        chosen = [run_id for run_id in chosen if labels.get(run_id) == wanted]
        if not chosen:
            raise UsageError(
                f"budget {budget}",
                f"one of {', '.join(dict.fromkeys(labels.values()))}"
                if labels
                else f"no budget: the runs of {saved.name!r} have none",
                "Name a budget of the sweep, or runs with --run.",
            )
    if runs:
        unknown = sorted(set(runs) - set(saved.run_ids))
        if unknown:
            raise UsageError(
                f"run {unknown[0]!r}, which sweep {saved.name!r} does not have",
                "the ids of its runs",
                "`scalelab status` lists them.",
            )
        chosen = [run_id for run_id in chosen if run_id in runs]
    return cancel_runs(folder, saved.name, chosen)


def launcher_of(name: str | None = None, *, results: str | Path = DEFAULT_RESULTS) -> str:
    """Return where a sweep was last launched, ``local`` or ``slurm``.

    Parameters
    ----------
    name : str, optional
        Of the sweep; default the latest.
    results : str or Path
        The results folder.

    Raises
    ------
    DataError
        When there is no such sweep.
    """
    from scalelab.launch.execute import saved_launcher
    from scalelab.records.sweep_dir import Results

    folder = Results(Path(results))
    saved = folder.load_plan(name or latest_sweep_name(results))
    return saved_launcher(folder, saved.name).name


def latest_sweep_name(results: str | Path = DEFAULT_RESULTS) -> str:
    """Return the name of the sweep that was created last.

    Raises
    ------
    DataError
        When the results folder has none.
    """
    from scalelab.records.sweep_dir import Results

    names = Results(Path(results)).sweep_names()
    if not names:
        raise DataError(
            f"no sweep in {results}",
            "a results folder in which a sweep was launched",
            "Launch one with `scalelab sweep`, or name the folder with --results.",
        )
    return names[0]


def _ignore(view: LaunchView) -> None:
    """Watch nothing."""
