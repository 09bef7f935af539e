"""Runs that the user leaves out of a fit by name: ``--exclude RUN_ID,..``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalelab.errors import UsageError, did_you_mean
from scalelab.records.names import text_of_names
from scalelab.units import plural

NAME_COLUMNS = ("run_id", "run", "run_name", "label")
"""Columns that name the run of a row, in order of preference."""
SHOWN = 3


def name_column(types: Mapping[str, str]) -> str | None:
    """Return the column that names the run of each row, if there is one."""
    texts = {name.lower(): name for name, kind in types.items() if kind == "VARCHAR"}
    named = next((texts[name] for name in NAME_COLUMNS if name in texts), None)
    # Rows of an import are named by their line in the imported file.
    return "line" if named is None and {"import", "line"} <= set(types) else named


def is_excluded(
    asked: Sequence[str], names: NDArray[Any], lines: NDArray[np.int64], source: str
) -> NDArray[np.bool_]:
    """Return which rows are left out.

    Parameters
    ----------
    asked : sequence of str
        Names of runs, or lines of rows.
    names : ndarray of str or int, shape (n,)
        Name of the run of each row, or its line if the table does not name runs.
    lines : ndarray of int, shape (n,)
        Line of each row.
    source : str
        Name of the table, for messages.

    Raises
    ------
    UsageError
        If no row has the name, or all rows are left out.
    """
    out = np.zeros(len(lines), dtype=bool)
    for each in asked:
        hit = names.astype(np.str_) == each
        if not hit.any() and each.isdecimal():
            hit = lines == int(each)
        if not hit.any():
            raise _unknown(each, names, lines, source)
        out |= hit
    if len(out) and out.all():
        raise UsageError(
            f"--exclude with all {plural(len(out), 'row')} of {source}",
            "at least one row that is left to fit",
            "Name fewer runs.",
        )
    return out


def _unknown(each: str, names: NDArray[Any], lines: NDArray[np.int64], source: str) -> UsageError:
    known = [] if names.dtype.kind == "i" else list(dict.fromkeys(map(str, names)))
    some = ", ".join(known[:SHOWN]) + (", .." if len(known) > SHOWN else "")
    span = f"{lines.min()} to {lines.max()}" if len(lines) else "there is none"
    allowed = f"a run ({some}) or a line ({span})" if known else f"a line of a row ({span})"
    example = known[0] if known else str(lines.min()) if len(lines) else "2"
    return UsageError(
        f"--exclude {each}, which is not in {source}",
        allowed,
        f"{did_you_mean(each, known)}Write for example --exclude {text_of_names([example])}.",
    )
