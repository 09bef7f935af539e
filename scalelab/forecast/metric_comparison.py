"""Laws of several metrics of the same runs: constants, exponents, and where their D/N disagrees."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from scalelab.errors import EXIT_OK, NotIdentifiedError
from scalelab.fit.intervals import Interval
from scalelab.forecast.fit_formats import tex_number, tex_text
from scalelab.forecast.fit_report import FitReport
from scalelab.records.metric import Metric
from scalelab.theory.accounting import FLOPS_PER_PARAM_TRAIN
from scalelab.units import format_flops, plural

SCHEMA = 1
CONSTANTS = ("E", "alpha", "beta")
"""Constants of a law that the table has, where its form has them."""
EXPONENT = "a"
ZERO = 1e-9
"""A constant below this is at its bound of 0."""
RATIO = "tokens_per_param"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MetricRow:
    """The fit of one metric.

    Attributes
    ----------
    metric : Metric
    report : FitReport or None
        Its fit; None if the runs with this metric cannot be fitted.
    tokens_per_param : Interval or None
        Compute-optimal D/N at the comparison's compute; None if the runs do not answer.
    reason : str
        Why there is no report or no D/N; else empty.
    """

    metric: Metric
    report: FitReport | None
    tokens_per_param: Interval | None
    reason: str = ""

    @property
    def is_identified(self) -> bool:
        """Whether the runs determine the law."""
        return self.report is not None and self.report.law_status != "not_identified"

    def interval(self, name: str) -> Interval | None:
        """Return a constant or an exponent of the law, or D/N; None if it is not known."""
        if name == RATIO:
            return self.tokens_per_param
        if self.report is None or not self.is_identified:
            return None
        found = {**self.report.params, **self.report.derived}.get(name)
        return found if found is not None and math.isfinite(found.value) else None


@dataclass(frozen=True, kw_only=True, slots=True)
class RatioDisagreement:
    """Two metrics whose intervals of the compute-optimal D/N do not overlap."""

    low: str
    high: str
    low_ratio: Interval
    high_ratio: Interval

    @property
    def sentence(self) -> str:
        """Both metrics with their D/N."""
        return (
            f"{self.low}: D/N {with_limits(self.low_ratio)}; {self.high}: D/N "
            f"{with_limits(self.high_ratio)} "
            f"({self.high_ratio.value / self.low_ratio.value:.2g} times)."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the pair as in the JSON of ``scalelab fit --metric all``."""
        return {
            "metrics": [self.low, self.high],
            RATIO: [_limits(self.low_ratio), _limits(self.high_ratio)],
        }


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MetricComparison:
    """The fits of several metrics of the same runs.

    Attributes
    ----------
    rows : tuple of MetricRow
    flops : float
        Compute at which D/N is compared, FLOP as 6 N D.
    level : float
        Level of every interval.
    source : str
        Where the runs come from.
    form : str
        Form of the laws.
    """

    rows: tuple[MetricRow, ...]
    flops: float
    level: float
    source: str
    form: str

    @property
    def exit_code(self) -> int:
        """0, or 4 if the runs determine the law of no metric and answer for none."""
        has_answer = any(row.is_identified or row.tokens_per_param for row in self.rows)
        return EXIT_OK if has_answer else NotIdentifiedError.exit_code

    @property
    def disagreements(self) -> tuple[RatioDisagreement, ...]:
        """Pairs whose intervals of D/N do not overlap, the farthest apart first."""
        known = [(row.metric.text, row.tokens_per_param) for row in self.rows]
        found = []
        for (one, first), (other, second) in combinations(known, 2):
            if first is None or second is None:
                continue
            if not math.isfinite(first.low + first.high + second.low + second.high):
                continue
            low, high = sorted(((first, one), (second, other)), key=lambda pair: pair[0].value)
            if low[0].high < high[0].low:
                pair = RatioDisagreement(
                    low=low[1], high=high[1], low_ratio=low[0], high_ratio=high[0]
                )
                found.append(pair)
        return tuple(sorted(found, key=lambda p: p.low_ratio.value / p.high_ratio.value))

    @property
    def sentence(self) -> str:
        """Whether the metrics agree on the compute-optimal D/N."""
        at = f"At {format_flops(self.flops)} FLOP"
        known = sum(row.tokens_per_param is not None for row in self.rows)
        if known < 2:
            return f"{at}, {known} of {plural(len(self.rows), 'metric')} has a compute-optimal D/N."
        pairs = self.disagreements
        if not pairs:
            return (
                f"{at}, no two of {plural(known, 'metric')} disagree on the compute-optimal D/N: "
                "all intervals overlap."
            )
        low, high = pairs[0].low_ratio, pairs[0].high_ratio
        return (
            f"{at}, metrics disagree on the compute-optimal D/N: {pairs[0].low} wants "
            f"{with_limits(low)}, {pairs[0].high} {with_limits(high)}, which is "
            f"{high.value / low.value:.2g} times as much."
        )

    @property
    def agreement(self) -> str:
        """How many pairs of metrics disagree."""
        known = sum(row.tokens_per_param is not None for row in self.rows)
        count = len(self.disagreements)
        return (
            f"The intervals of D/N do not overlap for {count} of "
            f"{plural(known * (known - 1) // 2, 'pair')} of metrics."
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """The numbers that some row has, in the order of the table."""
        names = (*CONSTANTS, EXPONENT, RATIO)
        return tuple(n for n in names if any(row.interval(n) is not None for row in self.rows))

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of ``scalelab fit --metric all --json``."""
        return {
            "schema": SCHEMA,
            "command": "fit",
            "metric": "all",
            "source": self.source,
            "form": self.form,
            "level": self.level,
            "flops": self.flops,
            "metrics": [
                {
                    "metric": row.metric.text,
                    "unit": row.metric.unit,
                    "n_rows": None if row.report is None else row.report.fit.n_rows,
                    "law_status": None if row.report is None else row.report.law_status,
                    "forecaster": None if row.report is None else row.report.forecaster.name,
                    **{name: _limits(row.interval(name)) for name in (*CONSTANTS, EXPONENT, RATIO)},
                    "warnings": []
                    if row.report is None
                    else [{"code": w.code, "message": w.message} for w in row.report.warnings],
                    "reason": row.reason or None,
                }
                for row in self.rows
            ],
            "disagreements": [pair.to_dict() for pair in self.disagreements],
        }

    def to_csv(self) -> str:
        """Return one line for each metric and number."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(("metric", "unit", "n_rows", "name", "value", "low", "high"))
        for row in self.rows:
            count = "" if row.report is None else row.report.fit.n_rows
            for name in self.columns:
                found = row.interval(name)
                if found is not None:
                    ends = (found.value, found.low, found.high)
                    cells = [repr(float(end)) if math.isfinite(end) else "" for end in ends]
                    writer.writerow((row.metric.text, row.metric.unit, count, name, *cells))
        return out.getvalue()

    def to_tex(self) -> str:
        """Return the table as LaTeX; the caption states form, runs and compute."""
        lines = [
            "\\begin{table}",
            f"\\caption{{{self._caption()}}}",
            f"\\begin{{tabular}}{{ll{'r' * (1 + len(self.columns))}}}",
            "\\hline",
            " & ".join(("metric", "unit", "runs", *(_TEX[name] for name in self.columns)))
            + " \\\\",
            "\\hline",
            *self._tex_rows(),
            "\\hline",
            "\\end{tabular}",
            "\\end{table}",
            "",
        ]
        return "\n".join(lines)

    def _caption(self) -> str:
        return (
            f"{tex_text(self.form)} form by metric, runs of {tex_text(self.source)}; "
            f"{100 * self.level:g} \\% intervals; $D/N$ at $C$ = {tex_number(self.flops)} FLOP."
        )

    def _tex_rows(self) -> Iterator[str]:
        for row in self.rows:
            cells = []
            for name in self.columns:
                found = row.interval(name)
                cells.append("--" if found is None else with_limits(found))
            count = "--" if row.report is None else str(row.report.fit.n_rows)
            head = (tex_text(row.metric.text), row.metric.unit, count)
            yield " & ".join((*head, *cells)) + " \\\\"


_TEX = {
    "E": "$E$",
    "alpha": r"$\alpha$",
    "beta": r"$\beta$",
    EXPONENT: r"$a$ ($N_\mathrm{opt} \propto C^a$)",
    RATIO: "$D/N$",
}


def with_limits(interval: Interval) -> str:
    """Return a value with its limits in brackets, three digits each."""
    if not math.isfinite(interval.low + interval.high):
        return _short(interval.value)
    return f"{_short(interval.value)} [{_short(interval.low)}, {_short(interval.high)}]"


def ratio_of(n_params: Interval, flops: float) -> Interval:
    """Return D/N from the compute-optimal N at a compute of 6 N D."""
    ratios = [
        flops / FLOPS_PER_PARAM_TRAIN / size**2
        for size in (n_params.value, n_params.high, n_params.low)
    ]
    return Interval(value=ratios[0], low=ratios[1], high=ratios[2])


def _limits(interval: Interval | None) -> dict[str, float | None] | None:
    if interval is None:
        return None
    ends = {"value": interval.value, "low": interval.low, "high": interval.high}
    return {name: end if math.isfinite(end) else None for name, end in ends.items()}


def _short(value: float) -> str:
    return f"{value:#.3g}".rstrip(".") if abs(value) >= ZERO else "0"
