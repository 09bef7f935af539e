"""Compare: sweeps, tables and laws over one another, with exponents and speed-up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import streamlit as st

from scalelab.forecast.comparing import MAX_SOURCES, SourceComparison
from scalelab.forecast.published_laws import PUBLISHED_LAWS, nearest_law
from scalelab.report import figures_compare
from scalelab.units import format_flops, format_quantity, parse_quantity
from scalelab_dashboard import glossary, queries, tables_of, ui, waiting
from scalelab_dashboard.fits import Failure, FitKey

if TYPE_CHECKING:
    from scalelab.fit.intervals import Interval
    from scalelab.forecast.comparing import Compared
    from scalelab.forecast.fit_report import FitReport
    from scalelab.report.look import Look
    from scalelab_dashboard.choice import Choice

LAW = "law "
"""Beginning of the name of a published law in the list, so that it differs from a table."""


def show(choice: Choice) -> None:
    """Draw the page: what is compared, what it says, the frontiers, exponents and speed-ups."""
    laws = [f"{LAW}{name}" for name in PUBLISHED_LAWS]
    others = [label for label in choice.keys if label != choice.shown]
    left, right = st.columns([3, 1])
    with left:
        chosen = st.multiselect(
            "Compare with",
            [*others, *laws],
            key="with",
            bind="query-params",
            max_selections=MAX_SOURCES - 1,
            placeholder="other sweeps, tables, published laws",
            help="The sweep or table of the sidebar is the reference.",
        )
    with right:
        text = ui.checked_input(
            "At compute, FLOP",
            ui.COMPUTE,
            lambda text: parse_quantity(text, what="compute"),
            placeholder="within the runs of all",
            help="Where optima, losses and speed-up are compared. Default: the largest compute "
            "within the runs of all.",
        )
    if choice.key is None or not choice.shown:
        waiting.nothing(choice)
        return
    if not chosen:
        first = _first(choice)
        if first is None:
            return
        chosen = [first[0]]
        st.caption(ui.as_text(f"{first[1]} It is shown until you choose."))
    reports = _reports(choice, chosen)
    if reports is None:
        return
    flops = parse_quantity(text, what="compute") if text else None
    keys = tuple(_key(choice, name) for name in (choice.shown, *chosen) if name in choice.keys)
    found = queries.comparison((choice.shown, *chosen), keys, flops, choice.level, reports)
    if isinstance(found, Failure):
        ui.failure(found)
        return
    _draw(found, (choice.shown, *chosen, keys, flops, choice.level))
    words = ["scalelab", "compare", *(_word(choice, name) for name in (choice.shown, *chosen))]
    words += ["--results", choice.results, *(["--flops", text] if text else [])]
    words += ["--level", f"{choice.level:g}"] if choice.level != 0.9 else []
    metric = choice.key.reading.metric
    words += ["--metric", metric] if metric else []
    ui.command(words)


def _first(choice: Choice) -> tuple[str, str] | None:
    """Return what to compare with before anybody chose, and why; None while a fit runs.

    It is another sweep or table of the user, else the published law nearest to these runs.
    """
    examples = tables_of.examples()
    own = [name for name in choice.keys if name != choice.shown and name not in examples]
    if own:
        return own[0], f"{own[0]}: the latest other sweep or table."
    report = waiting.report(choice)
    if report is None:
        return None
    name = nearest_law(report)
    return f"{LAW}{name}", f"The published law {name}: its D/N is nearest to that of your runs."


def _word(choice: Choice, name: str) -> str:
    """Return a source as the command line names it."""
    key = choice.keys.get(name)
    return name.removeprefix(LAW) if key is None else key.file or name


def _key(choice: Choice, name: str) -> FitKey:
    """Return the fit of a sweep or table by the metric of the sidebar, where it has that."""
    key = choice.keys[name]
    metric = None if choice.key is None else choice.key.reading.metric
    if metric is None or name == choice.shown:
        return key
    known = queries.metrics(key.results, key.stamp, key.file, key.sweep, key.mapping, key.reading)
    return replace(key, reading=replace(key.reading, metric=metric)) if metric in known else key


def _reports(choice: Choice, chosen: list[str]) -> dict[str, FitReport] | None:
    """Return the fits of the chosen runs, or None while one runs or if one failed."""
    found: dict[str, FitReport] = {}
    for name in (choice.shown, *chosen):
        if name in choice.keys:
            report = waiting.report(choice, _key(choice, name))
            if report is None:
                return None
            found[name] = report
    return found


def _draw(found: SourceComparison, question: object) -> None:
    for answer, details in zip(found.answers, found.details, strict=True):
        st.markdown(f"#### {ui.prose(answer)}")
        st.markdown(ui.prose(" ".join(details)))
    panels: list[tuple[str, str, str | None, Callable[[Look], Any]]] = []
    if any(part.gap is not None for part in found.parts):
        panels.append(("compare_l", "Loss", None, lambda look: figures_compare.losses(found, look)))
    if found.has_speedup:
        about = glossary.about("Speed-up")
        panels.append(
            ("compare_s", "Speed-up", about, lambda look: figures_compare.speedups(found, look))
        )
    panels += [
        (
            "compare_n",
            "Compute-optimal N",
            None,
            partial(figures_compare.frontiers, found, "n_params"),
        ),
        (
            "compare_d",
            "Compute-optimal D",
            None,
            partial(figures_compare.frontiers, found, "n_tokens"),
        ),
    ]
    about = glossary.about("Exponents a and b")
    panels.append(
        (
            "compare_a",
            "Exponent a",
            about,
            lambda look: figures_compare.exponent_forest(found, look),
        )
    )
    names = " and ".join(part.source.name for part in found.parts)
    of = f"{names}, {100 * found.level:g} % intervals"
    for i, (name, title, help_text, draw) in enumerate(panels):
        if i % 2 == 0:
            columns = st.columns(2, gap="medium")
        with columns[i % 2]:
            st.subheader(title, help=help_text)
            ui.plot(name, question, draw, of=of)
    st.markdown(_table(found))
    st.caption(
        f"Bands and brackets: {100 * found.level:g} % confidence intervals. Dashed curve: a law "
        f"without runs. Vertical line: {format_flops(found.flops)} FLOP, where optima and losses "
        "are compared. Horizontal line: speed-up 1, no difference."
    )


def _table(found: SourceComparison) -> str:
    heads = ["source", "runs", "verdict", "a", f"N at {format_flops(found.flops)} FLOP", "D"]
    heads += ["speed-up"] if found.has_speedup else []
    rows = [_row(part, is_first=i == 0)[: len(heads)] for i, part in enumerate(found.parts)]
    marks = [":--" if head in ("source", "verdict") else "--:" for head in heads]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, marks, *rows))


def _row(part: Compared, *, is_first: bool) -> tuple[str, ...]:
    source, forecast = part.source, part.forecast
    a = None if source.exponents is None else source.exponents[0]
    sizes = (None, None) if forecast is None else (forecast.n_params, forecast.n_tokens)
    speedup = "reference" if is_first else "–"
    if part.speedup is not None:
        speedup = ui.with_limits(part.speedup, "{:.2f}".format)
    return (
        ui.as_text(source.name),
        "law" if source.rows is None else f"{len(source.rows):,}",
        source.verdict or "–",
        "–" if a is None else ui.with_limits(a, "{:.3f}".format),
        *(_size(size) for size in sizes),
        speedup,
    )


def _size(size: Interval | None) -> str:
    return "–" if size is None else ui.with_limits(size, format_quantity)
