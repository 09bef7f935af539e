"""Tables that stay readable on narrow screens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table
    from rich.text import Text

TEXT_WIDTH = 12
"""A column of text may be folded to this many characters; a number is never folded."""


def number_table(*columns: str, texts: Sequence[str] = (), title: str | None = None) -> Table:
    """Return a table of right-aligned numbers; the columns in ``texts`` hold text."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=title is not None)
    for name in columns:
        is_text = name in texts
        table.add_column(name, justify="left" if is_text else "right", no_wrap=not is_text)
    return table


class Fitting:
    """A table; on a screen that is too narrow for it, each row becomes a list ``column value``.

    Parameters
    ----------
    table : Table
        Columns of numbers have ``no_wrap=True``; other columns may be folded.
    """

    def __init__(self, table: Table) -> None:
        self.table = table

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        gaps = 3 * len(self.table.columns) if self.table.box else 2 * len(self.table.columns)
        least = 0
        for column in self.table.columns:
            width = max(_text(cell).cell_len for cell in (column.header, *column.cells))
            least += width if column.no_wrap else min(width, TEXT_WIDTH)
        if least + gaps <= options.max_width:
            yield self.table
        else:
            yield from self._records(options.max_width)

    def _records(self, width: int) -> Iterator[RenderableType]:
        from rich.padding import Padding
        from rich.text import Text

        if self.table.title:
            yield _text(self.table.title)
        for cells in zip(*(column.cells for column in self.table.columns), strict=True):
            line, is_first = Text(), True
            for column, cell in zip(self.table.columns, cells, strict=True):
                text = _text(cell)
                if not text:
                    continue
                item = Text.assemble((f"{column.header} ".lstrip(), "dim"), text)
                if line and line.cell_len + 2 + item.cell_len > width - 2:
                    yield line if is_first else Padding(line, (0, 0, 0, 2))
                    line, is_first = Text(), False
                line = Text.assemble(line, "  " if line else "", item)
            yield line if is_first else Padding(line, (0, 0, 0, 2))
        if self.table.caption:
            yield Text.assemble((_text(self.table.caption).plain, "dim"))


def _text(cell: Any) -> Text:
    from rich.text import Text

    return cell if isinstance(cell, Text) else Text(str(cell))
