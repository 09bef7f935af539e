"""Keep a table made elsewhere among the results: ``<results>/imports/<name>/``.

::

    data.parquet   the usable rows, in our columns, with the line of the file that each comes from
    mapping.json   what was imported, when, and how its columns were read
    rejects.csv    the rows that were set aside: line, column, value, reason

The folder appears whole, by rename, or not at all.
"""

from __future__ import annotations

import csv
import hashlib
import json
import secrets
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scalelab.errors import DataError, UsageError, unwritable
from scalelab.records.files import fsync
from scalelab.records.names import named_folder, suggest_name
from scalelab.store.scan import read_json
from scalelab.store.sources import IMPORT_FILE
from scalelab.store.table_source import open_file
from scalelab.store.tables import ALIASES, CORE, ReadOptions, TableRead, read_source
from scalelab.theory.accounting import FLOP_CONVENTIONS, PARAM_CONVENTIONS

if TYPE_CHECKING:
    import pyarrow as pa

MAPPING_FILE = "mapping.json"
REJECTS_FILE = "rejects.csv"
MAPPING_SCHEMA = 1

_HASH_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportReport:
    """What an import did.

    Attributes
    ----------
    name : str
        Under which `fit --sweep` finds it.
    folder : Path
        Where it lies.
    n_rows, n_rejects : int
        Rows taken, and rows set aside in ``rejects.csv``.
    is_new : bool
        False when the same table had been imported under this name in the same way before.
    mapping : Mapping[str, str]
        Our columns and what was read for them.
    param_convention, flop_convention : str
        How the table counts.
    notes : Mapping[str, str]
        What was decided without being asked, by code.
    """

    name: str
    folder: Path
    n_rows: int
    n_rejects: int
    is_new: bool
    mapping: Mapping[str, str]
    param_convention: str
    flop_convention: str
    notes: Mapping[str, str]


def import_table(
    results: Path,
    file: Path,
    options: ReadOptions,
    *,
    name: str | None = None,
    replaces: bool = False,
) -> ImportReport:
    """Import a CSV, TSV or Parquet file of finished runs.

    Parameters
    ----------
    results : Path
        The results folder; made when it is missing.
    file : Path
        The table.
    options : ReadOptions
        How its columns are read.
    name : str, optional
        Name of the import; by default from the name of the file.
    replaces : bool
        Whether an earlier import of that name gives way.

    Raises
    ------
    UsageError
        When the name cannot be a folder, is a sweep's, or is that of another import, or there is no
        such convention.
    DataError
        When the file cannot be read, lacks a column, or has no usable row, or the results folder
        cannot be written; nothing is left behind then.
    """
    _check_convention("param", options.param_convention, PARAM_CONVENTIONS)
    _check_convention("flop", options.flop_convention, FLOP_CONVENTIONS)
    stem = file.name.split(".")[0]
    name = suggest_name(stem, fallback="table") if name is None else name
    folder = named_folder(results / "imports", name, what="import")
    if (results / "sweeps" / name).exists():
        raise UsageError(
            f"import name {name!r}, which is the name of a sweep",
            "a name of its own",
            f"Choose one with --name, such as {name}-import.",
        )
    identity = _identity(file, options)
    earlier = read_json(str(folder / MAPPING_FILE)) if folder.exists() else None
    if earlier is not None and all(earlier.get(key) == value for key, value in identity.items()):
        return _report(folder, earlier, is_new=False)
    if folder.exists() and not replaces:
        raise UsageError(
            f"import name {name!r}, under which another table or mapping was imported",
            "a name of its own, or --replace",
            f"Choose another --name, or replace the {_rows_of(earlier)} that are there.",
        )
    read = _read(file, options)
    about = {
        "schema": MAPPING_SCHEMA,
        "name": name,
        **identity,
        "imported_s": time.time(),
        "source": str(file.resolve()),
        "columns": dict(read.mapping),
        "param_convention": read.observations.param_convention,
        "flop_convention": read.observations.flop_convention,
        "rows": len(read.observations),
        "rejects": len(read.rejects),
        "notes": dict(read.notes),
    }
    _write_folder(folder, read, about)
    return _report(folder, about, is_new=True)


def _check_convention(what: str, given: str, known: Mapping[str, str]) -> None:
    if given not in (*known, "unstated"):
        raise UsageError(
            f"--{what}-convention {given!r}",
            f"one of {', '.join(known)}, or unstated",
            "Choose the one that counts as the file does.",
        )


def _read(file: Path, options: ReadOptions) -> TableRead:
    """Read the table with its columns of text, which a condition may want later."""
    with open_file(file) as source:
        taken = {*options.mapping.values(), *CORE, *ALIASES, *sum(ALIASES.values(), ())}
        texts = [
            column
            for column, kind in source.types.items()
            if kind == "VARCHAR" and column.lower() not in {name.lower() for name in taken}
        ]
        return read_source(source, _with_texts(options, texts))


def _with_texts(options: ReadOptions, texts: list[str]) -> ReadOptions:
    return replace(options, text_columns=(*options.text_columns, *texts))


def _identity(file: Path, options: ReadOptions) -> dict[str, Any]:
    """Return what makes two imports the same."""
    digest = hashlib.sha256()
    try:
        with file.open("rb") as stream:
            while part := stream.read(_HASH_BYTES):
                digest.update(part)
    except OSError as error:
        raise DataError(
            f"{file}, which cannot be read ({error.strerror})",
            "a CSV or Parquet file",
            "Check the path and its permissions.",
        ) from None
    return {
        "sha256": digest.hexdigest(),
        "map": dict(options.mapping),
        "where": options.where,
        "asked_param_convention": options.param_convention,
        "asked_flop_convention": options.flop_convention,
    }


def _write_folder(folder: Path, read: TableRead, about: Mapping[str, Any]) -> None:
    """Write the three files into a hidden folder and give it its name when all are on the disk."""
    import pyarrow.parquet as pq

    token = secrets.token_hex(4)
    partial = folder.with_name(f".partial-{folder.name}-{token}")
    replaced = folder.with_name(f".replaced-{folder.name}-{token}")
    try:
        partial.mkdir(parents=True)
        pq.write_table(_as_arrow(read), partial / IMPORT_FILE)
        with (partial / REJECTS_FILE).open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(("line", "column", "value", "reason"))
            writer.writerows((r.line, r.column, r.value, r.reason) for r in read.rejects)
        (partial / MAPPING_FILE).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        for entry in (*partial.iterdir(), partial):
            fsync(entry)
        if folder.exists():
            folder.rename(replaced)
        partial.rename(folder)
        fsync(folder.parent)
    except OSError as error:
        raise unwritable(folder.parent, "an import", error) from error
    finally:
        for left in (partial, replaced):
            shutil.rmtree(left, ignore_errors=True)


def _as_arrow(read: TableRead) -> pa.Table:
    import pyarrow as pa

    rows = read.observations
    columns: dict[str, Any] = {"line": read.lines, **{n: getattr(rows, n) for n in CORE}}
    if rows.budget is not None:
        columns["budget_flops"] = rows.budget
    if rows.cluster is not None:
        columns["cluster"] = rows.cluster
    for name, values in rows.extra.items():
        columns[f"file_{name}" if name in columns else name] = values
    return pa.table(
        {
            name: pa.array(
                values.tolist() if np.asarray(values).dtype.kind == "U" else values,
                from_pandas=True,
            )
            for name, values in columns.items()
        }
    )


def _report(folder: Path, about: Mapping[str, Any], *, is_new: bool) -> ImportReport:
    return ImportReport(
        name=folder.name,
        folder=folder,
        n_rows=about["rows"],
        n_rejects=about["rejects"],
        is_new=is_new,
        mapping=about["columns"],
        param_convention=about["param_convention"],
        flop_convention=about["flop_convention"],
        notes=about["notes"],
    )


def _rows_of(about: Mapping[str, Any] | None) -> str:
    return f"{about['rows']} rows" if about and "rows" in about else "files"
