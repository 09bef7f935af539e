"""Rounds of an adaptive sweep: fit all finished runs, then propose the next ones.

Each round proposes runs for the whole remaining budget, but makes only the cheapest of them, up to
a share of the budget. Their losses can change which expensive runs later rounds choose.
`next_round` is one round; `replay` simulates all rounds on existing runs, to measure the method.

References
----------
The protocol of `replay`, and methods to compare with: Li et al. 2026, "Spend less, fit better",
arXiv:2604.22753.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from scalelab.arrays import FloatArray
from scalelab.errors import DataError, UsageError
from scalelab.forecast.design import Choice, ProposedRuns, propose_runs
from scalelab.forecast.modes import FormPosterior
from scalelab.forecast.points import Points
from scalelab.forecast.posterior import Posterior, fit_posterior
from scalelab.forecast.priors import priors_of
from scalelab.theory.accounting import train_flops_6nd

Columns = Mapping[str, FloatArray]

BUDGET_SHARES = (0.1, 0.3, 0.6, 1.0)
"""Share of the budget that may be spent by the end of rounds 1, 2, 3 and later."""
LEVEL = 0.9
EXTRA_ROUNDS = 4
"""Rounds after the last share that may spend the rest of the budget."""
POOL_SHARE = 0.8
"""Random share of the run pool that one replay chooses from. Replays with other seeds then differ,
so that a single unusual run does not decide the score."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Target:
    """The points to predict: given columns, or the compute-optimal N and D at ``flops``."""

    columns: Columns | None = None
    flops: float | None = None

    def resolve(self, forms: Sequence[FormPosterior], pool: Columns) -> Columns:
        """Return the given points, or the optimum at ``flops`` of the form with the largest weight.

        Targets have no repeated tokens unless ``unique_tokens`` is given.
        """
        if self.columns is not None:
            given = {"unique_tokens": self.columns["n_tokens"], **self.columns}
            return {name: given[name] for name in pool}
        assert self.flops is not None
        if forms:
            law = max(forms, key=lambda form: form.weight).law
        else:
            prior = priors_of(pool)[0]
            law = prior.law.from_coordinates(prior.mean)
        N, D = law.optimal(self.flops)
        out = {"n_params": np.atleast_1d(N), "n_tokens": np.atleast_1d(D)}
        if "unique_tokens" in pool:
            out["unique_tokens"] = out["n_tokens"]
        return out


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Round:
    """One round of an adaptive sweep: the posterior of the finished runs, and the next runs.

    Attributes
    ----------
    posterior : Posterior
        Over finished runs, run pool and targets, in that order.
    target : Mapping[str, ndarray of shape (t,)]
    loss, low, high : ndarray of shape (t,)
        Predicted loss of each target with its 90 % confidence interval. The interval is that of the
        noise-free loss: it does not include the noise of a new run.
    width : float
        Width of that interval divided by the loss, root mean square over the targets.
    proposed : ProposedRuns
        Runs for the whole remaining budget, as positions in the run pool.
    batch : tuple of Choice
        The proposed runs to make now, cheapest first.
    """

    posterior: Posterior
    target: Columns
    loss: FloatArray
    low: FloatArray
    high: FloatArray
    width: float
    proposed: ProposedRuns
    batch: tuple[Choice, ...]

    def described(self) -> list[dict[str, float | str]]:
        """Return each form with its weight, misfit and noise; the largest weight first."""
        return [
            {
                "form": form.prior.law.name,
                "weight": form.weight,
                "misfit": form.hyperparameters.misfit,
                "noise": form.hyperparameters.noise,
            }
            for form in sorted(self.posterior.forms, key=lambda form: -form.weight)
        ]


def next_round(
    made: Columns,
    losses: FloatArray,
    pool: Columns,
    flops: FloatArray,
    target: Target,
    *,
    left: float,
    now: float,
    rng: np.random.Generator,
    before: Sequence[FormPosterior] = (),
) -> Round:
    """Return the posterior of the finished runs, and the runs to make next.

    Parameters
    ----------
    made : Mapping[str, ndarray of shape (m,)]
        Finished runs, with ``losses`` of shape (m,).
    pool : Mapping[str, ndarray of shape (n,)]
        Run pool: runs that could be chosen, which cost ``flops``, shape (n,).
    target : Target
    left : float
        Remaining budget, FLOPs.
    now : float
        FLOPs to spend in this round. If even the cheapest proposed run costs more, the batch is
        that run.
    rng : numpy.random.Generator
    before : sequence of FormPosterior
        Posteriors of the previous round, as starting points of the fit.
    """
    if target.flops is not None and len(losses):
        # The optimum depends on the law: fit the runs first.
        alone = Points(columns=made, reference_flops=target.flops)
        every = np.arange(len(losses))
        before = fit_posterior(alone, every, losses, rng=rng, before=before).forms
    wanted = target.resolve(before, pool)
    m, n, t = len(losses), len(flops), len(wanted["n_params"])
    points = Points(
        columns={name: np.concatenate([made[name], pool[name], wanted[name]]) for name in pool},
        reference_flops=float(train_flops_6nd(wanted["n_params"], wanted["n_tokens"]).mean()),
    )
    posterior = fit_posterior(points, np.arange(m), losses, rng=rng, before=before)
    at = np.arange(m + n, m + n + t)
    is_free = np.zeros(m + n + t, dtype=bool)
    is_free[m : m + n] = True
    cost = np.concatenate([np.full(m, np.inf), flops, np.full(t, np.inf)])
    found = propose_runs(posterior, at, cost, left, is_free=is_free)
    choices = tuple(replace(choice, position=choice.position - m) for choice in found.choices)
    proposed = replace(found, choices=choices)
    half = NormalDist().inv_cdf((1 + LEVEL) / 2) * np.sqrt(posterior.variance()[at])
    return Round(
        posterior=posterior,
        target=wanted,
        loss=np.exp(posterior.mean[at]),
        low=np.exp(posterior.mean[at] - half),
        high=np.exp(posterior.mean[at] + half),
        width=float(np.sqrt(np.mean((2 * np.sinh(half)) ** 2))),
        proposed=proposed,
        batch=_cheap_end(choices, now),
    )


def _cheap_end(choices: Sequence[Choice], now: float) -> tuple[Choice, ...]:
    ordered = sorted(choices, key=lambda choice: (choice.flops, choice.position))
    spent = np.cumsum([choice.flops for choice in ordered])
    count = int(np.searchsorted(spent, now * (1 + 1e-12), side="right"))
    return tuple(ordered[: max(count, min(len(ordered), 1))])


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Replay:
    """The result of an adaptive sweep simulated on existing runs.

    Attributes
    ----------
    rows : tuple of int
        Chosen rows of the run pool, in order of choice.
    spent, budget : float
        FLOPs.
    last : Round
        The round after the last chosen run.
    history : tuple of (int, float, float)
        Number of runs, FLOPs spent and relative interval width at the start of each round.
    """

    rows: tuple[int, ...]
    spent: float
    budget: float
    last: Round
    history: tuple[tuple[int, float, float], ...]


def replay(
    pool: Columns,
    observe: Callable[[NDArray[np.intp]], FloatArray],
    flops: FloatArray,
    target: Target,
    *,
    budget: float,
    seed: int,
    until_width: float | None = None,
    pool_share: float = POOL_SHARE,
) -> Replay:
    """Simulate an adaptive sweep on the existing runs of a pool.

    Parameters
    ----------
    pool : Mapping[str, ndarray of shape (n,)]
    observe : callable
        Returns the losses of the runs at these positions of the pool.
    flops : ndarray of shape (n,)
        Cost of each run.
    target : Target
    budget : float
        FLOPs.
    seed : int
        Seed of the random share of the pool and of the random starts of the fits.
    until_width : float, optional
        Stop when the width of the target's confidence interval, divided by its loss, is at most
        this.
    pool_share : float
        Share of the pool to choose from; its runs are chosen at random.

    Raises
    ------
    UsageError
        If the budget is smaller than the cheapest run.
    DataError
        If a loss is not positive and finite.
    """
    if not len(flops) or flops.min() > budget:
        cheapest = f"{flops.min():.3g} FLOPs" if len(flops) else "the pool is empty"
        raise UsageError(
            f"a budget of {budget:.3g} FLOPs, less than the cheapest run ({cheapest})",
            "at least the cost of the cheapest run",
            f"Use --budget {1.01 * flops.min():.2e} or more."
            if len(flops)
            else "Add runs to the table of --pool.",
        )
    rng = np.random.default_rng(seed)
    is_offered = rng.random(len(flops)) < pool_share
    is_offered[np.argmin(flops)] = True
    rows: list[int] = []
    losses = np.zeros(0)
    spent = 0.0
    forms: Sequence[FormPosterior] = ()
    history = []
    stage = 0
    while True:
        is_rest = is_offered.copy()
        is_rest[rows] = False
        rest = np.flatnonzero(is_rest)
        ceiling = BUDGET_SHARES[min(stage, len(BUDGET_SHARES) - 1)] * budget
        found = next_round(
            {name: values[rows] for name, values in pool.items()},
            losses,
            {name: values[rest] for name, values in pool.items()},
            flops[rest],
            target,
            left=budget - spent,
            now=ceiling - spent,
            rng=rng,
            before=forms,
        )
        forms = found.posterior.forms
        history.append((len(rows), spent, found.width))
        is_narrow = until_width is not None and len(rows) > 0 and found.width <= until_width
        if is_narrow or not found.batch or stage > len(BUDGET_SHARES) + EXTRA_ROUNDS:
            break
        chosen = rest[[choice.position for choice in found.batch]]
        losses = np.concatenate([losses, _checked(observe(chosen))])
        rows += [int(j) for j in chosen]
        spent = math.fsum(flops[rows])
        stage += 1
    return Replay(rows=tuple(rows), spent=spent, budget=budget, last=found, history=tuple(history))


def _checked(losses: FloatArray) -> FloatArray:
    if not (np.isfinite(losses) & (losses > 0)).all():
        raise DataError(
            f"a loss of {losses.min()} in the pool",
            "positive finite losses",
            "Remove these rows from the table of --pool.",
        )
    return losses


def r_squared(predicted: FloatArray, observed: FloatArray) -> float:
    """Return R^2 clipped to [-1, 1], the score of arXiv:2604.22753; NaN for one target."""
    total = float(((observed - observed.mean()) ** 2).sum())
    if total == 0.0:
        return math.nan
    share = float(((predicted - observed) ** 2).sum()) / total
    return max(-1.0, min(1.0, 1.0 - share))
