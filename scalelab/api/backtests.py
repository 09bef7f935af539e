"""The verb `backtest`: how well the forecasters predict the largest runs of tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalelab.api.data import DEFAULT_RESULTS, read_runs, split_runs
from scalelab.api.notebook_view import NotebookView
from scalelab.errors import ScalelabError, UsageError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd
    from matplotlib.figure import Figure

    from scalelab.api.data import Data
    from scalelab.forecast.backtest import Score
    from scalelab.store.reading import Reading

ALL_TABLES = "public:ALL"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class BacktestReport(NotebookView):
    """Scores of forecasters on cuts of tables.

    Attributes
    ----------
    scores : tuple of Score
    skipped : Mapping[str, str]
        Why a table has no score, by name.
    level : float
        Level of the intervals.
    """

    scores: tuple[Score, ...]
    skipped: Mapping[str, str]
    level: float

    def by_table(self, *, is_common: bool = False) -> pd.DataFrame:
        """Return the means over the cuts of each table, one row a table and forecaster.

        ``is_common``: over the cuts that every forecaster answers, on which they can be compared.
        """
        import pandas as pd

        frame = self.to_frame()
        if is_common and not frame.empty:
            answered = frame["mean_relative_error"].notna()
            frame = frame[answered.groupby([frame["table"], frame["cut"]]).transform("all")]
        columns = ["mean_relative_error", "coverage", "mean_width"]
        if frame.empty:
            return pd.DataFrame(
                columns=["table", "forecaster", *columns, "answered", "no_interval"]
            )
        frame = frame.astype(dict.fromkeys(columns, float))
        grouped = frame.groupby(["table", "forecaster"], sort=False)
        means = grouped[columns].mean()
        means["answered"] = grouped["mean_relative_error"].count() / grouped.size()
        means["no_interval"] = grouped["mean_relative_error"].count() - grouped["coverage"].count()
        return means.reset_index()

    def best_form(self) -> pd.DataFrame:
        """Return the rows of `by_table` of the single form with the least error on each table.

        It is chosen by the rows that are left out. Empty unless several forms were tested.
        """
        from scalelab.forecast.backtest import SINGLE_FORMS, best_forms

        means = self.by_table()
        if means["forecaster"].isin(SINGLE_FORMS).sum() <= means["table"].nunique():
            return means.iloc[:0]
        return means[means["table"].map(best_forms(self.scores)) == means["forecaster"]]

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each table, cut and forecaster."""
        import pandas as pd

        return pd.DataFrame(self._rows())

    def plot(self) -> Figure:
        """Return the mean relative error of each table and forecaster, in percent."""
        from scalelab.report.plots import interval_figure

        means = self.by_table().dropna(subset=["mean_relative_error"])
        labels = [f"{t}, {f}" for t, f in zip(means["table"], means["forecaster"], strict=True)]
        errors = (100 * means["mean_relative_error"]).tolist()
        rows = [
            (label, float(error), None, None) for label, error in zip(labels, errors, strict=True)
        ]
        return interval_figure(rows, "mean error on the rows left out (%)")

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of ``scalelab backtest``."""
        return {
            "schema": 1,
            "command": "backtest",
            "level": self.level,
            "scores": self._rows(),
            "means": self.means(is_common=False),
            "means_of_common_cuts": self.means(is_common=True),
            "pairs": [
                {"forecaster": pair[0]["forecaster"], "means": pair} for pair in self.pairs()
            ],
            "skipped": dict(self.skipped),
        }

    def means(self, *, is_common: bool = False) -> list[dict[str, Any]]:
        """Return error and coverage of each forecaster, in which each table has one vote.

        An answer without intervals is counted in ``n_without_intervals`` (cuts), not in coverage.
        """
        means = self.by_table(is_common=is_common).groupby("forecaster", sort=False)
        return [
            {
                "forecaster": name,
                "mean_relative_error": _number(rows["mean_relative_error"].mean()),
                "coverage": _number(rows["coverage"].mean()),
                "n_tables": int(rows["mean_relative_error"].notna().sum()),
                "n_without_intervals": int(rows["no_interval"].sum()),
            }
            for name, rows in means
        ]

    def pairs(self) -> list[list[dict[str, Any]]]:
        """Return, for each other forecaster, its means and those of the reference.

        Each pair is over the cuts that both answer; without such a cut it is left out. The
        reference is ``averaged``, or else the first forecaster.
        """
        from scalelab.forecast.allocate import AVERAGED

        names = list(dict.fromkeys(each.forecaster for each in self.scores))
        reference = AVERAGED if AVERAGED in names else next(iter(names), None)
        found = []
        for name in names:
            if name != reference:
                both = [each for each in self.scores if each.forecaster in (name, reference)]
                means = replace(self, scores=tuple(both)).means(is_common=True)
                found.append(sorted(means, key=lambda mean: mean["forecaster"] == reference))
        return [pair for pair in found if pair]

    def _rows(self) -> list[dict[str, Any]]:
        rows = []
        for each in self.scores:
            found = {} if each.holdout is None else asdict(each.holdout)
            rows.append(
                {
                    "table": each.table,
                    "cut": each.cut,
                    "forecaster": each.forecaster,
                    "n_rows": each.n_rows,
                    "mean_relative_error": found.get("mean_relative_error"),
                    "max_relative_error": found.get("max_relative_error"),
                    "n_intervals": found.get("n_intervals", 0),
                    "coverage": _number(each.coverage),
                    "mean_width": _number(found.get("mean_width", math.nan)),
                    "reason": each.reason or None,
                }
            )
        return rows

    def _lines(self) -> Iterator[str]:
        tables = {each.table for each in self.scores}
        yield f"BacktestReport: {len(tables)} tables, {len(self.scores)} scores"
        yield "see .by_table(), .to_frame(), .plot(), .to_dict()"


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def backtest(
    data: Data | None = None,
    *,
    sweep: str | None = None,
    results: str | Path = DEFAULT_RESULTS,
    mapping: Mapping[str, str] | None = None,
    where: str | None = None,
    forecasters: Sequence[str] | None = None,
    factor: float | None = None,
    level: float = 0.9,
    time_limit_s: float | None = None,
    reading: Reading | None = None,
) -> BacktestReport:
    """Leave out the largest runs of a table, forecast them from the rest, and score that.

    Parameters
    ----------
    data : file name, DataFrame or other table, optional
        ``public:ALL`` tests every public table of the package, each with the rows that its paper
        fits; tables that cannot be used are named in ``skipped``.
    sweep, results, mapping, where
        As in `fit`.
    forecasters : sequence of str, optional
        ``law``, ``averaged``, ``auto`` (the form that `--form auto` chooses), or the name of a form
        of N and D. Default: ``law`` and ``averaged``.
    factor : float, optional
        Rows within this factor of the largest N, D or C are left out; default 2.
    level : float
        Level of the intervals.
    time_limit_s : float, optional
        Time of one fit of one forecaster, in seconds; default 60. A longer fit is no answer, and
        its ``reason`` says so.
    reading : Reading, optional
        How the table is read, and its metric.

    Raises
    ------
    UsageError
        For an unknown forecaster, or ``public:ALL`` with another argument of how a table is read.
    DataError
        If no cut leaves enough rows.
    """
    from scalelab.fit.intervals import check_level
    from scalelab.forecast import backtest as tests
    from scalelab.forecast.allocate import FORECASTERS
    from scalelab.forecast.cuts import FACTOR
    from scalelab.store.public_tables import PREFIX, list_public_tables

    check_level(level)
    names = tuple(forecasters or FORECASTERS)
    for name in names:
        if name not in tests.BACKTESTED:
            raise UsageError(
                f"forecaster {name!r}",
                ", ".join(tests.BACKTESTED),
                f"{did_you_mean(name, tests.BACKTESTED)}Use --forecaster averaged.",
            )
    options: dict[str, Any] = {
        "forecasters": names,
        "factor": factor or FACTOR,
        "level": level,
        "time_limit_s": tests.TIME_LIMIT_S if time_limit_s is None else time_limit_s,
    }
    if str(data) != ALL_TABLES:
        table = read_runs(
            data, sweep=sweep, results=results, mapping=mapping, where=where, reading=reading
        )
        rows = split_runs(table)[0]
        return BacktestReport(
            scores=tests.backtest(rows, rows.source, **options), skipped={}, level=level
        )
    _check_all(mapping, where, reading)
    scores: list[Score] = []
    skipped = {}
    for public in list_public_tables():
        try:
            table = read_runs(Path(PREFIX + public.name), where=public.where or None)
            scores += tests.backtest(split_runs(table)[0], public.name, **options)
        except ScalelabError as error:
            skipped[public.name] = error.given
    return BacktestReport(scores=tuple(scores), skipped=skipped, level=level)


def _check_all(
    mapping: Mapping[str, str] | None, where: str | None, reading: Reading | None
) -> None:
    """Raise UsageError for an argument of one table with all public tables."""
    words = [*(["--map"] if mapping else []), *(["--where"] if where else [])]
    words += [word for word in (reading.words() if reading else ()) if word.startswith("--")]
    if words:
        raise UsageError(
            f"--from {ALL_TABLES} with {', '.join(words)}",
            "one table with options of how it is read, or all public tables as they are",
            f"Remove {', '.join(words)}, or name one table, for example --from public:llama3.",
        )
