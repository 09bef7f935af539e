"""The HTML report of a fit: one file with figures, numbers and warnings that works offline.

It has the figures of the dashboard and contains plotly.js, compressed. Text from files is escaped.
"""

from __future__ import annotations

import html
import math
import re
import shlex
from collections.abc import Iterator, Sequence
from datetime import date
from typing import TYPE_CHECKING

from scalelab import __version__
from scalelab.fit.apart import CODE, apart_words
from scalelab.forecast.bands import bands_between
from scalelab.forecast.headline import laws_sentence
from scalelab.forecast.leave_out import refit_sentence
from scalelab.forecast.more_runs import HEADS, caption_of, plans
from scalelab.forecast.published import LABELLED_MODELS, PUBLISHED_MODELS
from scalelab.report import explorer, figures, figures_fit, figures_forecast, figures_isoflop
from scalelab.report.html_compare import comparison_section
from scalelab.report.html_metrics import figure_div, metrics_section
from scalelab.report.packed import first_script, last_script
from scalelab.report.stamp import fingerprint, line_of
from scalelab.units import format_flops, format_quantity

if TYPE_CHECKING:
    from scalelab.fit.intervals import Interval
    from scalelab.forecast.comparing import SourceComparison
    from scalelab.forecast.fit_report import FitReport
    from scalelab.forecast.headline import Headline
    from scalelab.forecast.metric_comparison import MetricComparison
    from scalelab.forecast.more_runs import AddedBudget
    from scalelab.records.notes import Note

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 Helvetica, Arial, sans-serif; color: #1f2430; background: #fff;
  max-width: 1120px; margin: 0 auto; padding: 24px; }
h1 { font-size: 28px; margin: 0 0 4px; } h2 { font-size: 20px; margin: 40px 0 8px; }
.answer { font-size: 21px; line-height: 1.4; margin: 16px 0 4px; }
.verdict { border-radius: 6px; padding: 2px 10px; color: #fff; background: #b3261e; }
.verdict.sound { background: #1f7a3d; } .verdict.with-warnings { background: #a15c00; }
.faint { color: #5b6270; font-size: 14px; }
.cards { display: flex; flex-wrap: wrap; gap: 12px; margin: 20px 0; }
.card { border: 1px solid #d5d9e0; border-radius: 8px; padding: 12px 16px; min-width: 190px; }
.card b { display: block; font-size: 26px; margin: 4px 0; }
table { border-collapse: collapse; margin: 8px 0; }
th, td { text-align: right; padding: 4px 14px 4px 0; border-bottom: 1px solid #e6e8ec; }
th:first-child, td:first-child { text-align: left; }
.note { border-left: 4px solid #0060a0; padding: 4px 12px; margin: 8px 0; }
.warning { border-left: 4px solid #c4460a; padding: 4px 12px; margin: 8px 0; }
code { background: #f3f4f6; padding: 10px 14px; display: block; border-radius: 6px;
  overflow-x: auto; white-space: pre-wrap; }
nav { display: flex; flex-wrap: wrap; gap: 4px 16px; font-size: 15px; margin: 12px 0; }
nav a { color: #0060a0; }
figure { margin: 0; min-width: 0; } section { min-width: 0; }
figcaption { color: #5b6270; font-size: 14px; margin: 2px 0 12px; }
h1, p { overflow-wrap: anywhere; }
@media (max-width: 700px) { body { padding: 12px; } table { display: block; overflow-x: auto; } }
.pair { display: grid; grid-template-columns: 3fr 2fr; gap: 16px; }
@media (max-width: 900px) { .pair { grid-template-columns: 1fr; } }
"""
_HEADING = re.compile("<h2>([^<]*)</h2>")
PUBLISHED_SPAN = (1e19, 1e26)
"""Range of the compute of the published models, FLOP."""


def render(
    fit: FitReport,
    command: str,
    head: Headline,
    runs: Sequence[str] = (),
    metrics: MetricComparison | None = None,
    notes: Sequence[Note] = (),
    compared: SourceComparison | None = None,
) -> str:
    """Return the HTML page of a fit.

    Parameters
    ----------
    fit : FitReport
    command : str
        Command line that makes the page.
    head : Headline
    runs : sequence of str
        Options that select the runs and the law, for the commands of the slider.
    metrics : MetricComparison, optional
        Fits of all metrics of the runs, where there are several.
    notes : sequence of Note
        Notes about the runs and the sweep.
    compared : SourceComparison, optional
        The runs beside other sweeps, tables and laws.
    """
    line = line_of(fit.observations, fit, fit.level)
    return page(
        f"Scaling law of {fit.observations.source}",
        figures.caption(fit),
        [
            "<h2>Conclusion</h2>",
            *_answer(fit, head),
            *_notes(notes),
            *_cards(fit),
            *_slider(fit, runs),
            *_figures(fit, line),
            *([] if metrics is None else metrics_section(metrics, line)),
            *([] if compared is None else comparison_section(compared, line)),
            "<h2>Parameters</h2>",
            *_parameters(fit),
            "<h2>Command</h2>",
            f"<code>{html.escape(command)}</code>",
            "<h2>About this file</h2>",
            f"<p>scalelab {__version__}, {date.today().isoformat()}. {html.escape(line)}. Data "
            f"fingerprint {fingerprint(fit.observations)}: equal for equal N, D, C and losses.</p>",
        ],
    )


def page(title: str, about: str, body: Sequence[str]) -> str:
    """Return a report that works offline; ``body`` is HTML with headings, the others are text."""
    title = html.escape(title)
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        # an empty icon, so that browsers do not request one
        '<link rel="icon" href="data:,">',
        f"<title>{title}</title><style>{_STYLE}</style>",
        first_script(),
        "</head><body><main>",
        f"<h1>{title}</h1>",
        f'<p class="faint">{html.escape(about)}</p>',
        *_with_contents(body),
        "</main>",
        last_script(),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _with_contents(body: Sequence[str]) -> Iterator[str]:
    """Yield the contents with links, and the body whose headings they lead to."""
    titles: list[str] = []
    out = []
    for part in body:
        heading = _HEADING.search(part)
        if heading is not None:
            titles.append(heading[1])
            part = _HEADING.sub(f'<h2 id="part-{len(titles)}">{heading[1]}</h2>', part, count=1)
        out.append(part)
    links = (f'<a href="#part-{i}">{title}</a>' for i, title in enumerate(titles, 1))
    yield f'<nav aria-label="Contents">{" ".join(links)}</nav>'
    yield from out


def _notes(notes: Sequence[Note]) -> Iterator[str]:
    for note in notes:
        yield (
            f'<p class="note">Note about {note.kind} <b>{html.escape(note.about)}</b>: '
            f"{html.escape(note.text)}</p>"
        )


def _slider(fit: FitReport, runs: Sequence[str]) -> Iterator[str]:
    """Yield the compute slider, if the fit has a compute-optimal frontier."""
    asked = next((each for each in fit.forecasts if each.flops is not None), None)
    found = explorer.explorer(fit, asked)
    if found is not None:
        yield "<h2>Move the compute</h2>"
        yield explorer.in_html(found, shlex.join(["scalelab", "fit", *runs]))


def _figures(fit: FitReport, line: str) -> Iterator[str]:
    low, high = float(fit.observations.flops.min()), float(fit.observations.flops.max())
    bands = bands_between(fit, low / 1.5, high * 1.5)
    yield '<div class="pair"><section><h2>IsoFLOP curves</h2>'
    yield figure_div(
        figures_isoflop.isoflop_curves(fit.observations, fit.isoflop, bands), "isoflop", line
    )
    yield "</section><section><h2>Compute-optimal N and D</h2>"
    yield figure_div(figures.optima(fit.isoflop, bands, fit.observations), "optima", line)
    yield "</section></div>"
    if fit.has_answer:
        yield "<h2>Loss over N and D</h2>"
        yield figure_div(figures.contours(fit, bands), "contours", line)
        yield "<h2>Extrapolation</h2>"
        yield from _forecasts(fit)
        asked = [each.flops for each in fit.forecasts if each.flops]
        farthest, nearest = max(asked, default=100 * high), min(asked, default=low)
        extended = bands_between(fit, min(nearest, low) / 2, 3 * max(farthest, high))
        drawn = figures_forecast.extrapolation(fit, extended, fit.forecasts)
        yield figure_div(drawn, "extrapolation", line)
        yield "<h2>Published models compared with this optimum</h2>"
        models = [model for model in PUBLISHED_MODELS if model.is_decoder]
        planes = bands_between(fit, *PUBLISHED_SPAN)
        for axis in ("n_tokens", "flops"):
            drawn = figures_forecast.published_plane(
                models, planes, axis, LABELLED_MODELS, largest=fit.fit.max_flops
            )
            yield figure_div(drawn, f"published_{axis}", line)
    yield "<h2>Exponent a by method</h2>"
    yield figure_div(figures_fit.forest(exponents(fit)), "forest", line)
    for words in apart_words(fit.warnings):
        yield f'<p class="faint">{html.escape(words)}</p>'
    yield "<h2>Residuals</h2>"
    yield figure_div(figures_fit.residuals(fit), "residuals", line)
    if len(fit.fit.samples) > 1:
        yield "<h2>Bootstrap</h2>"
        yield figure_div(figures_fit.pairs(fit), "pairs", line)


def exponents(report: FitReport) -> list[tuple[str, Interval]]:
    """Return the exponent a of the average, if it answers, and of each approach that has one."""
    found = []
    if report.frontier:
        near = report.frontier[0]
        found.append((f"{report.forecaster.label}, at {format_flops(near.flops)}", near.a))
    a = report.derived.get("a")
    if a is not None and report.fit.status != "not_identified":
        found.append((f"approach 3, {report.fit.form}", a))
    for name, law in (
        ("approach 2, parabolas", report.isoflop.n_law),
        ("approach 2, local minima", report.local[0]),
        ("approach 1, envelope", report.envelope.n_law),
    ):
        if law is not None:
            found.append((name, law.interval))
    return found


def _cards(report: FitReport) -> Iterator[str]:
    yield '<div class="cards">'
    if report.law_status == "not_identified":
        yield (
            '<div class="card">fitted law<b>not identified</b><span class="faint">these runs do '
            "not determine the law; do not use its numbers</span></div>"
        )
        names, both = {}, {}
    else:
        names = {"a": "exponent a of N_opt", "b": "exponent b of D_opt", "E": "irreducible loss E"}
        names = {name: f"{words}, {report.fit.form} law" for name, words in names.items()}
        both = {**report.params, **report.derived}
    if report.frontier:
        near = report.frontier[0]
        for name, slope in (("a of N_opt", near.a), ("b of D_opt", near.b)):
            yield (
                f'<div class="card">exponent {name}, {html.escape(report.forecaster.label)}'
                f'<b>{slope.value:.3f}</b><span class="faint">'
                f"{_limits(slope, '{:.3f}', report.level)}</span></div>"
            )
    for name, words in names.items():
        interval = both.get(name)
        if interval is not None and math.isfinite(interval.value):
            yield (
                f'<div class="card">{words}<b>{interval.value:.3f}</b><span class="faint">'
                f"{_limits(interval, '{:.3f}', report.level)}</span></div>"
            )
    for forecast in report.forecasts:
        for words, size in (("N", forecast.n_params), ("D", forecast.n_tokens)):
            if size is not None:
                span = f"{format_quantity(size.low)} to {format_quantity(size.high)}"
                yield (
                    f'<div class="card">{words} at {html.escape(forecast.asked)}'
                    f'<b>{format_quantity(size.value)}</b><span class="faint">{span} '
                    f"({100 * report.level:g} %)</span></div>"
                )
    yield "</div>"


def _answer(report: FitReport, head: Headline) -> Iterator[str]:
    """Yield the answer in one sentence, the verdict with its warnings, and the next command."""
    yield f'<p class="answer">{html.escape(head.sentence)}</p>'
    if head.basis:
        basis = f"{head.basis} {laws_sentence(report.averaged)}".rstrip()
        yield f'<p class="faint">{html.escape(basis)}</p>'
    words = "" if head.warnings else ", no warnings"
    kind = head.verdict.replace(" ", "-")
    yield f'<p>Verdict: <b class="verdict {kind}">{html.escape(head.verdict)}</b>{words}</p>'
    for warning in head.warnings:
        title = warning.code.replace("_", " ").capitalize()
        yield (
            f'<p class="warning"><b>{html.escape(title)}</b>: {html.escape(warning.message)}</p>'
        )
    if head.refit:
        yield f'<p class="faint">{html.escape(refit_sentence(head.outliers))}</p>'
        yield f"<code>{html.escape(shlex.join(head.refit))}</code>"
    for note in report.warnings:
        if note not in head.warnings and note.code != CODE:
            yield f'<p class="faint">{html.escape(note.message)}</p>'
    if head.to_add:
        yield from _runs_to_add(head.to_add, report.level)
    if head.is_apart:
        yield f'<p class="faint">Next: {html.escape(head.purpose)}</p>'
        yield f"<code>{html.escape(shlex.join(head.command))}</code>"


def _runs_to_add(budgets: tuple[AddedBudget, ...], level: float) -> Iterator[str]:
    caption = html.escape(caption_of(budgets, level))
    yield f"<table><caption class='faint'>{caption}</caption>"
    for tag, cells in (("th", HEADS), *(("td", each.cells()) for each in budgets)):
        yield "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"
    yield "</table>"
    for words, rows in plans(budgets):
        commands = "\n".join(shlex.join(each.command) for each in rows)
        yield f'<p class="faint">{html.escape(words)}</p>'
        yield f"<code>{html.escape(commands)}</code>"


def _parameters(report: FitReport) -> Iterator[str]:
    yield (
        f"<table><caption class='faint'>{100 * report.level:g} % confidence intervals from "
        f"{report.fit.bootstrap.k:,} {html.escape(report.fit.bootstrap.method)} bootstrap "
        f"replicates, {report.fit.bootstrap.failed:,} failed</caption>"
        "<tr><th>name</th><th>value</th><th>low</th><th>high</th></tr>"
    )
    for name, interval in {**report.params, **report.derived}.items():
        cells = "".join(
            f"<td>{value:.6g}</td>" for value in (interval.value, interval.low, interval.high)
        )
        yield f"<tr><td>{html.escape(name)}</td>{cells}</tr>"
    yield "</table>"


def _forecasts(report: FitReport) -> Iterator[str]:
    for refusal in report.refusals:
        yield (
            f'<p class="warning"><b>No answer</b> to {html.escape(refusal.given)}. '
            f"{html.escape(refusal.do)}</p>"
        )
    if not report.forecasts:
        return
    share = f"{100 * report.level:g} %"
    yield f'<p class="faint">By the {html.escape(report.forecaster.label)}.</p>'
    laws = report.law_forecasts
    beside = f"<th>{html.escape(report.fit.form)} law alone</th>" if laws else ""
    yield (
        "<table><tr><th>request</th><th>C, FLOP</th><th>N</th><th>D</th>"
        f"<th>{html.escape(report.label)}, {report.unit}</th>"
        f"<th>{share} confidence interval</th><th>{share} prediction interval of a new run</th>"
        f"{beside}</tr>"
    )
    for i, each in enumerate(report.forecasts):
        law = laws[i] if laws else None
        cells = (
            html.escape(each.asked),
            "" if each.flops is None else format_flops(each.flops),
            "" if each.n_params is None else format_quantity(each.n_params.value),
            "" if each.n_tokens is None else format_quantity(each.n_tokens.value),
            f"{each.loss_nats:.4f}",
            *(
                f"{low:.4f} to {high:.4f}" if math.isfinite(low + high) else "none"
                for low, high in ((each.low, each.high), (each.pred_low, each.pred_high))
            ),
            *([f"{law.loss_nats:.4f}" if law else "no answer"] if laws else []),
        )
        yield "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    yield "</table>"


def _limits(interval: Interval, form: str, level: float) -> str:
    if not math.isfinite(interval.low + interval.high):
        return "no interval (no replicates)"
    limits = f"{form.format(interval.low)} to {form.format(interval.high)}"
    return f"{limits} ({100 * level:g} % confidence interval)"
