"""The launch of a sweep, common to all kinds: plan, confirmation, runs, result."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalelab.cli.new_scores import Scored, new_scores, print_scores, scored_pairs, scores_as_json
from scalelab.cli.options import LaunchOptions, MachineOptions
from scalelab.cli.spec_options import SpecValues
from scalelab.cli.sweep_spec import ask, refuse_slurm_only
from scalelab.errors import EXIT_INTERRUPTED, EXIT_OK, RunsFailedError

if TYPE_CHECKING:
    from scalelab.launch.base import LaunchReport
    from scalelab.launch.slurm.preview import ArrayPreview, SlurmPreview
    from scalelab.sweep.spec import SweepSpec


def launch_sweep(
    sweep: SweepSpec, options: LaunchOptions, *, lr_check: bool = False, design: str = "plain"
) -> int:
    """Show a sweep's plan, ask, launch it, check its learning rates, and return the exit code."""
    from scalelab.api import sweeps as api
    from scalelab.api.adaptive import propose_design
    from scalelab.cli.plan_view import plan_as_json, print_plan
    from scalelab.cli.progress import preparing, watching
    from scalelab.records.names import check_name

    results, as_json = options.results, options.as_json
    check_name(sweep.default_name(), what="sweep")
    if sweep.launcher.name == "local":
        refuse_slurm_only(SpecValues(), detach=options.detach)
    if lr_check:
        from scalelab.tune.lr_check import refuse_without_budgets

        refuse_without_budgets(sweep)
    with preparing() as progress:
        proposal, gain = propose_design(
            sweep,
            design,
            results=results,
            device=options.device,
            workers=options.workers,
            keep_weights=options.keep_weights,
            is_dry_run=options.dry_run,
            is_plan_only=options.plan_only,
            progress=progress,
            allow_source_change=options.allow_source_change,
        )
    preview = api.preview(proposal, results=results)
    extra = {} if gain is None else {"design": dataclasses.asdict(gain)}
    if not as_json:
        n_jobs = None if preview is None else preview.n_running
        print_plan(proposal, n_jobs, is_wide=options.wide)
        if gain is not None:
            from scalelab.cli.adaptive_view import print_gain

            print_gain(gain)
        if preview is not None:
            _print_preview(preview, with_script=options.dry_run)
    if options.dry_run:
        if as_json:
            from scalelab.cli.output import emit_json

            jobs = {} if preview is None else {"slurm": dataclasses.asdict(preview)}
            emit_json({**plan_as_json(proposal), **extra, **jobs, "dry_run": True})
        return EXIT_OK
    if options.plan_only:
        saved = api.save_plan(proposal, results=results, extend=options.extend)
        if as_json:
            from scalelab.cli.output import emit_json

            emit_json({**plan_as_json(proposal), **extra, "plan_only": True})
        else:
            _print_saved(saved.name, options)
        return EXIT_OK
    if not options.yes:
        ask(proposal, as_json=as_json)
    scored = scored_pairs(results)
    try:
        with watching(results, as_json=as_json) as watch:
            report = api.launch(
                proposal, results=results, extend=options.extend, detach=options.detach, watch=watch
            )
    except KeyboardInterrupt:
        _say_how_to_continue(proposal.plan.name, results)
        raise
    plan = {**plan_as_json(proposal), **extra}
    has_check = lr_check and not options.detach and not report.is_interrupted
    if not has_check or not report.count("done"):
        return show_end(proposal.plan.name, report, options=options, scored=scored, plan=plan)
    from scalelab.api.tuning import check_lr
    from scalelab.cli.lr_check_view import print_verdicts, verdicts_as_json

    with watching(results, as_json=as_json) as watch:
        verdicts = check_lr(proposal, results=results, watch=watch)[1]
    plan["lr_check"] = verdicts_as_json(verdicts)
    code = show_end(proposal.plan.name, report, options=options, scored=scored, plan=plan)
    if not as_json:
        print_verdicts(verdicts)
    return code


def _say_how_to_continue(name: str, results: Path) -> None:
    """Name the command that continues a sweep which was stopped before its first run started."""
    from scalelab.cli.output import console, runnable
    from scalelab.records.sweep_dir import Results

    if name in Results(results).sweep_names():
        words = runnable(f"Stopped. To continue, run `scalelab resume {name}`.")
        console(stderr=True).print(words, soft_wrap=True)


def show_end(
    name: str,
    report: LaunchReport,
    *,
    options: MachineOptions,
    scored: Scored,
    plan: dict[str, Any] | None = None,
) -> int:
    """Print how the launch ended and what to do next, and return the exit code.

    ``scored`` are the scores of registered forecasts before the launch.
    """
    from scalelab.cli.output import console, emit_json, runnable
    from scalelab.records.sweep_dir import Results, fit_command
    from scalelab.units import format_duration, plural

    counts = {status: report.count(status) for status in dict.fromkeys(report.statuses.values())}
    n_failed = counts.get("failed", 0)
    scores = new_scores(options.results, scored)
    if options.as_json:
        status = "interrupted" if report.is_interrupted else "failed" if n_failed else "ok"
        emit_json(
            {
                **(plan or {"schema": 1, "command": "resume", "name": name}),
                "status": status,
                "counts": counts,
                "n_started": report.n_started,
                "wall_s": report.wall_s,
                "forecast": report.forecast or None,
                "scores": scores_as_json(scores),
            }
        )
    else:
        words = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
        out = console()
        out.print(f"{name}: {words}, in {format_duration(report.wall_s)}.", soft_wrap=True)
        if report.forecast:
            out.print(report.forecast, soft_wrap=True)
        print_scores(scores)
        if report.is_interrupted or counts.get("cancelled"):
            resume = runnable(f"`scalelab resume {name}`")
            out.print(f"Stopped. To continue, run {resume}.", soft_wrap=True)
        elif counts.get("diverged"):
            out.print(
                runnable(
                    "Fits exclude diverged runs. To train them at half the learning rate: "
                    f"`scalelab retry {name} --status diverged --lr-scale 0.5`."
                ),
                soft_wrap=True,
            )
        if counts.get("pruned"):
            out.print(
                runnable(
                    f"{plural(counts['pruned'], 'run')} stopped as hopeless; fits leave them out. "
                    f"To train them to their end: `scalelab retry {name} --status pruned`."
                ),
                soft_wrap=True,
            )
        if not report.is_interrupted and counts.get("done"):
            kind = Results(Path(options.results)).load_plan(name).kind
            out.print(runnable(f"Next: {fit_command(name, kind)}"), soft_wrap=True)
    if report.is_interrupted:
        return EXIT_INTERRUPTED
    if n_failed:
        if not options.as_json:
            console(stderr=True).print(
                runnable(
                    f"{plural(n_failed, 'run')} failed. See the reasons with `scalelab status "
                    f"{name}` and `scalelab logs RUN`. Fix them, then run `scalelab retry {name}`."
                ),
                style="bold red",
                soft_wrap=True,
            )
        return RunsFailedError.exit_code
    return EXIT_OK


def _print_saved(name: str, options: LaunchOptions) -> None:
    """Print what to do with a plan that was saved only."""
    from scalelab.cli.output import console, runnable

    resume = runnable(f"`scalelab resume {name}`")
    console().print(
        f"Saved, not started. Train here with {resume}, or copy {options.results} and train "
        f"there with `python -m scalelab.launch.folders {options.results} --sweep {name}`.",
        soft_wrap=True,
    )


def _print_preview(preview: SlurmPreview, *, with_script: bool) -> None:
    """Print the jobs that would be submitted, and the batch script of each array."""
    from scalelab.cli.output import console, verbatim
    from scalelab.units import format_money, plural

    out = console()
    out.print(
        f"jobs: {plural(preview.n_jobs, 'job')} in {plural(preview.n_arrays, 'array')}, at "
        f"most {preview.n_running} at once; {_hours(preview.gpu_hours)}"
        f"{'' if preview.usd is None else f', {format_money(preview.usd)}'}",
        soft_wrap=True,
    )
    if preview.site_check:
        out.print(f"site options: {preview.site_check}", soft_wrap=True)
    if len(preview.arrays) > 1 or with_script:
        for array in preview.arrays:
            out.print(_array_line(array), soft_wrap=True)
            if with_script:
                verbatim(array.script, out)


def _array_line(array: ArrayPreview) -> str:
    """Return what an array requests, in words."""
    from scalelab.units import format_duration, plural

    gpus = plural(array.gpus, "GPU") if array.gpus else "the CPU"
    memory = ""
    if array.memory_gb is not None:
        amount = f"{array.memory_gb:g} GB" if array.memory_gb else "all memory"
        memory = f", {amount} a node"
    return (
        f"array: {plural(array.n_runs, 'run')} in {plural(array.n_jobs, 'job')} on {gpus} each, at "
        f"most {array.n_running} at once; limit {format_duration(60 * array.time_min)}{memory}; "
        f"{_hours(array.gpu_hours)}"
    )


def _hours(gpu_hours: float | None) -> str:
    return "unknown GPU-hours" if gpu_hours is None else f"{gpu_hours:,.3g} GPU-hours"
