"""``scalelab resume``, ``retry`` and ``cancel``: continue or stop a sweep launched before."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scalelab.cli.new_scores import scored_pairs
from scalelab.cli.options import DEFAULT_RESULTS, JsonOption, ResultsOption, ResumeOptions, option
from scalelab.cli.spec_options import SpecValues, spec_values, spread_options
from scalelab.cli.sweep_launch import show_end
from scalelab.cli.sweep_spec import SLURM, refuse_slurm_only, resume_changes
from scalelab.errors import EXIT_OK, UsageError, did_you_mean

SweepArgument = Annotated[
    str | None, typer.Argument(help="Name of the sweep; default the latest.", metavar="[SWEEP]")
]


@spread_options
def resume(context: typer.Context, options: ResumeOptions, sweep: SweepArgument = None) -> int:
    """Continue a stopped sweep.

    Finished runs are kept; the others resume from their checkpoints.

    Execution, launcher and SLURM options change those of the sweep from now on. A run with a
    checkpoint continues as it began.

    Example: scalelab resume demo
    """
    values = spec_values(context)
    _refuse_unused(sweep, values, options)
    return _continue(sweep, values, options)


@spread_options
def retry(
    context: typer.Context,
    options: ResumeOptions,
    sweep: SweepArgument = None,
    status: Annotated[
        str,
        option(
            "What to run",
            "failed: start failed runs again. diverged: replace diverged runs by new ones at "
            "a lower learning rate. pruned: continue the runs that --stop-hopeless stopped.",
            "--status",
        ),
    ] = "failed",
    lr_scale: Annotated[
        float | None,
        option(
            "What to run",
            "Learning rate of the new runs, relative to the diverged ones. Example: 0.5.",
            "--lr-scale",
        ),
    ] = None,
) -> int:
    """Start failed runs again and continue unfinished ones.

    Example: scalelab retry demo --status diverged --lr-scale 0.5
    """
    from scalelab.api import saved_sweeps as api
    from scalelab.records.states import PRUNED

    if status not in ("failed", "diverged", PRUNED):
        known = ("failed", "diverged", PRUNED)
        near = did_you_mean(status, known)
        raise UsageError(
            f"--status {status}", "failed, diverged or pruned", f"{near}Try --status failed."
        )
    if (status == "diverged") != (lr_scale is not None):
        raise UsageError(
            f"--status {status} {'without' if lr_scale is None else 'with'} --lr-scale",
            "--status diverged with --lr-scale, or another status without it",
            "At the same rate a diverged run diverges again. Try --status diverged --lr-scale 0.5.",
        )
    values = spec_values(context)
    _refuse_unused(sweep, values, options)
    if lr_scale is not None:
        api.replace_diverged(sweep, lr_scale=lr_scale, results=options.results)
    if status == PRUNED:
        api.keep_pruned(sweep, results=options.results)
    return _continue(sweep, values, options, retry_failed=status == "failed")


def cancel(
    sweep: SweepArgument = None,
    budget: Annotated[
        str | None, typer.Option("--budget", help="Only runs of this FLOP budget. Example: 1e18.")
    ] = None,
    run: Annotated[
        list[str] | None, typer.Option("--run", help="Only this run ID; repeatable.")
    ] = None,
    results: ResultsOption = DEFAULT_RESULTS,
    as_json: JsonOption = False,
) -> int:
    """Stop runs of a sweep after a checkpoint.

    `scalelab resume` continues them.

    Example: scalelab cancel demo --budget 1e18
    """
    from scalelab.api import saved_sweeps as api
    from scalelab.cli.output import console, emit_json
    from scalelab.units import plural

    report = api.cancel(sweep, budget=budget, runs=run, results=results)
    if as_json:
        emit_json(
            {
                "schema": 1,
                "command": "cancel",
                "run_ids": list(report.run_ids),
                "n_jobs": report.n_jobs,
                "is_queue_known": report.is_queue_known,
            }
        )
        return EXIT_OK
    out = console()
    out.print(
        f"{plural(len(report.run_ids), 'run')} cancelled, "
        f"{plural(report.n_jobs, 'job')} removed from the queue."
    )
    if not report.is_queue_known:
        out.print("SLURM does not respond; running jobs will see the cancellation and stop.")
    return EXIT_OK


def _refuse_unused(name: str | None, values: SpecValues, options: ResumeOptions) -> None:
    """Raise UsageError when SLURM flags were given for a sweep of the local launcher."""
    from scalelab.api import saved_sweeps as api

    is_slurm_only = options.detach or any(path[:2] == SLURM for path in values.flags)
    if is_slurm_only and api.launcher_of(name, results=options.results) == "local":
        refuse_slurm_only(values, detach=options.detach)


def _continue(
    name: str | None, values: SpecValues, options: ResumeOptions, *, retry_failed: bool = False
) -> int:
    from scalelab.api.saved_sweeps import latest_sweep_name
    from scalelab.api.sweeps import resume as resume_sweep
    from scalelab.cli.progress import watching

    results: Path = options.results
    changes = resume_changes(values)
    scored = scored_pairs(results)
    with watching(results, as_json=options.as_json) as watch:
        report = resume_sweep(
            name,
            results=results,
            device=options.device,
            workers=options.workers,
            keep_weights=options.keep_weights,
            retry_failed=retry_failed,
            launch=changes.get("launcher"),
            execution=changes.get("execution"),
            detach=options.detach,
            allow_source_change=options.allow_source_change,
            watch=watch,
        )
    sweep = name or latest_sweep_name(results)
    return show_end(sweep, report, options=options, scored=scored)
