"""Import a table or run logs into the results folder, ``<results>/imports/<name>/``.

::

    data.parquet    the usable rows in our columns, with the line of the file
    curves.parquet  training curves of the rows, if they are logged runs
    mapping.json    source file, time, and how its columns were read
    rejects.csv     the unusable rows: line, column, value, reason

The folder is complete or absent, by rename.
"""

from __future__ import annotations

import csv
import hashlib
import json
import secrets
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scalelab.errors import DataError, UsageError, did_you_mean, unwritable
from scalelab.logs.files import walk
from scalelab.records.files import fsync, read_json
from scalelab.records.names import named_folder, suggest_name
from scalelab.records.types import Curves
from scalelab.store.columns import ALIASES, CORE
from scalelab.store.read_options import ReadOptions
from scalelab.store.sources import CURVES_FILE, IMPORT_FILE
from scalelab.store.table_files import open_file
from scalelab.store.table_read import TableRead
from scalelab.store.tables import read_source
from scalelab.theory.accounting import FLOP_CONVENTIONS, PARAM_CONVENTIONS

if TYPE_CHECKING:
    import pyarrow as pa

MAPPING_FILE = "mapping.json"
REJECTS_FILE = "rejects.csv"
MAPPING_SCHEMA = 1

_HASH_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportReport:
    """The result of an import.

    Attributes
    ----------
    name : str
        Name of the import, for `fit --sweep`.
    folder : Path
        Its folder.
    n_rows, n_rejects : int
        Imported rows, and unusable rows in ``rejects.csv``.
    is_new : bool
        False if the same import existed.
    mapping : Mapping[str, str]
        Our columns, and the column or expression read for each.
    param_convention, flop_convention : str
        How the table counts N and C.
    notes : Mapping[str, str]
        Notes for the user, by code.
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
    """Import a table of finished runs, or the run logs of another trainer.

    Parameters
    ----------
    results : Path
        The results folder; created if missing.
    file : Path
        The table, a run log, or a folder of run logs.
    options : ReadOptions
        How to read its columns.
    name : str, optional
        Name of the import; default: the file name without its ending.
    replaces : bool
        Whether to replace an earlier import of that name.

    Raises
    ------
    UsageError
        If the name is invalid or belongs to a sweep or another import, or a convention is unknown.
    DataError
        If the file cannot be read, lacks a column or has no usable row, or the results folder
        cannot be written. The results folder is then unchanged.
    """
    _check_convention("param", options.param_convention, PARAM_CONVENTIONS)
    _check_convention("flop", options.flop_convention, FLOP_CONVENTIONS)
    stem = file.resolve().name.split(".")[0]
    name = suggest_name(stem, fallback="table") if name is None else name
    folder = named_folder(results / "imports", name, what="import")
    if (results / "sweeps" / name).exists():
        raise UsageError(
            f"import name {name!r}, which is the name of a sweep",
            "another name",
            f"Write for example --name {name}-import.",
        )
    identity = _identity(file, options)
    earlier = read_json(folder / MAPPING_FILE) if folder.exists() else None
    if earlier is not None and _is_same(earlier, identity):
        return _report(folder, earlier, is_new=False)
    if folder.exists() and not replaces:
        raise UsageError(
            f"import name {name!r}, which is in use for another table or mapping",
            "a new name, or --replace",
            f"Write --name {name}-2, or replace the earlier import with --replace.",
        )
    read = _read(file, options)
    about = {
        "schema": MAPPING_SCHEMA,
        "name": name,
        **identity,
        "imported_s": time.time(),
        "source": str(file.resolve()),
        "columns": dict(read.mapping),
        "metric": read.observations.metric.text,
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
            f"{did_you_mean(given, known)}Write how the file counts, for example "
            f"--{what}-convention {next(iter(known))}.",
        )


def _read(file: Path, options: ReadOptions) -> TableRead:
    """Read the table with its text columns, which later conditions may use."""
    with open_file(file, options.reading) as source:
        taken = {*options.mapping.values(), *CORE, *ALIASES, *sum(ALIASES.values(), ())}
        texts = [
            column
            for column, kind in source.types.items()
            if kind == "VARCHAR" and column.lower() not in {name.lower() for name in taken}
        ]
        return read_source(source, replace(options, text_columns=(*options.text_columns, *texts)))


def _identity(file: Path, options: ReadOptions) -> dict[str, Any]:
    """Return what two equal imports have in common: file content and options."""
    digest = hashlib.sha256()
    try:
        if file.is_dir():
            # Runs may hold checkpoints of terabytes: a changed file has another size or time.
            for path in walk(file):
                about = path.stat()
                entry = (path.relative_to(file).as_posix(), about.st_size, about.st_mtime_ns)
                digest.update(repr(entry).encode("utf-8", "surrogateescape"))
        else:
            with file.open("rb") as stream:
                while part := stream.read(_HASH_BYTES):
                    digest.update(part)
    except OSError as error:
        raise DataError(
            f"{file}, which cannot be read ({error.strerror})",
            "a table, a run log or a folder of run logs",
            "Write its path from the current folder, for example data/runs.csv, and make it "
            "readable.",
        ) from None
    return {
        "sha256": digest.hexdigest(),
        "map": dict(options.mapping),
        "where": options.where,
        "asked_param_convention": options.param_convention,
        "asked_flop_convention": options.flop_convention,
        **({"reading": reading} if (reading := options.reading.as_dict()) else {}),
    }


def _is_same(earlier: Mapping[str, Any], identity: Mapping[str, Any]) -> bool:
    return all(earlier.get(key) == identity.get(key) for key in {*identity, "reading"})


def _write_folder(folder: Path, read: TableRead, about: Mapping[str, Any]) -> None:
    """Write the files into a hidden folder and rename it when all are on disk."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    token = secrets.token_hex(4)
    partial = folder.with_name(f".partial-{folder.name}-{token}")
    replaced = folder.with_name(f".replaced-{folder.name}-{token}")
    try:
        partial.mkdir(parents=True)
        pq.write_table(_as_arrow(read), partial / IMPORT_FILE)
        if read.curves is not None:
            columns = {item.name: getattr(read.curves, item.name) for item in fields(Curves)}
            pq.write_table(pa.table(columns), partial / CURVES_FILE)
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
        **{name: about[name] for name in ("param_convention", "flop_convention", "notes")},
    )
