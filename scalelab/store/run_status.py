"""Status of the runs and of the isoFLOP budgets of a sweep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scalelab.records.states import PRUNED

MIN_SIZES = 3
BRACKETED = "bracketed"
FALLS_TO_SMALL = "falls to the small end"
FALLS_TO_LARGE = "falls to the large end"
SILENT_AFTER_S = 120.0
"""Seconds without a row of the training curve after which a running run is silent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    """An expected loss with its prediction interval, nats per token."""

    loss_nats: float
    low_nats: float
    high_nats: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Outlook:
    """Comparison of a running run with the finished runs of its sweep.

    Attributes
    ----------
    recent_loss_nats : float or None
        Its mean training loss over the last twentieth of its schedule.
    now : Expected or None
        That mean as predicted from finished runs at the same fraction of their schedules, for its
        size and length; None until enough runs have finished.
    end : Expected or None
        Its final held-out loss as predicted from finished runs.
    """

    recent_loss_nats: float | None
    now: Expected | None
    end: Expected | None

    @property
    def is_high(self) -> bool:
        """Whether the loss is above the interval."""
        recent = self.recent_loss_nats
        return recent is not None and self.now is not None and recent > self.now.high_nats


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStatus:
    """Status of one run of a sweep.

    Attributes
    ----------
    run_id : str
        The run.
    state : str
        One of `scalelab.records.states.RUN_STATES`.
    budget_flops : float or None
        Budget of its isoFLOP curve.
    n_params, n_tokens, n_steps : int or None
        Planned values, N by the default convention; None without a readable spec.
    flops : float or None
        Planned training compute by the default convention.
    step : int
        Steps of the newest attempt so far, or of the result.
    loss_nats : float or None
        Held-out loss of a finished run, newest training loss of another run.
    tokens_per_s : float or None
        Newest throughput of a running run.
    eta_s : float or None
        Seconds left of a running run at that throughput.
    silent_s : float or None
        Seconds since a running run wrote its newest row.
    attempts : int
        Number of attempts.
    reason : str or None
        Why it ended, unless done.
    spent_s, wasted_s : float
        Seconds of all attempts, and seconds of steps that were trained again.
    outlook : Outlook or None
        Outlook of a running run.
    gpus : int
        GPUs of the run; 0 if unknown or none.
    """

    run_id: str
    state: str
    budget_flops: float | None = None
    n_params: int | None = None
    n_tokens: int | None = None
    n_steps: int | None = None
    flops: float | None = None
    step: int = 0
    loss_nats: float | None = None
    tokens_per_s: float | None = None
    eta_s: float | None = None
    silent_s: float | None = None
    attempts: int = 0
    reason: str | None = None
    spent_s: float = 0.0
    wasted_s: float = 0.0
    outlook: Outlook | None = None
    gpus: int = 0

    @property
    def is_silent(self) -> bool:
        """Whether the run is running and wrote no row of its curve for `SILENT_AFTER_S`."""
        return self.silent_s is not None and self.silent_s > SILENT_AFTER_S

    @property
    def fraction(self) -> float:
        """Share of its steps that are trained: 1 for a finished run."""
        if self.state == "done":
            return 1.0
        return min(self.step / self.n_steps, 1.0) if self.n_steps else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetStatus:
    """Status of one budget: the isoFLOP curve of its finished runs.

    Attributes
    ----------
    budget_flops : float
        The budget, FLOPs.
    n_done, n_runs : int
        Runs with a loss, and runs that neither diverged nor were pruned.
    best_n_params, best_loss_nats : float or None
        The size with the smallest mean loss, and that loss.
    shape : str
        ``bracketed`` (sizes on both sides of the best have larger losses), ``falls to the small
        end``, ``falls to the large end``, or ``too few sizes``.
    """

    budget_flops: float
    n_done: int
    n_runs: int
    best_n_params: float | None
    best_loss_nats: float | None
    shape: str

    @property
    def is_bracketed(self) -> bool:
        """Whether the best size is between smaller and larger sizes."""
        return self.shape == BRACKETED


def budget_statuses(runs: Sequence[RunStatus]) -> tuple[BudgetStatus, ...]:
    """Return the status of each budget, smallest first; replicates of a size are averaged."""
    by_budget: dict[float, list[RunStatus]] = {}
    for run in runs:
        if run.budget_flops is not None:
            by_budget.setdefault(run.budget_flops, []).append(run)
    return tuple(_budget_status(budget, by_budget[budget]) for budget in sorted(by_budget))


def _budget_status(budget: float, runs: list[RunStatus]) -> BudgetStatus:
    losses: dict[int, list[float]] = {}
    for run in runs:
        if run.state == "done" and run.loss_nats is not None and run.n_params is not None:
            losses.setdefault(run.n_params, []).append(run.loss_nats)
    sizes = sorted(losses)
    means = [math.fsum(losses[size]) / len(losses[size]) for size in sizes]
    best = means.index(min(means)) if means else None
    if best is None or len(sizes) < MIN_SIZES:
        shape = "too few sizes"
    elif best == 0:
        shape = FALLS_TO_SMALL
    elif best == len(sizes) - 1:
        shape = FALLS_TO_LARGE
    else:
        shape = BRACKETED
    return BudgetStatus(
        budget_flops=budget,
        n_done=sum(map(len, losses.values())),
        n_runs=sum(run.state not in ("diverged", PRUNED) for run in runs),
        best_n_params=None if best is None else sizes[best],
        best_loss_nats=None if best is None else means[best],
        shape=shape,
    )


def share_done(runs: Sequence[RunStatus]) -> float:
    """Return the trained share of the compute of all runs, from 0 to 1."""
    total = math.fsum(run.flops or 0.0 for run in runs)
    done = math.fsum((run.flops or 0.0) * run.fraction for run in runs)
    return done / total if total > 0 else 0.0
