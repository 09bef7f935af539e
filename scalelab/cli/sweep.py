"""``scalelab sweep``: plan a sweep, show its cost, ask for confirmation, launch it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scalelab.cli.options import LaunchOptions, LrCheckOption, option
from scalelab.cli.spec_options import SpecCommand, spec_values, spread_options
from scalelab.cli.sweep_launch import launch_sweep
from scalelab.cli.sweep_spec import sweep_of, sweep_of_file

app = typer.Typer(
    help="Plan runs, show their cost, ask and launch them. "
    "Example: scalelab sweep isoflop --budgets 1e18..1e20 --dry-run",
    no_args_is_help=True,
)


@app.command("isoflop", cls=SpecCommand)
@spread_options
def isoflop(
    context: typer.Context,
    options: LaunchOptions,
    design: Annotated[
        str,
        option(
            "What to run",
            "plain: sizes evenly spaced at each budget. optimal: the runs that best predict "
            "the loss at 100 times the largest budget.",
            "--design",
        ),
    ] = "plain",
    lr_check: LrCheckOption = False,
) -> int:
    """Train several model sizes at each FLOP budget.

    The isoFLOP curves of Chinchilla, approach 2.

    Example: scalelab sweep isoflop --budgets 2e11..2e12:4 --sizes 6 --name demo --yes
    """
    sweep = sweep_of(spec_values(context), kind="isoflop")
    return launch_sweep(sweep, options, lr_check=lr_check, design=design)


@app.command("grid", cls=SpecCommand)
@spread_options
def grid(context: typer.Context, options: LaunchOptions) -> int:
    """Train each model size with each number of tokens.

    Example: scalelab sweep grid --n-params 50K..400K:4 --n-tokens 1M..8M:4 --dry-run
    """
    return launch_sweep(sweep_of(spec_values(context), kind="grid"), options)


@app.command("ladder", cls=SpecCommand)
@spread_options
def ladder(context: typer.Context, options: LaunchOptions) -> int:
    """Train a WSD ladder of each model size.

    A trunk at a constant learning rate per size, a cooldown branch per number of tokens.

    Example: scalelab sweep ladder --n-params 50K..400K:4 --n-tokens 1M,2M,4M,8M,16M --dry-run
    """
    return launch_sweep(sweep_of(spec_values(context), kind="ladder"), options)


@app.command("mixture", cls=SpecCommand)
@spread_options
def mixture(context: typer.Context, options: LaunchOptions) -> int:
    """Train many mixtures of named sources of text.

    The mixtures fill the simplex of the weights: corners, centre, and points far from each other.
    Every run reports its loss on the held-out part of each source.

    Example: scalelab sweep mixture --mix-source code=src/ --mix-source web=pages/
    --runs 24 --n-params 1M --n-tokens 20M --dry-run
    """
    return launch_sweep(sweep_of(spec_values(context), kind="mixture"), options)


@app.command("run", cls=SpecCommand)
@spread_options
def run_file(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="A sweep file, such as sweeps/demo.toml.")],
    options: LaunchOptions,
    lr_check: LrCheckOption = False,
) -> int:
    """Launch the sweep of a TOML file; options override its keys.

    Example: scalelab sweep run sweeps/smoke.toml --seeds 0,1 --yes
    """
    from scalelab.sweep.spec import read_mapping

    sweep = sweep_of_file(read_mapping(file), spec_values(context), source=str(file))
    return launch_sweep(sweep, options, lr_check=lr_check)


@app.command("schema")
def schema() -> None:
    """Print the JSON schema of sweep files.

    Example: scalelab sweep schema > sweep.schema.json
    """
    import json

    from scalelab.sweep.spec import SweepSpec

    typer.echo(json.dumps(SweepSpec.model_json_schema(), indent=2))
