"""The content of a table that was read: usable rows, rejected rows and notes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from scalelab.records.types import Curves, Observations


@dataclass(frozen=True, kw_only=True, slots=True)
class Reject:
    """One row that cannot be used.

    Attributes
    ----------
    line : int
        Last line of the row in the file, where the header is line 1; in Parquet the row number.
    column : str
        Our name of the invalid column, empty if the whole row is malformed.
    value : str
        The cell in the file.
    reason : str
        What is wrong, for messages.
    """

    line: int
    column: str
    value: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TableRead:
    """The content of a table.

    Attributes
    ----------
    observations : Observations
        The selected usable rows, in the order of the file.
    lines : ndarray of int, shape (n,)
        The line of each row in the file.
    rejects : tuple of Reject
        The selected unusable rows.
    marks : Mapping[str, ndarray of bool, shape (n,)]
        For each named condition, whether it is true in each row.
    mapping : Mapping[str, str]
        Our column name to the column or SQL expression that was read for it.
    notes : Mapping[str, str]
        Notes for the user by code: ``derived_flops``, ``duplicate_rows``, ..
    curves : Curves or None
        Training curves, if the rows are the runs of a sweep.
    """

    observations: Observations
    lines: NDArray[np.int64]
    rejects: tuple[Reject, ...] = ()
    marks: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    mapping: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    curves: Curves | None = None
