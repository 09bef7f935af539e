"""Options that several commands share and that are not part of a specification."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from scalelab.cli.output import set_results
from scalelab.errors import UsageError

DEFAULT_RESULTS = Path("results")
EXECUTION, OUTPUT = "Execution", "Output"


def _checked_results(context: typer.Context, results: Path) -> Path:
    """Return the results folder; raise UsageError where a file is in its place."""
    there = next(place for place in (results, *results.absolute().parents) if os.path.exists(place))
    if not os.path.isdir(there):
        raise UsageError(
            f"--results {results}, but {there} is a file",
            "a folder, which is created if it does not exist",
            "Choose another folder, such as --results results.",
        )
    default = os.environ.get("SCALELAB_RESULTS") or context.lookup_default("results")
    set_results(None if results == Path(default or DEFAULT_RESULTS) else results)
    return results


def results_option(panel: str | None = None) -> Any:
    """Return the option for the results folder, in a panel of the help."""
    return typer.Option(
        "--results",
        envvar="SCALELAB_RESULTS",
        help="Results folder.",
        callback=_checked_results,
        rich_help_panel=panel,
    )


def option(panel: str | None, text: str, *flags: str, **more: Any) -> Any:
    """Return an option with its help text, in a panel of the help."""
    return typer.Option(*flags, help=text, rich_help_panel=panel, **more)


def _option(*flags: str, text: str, panel: str = EXECUTION, **more: Any) -> Any:
    return typer.Option(*flags, help=text, rich_help_panel=panel, **more)


ResultsOption = Annotated[Path, results_option(OUTPUT)]
JsonOption = Annotated[
    bool,
    _option("--json", text="Print one JSON object on stdout; messages go to stderr.", panel=OUTPUT),
]
MapOption = Annotated[
    list[str] | None,
    option(None, "Columns of the file, as OURS=THEIRS,.. (see scalelab fit --help).", "--map"),
]
LevelOption = Annotated[float, option(None, "Level of the intervals, such as 0.9.")]
WorkersOption = Annotated[
    int | None,
    _option(
        "--workers",
        min=1,
        text="Runs that train at once; default one per CPU core, or one per GPU.",
    ),
]
DeviceOption = Annotated[
    str | None,
    _option(
        "--device",
        envvar="SCALELAB_DEVICE",
        text="cpu or cuda; default cuda if the machine has a CUDA GPU.",
    ),
]
PrecisionOption = Annotated[
    str | None,
    typer.Option("--precision", help="fp32 or bf16; default fp32 on CPU, bf16 on CUDA."),
]
LrCheckOption = Annotated[
    bool,
    _option(
        "--lr-check",
        text="After the sweep, train each budget's best run at half and twice its learning rate "
        "and report whether the rule's rate was best.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class MachineOptions:
    """Where and how runs are executed, and how the command answers."""

    device: DeviceOption = None
    workers: WorkersOption = None
    results: ResultsOption = DEFAULT_RESULTS
    as_json: JsonOption = False

    def __post_init__(self) -> None:
        checked_device(self.device)


@dataclass(frozen=True, kw_only=True)
class PlanOptions(MachineOptions):
    """Options of commands that show a plan before they start it."""

    dry_run: Annotated[
        bool, _option("--dry-run", text="Print the plan and its cost; start nothing.")
    ] = False
    yes: Annotated[bool, _option("--yes", "-y", text="Skip the confirmation prompt.")] = False


@dataclass(frozen=True, kw_only=True)
class ResumeOptions(MachineOptions):
    """Options of commands that finish the runs of a sweep."""

    keep_weights: Annotated[
        bool, _option("--keep-weights", text="Keep the last checkpoint of each run.")
    ] = False
    detach: Annotated[
        bool,
        _option(
            "--detach",
            text="Exit once all jobs are submitted; `scalelab resume` monitors them later.",
            panel="SLURM",
        ),
    ] = False


@dataclass(frozen=True, kw_only=True)
class LaunchOptions(PlanOptions, ResumeOptions):
    """Options of commands that launch a sweep."""

    extend: Annotated[
        bool, _option("--extend", text="Add these runs to the existing sweep of the same name.")
    ] = False


def checked_device(device: str | None) -> str | None:
    """Return the device; raise UsageError unless it is ``cpu``, ``cuda`` or None."""
    if device not in (None, "cpu", "cuda"):
        raise UsageError(f"--device {device}", "cpu or cuda", "Try --device cpu.")
    return device
