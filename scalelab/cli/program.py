"""``scalelab program``: check the program of a sweep file, and measure its models."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scalelab.cli.options import (
    DEFAULT_RESULTS,
    DeviceOption,
    JsonOption,
    ResultsOption,
    checked_device,
    option,
)
from scalelab.errors import EXIT_OK, UsageError

if TYPE_CHECKING:
    from scalelab.api.programs import ProgramCheck
    from scalelab.sweep.size_table import SizeRow
    from scalelab.sweep.spec import SweepSpec

app = typer.Typer(
    help="Check your own training program. "
    "Example: scalelab program check examples/programs/nanogpt/sweep.toml",
    no_args_is_help=True,
)
FileArgument = Annotated[Path, typer.Argument(help="A sweep file with the table [program].")]


@app.command("check")
def check(
    file: FileArgument,
    device: DeviceOption = None,
    results: ResultsOption = DEFAULT_RESULTS,
    as_json: JsonOption = False,
) -> int:
    """Print a program's commands and every problem.

    Starts nothing. Prints the value of each placeholder for the smallest run too.

    Example: scalelab program check examples/programs/nanogpt/sweep.toml
    """
    from scalelab.api.programs import check_program
    from scalelab.cli.output import emit_json
    from scalelab.cli.program_view import program_as_json

    checked_device(device)
    found = check_program(_sweep_of(file), results=results, device=device)
    if as_json:
        emit_json(
            {
                "schema": 1,
                "command": "program check",
                "name": found.proposal.plan.name,
                "program": program_as_json(found.proposal),
                "placeholders": dict(found.placeholders),
                "problems": [problem.as_dict() for problem in found.problems],
                "warnings": list(found.warnings),
            }
        )
    else:
        _print_check(found)
    return UsageError.exit_code if found.problems else EXIT_OK


@app.command("probe")
def probe(
    file: FileArgument,
    steps: Annotated[
        int,
        option(None, "Steps of each run; several measure tokens/s too.", "--steps", min=1),
    ] = 1,
    by: Annotated[
        str,
        option(
            None,
            "Where the parameters come from: report (the program states them) or checkpoint (the "
            "header of its safetensors files).",
            "--by",
        ),
    ] = "report",
    all_rows: Annotated[
        bool, option(None, "Measure the rows that have n_params too.", "--all")
    ] = False,
    out: Annotated[
        Path | None,
        option(None, "CSV file to write. Default: the file of program.size.table.", "--out"),
    ] = None,
    device: DeviceOption = None,
    results: ResultsOption = DEFAULT_RESULTS,
    as_json: JsonOption = False,
) -> int:
    """Fill a table of sizes by one-step runs.

    Planning needs n_params of each row, and uses flops_per_token and tokens_per_s where the
    program states them.

    Example: scalelab program probe examples/programs/nanochat/sweep.toml --steps 20
    """
    from scalelab.api.programs import probe_program
    from scalelab.cli.output import console, emit_json
    from scalelab.units import plural

    checked_device(device)

    def watch(row: SizeRow, number: int, n_rows: int) -> None:
        console(stderr=True).print(f"[{number}/{n_rows}] {row.label()}", markup=False)

    path, probed = probe_program(
        _sweep_of(file),
        results=results,
        device=device,
        steps=steps,
        by=by,
        all_rows=all_rows,
        out=out,
        watch=watch,
    )
    if as_json:
        rows = [{**dataclasses.asdict(each), "row": dict(each.row.cells)} for each in probed]
        emit_json({"schema": 1, "command": "program probe", "path": str(path), "rows": rows})
        return EXIT_OK
    for each in probed:
        cells = ", ".join(f"{name} = {value}" for name, value in each.cells().items())
        console().print(f"{each.row.label()}: {cells}", markup=False, soft_wrap=True)
    console().print(f"{plural(len(probed), 'row')} written to {path}.", soft_wrap=True)
    return EXIT_OK


def _sweep_of(file: Path) -> SweepSpec:
    from scalelab.sweep.spec import read_sweep_file

    return read_sweep_file(file)


def _print_check(found: ProgramCheck) -> None:
    from scalelab.cli.output import console
    from scalelab.cli.program_view import print_commands, program_words
    from scalelab.sweep.program_render import format_value
    from scalelab.units import plural

    out = console()
    plan = found.proposal.plan
    out.print(f"{plan.name}: {plural(len(plan.rows), 'run')}", soft_wrap=True)
    out.print(program_words(found.proposal), soft_wrap=True)
    print_commands(found.proposal.commands)
    words: list[Any] = [
        f"{{{name}}} = {format_value(value)}" for name, value in sorted(found.placeholders.items())
    ]
    out.print("placeholders of the smallest run:", soft_wrap=True)
    for word in words:
        out.print(f"  {word}", markup=False, highlight=False, soft_wrap=True)
    for warning in found.warnings:
        out.print(f"warning: {warning}", style="yellow", markup=False, soft_wrap=True)
    for problem in found.problems:
        out.print(f"problem: {problem}", style="bold red", markup=False, soft_wrap=True)
    out.print(plural(len(found.problems), "problem") if found.problems else "No problem.")
