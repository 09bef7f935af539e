"""Types of the public tables: a column and a table."""

from __future__ import annotations

from dataclasses import dataclass

TEXT = "VARCHAR"
INT = "BIGINT"
REAL = "DOUBLE"
BOOL = "BOOLEAN"


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a public table.

    Attributes
    ----------
    name : str
        Name of the column, and of the field or option that it comes from.
    type : str
        DuckDB type.
    unit : str
        Unit of a number; empty for names, counts and booleans.
    meaning : str
        Description, and when the value is NULL.
    """

    name: str
    type: str
    unit: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Table:
    """One public table: meaning of a row, key columns, and all columns."""

    name: str
    row: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]

    def column_names(self) -> tuple[str, ...]:
        """Return the column names in order."""
        return tuple(column.name for column in self.columns)
