"""``scalelab sweep adaptive``: the runs that teach most about a target for a budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
    FieldOption,
    JsonOption,
    LauncherOption,
    LrOption,
    LrRuleOption,
    NameOption,
    PrecisionOption,
    ResultsOption,
    ScheduleOption,
    SeqLenOption,
    TokenizerOption,
    WorkersOption,
    YesOption,
    checked_device,
)
from scalelab.cli.slurm_options import with_launcher, with_slurm_options
from scalelab.errors import UsageError

REPLAY, POOL = "On runs that exist", "Runs that could be"


@with_slurm_options
def adaptive(
    target: Annotated[
        str | None,
        typer.Option("--target", help="What to predict: C=1e24 (at its best N and D), N=7B,D=2T."),
    ] = None,
    budget: Annotated[str | None, typer.Option("--budget", help="FLOPs to spend.")] = None,
    until_width: Annotated[
        str | None,
        typer.Option(
            "--until-width", help="Stop when the target's 90 % interval is this narrow, as 1%."
        ),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say why each run was chosen.")
    ] = False,
    n_params: Annotated[
        str | None,
        typer.Option(
            "--n-params",
            help="Sizes that could be, as 1M..1B:12; default by budget.",
            rich_help_panel=POOL,
        ),
    ] = None,
    n_tokens: Annotated[
        str | None,
        typer.Option(
            "--n-tokens", help="Tokens that could be; default by budget.", rich_help_panel=POOL
        ),
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
    allow_repeats: AllowRepeatsOption = False,
    device: DeviceOption = None,
    workers: WorkersOption = None,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    results: ResultsOption = DEFAULT_RESULTS,
    pool: Annotated[
        Path | None,
        typer.Option(
            "--pool", help="Table of runs that exist, to choose among.", rich_help_panel=REPLAY
        ),
    ] = None,
    target_rows: Annotated[
        Path | None,
        typer.Option("--target-rows", help="Table of rows to predict.", rich_help_panel=REPLAY),
    ] = None,
    budget_share: Annotated[
        float | None,
        typer.Option(
            "--budget-share", help="Of the cost of the whole pool.", rich_help_panel=REPLAY
        ),
    ] = None,
    mapping: Annotated[
        list[str] | None,
        typer.Option("--map", help="OURS=THEIRS,..: columns, as in fit.", rich_help_panel=REPLAY),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Of the random starts of the fits.")
    ] = 0,
    as_json: JsonOption = False,
    *,
    launch: dict[str, Any],
) -> int:
    """Choose the runs that shrink a target's prediction interval most per FLOP, and run them.

    Example: scalelab sweep adaptive --target C=1e24 --budget 1e20 --until-width 1% --dry-run
    """
    from scalelab.cli.sweep_spec import data_table, sweep_from_options, train_table
    from scalelab.units import parse_quantity

    flops = None if budget is None else parse_quantity(budget, what="budget")
    width = None if until_width is None else parse_width(until_width)
    if pool is not None or target_rows is not None:
        if pool is None or target_rows is None or target is not None:
            raise UsageError(
                "one of --pool and --target-rows" if target is None else "--pool with --target",
                "--pool with --target-rows, or --target",
                "Give a table of runs with one of rows to predict, or a target to run for.",
            )
        return _replay(
            (pool, target_rows), budget_share, flops, width, seed, mapping, as_json=as_json
        )
    if budget_share is not None:
        raise UsageError(
            "--budget-share without --pool",
            "--budget in FLOPs for runs that are made here",
            "Give --budget 1e20, or --pool and --target-rows.",
        )
    if target is None or flops is None:
        raise UsageError(
            "no --target" if target is None else "no --budget in FLOPs",
            "--target C=1e24 --budget 1e20, or --pool with --target-rows",
            "Say what to predict and what may be spent.",
        )
    from scalelab.api.adaptive import adapt, default_axes, parse_target

    wanted = parse_target(target)

    if n_params is None or n_tokens is None:
        sizes, lengths = default_axes(flops, tokenizer=tokenizer or "bytes")
        n_params, n_tokens = n_params or sizes, n_tokens or lengths
    sweep = sweep_from_options(
        {
            "kind": "grid",
            "name": name or f"adaptive-{target.replace(',', '-').replace('=', '')}",
            "n_params": n_params,
            "n_tokens": n_tokens,
            "allow_repeats": allow_repeats,
            "data": data_table(data, tokenizer, field, column, eval_tokens),
            "train": train_table(seq_len, batch_seqs, lr, lr_rule, schedule, precision, None),
        }
    )
    sweep = with_launcher(sweep, launcher, launch)
    from scalelab.cli.adaptive_view import Showing

    showing = Showing(results=results, as_json=as_json, explains=explain or dry_run, yes=yes)
    report = adapt(
        sweep,
        wanted,
        budget=flops,
        until_width=width,
        seed=seed,
        results=results,
        device=checked_device(device),
        workers=workers,
        is_dry_run=dry_run,
        callbacks=showing,
    )
    return showing.end(report)


def parse_width(text: str) -> float:
    """Return the share that ``1%`` or ``0.01`` names; UsageError when it is none."""
    number, scale = (text[:-1], 0.01) if text.endswith("%") else (text, 1.0)
    try:
        width = float(number) * scale
    except ValueError:
        width = float("nan")
    if not 0 < width < 1:
        raise UsageError(f"--until-width {text!r}", "a share such as 1% or 0.01", "Write it so.")
    return width


def _replay(
    tables: tuple[Path, Path],
    share: float | None,
    flops: float | None,
    width: float | None,
    seed: int,
    mapping: list[str] | None,
    *,
    as_json: bool,
) -> int:
    from scalelab.api.replay import replay_adaptive
    from scalelab.cli.adaptive_view import print_replay
    from scalelab.cli.output import emit_json
    from scalelab.store.tables import parse_map

    report = replay_adaptive(
        *tables,
        budget_share=share,
        budget=flops,
        until_width=width,
        seed=seed,
        mapping=parse_map(mapping or []),
    )
    if as_json:
        emit_json(report.to_dict())
    else:
        print_replay(report)
    return 0
