"""Settings: flag > environment ``SCALELAB_*`` > ``./scalelab.toml`` > the user's config folder.

A settings file holds default values of options. Values at the top apply to every command that has
the option; tables apply to one command::

    results = "/data/results"

    [sweep.isoflop]
    sizes = 9
    launcher = "slurm"
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import typer

from scalelab.errors import DataError, UsageError

FILE_NAME = "scalelab.toml"


def settings_paths() -> tuple[Path, Path]:
    """Return the settings files: the user's, then that of the current folder."""
    config = Path(os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config"))
    return config / "scalelab" / FILE_NAME, Path(FILE_NAME)


def default_map(command: typer.core.TyperGroup) -> dict[str, Any]:
    """Return the default values of the settings files, by command.

    Raises
    ------
    DataError
        When a file is not TOML.
    UsageError
        When a file names an unknown command or option.
    """
    merged: dict[str, Any] = {}
    for path in settings_paths():
        if path.is_file():
            _merge(merged, _for_group(command, _read(path), {}, str(path)))
    return merged


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DataError(
            f"settings file {path}: {error}",
            "a valid TOML file",
            "Fix that line, for example: sizes = 9",
        ) from None


def _for_group(
    group: Any, content: Mapping[str, Any], inherited: Mapping[str, Any], source: str
) -> dict[str, Any]:
    """Return the defaults of one group of commands; its values apply to every command in it."""
    tables = {key: value for key, value in content.items() if isinstance(value, Mapping)}
    values = {**inherited, **{key: value for key, value in content.items() if key not in tables}}
    unknown = sorted(set(tables) - set(group.commands))
    if unknown:
        raise UsageError(
            f"[{unknown[0]}] in {source}",
            f"a command: {', '.join(sorted(group.commands))}",
            _did_you_mean(
                unknown[0],
                group.commands,
                f"Use one of these, for example [{min(group.commands)}].",
            ),
        )
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        table = tables.get(name, {})
        if hasattr(command, "commands"):
            found[name] = _for_group(command, table, values, source)
        else:
            found[name] = _for_command(name, command, table, values, source)
    return found


def _for_command(
    name: str,
    command: Any,
    table: Mapping[str, Any],
    inherited: Mapping[str, Any],
    source: str,
) -> dict[str, Any]:
    # Keys are the options of the command line, with ``_`` instead of ``-``.
    spelled = {
        option.lstrip("-").replace("-", "_"): parameter.name
        for parameter in command.params
        for option in parameter.opts
    }
    unknown = sorted(set(table) - set(spelled))
    if unknown:
        raise UsageError(
            f"{unknown[0]} in [{name}] of {source}",
            f"an option of `scalelab {name}`: {', '.join(sorted(spelled))}",
            _did_you_mean(unknown[0], spelled, f"Use one of these, for example {min(spelled)}."),
        )
    values = {key: value for key, value in inherited.items() if key in spelled}
    return {spelled[key]: value for key, value in {**values, **table}.items()}


def _did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    near = difflib.get_close_matches(name, list(known), 1)
    return f"Did you mean {near[0]}?" if near else otherwise


def _merge(into: dict[str, Any], other: Mapping[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value
