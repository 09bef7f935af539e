"""The files of registered forecasts, ``<results>/forecasts/<name>.json``. They never change."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scalelab.errors import UsageError, unwritable
from scalelab.records.files import fsync, list_entries, read_json, write_atomically
from scalelab.records.names import check_name

FOLDER = "forecasts"
ENDING = ".json"


def forecast_file(results: Path, name: str) -> Path:
    """Return the file of a name that is still free.

    Raises
    ------
    UsageError
        If the name is not valid or taken.
    """
    path = forecast_path(results, name)
    if path.exists():
        raise _taken(path)
    return path


def forecast_path(results: Path, name: str) -> Path:
    """Return the file of a name.

    Raises
    ------
    UsageError
        If the name is not valid.
    """
    return results / FOLDER / (check_name(name, what="forecast") + ENDING)


def save_forecast(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file that does not exist yet; a reader never sees part of it.

    Raises
    ------
    UsageError
        If the file exists.
    DataError
        If it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(partial, json.dumps(content, indent=1, allow_nan=False) + "\n")
        try:
            os.link(partial, path)  # fails if another process has registered the name
        finally:
            partial.unlink(missing_ok=True)
        fsync(path.parent)
    except FileExistsError:
        raise _taken(path) from None
    except OSError as error:
        raise unwritable(path.parent, "forecasts", error) from None


def read_forecasts(results: Path) -> dict[Path, dict[str, Any] | None]:
    """Return the content of each file, sorted by name; None if it is not a JSON object."""
    paths = (
        path
        for path in list_entries(results / FOLDER)
        if path.suffix == ENDING and not path.name.startswith(".")
    )
    return {path: read_json(path) for path in sorted(paths)}


def _taken(path: Path) -> UsageError:
    return UsageError(
        f"forecast name {path.stem!r}, which is registered in {path}",
        "a new name: registered forecasts never change",
        f"Use for example --register {path.stem}-2.",
    )
