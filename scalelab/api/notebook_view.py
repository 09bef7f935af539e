"""What every report of a verb has for a notebook: a short text, a table and a figure."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from scalelab.fit.outcome import FitWarning

WIDTH = 160
"""Characters of a line of a `repr`, after which it is cut."""


class NotebookView:
    """A value that a notebook shows as text with a figure."""

    __slots__ = ()

    @classmethod
    def of(cls, value: Any) -> Self:
        """Return this class with the fields of a value of its base class."""
        return cls(**{field.name: getattr(value, field.name) for field in fields(value)})

    def __repr__(self) -> str:
        lines = (line if len(line) <= WIDTH else line[: WIDTH - 2] + ".." for line in self._lines())
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from scalelab.report.plots import as_img

        figure = self.plot()
        text = f"<pre style='white-space: pre-wrap'>{html.escape(repr(self))}</pre>"
        return text if figure is None else text + as_img(figure)

    def _lines(self) -> Iterator[str]:
        raise NotImplementedError

    def to_frame(self) -> pd.DataFrame:
        """Return the answer as a DataFrame."""
        raise NotImplementedError

    def plot(self) -> Figure | None:
        """Return the figure, or None if there is nothing to draw."""
        return None


def gravest(warnings: Sequence[FitWarning]) -> Iterator[str]:
    """Yield the most serious warning in a line, if one changes the answer."""
    from scalelab.forecast.fit_report import SERIOUS
    from scalelab.units import plural

    if warnings and warnings[0].code in SERIOUS:
        yield f"warning, {warnings[0].code.replace('_', ' ')}: {warnings[0].message}"
        if len(warnings) > 1:
            yield f"and {plural(len(warnings) - 1, 'more warning')}"
