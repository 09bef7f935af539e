"""What commands write: one JSON object or tables on stdout, progress and logs on stderr."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any

from scalelab.errors import ScalelabError

if TYPE_CHECKING:
    from rich.console import Console

PIPED_WIDTH = 200


def console(*, stderr: bool = False) -> Console:
    """Return a console for people; piped output is plain and wide, so that nothing is cut off."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPED_WIDTH
    return Console(file=stream, width=width, highlight=False, markup=False)


def emit_json(value: Any) -> None:
    """Print one object as JSON: full precision, numbers that JSON lacks (nan, inf) as null."""
    sys.stdout.write(json.dumps(as_plain(value), allow_nan=False) + "\n")


def as_plain(value: Any) -> Any:
    """Return ``value`` with dataclasses, arrays, mappings and paths as JSON's own types."""
    if is_dataclass(value) and not isinstance(value, type):
        return as_plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): as_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [as_plain(item) for item in value]
    if isinstance(value, (bool, str)) or value is None:
        return value
    if hasattr(value, "tolist"):
        return as_plain(value.tolist())
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)


def report_error(error: ScalelabError, *, as_json: bool) -> int:
    """Print the error, as text on stderr or as JSON on stdout, and return its exit code."""
    if as_json:
        emit_json({"error": error.as_dict()})
    else:
        out = console(stderr=True)
        out.print(f"error: got {error.given}", style="bold red", soft_wrap=True)
        out.print(f"expected {error.allowed}", soft_wrap=True)
        out.print(error.do, soft_wrap=True)
    return error.exit_code
