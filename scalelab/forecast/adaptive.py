"""The loop of an adaptive sweep: fit, plan for all that is left, run the cheap part, repeat.

Each round plans for the remaining budget and runs only the cheap part of the plan, up to a share of
the budget: the results of small runs can still change which expensive runs are chosen. `ask` is one
round; `replay` repeats it on existing runs, to measure the method.

References
----------
The protocol of `replay`, and methods to compare with: Li et al. 2026, "Spend less, fit better",
arXiv:2604.22753.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from scalelab.errors import DataError, UsageError
from scalelab.forecast.design import Batch, Choice, plan_batch
from scalelab.forecast.posterior import FormPosterior, Points, Posterior, fit_posterior
from scalelab.forecast.priors import priors_of
from scalelab.theory.accounting import train_flops_6nd

FloatArray = NDArray[np.float64]
Columns = Mapping[str, FloatArray]

STAGES = (0.1, 0.3, 0.6, 1.0)
"""Share of the budget that the rounds so far may spend, round by round."""
LEVEL = 0.9
EXTRA_ROUNDS = 4
"""Extra rounds that may spend what a changed plan left over."""
OFFERED = 0.8
"""Share of a pool that one replay may choose from, drawn at random. Without it all repeats would be
equal, and one odd run in every plan would decide the score."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Target:
    """The points to predict: given by column, or the compute-optimal N and D of a budget."""

    columns: Columns | None = None
    flops: float | None = None

    def resolve(self, forms: Sequence[FormPosterior], candidates: Columns) -> Columns:
        """Return the given points, or the optimum at ``flops`` of the form of largest weight.

        Target tokens are not repeated unless ``unique_tokens`` is given.
        """
        if self.columns is not None:
            given = {"unique_tokens": self.columns["n_tokens"], **self.columns}
            return {name: given[name] for name in candidates}
        assert self.flops is not None
        if forms:
            law = max(forms, key=lambda form: form.weight).law
        else:
            prior = priors_of(candidates)[0]
            law = prior.law.from_coordinates(prior.mean)
        N, D = law.optimal(self.flops)
        out = {"n_params": np.atleast_1d(N), "n_tokens": np.atleast_1d(D)}
        if "unique_tokens" in candidates:
            out["unique_tokens"] = out["n_tokens"]
        return out


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Round:
    """The posterior after some runs, and the runs to make next.

    Attributes
    ----------
    posterior : Posterior
        Over finished runs, candidates and targets, in that order.
    target : Mapping[str, ndarray of shape (t,)]
    loss, low, high : ndarray of shape (t,)
        Predicted loss of each target with its interval.
    width : float
        Width of the interval over the loss: root mean square over the targets.
    plan : Batch
        Plan for the remaining budget; positions count candidates.
    batch : tuple of Choice
        The part of the plan to run now, cheapest first.
    """

    posterior: Posterior
    target: Columns
    loss: FloatArray
    low: FloatArray
    high: FloatArray
    width: float
    plan: Batch
    batch: tuple[Choice, ...]

    def described(self) -> list[dict[str, float | str]]:
        """Return the forms with weight, misfit and noise, largest weight first."""
        return [
            {
                "form": form.prior.law.name,
                "weight": form.weight,
                "misfit": form.hyperparameters.misfit,
                "noise": form.hyperparameters.noise,
            }
            for form in sorted(self.posterior.forms, key=lambda form: -form.weight)
        ]


def ask(
    made: Columns,
    losses: FloatArray,
    candidates: Columns,
    flops: FloatArray,
    target: Target,
    *,
    left: float,
    now: float,
    rng: np.random.Generator,
    before: Sequence[FormPosterior] = (),
) -> Round:
    """Return the posterior and the runs to make next.

    Parameters
    ----------
    made : Mapping[str, ndarray of shape (m,)]
        Finished runs, with ``losses`` of shape (m,).
    candidates : Mapping[str, ndarray of shape (n,)]
        Possible runs, which cost ``flops``, shape (n,).
    target : Target
    left : float
        Remaining budget, FLOPs.
    now : float
        FLOPs to spend before the next refit. One run is proposed even if it costs more, as long as
        it costs at most ``left``.
    rng : numpy.random.Generator
    before : sequence of FormPosterior
        Of the previous round, as starting points.
    """
    if target.flops is not None and len(losses):
        # the optimum depends on the law, so the law is fitted to the runs first
        alone = Points(columns=made, reference_flops=target.flops)
        every = np.arange(len(losses))
        before = fit_posterior(alone, every, losses, rng=rng, before=before).forms
    wanted = target.resolve(before, candidates)
    m, n, t = len(losses), len(flops), len(wanted["n_params"])
    points = Points(
        columns={
            name: np.concatenate([made[name], candidates[name], wanted[name]])
            for name in candidates
        },
        reference_flops=float(train_flops_6nd(wanted["n_params"], wanted["n_tokens"]).mean()),
    )
    posterior = fit_posterior(points, np.arange(m), losses, rng=rng, before=before)
    at = np.arange(m + n, m + n + t)
    is_free = np.zeros(m + n + t, dtype=bool)
    is_free[m : m + n] = True
    cost = np.concatenate([np.full(m, np.inf), flops, np.full(t, np.inf)])
    plan = plan_batch(posterior, at, cost, left, is_free=is_free)
    choices = tuple(
        Choice(
            position=choice.position - m,
            flops=choice.flops,
            gain=choice.gain,
            correlation=choice.correlation,
        )
        for choice in plan.choices
    )
    plan = Batch(choices=choices, before=plan.before, after=plan.after, cost_power=plan.cost_power)
    half = NormalDist().inv_cdf((1 + LEVEL) / 2) * np.sqrt(posterior.variance()[at])
    return Round(
        posterior=posterior,
        target=wanted,
        loss=np.exp(posterior.mean[at]),
        low=np.exp(posterior.mean[at] - half),
        high=np.exp(posterior.mean[at] + half),
        width=float(np.sqrt(np.mean((2 * np.sinh(half)) ** 2))),
        plan=plan,
        batch=_cheap_end(choices, now),
    )


def _cheap_end(choices: Sequence[Choice], now: float) -> tuple[Choice, ...]:
    ordered = sorted(choices, key=lambda choice: (choice.flops, choice.position))
    spent = np.cumsum([choice.flops for choice in ordered])
    count = int(np.searchsorted(spent, now * (1 + 1e-12), side="right"))
    return tuple(ordered[: max(count, min(len(ordered), 1))])


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Replay:
    """The result of an adaptive choice among existing runs.

    Attributes
    ----------
    rows : tuple of int
        Chosen rows of the pool, in order.
    spent, budget : float
        FLOPs.
    last : Round
        Posterior and plan at the end.
    history : tuple of (int, float, float)
        Runs, FLOPs spent and relative width of the interval before each round and at the end.
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
    offered: float = OFFERED,
) -> Replay:
    """Choose runs of a pool adaptively under a budget.

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
        Seed of the share of the pool and of the random starts of the fits.
    until_width : float, optional
        Stop when the width of the target's interval over its loss is this small.
    offered : float
        Share of the pool, drawn at random, to choose from.

    Raises
    ------
    UsageError
        If the budget is smaller than the cheapest run.
    DataError
        If a loss is not positive and finite.
    """
    if not len(flops) or flops.min() > budget:
        cheapest = f"{flops.min():.3g}" if len(flops) else "nothing"
        raise UsageError(
            f"a budget of {budget:.3g} FLOPs, less than the cheapest run ({cheapest})",
            "at least the cost of the cheapest run",
            "Raise the budget.",
        )
    rng = np.random.default_rng(seed)
    is_offered = rng.random(len(flops)) < offered
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
        ceiling = STAGES[min(stage, len(STAGES) - 1)] * budget
        found = ask(
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
        if is_narrow or not found.batch or stage > len(STAGES) + EXTRA_ROUNDS:
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
            f"a loss of {losses.min()}",
            "positive finite losses",
            "Remove such runs from the pool.",
        )
    return losses


def r_squared(predicted: FloatArray, observed: FloatArray) -> float:
    """Return R^2 clipped to [-1, 1], as arXiv:2604.22753 scores; NaN for one target."""
    total = float(((observed - observed.mean()) ** 2).sum())
    if total == 0.0:
        return math.nan
    share = float(((predicted - observed) ** 2).sum()) / total
    return max(-1.0, min(1.0, 1.0 - share))
