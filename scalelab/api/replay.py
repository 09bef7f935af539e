"""The verb `replay_adaptive`: adaptive choice among the runs of a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scalelab.api.data import read_runs
from scalelab.api.notebook_view import NotebookView
from scalelab.errors import DataError, UsageError
from scalelab.units import format_flops, parse_quantity, plural

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from scalelab.api.data import Data
    from scalelab.forecast.adaptive import Columns, Replay
    from scalelab.store.table_read import TableRead


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class ReplayReport(NotebookView):
    """The result of an adaptive choice among the runs of a table.

    Attributes
    ----------
    replayed : Replay
    pool, target : TableRead
    r2 : float
        On the target rows, clipped to [-1, 1]; NaN for a single row.
    relative_errors : tuple of float
        |predicted / observed - 1| of each target row.
    total_flops : float
        Cost of the whole pool.
    """

    replayed: Replay
    pool: TableRead
    target: TableRead
    r2: float
    relative_errors: tuple[float, ...]
    total_flops: float

    def _lines(self) -> Iterator[str]:
        share = 100 * self.replayed.spent / self.total_flops
        mean = 100 * sum(self.relative_errors) / len(self.relative_errors)
        yield (
            f"ReplayReport: {plural(len(self.replayed.rows), 'run')} chosen, {share:.2g} % of the "
            f"pool's compute ({format_flops(self.replayed.spent)} FLOP)"
        )
        yield (
            f"{plural(len(self.relative_errors), 'target row')}: mean error {mean:.2f} %, largest "
            f"{100 * max(self.relative_errors):.2f} %, R2 {self.r2:.4f}"
        )
        yield "see .to_frame(), .plot(), .to_dict()"

    def to_frame(self) -> pd.DataFrame:
        """Return observed and predicted loss of each target row."""
        import pandas as pd

        return pd.DataFrame(self.to_dict()["predictions"])

    def plot(self) -> Figure:
        """Return the relative width of the target's interval against the FLOPs spent."""
        from scalelab.report.plots import point_figure

        spent = [(flops, width) for _, flops, width in self.replayed.history if flops > 0]
        names = ("FLOPs spent", "relative width of the interval")
        return point_figure([x for x, _ in spent], [y for _, y in spent], names)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of ``scalelab sweep adaptive --pool``."""
        last, rows = self.replayed.last, list(self.replayed.rows)
        wanted = self.target.observations
        return {
            "schema": 1,
            "command": "sweep adaptive",
            "metric": wanted.metric.text,
            "unit": wanted.metric.unit,
            "rows": rows,
            "lines": [int(line) for line in self.pool.lines[rows]],
            "n_rows": len(rows),
            "spend": {
                "flops": self.replayed.spent,
                "budget_flops": self.replayed.budget,
                "share": self.replayed.spent / self.total_flops,
            },
            "r2": self.r2,
            "relative_error": {
                "mean": sum(self.relative_errors) / len(self.relative_errors),
                "max": max(self.relative_errors),
            },
            "width": last.width,
            "forms": last.described(),
            "history": [
                {"n_rows": n, "spend_flops": spent, "width": width}
                for n, spent, width in self.replayed.history
            ],
            "predictions": [
                {
                    "n_params": float(wanted.n_params[i]),
                    "n_tokens": float(wanted.n_tokens[i]),
                    "loss": float(wanted.loss_nats[i]),
                    "predicted": float(last.loss[i]),
                    "low": float(last.low[i]),
                    "high": float(last.high[i]),
                }
                for i in range(len(wanted))
            ],
        }


def replay_adaptive(
    pool: Data,
    target: Data,
    *,
    budget_share: float | None = None,
    budget: float | str | None = None,
    until_width: float | None = None,
    seed: int = 0,
    mapping: Mapping[str, str] | None = None,
    metric: str | None = None,
) -> ReplayReport:
    """Choose runs adaptively among those of a table, and score the prediction of target rows.

    Parameters
    ----------
    pool : file name, DataFrame or other table
        Runs with their losses. A loss is used only after its run is chosen. A run costs its
        ``flops``, or 6 N D if the table has none. ``unique_tokens`` is used if both tables have it.
    target : file name, DataFrame or other table
        Rows to predict; their losses are used only for the score.
    budget_share : float, optional
        Share of the cost of the whole pool that may be spent, in (0, 1].
    budget : float or str, optional
        The same in FLOPs. Give one of the two.
    until_width : float, optional
        Stop when the target's 90 % confidence interval, divided by its loss, is this narrow.
    seed : int
        Seed of the random starts of the fits.
    mapping : Mapping[str, str], optional
        From our column names to those of the tables.
    metric : str, optional
        Which loss, as after ``--metric``; default: the held-out loss.

    Raises
    ------
    UsageError
        For an invalid budget, or one that buys no run.
    DataError
        For a table that cannot be read, or tables with different columns.
    """
    import numpy as np

    from scalelab.forecast.adaptive import Target, r_squared, replay
    from scalelab.store.reading import Reading

    reading = Reading(metric=metric)
    tables = [read_runs(source, mapping=mapping, reading=reading) for source in (pool, target)]
    runs, wanted = (table.observations for table in tables)
    if (budget_share is None) == (budget is None):
        raise UsageError(
            "no budget" if budget is None else "two budgets",
            "a share of the pool's cost, or FLOPs",
            "Give --budget-share 0.05 or --budget 1e20.",
        )
    total = float(runs.flops.sum())
    if budget_share is not None:
        if not 0 < budget_share <= 1:
            raise UsageError(
                f"a budget share of {budget_share:g}", "a share in (0, 1]", "Write 0.05 for 5 %."
            )
        budget = budget_share * total
    assert budget is not None
    names = ["n_params", "n_tokens"]
    has_unique = ["unique_tokens" in each.extra for each in (runs, wanted)]
    if has_unique[0] != has_unique[1]:
        raise DataError(
            f"unique_tokens only in the {'pool' if has_unique[0] else 'target rows'}",
            "tables with the same columns",
            "Add the column to the other table, or remove it from both.",
        )
    if all(has_unique):
        names.append("unique_tokens")
    losses = runs.loss_nats
    replayed = replay(
        _columns(runs, names),
        lambda chosen: losses[chosen],
        runs.flops,
        Target(columns=_columns(wanted, names)),
        budget=parse_quantity(budget, what="budget"),
        seed=seed,
        until_width=until_width,
    )
    predicted = replayed.last.loss
    return ReplayReport(
        replayed=replayed,
        pool=tables[0],
        target=tables[1],
        r2=r_squared(predicted, wanted.loss_nats),
        relative_errors=tuple(np.abs(predicted / wanted.loss_nats - 1).tolist()),
        total_flops=total,
    )


def _columns(rows: Any, names: list[str]) -> Columns:
    from scalelab.fit.rows import positive

    return {name: positive(rows, name) for name in names}
