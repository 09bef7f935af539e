"""The values that a run logged, by name and step, in bounded memory."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalelab.arrays import FloatArray
from scalelab.logs.values import as_number

MOST_POINTS = 1 << 16
"""Points kept of one series; a longer one is thinned to every second, fourth, .. step."""
MOST_SERIES = 2_000


class Series:
    """One logged value over steps. The value written last for a step replaces earlier ones."""

    def __init__(self) -> None:
        self._steps = array("q")
        self._values = array("d")

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, step: int, value: float) -> None:
        """Add a value."""
        self._steps.append(step)
        self._values.append(value)
        if len(self._steps) >= MOST_POINTS:
            self._shorten()

    def extend(self, other: Series) -> None:
        """Add the values of a later log of the same run."""
        self._steps.extend(other._steps)
        self._values.extend(other._values)
        while len(self._steps) >= MOST_POINTS:
            self._shorten()

    def add_many(self, steps: NDArray[np.int64], values: FloatArray) -> None:
        """Add values in the order of writing."""
        self._steps.frombytes(np.ascontiguousarray(steps, dtype=np.int64).tobytes())
        self._values.frombytes(np.ascontiguousarray(values, dtype=np.float64).tobytes())
        while len(self._steps) >= MOST_POINTS:
            self._shorten()

    def points(self) -> tuple[NDArray[np.int64], FloatArray]:
        """Return the steps in increasing order, each once, and their values."""
        steps = np.array(self._steps, dtype=np.int64)
        values = np.array(self._values, dtype=np.float64)
        # The first of the reversed entries of a step is the one written last.
        unique, first = np.unique(steps[::-1], return_index=True)
        return unique, values[::-1][first]

    def last(self) -> tuple[int, float] | None:
        """Return the highest step and its value."""
        steps, values = self.points()
        return (int(steps[-1]), float(values[-1])) if len(steps) else None

    def _shorten(self) -> None:
        steps, values = self.points()
        if len(steps) > MOST_POINTS // 2:
            kept = np.arange(len(steps) - 1, -1, -2)[::-1]
            steps, values = steps[kept], values[kept]
        self._steps = array("q", steps.tobytes())
        self._values = array("d", values.tobytes())


class History:
    """All series of a run, by name."""

    def __init__(self) -> None:
        self.series: dict[str, Series] = {}

    def add(self, step: int, name: str, value: float) -> None:
        """Add one value."""
        if (series := self._named(name)) is not None:
            series.add(step, value)

    def add_many(self, name: str, steps: NDArray[np.int64], values: FloatArray) -> None:
        """Add values of one name in the order of writing."""
        if (series := self._named(name)) is not None:
            series.add_many(steps, values)

    def _named(self, name: str) -> Series | None:
        """Return the series of a name; None if there are too many names."""
        series = self.series.get(name)
        if series is None and len(self.series) < MOST_SERIES:
            series = self.series[name] = Series()
        return series

    def add_row(self, step: int, row: Mapping[str, Any], skip: Iterable[str] = ()) -> None:
        """Add the numbers of a row."""
        for name, value in row.items():
            if name in skip:
                continue
            number = value if type(value) is float else as_number(value)
            if number is not None and (series := self._named(name)) is not None:
                series.add(step, number)

    def add_rows(
        self, steps: Sequence[int], rows: Sequence[Mapping[str, Any]], skip: Iterable[str] = ()
    ) -> None:
        """Add the numbers of rows; columns of rows that have the same names are added at once."""
        if any(row.keys() != rows[0].keys() for row in rows):
            for step, row in zip(steps, rows, strict=True):
                self.add_row(step, row, skip)
            return
        at = np.array(steps, dtype=np.int64)
        for name in rows[0] if rows else ():
            if name in skip:
                continue
            column = [row[name] for row in rows]
            try:
                self.add_many(name, at, np.frombuffer(array("d", column)))
            except (TypeError, OverflowError):
                for step, value in zip(steps, column, strict=True):
                    if (number := as_number(value)) is not None:
                        self.add(step, name, number)

    def extend(self, later: History) -> None:
        """Add the values of a later log of the same run."""
        for name, series in later.series.items():
            if name in self.series:
                self.series[name].extend(series)
            elif len(self.series) < MOST_SERIES:
                self.series[name] = series

    def last_step(self) -> int | None:
        """Return the highest step of all series."""
        steps = [found[0] for series in self.series.values() if (found := series.last())]
        return max(steps, default=None)
