"""A sweep that runs, on the Overview: progress, curves that fill, running and lost runs."""

from __future__ import annotations

import re
import shlex
import time
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

import streamlit as st

from scalelab.records.states import RUN_STATES
from scalelab.report import figures_live, figures_runs
from scalelab.store.expected import LEVEL
from scalelab.store.run_status import share_done
from scalelab.units import format_duration, format_flops, format_quantity
from scalelab_dashboard import glossary, in_step, queries, ui
from scalelab_dashboard.fits import Failure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scalelab.store.run_status import BudgetStatus, Expected, RunStatus
    from scalelab.store.status import SweepStatus
    from scalelab_dashboard.choice import Choice

MAX_RUNS = 8
KINDS = {"isoflop": "isoFLOP"}
STATES = (
    *("done", "running", "queued", "planned"),
    *("failed", "diverged", "pruned", "interrupted", "preempted", "cancelled"),
)
TICK_S = 10
"""Seconds after which the run folders are read again: a launcher that hangs or died publishes no
snapshot, and its runs would stay on the page as running."""
REASON_CHARACTERS = 90
_COMMAND = re.compile("`(scalelab [^`]+)`")


def status_of(choice: Choice) -> SweepStatus | None:
    """Return the status of a sweep that runs, at most `TICK_S` old.

    None if it is over, or has no run folders.
    """
    if choice.source is None or not choice.source.is_unfinished:
        return None
    tick = int(time.time() // TICK_S)
    found = queries.status(choice.results, choice.source.name, choice.stamp, tick)
    return None if isinstance(found, Failure) else found


def newest(choice: Choice) -> Choice:
    """Return the choice with its sweep as it is now; the page may still show older answers."""
    assert choice.source is not None
    stamp = queries.stamp_of(choice.results, None)
    source = queries.source_now(choice.results, choice.source.name)
    return choice if source is None else replace(choice, stamp=stamp, source=source)


def state(choice: Choice) -> None:
    """Draw the number of runs of a sweep by status; of one that runs, again each second."""
    assert choice.source is not None
    (_following if choice.source.is_unfinished else _counts)(choice)


@st.fragment(run_every=in_step.LIVE_S)
def _following(choice: Choice) -> None:
    now = newest(choice)
    _counts(now)
    _progress(now)


def _counts(choice: Choice) -> None:
    source = choice.source
    assert source is not None
    status = status_of(choice)
    counts = source.counts if status is None else status.counts
    parts = [f"{counts[state]:,} {state}" for state in STATES if counts.get(state)]
    kind = "import" if source.kind == "import" else f"{KINDS.get(source.kind, source.kind)} sweep"
    st.markdown(f"**{ui.as_text(source.name)}**, {ui.as_text(kind)}: " + ", ".join(parts))


def _progress(choice: Choice) -> None:
    """Draw how much of the chosen sweep is trained, and when it ends."""
    assert choice.source is not None
    status = status_of(choice)
    counts = choice.source.counts if status is None else status.counts
    done, total = counts.get("done", 0), choice.source.total
    share, text = done / total, f"{done:,} of {total:,} runs are done"
    if status is not None:
        share = share_done(status.runs)
        text += f", {share:.0%} of the compute"
        if status.eta_s is not None:
            text += f"; about {format_duration(status.eta_s)} left"
    st.progress(min(share, 1.0), text=text)


@st.fragment(run_every=TICK_S)
def show(choice: Choice) -> None:
    """Draw the runs of the chosen sweep: curves so far, running runs, and runs without a result."""
    choice = newest(choice)
    status = status_of(choice)
    if status is None:
        return
    running = [run for run in status.runs if run.state == "running"]
    left, right = st.columns(2, gap="medium")
    if status.valleys:
        with left:
            _filling(choice, status)
    with right if status.valleys else left:
        if running:
            _curves(choice, status.sweep, running)
        if status.valleys:
            _budgets(status.valleys)
    if running:
        _runs(running)
    elif not status.counts.get("done"):
        st.markdown("No run is training yet.")
    lost = [run for run in status.runs if figures_live.kind_of(run) == figures_live.LOST]
    if lost:
        _lost(lost)
    for line in status.advice:
        st.markdown(f":material/arrow_forward: {ui.prose(_runnable(line, choice.results))}")


def _filling(choice: Choice, status: SweepStatus) -> None:
    key = tuple(
        (run.run_id, figures_live.kind_of(run), run.loss_nats if run.state == "done" else run.step)
        for run in status.runs
    )
    ui.plot(
        "filling",
        (choice.results, status.sweep, key),
        lambda look: figures_live.filling(status.runs, look),
        of=f"sweep {status.sweep} at {datetime.now():%H:%M}",
    )


def _curves(choice: Choice, sweep: str, running: Sequence[RunStatus]) -> None:
    ids = tuple(run.run_id for run in running[:MAX_RUNS])
    names = {run.run_id: _name(run) for run in running[:MAX_RUNS]}
    table = queries.curves(choice.results, ids, choice.stamp)
    ui.plot(
        "running",
        (choice.results, choice.stamp, ids),
        lambda look: figures_runs.losses(table.assign(label=table["run_id"].map(names)), look),
        of=f"sweep {sweep} at {datetime.now():%H:%M}",
    )


def _runnable(line: str, results: str) -> str:
    """Return a piece of advice whose commands name the results folder."""
    option = f" --results {shlex.quote(results)}"
    return _COMMAND.sub(lambda found: f"`{found[1]}{option}`", line)


def _name(run: RunStatus) -> str:
    """Return the name of a curve: size, and budget if it has one."""
    size = _quantity(run.n_params)
    return size if run.budget_flops is None else f"{size}, {format_flops(run.budget_flops)}"


def _runs(running: Sequence[RunStatus]) -> None:
    st.markdown("**Running now**", help=glossary.about("State, status", "Step"))
    rows = [
        f"| `{run.run_id}` | {_quantity(run.n_params)} | {_budget(run)} | {run.fraction:.0%} "
        f"| {_left(run)} | {_loss(run)} | {_expected(run)} |"
        for run in running[:MAX_RUNS]
    ]
    head = (
        "| run | N | C, FLOP | steps | time left | training loss | expected at the end |",
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


def _lost(runs: Sequence[RunStatus]) -> None:
    """Show the runs whose newest attempt ended without a loss, and why."""
    st.markdown("**Without a result**", help=glossary.about("State, status", "Attempt"))
    rows = [
        f"| `{run.run_id}` | {_quantity(run.n_params)} | {_budget(run)} "
        f"| :red[{ui.as_text(run.state)}] | {run.attempts} | {_reason(run)} |"
        for run in runs[:MAX_RUNS]
    ]
    head = ("| run | N | C, FLOP | state | attempts | why |", "|:--|--:|--:|:--|--:|:--|")
    st.markdown("\n".join((*head, *rows)))
    if len(runs) > MAX_RUNS:
        st.caption(f"{len(runs) - MAX_RUNS:,} more in the **Runs** view.")


def _reason(run: RunStatus) -> str:
    words = " ".join((run.reason or RUN_STATES[run.state]).split())
    short = words if len(words) <= REASON_CHARACTERS else f"{words[: REASON_CHARACTERS - 1]}…"
    return ui.as_text(short)


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
    if run.is_silent:
        return f":orange[**silent for {format_duration(run.silent_s or 0.0)}**]"
    return "–" if run.eta_s is None else format_duration(run.eta_s)


def _quantity(value: float | None) -> str:
    return "–" if value is None else format_quantity(value)


def _budget(run: RunStatus) -> str:
    return "–" if run.budget_flops is None else format_flops(run.budget_flops)


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
        return ":green[bracketed]" if is_whole else "bracketed so far"
    return f":orange[**{budget.shape}**]" if is_whole else f"{budget.shape} so far"
