"""The verbs `adapt`, which trains chosen runs batch by batch, and `replay_adaptive`, on a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalelab.api.data import DEFAULT_RESULTS, read_runs
from scalelab.api.shown import Shown
from scalelab.errors import DataError, UsageError
from scalelab.units import format_flops, parse_quantity, plural

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from scalelab.api.data import Data
    from scalelab.api.sweep_reports import LaunchReport, Proposal
    from scalelab.forecast.adaptive import Columns, Replay, Target
    from scalelab.launch.adaptive import NextBatch
    from scalelab.launch.base import LaunchView, Watcher
    from scalelab.launch.grid_design import DesignGain
    from scalelab.store.tables import TableRead
    from scalelab.sweep.spec import SweepSpec

LARGEST_SHARE = 0.25
"""Share of the budget that the largest compute-optimal run of a default pool costs."""
POOL_SIZES, POOL_LENGTHS, POOL_SPAN = 10, 12, 100.0
LEAST_SPAN = 2.0
"""Smallest ratio of the largest to the smallest size of a default pool."""
SMALLEST_VOCABULARY = 256
DESIGNS = ("plain", "optimal")
ENDS = {
    "narrow": "the interval is as narrow as requested",
    "spent": "no affordable run would narrow the interval",
    "planned": "dry run, nothing launched",
    "interrupted": "interrupted",
    "failed": "some runs failed",
}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class ReplayReport(Shown):
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
        Stop when the width of the target's 90 % interval over its loss is this small.
    seed : int
        Seed of the random starts of the fits.
    mapping : Mapping[str, str], optional
        From our column names to those of the tables.

    Raises
    ------
    UsageError
        For an invalid budget, or one that buys no run.
    DataError
        For a table that cannot be read, or tables with different columns.
    """
    import numpy as np

    from scalelab.forecast.adaptive import Target, r_squared, replay

    tables = [read_runs(source, mapping=mapping) for source in (pool, target)]
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


class ProgressCallbacks:
    """Callbacks of `adapt`. These do nothing: derive a class to show progress or to ask."""

    def on_batch(self, batch: NextBatch, *, is_dry_run: bool) -> None:
        """Run before a batch is launched, and at the end; an exception stops the sweep."""

    def on_launch(self, start: Callable[[Watcher], LaunchReport]) -> LaunchReport:
        """Call ``start`` with a function that receives each `LaunchView`; return its report."""
        return start(_ignore)


def _ignore(view: LaunchView) -> None:
    """Ignore the state of a launch."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class AdaptReport(Shown):
    """How an adaptive sweep ended.

    Attributes
    ----------
    name : str
        Name of the sweep.
    status : str
        ``narrow`` or ``spent`` if it is complete, ``planned`` for a dry run, ``interrupted``,
        ``failed``.
    last : NextBatch
        The state at the end.
    launches : tuple of LaunchReport
    """

    name: str
    status: str
    last: NextBatch
    launches: tuple[LaunchReport, ...]

    def _lines(self) -> Iterator[str]:
        last = self.last
        yield f"AdaptReport {self.name}: {ENDS[self.status]}"
        yield (
            f"{plural(last.n_known, 'finished run')}; {format_flops(last.spent)} of "
            f"{format_flops(last.budget)} FLOP spent; relative width of the target's interval "
            f"{100 * last.found.width:.2f} %"
        )
        yield "see .last, .to_frame(), .plot()"

    def to_frame(self) -> pd.DataFrame:
        """Return the predicted loss of each target with its interval."""
        import pandas as pd

        found = self.last.found
        return pd.DataFrame(
            {**found.target, "loss_nats": found.loss, "low": found.low, "high": found.high}
        )

    def plot(self) -> Figure:
        """Return the predicted loss of each target with its interval."""
        from scalelab.report.plots import interval_figure

        found = self.last.found
        rows = [
            (f"target {i + 1}", float(found.loss[i]), float(found.low[i]), float(found.high[i]))
            for i in range(len(found.loss))
        ]
        return interval_figure(rows, "loss (nats per token)")


def parse_target(text: str) -> Target:
    """Return the target that ``C=1e24`` or ``N=7B,D=2T`` names.

    Raises
    ------
    UsageError
        If it names neither a compute budget nor N and D.
    """
    import numpy as np

    from scalelab.forecast.adaptive import Target
    from scalelab.forecast.allocate import parse_request

    values = parse_request(text, option="--target").values
    if set(values) == {"flops"}:
        return Target(flops=values["flops"])
    if {"n_params", "n_tokens"} <= set(values) <= {"n_params", "n_tokens", "flops"}:
        return Target(columns={key: np.array([values[key]]) for key in ("n_params", "n_tokens")})
    raise UsageError(
        f"--target {text!r}", "C, or N and D", "Write --target C=1e24 or --target N=7B,D=2T."
    )


def default_axes(budget: float, *, tokenizer: str) -> tuple[str, str]:
    """Return ranges of N and D for a run pool that suits the budget.

    Raises
    ------
    UsageError
        If the budget is too small for several sizes.
    """
    from scalelab.sweep.isoflop_sizes import expected_tokens_per_param
    from scalelab.sweep.shapes import size_limits
    from scalelab.theory.accounting import tokens_at_6nd

    ratio = expected_tokens_per_param(tokenizer)
    largest = math.sqrt(tokens_at_6nd(LARGEST_SHARE * budget, ratio))
    smallest, top = 1.05 * size_limits(SMALLEST_VOCABULARY)[0], 2 * largest
    low = max(top / POOL_SPAN, smallest)
    if top < LEAST_SPAN * low:
        raise UsageError(
            f"a budget of {format_flops(budget)} FLOP, too small for a range of sizes",
            "a budget that can train several sizes",
            "Raise --budget, or give --n-params and --n-tokens.",
        )
    n_sizes = max(round(POOL_SIZES * math.log(top / low) / math.log(POOL_SPAN)), 3)
    longest = 2 * ratio * largest
    return (
        f"{low:.2g}..{top:.2g}:{n_sizes}",
        f"{longest / POOL_SPAN:.2g}..{longest:.2g}:{POOL_LENGTHS}",
    )


def adapt(
    sweep: SweepSpec | Mapping[str, Any],
    target: Target | str,
    *,
    budget: float | str,
    callbacks: ProgressCallbacks | None = None,
    until_width: float | None = None,
    seed: int = 0,
    results: str | Path = DEFAULT_RESULTS,
    device: str | None = None,
    workers: int | None = None,
    is_dry_run: bool = False,
) -> AdaptReport:
    """Choose runs of a grid batch by batch and train them, until the target is predicted well.

    Parameters
    ----------
    sweep : SweepSpec or Mapping
        Of kind ``grid``: the run pool. The launched sweep has its name and the chosen runs.
        Finished runs of other sweeps on the same text are used at no cost.
    target : Target or str
        What to predict, for example ``"C=1e24"`` or ``"N=7B,D=2T"``.
    budget : float or str
        Most FLOPs that this sweep may cost in total, exact convention.
    callbacks : ProgressCallbacks, optional
        Called for each batch and each launch.
    until_width : float, optional
        Stop when the width of the target's 90 % interval over its loss is this small.
    seed : int
        Seed of the random starts of the fits.
    results, device, workers, is_dry_run
        As in `scalelab.api.sweeps.propose`.

    Raises
    ------
    UsageError
        If the budget buys no run of the grid.
    """
    from scalelab.api import sweeps
    from scalelab.launch.adaptive import next_batch
    from scalelab.records.sweep_dir import Results

    callbacks = callbacks or ProgressCallbacks()
    target = parse_target(target) if isinstance(target, str) else target
    folder = Results(Path(results))
    pool = sweeps.propose(
        sweep, results=results, device=device, workers=workers, is_dry_run=is_dry_run
    )
    launches: list[LaunchReport] = []
    found = None
    while True:
        found = next_batch(
            pool,
            folder,
            target,
            budget=parse_quantity(budget, what="budget"),
            until_width=until_width,
            seed=seed,
            before=() if found is None else found.found.posterior.forms,
        )
        callbacks.on_batch(found, is_dry_run=is_dry_run)
        status = "planned" if is_dry_run else found.stop
        if status is None:
            launches.append(_launched(found, results, callbacks))
            if launches[-1].is_interrupted:
                status = "interrupted"
            elif launches[-1].count("failed"):
                status = "failed"
        if status is not None:
            return AdaptReport(
                name=pool.plan.name, status=status, last=found, launches=tuple(launches)
            )


def _launched(batch: NextBatch, results: str | Path, callbacks: ProgressCallbacks) -> LaunchReport:
    from scalelab.api import sweeps

    return callbacks.on_launch(
        lambda watch: sweeps.launch(batch.proposal, results=results, watch=watch)
    )


def check_design(design: str) -> None:
    """Raise UsageError unless it is the name of a design."""
    if design not in DESIGNS:
        raise UsageError(f"--design {design}", " or ".join(DESIGNS), "Write --design optimal.")


def propose_design(
    sweep: SweepSpec, design: str, **options: Any
) -> tuple[Proposal, DesignGain | None]:
    """Return the proposal of a sweep, with an optimal grid if ``design`` is ``optimal``.

    Parameters
    ----------
    sweep : SweepSpec
        Of kind ``isoflop`` for the design ``optimal``.
    design : str
        ``plain`` or ``optimal``.
    options
        As in `scalelab.api.sweeps.propose`.
    """
    from scalelab.api import sweeps
    from scalelab.api.sweep_reports import Proposal

    plain = sweeps.propose(sweep, **options)
    if design == "plain":
        return plain, None
    from scalelab.launch.grid_design import optimal_grid, pool_of

    proposal, gain = optimal_grid(plain, sweeps.propose(pool_of(sweep), **options))
    return Proposal.of(proposal), gain
