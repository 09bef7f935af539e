"""Mixture laws that were fitted to runs of data mixtures, one for each evaluation set.

`scalelab.fit.mixing_search.fit_mixtures` fits them and compares their forms; its result is a
`MixtureFit`. `scalelab.fit.best_mixing` finds the best weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.errors import DataError, UsageError
from scalelab.fit.effective_data import effective_data
from scalelab.fit.intervals import Interval, check_level, percentile_limits
from scalelab.fit.mixture_checks import checked_weights
from scalelab.fit.mixture_runs import MixtureRuns
from scalelab.fit.outcome import FitWarning
from scalelab.theory.laws.mixing import WEIGHT, MixingLaw

if TYPE_CHECKING:
    from scalelab.fit.best_mixing import BestWeights
    from scalelab.fit.mixing_goal import MixtureLimits


@dataclass(frozen=True, kw_only=True, slots=True)
class FormScore:
    """Error of one form on runs that were left out.

    Attributes
    ----------
    form : str
    scheme : str
        ``leave_10_out``, ``leave_mixture_out`` or ``leave_size_out``.
    r2 : Mapping[str, float]
        R^2 of the held-out predictions of each evaluation set.
    rmse : Mapping[str, float]
        Root mean square of predicted minus observed, in the unit of the losses.
    n_folds : int
    n_parameters : int
    """

    form: str
    scheme: str
    r2: Mapping[str, float]
    rmse: Mapping[str, float]
    n_folds: int
    n_parameters: int

    @property
    def mean_r2(self) -> float:
        """Mean R^2 over the evaluation sets."""
        return float(np.mean(list(self.r2.values())))

    @property
    def mean_rmse(self) -> float:
        """Root mean square over the evaluation sets of ``rmse``."""
        return float(np.sqrt(np.mean(np.square(list(self.rmse.values())))))


@dataclass(frozen=True, kw_only=True, slots=True)
class MixtureHoldout:
    """Errors on runs that were held out of the fit.

    Attributes
    ----------
    n : int
        Number of runs.
    r2, rmse : Mapping[str, float]
        By evaluation set.
    """

    n: int
    r2: Mapping[str, float]
    rmse: Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SetLaw:
    """The law of one evaluation set.

    Attributes
    ----------
    name : str
        The evaluation set.
    law : MixingLaw
    r2, rmse : float
        Of the runs that were fitted.
    samples : ndarray of shape (k, p)
        Coordinates of the bootstrap replicates; whole mixtures are resampled.
    """

    name: str
    law: MixingLaw
    r2: float
    rmse: float
    samples: FloatArray

    def at(self, columns: Mapping[str, FloatArray]) -> FloatArray:
        """Return the loss at columns, in their shape."""
        return self.law.loss(columns)

    def draws(self, columns: Mapping[str, FloatArray]) -> FloatArray:
        """Return the loss of each replicate; columns of shape (q,) or (k, q), result (k, q)."""
        theta = tuple(self.samples[:, j : j + 1] for j in range(self.samples.shape[1]))
        with np.errstate(all="ignore"):
            return np.asarray(self.law.evaluate(theta, columns), dtype=np.float64)

    @property
    def form(self) -> str:
        """Name of the law's form."""
        return self.law.name

    def param_intervals(self, level: float) -> dict[str, Interval]:
        """Return every parameter with its interval, by name."""
        values = self.law.decode(self.samples)
        out = {}
        for j, (name, value) in enumerate(self.law.params.items()):
            low, high = percentile_limits(values[:, j], level, value)
            out[name] = Interval(value=value, low=low, high=high)
        return out


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MixtureFit:
    """Mixture laws of all evaluation sets, each of the form with the least held-out error.

    Attributes
    ----------
    runs : MixtureRuns
    laws : Mapping[str, SetLaw]
        The law of each evaluation set.
    scores : tuple of FormScore
        Every form under every scheme.
    level : float
        Level of the intervals.
    warnings : tuple of FitWarning
    holdout : MixtureHoldout or None
        Errors on held-out runs, if there are any.
    """

    runs: MixtureRuns
    laws: Mapping[str, SetLaw]
    scores: tuple[FormScore, ...]
    level: float
    warnings: tuple[FitWarning, ...] = ()
    holdout: MixtureHoldout | None = None

    @property
    def n_parameters(self) -> dict[str, int]:
        """Parameters of each form that was compared."""
        return {s.form: s.n_parameters for s in self.scores}

    def effects(self, share: float = 0.1) -> dict[str, dict[str, Interval]]:
        """Return the change of each set's loss if a share of the tokens moves to each source.

        The tokens come from all sources in proportion to their weights at the mean mixture of the
        runs, at the largest N and D.
        """
        centre = self.runs.weights.mean(axis=0)
        points = np.stack([centre, *((1 - share) * centre + share * np.eye(len(centre)))])
        columns = self.columns(points)
        out: dict[str, dict[str, Interval]] = {}
        for name, law in self.laws.items():
            value = law.at(columns)
            draws = law.draws(columns) if len(law.samples) else np.empty((0, len(value)))
            out[name] = {}
            for j, source in enumerate(self.runs.sources, 1):
                change = float(value[j] - value[0])
                drawn = draws[:, j] - draws[:, 0]
                low, high = percentile_limits(drawn[np.isfinite(drawn)], self.level, change)
                out[name][source] = Interval(value=change, low=low, high=high)
        return out

    def to_dict(self) -> dict[str, Any]:
        """Return the laws, scores and effects as JSON types."""
        return {
            "command": "fit",
            "form": "mixture",
            "source": self.runs.source,
            "sources": list(self.runs.sources),
            "unit": self.runs.unit,
            "n_runs": self.runs.n,
            "n_mixtures": len(np.unique(self.runs.mixtures)),
            "level": self.level,
            "sets": {
                name: {
                    "law": law.form,
                    "r2": law.r2,
                    "rmse": law.rmse,
                    "params": law.param_intervals(self.level),
                }
                for name, law in self.laws.items()
            },
            "scores": [
                {
                    "law": s.form,
                    "scheme": s.scheme,
                    "n_parameters": s.n_parameters,
                    "n_folds": s.n_folds,
                    "mean_r2": s.mean_r2,
                    "mean_rmse": s.mean_rmse,
                    "r2": dict(s.r2),
                    "rmse": dict(s.rmse),
                }
                for s in self.scores
            ],
            "effects": self.effects(),
            "holdout": self.holdout,
            "warnings": list(self.warnings),
        }

    def columns(
        self,
        weights: FloatArray,
        *,
        n_params: float | None = None,
        n_tokens: float | None = None,
    ) -> dict[str, FloatArray]:
        """Return the laws' columns at weights (.., m), N and D (default: the largest).

        Repeats count as in the runs, if these record unique tokens.
        """
        sizes: dict[str, FloatArray] = {}
        for name, given in (("n_params", n_params), ("n_tokens", n_tokens)):
            column = getattr(self.runs, name)
            if name not in self.runs.scale:
                if given is not None and (column is None or abs(given / column.max() - 1) > 0.01):
                    raise UsageError(
                        f"a prediction at {name} = {given:g}",
                        f"runs of several {name}: the laws do not depend on it",
                        f"Leave {name} out, or add runs that differ in it.",
                    )
            else:
                sizes[name] = np.asarray(column.max() if given is None else given, dtype=np.float64)
        runs = self.runs
        if runs.unique_tokens and runs.n_tokens is not None:
            planned = float(runs.n_tokens.max()) if n_tokens is None else n_tokens
            weights, tokens = effective_data(weights, planned, runs.unique_tokens, runs.sources)
            sizes |= {name: tokens for name in sizes if name == "n_tokens"}
        return {WEIGHT + name: weights[..., j] for j, name in enumerate(runs.sources)} | sizes

    def predict(
        self,
        weights: Mapping[str, float],
        *,
        n_params: float | None = None,
        n_tokens: float | None = None,
        level: float | None = None,
    ) -> dict[str, Interval]:
        """Return the loss of each evaluation set at weights, with confidence intervals.

        Raises
        ------
        UsageError
            If a source is unknown or the weights do not sum to 1.
        """
        level = self.level if level is None else level
        check_level(level)
        h = checked_weights(weights, self.runs.sources)
        columns = self.columns(h[None], n_params=n_params, n_tokens=n_tokens)
        out = {}
        for name, each in self.laws.items():
            value = float(each.at(columns).reshape(-1)[0])
            draws = each.draws(columns)[:, 0]
            low, high = percentile_limits(draws[np.isfinite(draws)], level, value)
            out[name] = Interval(value=value, low=low, high=high)
        return out

    def predicted(self, runs: MixtureRuns) -> dict[str, FloatArray]:
        """Return the loss of each evaluation set at the weights, N and D of other runs.

        Raises
        ------
        DataError
            If they have other sources, or no N or D where the laws need it.
        """
        if set(runs.sources) != set(self.runs.sources):
            raise DataError(
                f"runs with the sources {', '.join(runs.sources)}",
                f"the sources of the fit: {', '.join(self.runs.sources)}",
                "Name their columns with --map weight_SOURCE=COLUMN.",
            )
        known = runs.columns()
        columns = {name: known[name] for name in known if name.startswith(WEIGHT)}
        for name in self.runs.scale:
            if getattr(runs, name) is None:
                raise DataError(
                    f"runs without {name}", f"{name} in each", f"Add --map {name}=COLUMN."
                )
            columns[name] = known.get(name, np.asarray(getattr(runs, name), dtype=np.float64))
        return {name: law.at(columns) for name, law in self.laws.items()}

    def scored(self, held: MixtureRuns) -> MixtureFit:
        """Return the fit with its errors on held-out runs."""
        found = self.predicted(held)
        rmse = {k: float(np.sqrt(np.mean((p - held.losses[k]) ** 2))) for k, p in found.items()}
        r2 = {k: r_squared(held.losses[k], p) for k, p in found.items()}
        return replace(self, holdout=MixtureHoldout(n=held.n, r2=r2, rmse=rmse))

    def best_weights(
        self,
        target: Mapping[str, float],
        limits: MixtureLimits | None = None,
        *,
        n_params: float | None = None,
        n_tokens: float | None = None,
        level: float | None = None,
        seed: int = 0,
    ) -> BestWeights:
        """Return the weights with the lowest target; see `scalelab.fit.best_mixing`."""
        from scalelab.fit.best_mixing import best_weights

        return best_weights(
            self, target, limits, n_params=n_params, n_tokens=n_tokens, level=level, seed=seed
        )


def r_squared(observed: FloatArray, predicted: FloatArray) -> float:
    """Return 1 - sum of squared errors / sum of squares about the mean; NaN for equal values."""
    total = float(((observed - observed.mean()) ** 2).sum())
    return 1 - float(((observed - predicted) ** 2).sum()) / total if total > 0 else float("nan")
