"""Forecasts from rows that count N in more than one way, for example without embeddings.

A law holds for one count of N. With another count it is bent, and its forecasts are wrong. Where
rows have several counts, the averaged forecaster is fitted with each, and the counts are weighted
by how well they explain the losses. Questions are in the count of ``n_params``; the relation of the
counts, which the rows show, converts them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.errors import ScalelabError
from scalelab.fit.bootstrap import BootstrapSpec
from scalelab.fit.intervals import Interval
from scalelab.fit.outcome import FitWarning, ParametricFit
from scalelab.fit.parametric import fit_parametric
from scalelab.fit.rows import column
from scalelab.fit.size_counts import ASKED, Relation, counted_by, names_counts, size_counts
from scalelab.forecast.allocate import Forecast, derived
from scalelab.forecast.averaged import MOST_ROWS, AveragedFit, fit_average
from scalelab.forecast.mixture import Mixture
from scalelab.records.types import Observations

NEGLIGIBLE = 1e-3
UNDECIDED = 0.05
"""The answer depends on the count if another than the asked one has at least this weight, .."""
MATERIAL = 0.003
""".. and says a loss that differs by this fraction, .."""
VOCABULARY = 50_000
"""Vocabulary of a table that does not state its count of N."""
LAYER_WIDTHS, PARAMS_PER_LAYER = 64.0, 12.0
"""Width of a model over its layers, and parameters of a layer over the square of its width."""
UNSTATED = "unstated"
SHARE_OF_WIDTH = 0.5
""".. and by this share of half the confidence interval."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SizeCount:
    """One count of N with its forecaster.

    Attributes
    ----------
    name : str
        Column of the rows.
    fit : AveragedFit
    weight : float
        Share in the average.
    relation : Relation or None
        From the asked count; None for that count.
    """

    name: str
    fit: AveragedFit
    weight: float
    relation: Relation | None

    def columns(self, asked: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        """Return columns with N in this count."""
        if self.relation is None:
            return dict(asked)
        return {**asked, ASKED: self.relation.other(asked[ASKED])}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CountedFit(AveragedFit):
    """The averaged forecaster over several counts of N; its own fields are those of the asked one.

    Attributes
    ----------
    counts : tuple of SizeCount
        The asked count first.
    """

    counts: tuple[SizeCount, ...] = ()

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each form by name over all counts, the largest first."""
        found: dict[str, float] = {}
        for each in self.counts:
            for name, weight in each.fit.weights.items():
                found[name] = found.get(name, 0.0) + each.weight * weight
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def at(self, columns: Mapping[str, FloatArray]) -> Mixture:
        """Return the distribution of the log loss at these points."""
        kept = [each for each in self.counts if each.weight > 0]
        parts = [each.fit.at(each.columns(columns)) for each in kept]
        return Mixture(
            weights=np.concatenate(
                [each.weight * part.weights for each, part in zip(kept, parts, strict=True)]
            ),
            means=np.concatenate([part.means for part in parts]),
            variances=np.concatenate([part.variances for part in parts]),
            noise=np.concatenate([part.noise for part in parts]),
        )

    def draws(
        self, columns: Mapping[str, FloatArray], n: int, rng: np.random.Generator
    ) -> FloatArray:
        """Return n joint draws of the noise-free log losses at these points, shape (n, m)."""
        shares = rng.multinomial(n, np.array([each.weight for each in self.counts]))
        return np.concatenate(
            [
                each.fit.draws(each.columns(columns), int(k), rng)
                for each, k in zip(self.counts, shares, strict=True)
                if k
            ]
        )


def fit_counts(rows: Observations) -> AveragedFit:
    """Return the averaged forecaster of finished runs, over every count of N that they have.

    Parameters
    ----------
    rows : Observations
        At least one run; other counts of N are columns of ``extra`` such as ``n_params_kaplan``.

    Raises
    ------
    NotIdentifiedError
        If no form can describe the losses.
    """
    relations = size_counts(rows)
    if not relations:
        return fit_average(rows)
    rows = _thinned(rows)
    fits: dict[str, AveragedFit] = {ASKED: fit_average(rows, is_only_count=False)}
    for name in relations:
        try:
            fits[name] = fit_average(counted_by(rows, name), is_only_count=False)
        except ScalelabError:  # a count that no form describes has no weight
            continue
    largest = max(found.log_evidence for found in fits.values())
    shares = {name: math.exp(found.log_evidence - largest) for name, found in fits.items()}
    shares = {name: share if share > NEGLIGIBLE else 0.0 for name, share in shares.items()}
    total = sum(shares.values())
    asked = fits[ASKED]
    return CountedFit(
        **{each.name: getattr(asked, each.name) for each in fields(AveragedFit)},
        counts=tuple(
            SizeCount(
                name=name, fit=found, weight=shares[name] / total, relation=relations.get(name)
            )
            for name, found in fits.items()
        ),
    )


def count_warnings(
    law: ParametricFit,
    rows: Observations,
    forecasts: Sequence[Forecast],
    averaged: AveragedFit | None,
    a: Interval | None,
) -> list[FitWarning]:
    """Warn if the law or a forecast depends on how N is counted.

    No warning if the runs clearly prefer the asked count. ``a`` is the exponent of the law's N_opt,
    None if it has none.
    """
    found = _forecast_warning(averaged, forecasts) if isinstance(averaged, CountedFit) else None
    found = found or _law_warning(law, rows, a)
    if found is not None:
        return [FitWarning(code="count_of_n", message=found)]
    found = _unstated(law, rows, a)
    return [] if found is None else [FitWarning(code="unstated_count", message=found)]


def _unstated(law: ParametricFit, rows: Observations, own: Interval | None) -> str | None:
    """Compare the exponent a of the law with that if the N of the table left out the embeddings.

    Only of a table that neither states its count of N nor has another one as a column.
    """
    is_known = rows.param_convention != UNSTATED or names_counts(rows)
    if is_known or own is None or law.status == "not_identified":
        return None
    if not rows.has(ASKED) or not math.isfinite(own.low + own.high):
        return None
    # The same models by the other count: their N grows more slowly, as embeddings grow with width.
    n_params = float(np.exp(np.log(rows.n_params).mean()))
    width = (n_params * LAYER_WIDTHS / PARAMS_PER_LAYER) ** (1 / 3)
    share = VOCABULARY * width / n_params
    a = own.value * (1 + share / 3) / (1 + share)
    if own.low <= a <= own.high:
        return None
    return (
        "The table does not state whether N includes the embeddings, so the count of N in the "
        f"answer is unknown. If N leaves them out, a is {own.value:.3f} by that count and "
        f"about {a:.3f} by all parameters (with a vocabulary of {VOCABULARY:,}). State the count: "
        "`scalelab import FILE --param-convention chinchilla` for all parameters, kaplan without "
        "embeddings."
    )


def _forecast_warning(found: CountedFit, forecasts: Sequence[Forecast]) -> str | None:
    """Compare what the asked count says to each question with what the best other count says."""
    asked, *others = found.counts
    other = max(others, key=lambda each: each.weight, default=None)
    if other is None or other.weight < UNDECIDED:
        return None
    worst = (0.0, "", 0.0, 0.0)
    for each in forecasts:
        if each.n_params is None or each.n_tokens is None:
            continue
        at = {ASKED: np.array([each.n_params.value]), "n_tokens": np.array([each.n_tokens.value])}
        first = asked.fit.predict(at, each.level)
        second = other.fit.predict(other.columns(at), each.level)
        values = float(first.value[0]), float(second.value[0])
        width = min(math.log(float(one.high[0] / one.low[0])) for one in (first, second)) / 2
        gap = abs(math.log(values[0] / values[1]))
        if gap > max(MATERIAL, SHARE_OF_WIDTH * width):
            worst = max(worst, (gap, each.asked, *values))
    gap, question, first_loss, second_loss = worst
    if not gap:
        return None
    shares = ", ".join(f"{each.name} {each.weight:.2f}" for each in found.counts)
    return (
        f"The forecast depends on how N is counted: for {question}, a loss of {first_loss:.4f} "
        f"with {ASKED} and {second_loss:.4f} with {other.name}. The answer averages the counts by "
        f"how well they explain the runs ({shares}). To use one, write for example --map "
        f"{ASKED}={other.name}."
    )


def _law_warning(law: ParametricFit, rows: Observations, own: Interval | None) -> str | None:
    """Compare the exponent a of the law with that of the same form in the other counts."""
    is_open = law.status == "not_identified"
    if own is None or not (is_open or math.isfinite(own.low + own.high)):
        return None
    for name in size_counts(rows):
        counted = counted_by(rows, name)
        try:
            other = fit_parametric(
                counted, form=law.form, objective=law.objective, bootstrap=BootstrapSpec(k=0)
            )
        except ScalelabError:
            continue
        # Log likelihoods of Laplace noise, which outliers do not decide.
        gain = len(rows) * math.log(_mean_residual(law, rows) / _mean_residual(other, counted))
        if is_open and gain > 0 and other.status != "not_identified":
            return (
                f"The runs determine the law with N from {name}, not with {ASKED}. To fit that "
                f"count, write --map {ASKED}={name}."
            )
        a = derived(other)["a"].value
        is_worse = gain < math.log(UNDECIDED / (1 - UNDECIDED))
        if is_open or is_worse or own.low <= a <= own.high:
            continue
        says = "explains the runs better" if gain > 0 else "explains the runs about as well"
        return (
            f"The exponent a depends on how N is counted: {own.value:.3f} with {ASKED}, {a:.3f} "
            f"with {name}, which {says}. To fit that count, write --map {ASKED}={name}."
        )
    return None


def _mean_residual(fit: ParametricFit, rows: Observations) -> float:
    columns = {name: column(rows, name) for name in fit.law.columns}
    return float(np.abs(np.log(rows.loss_nats / fit.law.loss(columns))).mean())


def _thinned(rows: Observations) -> Observations:
    """Return at most `MOST_ROWS` rows, evenly over compute, so that all counts use the same."""
    if len(rows) <= MOST_ROWS:
        return rows
    order = np.argsort(rows.n_params * rows.n_tokens, kind="stable")
    return rows.take(np.sort(order[np.linspace(0, len(rows) - 1, MOST_ROWS).astype(np.intp)]))
