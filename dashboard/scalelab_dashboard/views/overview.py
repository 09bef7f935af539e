"""Overview: the sweep's state, its valleys, the optimum against compute, the surface."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import streamlit as st

from scalelab.report import figures, figures_valleys
from scalelab.units import format_flops, format_quantity
from scalelab_dashboard import queries, ui, waiting

if TYPE_CHECKING:
    from scalelab.fit.isoflop import IsoflopFit
    from scalelab.fit.parabola import CurveMinimum
    from scalelab.forecast.fit_report import FitReport
    from scalelab.records.types import Observations
    from scalelab_dashboard.state import Choice

MAX_MINIMA = 10
KINDS = {"isoflop": "isoFLOP"}
STATES = ("done", "running", "queued", "planned", "failed", "diverged", "preempted", "cancelled")


def show(choice: Choice) -> None:
    """Draw the page."""
    _state(choice)
    found = waiting.rows(choice)
    if found is None:
        return
    rows, isoflop = found
    if choice.table is not None:
        st.markdown(f"**{ui.as_text(choice.table.label)}**, a table of {len(rows.flops):,} rows")
    top = st.container()
    report = waiting.report(choice)
    look = ui.look()
    bands = None
    if report is not None and choice.key is not None:
        low, high = _span(rows)
        bands = queries.bands(choice.key, low, high, report)
        with top:
            if report.fit.status == "not_identified":
                waiting.not_identified(report)
            else:
                _headline(report, choice, float(rows.flops.max()))
    left, right = st.columns([3, 2], gap="medium")
    with left:
        st.subheader("Valleys")
        more = bands is not None
        ui.draw(
            queries.figure(
                "valleys",
                choice.key,
                look.name,
                more,
                lambda: figures_valleys.valleys(rows, isoflop, bands, look),
            ),
            "valleys",
        )
        st.caption(
            "Numbers at the curves: budget in FLOP. Diamonds: minimum of each parabola with its "
            "interval. Dashed: compute-optimal loss of approach 3."
        )
    with right:
        st.subheader("Compute-optimal N and D")
        ui.draw(
            queries.figure(
                "optima",
                choice.key,
                look.name,
                more,
                lambda: figures.optima(isoflop, bands, rows, look),
            ),
            "optima",
        )
        st.caption("Line and band: approach 3. Diamonds with bars: minima of approach 2.")
    if report is None:
        return
    if report.fit.status != "not_identified":
        left, right = st.columns([3, 2], gap="medium")
        with left:
            st.subheader("Loss over N and D")
            ui.draw(
                queries.figure(
                    "contours",
                    choice.key,
                    look.name,
                    None,
                    lambda: figures.contours(report, bands, look),
                ),
                "contours",
            )
        with right:
            st.subheader("What to know")
            ui.warnings(report.warnings)
            if not report.warnings:
                st.markdown("Nothing stands against this fit: no warning.")
            _minima(isoflop)
    st.caption(ui.as_text(figures.caption(report)))
    ui.command(choice.words())


def _state(choice: Choice) -> None:
    """Show how many runs stand where; nothing for a table."""
    source = choice.source
    if source is None:
        return
    parts = [
        f"{source.counts[status]:,} {status}" for status in STATES if source.counts.get(status)
    ]
    kind = "import" if source.kind == "import" else f"{KINDS.get(source.kind, source.kind)} sweep"
    st.markdown(f"**{ui.as_text(source.name)}**, {ui.as_text(kind)}: " + ", ".join(parts))
    if source.is_running and source.total:
        done = source.counts.get("done", 0)
        st.progress(done / source.total, text=f"{done:,} of {source.total:,} runs are done")
    failed = sum(source.counts.get(status, 0) for status in ("failed", "diverged"))
    if failed:
        st.markdown(
            f"{failed:,} runs have no result. "
            + ui.prose(f"`scalelab retry {source.name}` starts them again; ")
            + "the **Runs** page says why they ended."
        )


def _minima(isoflop: IsoflopFit) -> None:
    """Show where the valleys have their minima, as numbers; of many, evenly spaced ones."""
    found = [valley for valley in isoflop.curves if valley.is_interior]
    if not found:
        return
    st.markdown("**Minima of the valleys** (approach 2)")
    some = np.unique(np.linspace(0, len(found) - 1, min(len(found), MAX_MINIMA)).round())
    rows = [
        f"| {format_flops(valley.budget)} | {format_quantity(valley.n_params.value)} "
        f"| {_span_of(valley.n_params)} | {valley.n_tokens.value / valley.n_params.value:.1f} "
        f"| {valley.n_params.loss:.4f} |"
        for valley in (found[int(i)] for i in some)
    ]
    # In Markdown: the browser would load and compile 0.7 MB more for a table of Streamlit's.
    head = ("| C, FLOP | N_opt | interval | D/N | loss, nats |", "|" + "--:|" * 5)
    st.markdown("\n".join((*head, *rows)))


def _span_of(minimum: CurveMinimum) -> str:
    if minimum.low is None or minimum.high is None:
        return "unbounded"
    return f"{format_quantity(minimum.low)} to {format_quantity(minimum.high)}"


def _headline(report: FitReport, choice: Choice, flops: float) -> None:
    columns = st.columns(4)
    a, b = report.derived.get("a"), report.derived.get("b")
    with columns[0]:
        ui.number("exponent a, N_opt ∝ Cᵃ", *ui.exponent(a, choice.level))
    with columns[1]:
        ui.number("exponent b, D_opt ∝ Cᵇ", *ui.exponent(b, choice.level))
    with columns[2]:
        value, limits = _tokens_per_param(report, choice, flops)
        ui.number(f"D/N at {format_flops(flops)} FLOP", value, limits)
    with columns[3]:
        irreducible = report.params.get("E")
        if irreducible is not None:
            ui.number(
                "irreducible loss E, nats per token",
                f"{irreducible.value:.3f}",
                ui.limits(irreducible, choice.level, "{:.3f}"),
            )


def _tokens_per_param(report: FitReport, choice: Choice, flops: float) -> tuple[str, str]:
    assert choice.key is not None
    found = queries.bands(choice.key, flops, flops * 1.0001, report, points=2)
    if found is None:
        return "–", "not determined"
    value = found.n_tokens[0] / found.n_params[0]
    low = found.n_tokens_low[0] / found.n_params_high[0]
    high = found.n_tokens_high[0] / found.n_params_low[0]
    if not np.isfinite(low + high):
        return f"{value:.1f}", "no interval (no replicates)"
    return f"{value:.1f}", f"{low:.1f} to {high:.1f} tokens a parameter ({100 * report.level:g} %)"


def _span(rows: Observations) -> tuple[float, float]:
    """Return the computes between which the frontier is drawn."""
    return float(rows.flops.min()) / 1.5, float(rows.flops.max()) * 1.5
