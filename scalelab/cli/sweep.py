"""``scalelab sweep``: plan, show the cost, ask, launch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scalelab.cli.options import (
    DEFAULT_RESULTS,
    AllowRepeatsOption,
    BatchSeqsOption,
    ColumnOption,
    DataOption,
    DeviceOption,
    DryRunOption,
    EvalTokensOption,
    ExtendOption,
    FieldOption,
    JsonOption,
    KeepWeightsOption,
    LauncherOption,
    LrOption,
    LrRuleOption,
    NameOption,
    PrecisionOption,
    ResultsOption,
    ScheduleOption,
    SeedsOption,
    SeqLenOption,
    TokenizerOption,
    WorkersOption,
    YesOption,
    checked_device,
)
from scalelab.cli.slurm_options import (
    DetachOption,
    print_preview,
    with_launcher,
    with_slurm_options,
)
from scalelab.cli.sweep_spec import ask, data_table, sweep_from_options, train_table
from scalelab.errors import EXIT_INTERRUPTED, EXIT_OK, RunsFailedError

if TYPE_CHECKING:
    from scalelab.launch.base import LaunchReport
    from scalelab.sweep.spec import SweepSpec

app = typer.Typer(
    help="Plan runs, show what they cost, ask, launch. "
    "Example: scalelab sweep isoflop --budgets 1e18..1e20 --dry-run",
    no_args_is_help=True,
)


@app.command("isoflop")
@with_slurm_options
def isoflop(
    budgets: Annotated[
        str, typer.Option("--budgets", help="Training FLOPs: 1e18..1e20, 2e11..2e12:4, 1e18,3e18.")
    ],
    sizes: Annotated[int | None, typer.Option("--sizes", help="Models at each budget.")] = None,
    span: Annotated[
        float | None, typer.Option("--span", help="Largest over smallest model at a budget.")
    ] = None,
    tokens_per_param: Annotated[
        str | None,
        typer.Option("--tokens-per-param", help="D/N about which the sizes are spread."),
    ] = None,
    name: NameOption = None,
    launcher: LauncherOption = "local",
    data: DataOption = None,
    tokenizer: TokenizerOption = None,
    field: FieldOption = None,
    column: ColumnOption = None,
    eval_tokens: EvalTokensOption = None,
    seq_len: SeqLenOption = None,
    batch_seqs: BatchSeqsOption = None,
    lr: LrOption = None,
    lr_rule: LrRuleOption = None,
    schedule: ScheduleOption = None,
    precision: PrecisionOption = None,
    seeds: SeedsOption = None,
    allow_repeats: AllowRepeatsOption = False,
    extend: ExtendOption = False,
    keep_weights: KeepWeightsOption = False,
    device: DeviceOption = None,
    workers: WorkersOption = None,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    detach: DetachOption = False,
    results: ResultsOption = DEFAULT_RESULTS,
    as_json: JsonOption = False,
    *,
    launch: dict[str, Any],
) -> int:
    """Train several sizes at each compute budget: the valleys of Chinchilla's approach 2.

    Example: scalelab sweep isoflop --budgets 2e11..2e12:4 --sizes 6 --name demo --yes
    """
    content = {
        "kind": "isoflop",
        "name": name,
        "budgets": budgets,
        "sizes": sizes,
        "span": span,
        "tokens_per_param": tokens_per_param,
        "allow_repeats": allow_repeats,
        "data": data_table(data, tokenizer, field, column, eval_tokens),
        "train": train_table(seq_len, batch_seqs, lr, lr_rule, schedule, precision, seeds),
        "launcher": {"name": launcher, **launch},
    }
    return _sweep(
        sweep_from_options(content),
        results=results,
        device=device,
        workers=workers,
        keep_weights=keep_weights,
        extend=extend,
        dry_run=dry_run,
        yes=yes,
        detach=detach,
        as_json=as_json,
    )


@app.command("grid")
@with_slurm_options
def grid(
    n_params: Annotated[str, typer.Option("--n-params", help="Sizes N, such as 1M..10M:4.")],
    n_tokens: Annotated[str, typer.Option("--n-tokens", help="Tokens D, such as 20M..200M:3.")],
    name: NameOption = None,
    launcher: LauncherOption = "local",
    data: DataOption = None,
    tokenizer: TokenizerOption = None,
    field: FieldOption = None,
    column: ColumnOption = None,
    eval_tokens: EvalTokensOption = None,
    seq_len: SeqLenOption = None,
    batch_seqs: BatchSeqsOption = None,
    lr: LrOption = None,
    lr_rule: LrRuleOption = None,
    schedule: ScheduleOption = None,
    precision: PrecisionOption = None,
    seeds: SeedsOption = None,
    allow_repeats: AllowRepeatsOption = False,
    extend: ExtendOption = False,
    keep_weights: KeepWeightsOption = False,
    device: DeviceOption = None,
    workers: WorkersOption = None,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    detach: DetachOption = False,
    results: ResultsOption = DEFAULT_RESULTS,
    as_json: JsonOption = False,
    *,
    launch: dict[str, Any],
) -> int:
    """Train every size with every number of tokens.

    Example: scalelab sweep grid --n-params 50K..400K:4 --n-tokens 1M..8M:4 --dry-run
    """
    content = {
        "kind": "grid",
        "name": name,
        "n_params": n_params,
        "n_tokens": n_tokens,
        "allow_repeats": allow_repeats,
        "data": data_table(data, tokenizer, field, column, eval_tokens),
        "train": train_table(seq_len, batch_seqs, lr, lr_rule, schedule, precision, seeds),
        "launcher": {"name": launcher, **launch},
    }
    return _sweep(
        sweep_from_options(content),
        results=results,
        device=device,
        workers=workers,
        keep_weights=keep_weights,
        extend=extend,
        dry_run=dry_run,
        yes=yes,
        detach=detach,
        as_json=as_json,
    )


@app.command("run")
@with_slurm_options
def run_file(
    file: Annotated[Path, typer.Argument(help="A sweep file, such as sweeps/demo.toml.")],
    name: NameOption = None,
    launcher: Annotated[
        str | None, typer.Option("--launcher", help="local or slurm; default as in the file.")
    ] = None,
    extend: ExtendOption = False,
    keep_weights: KeepWeightsOption = False,
    device: DeviceOption = None,
    workers: WorkersOption = None,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    detach: DetachOption = False,
    results: ResultsOption = DEFAULT_RESULTS,
    as_json: JsonOption = False,
    *,
    launch: dict[str, Any],
) -> int:
    """Launch the sweep that a TOML file describes.

    Example: scalelab sweep run sweeps/smoke.toml --yes
    """
    from scalelab.sweep.spec import read_sweep_file

    sweep = read_sweep_file(file)
    if name is not None:
        sweep = sweep.model_copy(update={"name": name})
    return _sweep(
        with_launcher(sweep, launcher, launch),
        results=results,
        device=device,
        workers=workers,
        keep_weights=keep_weights,
        extend=extend,
        dry_run=dry_run,
        yes=yes,
        detach=detach,
        as_json=as_json,
    )


def _sweep(
    sweep: SweepSpec,
    *,
    results: Path,
    device: str | None,
    workers: int | None,
    keep_weights: bool,
    extend: bool,
    dry_run: bool,
    yes: bool,
    detach: bool,
    as_json: bool,
) -> int:
    from scalelab.api import sweeps as api
    from scalelab.cli.plan_view import plan_as_json, print_plan
    from scalelab.cli.progress import preparing, watching
    from scalelab.records.names import check_name

    check_name(sweep.default_name(), what="sweep")
    with preparing() as progress:
        proposal = api.propose(
            sweep,
            results=results,
            device=checked_device(device),
            workers=workers,
            keep_weights=keep_weights,
            is_dry_run=dry_run,
            progress=progress,
        )
    preview = api.preview(proposal, results=results)
    if not as_json:
        print_plan(proposal)
        if preview is not None:
            print_preview(preview, with_script=dry_run)
    if dry_run:
        if as_json:
            from scalelab.cli.output import emit_json

            jobs = {} if preview is None else {"slurm": dataclasses.asdict(preview)}
            emit_json({**plan_as_json(proposal), **jobs, "dry_run": True})
        return EXIT_OK
    if not yes:
        ask(proposal, as_json=as_json)
    with watching(results, as_json=as_json) as watch:
        report = api.launch(proposal, results=results, extend=extend, detach=detach, watch=watch)
    return show_end(proposal.plan.name, report, as_json=as_json, plan=plan_as_json(proposal))


def show_end(
    name: str, report: LaunchReport, *, as_json: bool, plan: dict[str, Any] | None = None
) -> int:
    """Say how the launch ended, and return the exit code."""
    from scalelab.cli.output import console, emit_json
    from scalelab.units import format_duration

    counts = {status: report.count(status) for status in dict.fromkeys(report.statuses.values())}
    n_failed = counts.get("failed", 0)
    if as_json:
        status = "interrupted" if report.is_interrupted else "failed" if n_failed else "ok"
        emit_json(
            {
                **(plan or {"schema": 1, "command": "resume", "name": name}),
                "status": status,
                "counts": counts,
                "n_started": report.n_started,
                "wall_s": report.wall_s,
            }
        )
    else:
        words = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
        out = console()
        out.print(f"{name}: {words}, in {format_duration(report.wall_s)}.")
        if report.is_interrupted or counts.get("cancelled"):
            out.print(f"Stopped. `scalelab resume {name}` goes on where it stopped.")
        elif counts.get("diverged"):
            out.print(
                "Diverged runs keep their record and are left out of fits; a lower --lr helps."
            )
        if not report.is_interrupted and counts.get("done"):
            out.print(f"Next: scalelab fit --sweep {name}")
    if report.is_interrupted:
        return EXIT_INTERRUPTED
    if n_failed:
        if not as_json:
            console(stderr=True).print(
                f"{n_failed} runs failed. Read why with `scalelab status {name}` and "
                f"`scalelab logs RUN`, mend it, then `scalelab retry {name}`.",
                style="bold red",
            )
        return RunsFailedError.exit_code
    return EXIT_OK
