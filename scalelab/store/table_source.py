"""One table in a private in-memory DuckDB; `scalelab.store.tables` reads from it."""

from __future__ import annotations

import csv
import gzip
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scalelab.errors import DataError, UsageError, listed
from scalelab.records.evaluated import EvaluatedOn
from scalelab.records.types import Curves
from scalelab.store.cells import has_decimal_commas, parse_cell
from scalelab.store.columns import likely_columns

if TYPE_CHECKING:
    import duckdb
    import pandas as pd


_PART = 500
"""Rows of one INSERT."""


class TableSource:
    """One loaded table.

    Attributes
    ----------
    name : str
        Name of the table, for messages.
    types : dict of str to str
        DuckDB type by column, in the order of the table.
    repeated : frozenset of str
        Lower-case names that several columns share; DuckDB renames all except one.
    malformed : list of (line, text, reason)
        Lines that are not rows of the table.
    notes : dict of str to str
        Notes on what was read, by code.
    curves : Curves or None
        Training curves of the rows.
    param_convention : str
        How the rows count N, where the source says so.
    is_log : bool
        Whether the rows are logged runs, whose losses are in the unit that the notes state.
    metrics : dict of str to str, or None
        Column by metric, such as ``bpb:code``; None takes them from the names of the columns.
    evaluated : EvaluatedOn or None
        Text and tokenizer of the losses that the source states; None reads them from columns.
    data : Path or None
        Folder of the prepared data of the rows; None for a table.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        name: str,
        first_line: int,
        text_file: Path | None = None,
        header: Sequence[str] = (),
    ) -> None:
        self._connection = connection
        self._first_line = first_line
        self._text_file = text_file
        self.name = name
        described = connection.execute("DESCRIBE source").fetchall()
        self.types = {column: kind for column, kind, *_ in described}
        counted = Counter(map(str.lower, header))
        self.repeated = frozenset(name for name, count in counted.items() if count > 1)
        self.malformed: list[tuple[int, str, str]] = []
        self.notes: dict[str, str] = {}
        self.curves: Curves | None = None
        self.is_log = False
        self.metrics: dict[str, str] | None = None
        self.param_convention = "unstated"
        self.evaluated: EvaluatedOn | None = None
        self.data: Path | None = None
        self._ends: NDArray[np.int64] | None = None
        self._n_cells = 0
        if text_file is not None:
            self._find_malformed()
        # Conditions are SQL from the user and must not read files.
        connection.execute("SET enable_external_access = false")
        connection.execute("CREATE TEMP VIEW rows AS SELECT *, rowid AS source_row FROM source")

    def __len__(self) -> int:
        return int(self.fetch("SELECT count(*) AS n FROM source")["n"][0])

    def make_numeric(self, columns: Sequence[str], small: Sequence[str] = ()) -> None:
        """Convert text columns to numbers; cells that are not numbers become NULL.

        Numbers may be written as people write them, see `scalelab.store.cells.parse_cell`.

        Parameters
        ----------
        columns : sequence of str
        small : sequence of str
            Columns of small numbers, in which ``3,364`` is 3.364.

        Raises
        ------
        DataError
            If a column contains no number.
        """
        dirty = [c for c in dict.fromkeys(columns) if self.types.get(c) == "VARCHAR"]
        if not dirty:
            return
        casts = ", ".join(f"{self._number_of(c, is_small=c in small)} AS {quote(c)}" for c in dirty)
        self._connection.execute(
            "CREATE OR REPLACE TEMP VIEW rows AS "
            f"SELECT * REPLACE ({casts}), rowid AS source_row FROM source"
        )
        for column in dirty:
            counted = self.fetch(f"SELECT count({quote(column)}) AS n, count(*) AS m FROM rows")
            if counted["m"][0] and not counted["n"][0]:
                numeric = ", ".join(n for n, kind in self.types.items() if is_numeric(kind))
                raise DataError(
                    f"column {column} of {self.name}, which contains text",
                    f"a column of numbers ({numeric or 'the table has none'})",
                    "Read another column, for example --map loss_nats=COLUMN, or store "
                    f"numbers in {column}.",
                )
            self.types[column] = "DOUBLE"

    def _number_of(self, column: str, *, is_small: bool) -> str:
        """Return the expression of a text column's numbers."""
        name = quote(column)
        cast = f"TRY_CAST({name} AS DOUBLE)"
        texts = self.texts(
            f"SELECT DISTINCT {name} FROM source WHERE {name} IS NOT NULL AND {cast} IS NULL"
        )
        comma = has_decimal_commas(texts, is_small=is_small)
        numbers = {text: parse_cell(text, decimal_comma=comma) for text in texts}
        known = {text: number for text, number in numbers.items() if number is not None}
        if not known:
            return cast
        self._n_cells += 1
        table = f"cells_{self._n_cells}"
        self._connection.execute(f"CREATE TEMP TABLE {table} (written VARCHAR, number DOUBLE)")
        for start in range(0, len(known), _PART):
            part = list(known.items())[start : start + _PART]
            marks = ", ".join("(?, ?)" for _ in part)
            self._connection.execute(
                f"INSERT INTO {table} VALUES {marks}", [cell for row in part for cell in row]
            )
        # Inside this view, source is the only other table.
        return f"coalesce({cast}, (SELECT number FROM {table} WHERE written = source.{name}))"

    def check(self, query: str, shown: str) -> None:
        """Raise UsageError unless ``query`` is one valid statement over the columns."""
        import duckdb

        try:
            is_single = len(self._connection.extract_statements(query)) == 1
            if is_single:
                self._connection.execute(f"EXPLAIN {query}")
        except duckdb.Error as error:
            raise self._bad_sql(shown, error) from None
        if not is_single:
            raise UsageError(
                f"{shown!r}, several statements",
                "one SQL condition",
                "Remove the ';', for example: --where \"n_params > 1e6\"",
            )

    def fetch(self, query: str, shown: str = "") -> dict[str, NDArray[Any]]:
        """Return the columns of a query as arrays, with NaN or empty text for NULL.

        Raises
        ------
        UsageError
            If the user's part of the query, ``shown``, fails.
        """
        import duckdb

        try:
            fetched = self._connection.execute(query).fetchnumpy()
        except duckdb.Error as error:
            raise self._bad_sql(shown, error) from None
        return {name: _plain(column) for name, column in fetched.items()}

    def texts(self, query: str) -> list[str]:
        """Return the first column of a query as text."""
        return [str(row[0]) for row in self._connection.execute(query).fetchall()]

    def cells(self, expression: str, rows: NDArray[np.int64]) -> list[str | None]:
        """Return the original text of an expression in these rows."""
        listed = ",".join(map(str, rows))
        found = dict(
            self._connection.execute(
                f"SELECT rowid, CAST({expression} AS VARCHAR) FROM source WHERE rowid IN ({listed})"
            ).fetchall()
        )
        return [found[row] for row in rows]

    def lines(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the line in the file, or the number, of these rows."""
        if self._ends is not None:
            return self._ends[rows]
        return rows + self._first_line

    def count_lines(self) -> None:
        """Find the last line of each row; a row may span lines and lines may be blank."""
        if self._text_file is None or self._ends is not None:
            return
        ends, odd = _row_ends(self._text_file, len(self.types))
        if len(ends) == len(self):
            self._ends = np.asarray(ends, dtype=np.int64)
        if len(odd) == len(self.malformed):
            self.malformed = [
                (line, text, reason)
                for line, (_, text, reason) in zip(odd, self.malformed, strict=True)
            ]

    def _find_malformed(self) -> None:
        self.malformed = [
            (int(line), str(text).strip(), first_line(message))
            for line, text, message in self._connection.execute(
                "SELECT line, any_value(csv_line), any_value(error_message) FROM reject_errors "
                "GROUP BY line ORDER BY line"
            ).fetchall()
        ]
        if self.malformed:
            self.count_lines()

    def _bad_sql(self, shown: str, error: Exception) -> UsageError:
        unknown = re.search(r'column "(.+?)" not found', str(error))
        likely = likely_columns(unknown[1], self.types)[:1] if unknown else []
        return UsageError(
            f"{shown!r} ({first_line(error)})",
            f"DuckDB SQL over the columns {listed(self.types, unknown[1] if unknown else '')}",
            f"Did you mean {likely[0]}?"
            if likely
            else "Put text in single quotes, and column names with special characters in double "
            "quotes.",
        )


@contextmanager
def open_frame(frame: pd.DataFrame) -> Iterator[TableSource]:
    """Load a pandas frame; row numbers start at 1."""

    def load(connection: duckdb.DuckDBPyConnection) -> TableSource:
        import duckdb

        try:
            connection.register("given", frame)
            connection.execute("CREATE TEMP TABLE source AS SELECT * FROM given")
        except duckdb.Error:
            connection.register("given", _with_known_types(frame, connection))
            connection.execute("CREATE TEMP TABLE source AS SELECT * FROM given")
        return TableSource(connection, "the frame", 1, header=[str(c) for c in frame.columns])

    with opened(load, "the frame") as table:
        yield table


def _with_known_types(frame: pd.DataFrame, connection: duckdb.DuckDBPyConnection) -> pd.DataFrame:
    """Return the frame with numbers or text in the columns whose dtype DuckDB does not know."""
    frame = frame.copy(deep=False)
    for i in range(len(frame.columns)):
        column = frame.iloc[:, i]
        try:
            connection.from_df(column.to_frame(name="x")).fetchall()
        except Exception:  # the error depends on the dtype
            values = np.asarray(column)
            if values.dtype.kind in "biuf":
                known = values.astype(np.float64)
            else:
                known = column.astype(str).to_numpy(dtype=object)
                known[column.isna().to_numpy()] = None
            frame.isetitem(i, known)
    return frame


@contextmanager
def opened(
    load: Callable[[duckdb.DuckDBPyConnection], TableSource], name: str
) -> Iterator[TableSource]:
    """Load a table into a new DuckDB, which is closed afterwards.

    Raises
    ------
    DataError
        If it is not a table.
    """
    import duckdb

    connection = duckdb.connect()
    try:
        try:
            table = load(connection)
        except duckdb.Error as error:
            raise DataError(
                f"{name}, which cannot be read as a table ({first_line(error)})",
                "a CSV file with a header line, or Parquet",
                "Start the file with one line of column names, then one line per run.",
            ) from None
        yield table
    finally:
        connection.close()


def quote(name: str) -> str:
    """Return an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def first_line(error: object) -> str:
    """Return the first line of a message."""
    return (str(error).strip().splitlines() or [""])[0]


def is_numeric(kind: str) -> bool:
    """Return whether a DuckDB type is numeric."""
    return (
        kind in ("DOUBLE", "FLOAT", "INTEGER", "UINTEGER")
        or kind.endswith("INT")
        or (kind.startswith("DECIMAL"))
    )


def opener(path: Path) -> Callable[..., Any]:
    """Return the function that opens a text file, by the ending of its name."""
    ending = path.name.lower().rpartition(".")[2]
    openers: dict[str, Callable[..., Any]] = {"gz": gzip.open, "zst": _open_zstd}
    return openers.get(ending, open)


def _open_zstd(path: Path, mode: str = "rb", **text: Any) -> Any:
    import io

    import pyarrow as pa

    stream = pa.input_stream(str(path), compression="zstd")
    return stream if mode == "rb" else io.TextIOWrapper(io.BufferedReader(stream), **text)


def delimiter(header: str) -> str:
    """Return the delimiter of a line of column names."""
    return max(",;\t|", key=header.count)


def _row_ends(path: Path, width: int) -> tuple[list[int], list[int]]:
    """Return the last line of each row with ``width`` cells, and of each other row."""
    ends: list[int] = []
    odd: list[int] = []
    with opener(path)(path, "rt", newline="", errors="replace") as stream:
        reader = csv.reader(stream, delimiter=delimiter(stream.readline()))
        for cells in reader:
            if cells:
                (ends if len(cells) == width else odd).append(reader.line_num + 1)
    return ends, odd


def _plain(column: Any) -> NDArray[Any]:
    """Return a fetched column as an array without a mask."""
    if not isinstance(column, np.ma.MaskedArray):
        values = np.asarray(column)
        return values.astype(np.str_) if values.dtype == object else values
    if column.dtype == object:
        return np.asarray(column.filled("")).astype(np.str_)
    return np.asarray(column.filled(False if column.dtype == bool else np.nan))
