"""Figures draw the numbers of the fit, for every kind of data, in few bytes."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalelab.api import fit
from scalelab.api.data import frame_of
from scalelab.api.forecasts import forecasts
from scalelab.errors import UsageError
from scalelab.fit.bootstrap import BootstrapSpec
from scalelab.fit.budget_outliers import LEAST_ROWS
from scalelab.fit.intervals import Interval
from scalelab.fit.isoflop import IsoflopCurve, fit_isoflop, misfits
from scalelab.forecast.bands import bands_between, frontier_bands
from scalelab.forecast.fit_report import FitReport
from scalelab.forecast.headline import headline
from scalelab.forecast.published import LABELLED_MODELS, PUBLISHED_MODELS, verdicts
from scalelab.records.types import Observations
from scalelab.report import (
    draw,
    figures,
    figures_fit,
    figures_forecast,
    figures_isoflop,
    figures_runs,
)
from scalelab.report.draw import log_axis, plain
from scalelab.report.html import exponents, render
from scalelab.report.look import DARK, LIGHT
from scalelab.store.table_read import TableRead
from scalelab.theory.laws import Chinchilla

MAX_BYTES = 500_000


@pytest.fixture(scope="module")
def report(isoflop_runs: Callable[..., Observations]) -> FitReport:
    """Return a fit of simulated runs with 200 replicates and one forecast."""
    rows = isoflop_runs(noise=0.003)
    table = TableRead(observations=rows, lines=np.arange(len(rows)))
    words = {"predict": ["C=1e23"], "forecaster": "law"}
    return fit(frame_of(table), bootstrap=BootstrapSpec(k=200), **words)


def values(encoded: Any) -> np.ndarray:
    """Return the numbers of a trace, whether listed or packed."""
    if isinstance(encoded, dict):
        return np.frombuffer(base64.b64decode(encoded["bdata"]), dtype=encoded["dtype"])
    return np.asarray(encoded, dtype=float)


def every_figure(report: FitReport, look: Any) -> dict[str, Any]:
    rows = report.observations
    bands = bands_between(report, 1e17, 1e24)
    models = [model for model in PUBLISHED_MODELS if model.is_decoder]
    return {
        "isoflop": figures_isoflop.isoflop_curves(rows, report.isoflop, bands, look),
        "optima": figures.optima(report.isoflop, bands, rows, look),
        "contours": figures.contours(report, bands, look),
        "forest": figures_fit.forest(exponents(report), look),
        "residuals": figures_fit.residuals(report, look),
        "pairs": figures_fit.pairs(report, look),
        "extrapolation": figures_forecast.extrapolation(
            report, bands, report.forecasts, None, look
        ),
        "published": figures_forecast.published_plane(
            models, bands, "flops", LABELLED_MODELS, look
        ),
    }


@pytest.mark.parametrize("look", [LIGHT, DARK], ids=["light", "dark"])
def test_every_figure_has_alternative_text_and_a_bounded_payload(
    report: FitReport, look: Any
) -> None:
    for name, figure in every_figure(report, look).items():
        assert len(figure.layout.meta["alt"]) > 40, name
        assert len(figure.to_json()) < MAX_BYTES, name


def test_hover_texts_are_words_and_not_the_numbers_of_the_browser(report: FitReport) -> None:
    raw = re.compile(r"%\{[xyz]\}")
    for name, figure in every_figure(report, LIGHT).items():
        for trace in figure.data:
            if trace.type == "scatter" and isinstance(trace.y[0], str):
                continue  # a name on the axis
            said = raw.findall((trace.hovertemplate or "").replace("%{y}<extra>", "<extra>"))
            assert not said, (name, trace.name, trace.hovertemplate)


@pytest.mark.parametrize("asked", ["C=2e16", "C=7e23"])
def test_a_target_on_either_side_of_the_runs_is_inside_the_axes(
    report: FitReport, asked: str
) -> None:
    target = forecasts(report, asked)[0]
    low, high = sorted([target.flops / 2, float(report.observations.flops.max()) * 3])
    bands = bands_between(report, low, high * 1e3)
    axes = figures_forecast.extrapolation(report, bands, [target]).layout
    assert axes.xaxis.range[0] < np.log10(target.flops) < axes.xaxis.range[1]
    assert axes.yaxis.range[0] < target.pred_low < target.pred_high < axes.yaxis.range[1]


def test_the_mode_bar_has_a_strip_of_its_own_and_runs_are_large_enough_to_hit(
    report: FitReport,
) -> None:
    for name, figure in every_figure(report, LIGHT).items():
        assert figure.layout.margin.t >= 34, name
        assert figure.layout.modebar.bgcolor == "rgba(0,0,0,0)", name
    runs = next(each for each in figures.contours(report, None).data if each.type == "scatter")
    assert runs.marker.size >= 6


def test_an_interval_beyond_the_axis_is_clipped_with_an_arrow(report: FitReport) -> None:
    def widened(curve: IsoflopCurve) -> IsoflopCurve:
        if curve is not report.isoflop.interior[-1]:
            return curve
        return replace(
            curve,
            n_params=replace(curve.n_params, low=None, high=None),
            n_tokens=replace(curve.n_tokens, low=1.0),
        )

    found = replace(report.isoflop, curves=tuple(map(widened, report.isoflop.curves)))
    bands = bands_between(report, 1e18, 1e22)
    plain_range = figures.optima(report.isoflop, bands, report.observations).layout.yaxis2.range
    figure = figures.optima(found, bands, report.observations)
    assert figure.layout.yaxis2.range == plain_range
    arrows = [trace for trace in figure.data if trace.name == "interval beyond the axis"]
    assert [trace.marker.symbol for trace in arrows] == ["triangle-down"]
    assert float(values(arrows[0].y)[0]) == pytest.approx(10 ** plain_range[0])
    n_opt = next(trace for trace in figure.data if trace.name == "approach 2")
    assert n_opt.customdata[-1][2] == "interval unbounded"


def test_outliers_are_hollow_and_parabolas_without_a_minimum_dashed(
    isoflop_runs: Callable[..., Observations],
) -> None:
    rows = isoflop_runs(noise=0.002)
    budgets = np.unique(rows.budget)
    first = np.flatnonzero(rows.budget == budgets[0])
    assert len(first) >= LEAST_ROWS
    losses = rows.loss_nats.copy()
    losses[first[1]] += 0.5
    # the last budget has only its sizes above the minimum
    last = rows.budget == budgets[-1]
    keep = ~last | (rows.n_params > np.median(rows.n_params[last]))
    found = fit_isoflop(replace(rows, loss_nats=losses).take(np.flatnonzero(keep)))
    assert [int(i) for i in found.curves[0].outliers] == [int(first[1])]
    clean = fit_isoflop(rows).curves[0].n_params
    assert found.curves[0].n_params.value == pytest.approx(clean.value, rel=0.05)
    figure = figures_isoflop.isoflop_curves(
        replace(rows, loss_nats=losses).take(np.flatnonzero(keep)), found
    )
    assert sum(trace.marker.symbol == "circle-open" for trace in figure.data) == 1
    dashes = [trace.line.dash for trace in figure.data if trace.mode == "lines"]
    assert dashes[0] == "solid"
    assert dashes[-1] != "solid"
    assert "Hollow: 1 outlier" in figure.layout.meta["alt"]


def test_isoflop_curves_mark_the_minima_of_the_fit(report: FitReport) -> None:
    figure = figures_isoflop.isoflop_curves(report.observations, report.isoflop)
    marked = next(trace for trace in figure.data if str(trace.name).startswith("minimum"))
    expected = [valley.n_params.value for valley in report.isoflop.interior]
    np.testing.assert_allclose(np.asarray(marked.x, float), expected, rtol=1e-12)
    high = np.asarray(marked.x, float) + np.asarray(marked.error_x["array"], float)
    known = [valley.n_params.high or valley.n_params.value for valley in report.isoflop.interior]
    np.testing.assert_allclose(high, known, rtol=1e-9)


def test_bands_agree_with_the_forecast(report: FitReport) -> None:
    forecast = report.forecasts[0]
    bands = frontier_bands(report.fit, np.array([1e23, 2e23]), report.level)
    assert bands is not None
    assert forecast.n_params is not None
    assert bands.n_params[0] == pytest.approx(forecast.n_params.value, rel=1e-12)
    assert bands.n_params_low[0] == pytest.approx(forecast.n_params.low, rel=1e-9)
    assert bands.loss[0] == pytest.approx(forecast.loss_nats, rel=1e-12)
    assert bands.pred_high[0] == pytest.approx(forecast.pred_high, rel=1e-9)


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1000))
def test_many_runs_are_thinned_and_stay_small(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 20_000
    budget = np.geomspace(1e18, 1e21, 60)[rng.integers(0, 60, n)]
    n_params = 2e7 * (budget / 1e18) ** 0.5 * np.exp(rng.uniform(-2, 2, n))
    n_tokens = budget / (6 * n_params)
    rows = Observations(
        n_params=n_params,
        n_tokens=n_tokens,
        loss_nats=1.8 + 482 / n_params**0.35 + 2085 / n_tokens**0.37 + rng.normal(0, 0.01, n),
        flops=budget,
        budget=budget,
    )
    found = fit_isoflop(rows)
    figure = figures_isoflop.isoflop_curves(rows, found)
    assert len(figure.to_json()) < MAX_BYTES
    assert (
        f"{len(found.curves) - figures_isoflop.MAX_CURVES} of {len(found.curves)} budgets"
        in (figure.layout.meta["alt"])
    )


def test_text_from_files_is_disarmed() -> None:
    import pandas as pd

    assert plain("<img src=x> & co") == "&lt;img src=x&gt; &amp; co"
    table = pd.DataFrame(
        {
            "run_id": ["a"] * 3,
            "label": ["<b>bold</b>"] * 3,
            "tokens": [1e3, 2e3, 3e3],
            "flops": [1e9, 2e9, 3e9],
            **{key: [1.0, 0.9, 0.8] for key, _ in figures_runs.PANELS},
        }
    )
    figure = figures_runs.curves(table)
    assert "<b>bold" not in figure.to_json()
    assert "&lt;b&gt;bold" in figure.to_json().replace("\\u003c", "<").replace("\\u0026", "&")


def test_notes_lie_below_the_runs_and_fit_a_narrow_window(
    narrow_runs: Callable[..., Observations],
) -> None:
    rows = narrow_runs()
    figure = figures_isoflop.isoflop_curves(rows, fit_isoflop(rows))
    (note,) = [each.text for each in figure.layout.annotations if "Hollow" in each.text]
    lines = note.split("<br>")
    assert max(map(len, lines)) <= figures_isoflop.NOTE_CHARACTERS
    bottom, top = figure.layout.yaxis.range
    plot = figure.layout.height - 80  # title of the axis, its ticks and the strip above
    room = plot * (rows.loss_nats.min() - bottom) / (top - bottom)
    assert room > 11 * 1.3 * len(lines) + 6  # pixels of the lines, and half a marker


def test_no_line_crosses_the_value_of_an_exponent() -> None:
    found = Interval(value=0.44, low=0.41, high=0.47)
    for look in (LIGHT, DARK):
        figure = figures_fit.forest([("a method", found)], look)
        (written,) = [each for each in figure.layout.annotations if each.text == "0.440"]
        assert written.x == found.high
        assert written.bgcolor == look.paper


def test_names_of_small_panels_of_runs_are_above_them() -> None:
    import pandas as pd

    table = pd.DataFrame({"run_id": ["a"] * 2, "label": ["a"] * 2, "tokens": [1e3, 2e3]})
    values = {key: [1.0, 0.9] for key, _ in figures_runs.PANELS}
    figure = figures_runs.curves(table.assign(flops=[1e9, 2e9], **values))
    above = {each.text: each for each in figure.layout.annotations if each.text != "a"}
    assert set(above) == {name for _, name in figures_runs.PANELS[1:]}
    assert len({each.yref for each in above.values()}) == len(above)
    assert all((each.y, each.yanchor) == (1, "bottom") for each in above.values())
    titles = {axis.title.text for axis in figure.select_yaxes()} - {None}
    assert titles == {figures_runs.PANELS[0][1]}


def test_axes_read_b_and_powers_of_ten() -> None:
    sizes = log_axis(np.array([1e7, 1e12]), sizes=True)["ticktext"]
    assert {"10M", "1B", "1T"} <= set(sizes)
    assert not any(text.endswith("G") for text in sizes)
    assert "10<sup>21</sup>" in log_axis(np.array([1e18, 1e22]))["ticktext"]
    assert "5M" in log_axis(np.array([3e6, 9e6]), sizes=True)["ticktext"]


def test_a_fit_that_is_not_identified_draws_no_frontier(report: FitReport) -> None:
    vague = replace(report, fit=replace(report.fit, status="not_identified"))
    assert bands_between(vague, 1e18, 1e24) is None
    assert "do not determine" in figures.contours(vague, None).layout.meta["alt"]
    text = render(vague, "c", headline(vague))
    assert "not identified" in text


def test_every_contour_is_named_by_its_loss_at_its_end(report: FitReport) -> None:
    notes = figures.contours(report, None).layout.annotations
    assert len(notes) == figures.LEVELS
    columns = {
        "n_params": [10**note.x for note in notes],
        "n_tokens": [10**note.y for note in notes],
    }
    loss = report.fit.law.loss({name: np.array(values) for name, values in columns.items()})
    # At most one step of the grid beyond the end, and the text has two digits.
    assert loss == pytest.approx([float(note.text) for note in notes], rel=0.02)
    assert len({note.text for note in notes}) == figures.LEVELS


def test_chinchilla_is_near_its_own_law_and_gpt3_is_under_trained() -> None:
    law = Chinchilla(A=482.006, B=2085.436, E=1.816864, alpha=0.3478131, beta=0.3658542)
    found = {row["model"]: row for row in verdicts(law)}
    assert found["Chinchilla 70B"]["verdict"] == "near the optimum"
    assert found["GPT-3 175B"]["verdict"].startswith("under-trained")
    assert found["Llama 3 8B"]["verdict"].startswith("over-trained")
    for row in found.values():
        assert -1e-6 <= row["saved"] < 1
    with pytest.raises(UsageError, match="one term of the law is 0"):
        verdicts(replace(law, A=0.0))


def test_replicates_that_are_all_alike_have_a_figure_that_says_so(report: FitReport) -> None:
    same = replace(report.fit, samples=np.tile(report.fit.samples[:1], (5, 1)))
    figure = figures_fit.pairs(replace(report, fit=same))
    assert "No parameter differs" in figure.layout.meta["alt"]


def test_a_parabola_that_misses_its_runs_is_dashed_and_named(
    isoflop_runs: Callable[..., Observations],
) -> None:
    rows = isoflop_runs(noise=0.003)
    budget = fit_isoflop(rows).curves[1]
    losses = rows.loss_nats.copy()
    losses[budget.rows[::2]] += 0.2
    missed = replace(rows, loss_nats=losses)
    for table, count in ((rows, 0), (missed, 1)):
        isoflop = fit_isoflop(table)
        assert sum(misfits(table, isoflop.curves)) == count
        figure = figures_isoflop.isoflop_curves(table, isoflop)
        assert ("the parabola misses its runs" in figure.layout.meta["alt"]) == bool(count)


def test_names_of_models_cover_neither_points_nor_each_other() -> None:
    models = [model for model in PUBLISHED_MODELS if model.is_decoder]
    alone = models[:1]
    (name,) = (model.name for model in alone)
    crowd = [
        replace(alone[0], name=f"other {i} {k}", n_params=alone[0].n_params * 1.1**i,
                n_tokens=alone[0].n_tokens * 1.1**k)
        for i in range(-5, 6) for k in range(-20, 21) if i or k
    ]  # fmt: skip
    far = [replace(alone[0], name="far", n_tokens=alone[0].n_tokens * 1e6)]
    free = figures_forecast.published_plane([*alone, *far], None, "n_tokens", [name])
    full = figures_forecast.published_plane([*alone, *crowd, *far], None, "n_tokens", [name])
    assert plain(name) in free.data[-1].text
    assert plain(name) not in full.data[-1].text


def test_models_beyond_a_thousand_times_the_runs_are_faded() -> None:
    models = [model for model in PUBLISHED_MODELS if model.is_decoder]
    largest = 1e20
    figure = figures_forecast.published_plane(models, None, "flops", LABELLED_MODELS, largest=1e20)
    opacity = np.array(figure.data[-1].marker.opacity)
    is_far = np.array([model.flops > 1000 * largest for model in models])
    assert is_far.any()
    assert not is_far.all()
    assert opacity[is_far].max() < opacity[~is_far].min()


def test_labels_over_one_another_are_parted() -> None:
    import plotly.graph_objects as go

    figure = go.Figure()
    for x, y in ((1e8, 3.0), (1.1e8, 2.99), (1e8, 2.5), (1e10, 3.0)):
        draw.label_end(figure, x, y, f"{x:g}", "#000000")
    draw.part_labels(figure, 2.0, 500)
    shifts = [each.yshift for each in figure.layout.annotations]
    # 0.01 of 2 is 2.5 of 500 pixels; a line has 14
    assert shifts == pytest.approx([0, -11.5, 0, 0])
