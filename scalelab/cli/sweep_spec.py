"""From the options of a command to its specification, and the confirmation before a launch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from scalelab.cli.spec_options import Keys, SpecValues, options_of
from scalelab.errors import UsageError

if TYPE_CHECKING:
    from scalelab.launch.proposal import Proposal
    from scalelab.sweep.spec import SweepSpec

SLURM: Keys = ("launcher", "slurm")
UNHASHED = ("execution", "launcher")
"""Tables on which the runs do not depend."""
_CAPS = ("max_gpu_hours", "max_usd")


def sweep_of(values: SpecValues, **defaults: Any) -> SweepSpec:
    """Return the sweep that the options describe.

    Parameters
    ----------
    values : SpecValues
        Flags take precedence over settings, and settings over the defaults.
    **defaults
        Such as ``kind``.

    Raises
    ------
    UsageError
        When a value is out of range, or a SLURM option was given with the local launcher.
    """
    from scalelab.sweep.spec import sweep_from_mapping

    return checked(sweep_from_mapping(content_of(values, **defaults), source="the options"), values)


def content_of(values: SpecValues, **defaults: Any) -> dict[str, Any]:
    """Return the fields that the options set, as nested tables; parameters as in `sweep_of`."""
    return merged(defaults, nested(usable_settings(values)), nested(values.flags))


def sweep_of_file(content: Mapping[str, Any], values: SpecValues, *, source: str) -> SweepSpec:
    """Return the sweep of a file, changed by flags.

    Of the settings, only those of execution and launcher apply, and the file takes precedence over
    them: the runs of a sweep file are the same on every machine.

    Raises
    ------
    UsageError
        As `sweep_of`.
    """
    from scalelab.sweep.spec import sweep_from_mapping

    settings = {path: value for path, value in values.settings.items() if path[0] in UNHASHED}
    flags = nested(values.flags)
    launcher = merged(nested(settings), dict(content), flags).get("launcher", {}).get("name")
    usable = usable_settings(SpecValues(settings=settings), launcher=launcher or "local")
    whole = merged(nested(usable), dict(content), flags)
    source += " and the options" if flags else ""
    return checked(sweep_from_mapping(whole, source=source), values)


def gives_sizes(values: SpecValues) -> bool:
    """Say whether the options list the models themselves: explicit shapes, or a table of sizes."""
    is_listed, program = values.get("model", "shape_list") is not None, values.get("program")
    if is_listed or program is None:
        return is_listed
    from scalelab.sweep.option import validated
    from scalelab.sweep.program_table import ProgramTable, read_program

    table = validated(ProgramTable, read_program(program), source=str(program))
    return bool(table.size.by == "table")


def resume_changes(values: SpecValues) -> dict[str, Any]:
    """Return the tables that the options of `resume` change, with their fields as text."""
    usable = usable_settings(values, launcher="local")
    return nested({**usable, **values.flags})


def usable_settings(values: SpecValues, *, launcher: str | None = None) -> dict[Keys, Any]:
    """Return the settings without those of SLURM where the launcher is the local one."""
    name = launcher or values.get("launcher", "name") or "local"
    return {
        path: value
        for path, value in values.settings.items()
        if name != "local" or path[:2] != SLURM or path[-1] in _CAPS
    }


def refuse_slurm_only(values: SpecValues, *, detach: bool = False) -> None:
    """Raise UsageError when flags of SLURM were given with the local launcher."""
    flags = {item.path: item.flag for item in options_of("run")}
    given = [
        str(flags[path]) for path in values.flags if path[:2] == SLURM and path[-1] not in _CAPS
    ]
    given += ["--detach"] if detach else []
    if given:
        raise UsageError(
            f"{', '.join(given)} with the local launcher",
            "these options with --launcher slurm",
            "Add --launcher slurm, or remove these options.",
        )


def checked(sweep: SweepSpec, values: SpecValues) -> SweepSpec:
    """Return the sweep; raise UsageError when SLURM flags were given with the local launcher."""
    if sweep.launcher.name == "local":
        refuse_slurm_only(values)
    return sweep


def nested(values: Mapping[Keys, Any]) -> dict[str, Any]:
    """Return values by path as nested tables."""
    content: dict[str, Any] = {}
    for path, value in values.items():
        table = content
        for key in path[:-1]:
            table = table.setdefault(key, {})
        table[path[-1]] = value
    return content


def merged(*tables: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested tables as one; later ones take precedence."""
    content: dict[str, Any] = {}
    for table in tables:
        for key, value in table.items():
            both = isinstance(value, Mapping) and isinstance(content.get(key), Mapping)
            content[key] = merged(content[key], value) if both else value
    return content


def ask(proposal: Proposal, *, as_json: bool, n_times: int = 1) -> None:
    """Ask for confirmation of a plan that takes more than an hour.

    Parameters
    ----------
    proposal : Proposal
    as_json : bool
    n_times : int
        How often each run of the plan is trained, each time with other hyperparameters.

    Raises
    ------
    UsageError
        When nobody can be asked, or a launch would refuse the plan.
    """
    import sys

    from scalelab.launch.proposal import ASK_ABOVE_S
    from scalelab.units import format_duration

    proposal.plan.refuse_repeats(allow_repeats=proposal.sweep.allow_repeats)
    is_known = proposal.cost.speed.is_known
    if is_known and n_times * proposal.cost.wall_s <= ASK_ABOVE_S:
        return
    duration = f"about {format_duration(n_times * proposal.cost.wall_s)}"
    duration = duration if is_known else "an unknown time"
    if not as_json and sys.stdin.isatty() and sys.stderr.isatty():
        if not typer.confirm(f"This takes {duration} on this machine. Start?", err=True):
            raise typer.Abort
        return
    raise UsageError(
        f"a plan of {duration} on this machine without --yes",
        "--yes for a plan that takes more than an hour, or whose time is unknown",
        "Show the plan with --dry-run, then add --yes, or use --launcher slurm.",
    )
