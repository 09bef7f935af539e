"""The command line with commands that are built when they are asked for.

Typer reads the signature of each of 43 commands at every start. One command needs only its own.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import typer
import typer.main
from typer.core import TyperGroup


def lazy_group(app: typer.Typer) -> TyperGroup:
    """Return the group of an app, whose commands and groups have explicit names."""
    group = typer.main.get_group(_with(app))
    group.commands = _Commands(app)  # type: ignore[assignment]  # nothing is added
    return group


def _with(app: typer.Typer, *, commands: Any = (), groups: Any = ()) -> typer.Typer:
    """Return the app with these commands and groups in place of its own."""
    found = copy.copy(app)
    found.registered_commands, found.registered_groups = [*commands], [*groups]
    return found


class _Commands(Mapping[str, Any]):
    """The commands of an app by name, in the order in which they were added."""

    def __init__(self, app: typer.Typer) -> None:
        parts = {info.name: _with(app, commands=[info]) for info in app.registered_commands}
        parts |= {info.name: _with(app, groups=[info]) for info in app.registered_groups}
        self._parts = parts
        self._built: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._built:
            self._built[name] = typer.main.get_group(self._parts[name]).commands[name]
        return self._built[name]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)
