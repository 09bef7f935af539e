"""Open a file of runs: a table of any usual format, or the run logs of another trainer."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalelab.errors import DataError, near_file
from scalelab.logs.files import read_document, read_lines
from scalelab.logs.values import flatten, load_json
from scalelab.store.public_tables import near_table, table_path
from scalelab.store.reading import Reading
from scalelab.store.table_source import TableSource, delimiter, opened, opener

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

TEXT_SUFFIXES = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".csv.zst", ".tsv.zst")
JSON_SUFFIXES = (".json", ".jsonl", ".ndjson", ".json.gz", ".jsonl.gz", ".ndjson.gz")
PARQUET_SUFFIXES = (".parquet", ".pq")
ARROW_SUFFIXES = (".arrow", ".feather", ".ipc")
EXCEL_SUFFIXES = (".xlsx",)
SUFFIXES = TEXT_SUFFIXES + JSON_SUFFIXES + PARQUET_SUFFIXES + ARROW_SUFFIXES + EXCEL_SUFFIXES
MAGIC = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2"}
"""First bytes of compressed files."""

_HEADER_BYTES = 1 << 20
_MOST_JSON_ROWS = 5_000_000


@contextmanager
def open_file(path: Path, reading: Reading | None = None) -> Iterator[TableSource]:
    """Load a table, a public table by the name ``public:NAME``, or run logs.

    Raises
    ------
    UsageError
        If the format is not known.
    DataError
        If the file does not exist or is neither a table nor a run log.
    """
    reading = reading or Reading()
    asked, path = path, table_path(path)
    label = str(asked) if asked != path else path.name
    if not path.exists():
        raise DataError(
            f"{path}, which is not an existing file",
            "a table, a run log or a folder of run logs",
            f"{near_file(path) or near_table(path)}"
            "Write its path from the current folder, for example data/runs.csv.",
        )
    if path.is_file() and not path.stat().st_size:
        raise DataError(
            f"{path}, which is empty",
            "a table or a run log",
            "Write the table to it again; a CSV file starts with a line of column names.",
        )
    is_public = asked != path
    if not is_public and _is_read_as_log(path, reading.format):
        from scalelab.store.run_logs import read_log_table

        logs = read_log_table(
            path,
            format=reading.format,
            loss_unit=reading.loss_unit,
            includes_unfinished=reading.includes_unfinished,
        )
        with opened(_loads_arrow(logs.rows, str(path)), str(path)) as table:
            table.notes, table.curves, table.is_log = dict(logs.notes), logs.curves, True
            table.param_convention = logs.param_convention
            yield table
        return
    with opened(_loader(path, label), str(path)) as table:
        yield table


def _is_read_as_log(path: Path, format: str | None) -> bool:
    """Return whether a path is read as run logs; the formats of logs are loaded to ask."""
    from scalelab.logs.registry import TABLE, is_log

    return is_log(path) if format is None else format != TABLE


def _loader(path: Path, label: str) -> Callable[[duckdb.DuckDBPyConnection], TableSource]:
    """Return what loads a table, by the ending of its name."""
    name = path.name.lower()
    if path.is_dir() or not name.endswith(SUFFIXES):
        raise DataError(
            f"{path.name}, which is {'a folder' if path.is_dir() else 'not a known table or log'}",
            f"a run log (see `scalelab import --help`), or a table ending in {', '.join(SUFFIXES)}",
            "Save the table as CSV or Parquet, for example runs.csv; or name the format of a run "
            "log with --format.",
        )
    if name.endswith(TEXT_SUFFIXES):
        return _loads_text(path, label)
    if name.endswith(JSON_SUFFIXES):
        return _loads_arrow(_json_table(path), label)
    if name.endswith(ARROW_SUFFIXES):
        return _loads_arrow(_arrow_table(path), label)
    if name.endswith(EXCEL_SUFFIXES):
        return _loads_arrow(_excel_table(path), label)

    def load(connection: duckdb.DuckDBPyConnection) -> TableSource:
        import pyarrow.parquet as pq

        connection.execute(
            "CREATE TEMP TABLE source AS SELECT * FROM read_parquet($path)", _exact(path)
        )
        return TableSource(connection, label, 1, header=pq.read_schema(path).names)

    return load


def _exact(path: Path) -> dict[str, str]:
    """Return the parameter of a query that reads this file only: DuckDB expands ``[ ] * ?``."""
    return {"path": re.sub(r"([\[*?])", r"[\1]", str(path))}


def _loads_text(path: Path, label: str) -> Callable[[duckdb.DuckDBPyConnection], TableSource]:
    header = _text_header(path)

    def load(connection: duckdb.DuckDBPyConnection) -> TableSource:
        connection.execute(
            "CREATE TEMP TABLE source AS SELECT * FROM "
            "read_csv($path, header = true, sample_size = -1, store_rejects = true)",
            _exact(path),
        )
        return TableSource(connection, label, 2, path, header)

    return load


def _loads_arrow(rows: pa.Table, label: str) -> Callable[[duckdb.DuckDBPyConnection], TableSource]:
    def load(connection: duckdb.DuckDBPyConnection) -> TableSource:
        connection.register("given", rows)
        connection.execute("CREATE TEMP TABLE source AS SELECT * FROM given")
        return TableSource(connection, label, 1, header=rows.column_names)

    return load


def _text_header(path: Path) -> list[str]:
    """Return the column names in the first line of a text file.

    Raises
    ------
    DataError
        If the file is compressed, or its header is not UTF-8; DuckDB would invent columns.
    """
    ending = path.name.lower().rpartition(".")[2]
    wanted = {"gz": "gzip", "zst": "zstd"}.get(ending)
    with path.open("rb") as compressed:
        start = compressed.read(4)
    kind = next((kind for magic, kind in MAGIC.items() if start.startswith(magic)), None)
    if kind != wanted:
        raise DataError(
            f"{path}, which is "
            + (f"compressed with {kind}" if kind else f"not compressed with {wanted}"),
            "plain text, or a file that ends in .csv.gz or .csv.zst",
            "Rename it so that its ending fits, for example runs.csv.gz."
            if kind in ("gzip", "zstd", None)
            else "Decompress it first, for example with unzip.",
        )
    try:
        with opener(path)(path, "rb") as stream:
            line = bytes(stream.readline(_HEADER_BYTES)).partition(b"\r")[0]
        text = line.decode("utf-8-sig")
        if "\0" not in text:
            return next(csv.reader([text], delimiter=delimiter(text)), [])
    except (EOFError, OSError, UnicodeDecodeError, csv.Error):
        pass
    raise DataError(
        f"{path}, whose first line is not UTF-8 text",
        "UTF-8 with the column names in the first line",
        "Convert the file to UTF-8, for example: iconv -f UTF-16 -t UTF-8 (or -f LATIN1)",
    )


def _json_table(path: Path) -> pa.Table:
    """Return the rows of a JSON file: JSON Lines, a list of objects, or columns.

    Nested objects become columns such as ``model/n_params``.
    """
    import pyarrow as pa

    rows = [flatten(row) for row in _json_rows(path)]
    names = dict.fromkeys(name for row in rows for name in row)
    if not names:
        raise DataError(
            f"{path}, in which no rows were found",
            "one object a line, a list of objects, or an object of columns",
            'Write a row as {"n_params": 2e7, "n_tokens": 4e8, "loss_nats": 4.6}.',
        )
    return pa.table({name: as_cells([row.get(name) for row in rows]) for name in names})


def as_cells(values: Sequence[Any]) -> pa.Array:
    """Return values as a column: numbers where all are numbers, else text."""
    import pyarrow as pa

    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float}:
        return pa.array([None if v is None else float(v) for v in values], pa.float64())
    if kinds <= {bool}:
        return pa.array(values, pa.bool_())
    return pa.array([None if value is None else str(value) for value in values], pa.string())


def _json_rows(path: Path) -> list[Any]:
    """Return the rows of a JSON document or of JSON Lines."""
    lines = (line for line in read_lines(path) if line.strip())
    first = next(lines, "")
    if isinstance(load_json(first), Mapping) and (second := next(lines, None)) is not None:
        rows = [load_json(first), load_json(second)]
        for line in lines:
            rows.append(load_json(line))
            if len(rows) > _MOST_JSON_ROWS:
                raise DataError(
                    f"{path} with more than {_MOST_JSON_ROWS:,} rows",
                    "a smaller file",
                    "Store it as Parquet.",
                )
        return [row for row in rows if isinstance(row, Mapping)]
    found = read_document(path)
    if isinstance(found, list):
        return [row for row in found if isinstance(row, Mapping)]
    return _rows_of_object(found) if isinstance(found, Mapping) else []


def _rows_of_object(found: Mapping[str, Any]) -> list[Any]:
    """Return the rows of an object: of columns, of rows by name, around a list, or one row."""
    lists = {name: value for name, value in found.items() if isinstance(value, list)}
    nested = [value for value in lists.values() if value and isinstance(value[0], Mapping)]
    if len(nested) == 1:
        return [row for row in nested[0] if isinstance(row, Mapping)]
    if lists and len(lists) == len(found) and len({len(value) for value in lists.values()}) == 1:
        return [dict(zip(lists, cells, strict=True)) for cells in zip(*lists.values(), strict=True)]
    if found and all(isinstance(value, Mapping) for value in found.values()):
        columns = [set(value) for value in found.values()]
        if len(columns) > 1 and all(str(key).isdigit() for keys in columns for key in keys):
            # pandas' default orientation: {column: {row: value}}.
            return [
                {name: cells.get(key) for name, cells in found.items()}
                for key in dict.fromkeys(key for cells in found.values() for key in cells)
            ]
        return [{"run": name, **row} for name, row in found.items()]
    return [found]


def _arrow_table(path: Path) -> pa.Table:
    import pyarrow as pa
    import pyarrow.feather

    try:
        return pyarrow.feather.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{path}, which cannot be read as Arrow ({str(error).splitlines()[0]})",
            "an Arrow or Feather file",
            "Write the file again.",
        ) from None


def _excel_table(path: Path) -> pa.Table:
    import pandas as pd
    import pyarrow as pa

    try:
        frame = pd.read_excel(path)
    except ImportError:
        raise DataError(
            f"{path}, for which openpyxl is not installed",
            "CSV or Parquet, or Excel with openpyxl",
            "Install it: pip install openpyxl. Or save the sheet as CSV.",
        ) from None
    except Exception as error:  # openpyxl raises errors of many libraries for damaged files
        raise DataError(
            f"{path}, which cannot be read as Excel ({type(error).__name__})",
            "an .xlsx file",
            "Save the sheet as CSV.",
        ) from None
    frame.columns = [str(name) for name in frame.columns]
    return pa.table({name: as_cells(_excel_cells(frame[name])) for name in frame.columns})


def _excel_cells(column: Any) -> list[Any]:
    cells = column.astype(object).where(column.notna(), None).tolist()
    return [c if c is None or isinstance(c, (bool, int, float)) else str(c) for c in cells]
