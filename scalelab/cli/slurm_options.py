"""The options of ``[launcher]``, given to several commands from one list."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scalelab.errors import UsageError

if TYPE_CHECKING:
    from scalelab.launch.slurm.preview import SlurmPreview
    from scalelab.sweep.spec import SweepSpec

_PANEL = "SLURM"
_LOCAL_TOO = ("max_gpu_hours", "max_usd")


def _option(flag: str, help_text: str, kind: Any) -> Any:
    return Annotated[kind, typer.Option(flag, help=help_text, rich_help_panel=_PANEL)]


_OPTIONS: dict[str, tuple[str, Any]] = {
    "partition": ("partition", _option("--partition", "Partition.", str | None)),
    "account": ("account", _option("--account", "Account.", str | None)),
    "qos": ("qos", _option("--qos", "Quality of service.", str | None)),
    "gpus_per_run": (
        "gpus_per_run",
        _option("--gpus-per-run", "GPUs of a run; 0 trains on the CPU.", int | None),
    ),
    "tensor_parallel": (
        "tensor_parallel",
        _option("--tensor-parallel", "GPUs of a run that share every block.", int | None),
    ),
    "gpu": ("gpu", _option("--gpu", "Device that time and money are reckoned for.", str | None)),
    "cpus": ("cpus", _option("--cpus", "CPU cores of each task.", int | None)),
    "mem": ("mem_gb", _option("--mem", "Memory on each node: 16 (GB), 16G, 500M.", str | None)),
    "time": (
        "time_min",
        _option("--time", "Time limit of a job: minutes, 4:00:00 or 1-12:00:00.", str | None),
    ),
    "array_parallelism": (
        "array_parallelism",
        _option("--array-parallelism", "Jobs that run at once, over all arrays.", int | None),
    ),
    "target_job_minutes": (
        "target_job_minutes",
        _option("--target-job-minutes", "Small runs are packed into such jobs.", float | None),
    ),
    "max_gpu_hours": (
        "max_gpu_hours",
        _option("--max-gpu-hours", "Refuse to spend or request more.", float | None),
    ),
    "max_usd": ("max_usd", _option("--max-usd", "Refuse to spend or request more.", float | None)),
    "setup": (
        "setup",
        _option(
            "--setup", 'Shell line before a job\'s runs, "module load cuda".', list[str] | None
        ),
    ),
    "snapshot": (
        "snapshot",
        _option("--snapshot", "Run jobs from a frozen copy of the source.", bool),
    ),
}

_TRACKER = Annotated[
    list[str] | None,
    typer.Option("--tracker", help="tensorboard or wandb; repeatable."),
]

DetachOption = Annotated[
    bool,
    typer.Option(
        "--detach",
        help="Leave once everything is submitted; `resume` looks after it.",
        rich_help_panel=_PANEL,
    ),
]


def with_slurm_options(command: Callable[..., int]) -> Callable[..., int]:
    """Return a command with the options above, handed to it as ``launch``: fields of [launcher].

    What a settings file says for SLURM is left out where the launcher is the local one, and where
    the command goes on with a sweep, which has its own.
    """
    signature = inspect.signature(command, eval_str=True)
    own = [item for name, item in signature.parameters.items() if name != "launch"]
    added = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=False if name == "snapshot" else None,
            annotation=kind,
        )
        for name, (_, kind) in _OPTIONS.items()
    ]
    added.append(
        inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    )
    added.append(
        inspect.Parameter(
            "tracker", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_TRACKER
        )
    )

    @functools.wraps(command)
    def wrapped(*args: Any, context: typer.Context, **values: Any) -> int:
        is_local_or_known = values.get("launcher", "local") == "local"
        slurm = {}
        for name, (field, _) in _OPTIONS.items():
            value, source = values.pop(name, None), context.get_parameter_source(name)
            is_setting = source is not None and source.name == "DEFAULT_MAP"
            if not (is_local_or_known and is_setting and field not in _LOCAL_TOO):
                slurm[field] = value
        given = {
            field: value
            for field, value in slurm.items()
            if value is not None and value != [] and value is not False
        }
        table: dict[str, Any] = {"slurm": _parsed(given)} if given else {}
        trackers = values.pop("tracker", None)
        if trackers:
            table["trackers"] = tuple(trackers)
        return command(*args, launch=table, **values)

    wrapped.__dict__["__signature__"] = signature.replace(parameters=[*own, *added])
    wrapped.__annotations__ = {
        **{item.name: item.annotation for item in [*own, *added]},
        "return": int,
    }
    return wrapped


def _parsed(given: dict[str, Any]) -> dict[str, Any]:
    if "time_min" in given:
        given["time_min"] = parse_minutes(given["time_min"])
    if "mem_gb" in given:
        given["mem_gb"] = parse_gigabytes(given["mem_gb"])
    if "setup" in given:
        given["setup"] = tuple(given["setup"])
    return given


def parse_minutes(text: str) -> int:
    """Return the minutes of a time limit, written as SLURM's users do; parts count upwards.

    Raises
    ------
    UsageError
        When it is not ``MINUTES``, ``H:MM:SS`` or ``D-HH:MM:SS``.
    """
    match = re.fullmatch(r"(?:(?:(\d+)-)?(\d+):(\d\d):(\d\d))|(\d+)", text.strip())
    if match is None:
        raise UsageError(
            f"--time {text!r}", "minutes, H:MM:SS or D-HH:MM:SS", "Write it so, such as 4:00:00."
        )
    if match[5] is not None:
        return int(match[5])
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups()[:4])
    return (days * 24 + hours) * 60 + minutes + (seconds > 0)


def parse_gigabytes(text: str) -> float:
    """Return the gigabytes of an amount of memory; a bare number is gigabytes.

    Raises
    ------
    UsageError
        When it is not a number with G, M or T behind it, or nothing.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([MGT]?)B?", text.strip(), re.IGNORECASE)
    if match is None:
        raise UsageError(f"--mem {text!r}", "such as 16, 16G or 500M", "Write it so.")
    return float(match[1]) * {"M": 1 / 1024, "": 1.0, "G": 1.0, "T": 1024.0}[match[2].upper()]


def with_launcher(sweep: SweepSpec, launcher: str | None, launch: dict[str, Any]) -> SweepSpec:
    """Return a sweep whose launcher is what the options say, the file's where they are silent.

    Raises
    ------
    UsageError
        When an option is out of its range, or means nothing to the launcher.
    """
    from scalelab.sweep.spec import sweep_from_mapping

    if launcher is None and not launch:
        return sweep
    content = sweep.model_dump(exclude_unset=True)
    table = dict(content.get("launcher") or {})
    slurm = {**(table.get("slurm") or {}), **launch.get("slurm", {})}
    table = {**table, **launch, "slurm": slurm}
    if launcher is not None:
        table["name"] = launcher
    changed = sweep_from_mapping({**content, "launcher": table}, source="the options")
    if changed.launcher.name == "local":
        refuse_slurm_only(launch)
    return changed


def refuse_slurm_only(launch: dict[str, Any], *, detach: bool = False) -> None:
    """Raise when options were given that mean nothing to the local launcher.

    Raises
    ------
    UsageError
    """
    flags = {field: name.replace("_", "-") for name, (field, _) in _OPTIONS.items()}
    given = [flags[field] for field in launch.get("slurm", {}) if field not in _LOCAL_TOO]
    given += ["detach"] if detach else []
    if given:
        raise UsageError(
            f"{', '.join('--' + flag for flag in given)} with the local launcher",
            "such options with --launcher slurm",
            "Add --launcher slurm, or leave them out.",
        )


def print_preview(preview: SlurmPreview, *, with_script: bool) -> None:
    """Print what would be submitted, and the batch script of the first array."""
    from scalelab.cli.output import console
    from scalelab.units import format_money

    out = console()
    out.print(
        f"on SLURM: {preview.n_jobs:,} jobs in {preview.n_arrays} arrays, at most "
        f"{preview.n_running} at once; {preview.gpu_hours:,.3g} GPU-hours, "
        f"{format_money(preview.usd)}",
        soft_wrap=True,
    )
    if with_script:
        out.print("batch script:")
        out.print(preview.script, markup=False, highlight=False, soft_wrap=True)
