"""A sweep's status as a person reads it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from scalelab.cli.output import runnable
from scalelab.store.expected import LEVEL, MIN_FINISHED
from scalelab.store.run_status import BudgetStatus, Expected, Outlook, RunStatus
from scalelab.store.status import SweepStatus
from scalelab.units import format_duration, format_flops, format_quantity

if TYPE_CHECKING:
    from rich.console import RenderableType

SHOWN_RUNS = 16
SILENT_AFTER_S = 120.0
STYLES = {
    "done": "green",
    "running": "cyan",
    "cancelled": "yellow",
    "diverged": "yellow",
    "interrupted": "yellow",
    "failed": "red",
    "broken": "red",
}


def render_status(status: SweepStatus) -> RenderableType:
    """Return the page: counts, valleys, running runs, troubled runs, advice."""
    head = Text(f"{status.sweep} ({status.kind}): {len(status.runs):,} runs: ", style="bold")
    for i, (state, count) in enumerate(status.counts.items()):
        head.append(", " if i else "", style="")
        head.append(f"{count:,} {state}", style=STYLES.get(state, ""))
    if status.eta_s is not None:
        head.append(f"; about {format_duration(status.eta_s)} left", style="")
    if status.worker_hours:
        head.append(f"; {_hours(status)}", style="")
    parts: list[RenderableType] = [head]
    if status.valleys:
        parts += [Text(), _valleys(status.valleys)]
    running = [run for run in status.runs if run.state == "running"]
    if running:
        parts += [Text(), _running(running), _legend(status)]
    troubled = [r for r in status.runs if r.state in ("failed", "diverged", "broken")]
    if troubled:
        parts += [Text(), _troubled(troubled)]
    if status.advice:
        parts += [Text(), *(Text(f"-> {runnable(line)}") for line in status.advice)]
    return Group(*parts)


def _hours(status: SweepStatus) -> str:
    per_worker, word = (status.gpus, "GPU-hours") if status.gpus else (1, "worker-hours")
    spent, wasted = per_worker * status.worker_hours, per_worker * status.wasted_hours
    return f"{spent:.3g} {word} spent, {wasted:.2g} of them in vain"


def _valleys(valleys: Sequence[BudgetStatus]) -> Table:
    table = _table("budget", "done", "best N", "best loss")
    table.add_column("valley")
    for valley in valleys:
        is_whole = valley.n_done == valley.n_runs
        style = ("green" if valley.is_bracketed else "yellow") if is_whole else ""
        table.add_row(
            format_flops(valley.budget_flops),
            f"{valley.n_done}/{valley.n_runs}",
            "" if valley.best_n_params is None else format_quantity(valley.best_n_params),
            "" if valley.best_loss_nats is None else f"{valley.best_loss_nats:.4f}",
            Text(valley.shape + ("" if is_whole else " so far"), style=style),
        )
    return table


def _running(runs: Sequence[RunStatus]) -> Table:
    columns = ("steps", "loss", "expected", "at the end", "tokens/s", "left")
    table = _table("running", "N", "D", *columns)
    table.add_column("")
    for run in runs[:SHOWN_RUNS]:
        is_silent = run.silent_s is not None and run.silent_s > SILENT_AFTER_S
        silence = f"silent for {format_duration(run.silent_s or 0.0)}" if is_silent else ""
        outlook = run.outlook or Outlook(recent_loss_nats=None, now=None, end=None)
        loss = run.loss_nats if outlook.recent_loss_nats is None else outlook.recent_loss_nats
        table.add_row(
            run.run_id,
            _quantity(run.n_params),
            _quantity(run.n_tokens),
            f"{run.step:,}/{run.n_steps or 0:,}",
            Text("" if loss is None else f"{loss:.4f}", style="yellow" if outlook.is_high else ""),
            _expected(outlook.now),
            _expected(outlook.end),
            _quantity(run.tokens_per_s),
            "" if run.eta_s is None else format_duration(run.eta_s),
            Text(silence, style="yellow"),
        )
    _add_rest(table, runs)
    return table


def _legend(status: SweepStatus) -> Text:
    n_done = status.counts.get("done", 0)
    if n_done < MIN_FINISHED:
        words = f"Expected losses show once {MIN_FINISHED} runs are done ({n_done} so far)."
    else:
        words = (
            "loss: training loss over the last 5 % of the schedule; expected: of the finished runs "
            "at the same place in theirs, for this N and D; at the end: held-out loss. "
            f"{LEVEL:.0%} of healthy runs lie within ±."
        )
    return Text(words, style="dim")


def _expected(found: Expected | None) -> str:
    if found is None:
        return ""
    return f"{found.loss_nats:.3f} ± {found.high_nats - found.loss_nats:.3f}"


def _troubled(runs: Sequence[RunStatus]) -> Table:
    table = _table("run", "state", "N", "D", "steps", "attempts")
    table.add_column("reason", overflow="fold")
    for run in runs[:SHOWN_RUNS]:
        table.add_row(
            run.run_id,
            Text(run.state, style=STYLES[run.state]),
            _quantity(run.n_params),
            _quantity(run.n_tokens),
            f"{run.step:,}/{run.n_steps or 0:,}",
            str(run.attempts),
            run.reason or "",
        )
    _add_rest(table, runs)
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", no_wrap=True)
    return table


def _add_rest(table: Table, runs: Sequence[RunStatus]) -> None:
    if len(runs) > SHOWN_RUNS:
        table.add_row(f".. {len(runs) - SHOWN_RUNS:,} more")


def _quantity(value: float | None) -> str:
    return "" if value is None else format_quantity(value)
