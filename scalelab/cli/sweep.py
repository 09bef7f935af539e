"""``scalelab sweep``: plan, show the cost, ask, launch."""

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
    ExtendOption,
    FieldOption,
    JsonOption,
    KeepWeightsOption,
    LauncherOption,
    LrCheckOption,
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
)
from scalelab.cli.slurm_options import (
    DetachOption,
    with_launcher,
    with_slurm_options,
)
from scalelab.cli.sweep_launch import launch_sweep
from scalelab.cli.sweep_spec import data_table, sweep_from_options, train_table

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
    design: Annotated[
        str,
        typer.Option(
            "--design",
            help="plain, or optimal: the runs that predict 100 times the largest budget best.",
        ),
    ] = "plain",
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
    lr_check: LrCheckOption = False,
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
    }
    return launch_sweep(
        with_launcher(sweep_from_options(content), launcher, launch),
        results=results,
        device=device,
        workers=workers,
        keep_weights=keep_weights,
        lr_check=lr_check,
        design=design,
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
    }
    return launch_sweep(
        with_launcher(sweep_from_options(content), launcher, launch),
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


@app.command("ladder")
@with_slurm_options
def ladder(
    n_params: Annotated[str, typer.Option("--n-params", help="Sizes N, such as 1M..10M:4.")],
    n_tokens: Annotated[
        str, typer.Option("--n-tokens", help="Tokens D of the branches, such as 1M,2M,4M,8M.")
    ],
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
    """Train a constant-rate trunk of every size, and from it a cooldown for every number of tokens.

    Example: scalelab sweep ladder --n-params 50K..400K:4 --n-tokens 1M,2M,4M,8M,16M --dry-run
    """
    content = {
        "kind": "ladder",
        "name": name,
        "n_params": n_params,
        "n_tokens": n_tokens,
        "allow_repeats": allow_repeats,
        "data": data_table(data, tokenizer, field, column, eval_tokens),
        "train": train_table(seq_len, batch_seqs, lr, lr_rule, "wsd", precision, seeds),
    }
    return launch_sweep(
        with_launcher(sweep_from_options(content), launcher, launch),
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
    lr_check: LrCheckOption = False,
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
    return launch_sweep(
        with_launcher(sweep, launcher, launch),
        results=results,
        device=device,
        workers=workers,
        keep_weights=keep_weights,
        lr_check=lr_check,
        extend=extend,
        dry_run=dry_run,
        yes=yes,
        detach=detach,
        as_json=as_json,
    )
