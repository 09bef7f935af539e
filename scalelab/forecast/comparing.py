"""Several sweeps, tables or laws over one another: optima, exponents and effective speed-up.

The first is the reference. Differences in loss and speed-ups need losses on one text, and per token
of one tokenizer; sizes and exponents compare in any case.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.errors import NotIdentifiedError, ScalelabError, UsageError
from scalelab.fit.intervals import Interval
from scalelab.fit.outcome import ParametricFit
from scalelab.fit.speedup import Speedup, effective_speedup
from scalelab.forecast.allocate import Forecast, derived, frontier, parse_request
from scalelab.forecast.bands import Bands
from scalelab.forecast.comparable import NO, Comparability, comparability
from scalelab.forecast.comparison_words import answer_of, details_of
from scalelab.forecast.extrapolation import fitted_range
from scalelab.forecast.fit_report import FitReport
from scalelab.forecast.forecaster import Forecaster, forecaster
from scalelab.forecast.headline import exponents
from scalelab.forecast.law_file import SavedLaw
from scalelab.forecast.loss_gap import SPAN, LossGap, loss_gaps, plain, plain_factor
from scalelab.forecast.verdict import verdict_on
from scalelab.records.types import Observations
from scalelab.units import format_flops, plural

CHINCHILLA_FLOPS = 5.76e23
MIN_SOURCES = 2
MAX_SOURCES = 6
BAND_POINTS = 60
GAP_POINTS = 25


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One of the compared: runs with their fit, or a law.

    Attributes
    ----------
    name : str
    kind : {"runs", "law"}
    forecaster : Forecaster
    exponents : (Interval, Interval) or None
        a and b; NaN limits without replicates, None if the runs do not determine them.
    verdict : str
        Of the fit; empty for a law.
    fit : ParametricFit or None
    rows : Observations or None
        The runs; None for a law.
    span : (float, float)
        Smallest and largest compute, FLOP.
    """

    name: str
    kind: str
    forecaster: Forecaster
    exponents: tuple[Interval, Interval] | None
    verdict: str
    fit: ParametricFit | None
    rows: Observations | None
    span: tuple[float, float]

    @classmethod
    def of_report(cls, name: str, report: FitReport) -> Source:
        """Return the runs of a fit."""
        rows = report.observations
        within = fitted_range(rows)
        return cls(
            name=name,
            kind="runs",
            forecaster=report.forecaster,
            exponents=exponents(report) if report.has_answer else None,
            verdict=verdict_on(report.warnings, has_answer=report.has_answer).label,
            fit=report.fit,
            rows=rows,
            span=(within.least_flops, within.flops),
        )

    @classmethod
    def of_law(cls, name: str, saved: SavedLaw, level: float) -> Source:
        """Return a published or saved law."""
        found = saved.fitted_range()
        flops = CHINCHILLA_FLOPS if found is None else found.flops
        least = flops if found is None else found.least_flops
        fit = saved.as_fit()
        try:
            slope = frontier(saved.law, flops)["a"]
        except UsageError as error:
            raise UsageError(
                f"the law {name}, which has no compute-optimal N and D",
                "a law of N and D",
                "Choose another, for example besiroglu.",
            ) from error
        slopes = derived(fit, level)
        if not slopes or not math.isfinite(slopes["a"].value):
            slopes = {name: _point(value) for name, value in (("a", slope), ("b", 1 - slope))}
        return cls(
            name=name,
            kind="law",
            forecaster=forecaster(fit, level, found),
            exponents=(slopes["a"], slopes["b"]),
            verdict="",
            fit=None,
            rows=None,
            span=(least, flops),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """What one source says, beside the reference.

    Attributes
    ----------
    source : Source
    forecast : Forecast or None
        Its compute-optimal model at the compute of the comparison.
    bands : Bands or None
        Its frontier over the compute of all sources.
    gap : LossGap or None
        Difference in loss, and speed-up, at the compute of the comparison; None for laws, the
        reference, and where the runs do not determine both frontiers.
    gaps : tuple of LossGap
        The same over the compute of both sources.
    one_factor : Speedup or None
        The speed-up by the law of the reference, where there is no ``gap``.
    reason : str
        Why there is no speed-up or no forecast.
    comparable : Comparability or None
        Whether its losses compare with those of the reference; None for the reference.
    """

    source: Source
    forecast: Forecast | None
    bands: Bands | None
    gap: LossGap | None = None
    gaps: tuple[LossGap, ...] = ()
    one_factor: Speedup | None = None
    reason: str = ""
    comparable: Comparability | None = None

    @property
    def speedup(self) -> Interval | None:
        """Compute of the reference over that of the source at equal loss; None if not known."""
        if self.gap is not None and self.gap.is_reached:
            return self.gap.speedup
        return None if self.one_factor is None else self.one_factor.factor

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object."""
        slopes = self.source.exponents
        return {
            "name": self.source.name,
            "kind": self.source.kind,
            "n_rows": None if self.source.rows is None else len(self.source.rows),
            "verdict": self.source.verdict or None,
            "a": None if slopes is None else plain(slopes[0]),
            "b": None if slopes is None else plain(slopes[1]),
            "optimum": None if self.forecast is None else self.forecast.to_dict(),
            "speedup": None if self.speedup is None else plain_factor(self.speedup),
            "gap": self.gap and self.gap.to_dict(),
            "gaps": [each.to_dict() for each in self.gaps],
            "one_factor": self.one_factor and self.one_factor.to_dict(),
            "reason": self.reason or None,
            "comparable": self.comparable and self.comparable.to_dict(),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceComparison:
    """Sources over one another; the first is the reference.

    Attributes
    ----------
    flops : float
        Compute at which optima and losses are compared.
    level : float
        Level of every interval.
    parts : tuple of Compared
    answers : tuple of str
        Whether each source after the first is better than the first.
    details : tuple of tuple of str
        What qualifies each answer: distance, sizes, D/N, exponents, and how to make it comparable.
    """

    flops: float
    level: float
    parts: tuple[Compared, ...]
    answers: tuple[str, ...]
    details: tuple[tuple[str, ...], ...]

    @property
    def has_speedup(self) -> bool:
        """Whether one of the sources has a speed-up."""
        return any(part.speedup is not None for part in self.parts)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {
            "flops": self.flops,
            "level": self.level,
            "answers": list(self.answers),
            "details": [list(each) for each in self.details],
            "sources": [part.to_dict() for part in self.parts],
        }


def compare_sources(
    sources: Sequence[Source], *, flops: float | None = None, level: float = 0.9, seed: int = 0
) -> SourceComparison:
    """Return the comparison of sources; the first is the reference.

    Parameters
    ----------
    sources : sequence of Source
        Two to six, of different names.
    flops : float, optional
        Compute at which the optima are compared; default: the largest that is within the runs of
        all sources, or Chinchilla's for laws alone.
    level : float
        Level of every interval.
    seed : int
        Seed of the resampling of speed-ups.

    Raises
    ------
    UsageError
        If there are too few or too many sources, or a name repeats.
    """
    names = [source.name for source in sources]
    if not MIN_SOURCES <= len(names) <= MAX_SOURCES:
        raise UsageError(
            f"{plural(len(names), 'source')} to compare: {', '.join(names) or 'none'}",
            f"{MIN_SOURCES} to {MAX_SOURCES} sweeps, tables or laws",
            "Write for example: scalelab compare public:chinchilla besiroglu.",
        )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(
            f"{twice[0]} twice",
            "different sweeps, tables or laws",
            "Name each of them once.",
        )
    if flops is None:
        reached = [source.span[1] for source in sources if source.kind == "runs"]
        flops = min(reached, default=CHINCHILLA_FLOPS)
    # A published law states no range; it is drawn over that of the runs.
    spans = [s.span for s in sources if s.kind == "runs"] or [s.span for s in sources]
    low = min(flops, *(span[0] for span in spans)) / SPAN
    high = max(flops, *(span[1] for span in spans)) * SPAN
    grid: FloatArray = np.geomspace(low, high, BAND_POINTS)
    first = _compared(sources[0], None, flops, grid, level, seed)
    parts = (
        first,
        *(_compared(source, first, flops, grid, level, seed) for source in sources[1:]),
    )
    return SourceComparison(
        flops=flops,
        level=level,
        parts=parts,
        answers=tuple(answer_of(part, first, flops) for part in parts[1:]),
        details=tuple(details_of(part, first, flops) for part in parts[1:]),
    )


def _compared(
    source: Source, first: Compared | None, flops: float, grid: FloatArray, level: float, seed: int
) -> Compared:
    forecast, bands, reason = None, None, ""
    try:
        forecast = source.forecaster.forecast(parse_request(f"C={format_flops(flops)}"))
        bands = source.forecaster.bands(grid)
    except ScalelabError as error:
        reason = error.given
    alone = Compared(source=source, forecast=forecast, bands=bands, reason=reason)
    if first is None:
        return alone
    base = first.source
    alone = replace(alone, comparable=comparability(source.name, source.rows, base.name, base.rows))
    if alone.comparable is None or alone.comparable.answer == NO:
        return alone
    if bands is not None and first.bands is not None:
        low, high = (pick(source.span[i], base.span[i], flops) for i, pick in enumerate((min, max)))
        gaps = loss_gaps(bands, first.bands, np.geomspace(low, high, GAP_POINTS))
        at = loss_gaps(bands, first.bands, np.array([flops]))
        if at:
            return replace(alone, gap=at[0], gaps=gaps)
    return _by_one_factor(alone, base, seed, level)


def _by_one_factor(part: Compared, base: Source, seed: int, level: float) -> Compared:
    """Return the source with the speed-up by the law of the reference, or the reason for none."""
    if base.fit is None or part.source.rows is None:
        return part
    try:
        found = effective_speedup(base.fit, part.source.rows, seed=seed, level=level)
    except NotIdentifiedError:
        return replace(part, reason=f"the runs of {base.name} do not determine its law")
    except UsageError as error:
        # The message has the words of `fit --speedup`: recipe A and recipe B.
        words = error.given.replace("recipe A", base.name).replace("recipe B", part.source.name)
        return replace(part, reason=f"{words}; are the losses of one evaluation set, in one unit?")
    return replace(part, one_factor=found)


def _point(value: float) -> Interval:
    return Interval(value=value, low=math.nan, high=math.nan)
