"""Which form? Ranked by how well it extrapolates, not by how well it fits.

Rolling origin: fit on the lower budgets, predict the next one, move on. The score is the mean
relative error over all rows so predicted; coverage of the prediction interval (not yet widened by
`scalelab.fit.inflation`, which looks at the same errors) stands beside it, and AICc on all rows.
Candidates whose errors differ by no more than chance (a paired bootstrap over the predicted rows)
are called indistinguishable: the data cannot tell them apart.

References
----------
Tashman 2000 (rolling-origin evaluation). Hurvich and Tsai 1989 (AICc).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalelab.errors import DataError
from scalelab.fit.bootstrap import BootstrapSpec
from scalelab.fit.isoflop import budgets_of
from scalelab.fit.objective import Objective
from scalelab.fit.outcome import ParametricFit
from scalelab.fit.parametric import fit_parametric
from scalelab.records.types import Observations

FloatArray = NDArray[np.float64]

FORMS = ("chinchilla", "tied", "gamma", "kaplan")
"""Forms of (N, D) that are compared unless others are named."""
OBJECTIVES = (Objective(), Objective(delta=1e-2), Objective(loss="ls"))
"""Objectives with which each form is tried: from all but absolute to squared."""
MAX_FOLDS = 6
MIN_FOLDS = 3
MIN_SPARE_ROWS = 3
"""Rows beyond the number of parameters that a fold needs before it is fitted."""
REPLICATES = 100
STARTS = 8
"""Starting points in each fold: enough, since seeds come ranked by variable projection."""
TIE_LEVEL = 0.9
TIE_GAP = 1e-4
"""Differences in relative error that do not matter: a hundredth of a per cent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One form and objective, and how it did.

    Attributes
    ----------
    form : str
    objective : Objective
    mean_relative_error, max_relative_error : float
        Over every row predicted from lower budgets.
    covered : float
        Share of those rows inside their prediction interval.
    mean_width : float
        Mean width of that interval over the predicted loss.
    aicc : float
        On all rows, from the likelihood that belongs to the objective; lower is better, comparable
        between candidates with the same residual and loss.
    unidentified_folds : int
        Folds whose rows did not determine the form.
    gap : tuple of float
        Interval of this candidate's error minus the best one's; (0, 0) for the best.
    is_tied : bool
        Whether that interval begins below `TIE_GAP`.
    """

    form: str
    objective: Objective
    mean_relative_error: float
    max_relative_error: float
    covered: float
    mean_width: float
    aicc: float
    unidentified_folds: int
    gap: tuple[float, float] = (0.0, 0.0)
    is_tied: bool = True

    @property
    def label(self) -> str:
        """Form and objective as one would write them on the command line."""
        o = self.objective
        delta = f" {o.threshold:g}" if o.loss == "huber" else ""
        return f"{self.form}, {o.residual} {o.loss}{delta}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Candidates, best first.

    Attributes
    ----------
    candidates : tuple of Candidate
    folds : tuple of float
        Compute of each predicted budget.
    n_predicted : int
        Rows predicted from lower budgets.
    level : float
        Level of the prediction intervals.
    """

    candidates: tuple[Candidate, ...]
    folds: tuple[float, ...]
    n_predicted: int
    level: float

    @property
    def best(self) -> Candidate:
        """The candidate with the smallest mean relative error."""
        return self.candidates[0]

    @property
    def verdict(self) -> str:
        """Which candidate extrapolates best, or that the data cannot tell."""
        tied = [candidate.label for candidate in self.candidates[1:] if candidate.is_tied]
        best = f"{self.best.label} predicts the next budget best"
        error = f"{100 * self.best.mean_relative_error:.2f} % mean error"
        if not tied:
            return f"{best} ({error})."
        return f"{best} ({error}), but the data cannot tell it from: {'; '.join(tied)}."

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {
            "verdict": self.verdict,
            "n_predicted": self.n_predicted,
            "folds": list(self.folds),
            "level": self.level,
            "candidates": [
                {
                    "form": c.form,
                    "residual": c.objective.residual,
                    "loss": c.objective.loss,
                    "delta": c.objective.threshold if c.objective.loss == "huber" else None,
                    "mean_relative_error": c.mean_relative_error,
                    "max_relative_error": c.max_relative_error,
                    "covered": c.covered,
                    "mean_relative_width": c.mean_width,
                    "aicc": c.aicc,
                    "unidentified_folds": c.unidentified_folds,
                    "error_above_best": list(c.gap),
                    "is_tied": c.is_tied,
                }
                for c in self.candidates
            ],
        }


def compare(
    observations: Observations,
    *,
    forms: Sequence[str] = FORMS,
    objectives: Sequence[Objective] = (),
    level: float = 0.9,
    k: int = REPLICATES,
    seed: int = 0,
) -> Comparison:
    """Return the candidates ranked by rolling-origin extrapolation.

    Parameters
    ----------
    observations : Observations
        The rows; nothing held out for a later score may be among them.
    forms : sequence of str
        Names of laws.
    objectives : sequence of Objective
        Each form is tried with each; default log-Huber 1e-3.
    level : float
        Level of the prediction intervals.
    k : int
        Bootstrap replicates a fold.
    seed : int
        Seed of every resampling.

    Raises
    ------
    DataError
        When the rows span too few budgets for a single fold.
    """
    fold, centres = folds_of(observations)
    most = max(_n_params(form) for form in forms)
    origins = [
        i
        for i in range(1, len(centres))
        if (fold < i).sum() >= most + MIN_SPARE_ROWS and i >= 2 and (fold == i).any()
    ]
    if not origins:
        raise DataError(
            f"{len(observations)} rows over {len(centres)} levels of compute",
            f"{MIN_FOLDS} levels, the lower ones with {most + MIN_SPARE_ROWS} rows or more",
            "Add budgets, or compare forms with fewer parameters.",
        )
    scored = []
    labels = observations.cluster
    repeats = labels is not None and len(np.unique(labels)) < len(labels)
    # each candidate is judged by its own objective's replicates
    spec = BootstrapSpec(k=k, seed=seed, method="cluster" if repeats else "row")
    for form in forms:
        for objective in objectives or (Objective(),):
            scored.append(_score(observations, fold, origins, form, objective, spec, level))
    scored.sort(key=lambda pair: pair[0].mean_relative_error)
    best = scored[0][1]
    generator = np.random.default_rng(seed)
    draws = generator.integers(len(best), size=(1000, len(best)))
    ranked = [scored[0][0]]
    for candidate, errors in scored[1:]:
        # An error beyond all numbers is tied with none.
        with np.errstate(invalid="ignore"):
            gaps = (errors - best)[draws].mean(axis=1)
            low, high = np.quantile(gaps, [(1 - TIE_LEVEL) / 2, (1 + TIE_LEVEL) / 2])
        ranked.append(
            replace(candidate, gap=(float(low), float(high)), is_tied=bool(low <= TIE_GAP))
        )
    return Comparison(
        candidates=tuple(ranked),
        folds=tuple(float(centres[i]) for i in origins),
        n_predicted=len(best),
        level=level,
    )


def folds_of(observations: Observations) -> tuple[NDArray[np.intp], FloatArray]:
    """Return each row's level of compute (0 lowest), and the levels' centres.

    The levels are the budgets where there are `MIN_FOLDS` or more, rows without one going to the
    nearest; else equal parts of the rows by compute.
    """
    budget, _ = budgets_of(observations)
    centres = np.unique(budget[np.isfinite(budget)])
    log_c = np.log(observations.flops)
    if len(centres) < MIN_FOLDS:
        parts = min(MAX_FOLDS, len(np.unique(observations.flops)))
        edges = np.quantile(log_c, np.linspace(0, 1, parts + 1))
        centres = np.exp((edges[1:] + edges[:-1]) / 2)
        return np.clip(np.searchsorted(edges, log_c, side="right") - 1, 0, parts - 1), centres
    middles = (np.log(centres)[1:] + np.log(centres)[:-1]) / 2
    nearest = np.searchsorted(middles, log_c)
    # A row's own budget decides: logged FLOPs may be counted otherwise than the budget was.
    return np.where(np.isfinite(budget), np.searchsorted(centres, budget), nearest), centres


def aicc(fit: ParametricFit) -> float:
    """Return AICc of a fit, its noise scale counted as a parameter.

    Gaussian for least squares; Laplace where Huber's delta is below the typical residual, since
    the objective is then all but least absolute deviations. Minus infinity where no residual is
    left.
    """
    r = fit.residuals
    n, p = len(r), len(fit.names) + 1
    if not r.any():
        return -math.inf
    typical = float(np.median(np.abs(r)))
    if fit.objective.threshold < typical:
        deviance = 2 * n * (math.log(2 * np.mean(np.abs(r))) + 1)
    else:
        deviance = n * (math.log(2 * math.pi * np.mean(r * r)) + 1)
    return deviance + 2 * p + 2 * p * (p + 1) / (n - p - 1) if n > p + 1 else math.inf


def _score(
    observations: Observations,
    fold: NDArray[np.intp],
    origins: Sequence[int],
    form: str,
    objective: Objective,
    spec: BootstrapSpec,
    level: float,
) -> tuple[Candidate, FloatArray]:
    errors, inside, widths, lost = [], [], [], 0
    for i in origins:
        past = observations.take(np.flatnonzero(fold < i))
        future = observations.take(np.flatnonzero(fold == i))
        fit = fit_parametric(
            past,
            form=form,
            objective=objective,
            bootstrap=spec,
            n_starts=STARTS,
            uses_inflation=False,
        )
        lost += fit.status == "not_identified"
        columns = columns_of(future)
        predicted = fit.predict(columns, level=level)
        observed = columns[fit.law.target]
        errors.append(np.abs(predicted.value / observed - 1))
        inside.append((predicted.pred_low <= observed) & (observed <= predicted.pred_high))
        widths.append((predicted.pred_high - predicted.pred_low) / predicted.value)
    every = np.concatenate(errors)
    whole = fit_parametric(
        observations, form=form, objective=objective, bootstrap=replace(spec, method="none")
    )
    candidate = Candidate(
        form=form,
        objective=objective,
        mean_relative_error=float(every.mean()),
        max_relative_error=float(every.max()),
        covered=float(np.concatenate(inside).mean()),
        mean_width=float(np.concatenate(widths).mean()),
        aicc=aicc(whole),
        unidentified_folds=lost,
    )
    return candidate, every


def columns_of(observations: Observations) -> dict[str, NDArray[Any]]:
    """Return the observations' columns under the names that laws use."""
    return {
        **observations.extra,
        "n_params": observations.n_params,
        "n_tokens": observations.n_tokens,
        "flops": observations.flops,
        "loss_nats": observations.loss_nats,
    }


def _n_params(form: str) -> int:
    from scalelab.theory.laws import law_named

    return len(law_named(form).names())
