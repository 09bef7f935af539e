"""Several sweeps, tables or laws over one another: optima, exponents and effective speed-up.

The first is the reference. Speed-ups compare runs with its law, so they need losses on the same
evaluation set; sizes and exponents compare in any case.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.errors import NotIdentifiedError, ScalelabError, UsageError
from scalelab.fit.outcome import Interval, ParametricFit
from scalelab.fit.speedup import Speedup, effective_speedup
from scalelab.forecast.allocate import Forecast, derived, frontier, parse_request
from scalelab.forecast.bands import Bands
from scalelab.forecast.fit_report import FitReport
from scalelab.forecast.forecaster import Forecaster, forecaster
from scalelab.forecast.headline import exponents, verdict_of
from scalelab.forecast.law_file import SavedLaw
from scalelab.records.types import Observations
from scalelab.units import format_flops, format_quantity, format_times, plural

CHINCHILLA_FLOPS = 5.76e23
MIN_SOURCES = 2
MAX_SOURCES = 6
BAND_POINTS = 60
SPAN = 3.0
"""Factor by which frontiers are drawn beyond the runs."""
NO_SPEEDUP = "No speed-up"
FAR = 1.5
"""Factor beyond the reference's compute at which a run counts as outside."""
SAME_SET = "Comparable only if both losses are of one evaluation set, in one unit."


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
        return cls(
            name=name,
            kind="runs",
            forecaster=report.forecaster,
            exponents=exponents(report) if report.has_answer else None,
            verdict=verdict_of(report.warnings) if report.has_answer else "not identified",
            fit=report.fit,
            rows=rows,
            span=(float(rows.flops.min()), float(rows.flops.max())),
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
    speedup : Speedup or None
        Compute of the reference over its compute at equal loss; None for laws and the reference.
    reason : str
        Why there is no speed-up or no forecast.
    """

    source: Source
    forecast: Forecast | None
    bands: Bands | None
    speedup: Speedup | None = None
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object."""
        slopes = self.source.exponents
        return {
            "name": self.source.name,
            "kind": self.source.kind,
            "n_rows": None if self.source.rows is None else len(self.source.rows),
            "verdict": self.source.verdict or None,
            "a": None if slopes is None else _plain(slopes[0]),
            "b": None if slopes is None else _plain(slopes[1]),
            "optimum": None if self.forecast is None else self.forecast.to_dict(),
            "speedup": None if self.speedup is None else self.speedup.to_dict(),
            "reason": self.reason or None,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceComparison:
    """Sources over one another; the first is the reference.

    Attributes
    ----------
    flops : float
        Compute at which the optima are compared.
    level : float
        Level of every interval.
    parts : tuple of Compared
    sentences : tuple of str
        What the comparison says, one for each source after the first.
    """

    flops: float
    level: float
    parts: tuple[Compared, ...]
    sentences: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {
            "flops": self.flops,
            "level": self.level,
            "sentences": list(self.sentences),
            "note": SAME_SET,
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
    parts = tuple(
        _compared(source, sources[0], flops, grid, level, seed) for source in sources
    )  # fmt: skip
    return SourceComparison(
        flops=flops,
        level=level,
        parts=parts,
        sentences=tuple(_sentence(part, parts[0], flops) for part in parts[1:]),
    )


def _compared(
    source: Source, first: Source, flops: float, grid: FloatArray, level: float, seed: int
) -> Compared:
    forecast, bands, speedup, reason = None, None, None, ""
    try:
        forecast = source.forecaster.forecast(parse_request(f"C={format_flops(flops)}"))
        bands = source.forecaster.bands(grid)
    except ScalelabError as error:
        reason = error.given
    if source is first or source.rows is None:
        return Compared(source=source, forecast=forecast, bands=bands, reason=reason)
    if first.fit is None:
        reason = reason or f"{first.name} is a law without runs"
    else:
        try:
            speedup = effective_speedup(first.fit, source.rows, seed=seed, level=level)
        except NotIdentifiedError:
            reason = f"the runs of {first.name} do not determine its law"
        except UsageError as error:
            # The message has the words of `fit --speedup`: recipe A and recipe B.
            reason = (
                error.given.replace("recipe A", first.name).replace("recipe B", source.name)
                + "; are the losses of one evaluation set, in one unit?"
            )
    return Compared(
        source=source, forecast=forecast, bands=bands, speedup=speedup, reason=reason
    )  # fmt: skip


def _sentence(part: Compared, first: Compared, flops: float) -> str:
    """Return how one source compares with the reference: sizes, then the speed-up."""
    name, reference = part.source.name, first.source.name
    said = []
    if part.speedup is not None:
        said.append(_speedup_words(part.speedup, name, reference))
        if _is_outside(part.source, first.source):
            said.append(
                f"Most of its runs are outside the compute of {reference}, so this extrapolates "
                "that law: compare runs of the same compute."
            )
    if part.forecast is not None and first.forecast is not None:
        ours, theirs = part.forecast.n_params, first.forecast.n_params
        if ours is not None and theirs is not None:
            said.append(_size_words(ours, theirs, name, reference, flops))
    if part.reason and part.speedup is None and part.source.rows is not None:
        end = "" if part.reason.endswith("?") else "."
        said.append(f"{NO_SPEEDUP} of {name}: {part.reason}{end}")
    return " ".join(said) or f"{name} has no optimum at {format_flops(flops)} FLOP."


def _is_outside(source: Source, first: Source) -> bool:
    """Say whether most runs are beyond those of the reference in compute."""
    if source.rows is None:
        return False
    low, high = first.span[0] / FAR, first.span[1] * FAR
    return float(np.mean((source.rows.flops < low) | (source.rows.flops > high))) > 0.5


def _speedup_words(found: Speedup, name: str, reference: str) -> str:
    factor = found.factor
    limits = (
        f" [{factor.low:.2f}, {factor.high:.2f}]" if math.isfinite(factor.low + factor.high) else ""
    )
    if limits and factor.low <= 1 <= factor.high:
        return (
            f"{name} is neither better nor worse than {reference} as far as these runs show: "
            f"speed-up {factor.value:.2f}{limits}."
        )
    if factor.value >= 1:
        return (
            f"{name} is better than {reference}: it reaches the same loss with 1/"
            f"{factor.value:.2f} of the compute, a speed-up of {factor.value:.2f}{limits}."
        )
    return (
        f"{name} is worse than {reference}: it needs {format_quantity(1 / factor.value)} times the "
        f"compute for the same loss{_inverse(factor)}."
    )


def _inverse(factor: Interval) -> str:
    """Return the limits of one over a factor in brackets, if they are known."""
    if not math.isfinite(factor.low + factor.high) or factor.low <= 0:
        return ""
    return f" [{format_quantity(1 / factor.high)}, {format_quantity(1 / factor.low)}]"


def _size_words(ours: Interval, theirs: Interval, name: str, reference: str, flops: float) -> str:
    """Return how the compute-optimal N differs; no clear difference if the intervals overlap."""
    at = f"At {format_flops(flops)} FLOP"
    spans = [
        (each.low, each.high) if math.isfinite(each.low + each.high) else (each.value, each.value)
        for each in (ours, theirs)
    ]
    (low, high), (other_low, other_high) = spans
    has_interval = low < high or other_low < other_high
    if has_interval and low <= other_high and other_low <= high:
        sizes = " and ".join(
            f"{format_quantity(each.value)} of {source}"
            for each, source in ((ours, name), (theirs, reference))
        )
        return f"{at} there is no clear difference in the best parameters: {sizes}."
    ratio = ours.value / theirs.value
    size = (
        "as many" if 1 / 1.05 < ratio < 1.05
        else f"{format_times(ratio)} the" if ratio > 1
        else f"1/{format_quantity(1 / ratio, 2)} of the"
    )  # fmt: skip
    end = " as" if size == "as many" else " of"
    return (
        f"{at} {name} wants {format_quantity(ours.value)} parameters, {size} parameters{end} "
        f"{reference}."
    )


def _point(value: float) -> Interval:
    return Interval(value=value, low=math.nan, high=math.nan)


def _plain(interval: Interval) -> dict[str, float | None]:
    ends = (interval.value, interval.low, interval.high)
    value, low, high = (end if math.isfinite(end) else None for end in ends)
    return {"value": value, "low": low, "high": high}
