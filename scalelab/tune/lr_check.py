"""Check of a sweep's learning-rate rule: the best run of each budget against its two neighbours.

The neighbours form a separate sweep, ``NAME-lr-check``, so that they never enter a fit of the
sweep that they check.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from scalelab.errors import DataError, UsageError
from scalelab.launch.base import LaunchReport, Watcher
from scalelab.launch.execute import resume
from scalelab.launch.proposal import Proposal
from scalelab.launch.saved_options import save_launch
from scalelab.records.sweep_dir import LR_CHECK_KIND, Results
from scalelab.sweep.planned_run import PlannedRun
from scalelab.sweep.spec import SweepSpec
from scalelab.tune.run_end import DIVERGED, final_loss

NEIGHBOUR = 2.0
"""Factor between a learning rate and its neighbours."""

HELD_WITHIN = 0.0025
"""Share of the loss by which a neighbour may be better: the flat minimum of arXiv:2503.04715,
which counts every run within 0.25 % of the best as optimal."""

SUFFIX = "-lr-check"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Result of the check at one budget.

    Attributes
    ----------
    budget_flops : float
    n_params : int
        Size of the best run.
    lrs : tuple of float
        Learning rates: lower neighbour, rule, upper neighbour.
    losses : tuple of float or None
        Their losses, nats; infinite for a diverged run, None for an unfinished run.
    best_lr : float or None
        Minimum of the parabola in log lr through the three; None if it is not between them.
    has_held : bool or None
        True if no neighbour is better by more than `HELD_WITHIN`; None if a loss is missing.
    """

    budget_flops: float
    n_params: int
    lrs: tuple[float, float, float]
    losses: tuple[float | None, float | None, float | None]
    best_lr: float | None
    has_held: bool | None


def refuse_without_budgets(sweep: SweepSpec) -> None:
    """Raise UsageError if a sweep has no budgets, or its program does not receive the rate."""
    if sweep.program is not None and "lr" not in sweep.program.used():
        raise UsageError(
            "--lr-check of a program without {lr}",
            "a command that receives the learning rate",
            "Add for example '--learning_rate={lr}' to program.command, or remove --lr-check.",
        )
    if not sweep.budgets:
        raise UsageError(
            f"--lr-check with a sweep of kind {sweep.kind}, which has no budgets",
            "a sweep with compute budgets",
            "Remove --lr-check, or use `scalelab sweep isoflop --budgets 1e15..1e17:4`.",
        )


def check_lr(
    proposal: Proposal, results: Results, watch: Watcher
) -> tuple[LaunchReport, list[Verdict]]:
    """Train the neighbours of each budget's best run, and compare the losses.

    The sweep's runs must have ended. Calls ``watch`` with a `LaunchView` at every change.

    Raises
    ------
    UsageError
        If the sweep has no budgets.
    DataError
        If none of its runs has a result.
    """
    refuse_without_budgets(proposal.sweep)
    best = _best_rows(proposal, results)
    if not best:
        raise DataError(
            f"sweep {proposal.plan.name!r} without a finished run",
            "a sweep with results",
            f"Run `scalelab status {proposal.plan.name}` to see why.",
        )
    trios = {
        budget: tuple(_at_lr(row, row.spec.lr * NEIGHBOUR**step) for step in (-1, 0, 1))
        for budget, row in best.items()
    }
    name = proposal.plan.name + SUFFIX
    rows = tuple(trio[side] for trio in trios.values() for side in (0, 2))
    plan = dataclasses.replace(proposal.plan, name=name, kind=LR_CHECK_KIND, rows=rows)
    science = {**proposal.sweep.science(), "kind": LR_CHECK_KIND, "neighbour": NEIGHBOUR}
    results.save_plan(plan, science, extend=True)
    save_launch(results, name, proposal.sweep)
    saved = dataclasses.replace(
        results.load_plan(name), run_ids=tuple(row.spec.run_id for row in rows)
    )
    report = resume(
        saved,
        results,
        watch,
        execution=proposal.execution,
        n_workers=proposal.cost.speed.n_workers,
        allow_source_change=proposal.allows_source_change,
    )
    return report, [_verdict(budget, trio, results) for budget, trio in trios.items()]


def _best_rows(proposal: Proposal, results: Results) -> Mapping[float, PlannedRun]:
    found: dict[float, tuple[float, PlannedRun]] = {}
    for row in proposal.plan.rows:
        loss = final_loss(results.run(row.spec.run_id))
        if row.budget_flops is None or loss is None or loss == DIVERGED:
            continue
        if loss < found.get(row.budget_flops, (DIVERGED, row))[0]:
            found[row.budget_flops] = loss, row
    return {budget: row for budget, (_, row) in found.items()}


def _at_lr(row: PlannedRun, lr: float) -> PlannedRun:
    lr = row.spec.lr if lr == row.spec.lr else float(f"{lr:.4g}")
    return dataclasses.replace(row, spec=dataclasses.replace(row.spec, lr=lr))


def _verdict(budget: float, trio: tuple[PlannedRun, ...], results: Results) -> Verdict:
    low, own, high = (final_loss(results.run(row.spec.run_id)) for row in trio)
    lr_low, lr_own, lr_high = (row.spec.lr for row in trio)
    lrs = (lr_low, lr_own, lr_high)
    has_held = best_lr = None
    if low is not None and own is not None and high is not None:
        has_held = min(low, high) >= own * (1 - HELD_WITHIN)
        best_lr = parabola_minimum(lrs, (low, own, high))
    return Verdict(
        budget_flops=budget,
        n_params=trio[1].n_params,
        lrs=lrs,
        losses=(low, own, high),
        best_lr=best_lr,
        has_held=has_held,
    )


def parabola_minimum(
    lrs: tuple[float, float, float], losses: tuple[float, float, float]
) -> float | None:
    """Return the rate at the parabola's minimum in log lr, or None if it is not between them."""
    if not np.all(np.isfinite(losses)):
        return None
    second, first, _ = np.polyfit(np.log(lrs) - np.log(lrs[1]), losses, 2)
    if second <= 0:
        return None
    best = float(lrs[1] * np.exp(-first / (2 * second)))
    return best if lrs[0] <= best <= lrs[2] else None
