"""Explicit shapes of a sweep: labels such as ``4L-64d-4h``, tables of a sweep file, or a CSV file.

Use them to train exactly the models of another project. `scalelab.sweep.shapes.ShapeRule` completes
what an entry leaves out: heads, hidden width and key heads.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from scalelab.errors import DataError, UsageError, did_you_mean

LABEL = re.compile(
    r"(?P<n_layers>\d{1,9})L-(?P<d_model>\d{1,9})d(?:-(?P<n_heads>\d{1,9})h)?"
    r"(?:-(?P<n_kv_heads>\d{1,9})kv)?"
)
REQUIRED = ("n_layers", "d_model")
EXAMPLE = "4L-64d-4h,6L-96d-6h"


@dataclass(frozen=True, kw_only=True, slots=True)
class ListedShape:
    """One entry of ``shape_list``; 0 leaves a number to the other keys of ``[model]``.

    Attributes
    ----------
    n_layers, d_model, n_heads, d_head, d_ff, n_kv_heads : int
        As in `scalelab.theory.shape.ModelShape`.
    """

    n_layers: int
    d_model: int
    n_heads: int = 0
    d_head: int = 0
    d_ff: int = 0
    n_kv_heads: int = 0

    def words(self) -> str:
        """Return the numbers that the entry gives: ``4L-64d-4h``, or with their names."""
        given = {item.name: getattr(self, item.name) for item in fields(self)}
        label = f"{self.n_layers}L-{self.d_model}d"
        label += f"-{self.n_heads}h" if self.n_heads else ""
        label += f"-{self.n_kv_heads}kv" if self.n_kv_heads else ""
        others = [
            f"{name} = {value}" for name, value in given.items() if value and name not in IN_LABEL
        ]
        return ", ".join([label, *others])


IN_LABEL = tuple(LABEL.groupindex)
KEYS = tuple(item.name for item in fields(ListedShape))


def parse_shape_list(value: Any, name: str = "shape_list") -> Any:
    """Return the entries that a value describes.

    Parameters
    ----------
    value : object
        The path of a CSV file, labels separated by commas, or a list of labels and of mappings.
        Other objects are returned as they are.
    name : str
        The key, for messages.

    Raises
    ------
    UsageError
        When an entry has unknown, missing or invalid numbers, or occurs twice.
    DataError
        When the file cannot be read.
    """
    if isinstance(value, (str, Path)):
        text = str(value)
        is_file = text.lower().endswith(".csv") or "/" in text
        entries = _rows(Path(text)) if is_file else [part.strip() for part in text.split(",")]
        source = text if is_file else name
    elif isinstance(value, (list, tuple)):
        entries, source = list(value), name
    else:
        return value
    found: dict[ListedShape, int] = {}
    for number, entry in enumerate(entries, start=1):
        where = f"entry {number} of {source}:"
        shape = entry if isinstance(entry, ListedShape) else _entry(entry, where)
        if shape in found:
            raise UsageError(
                f"entry {number} of {source}, equal to entry {found[shape]}",
                "different shapes",
                "Remove one of them.",
            )
        found[shape] = number
    if not found:
        raise UsageError(
            f"{source} without a shape", "at least one shape", f"Write for example {EXAMPLE}."
        )
    return tuple(found)


def parse_label(text: str, where: str) -> ListedShape:
    """Return the entry of a label: ``4L-64d``, ``4L-64d-8h`` or ``4L-64d-8h-2kv``.

    Raises
    ------
    UsageError
        When the text is no such label.
    """
    match = LABEL.fullmatch(text)
    if match is None:
        raise UsageError(
            f"{where} {text!r}",
            "a label of layers, width and optionally heads and key heads",
            "Write for example 4L-64d-8h or 4L-64d-8h-2kv; in a sweep, --tied is for all shapes.",
        )
    return _checked({key: int(part) for key, part in match.groupdict().items() if part}, where)


def _entry(entry: Any, where: str) -> ListedShape:
    if isinstance(entry, str):
        return parse_label(entry, where)
    if not isinstance(entry, Mapping):
        raise UsageError(
            f"{where} {entry!r}",
            "a label, or a table of numbers",
            "Write for example 4L-64d-4h, or {n_layers = 4, d_model = 64, n_heads = 4}.",
        )
    unknown = [key for key in entry if key not in KEYS]
    if unknown:
        raise UsageError(
            f"{where} unknown key {unknown[0]}",
            f"the keys {', '.join(KEYS)}",
            did_you_mean(str(unknown[0]), KEYS) or f"Remove {unknown[0]}.",
        )
    return _checked({key: _whole(key, value, where) for key, value in entry.items()}, where)


def _whole(key: str, value: Any, where: str) -> int:
    is_whole = type(value) is int or (isinstance(value, str) and value.strip().isdecimal())
    if not is_whole:
        raise UsageError(
            f"{where} {key} = {value!r}", "a whole number from 1", f"Correct or remove {key}."
        )
    return int(value)


def _checked(numbers: Mapping[str, int], where: str) -> ListedShape:
    for key, value in numbers.items():
        if value < 1:
            raise UsageError(
                f"{where} {key} = {value}", "a whole number from 1", f"Correct or remove {key}."
            )
    missing = [key for key in REQUIRED if key not in numbers]
    if missing:
        raise UsageError(
            f"{where} no {' and '.join(missing)}",
            f"{' and '.join(REQUIRED)}, and optionally {', '.join(KEYS[len(REQUIRED) :])}",
            f"Add {' and '.join(missing)}.",
        )
    return ListedShape(**numbers)


def _rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file; empty cells are left out."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns: Iterable[str] = reader.fieldnames or ()
            missing = [key for key in REQUIRED if key not in columns]
            if missing:
                raise UsageError(
                    f"shape_list file {path} without the column {' and '.join(missing)}",
                    f"the columns {' and '.join(REQUIRED)}, and optionally "
                    f"{', '.join(KEYS[len(REQUIRED) :])}",
                    f"It has {', '.join(columns) or 'no columns'}; rename or add "
                    f"{' and '.join(missing)}.",
                )
            # Cells beyond the header have the key None.
            return [{str(k): v for k, v in row.items() if v not in (None, "")} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(
            f"shape_list file {path}: {reason}",
            "a readable CSV file with the columns n_layers and d_model",
            f"Check the path, or write labels, for example --shape-list {EXAMPLE}.",
        ) from None
