"""The verbs `adapt`, to choose and train runs batch by batch, and `replay_adaptive`, on a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from scalelab.errors import DataError, UsageError

if TYPE_CHECKING:
    import pandas as pd

    from scalelab.forecast.adaptive import Columns, Replay, Target
    from scalelab.launch.adaptive import NextBatch
    from scalelab.launch.base import LaunchReport, LaunchView
    from scalelab.launch.grid_design import DesignGain
    from scalelab.launch.proposal import Proposal
    from scalelab.store.tables import TableRead
    from scalelab.sweep.spec import SweepSpec

LARGEST_SHARE = 0.25
"""Of the budget that the largest compute-optimal run of a default pool costs."""
POOL_SIZES, POOL_LENGTHS, POOL_SPAN = 10, 12, 100.0
LEAST_SPAN = 2.0
"""Largest over smallest size of a default pool, below which there is nothing to learn about N."""
SMALLEST_VOCABULARY = 256
DESIGNS = ("plain", "optimal")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ReplayReport:
    """What the choice among the runs of a table came to.

    Attributes
    ----------
    replayed : Replay
    pool, target : TableRead
    r2 : float
        On the target, clipped to [-1, 1]; NaN when it has one row.
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
    pool: str | Path | pd.DataFrame,
    target: str | Path | pd.DataFrame,
    *,
    budget_share: float | None = None,
    budget: float | None = None,
    until_width: float | None = None,
    seed: int = 0,
    mapping: Mapping[str, str] | None = None,
) -> ReplayReport:
    """Return what choosing runs adaptively among those of a table comes to on target rows.

    Parameters
    ----------
    pool : path or DataFrame
        Runs with their losses; a loss is looked at only once its run is chosen. A run costs its
        ``flops``, 6 N D where the table has none. ``unique_tokens`` is used where both tables have
        it.
    target : path or DataFrame
        Rows to predict; their losses are used for the score alone.
    budget_share : float, optional
        Share of the cost of the whole pool that may be spent, in (0, 1].
    budget : float, optional
        The same in FLOPs; one of the two.
    until_width : float, optional
        Stop once the 90 % interval of the target, over its loss, is this narrow.
    seed : int
        Of the random starts of the fits.
    mapping : Mapping[str, str], optional
        Our column names to the tables'.

    Raises
    ------
    UsageError
        For a budget that is not one, or buys nothing.
    DataError
        For tables that cannot be read, or that differ in their columns.
    """
    import numpy as np

    from scalelab.forecast.adaptive import Target, r_squared, replay

    tables = [_read(source, mapping or {}) for source in (pool, target)]
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
            f"unique_tokens in the {'pool' if has_unique[0] else 'target rows'} alone",
            "tables with the same columns",
            "Add the column to the other table, or leave it out of both.",
        )
    if all(has_unique):
        names.append("unique_tokens")
    losses = runs.loss_nats
    replayed = replay(
        _columns(runs, names),
        lambda chosen: losses[chosen],
        runs.flops,
        Target(columns=_columns(wanted, names)),
        budget=budget,
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


def _read(source: str | Path | pd.DataFrame, mapping: Mapping[str, str]) -> TableRead:
    from scalelab.store.tables import ReadOptions, read_frame, read_table

    options = ReadOptions(mapping=mapping)
    if isinstance(source, (str, Path)):
        return read_table(source, options)
    return read_frame(source, options)


def _columns(rows: Any, names: list[str]) -> Columns:
    from scalelab.fit.rows import positive

    return {name: positive(rows, name) for name in names}


class ProgressCallbacks(Protocol):
    """Who is told what `adapt` does."""

    def round(self, batch: NextBatch, *, is_dry_run: bool) -> None:
        """Take note of a round before it is launched."""

    def launch(self, start: Callable[[Callable[[LaunchView], None]], Any]) -> Any:
        """Call ``start`` with what is to be told how the runs go on, and return what it returns."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AdaptReport:
    """How an adaptive sweep ended.

    Attributes
    ----------
    name : str
        Of the sweep.
    status : str
        ``narrow`` or ``spent`` when it is at its end, ``planned`` for a dry run, ``interrupted``,
        ``failed``.
    last : NextBatch
        What is believed at the end.
    launches : tuple of LaunchReport
    """

    name: str
    status: str
    last: NextBatch
    launches: tuple[LaunchReport, ...]


def default_axes(budget: float, *, tokenizer: str) -> tuple[str, str]:
    """Return ranges of N and D for a pool, reckoned from the budget.

    Raises
    ------
    UsageError
        When it is too small for a range of sizes.
    """
    from scalelab.sweep.isoflop_sizes import expected_tokens_per_param
    from scalelab.sweep.shapes import size_limits
    from scalelab.theory.accounting import tokens_at_6nd
    from scalelab.units import format_flops

    ratio = expected_tokens_per_param(tokenizer)
    largest = math.sqrt(tokens_at_6nd(LARGEST_SHARE * budget, ratio))
    smallest, top = 1.05 * size_limits(SMALLEST_VOCABULARY)[0], 2 * largest
    low = max(top / POOL_SPAN, smallest)
    if top < LEAST_SPAN * low:
        raise UsageError(
            f"a budget of {format_flops(budget)} FLOP, too little for a range of sizes",
            "a budget for which several sizes can be trained",
            "Raise --budget, or give --n-params and --n-tokens.",
        )
    n_sizes = max(round(POOL_SIZES * math.log(top / low) / math.log(POOL_SPAN)), 3)
    longest = 2 * ratio * largest
    return (
        f"{low:.2g}..{top:.2g}:{n_sizes}",
        f"{longest / POOL_SPAN:.2g}..{longest:.2g}:{POOL_LENGTHS}",
    )


def adapt(
    sweep: SweepSpec,
    target: Target,
    *,
    budget: float,
    showing: ProgressCallbacks,
    until_width: float | None = None,
    seed: int = 0,
    results: str | Path = Path("results"),
    device: str | None = None,
    workers: int | None = None,
    is_dry_run: bool = False,
) -> AdaptReport:
    """Choose runs of a grid batch by batch, train them, and go on until the target is known.

    Parameters
    ----------
    sweep : SweepSpec
        Of kind ``grid``: the runs that could be. The sweep that is launched has its name and the
        runs that were chosen; finished runs of other sweeps on the same text are known for free.
    target : Target
        What is to be predicted.
    budget : float
        FLOPs that this sweep may cost in all, exact convention.
    showing : ProgressCallbacks
        Told what happens.
    until_width : float, optional
        Stop once the 90 % interval of the target, over its loss, is this narrow.
    seed : int
        Of the random starts of the fits.
    results, device, workers, is_dry_run
        As in `scalelab.api.sweeps.propose`.

    Raises
    ------
    UsageError
        When the budget buys no run of the grid.
    """
    from scalelab.api import sweeps
    from scalelab.launch.adaptive import next_batch
    from scalelab.records.sweep_dir import Results

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
            budget=budget,
            until_width=until_width,
            seed=seed,
            before=() if found is None else found.found.posterior.forms,
        )
        showing.round(found, is_dry_run=is_dry_run)
        status = "planned" if is_dry_run else found.stop
        if status is None:
            launches.append(_launched(found, results, showing))
            if launches[-1].is_interrupted:
                status = "interrupted"
            elif launches[-1].count("failed"):
                status = "failed"
        if status is not None:
            return AdaptReport(
                name=pool.plan.name, status=status, last=found, launches=tuple(launches)
            )


def _launched(batch: NextBatch, results: str | Path, showing: ProgressCallbacks) -> LaunchReport:
    from scalelab.api import sweeps

    report: LaunchReport = showing.launch(
        lambda watch: sweeps.launch(batch.proposal, results=results, watch=watch)
    )
    return report


def check_design(design: str) -> None:
    """Raise UsageError unless it is the name of a design."""
    if design not in DESIGNS:
        raise UsageError(f"--design {design}", " or ".join(DESIGNS), "Choose one of the two.")


def propose_design(
    sweep: SweepSpec, design: str, **options: Any
) -> tuple[Proposal, DesignGain | None]:
    """Return the proposal of a sweep, its grid made optimal where that was asked for.

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

    plain = sweeps.propose(sweep, **options)
    if design == "plain":
        return plain, None
    from scalelab.launch.grid_design import optimal_grid, pool_of

    return optimal_grid(plain, sweeps.propose(pool_of(sweep), **options))
