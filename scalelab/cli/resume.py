"""``scalelab resume``, ``retry`` and ``cancel``: a sweep that was launched before."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from scalelab.cli.options import (
    DEFAULT_RESULTS,
    DeviceOption,
    JsonOption,
    KeepWeightsOption,
    ResultsOption,
    WorkersOption,
    checked_device,
)
from scalelab.cli.slurm_options import DetachOption, refuse_slurm_only, with_slurm_options
from scalelab.cli.sweep_launch import show_end
from scalelab.errors import EXIT_OK, UsageError

SweepArgument = Annotated[
    str | None, typer.Argument(help="Name; default the latest sweep.", metavar="[SWEEP]")
]


@with_slurm_options
def resume(
    sweep: SweepArgument = None,
    device: DeviceOption = None,
    workers: WorkersOption = None,
    keep_weights: KeepWeightsOption = False,
    detach: DetachOption = False,
    results: ResultsOption = DEFAULT_RESULTS,
    as_json: JsonOption = False,
    *,
    launch: dict[str, Any],
) -> int:
    """Finish a sweep that was stopped: what is done is kept, what is missing goes on.

    Example: scalelab resume demo
    """
    _refuse_what_means_nothing(sweep, results, launch, detach=detach)
    return _continue(
        sweep,
        results,
        as_json=as_json,
        device=checked_device(device),
        workers=workers,
        keep_weights=keep_weights,
        detach=detach,
        launch=launch,
    )


@with_slurm_options
def retry(
    sweep: SweepArgument = None,
    status: Annotated[
        str, typer.Option("--status", help="failed, or diverged: new runs at a lower rate.")
    ] = "failed",
    lr_scale: Annotated[
        float | None, typer.Option("--lr-scale", help="What the new runs' rate is times the old.")
    ] = None,
    device: DeviceOption = None,
    workers: WorkersOption = None,
    keep_weights: KeepWeightsOption = False,
    detach: DetachOption = False,
    results: ResultsOption = DEFAULT_RESULTS,
    as_json: JsonOption = False,
    *,
    launch: dict[str, Any],
) -> int:
    """Start the failed runs of a sweep again, and whatever else is missing.

    Example: scalelab retry demo --status diverged --lr-scale 0.5
    """
    from scalelab.api import sweeps as api

    if status not in ("failed", "diverged"):
        raise UsageError(f"--status {status}", "failed or diverged", "Choose one of the two.")
    if (status == "diverged") != (lr_scale is not None):
        raise UsageError(
            f"--status {status} {'without' if lr_scale is None else 'with'} --lr-scale",
            "--status failed, or --status diverged with --lr-scale",
            "A diverged run diverges again as it is; scale its rate, for instance by 0.5.",
        )
    _refuse_what_means_nothing(sweep, results, launch, detach=detach)
    if lr_scale is not None:
        api.replace_diverged(sweep, lr_scale=lr_scale, results=results)
    return _continue(
        sweep,
        results,
        as_json=as_json,
        device=checked_device(device),
        workers=workers,
        keep_weights=keep_weights,
        retry_failed=status == "failed",
        detach=detach,
        launch=launch,
    )


def cancel(
    sweep: SweepArgument = None,
    budget: Annotated[
        str | None, typer.Option("--budget", help="Only the runs of this budget, such as 1e18.")
    ] = None,
    run: Annotated[
        list[str] | None, typer.Option("--run", help="Only this run; repeatable.")
    ] = None,
    results: ResultsOption = DEFAULT_RESULTS,
    as_json: JsonOption = False,
) -> int:
    """Stop runs of a sweep, each after a checkpoint; `resume` takes them up again.

    Example: scalelab cancel demo --budget 1e18
    """
    from scalelab.api import sweeps as api
    from scalelab.cli.output import console, emit_json

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
    out.print(f"{len(report.run_ids)} runs cancelled, {report.n_jobs} jobs out of the queue.")
    if not report.is_queue_known:
        out.print("SLURM does not answer: the jobs will stop by themselves when they look.")
    return EXIT_OK


def _refuse_what_means_nothing(
    name: str | None, results: Path, launch: dict[str, Any], *, detach: bool
) -> None:
    """Raise when options were given that the sweep's launcher has no use for."""
    from scalelab.api import sweeps as api

    if (launch or detach) and api.launcher_of(name, results=results) == "local":
        refuse_slurm_only(launch, detach=detach)


def _continue(name: str | None, results: Path, *, as_json: bool, **options: Any) -> int:
    from scalelab.api import sweeps as api
    from scalelab.cli.progress import watching

    with watching(results, as_json=as_json) as watch:
        report = api.resume(name, results=results, watch=watch, **options)
    return show_end(name or api.latest_sweep_name(results), report, as_json=as_json)
