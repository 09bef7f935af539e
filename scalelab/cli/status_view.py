"""The page that ``scalelab status`` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from scalelab.cli.layout import Fitting
from scalelab.cli.output import runnable
from scalelab.store.expected import LEVEL, MIN_FINISHED
from scalelab.store.run_status import BudgetStatus, Expected, Outlook, RunStatus
from scalelab.store.status import SweepStatus
from scalelab.units import format_duration, format_flops, format_quantity, plural

if TYPE_CHECKING:
    from rich.console import RenderableType

SHOWN_RUNS = 16
TROUBLED = ("failed", "diverged", "pruned", "broken")
STYLES = {
    "done": "green",
    "running": "cyan",
    "cancelled": "yellow",
    "diverged": "yellow",
    "pruned": "yellow",
    "interrupted": "yellow",
    "failed": "red",
    "broken": "red",
}


def render_status(status: SweepStatus) -> RenderableType:
    """Return the page: counts, isoFLOP curves, running runs and troubled runs."""
    head = Text(
        f"{status.sweep} ({status.kind}), {plural(len(status.runs), 'run')}: ", style="bold"
    )
    # Troubled runs come first: they change the answer most.
    counts = sorted(status.counts.items(), key=lambda item: item[0] not in TROUBLED)
    for i, (state, count) in enumerate(counts):
        head.append(", " if i else "", style="")
        head.append(f"{count:,} {state}", style=STYLES.get(state, ""))
    if status.eta_s is not None:
        head.append(f"; about {format_duration(status.eta_s)} left", style="")
    if status.worker_hours:
        head.append(f"; {_hours(status)}", style="")
    parts: list[RenderableType] = [head]
    if status.valleys:
        parts += [Text(), Fitting(_isoflop_curves(status.valleys))]
    running = [run for run in status.runs if run.state == "running"]
    if running:
        parts += [Text(), Fitting(_running(running)), _legend(status)]
    troubled = [r for r in status.runs if r.state in TROUBLED]
    if troubled:
        parts += [Text(), Fitting(_troubled(troubled))]
    return Group(*parts)


def advice(status: SweepStatus) -> list[str]:
    """Return what to do next, as lines."""
    return [f"Next: {runnable(line)}" for line in status.advice]


def _hours(status: SweepStatus) -> str:
    is_on_gpus = any(run.gpus for run in status.runs)
    word = "GPU-hours" if is_on_gpus else "worker-hours"
    factors = [run.gpus if is_on_gpus else 1 for run in status.runs]
    spent = sum(n * run.spent_s for n, run in zip(factors, status.runs, strict=True)) / 3600
    wasted = sum(n * run.wasted_s for n, run in zip(factors, status.runs, strict=True)) / 3600
    return f"{spent:.3g} {word} used, {wasted:.2g} wasted (no result)"


def _isoflop_curves(curves: Sequence[BudgetStatus]) -> Table:
    table = _table("budget", "done", "best N", "best loss")
    table.add_column("minimum")
    for curve in curves:
        is_whole = curve.n_done == curve.n_runs
        style = ("green" if curve.is_bracketed else "yellow") if is_whole else ""
        table.add_row(
            format_flops(curve.budget_flops),
            f"{curve.n_done}/{curve.n_runs}",
            "" if curve.best_n_params is None else format_quantity(curve.best_n_params),
            "" if curve.best_loss_nats is None else f"{curve.best_loss_nats:.4f}",
            Text(curve.shape + ("" if is_whole else " so far"), style=style),
        )
    return table


def _running(runs: Sequence[RunStatus]) -> Table:
    columns = ("steps", "loss", "expected", "at the end", "tokens/s", "left")
    table = _table("running", "N", "D", *columns)
    table.add_column("")
    for run in runs[:SHOWN_RUNS]:
        silence = f"silent for {format_duration(run.silent_s or 0.0)}" if run.is_silent else ""
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
        words = f"Expected losses appear when {MIN_FINISHED} runs are done ({n_done} so far)."
    else:
        words = (
            "loss: training loss over the last 5 % of the schedule. expected: the same loss, "
            "predicted from the finished runs for this N, D and progress. at the end: predicted "
            f"held-out loss. {LEVEL:.0%} of healthy runs are within ±."
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
