"""``scalelab bench``: this machine's real speed, which time and money estimates rest on."""

from __future__ import annotations

import typer

from scalelab.cli.options import DeviceOption, JsonOption, WorkersOption
from scalelab.errors import EXIT_OK

app = typer.Typer(help="Measure this machine. Example: scalelab bench device", no_args_is_help=True)


@app.command("device")
def device(
    device: DeviceOption = None, workers: WorkersOption = None, as_json: JsonOption = False
) -> int:
    """Measure training speed by width, all workers busy, and keep it for planning.

    Example: scalelab bench device
    """
    from dataclasses import asdict

    from rich.table import Table

    from scalelab.cli.output import console, emit_json
    from scalelab.launch.proposal import default_execution
    from scalelab.launch.speed import default_workers, measure_machine_speed

    execution = default_execution(device=device)
    speed = measure_machine_speed(execution, workers or default_workers(execution.device))
    if as_json:
        emit_json({"schema": 1, "command": "bench device", **asdict(speed)})
        return EXIT_OK
    table = Table(
        title=f"{speed.n_workers} workers on {speed.device}", title_justify="left", box=None
    )
    for column in ("d_model", "training GFLOP/s a worker", "evaluation GFLOP/s a worker"):
        table.add_column(column, justify="right")
    for point in speed.points:
        table.add_row(
            str(point.d_model),
            f"{point.flops_per_s / 1e9:.1f}",
            f"{point.eval_flops_per_s / 1e9:.1f}",
        )
    console().print(table)
    return EXIT_OK
