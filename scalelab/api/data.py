"""The runs that a verb works on: from a file, a DataFrame or another table, or a sweep."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalelab.errors import DataError, UsageError
from scalelab.units import plural

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from scalelab.fit.outcome import FitWarning
    from scalelab.records.types import Observations
    from scalelab.store.reading import Reading
    from scalelab.store.table_read import TableRead

    Data = (
        str
        | os.PathLike[str]
        | pd.DataFrame
        | Mapping[str, Any]
        | Sequence[Mapping[str, Any]]
        | TableRead
        | Any  # a table of polars, pyarrow or another library
    )

DEFAULT_RESULTS = Path("results")
HELD, RECIPE_B = "holdout", "recipe_b"
TABLES = (
    "a file name, a DataFrame, a dict of columns, a list of dicts, or a polars or pyarrow table"
)
NAMED = "pd.DataFrame(array, columns=['n_params', 'n_tokens', 'loss_nats'])"


def read_runs(
    data: Data | None = None,
    *,
    sweep: str | None = None,
    results: str | Path = DEFAULT_RESULTS,
    mapping: Mapping[str, str] | None = None,
    where: str | None = None,
    holdout: str | None = None,
    recipe_b: str | None = None,
    form: str | None = None,
    reading: Reading | None = None,
) -> TableRead:
    """Return the runs of a table or a sweep.

    Parameters
    ----------
    data : file name, DataFrame or other table, optional
        Without it, the runs of ``sweep``.
    sweep : str, optional
        Name of a sweep; default: the latest sweep that has results.
    results : str or Path
        The results folder.
    mapping : Mapping[str, str], optional
        From our column name to the table's column or a DuckDB expression, for example
        ``{"loss_nats": "val_loss"}``.
    where : str, optional
        DuckDB condition; other rows are ignored.
    holdout : str, optional
        DuckDB condition; these rows are not fitted, and the fit is scored on them.
    recipe_b : str, optional
        DuckDB condition: rows of recipe B. The other rows are recipe A, which is fitted.
    form : str, optional
        Name of the law that reads the rows: columns of N, D and C that it does not need may be
        missing, and losses may have the signs that it accepts. Default: a law of N and D.
    reading : Reading, optional
        Format and unit of a file, and which of its rows are kept.

    Raises
    ------
    UsageError, DataError
        If an argument has the wrong type, or the table cannot be used.
    """
    from scalelab.store.columns import SIZES, needed_sizes
    from scalelab.store.read_options import ReadOptions
    from scalelab.store.reading import Reading
    from scalelab.store.table_read import TableRead
    from scalelab.store.tables import read_frame, read_table
    from scalelab.theory.laws import law_named

    if isinstance(data, TableRead):
        return data
    if mapping is not None and not isinstance(mapping, Mapping):
        raise UsageError(
            f"mapping={mapping!r}",
            "a dict from our column name to yours",
            'Write mapping={"n_params": "params", "loss_nats": "val_loss"}.',
        )
    conditions = {"where": where, HELD: holdout, RECIPE_B: recipe_b}
    for name, condition in conditions.items():
        if condition is not None and not isinstance(condition, str):
            raise UsageError(
                f"{name} of type {type(condition).__name__}",
                "an SQL condition on the columns, as text",
                f'Write {name}="n_params > 1e8", or select rows first: df[df.n_params > 1e8].',
            )
    law = None if form is None else law_named(form)
    options = ReadOptions(
        needs=SIZES if law is None else needed_sizes(law),
        is_signed=law is not None and law.is_signed,
        law_columns=() if law is None else law.columns,
        mapping=mapping or {},
        where=where,
        marks={name: text for name in (HELD, RECIPE_B) if (text := conditions[name])},
        reading=reading or Reading(),
    )
    if data is None:
        from scalelab.store.results import read_results

        return read_results(Path(results), sweep, options)
    if sweep is not None:
        given = f"the file {data}" if isinstance(data, (str, Path)) else "a table"
        raise UsageError(f"both {given} and the sweep {sweep}", "one of them", "Leave one out.")
    if isinstance(data, (str, os.PathLike)):
        return read_table(Path(data), options)
    return read_frame(as_frame(data), options)


def as_frame(data: Any) -> pd.DataFrame:
    """Return any table in memory as a DataFrame with a column for each name.

    Raises
    ------
    UsageError, DataError
        If it is not a table with named columns.
    """
    import pandas as pd

    kind = type(data).__name__
    try:
        if isinstance(data, pd.DataFrame):
            frame = data
        elif isinstance(data, Mapping) or _is_records(data):
            frame = pd.DataFrame(data)
        elif hasattr(data, "__arrow_c_stream__") and not isinstance(data, pd.Series):
            import pyarrow as pa

            frame = pa.table(data).to_pandas()
        elif hasattr(data, "__dataframe__"):
            import pyarrow.interchange

            frame = pyarrow.interchange.from_dataframe(data).to_pandas()
        else:
            shape = getattr(data, "shape", None)
            given = f"data of type {kind}" + (f" and shape {shape}" if shape else "")
            has_rows = shape is not None or isinstance(data, (list, tuple))
            do = f"Name the columns: {NAMED}." if has_rows else 'Write fit("runs.csv") or fit(df).'
            raise UsageError(given, TABLES, do)
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(
            f"a {kind} that is not a table ({str(error).splitlines()[0]})",
            "columns of equal length",
            "Pass one value per run in each column.",
        ) from None
    if not len(frame.columns):
        raise DataError(
            f"a {kind} without columns",
            "a table with n_params, n_tokens and loss_nats",
            f"Name the columns: {NAMED}.",
        )
    index = [name for name in frame.index.names if name is not None]
    return frame.reset_index() if index and not set(index) & set(frame.columns) else frame


def _is_records(data: Any) -> bool:
    """Whether it is a list of dicts or a NumPy array with named fields."""
    if isinstance(data, (list, tuple)):
        return bool(data) and all(isinstance(row, Mapping) for row in data)
    return getattr(getattr(data, "dtype", None), "names", None) is not None


def split_runs(
    table: TableRead,
) -> tuple[Observations, NDArray[np.int64], Observations | None, Observations | None]:
    """Return the rows to fit with their line numbers, the held-out rows, and those of recipe B."""
    import numpy as np

    every = table.observations
    is_held = table.marks.get(HELD, np.zeros(len(every), bool))
    is_b = table.marks.get(RECIPE_B, np.zeros(len(every), bool)) & ~is_held
    for name, mark in ((HELD, is_held), (RECIPE_B, is_b)):
        if name in table.marks and not 0 < mark.sum() < len(every):
            raise DataError(
                f"a {name} condition that selects {int(mark.sum())} of {plural(len(every), 'row')}",
                "a condition that selects some rows, not all",
                "Change the condition.",
            )
    fitted = np.flatnonzero(~is_held & ~is_b)
    if not len(fitted):
        raise DataError(
            "conditions that leave no row to fit", "some rows", "Change holdout or recipe_b."
        )
    return (
        every.take(fitted),
        table.lines[fitted],
        every.take(np.flatnonzero(is_held)) if HELD in table.marks else None,
        every.take(np.flatnonzero(is_b)) if RECIPE_B in table.marks else None,
    )


def rejected_rows(table: TableRead) -> list[FitWarning]:
    """Return a warning about the rows that cannot be used, if there are any."""
    from scalelab.fit.outcome import FitWarning

    count = len(table.rejects)
    if not count:
        return []
    shown = "; ".join(f"line {reject.line}: {reject.reason}" for reject in table.rejects[:3])
    more = f"; and {count - 3} more" if count > 3 else ""
    left_out = f"{plural(count, 'row')} cannot be used and {'was' if count == 1 else 'were'}"
    return [FitWarning(code="rejected_rows", message=f"{left_out} left out ({shown}{more}).")]


def frame_of(table: TableRead) -> pd.DataFrame:
    """Return the observations of a table: one row per run, our columns first."""
    import pandas as pd

    rows = table.observations
    core = ("n_params", "n_tokens", "loss_nats", "flops", "budget", "cluster")
    columns = {name: getattr(rows, name) for name in core}
    return pd.DataFrame({name: c for name, c in {**columns, **rows.extra}.items() if c is not None})
