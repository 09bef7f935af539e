"""``scalelab sweep adaptive``: choose runs that narrow a prediction most, within a budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from scalelab.cli.options import METRIC_HELP, PlanOptions, option
from scalelab.cli.spec_options import spec_values, spread_options
from scalelab.cli.sweep_spec import gives_sizes, sweep_of
from scalelab.errors import EXIT_OK, UsageError

REPLAY = "Replay on existing runs"


@spread_options
def adaptive(
    context: typer.Context,
    options: PlanOptions,
    target: Annotated[
        str | None,
        option(
            "What to run",
            "Model to predict: C=1e24 (its compute-optimal N and D) or N=7B,D=2T.",
            "--target",
        ),
    ] = None,
    budget: Annotated[
        str | None, option("What to run", "Maximum training FLOPs. Example: 1e20.", "--budget")
    ] = None,
    until_width: Annotated[
        str | None,
        option(
            "What to run",
            "Stop when the target's 90 % confidence interval is this narrow. Example: 1%.",
            "--until-width",
        ),
    ] = None,
    metric: Annotated[str | None, option("What to run", METRIC_HELP, "--metric")] = None,
    explain: Annotated[
        bool, option("Output", "Print the reason for each chosen run.", "--explain")
    ] = False,
    pool: Annotated[
        Path | None,
        option(REPLAY, "Table of existing runs to choose from.", "--pool"),
    ] = None,
    target_rows: Annotated[
        Path | None,
        option(REPLAY, "Table of runs whose loss is predicted.", "--target-rows"),
    ] = None,
    budget_share: Annotated[
        float | None,
        option(
            REPLAY,
            "Budget as a share of the cost of all runs in --pool. Example: 0.1.",
            "--budget-share",
        ),
    ] = None,
    mapping: Annotated[
        list[str] | None,
        option(REPLAY, "OURS=THEIRS,..: columns of the tables, as in `fit`.", "--map"),
    ] = None,
    seed: Annotated[
        int,
        option("Execution", "Random seed of the fits.", "--seed", min=0),
    ] = 0,
) -> int:
    """Choose runs that predict a target best per FLOP.

    The next runs are those that narrow the target's confidence interval most per FLOP.

    --n-params and --n-tokens set the run pool; without them it follows from --budget.

    Example: scalelab sweep adaptive --target C=1e24 --budget 1e20 --until-width 1% --dry-run
    """
    from scalelab.units import parse_quantity

    flops = None if budget is None else parse_quantity(budget, what="--budget")
    width = None if until_width is None else parse_width(until_width)
    if pool is not None or target_rows is not None:
        if pool is None or target_rows is None or target is not None:
            raise UsageError(
                "one of --pool and --target-rows" if target is None else "--pool with --target",
                "--pool with --target-rows, or --target alone",
                "Add the missing table, or use --target C=1e24 --budget 1e20.",
            )
        from scalelab.api.replay import replay_adaptive
        from scalelab.cli.adaptive_view import print_replay
        from scalelab.store.read_options import parse_map

        replayed = replay_adaptive(
            pool,
            target_rows,
            budget_share=budget_share,
            budget=flops,
            until_width=width,
            seed=seed,
            mapping=parse_map(mapping or []),
            metric=metric,
        )
        print_replay(replayed, as_json=options.as_json)
        return EXIT_OK
    if budget_share is not None:
        raise UsageError(
            "--budget-share without --pool",
            "--budget in FLOPs",
            "Try --budget 1e20, or add --pool and --target-rows.",
        )
    if target is None or flops is None:
        raise UsageError(
            "no --target" if target is None else "no --budget in FLOPs",
            "--target with --budget, or --pool with --target-rows",
            "Try --target C=1e24 --budget 1e20.",
        )
    from scalelab.api.adaptive import adapt, default_axes, parse_target
    from scalelab.corpus.token_dataset import UNNAMED
    from scalelab.corpus.token_files import find_tokens
    from scalelab.sweep.shape_rule import ALIGNED, ALIGNED_FROM_FLOPS, FINE

    wanted = parse_target(target)

    values = spec_values(context)
    defaults: dict[str, Any] = {"name": f"adaptive-{target.replace(',', '-').replace('=', '')}"}
    if values.get("n_params") is None or values.get("n_tokens") is None:
        is_listed = gives_sizes(values)
        any_axes = {"n_tokens": "1M"} if is_listed else {"n_params": "1M", "n_tokens": "1M"}
        # The largest run of the default pool costs about the budget.
        table = ALIGNED if flops >= ALIGNED_FROM_FLOPS else FINE
        any_sweep = sweep_of(values, kind="grid", **any_axes)
        rule = any_sweep.model.rules(table)[0]
        tokenizer = any_sweep.data.tokenizer
        if values.get("program") is not None:
            tokenizer = "of the program"
        elif find_tokens(any_sweep.data.source(), options.results) is not None:
            tokenizer = UNNAMED
        sizes, lengths = default_axes(flops, tokenizer=tokenizer, rule=rule)
        defaults |= {"n_tokens": lengths} if is_listed else {"n_params": sizes, "n_tokens": lengths}
    sweep = sweep_of(values, kind="grid", **defaults)
    from scalelab.cli.adaptive_view import Showing

    showing = Showing(options=options, explains=explain or options.dry_run)
    report = adapt(
        sweep,
        wanted,
        budget=flops,
        until_width=width,
        seed=seed,
        results=options.results,
        device=options.device,
        workers=options.workers,
        is_dry_run=options.dry_run,
        allow_source_change=options.allow_source_change,
        callbacks=showing,
        metric=metric,
    )
    return showing.end(report)


def parse_width(text: str) -> float:
    """Return the share of ``1%`` or ``0.01``; raise UsageError unless it is between 0 and 1."""
    number, scale = (text[:-1], 0.01) if text.endswith("%") else (text, 1.0)
    try:
        width = float(number) * scale
    except ValueError:
        width = float("nan")
    if not 0 < width < 1:
        raise UsageError(f"--until-width {text!r}", "a share such as 1% or 0.01", "Try 1%.")
    return width
