"""What the page and the report show of mixture laws: the laws, the best weights, the surface."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.fit.mixing_goal import Goal, MixtureLimits
from scalelab.sweep.run_spec import WEIGHT_TOLERANCE

if TYPE_CHECKING:
    from scalelab.fit.best_mixing import BestWeights
    from scalelab.fit.intervals import Interval
    from scalelab.fit.mixing import MixtureFit
    from scalelab.fit.mixture_runs import MixtureRuns
    from scalelab.fit.outcome import FitWarning

TERNARY = 3
"""Number of sources for which the target is drawn over a triangle."""
GRID = 60
"""Steps along an edge of the triangle."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LawRow:
    """The law of one evaluation set.

    Attributes
    ----------
    name, form : str
        The set, and the form of its law.
    r2, rmse : float
        Of the runs that were fitted.
    held_out : Mapping[str, float]
        Root mean square error of runs that were left out, by scheme.
    predicted : ndarray of shape (n,)
        Predicted loss of each run.
    effects : Mapping[str, Interval]
        Change of the loss if 10 % more of the tokens come from a source.
    """

    name: str
    form: str
    r2: float
    rmse: float
    held_out: Mapping[str, float]
    predicted: FloatArray
    effects: Mapping[str, Interval]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MixtureAnswer:
    """Mixture laws with the best weights for a target; plain values, for another process.

    Attributes
    ----------
    runs : MixtureRuns
    level : float
        Level of the intervals.
    laws : tuple of LawRow
        The law of each evaluation set.
    best : BestWeights
    target : Mapping[str, float]
        Weight of each evaluation set in the target.
    unique_tokens : Mapping[str, float]
        Distinct tokens of the sources, where known; they limit the weights.
    at_runs : ndarray of shape (n,)
        Predicted target at the weights of each run.
    observed : ndarray of shape (n,)
        Target of each run as measured.
    warnings : tuple of FitWarning
    surface : ndarray of shape (GRID + 1, GRID + 1)
        Predicted target where row i and column j have weights (1 - (i + j) / GRID, j / GRID,
        i / GRID) of three sources; NaN outside the triangle. Empty for other numbers of sources.
    """

    runs: MixtureRuns
    level: float
    laws: tuple[LawRow, ...]
    best: BestWeights
    target: Mapping[str, float]
    unique_tokens: Mapping[str, float]
    at_runs: FloatArray
    observed: FloatArray
    warnings: tuple[FitWarning, ...] = ()
    surface: FloatArray = field(default_factory=lambda: np.empty((0, 0)))

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the sources."""
        return self.runs.sources

    @property
    def is_mean(self) -> bool:
        """Whether every evaluation set has the same weight in the target."""
        weights = [self.target.get(law.name, 0.0) for law in self.laws]
        return max(weights) - min(weights) < WEIGHT_TOLERANCE

    @property
    def target_words(self) -> str:
        """The target in words, or as on the command line: ``0.5*code+0.5*web``."""
        if len(self.laws) > 1 and self.is_mean:
            return f"mean over all {len(self.laws)} evaluation sets"
        terms = [(name, weight) for name, weight in self.target.items() if weight]
        if len(terms) == 1:
            return terms[0][0]
        return "+".join(f"{weight:.3g}*{name}" for name, weight in terms)

    def sentence(self) -> str:
        """Return the answer in one sentence."""
        weights = ", ".join(
            f"{name} {100 * weight.value:.0f} %" for name, weight in self.best.weights.items()
        )
        return (
            f"Train on {weights}: the predicted {self.target_words} is "
            f"{self.best.target.value:.4f} {self.runs.unit}."
        )

    def basis(self) -> str:
        """Return what the answer is compared with, in one or two sentences."""
        gain = self.best.gain
        ends = f" ({gain.low:.4f} to {gain.high:.4f})" if np.isfinite(gain.low) else ""
        limited = ", ".join(self.best.binding)
        words = f" The unique tokens of {limited} limit its weight." if limited else ""
        return (
            f"That is {gain.value:.4f}{ends} below the prediction for the best trained mixture, "
            f"{self.best.best_run}.{words}"
        )


def mixture_answer(
    fit: MixtureFit,
    target: Mapping[str, float] | None = None,
    *,
    n_params: float | None = None,
    n_tokens: float | None = None,
) -> MixtureAnswer:
    """Return the best weights for a target; default: the mean over all evaluation sets.

    Raises
    ------
    UsageError
        For an unknown set, or unique tokens that no mixture meets.
    """
    wanted = dict(target or dict.fromkeys(fit.laws, 1 / len(fit.laws)))
    limits = MixtureLimits(unique_tokens=fit.runs.unique_tokens)
    if n_tokens is None and fit.runs.n_tokens is None:
        limits = replace(limits, unique_tokens={})
    best = fit.best_weights(wanted, limits, n_params=n_params, n_tokens=n_tokens)
    goal = Goal.of(fit, wanted, limits, n_params, n_tokens)
    total = sum(wanted.values())
    shares = {name: weight / total for name, weight in wanted.items()}
    effects = fit.effects()
    return MixtureAnswer(
        runs=fit.runs,
        level=fit.level,
        laws=tuple(
            LawRow(
                name=name,
                form=law.form,
                r2=law.r2,
                rmse=law.rmse,
                held_out={s.scheme: s.rmse[name] for s in fit.scores if s.form == law.form},
                predicted=law.at(fit.runs.columns()),
                effects=effects[name],
            )
            for name, law in fit.laws.items()
        ),
        warnings=(*fit.warnings, *best.warnings),
        best=best,
        target=shares,
        unique_tokens=limits.unique_tokens,
        at_runs=goal.value(fit.runs.weights)[0],
        observed=np.sum([w * fit.runs.losses[name] for name, w in shares.items()], axis=0),
        surface=_surface(goal) if len(fit.runs.sources) == TERNARY else np.empty((0, 0)),
    )


def _surface(goal: Goal) -> FloatArray:
    steps = np.arange(GRID + 1)
    third, second = np.meshgrid(steps, steps, indexing="ij")
    inside = third + second <= GRID
    weights = np.stack([GRID - third - second, second, third], axis=-1)[inside] / GRID
    found = np.full(inside.shape, np.nan)
    found[inside] = goal.value(weights)[0]
    return found
