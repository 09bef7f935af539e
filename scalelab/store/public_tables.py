"""Public tables of published runs in the package: ``--from public:NAME``.

``scalelab/public_tables/tables.toml`` lists them; the README of each folder describes its columns.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from scalelab.errors import DataError, did_you_mean
from scalelab.records.evaluated import EvaluatedOn

PREFIX = "public:"
FOLDER = Path(__file__).parents[1] / "public_tables"


@dataclass(frozen=True, kw_only=True, slots=True)
class PublicTable:
    """One table and where it comes from.

    Attributes
    ----------
    name : str
        What follows ``public:``.
    file : str
        Path of the CSV file within `FOLDER`.
    title, source, licence, cite : str
        Content, repository with commit, licence and paper.
    rows : int
        Number of rows.
    where : str
        ``--where`` condition of the rows that the paper fits; empty for all rows.
    text, tokenizer : str
        Evaluated text and tokenizer of the losses; empty if the source does not state them.
    """

    name: str
    file: str
    title: str
    rows: int
    source: str
    licence: str
    cite: str
    where: str = ""
    text: str = ""
    tokenizer: str = ""


def list_public_tables() -> tuple[PublicTable, ...]:
    """Return the tables of the package, in the order of their index."""
    index = tomllib.loads((FOLDER / "tables.toml").read_text(encoding="utf-8"))
    return tuple(PublicTable(name=name, **entry) for name, entry in index.items())


def near_table(path: Path) -> str:
    """Return ``Did you mean public:..? `` for a table's name without the prefix, or nothing."""
    return did_you_mean(str(path), [each.name for each in list_public_tables()], prefix=PREFIX)


def table_path(path: Path) -> Path:
    """Return the file of ``public:NAME``; any other path is returned unchanged.

    Raises
    ------
    DataError
        If the package has no table of that name.
    """
    text = str(path)
    if not text.startswith(PREFIX):
        return path
    name = text.removeprefix(PREFIX)
    tables = {table.name: table for table in list_public_tables()}
    if name not in tables:
        raise DataError(
            f"unknown public table {name!r}",
            f"one of {', '.join(tables)}",
            did_you_mean(name, tables, prefix=PREFIX) + "List the tables with `scalelab tables`.",
        )
    return FOLDER / tables[name].file


def published_text(path: Path) -> EvaluatedOn | None:
    """Return what the losses of ``public:NAME`` are of; None for any other path."""
    name = str(path).removeprefix(PREFIX)
    found = [table for table in list_public_tables() if table.name == name]
    if not str(path).startswith(PREFIX) or not found:
        return None
    (table,) = found
    return EvaluatedOn(
        texts=(table.text,) if table.text else (),
        tokenizers=(table.tokenizer,) if table.tokenizer else (),
        is_named=True,
    )
