from dataclasses import replace

import numpy as np
import pytest

from scalelab import api
from scalelab.errors import DataError, UsageError
from scalelab.fit.bootstrap import BootstrapSpec
from scalelab.forecast.allocate import parse_request
from scalelab.report.plots import draw_contours, draw_fit, draw_isoflop, draw_residuals, figure_of
from scalelab.store.table_read import TableRead

NONE = BootstrapSpec(k=0)


def report_of(rows, **words):
    table = TableRead(observations=rows, lines=np.arange(len(rows)) + 2)
    return api.fit(table, bootstrap=NONE, forecaster="law", **words)


@pytest.fixture(scope="module")
def report(isoflop_runs):
    return report_of(isoflop_runs())


@pytest.fixture
def axes():
    from matplotlib.figure import Figure

    return Figure().subplots()


@pytest.mark.parametrize("suffix", [".png", ".PNG"])
def test_the_suffix_decides_the_format(report, tmp_path, suffix):
    path = tmp_path / "deep" / f"fit{suffix}"
    draw_fit(report, path)
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 10_000


@pytest.mark.parametrize(("suffix", "start"), [(".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_the_same_fit_writes_the_same_bytes_in_the_format_of_the_suffix(
    report, tmp_path, suffix, start
):
    paths = [tmp_path / name / f"fit{suffix}" for name in ("one", "two")]
    for path in paths:
        draw_fit(report, path)
    one, two = (path.read_bytes() for path in paths)
    assert one == two
    assert one.startswith(start)
    assert len(one) > 10_000


def test_another_suffix_is_refused_before_anything_is_drawn(report, tmp_path):
    with pytest.raises(UsageError, match=r"\.png, \.svg, \.pdf"):
        draw_fit(report, tmp_path / "fit.jpg")


def test_a_place_that_cannot_be_written_to_is_a_data_error(report, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        draw_fit(report, tmp_path / "file" / "fit.png")


def test_isoflop_curves_show_every_row_and_every_interior_minimum(report, axes):
    draw_isoflop(axes, report)
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert sum(len(line.get_xdata()) for line in dots) == len(report.observations)
    diamonds = [line for line in axes.lines if line.get_marker() == "D"]
    assert len(diamonds) == len(report.isoflop.interior) == 5
    for line, valley in zip(diamonds, report.isoflop.interior, strict=True):
        assert line.get_xdata()[0] == pytest.approx(valley.n_params.value)
        assert line.get_ydata()[0] == pytest.approx(valley.n_params.loss)
    ends = [c.get_segments()[0] for c in axes.collections if hasattr(c, "get_segments")]
    assert [(low[0], high[0]) for low, high in ends] == [
        pytest.approx((valley.n_params.low, valley.n_params.high))
        for valley in report.isoflop.interior
    ]
    (frontier,) = [line for line in axes.lines if line.get_linestyle() == "--"]
    expected = report.fit.law.optimal(np.array([1e19]))[0][0]
    n_params = np.asarray(frontier.get_xdata())
    assert n_params.min() < expected < n_params.max()


def test_contours_are_of_the_law_and_show_every_run(report, axes):
    draw_contours(axes, report)
    (runs,) = [c for c in axes.collections if c.get_label() == "runs"]
    assert len(runs.get_offsets()) == len(report.observations)
    assert axes.get_xscale() == axes.get_yscale() == "log"
    low, high = axes.get_xlim()
    assert low < report.observations.n_params.min() < report.observations.n_params.max() < high


def test_residuals_beyond_the_panel_are_counted_not_lost(report, axes):
    residuals = report.fit.residuals.copy()
    residuals[[2, 9]] = [0.5, -0.7]
    draw_residuals(axes, replace(report, fit=replace(report.fit, residuals=residuals)))
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert "2 further out" in labels
    assert axes.get_ylim()[1] < 50


def test_a_panel_without_anything_to_show_is_left_out(report, isoflop_runs):
    titles = [axes.get_title(loc="left") for axes in figure_of(report).axes]
    assert titles == ["isoFLOP curves", "chinchilla law", "residuals"]
    rng = np.random.default_rng(0)
    rows = isoflop_runs()
    apart = replace(
        rows, budget=None, flops=rows.flops * 10 ** (3 * rng.permutation(len(rows)) / 4.0)
    )
    titles = [axes.get_title(loc="left") for axes in figure_of(report_of(apart)).axes]
    assert titles == ["chinchilla law", "residuals"]
    titles = [
        axes.get_title(loc="left")
        for axes in figure_of(report_of(isoflop_runs(), form="kaplan_d")).axes
    ]
    assert titles == ["isoFLOP curves", "residuals"]


def test_the_title_answers_what_was_asked(report):
    asked = report.forecaster.forecast(parse_request("C=3e21"))
    assert "3e21" not in figure_of(report).get_suptitle()
    title = figure_of(replace(report, forecasts=(asked,))).get_suptitle()
    assert title.startswith("With 3e21 FLOP")


def test_a_fit_that_is_not_identified_is_drawn_without_a_frontier_and_says_so(isoflop_runs):
    rows = isoflop_runs()
    figure = figure_of(report_of(replace(rows, n_tokens=np.full(len(rows), 1e10))))
    assert "not identified" in figure.get_suptitle()
    lines = [line for axes in figure.axes for line in axes.lines]
    assert not [line for line in lines if line.get_linestyle() == "--"]


@pytest.mark.parametrize("name", ["chinchilla", "llama3", "xlstm", "datablations"])
def test_real_tables_are_drawn(tables, tmp_path, name):
    report = api.fit(tables / name / "data.csv", bootstrap=NONE, forecaster="law")
    draw_fit(report, tmp_path / "fit.svg")
    assert (tmp_path / "fit.svg").stat().st_size > 20_000


def test_the_title_has_the_answer_and_the_legends_cover_no_run(report):
    figure = figure_of(report)
    title = figure.get_suptitle()
    assert title.startswith("With ")
    assert "N_opt grows as C^" in title
    figure.draw_without_rendering()
    for axes in figure.axes:
        legend = axes.get_legend()
        assert legend.get_window_extent().y1 <= axes.get_window_extent().y0


def test_no_line_of_the_contours_is_yellow(report, axes):
    draw_contours(axes, report)
    (lines,) = [each for each in axes.collections if hasattr(each, "levels")]
    red, green, _ = lines.get_edgecolor()[:, :3].T
    assert (red < green).any()
    assert (red < 0.6).all()


def test_outliers_are_hollow_and_a_parabola_without_minimum_is_dashed(narrow_runs, axes):
    report = report_of(narrow_runs())
    draw_isoflop(axes, report)
    curves = report.isoflop.curves
    hollow = [line for line in axes.lines if line.get_markerfacecolor() == "none"]
    drawn = sorted(float(y) for line in hollow for y in line.get_ydata())
    outliers = np.concatenate([curve.outliers for curve in curves])
    assert len(outliers) == 3
    assert drawn == sorted(report.observations.loss_nats[outliers].tolist())
    dashed = [line for line in axes.lines if line.get_linestyle() == "--" and line.get_lw() == 1]
    assert len(dashed) == sum(not curve.is_interior for curve in curves) > 0
    keys = {text.get_text() for text in axes.get_legend().get_texts()}
    assert {"no minimum inside", "outlier, left out of its parabola"} <= keys
