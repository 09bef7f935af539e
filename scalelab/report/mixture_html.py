"""The HTML report of mixture laws: one file with figures and numbers that works offline."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator
from datetime import date

from scalelab import __version__
from scalelab.fit.intervals import Interval
from scalelab.fit.mixing_folds import SCHEMES
from scalelab.report import figures_mixture, figures_ternary
from scalelab.report.html import page
from scalelab.report.html_metrics import figure_div
from scalelab.report.mixture_answer import TERNARY, MixtureAnswer
from scalelab.units import plural


def render_mixture(answer: MixtureAnswer, command: str) -> str:
    """Return the HTML page of mixture laws and the best weights.

    Parameters
    ----------
    answer : MixtureAnswer
    command : str
        Command line that makes the page.
    """
    runs = answer.runs
    about = (
        f"{plural(runs.n, 'run')} with {plural(len(set(runs.mixtures.tolist())), 'mixture')} of "
        f"{', '.join(runs.sources)}. Losses in {runs.unit}. Intervals: {100 * answer.level:g} %."
    )
    line = ", ".join(
        [
            f"{plural(runs.n, 'run')} from {runs.source}",
            f"{100 * answer.level:g} % intervals",
            date.today().isoformat(),
        ]
    )
    return page(
        f"Mixture of {runs.source}",
        about,
        [
            "<h2>Conclusion</h2>",
            f'<p class="answer">{html.escape(answer.sentence())}</p>',
            f'<p class="faint">{html.escape(answer.basis())}</p>',
            *(
                f'<p class="warning">{html.escape(warning.message)}</p>'
                for warning in answer.warnings
            ),
            *_figures(answer, line),
            "<h2>Best weights</h2>",
            *_weights(answer),
            "<h2>Law of each evaluation set</h2>",
            *_laws(answer),
            "<h2>Command</h2>",
            f"<code>{html.escape(command)}</code>",
            "<h2>About this file</h2>",
            f"<p>scalelab {__version__}, {html.escape(line)}.</p>",
        ],
    )


def _figures(answer: MixtureAnswer, line: str) -> Iterator[str]:
    if len(answer.sources) == TERNARY:
        yield '<div class="pair"><section><h2>Target over the weights</h2>'
        yield figure_div(figures_ternary.ternary(answer), "ternary", line)
        yield "</section><section><h2>Weights of the sources</h2>"
        yield figure_div(figures_mixture.weights(answer), "mix_weights", line)
        yield "</section></div>"
    else:
        yield "<h2>Weights of the sources</h2>"
        yield figure_div(figures_mixture.weights(answer), "mix_weights", line)
    yield "<h2>What each source does</h2>"
    yield figure_div(figures_mixture.effects(answer), "mix_effects", line)
    yield "<h2>Measured against predicted loss</h2>"
    yield figure_div(figures_mixture.agreement(answer), "mix_fit", line)


def _weights(answer: MixtureAnswer) -> Iterator[str]:
    best = answer.best
    yield "<table><tr><th>source</th><th>weight</th><th>interval</th>"
    yield f"<th>in {html.escape(best.best_run)}</th><th>epochs</th></tr>"
    for name, weight in best.weights.items():
        epochs = f"{best.epochs[name]:.2g}" if name in best.epochs else "–"
        yield (
            f"<tr><td>{html.escape(name)}</td><td>{weight.value:.3f}</td><td>{_span(weight)}</td>"
            f"<td>{best.best_run_weights[name]:.3f}</td><td>{epochs}</td></tr>"
        )
    yield "</table>"


def _laws(answer: MixtureAnswer) -> Iterator[str]:
    schemes = list(dict.fromkeys(scheme for law in answer.laws for scheme in law.held_out))
    heads = "".join(f"<th>RMSE, {SCHEMES.get(scheme, scheme)}</th>" for scheme in schemes)
    yield "<table><tr><th>evaluation set</th><th>law</th><th>R²</th><th>RMSE</th>"
    yield f"{heads}<th>loss at the best weights</th><th>interval</th></tr>"
    for law in answer.laws:
        held = "".join(
            f"<td>{law.held_out[scheme]:.4f}</td>" if scheme in law.held_out else "<td>–</td>"
            for scheme in schemes
        )
        loss = answer.best.losses[law.name]
        yield (
            f"<tr><td>{html.escape(law.name)}</td><td>{law.form}</td><td>{law.r2:.4f}</td>"
            f"<td>{law.rmse:.4f}</td>{held}<td>{loss.value:.4f}</td><td>{_span(loss)}</td></tr>"
        )
    yield "</table>"


def _span(interval: Interval) -> str:
    if not math.isfinite(interval.low + interval.high):
        return "–"
    return f"{interval.low:.4g} to {interval.high:.4g}"
