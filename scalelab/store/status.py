"""How a sweep stands, from its run folders alone: works while it runs, needs no database.

`read_status` reads the files; everything after that is pure: `budget_statuses`, `advise`.
"""

from __future__ import annotations

import math
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scalelab.errors import DataError, SpecError
from scalelab.records.machine import is_process_alive
from scalelab.records.run_dir import RunDir
from scalelab.records.states import ACTIVE, BROKEN, INTERRUPTED, RUN_STATES, STOPPED
from scalelab.records.sweep_dir import Results
from scalelab.records.types import MetricRow
from scalelab.store import scan
from scalelab.store.expected import surprising, with_outlooks
from scalelab.store.rows import Row, run_row
from scalelab.store.run_status import (
    FALLS_TO_LARGE,
    FALLS_TO_SMALL,
    BudgetStatus,
    RunStatus,
    budget_statuses,
)
from scalelab.store.sources import PLAN_FILE
from scalelab.store.spent import spent_and_wasted_s
from scalelab.units import format_flops


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepStatus:
    """How a sweep stands.

    Attributes
    ----------
    sweep, kind : str
        Name, and what was planned.
    runs : tuple of RunStatus
        In the plan's order.
    counts : Mapping[str, int]
        Runs by state, only states that occur.
    valleys : tuple of BudgetStatus
        By budget, smallest first; empty for a sweep without budgets.
    eta_s : float or None
        Seconds until the last run ends at the present speed; None when nothing runs.
    worker_hours, wasted_hours : float
        Hours that workers spent, and those that no result came of.
    advice : tuple of str
        What to do next.
    gpus : int
        GPUs of a worker; 0 where that is not known or it has none.
    """

    sweep: str
    kind: str
    runs: tuple[RunStatus, ...]
    counts: Mapping[str, int]
    valleys: tuple[BudgetStatus, ...]
    eta_s: float | None
    worker_hours: float
    wasted_hours: float
    advice: tuple[str, ...]
    gpus: int = 0


Judge = Callable[[str, Sequence[RunStatus]], tuple[RunStatus, ...]]


def read_status(
    results: Path,
    sweep: str | None = None,
    *,
    now_s: float | None = None,
    assess: Judge | None = None,
) -> SweepStatus:
    """Return how a sweep stands, read from its run folders.

    Parameters
    ----------
    results : Path
        The results folder.
    sweep : str, optional
        Its name; the one launched last by default.
    now_s : float, optional
        Unix time to reckon silence from; the clock's by default.
    assess : callable, optional
        Takes the sweep's name and its runs as their files tell them; returns them as somebody who
        also knows the queue does.

    Raises
    ------
    DataError
        When there is no such sweep, or its plan cannot be read.
    """
    name = sweep if sweep is not None else _latest_name(results)
    saved = Results(results).load_plan(name)
    now = time.time() if now_s is None else now_s
    runs = tuple(
        read_run_state(results / "runs" / run_id, budget, now)
        for run_id, budget in saved.budgets.items()
    )
    runs = with_outlooks(runs if assess is None else assess(name, runs), str(results / "runs"))
    found = Counter(run.state for run in runs)
    counts = {state: found[state] for state in RUN_STATES if found[state]}
    valleys = budget_statuses(runs)
    return SweepStatus(
        sweep=name,
        kind=saved.kind,
        runs=runs,
        counts=counts,
        valleys=valleys,
        eta_s=sweep_eta(runs),
        worker_hours=math.fsum(run.spent_s for run in runs) / 3600,
        wasted_hours=math.fsum(run.wasted_s for run in runs) / 3600,
        advice=advise(name, counts, valleys, runs),
    )


def sweep_names(results: Path) -> list[str]:
    """Return the names of the sweeps with a readable plan, the one launched last first."""
    return [name for _, name in _plans(results)]


def read_run_state(folder: Path, budget_flops: float | None, now_s: float) -> RunStatus:
    """Return how the run in ``folder`` stands; a folder that does not hold together is a state."""
    try:
        files = scan.read_run(str(folder))
    except (SpecError, OSError) as error:
        return RunStatus(
            run_id=folder.name, state=BROKEN, budget_flops=budget_flops, reason=str(error)
        )
    is_running = files.status == "running"
    last = RunDir(folder).attempts()[-1].last_metrics() if is_running else None
    is_gone = is_running and _is_gone(files.attempts[-1].note)
    state = run_state(run_row(files), last, budget_flops, now_s, is_gone=is_gone)
    spent_s, wasted_s = spent_and_wasted_s(files, now_s)
    return replace(state, spent_s=spent_s, wasted_s=wasted_s)


def run_state(
    row: Row, last: MetricRow | None, budget_flops: float | None, now_s: float, *, is_gone: bool
) -> RunStatus:
    """Return how a run stands from its row of ``runs`` and its newest row of the curve.

    Parameters
    ----------
    row : dict
        `scalelab.store.rows.run_row`.
    last : MetricRow or None
        Newest row of a running attempt's curve.
    budget_flops : float or None
        Of the run in this sweep.
    now_s : float
        Unix time.
    is_gone : bool
        Whether the process that was running it is known to be gone.
    """
    is_running = row["status"] == "running" and not is_gone
    speed = last.tokens_per_s if last and is_running and last.tokens_per_s > 0 else None
    loss = row.get("loss_nats")
    return RunStatus(
        run_id=row["run_id"],
        state=INTERRUPTED if is_gone else row["status"],
        budget_flops=budget_flops,
        n_params=row["n_params"],
        n_tokens=row["n_tokens"],
        n_steps=row["n_steps"],
        flops=row["flops"],
        step=row.get("steps_taken") or (last.step if last else 0),
        loss_nats=last.loss_nats if loss is None and last else loss,
        tokens_per_s=speed,
        eta_s=max(row["n_tokens"] - last.tokens, 0) / speed if last and speed else None,
        silent_s=max(now_s - last.time_s, 0.0) if last and is_running and last.time_s else None,
        attempts=row["attempts"],
        reason=row.get("reason"),
    )


def sweep_eta(runs: Sequence[RunStatus]) -> float | None:
    """Return the seconds until the last run ends, None when no running one tells its speed.

    The work that is left over the present rate, and never less than the slowest running run.
    """
    running = [run for run in runs if run.eta_s is not None and run.flops and run.n_tokens]
    rate = sum((r.tokens_per_s or 0.0) * (r.flops or 0.0) / (r.n_tokens or 1) for r in running)
    if not running or rate <= 0:
        return None
    waiting = sum(
        run.flops or 0.0
        for run in runs
        if run.state in ("planned", "queued", "preempted", INTERRUPTED)
    )
    left = sum((r.eta_s or 0.0) * (r.tokens_per_s or 0.0) * r.flops / r.n_tokens
               for r in running if r.flops and r.n_tokens)  # fmt: skip
    return max((waiting + left) / rate, max(r.eta_s or 0.0 for r in running))


def advise(
    sweep: str,
    counts: Mapping[str, int],
    valleys: Sequence[BudgetStatus],
    runs: Sequence[RunStatus],
) -> tuple[str, ...]:
    """Return what to do next, most pressing first."""
    advice = []
    if counts.get(BROKEN):
        first = next(run for run in runs if run.state == BROKEN)
        advice.append(f"run {first.run_id} does not hold together: {first.reason}")
    is_active = any(counts.get(state) for state in ACTIVE)
    stopped = sum(counts.get(s, 0) for s in STOPPED)
    if stopped and not is_active:
        advice.append(
            f"{stopped} runs wait and nothing runs: `scalelab resume {sweep}` goes on with them."
        )
    if counts.get("failed"):
        first = next(run for run in runs if run.state == "failed")
        advice.append(
            f"{counts['failed']} runs failed ({first.reason or 'no reason noted'}): see `scalelab "
            f"logs {first.run_id}`, then `scalelab retry {sweep}`."
        )
    if counts.get("diverged"):
        advice.append(
            f"{counts['diverged']} runs diverged and are left out of fits: `scalelab retry {sweep} "
            "--status diverged --lr-scale 0.5` adds them at half the rate."
        )
    for run, expected in surprising(runs):
        side = "above" if (run.loss_nats or 0.0) > expected.high_nats else "below"
        advice.append(
            f"run {run.run_id} ended at {run.loss_nats:.4f}, {side} the {expected.low_nats:.4f} to "
            f"{expected.high_nats:.4f} that the others let expect: look at its curve (`scalelab "
            f"logs {run.run_id}`) before it goes into a fit."
        )
    for valley in valleys:
        if valley.n_done == valley.n_runs and valley.shape in (FALLS_TO_SMALL, FALLS_TO_LARGE):
            is_small = valley.shape == FALLS_TO_SMALL
            best, add = ("smallest", "smaller") if is_small else ("largest", "larger")
            advice.append(
                f"the valley at {format_flops(valley.budget_flops)} FLOP is open: its {best} model "
                f"is the best; add {add} ones (a wider --span, with --extend)."
            )
    if counts.get("done") and not stopped and not is_active:
        advice.append(f"`scalelab fit --sweep {sweep}` fits what is done.")
    return tuple(advice)


def _is_gone(note: Mapping[str, Any]) -> bool:
    """Say whether the process behind a note is known to be gone: only its own machine knows."""
    return note.get("host") == socket.gethostname() and not is_process_alive(note)


def _latest_name(results: Path) -> str:
    plans = _plans(results)
    if not plans:
        raise DataError(
            f"results folder {results}, which holds no sweep",
            "a folder in which a sweep was launched",
            "Launch one with `scalelab sweep`, or name another folder with --results.",
        )
    return plans[0][1]


def _plans(results: Path) -> list[tuple[float, str]]:
    """Return (-created, name) of the sweeps with a readable plan, the newest first."""
    folder = results / "sweeps"
    found = ((name, _read_plan(folder / name)) for name in scan.run_names(str(folder)))
    return sorted((-float(plan.get("created_s") or 0.0), name) for name, plan in found if plan)


def _read_plan(folder: Path) -> dict[str, Any] | None:
    plan = scan.read_json(str(folder / PLAN_FILE))
    rows = None if plan is None else plan.get("rows")
    is_plan = isinstance(rows, list) and all(
        isinstance(row, dict) and isinstance(row.get("run_id"), str) for row in rows
    )
    return plan if is_plan else None
