"""Overview: state of the sweep, isoFLOP curves, optimum against compute, fitted surface."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import streamlit as st

from scalelab.fit.isoflop import MISFIT, misfits
from scalelab.forecast.headline import laws_sentence
from scalelab.report import figures, figures_isoflop, overlay
from scalelab.units import format_flops, format_quantity, plural
from scalelab_dashboard import assess, glossary, point, queries, slider, tables_of, ui, waiting
from scalelab_dashboard.views import live

if TYPE_CHECKING:
    from streamlit.delta_generator import DeltaGenerator

    from scalelab.fit.isoflop import IsoflopFit
    from scalelab.fit.parabola import CurveMinimum
    from scalelab.forecast.bands import Bands
    from scalelab.forecast.fit_report import FitReport
    from scalelab.records.types import Observations
    from scalelab.report.look import Look
    from scalelab_dashboard.choice import Choice

MAX_MINIMA = 10
REMEDIES = {
    "checkpoints": "the last row of each run",
    "swept_settings": "the best of each size",
    "seed_replicates": "the mean of all seeds",
}
"""What the options in the message of a warning do, by its code."""
_OPTION = re.compile(r"--(last-of|best-of|mean-of) ([\w,]+)")


def show(choice: Choice) -> None:
    """Draw the page."""
    _state(choice)
    top, now, after, running = (st.container() for _ in range(4))
    if choice.source is not None and choice.source.is_unfinished:
        with now:
            live.show(choice)
    found = waiting.rows(choice)
    if found is None:
        return
    rows, isoflop = found
    if choice.table is not None:
        with top:
            st.markdown(
                f"**{ui.as_text(choice.table.label)}**, a table of {plural(len(rows.flops), 'row')}"
            )
    report = waiting.report(choice)
    bands = old = None
    is_ready = False
    if report is not None and choice.key is not None:
        head = queries.headline(choice.key, tuple(choice.words()[2:]), "", report, None)
        old = _before(choice, report, top)
        with running:
            is_ready, bands = waiting.frontier(choice.key)
        with top:
            laws = laws_sentence(report.averaged)
            ui.answer(head.sentence, head.basis, head.verdict, head.warnings, laws)
        with after:
            point.offer(choice, head.warnings, len(rows))
            _remedy(choice, report)
            ui.next_step(head, rows, choice.level)
            if report.has_answer and is_ready:
                _headline(report, choice, bands)
    by = "frontier" if report is None else f"frontier by the {report.forecaster.label}"
    left, right = st.columns([3, 2], gap="medium")
    with left:
        st.subheader(
            "IsoFLOP curves",
            help=glossary.about("isoFLOP curve", "Approach 1, 2, 3", "Edge minimum", "Outlier"),
        )
        more = (bands is not None, old is not None, point.chosen(), choice.excluded)
        ui.plot(
            "isoflop",
            choice.key,
            lambda look: point.overlaid(
                figures_isoflop.isoflop_curves(rows, isoflop, bands, look), choice, look, old
            ),
            more,
            point.clicks(choice),
        )
        st.caption(
            "Labels: budget in FLOP. Diamonds: minimum of each parabola with its interval. Dashed "
            "orange: compute-optimal loss of the forecaster. Click a point to see its run."
            + (" Crosses: excluded runs. Dotted: the frontier with them." if old else "")
        )
    with right:
        st.subheader("Compute-optimal N and D", help=glossary.about("D_opt, N_opt", "Frontier"))
        ui.plot("optima", choice.key, lambda look: _optima(isoflop, bands, rows, old, look), more)
        st.caption(ui.as_text(f"Line and band: {by}. Diamonds with bars: minima of approach 2."))
    point.panel(choice, report)
    if report is None:
        return
    if report.has_answer:
        slider.show(choice)
        left, right = st.columns([3, 2], gap="medium")
        with left:
            st.subheader("Loss over N and D")
            ui.plot(
                "contours",
                choice.key,
                lambda look: figures.contours(report, bands, look),
                on_click=point.clicks(choice),
            )
        with right:
            _minima(isoflop, rows)
    st.caption(ui.as_text(figures.caption(report)))
    ui.command(choice.words())


def _optima(
    isoflop: IsoflopFit, bands: Bands | None, rows: Observations, old: Bands | None, look: Look
) -> Any:
    """Return the figure of N_opt and D_opt, with the old frontier if runs are excluded."""
    figure = figures.optima(isoflop, bands, rows, look)
    if old is not None:
        overlay.ghost_optima(figure, old, look)
    return figure


def _before(choice: Choice, report: FitReport, top: DeltaGenerator) -> Bands | None:
    """Say what the excluded runs change; return the frontier with them, None while it is fitted."""
    if not choice.excluded or choice.whole is None:
        return None
    with top:
        whole = waiting.whole_report(choice)
        point.change(choice, report, whole)
        return None if whole is None else waiting.frontier(choice.whole)[1]


def _remedy(choice: Choice, report: FitReport) -> None:
    """Offer to read a table as its warnings say: the last row of each run, the best of each size.

    The warnings name the options; the button and the command line then read the same rows.
    """
    if choice.table is None:
        return
    given = choice.table.reading
    found = {
        code: dict(_OPTION.findall(each.message))
        for each in report.warnings
        if (code := each.code) in REMEDIES
    }
    options = {name: value for each in found.values() for name, value in each.items()}
    if not options:
        return
    words = {name.replace("-", "_"): value for name, value in options.items()}
    reading = replace(
        given,
        last_of=words.get("last_of", given.last_of),
        best_of=tuple(words["best_of"].split(",")) if "best_of" in words else given.best_of,
        mean_of=tuple(words["mean_of"].split(",")) if "mean_of" in words else given.mean_of,
    )
    said = " and ".join(REMEDIES[code] for code in REMEDIES if code in found)
    st.button(
        f"Keep {said}",
        type="primary",
        on_click=tables_of.keep_rows,
        args=(reading,),
        help="Reads the table again: "
        + " ".join(f"--{name} {value}" for name, value in options.items()),
    )


def _state(choice: Choice) -> None:
    """Show the number of runs by status; nothing for a table."""
    source = choice.source
    if source is None:
        return
    live.state(choice)
    status = live.status_of(choice)
    counts = source.counts if status is None else status.counts
    ui.notes(queries.notes(choice.results, (source.name,)))
    failed = sum(counts.get(state, 0) for state in ("failed", "diverged"))
    if failed and status is None:
        st.markdown(
            f"{plural(failed, 'run')} without a result. The **Runs** view shows why. "
            + ui.prose(f"`scalelab retry {source.name}` starts them again.")
        )


def _minima(isoflop: IsoflopFit, runs: Observations) -> None:
    """Show the minima of the isoFLOP curves as a table; of many, an evenly spaced selection."""
    found = [curve for curve in isoflop.curves if curve.is_interior]
    is_missed = dict(
        zip([curve.budget for curve in isoflop.curves], misfits(runs, isoflop.curves), strict=True)
    )
    metric = runs.metric
    if not found:
        return
    st.markdown(
        f"**Minima of the isoFLOP curves** (approach 2, {ui.as_text(metric.unit)})",
        help=glossary.about("Approach 1, 2, 3", "D/N"),
    )
    some = np.unique(np.linspace(0, len(found) - 1, min(len(found), MAX_MINIMA)).round())
    rows = [
        f"| {format_flops(curve.budget)}{' †' if is_missed[curve.budget] else ''} "
        f"| {format_quantity(curve.n_params.value)} "
        f"| {_span_of(curve.n_params)} | {curve.n_tokens.value / curve.n_params.value:.1f} "
        f"| {curve.n_params.loss:.4f} |"
        for curve in (found[int(i)] for i in some)
    ]
    # Markdown, because a Streamlit table makes the browser load and compile 0.7 MB more.
    name = ui.as_text(metric.label)
    head = (f"| C, FLOP | N_opt | interval | D/N | {name} |", "|" + "--:|" * 5)
    st.markdown("\n".join((*head, *rows)))
    if any(is_missed[curve.budget] for curve in found):
        st.caption(
            f"† The parabola misses its runs: its residual is over {MISFIT:g} times that of the "
            "other budgets. Do not use this minimum."
        )


def _span_of(minimum: CurveMinimum) -> str:
    if minimum.low is None or minimum.high is None:
        return "unbounded"
    return f"{format_quantity(minimum.low)} to {format_quantity(minimum.high)}"


def _headline(report: FitReport, choice: Choice, bands: Bands | None) -> None:
    columns = st.columns(4)
    flops = assess.span(report.observations)[-1]
    a, b = report.derived.get("a"), report.derived.get("b")
    note = ""
    if report.averaged is not None:
        if a is not None and report.law_status != "not_identified":
            note = f"The {report.fit.form} law alone: a = {ui.exponent(a, choice.level)[0]}."
        near = report.frontier[0] if report.frontier else None
        a, b = (near.a, near.b) if near else (None, None)
    with columns[0]:
        ui.number(
            "exponent a, N_opt ∝ Cᵃ",
            *ui.exponent(a, choice.level),
            f"{note}\n\n" + glossary.about("Exponents a and b", "Confidence interval"),
        )
    with columns[1]:
        ui.number(
            "exponent b, D_opt ∝ Cᵇ",
            *ui.exponent(b, choice.level),
            glossary.about("Exponents a and b", "D_opt, N_opt"),
        )
    with columns[2]:
        value, limits = _tokens_per_param(bands, flops)
        ui.number(f"D/N at {format_flops(flops)} FLOP", value, limits, glossary.about("D/N"))
    with columns[3]:
        irreducible = report.params.get("E")
        if irreducible is not None and report.law_status != "not_identified":
            ui.number(
                f"irreducible loss E of the {report.fit.form} law",
                f"{irreducible.value:.3f}",
                ui.limits(irreducible, choice.level, "{:.3f}"),
                glossary.about("Irreducible loss", "E, A, B, alpha, beta"),
            )


def _tokens_per_param(bands: Bands | None, flops: float) -> tuple[str, str]:
    """Return D/N on the frontier at this compute, and its interval; both in words if unknown."""
    if bands is None or flops not in bands.flops:
        return "–", "not determined"
    at = int(np.flatnonzero(bands.flops == flops)[0])
    value = bands.n_tokens[at] / bands.n_params[at]
    low = bands.n_tokens_low[at] / bands.n_params_high[at]
    high = bands.n_tokens_high[at] / bands.n_params_low[at]
    if not np.isfinite(low + high):
        return f"{value:.1f}", "no interval"
    return (
        f"{value:.1f}",
        f"{low:.1f} to {high:.1f} tokens per parameter ({100 * bands.level:g} %)",
    )
