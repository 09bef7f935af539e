"""What `resume` needs of a sweep's last launch: ``[launcher]``, ``[execution]``, ``[program]``.

::

    sweeps/<name>/launcher.json
    sweeps/<name>/execution.json
    sweeps/<name>/program.json    of a user's program only
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from scalelab.errors import SpecError
from scalelab.launch.programs.source import save_program
from scalelab.launch.programs.speed import table_rates
from scalelab.records.files import write_atomically
from scalelab.records.sweep_dir import EXECUTION_FILE, Results
from scalelab.sweep.option import Table, validated
from scalelab.sweep.spec import SweepSpec
from scalelab.sweep.tables import ExecutionTable, LauncherTable

FILES: Mapping[type[Table], str] = {
    LauncherTable: "launcher.json",
    ExecutionTable: EXECUTION_FILE,
}

_Options = TypeVar("_Options", bound=Table)


def save_launch(results: Results, name: str, sweep: SweepSpec) -> None:
    """Save the tables of a sweep's specification that `resume` uses again."""
    save_options(results, name, sweep.launcher, sweep.execution)
    if sweep.program is not None:
        save_program(results, name, sweep.program, table_rates(sweep.program))


def save_options(results: Results, name: str, *tables: Table) -> None:
    """Save tables of options of a sweep, for `resume`."""
    for table in tables:
        path = results.sweep(name) / FILES[type(table)]
        write_atomically(path, table.model_dump_json(indent=1))


def saved_options(results: Results, name: str, kind: type[_Options]) -> _Options:
    """Return the options that a sweep was last launched with; defaults if none were saved.

    Raises
    ------
    SpecError
        If the file cannot be read.
    """
    path = results.sweep(name) / FILES[kind]
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return kind()
    except ValueError as error:
        raise SpecError(
            f"options {path}: {error}",
            "the file as `scalelab sweep` wrote it",
            "Run the sweep command again: it rewrites the file.",
        ) from None


def changed_options(options: _Options, changes: Mapping[str, Any]) -> _Options:
    """Return options with some changes, in nested tables.

    Raises
    ------
    UsageError
        If a value is out of its range.
    """
    return validated(type(options), _merged(options.model_dump(), changes), source="the options")


def _merged(content: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **content,
        **{
            key: _merged(content[key], value) if isinstance(value, Mapping) else value
            for key, value in changes.items()
        },
    }
