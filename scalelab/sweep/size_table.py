"""A table of sizes: one row for each model that a program can train, as its author names them.

A CSV file, or rows in the sweep file. ``n_params`` and ``flops_per_token`` are what planning needs;
`scalelab program probe` fills them in. Other columns are placeholders, ``{size.COLUMN}``. Columns
of a shape (``n_layers``, ``d_model``, ..) make the placeholders of the shape known.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scalelab.errors import DataError, UsageError
from scalelab.sweep.run_size import (
    NO_SHAPE,
    TABLE_FLOPS,
    TABLE_PARAMS,
    RunSize,
    has_shape,
    table_size,
)
from scalelab.sweep.run_spec import RunSpec
from scalelab.theory.shape import FF_MULTIPLE, ModelShape
from scalelab.units import format_quantity, parse_quantity

N_PARAMS = "n_params"
TOKENS_PER_S = "tokens_per_s"
MEASURED = (N_PARAMS, TABLE_FLOPS, TOKENS_PER_S)
"""Columns that a probe measures."""
MIN_ROWS = 3
"""Fewest sizes of an isoFLOP curve, which a parabola needs."""
_NUMBERS = (*TABLE_PARAMS.values(), TABLE_FLOPS, TOKENS_PER_S)
_COLUMN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)

Cell = int | float | str
Cells = tuple[tuple[str, Cell], ...]


@dataclass(frozen=True, slots=True)
class SizeRow:
    """A row of a table of sizes: ``cells`` has its columns without the empty ones."""

    cells: Cells

    @property
    def n_params(self) -> int:
        """All parameters; 0 if the table does not have them yet."""
        return int(dict(self.cells).get(N_PARAMS, 0))

    @property
    def flops_per_token(self) -> float:
        """Training FLOPs per token that the table states; 0 if it does not."""
        return float(dict(self.cells).get(TABLE_FLOPS, 0.0))

    @property
    def size(self) -> RunSize:
        """The size of the model."""
        return table_size(dict(self.cells), self.n_params, self.flops_per_token)

    @property
    def identity(self) -> Cells:
        """The cells without what a probe measures: they are the program's arguments."""
        return tuple(cell for cell in self.cells if cell[0] not in MEASURED)

    def label(self) -> str:
        """Return what the program is told, such as ``depth = 12``."""
        named = ((name, value) for name, value in self.identity if name not in _NUMBERS)
        return ", ".join(f"{name} = {value}" for name, value in named)

    def shape(self, vocab_size: int) -> ModelShape:
        """Return the shape that the columns give, or `NO_SHAPE`.

        The size of a head and the hidden width have the usual defaults: ``d_model / n_heads``, and
        8/3 of ``d_model`` up to a multiple of 8. ``vocab_size`` is for tables without that column;
        0 is unknown.
        """
        row = dict(self.cells)
        names = ("n_layers", "d_model", "n_heads")
        if not all(isinstance(row.get(name), int) for name in names):
            return NO_SHAPE
        n_layers, d_model, n_heads = (int(row[name]) for name in names)
        d_ff = -(-8 * d_model // (3 * FF_MULTIPLE)) * FF_MULTIPLE
        return ModelShape(
            n_layers=n_layers,
            d_model=d_model,
            n_heads=n_heads,
            d_head=int(row.get("d_head", d_model // max(n_heads, 1))),
            d_ff=int(row.get("d_ff", d_ff)),
            vocab_size=int(row.get("vocab_size", vocab_size or NO_SHAPE.vocab_size)),
            n_kv_heads=int(row.get("n_kv_heads", 0)),
        )


def model_label(spec: RunSpec) -> str:
    """Return the label of a run's shape, or what its row of a table of sizes tells the program."""
    if spec.program is None or has_shape(spec):
        return spec.shape.label()
    return SizeRow(spec.program.size).label() or f"N = {format_quantity(spec.program.n_params)}"


def read_size_table(value: Any, folder: Path) -> tuple[SizeRow, ...]:
    """Return the rows of a CSV file, or those that a sweep file lists.

    Raises
    ------
    UsageError
        If a column or a number is not valid, two rows are equal, or there is no row.
    DataError
        If the file cannot be read.
    """
    if isinstance(value, str):
        path = folder / value
        found, source = read_csv(path), str(path)
    else:
        found, source = list(value), "size.table"
    rows: dict[Cells, SizeRow] = {}
    for number, entry in enumerate(found, start=1):
        row = SizeRow(_cells(entry, f"row {number} of {source}"))
        if row.identity in rows:
            raise UsageError(
                f"row {number} of {source}, equal to an earlier row",
                "rows that differ in a column that the command uses",
                "Remove one of them.",
            )
        rows[row.identity] = row
    if not rows:
        raise UsageError(
            f"{source} without a row",
            "one row for each model, for example with the column depth",
            "Write for example size.table = [{depth = 4}, {depth = 8}].",
        )
    return tuple(rows.values())


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file as text, without empty cells; DataError if unreadable."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return [
                {str(k).strip(): v.strip() for k, v in row.items() if isinstance(v, str) and v}
                for row in csv.DictReader(file)
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(
            f"table of sizes {path}: {reason}",
            "a readable CSV file with a row for each model",
            "Check the path size.table, which starts from the folder of the sweep file.",
        ) from None


def require_sizes(rows: Sequence[SizeRow], folder_words: str) -> None:
    """Raise UsageError if a row has no number of parameters."""
    missing = [row for row in rows if not row.n_params]
    if missing:
        raise UsageError(
            f"a table of sizes without n_params ({missing[0].label()})",
            "the parameters of each model, which planning needs",
            f"Add the column n_params, or measure it with `scalelab program probe {folder_words}`.",
        )


def nearest_rows(rows: Sequence[SizeRow], targets: Iterable[float], *, asked: str) -> list[SizeRow]:
    """Return a different nearest row for each target size, smallest first.

    Raises
    ------
    UsageError
        If there are more targets than rows; ``asked`` names the option that gave them.
    """
    wanted = sorted(targets)
    if len(wanted) > len(rows):
        raise UsageError(
            f"{len(wanted)} sizes from a table of {len(rows)}",
            f"at most {len(rows)} sizes",
            f"Use for example {asked} {len(rows)}, or add rows to the table.",
        )
    free = list(rows)
    chosen = []
    for target in wanted:
        best = min(free, key=lambda row: abs(math.log(row.n_params / target)))
        free.remove(best)
        chosen.append(best)
    return sorted(chosen, key=lambda row: row.n_params)


def budget_rows(
    rows: Sequence[SizeRow],
    budget: float,
    *,
    sizes: int,
    is_most: bool,
    span: float,
    tokens_per_param: float,
) -> list[SizeRow]:
    """Return the rows of an isoFLOP curve, spaced around the expected optimum of the budget.

    Parameters
    ----------
    rows : sequence of SizeRow
    budget : float
        FLOPs, by the convention of the rows.
    sizes : int
        Number of rows to return.
    is_most : bool
        Whether fewer are enough: only rows within the span, but at least `MIN_ROWS`.
    span : float
        Ratio of the largest to the smallest size.
    tokens_per_param : float
        D/N at the optimum.
    """

    def miss(row: SizeRow) -> float:
        tokens = budget / row.size.planned_per_token
        return abs(math.log(tokens / row.size.active / tokens_per_param))

    centre = min(rows, key=miss)
    if sizes == 1:
        return [centre]
    if is_most:
        half = math.log(span) / 2 + 1e-9
        near = sorted(rows, key=lambda row: abs(math.log(row.n_params / centre.n_params)))
        within = [row for row in near if abs(math.log(row.n_params / centre.n_params)) <= half]
        rows = within if len(within) >= MIN_ROWS else near[:MIN_ROWS]
        sizes = min(sizes, len(rows))
    low, high = centre.n_params / math.sqrt(span), centre.n_params * math.sqrt(span)
    low = max(low, min(row.n_params for row in rows))
    high = min(high, max(row.n_params for row in rows))
    targets = [low * (high / low) ** (i / (sizes - 1)) for i in range(sizes)]
    return nearest_rows(rows, targets, asked="--sizes")


def table_words(rows: Sequence[SizeRow]) -> str:
    """Return a table of sizes in words, for the rules of a plan."""
    sizes = sorted(row.n_params for row in rows)
    return (
        f"table of {len(rows)} sizes, {format_quantity(sizes[0])} to {format_quantity(sizes[-1])}"
    )


def _cells(entry: Any, where: str) -> Cells:
    if not isinstance(entry, Mapping) or not entry:
        raise UsageError(
            f"{where}: {entry!r}",
            "columns with their values",
            "Write for example {depth = 4, n_params = '12M'}.",
        )
    found: dict[str, Cell] = {}
    for name, value in entry.items():
        if not _COLUMN.fullmatch(name):
            raise UsageError(
                f"{where}: column {name!r}",
                "names of letters, digits and _",
                "Rename the column: the command uses it as {size.NAME}.",
            )
        if name in _NUMBERS:
            number = parse_quantity(value, what=f"{where}: {name}")
            found[name] = round(number) if name in TABLE_PARAMS.values() else number
        else:
            found[name] = _cell(value, f"{where}: {name}")
    return tuple(found.items())


def _cell(value: Any, where: str) -> Cell:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise UsageError(f"{where} = {value!r}", "a number or text", "Write for example 12.")
    if not isinstance(value, str):
        return value
    if re.fullmatch(r"[+-]?[0-9]+", value):
        return int(value)
    try:
        number = float(value)
    except ValueError:
        return value
    return number if math.isfinite(number) else value
