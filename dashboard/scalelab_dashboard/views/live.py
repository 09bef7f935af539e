"""A sweep that runs, on the Overview: progress, budgets, running runs and their curves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from scalelab.report import figures_runs
from scalelab.store.expected import LEVEL
from scalelab.units import format_duration, format_flops, format_quantity
from scalelab_dashboard import glossary, queries, ui
from scalelab_dashboard.fits import Failure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scalelab.store.run_status import BudgetStatus, Expected, RunStatus
    from scalelab_dashboard.state import Choice

MAX_RUNS = 8
SILENT_AFTER_S = 120.0
"""Seconds without a row of the training curve after which a run is reported as silent."""


def show(choice: Choice) -> None:
    """Draw the progress of the chosen sweep; its snapshot is at most some seconds old."""
    assert choice.source is not None
    source, done = choice.source, choice.source.counts.get("done", 0)
    status = queries.status(choice.results, source.name, choice.stamp)
    text = f"{done:,} of {source.total:,} runs are done"
    if isinstance(status, Failure):
        st.progress(done / source.total, text=text)
        return
    if status.eta_s is not None:
        text += f"; about {format_duration(status.eta_s)} left"
    st.progress(done / source.total, text=text)
    running = [run for run in status.runs if run.state == "running"]
    if running:
        _runs(running)
    elif not done:
        st.markdown("No run is training yet.")
    left, right = st.columns(2, gap="medium")
    with left:
        if running:
            _curves(choice, running)
    with right:
        if status.valleys:
            _budgets(status.valleys)


def _runs(running: Sequence[RunStatus]) -> None:
    st.markdown("**Running now**", help=glossary.about("State, status", "Step"))
    rows = [
        f"| `{run.run_id}` | {_quantity(run.n_params)} | {_quantity(run.n_tokens)} "
        f"| {run.step / (run.n_steps or 1):.0%} | {_loss(run)} | {_expected(run)} | {_left(run)} |"
        for run in running[:MAX_RUNS]
    ]
    head = (
        "| run | N | D | steps | training loss | expected at the end | time left |",
        "|:--|" + "--:|" * 6,
    )
    st.markdown("\n".join((*head, *rows)))
    if len(running) > MAX_RUNS:
        st.caption(f"{len(running) - MAX_RUNS:,} more are running.")
    if any(run.outlook is not None and run.outlook.end is not None for run in running):
        st.caption(
            "Expected at the end: held-out loss predicted from the finished runs; "
            f"{LEVEL:.0%} of healthy runs are inside. ▲ marks a training loss above its range."
        )


def _loss(run: RunStatus) -> str:
    outlook = run.outlook
    loss = run.loss_nats
    if outlook is not None and outlook.recent_loss_nats is not None:
        loss = outlook.recent_loss_nats
    mark = " ▲" if outlook is not None and outlook.is_high else ""
    return "–" if loss is None else f"{loss:.3f}{mark}"


def _expected(run: RunStatus) -> str:
    end: Expected | None = None if run.outlook is None else run.outlook.end
    return "–" if end is None else f"{end.low_nats:.3f} to {end.high_nats:.3f}"


def _left(run: RunStatus) -> str:
    if run.silent_s is not None and run.silent_s > SILENT_AFTER_S:
        return f"**silent for {format_duration(run.silent_s)}**"
    return "–" if run.eta_s is None else format_duration(run.eta_s)


def _quantity(value: float | None) -> str:
    return "–" if value is None else format_quantity(value)


def _curves(choice: Choice, running: Sequence[RunStatus]) -> None:
    ids = tuple(run.run_id for run in running[:MAX_RUNS])
    ui.plot(
        "running",
        (choice.results, choice.stamp, ids),
        lambda look: figures_runs.losses(queries.curves(choice.results, ids, choice.stamp), look),
    )


def _budgets(budgets: Sequence[BudgetStatus]) -> None:
    st.markdown("**Budgets**", help=glossary.about("Budget", "Bracketed minimum", "Edge minimum"))
    rows = [
        f"| {format_flops(budget.budget_flops)} | {budget.n_done} of {budget.n_runs} "
        f"| {_quantity(budget.best_n_params)} | {_verdict(budget)} |"
        for budget in budgets
    ]
    head = ("| C, FLOP | done | best N | minimum |", "|--:|--:|--:|:--|")
    st.markdown("\n".join((*head, *rows)))


def _verdict(budget: BudgetStatus) -> str:
    is_whole = budget.n_done == budget.n_runs
    if budget.is_bracketed:
        return "bracketed" if is_whole else "bracketed so far"
    return f"**{budget.shape}**" if is_whole else f"{budget.shape} so far"
