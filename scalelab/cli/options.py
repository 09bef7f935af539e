"""Options that several commands share and that are not part of a specification."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from scalelab.cli.output import set_results
from scalelab.errors import UsageError, did_you_mean
from scalelab.sweep.execution import ATTENTIONS, AUTO, KERNELS, STEPS

DEFAULT_RESULTS = Path("results")
FROM_HELP = (
    "Table of finished runs (CSV, JSON, Parquet, ..), run log or folder of run logs of another "
    "trainer, or public:NAME (see scalelab tables)."
)
FORMAT_HELP = (
    "Format of the run logs, such as wandb or nanogpt, or table; default: recognised from the file."
)
UNIT_HELP = (
    "Unit of the losses: nats, bits, bits-per-byte or perplexity; default: from the column's name."
)
BEST_HELP = (
    "Settings such as lr,batch: of rows that differ only in these, keep the one of lowest loss."
)
MEAN_HELP = "Settings such as seed: average the losses of rows that differ only in these."
LAST_HELP = "Column that names the run: keep the last checkpoint of each run."
UNFINISHED_HELP = "Keep runs that failed or did not reach their planned end."
METRIC_HELP = (
    "Which loss: an evaluation set such as code, bpb:code (bits per byte), task:NAME (bits per "
    "byte of the right answer), acc:NAME (1 - accuracy), or a mean such as 0.7*code+0.3*web. "
    "Default: heldout."
)
EXCLUDE_HELP = (
    "Runs to leave out: run_ids of a sweep, runs or lines of a table, with commas, such as 12,15."
)
CONVENTION_HELP = (
    "How N counts parameters, from the column n_params_CONVENTION: chinchilla (all), active (of a "
    "mixture of experts, those that a token uses), kaplan or matmul. Default: chinchilla; active "
    "if runs of the sweep have experts."
)
EXECUTION, OUTPUT = "Execution", "Output"


def _checked_results(context: typer.Context, results: Path) -> Path:
    """Return the results folder; raise UsageError where a file is in its place."""
    there = next(place for place in (results, *results.absolute().parents) if os.path.exists(place))
    if not os.path.isdir(there):
        raise UsageError(
            f"--results {results}, but {there} is a file",
            "a folder, which is created if it does not exist",
            "Name a folder, such as --results results.",
        )
    default = os.environ.get("SCALELAB_RESULTS") or context.lookup_default("results")
    is_default = results == Path(default or DEFAULT_RESULTS)
    set_results(None if is_default else results, context.find_root().command)
    return results


def results_option(panel: str | None = None) -> Any:
    """Return the option for the results folder, in a panel of the help."""
    return option(
        panel, "Results folder.", "--results", envvar="SCALELAB_RESULTS", callback=_checked_results
    )


def option(panel: str | None, text: str, *flags: str, **more: Any) -> Any:
    """Return an option with its help text, in a panel of the help."""
    return typer.Option(*flags, help=text, rich_help_panel=panel, **more)


def given_options(context: typer.Context) -> dict[str, str]:
    """Return the options given on the command line, by parameter."""
    found = {}
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name) if parameter.name else None
        if parameter.name and source is not None and source.name == "COMMANDLINE":
            found[parameter.name] = max(parameter.opts, key=len)
    return found


ResultsOption = Annotated[Path, results_option(OUTPUT)]
JsonOption = Annotated[
    bool,
    option(OUTPUT, "Print one JSON object on stdout; messages go to stderr.", "--json"),
]
FromOption = Annotated[Path | None, option(None, FROM_HELP, "--from")]
WhereOption = Annotated[
    str | None, option(None, "SQL condition on the columns, such as 'flops > 1e18'.", "--where")
]
MapOption = Annotated[
    list[str] | None,
    option(None, "Columns of the file, as OURS=THEIRS,.. (see scalelab fit --help).", "--map"),
]
ExcludeOption = Annotated[str | None, option(None, EXCLUDE_HELP, "--exclude", metavar="RUN,..")]
FORECASTER_HELP = (
    "What answers. averaged: several forms averaged by evidence with a smooth misfit. law: the "
    "fitted law. Default: averaged, and the law for forms of other columns than N and D."
)
ForecasterOption = Annotated[str | None, option(None, FORECASTER_HELP, "--forecaster")]
MetricOption = Annotated[str | None, option(None, METRIC_HELP, "--metric")]
LevelOption = Annotated[float, option(None, "Level of the intervals, such as 0.9.")]
WorkersOption = Annotated[
    int | None,
    option(
        EXECUTION,
        "Runs that train at once; default one per CPU core, or one per GPU.",
        "--workers",
        min=1,
    ),
]
DeviceOption = Annotated[
    str | None,
    option(
        EXECUTION,
        "cpu or cuda; default cuda if the machine has a CUDA GPU.",
        "--device",
        envvar="SCALELAB_DEVICE",
    ),
]
StepOption = Annotated[
    str, option(EXECUTION, f"How a step is executed: {', '.join((AUTO, *STEPS))}.", "--step")
]
KernelsOption = Annotated[
    str,
    option(
        EXECUTION,
        f"Operations of a step: {', '.join((AUTO, *KERNELS))}.",
        "--kernels",
        envvar="SCALELAB_KERNELS",
    ),
]
AttentionOption = Annotated[
    str,
    option(
        EXECUTION,
        f"Attention of a step: {', '.join((AUTO, *ATTENTIONS))}.",
        "--attention",
        envvar="SCALELAB_ATTENTION",
    ),
]
PrecisionOption = Annotated[
    str | None,
    typer.Option("--precision", help="fp32, bf16 or fp8; default fp32 on CPU, bf16 on CUDA."),
]
LrCheckOption = Annotated[
    bool,
    option(
        EXECUTION,
        "After the sweep, train each budget's best run at half and twice its learning rate "
        "and report whether the rule's rate was best.",
        "--lr-check",
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
class SourceOptions(MachineOptions):
    """Options of commands that start runs."""

    allow_source_change: Annotated[
        bool,
        option(
            "Training program",
            "Continue a saved sweep although the files of its program have changed: unfinished "
            "runs train with the new files and keep their run_ids.",
            "--allow-source-change",
        ),
    ] = False


@dataclass(frozen=True, kw_only=True)
class PlanOptions(SourceOptions):
    """Options of commands that show a plan before they start it."""

    dry_run: Annotated[
        bool, option(EXECUTION, "Print the plan and its cost; start nothing.", "--dry-run")
    ] = False
    yes: Annotated[bool, option(EXECUTION, "Skip the confirmation prompt.", "--yes", "-y")] = False


@dataclass(frozen=True, kw_only=True)
class ResumeOptions(SourceOptions):
    """Options of commands that finish the runs of a sweep."""

    keep_weights: Annotated[
        bool, option(EXECUTION, "Keep the last checkpoint of each run.", "--keep-weights")
    ] = False
    detach: Annotated[
        bool,
        option(
            "SLURM",
            "Exit once all jobs are submitted; `scalelab resume` monitors them later.",
            "--detach",
        ),
    ] = False


@dataclass(frozen=True, kw_only=True)
class LaunchOptions(PlanOptions, ResumeOptions):
    """Options of commands that launch a sweep."""

    wide: Annotated[
        bool,
        option(OUTPUT, "Also print steps, batch, FLOPs, time and money of each run.", "--wide"),
    ] = False
    extend: Annotated[
        bool,
        option(EXECUTION, "Add these runs to the existing sweep of the same name.", "--extend"),
    ] = False
    plan_only: Annotated[
        bool,
        option(
            EXECUTION,
            "Save the plan, the tokens and the run folders, and train nothing. Train them later "
            "with `scalelab resume`, or on a machine with only torch and NumPy with `python -m "
            "scalelab.launch.folders`. --device cuda needs no GPU then.",
            "--plan-only",
        ),
    ] = False


def counted_columns(convention: str | None, mapping: dict[str, str]) -> dict[str, str]:
    """Return the mapping with the column of N in a convention, if one is given.

    Raises
    ------
    UsageError
        For an unknown convention, or a second column of N.
    """
    from scalelab.theory.accounting import PARAM_CONVENTIONS

    if convention is None:
        return mapping
    if convention not in PARAM_CONVENTIONS:
        raise UsageError(
            f"--param-convention {convention}",
            " or ".join(PARAM_CONVENTIONS),
            f"{did_you_mean(convention, PARAM_CONVENTIONS)}Write --param-convention active.",
        )
    if "n_params" in mapping:
        raise UsageError(
            f"--param-convention {convention} with --map n_params={mapping['n_params']}",
            "one of them",
            "Remove --param-convention: the column's name, or you, say how it counts.",
        )
    return {**mapping, "n_params": f"n_params_{convention}"}


def checked_device(device: str | None) -> str | None:
    """Return the device; raise UsageError unless it is ``cpu``, ``cuda`` or None."""
    if device not in (None, "cpu", "cuda"):
        near = did_you_mean(device or "", ("cpu", "cuda"))
        raise UsageError(f"--device {device}", "cpu or cuda", f"{near}Try --device cpu.")
    return device
