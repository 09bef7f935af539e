"""The weighted target of a search over weights, with limits and repeated tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.errors import UsageError, did_you_mean
from scalelab.fit.effective_data import effective_data
from scalelab.fit.intervals import Interval, percentile_limits
from scalelab.fit.mixing import MixtureFit
from scalelab.theory.epochs import MAX_EPOCHS
from scalelab.theory.laws.mixing import WEIGHT

N_NEAR, N_ROUNDS = 48, 30
"""Points near the best in a round, and rounds; the step shrinks by `SHRINK` in each."""
SHRINK = 0.78
NEGLIGIBLE = 2e-3
"""Weights below this are tried as 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MixtureLimits:
    """Limits of the search.

    Attributes
    ----------
    unique_tokens : Mapping[str, float]
        Distinct tokens of a source; default: those that the runs record. Repeats count less, as in
        `scalelab.theory.laws.data_constrained`.
    max_epochs : float
        Most passes over a source with known ``unique_tokens``.
    low, high : Mapping[str, float]
        Least and largest weight of a source.
    """

    unique_tokens: Mapping[str, float] = field(default_factory=dict)
    max_epochs: float = MAX_EPOCHS
    low: Mapping[str, float] = field(default_factory=dict)
    high: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Goal:
    """The target as a function of the weights."""

    fit: MixtureFit
    target: Mapping[str, float]
    limits: MixtureLimits
    n_params: float | None
    n_tokens: float | None

    @classmethod
    def of(
        cls,
        fit: MixtureFit,
        target: Mapping[str, float],
        limits: MixtureLimits,
        n_params: float | None,
        n_tokens: float | None,
    ) -> Goal:
        """Return the goal of checked arguments; see `scalelab.fit.best_mixing.best_weights`."""
        for name, weight in target.items():
            if name not in fit.laws:
                raise UsageError(
                    f"target {name!r}",
                    f"an evaluation set of the runs: {', '.join(fit.laws)}",
                    did_you_mean(name, fit.laws) or f"Write for example --target {_first(fit)}.",
                )
            if not (math.isfinite(weight) and weight >= 0):
                raise UsageError(
                    f"weight {weight} of {name} in the target",
                    "weights of 0 or more",
                    f"Write for example --target 1*{name}.",
                )
        total = sum(target.values())
        if not total > 0:
            raise UsageError(
                "a target without a set of positive weight",
                f"a weighted mean of {', '.join(fit.laws)}",
                f"Write for example --target {_first(fit)}.",
            )
        for given in (limits.unique_tokens, limits.low, limits.high):
            for name in given:
                if name not in fit.runs.sources:
                    raise UsageError(
                        f"source {name!r} of a limit",
                        f"one of {', '.join(fit.runs.sources)}",
                        did_you_mean(name, fit.runs.sources)
                        or f"Write for example {fit.runs.sources[0]}=1e9.",
                    )
        known = fit.runs
        if not limits.unique_tokens:
            limits = replace(limits, unique_tokens=known.unique_tokens)
        size = None if known.n_params is None else float(known.n_params.max())
        tokens = None if known.n_tokens is None else float(known.n_tokens.max())
        if limits.unique_tokens and (n_tokens or tokens) is None:
            raise UsageError(
                "unique tokens of sources without the training tokens",
                "the planned training tokens D",
                "Add them, for example --n-tokens 20B.",
            )
        return cls(
            fit=fit,
            target={name: weight / total for name, weight in target.items() if weight},
            limits=limits,
            n_params=n_params or size,
            n_tokens=n_tokens or tokens,
        )

    def bounds(self) -> tuple[FloatArray, FloatArray]:
        """Return the least and largest weights, shapes (m,)."""
        sources = self.fit.runs.sources
        low = np.array([self.limits.low.get(name, 0.0) for name in sources])
        high = np.array([self.limits.high.get(name, 1.0) for name in sources])
        for j, name in enumerate(sources):
            unique = self.limits.unique_tokens.get(name)
            if unique is not None and self.n_tokens is not None:
                high[j] = min(high[j], self.limits.max_epochs * unique / self.n_tokens)
        wrong = [name for j, name in enumerate(sources) if not 0 <= low[j] <= high[j]]
        if wrong or low.sum() > 1 + 1e-9 or high.sum() < 1 - 1e-9:
            total = " + ".join(f"{n} {v:.3g}" for n, v in zip(sources, high, strict=True))
            raise UsageError(
                f"limits that no mixture meets (largest weights {total})",
                "largest weights that sum to at least 1 and least weights that sum to at most 1",
                "Use fewer training tokens, more epochs (--max-epochs) or more unique tokens.",
            )
        return low, high

    def columns(self, h: FloatArray) -> dict[str, FloatArray]:
        """Return the columns of the laws at weights (.., m), repeats counted by their worth."""
        tokens = None if self.n_tokens is None else np.full(h.shape[:-1], self.n_tokens)
        unique = self.limits.unique_tokens
        if unique and tokens is not None:
            h, tokens = effective_data(h, tokens, unique, self.fit.runs.sources)
        out = {WEIGHT + name: h[..., j] for j, name in enumerate(self.fit.runs.sources)}
        scale = self.fit.runs.scale
        if "n_params" in scale and self.n_params is not None:
            out["n_params"] = np.full(h.shape[:-1], self.n_params)
        if "n_tokens" in scale and tokens is not None:
            out["n_tokens"] = tokens
        return out

    def value(self, h: FloatArray) -> FloatArray:
        """Return the target of the best laws at weights (q, m), shape (1, q)."""
        columns = self.columns(h)
        parts = [w * self.fit.laws[name].at(columns) for name, w in self.target.items()]
        return np.asarray(np.sum(parts, axis=0)[None])

    def draws(self, h: FloatArray) -> FloatArray:
        """Return the target of each replicate at weights (q, m) or (k, q, m), shape (k, q)."""
        columns = self.columns(h)
        parts = [w * self.fit.laws[name].draws(columns) for name, w in self.target.items()]
        return np.asarray(np.sum(parts, axis=0))

    @property
    def n_replicates(self) -> int:
        """Number of replicates."""
        return min(len(self.fit.laws[name].samples) for name in self.target)

    def search(
        self,
        spread: FloatArray,
        low: FloatArray,
        high: FloatArray,
        rng: np.random.Generator,
        *,
        is_replicates: bool,
    ) -> FloatArray:
        """Return the best weights of the laws (1, m), or of each replicate (k, m)."""
        of = self.draws if is_replicates else self.value
        if is_replicates and not self.n_replicates:
            return np.empty((0, spread.shape[1]))
        values = np.nan_to_num(of(spread), nan=np.inf)
        top = np.argmin(values, axis=1)
        best, value = spread[top], values[np.arange(len(top)), top]
        step = 0.5
        for _ in range(N_ROUNDS):
            tried = within(_near(best, spread, step, rng), low, high)
            values = np.nan_to_num(of(tried) if is_replicates else of(tried[0]), nan=np.inf)
            top = np.argmin(values, axis=1)
            found = values[np.arange(len(top)), top]
            better = found < value
            best = np.where(better[:, None], tried[np.arange(len(top)), top], best)
            value = np.where(better, found, value)
            step *= SHRINK
        return np.asarray(best)

    def interval(self, h: FloatArray, level: float, only: str | None = None) -> Interval:
        """Return the target, or the loss of one set, with its interval."""
        goal = self
        if only is not None:
            goal = Goal(
                fit=self.fit, target={only: 1.0}, limits=self.limits,
                n_params=self.n_params, n_tokens=self.n_tokens,
            )  # fmt: skip
        value = float(goal.value(h[None])[0, 0])
        return _interval(goal.draws(h[None])[:, 0] if goal.n_replicates else (), value, level)

    def gain(self, run: FloatArray, h: FloatArray, level: float) -> Interval:
        """Return the target at a run's weights minus that at ``h``."""
        both = np.stack([run, h])
        value = self.value(both)[0]
        draws = self.draws(both) if self.n_replicates else np.empty((0, 2))
        return _interval(draws[:, 0] - draws[:, 1], float(value[0] - value[1]), level)

    def epochs(self, h: FloatArray) -> dict[str, float]:
        """Return the passes over the sources with known unique tokens."""
        if self.n_tokens is None:
            return {}
        return {
            name: float(h[j] * self.n_tokens / self.limits.unique_tokens[name])
            for j, name in enumerate(self.fit.runs.sources)
            if name in self.limits.unique_tokens
        }


def within(h: FloatArray, low: FloatArray, high: FloatArray) -> FloatArray:
    """Return weights (.., m) moved into their limits, with sum 1."""
    h = np.clip(h, low, high)
    for _ in range(2):
        missing = 1.0 - h.sum(axis=-1, keepdims=True)
        room = np.where(missing > 0, high - h, h - low)
        total = room.sum(axis=-1, keepdims=True)
        h = np.clip(h + missing * room / np.where(total > 0, total, 1.0), low, high)
    return h


def _near(
    best: FloatArray, spread: FloatArray, step: float, rng: np.random.Generator
) -> FloatArray:
    """Return points near each best, shape (k, N_NEAR, m): between it and others, and scaled."""
    k, m = best.shape
    half = N_NEAR // 2
    others = spread[rng.integers(0, len(spread), size=(k, half))]
    share = step * rng.uniform(0, 1, size=(k, half, 1))
    between = best[:, None] * (1 - share) + others * share
    scaled = best[:, None] * np.exp(step * rng.normal(size=(k, half, m)))
    tried = np.concatenate([between, scaled], axis=1)
    tried[:, -1] = np.where(best < NEGLIGIBLE, 0.0, best)
    return np.asarray(tried / tried.sum(axis=-1, keepdims=True))


def _interval(draws: FloatArray | Sequence[float], value: float, level: float) -> Interval:
    drawn = np.asarray(draws, dtype=np.float64)
    low, high = percentile_limits(drawn[np.isfinite(drawn)], level, value)
    return Interval(value=value, low=low, high=high)


def _first(fit: MixtureFit) -> str:
    return next(iter(fit.laws))
