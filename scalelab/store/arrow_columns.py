"""Python values as Arrow columns, without pandas.

``pyarrow.array`` imports pandas when it first meets a list, which takes longer than to convert
10,000 runs. A column of one type of values and nulls is therefore laid out here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from types import NoneType
from typing import TYPE_CHECKING, Any

import numpy as np

from scalelab.store.table_types import BOOL, INT, REAL, TEXT, Table

if TYPE_CHECKING:
    import pyarrow as pa

_LARGEST_TEXT = 2**31 - 1
"""Bytes of a column of texts, whose offsets have 32 bits."""


def arrow_columns(table: Table, columns: Mapping[str, Sequence[Any]]) -> pa.Table:
    """Return lists of values, one per column of ``table``, as an Arrow table.

    A value of the wrong type (an edited file) becomes null, so that the row is not lost.
    """
    import pyarrow as pa

    arrays = {}
    for column in table.columns:
        values = columns[column.name]
        try:
            arrays[column.name] = arrow_array(values, column.type)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            coerced = [_coerced(value, column.type) for value in values]
            arrays[column.name] = arrow_array(coerced, column.type)
    return pa.table(arrays)


def text_table(columns: Mapping[str, Sequence[str]]) -> pa.Table:
    """Return lists of texts as an Arrow table."""
    import pyarrow as pa

    return pa.table({name: arrow_array(values, TEXT) for name, values in columns.items()})


def arrow_array(values: Sequence[Any], kind: str) -> pa.Array:
    """Return values and None as a column of a kind of `scalelab.store.table_types`.

    Raises
    ------
    pyarrow.ArrowInvalid, pyarrow.ArrowTypeError, OverflowError
        For a value of another type, or too large for it.
    """
    import pyarrow as pa

    types = {INT: pa.int64(), REAL: pa.float64(), BOOL: pa.bool_()}
    of_kind = types.get(kind, pa.string())
    found = set(map(type, values))
    if found <= {NoneType}:
        return pa.nulls(len(values), of_kind)
    buffers = _buffers(values, kind, found - {NoneType})
    if buffers is None:
        return pa.array(values, of_kind)
    known = np.array([value is not None for value in values]) if NoneType in found else None
    masks = [None if known is None else _bits(known)]
    arrays = [None if each is None else pa.py_buffer(each) for each in masks + buffers]
    return pa.Array.from_buffers(of_kind, len(values), arrays)


def _buffers(values: Sequence[Any], kind: str, found: set[type]) -> list[Any] | None:
    """Return the buffers of a column without that of its nulls; None for mixed types.

    What a null holds does not matter.
    """
    if kind == INT and found == {int}:
        return [np.array([value or 0 for value in values], dtype=np.int64)]
    if kind == REAL and found <= {int, float}:
        known = [0.0 if value is None else value for value in values]  # -0.0 keeps its sign
        return [np.array(known, dtype=np.float64)]
    if kind == BOOL and found == {bool}:
        return [_bits(np.array([value or False for value in values]))]
    if kind == TEXT and found == {str}:
        texts = [value or "" for value in values]
        joined = "".join(texts)
        if joined.isascii():
            content, lengths = joined.encode(), map(len, texts)
        else:
            encoded = [text.encode() for text in texts]
            content, lengths = b"".join(encoded), map(len, encoded)
        if len(content) <= _LARGEST_TEXT:
            return [np.array([0, *accumulate(lengths)], dtype=np.int32), content]
    return None


def _bits(values: np.ndarray[Any, np.dtype[np.bool_]]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.packbits(values, bitorder="little")


def _coerced(value: Any, kind: str) -> Any:
    """Return ``value`` converted to the column's type, None if that is not possible."""
    if value is None:
        return None
    if kind == BOOL:
        return value if isinstance(value, bool) else None
    if kind not in (INT, REAL):
        return str(value)
    try:
        number = float(value)
    except OverflowError:
        return math.inf if kind == REAL else None
    except (TypeError, ValueError):
        return None
    if kind == REAL:
        return number
    return int(value) if math.isfinite(number) and abs(number) < 2**63 else None
