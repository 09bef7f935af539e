"""Comparison of forms and objectives, ranked by the accuracy of their extrapolation.

Rolling origin: fit the lower budgets, predict the next one, repeat. The score is the mean relative
error over all predicted rows. The coverage of the prediction intervals (without
`scalelab.fit.inflation`, which uses the same errors) and AICc on all rows are reported too.
Candidates are tied if their errors differ by no more than chance (a paired bootstrap over the
predicted rows).

References
----------
Tashman 2000 (rolling-origin evaluation). Hurvich and Tsai 1989 (AICc).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from scalelab.arrays import FloatArray
from scalelab.errors import DataError
from scalelab.fit.bootstrap import BootstrapSpec
from scalelab.fit.compute_folds import MAX_FOLDS, MIN_FOLDS, folds_of
from scalelab.fit.objective import Objective
from scalelab.fit.outcome import ParametricFit
from scalelab.fit.parametric import fit_parametric
from scalelab.fit.time_limit import TimeLimitError, check_time, time_limit
from scalelab.records.types import Observations
from scalelab.units import plural

FORMS = ("chinchilla", "tied", "gamma", "kaplan")
"""Forms of (N, D) that are compared by default."""
OBJECTIVES = (Objective(), Objective(delta=1e-2), Objective(loss="ls"))
"""Objectives with which each form is fitted: from nearly absolute to squared."""
MOST_ROWS = 400
"""Largest number of rows that a fold is fitted to; of more, a part that is spread evenly."""
TIME_LIMIT_S = 120.0
"""Time after which no other form and objective is tried."""
MIN_SPARE_ROWS = 3
"""Minimum number of rows of a fold beyond the number of parameters."""
REPLICATES = 100
STARTS = 8
"""Starting points per fold; few are enough, since variable projection ranks the seeds."""
TIE_LEVEL = 0.9
TIE_GAP = 1e-4
"""Differences in relative error that do not matter: 0.01 %."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """Score of one form and objective.

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
        AICc on all rows, from the likelihood of the objective; lower is better, comparable between
        candidates with the same residual and loss.
    unidentified_folds : int
        Folds whose rows did not determine the form.
    is_identified : bool
        Whether all rows determine the form; such candidates come first.
    share : float
        Share of bootstrap samples of the predicted rows in which this candidate is the best of the
        identified ones.
    gap : tuple of float
        Interval of the error of this candidate minus that of the best; (0, 0) for the best.
    is_tied : bool
        Whether the lower limit of that interval is at most `TIE_GAP`.
    """

    form: str
    objective: Objective
    mean_relative_error: float
    max_relative_error: float
    covered: float
    mean_width: float
    aicc: float
    unidentified_folds: int
    is_identified: bool
    share: float = 0.0
    gap: tuple[float, float] = (0.0, 0.0)
    is_tied: bool = True

    @property
    def label(self) -> str:
        """Form and objective as on the command line."""
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
    skipped : tuple of str
        Candidates that were not tried: too few rows, or `TIME_LIMIT_S`.
    """

    candidates: tuple[Candidate, ...]
    folds: tuple[float, ...]
    n_predicted: int
    level: float
    skipped: tuple[str, ...] = ()

    @property
    def best(self) -> Candidate:
        """The identified candidate with the smallest mean relative error."""
        return self.candidates[0]

    @property
    def verdict(self) -> str:
        """A sentence that names the best candidate and those tied with it."""
        tied = [c.label for c in self.candidates[1:] if c.is_tied and c.is_identified]
        best = f"{self.best.label} predicts the next budget best"
        error = f"{100 * self.best.mean_relative_error:.2f} % mean error"
        said = f"{best} ({error})."
        if tied:
            said += f" The data do not separate it from: {'; '.join(tied)}."
        if self.skipped:
            said += f" Not tried: {'; '.join(self.skipped)}."
        return said

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {
            "verdict": self.verdict,
            "n_predicted": self.n_predicted,
            "folds": list(self.folds),
            "level": self.level,
            "skipped": list(self.skipped),
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
                    "is_identified": c.is_identified,
                    "share": c.share,
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
    time_limit_s: float = TIME_LIMIT_S,
) -> Comparison:
    """Return the candidates ranked by rolling-origin extrapolation, identified ones first.

    Forms with too many parameters for the rows are skipped.

    Parameters
    ----------
    observations : Observations
        The rows, without any that are held out for a later score.
    forms : sequence of str
        Names of forms.
    objectives : sequence of Objective
        Each form is fitted with each objective; default log-Huber 1e-3.
    level : float
        Level of the prediction intervals.
    k : int
        Bootstrap replicates per fold.
    seed : int
        Seed of the resampling.
    time_limit_s : float
        Time for all candidates: one that does not end in it is skipped, except the first.

    Raises
    ------
    DataError
        If the rows have too few budgets for a fold.
    """
    fold, centres = folds_of(observations)
    later = [i for i in range(2, len(centres)) if (fold == i).any()]
    below = max((int((fold < i).sum()) for i in later), default=0)
    usable = [form for form in forms if below >= _n_params(form) + MIN_SPARE_ROWS]
    if not usable:
        _refuse(observations, len(centres), below, forms)
    most = max(_n_params(form) for form in usable) + MIN_SPARE_ROWS
    origins = [i for i in later if (fold < i).sum() >= most]
    if len(origins) > MAX_FOLDS:
        spread = np.linspace(0, len(origins) - 1, MAX_FOLDS).round().astype(int)
        origins = [origins[j] for j in spread]
    skipped = [f"{form} (too few rows)" for form in forms if form not in usable]
    scored: list[tuple[Candidate, FloatArray]] = []
    started = time.monotonic()
    labels = observations.cluster
    repeats = labels is not None and len(np.unique(labels)) < len(labels)
    # Each candidate is scored with replicates of its objective.
    spec = BootstrapSpec(k=k, seed=seed, method="cluster" if repeats else "row")
    # Every form is tried with the first objective before any is tried with the second.
    for objective in objectives or (Objective(),):
        for form in usable:
            left = time_limit_s - (time.monotonic() - started)
            try:
                with time_limit(left if scored else math.inf):
                    check_time()
                    scored.append(_score(observations, fold, origins, form, objective, spec, level))
            except TimeLimitError:
                check_time()  # the limit of the caller
                skipped.append(f"{form} with {objective.loss} (time limit of {time_limit_s:g} s)")
    scored.sort(key=lambda pair: (not pair[0].is_identified, pair[0].mean_relative_error))
    best = scored[0][1]
    generator = np.random.default_rng(seed)
    draws = generator.integers(len(best), size=(1000, len(best)))
    shares = _shares(scored, draws)
    scored = [
        (replace(candidate, share=share), errors)
        for (candidate, errors), share in zip(scored, shares, strict=True)
    ]
    ranked = [scored[0][0]]
    for candidate, errors in scored[1:]:
        # A candidate whose error is not finite is not tied.
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
        skipped=tuple(skipped),
    )


def _refuse(
    observations: Observations, n_levels: int, below: int, forms: Sequence[str]
) -> NoReturn:
    """Raise DataError: no form has enough levels or enough rows below the last one."""
    form = min(forms, key=_n_params)
    needed = _n_params(form) + MIN_SPARE_ROWS
    if n_levels < MIN_FOLDS:
        given, allowed = plural(n_levels, "level"), f"{MIN_FOLDS} levels or more"
    else:
        given = f"{plural(below, 'row')} below the highest level"
        allowed = f"{needed} or more ({form} has {_n_params(form)} parameters)"
    raise DataError(
        f"{given} of compute in {plural(len(observations), 'row')}",
        allowed,
        "Add runs at other budgets, or fit one form without --compare.",
    )


def _shares(
    scored: Sequence[tuple[Candidate, FloatArray]], draws: NDArray[np.intp]
) -> tuple[float, ...]:
    """Return how often each candidate is the best identified one over resampled rows."""
    means = np.array(
        [
            errors[draws].mean(axis=1) if candidate.is_identified else np.full(len(draws), np.inf)
            for candidate, errors in scored
        ]
    )
    means = np.where(np.isfinite(means), means, np.inf)
    if not np.isfinite(means).any():
        return (1.0, *[0.0] * (len(scored) - 1))
    wins = np.bincount(means.argmin(axis=0), minlength=len(scored))
    return tuple(float(share) for share in wins / len(draws))


def aicc(fit: ParametricFit) -> float:
    """Return AICc of a fit, with the noise scale counted as a parameter.

    The likelihood is Gaussian for least squares, and Laplace if Huber's delta is below the typical
    residual: the objective is then close to least absolute deviations. Minus infinity if all
    residuals are 0.
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
        behind = np.flatnonzero(fold < i)
        if len(behind) > MOST_ROWS:
            behind = behind[np.argsort(observations.flops[behind], kind="stable")]
            behind = behind[np.linspace(0, len(behind) - 1, MOST_ROWS).astype(int)]
        past = observations.take(behind)
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
        is_identified=whole.status != "not_identified",
    )
    return candidate, every


def columns_of(observations: Observations) -> dict[str, NDArray[Any]]:
    """Return the columns of the observations under the names that laws use."""
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
