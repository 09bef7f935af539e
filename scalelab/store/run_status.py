"""The states of runs, and the isoFLOP curves that they make up so far."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MIN_VALLEY_SIZES = 3
BRACKETED = "bracketed"
FALLS_TO_SMALL = "falls to the small end"
FALLS_TO_LARGE = "falls to the large end"


@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    """A loss that should be met, nats per token, and between which it should lie."""

    loss_nats: float
    low_nats: float
    high_nats: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Outlook:
    """How a running run goes, against the finished runs of its sweep.

    Attributes
    ----------
    recent_loss_nats : float or None
        Its mean training loss over the last twentieth of its schedule.
    now : Expected or None
        The same of finished runs at this fraction of theirs, carried over to its size and length;
        None before enough have finished.
    end : Expected or None
        Its final held-out loss, by the same comparison.
    """

    recent_loss_nats: float | None
    now: Expected | None
    end: Expected | None

    @property
    def is_high(self) -> bool:
        """Whether the loss lies above where it should."""
        recent = self.recent_loss_nats
        return recent is not None and self.now is not None and recent > self.now.high_nats


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStatus:
    """How one run of a sweep stands.

    Attributes
    ----------
    run_id : str
        The run.
    state : str
        One of `scalelab.records.states.RUN_STATES`.
    budget_flops : float or None
        Budget of its isoFLOP curve.
    n_params, n_tokens, n_steps : int or None
        As planned, N by the default convention; None without a readable spec.
    flops : float or None
        Planned training compute by the default convention.
    step : int
        Steps taken so far by the newest attempt, or of the result.
    loss_nats : float or None
        Held-out loss of a finished run, newest training loss of a running one.
    tokens_per_s : float or None
        Newest throughput of a running one.
    eta_s : float or None
        Seconds that a running one still needs at that speed.
    silent_s : float or None
        Seconds since a running one wrote its newest row.
    attempts : int
        Attempts made.
    reason : str or None
        Why it ended when not as done.
    spent_s, wasted_s : float
        Seconds that its attempts took, and the part of them whose steps had to be taken again.
    outlook : Outlook or None
        Of a running one.
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


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetStatus:
    """One isoFLOP curve so far.

    Attributes
    ----------
    budget_flops : float
        Its budget.
    n_done, n_runs : int
        Runs with a loss, and planned runs that did not diverge.
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
        """Whether the smallest loss is not at an end."""
        return self.shape == BRACKETED


def budget_statuses(runs: Sequence[RunStatus]) -> tuple[BudgetStatus, ...]:
    """Return the isoFLOP curves of the runs, smallest budget first.

    Replicates of a size count by their mean loss.
    """
    by_budget: dict[float, list[RunStatus]] = {}
    for run in runs:
        if run.budget_flops is not None:
            by_budget.setdefault(run.budget_flops, []).append(run)
    return tuple(_valley(budget, by_budget[budget]) for budget in sorted(by_budget))


def _valley(budget: float, runs: list[RunStatus]) -> BudgetStatus:
    losses: dict[int, list[float]] = {}
    for run in runs:
        if run.state == "done" and run.loss_nats is not None and run.n_params is not None:
            losses.setdefault(run.n_params, []).append(run.loss_nats)
    sizes = sorted(losses)
    means = [math.fsum(losses[size]) / len(losses[size]) for size in sizes]
    best = means.index(min(means)) if means else None
    if best is None or len(sizes) < MIN_VALLEY_SIZES:
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
        n_runs=sum(run.state != "diverged" for run in runs),
        best_n_params=None if best is None else sizes[best],
        best_loss_nats=None if best is None else means[best],
        shape=shape,
    )
