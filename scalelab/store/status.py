"""Status of a sweep, read from its run folders; needs no database.

`read_status` reads the files; `advise` and `sweep_eta` are pure functions.
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

from scalelab.errors import FIRST_SWEEP, DataError, SpecError
from scalelab.records import run_files
from scalelab.records.machine import is_process_alive
from scalelab.records.qualification import is_measuring
from scalelab.records.run_dir import RunDir
from scalelab.records.states import ACTIVE, BROKEN, INTERRUPTED, PRUNED, RUN_STATES, STOPPED
from scalelab.records.sweep_dir import MIXTURE_KIND, Results, fit_command
from scalelab.records.types import MetricRow
from scalelab.store.expected import surprising, with_outlooks
from scalelab.store.rows import Row, run_row
from scalelab.store.run_status import (
    FALLS_TO_LARGE,
    FALLS_TO_SMALL,
    BudgetStatus,
    RunStatus,
    budget_statuses,
)
from scalelab.store.spent import spent_and_wasted_s
from scalelab.units import format_duration, format_flops, plural


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepStatus:
    """Status of a sweep.

    Attributes
    ----------
    sweep, kind : str
        Name and kind of the sweep.
    runs : tuple of RunStatus
        Its runs, in the order of the plan.
    counts : Mapping[str, int]
        Number of runs by state, without zeros.
    valleys : tuple of BudgetStatus
        Its budgets, smallest first; empty for a sweep without budgets.
    eta_s : float or None
        Seconds until the last run ends at the current throughput; None if no run is running.
    worker_hours, wasted_hours : float
        Hours of all attempts, and hours of steps that were trained again.
    advice : tuple of str
        Next steps for the user.
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


Assess = Callable[[str, Sequence[RunStatus]], tuple[RunStatus, ...]]


def read_status(
    results: Path,
    sweep: str | None = None,
    *,
    now_s: float | None = None,
    assess: Assess | None = None,
) -> SweepStatus:
    """Return the status of a sweep from its run folders.

    Parameters
    ----------
    results : Path
        The results folder.
    sweep : str, optional
        Its name; default: the newest sweep.
    now_s : float, optional
        Current Unix time; default: the clock.
    assess : callable, optional
        Takes the name of the sweep and the runs as recorded in the files; returns the runs with
        the states that the SLURM queue adds.

    Raises
    ------
    DataError
        If there is no such sweep, or its plan cannot be read.
    """
    name = sweep if sweep is not None else _latest_name(results)
    saved = Results(results).load_plan(name)
    now = time.time() if now_s is None else now_s
    runs = tuple(
        read_run_status(results / "runs" / run_id, budget, now)
        for run_id, budget in saved.budgets.items()
    )
    runs = runs if assess is None else assess(name, runs)
    if saved.kind != MIXTURE_KIND:
        # Mixtures of one size have different losses.
        runs = with_outlooks(runs, str(results / "runs"))
    found = Counter(run.state for run in runs)
    counts = {state: found[state] for state in RUN_STATES if found[state]}
    budgets = budget_statuses(runs)
    return SweepStatus(
        sweep=name,
        kind=saved.kind,
        runs=runs,
        counts=counts,
        valleys=budgets,
        eta_s=sweep_eta(runs),
        worker_hours=math.fsum(run.spent_s for run in runs) / 3600,
        wasted_hours=math.fsum(run.wasted_s for run in runs) / 3600,
        advice=advise(
            name,
            counts,
            budgets,
            runs,
            kind=saved.kind,
            is_measuring=is_measuring(Results(results).qualification, now_s=now),
        ),
    )


def read_run_status(folder: Path, budget_flops: float | None, now_s: float) -> RunStatus:
    """Return the status of the run in ``folder``; ``broken`` if the folder cannot be read."""
    try:
        files = run_files.read_run(str(folder))
    except (SpecError, OSError) as error:
        return RunStatus(
            run_id=folder.name, state=BROKEN, budget_flops=budget_flops, reason=str(error)
        )
    is_running = files.status == "running"
    last = RunDir(folder).attempts()[-1].last_metrics() if is_running else None
    is_gone = is_running and _is_gone(files.attempts[-1].note)
    state = run_status(run_row(files), last, budget_flops, now_s, is_gone=is_gone)
    spent_s, wasted_s = spent_and_wasted_s(files, now_s)
    return replace(state, spent_s=spent_s, wasted_s=wasted_s)


def run_status(
    row: Row, last: MetricRow | None, budget_flops: float | None, now_s: float, *, is_gone: bool
) -> RunStatus:
    """Return the status of a run from its row of ``runs`` and the newest row of its curve.

    Parameters
    ----------
    row : dict
        `scalelab.store.rows.run_row`.
    last : MetricRow or None
        Newest row of the curve of a running attempt.
    budget_flops : float or None
        Budget of the run in this sweep.
    now_s : float
        Current Unix time.
    is_gone : bool
        Whether its worker process is known to be dead.
    """
    is_running = row["status"] == "running" and not is_gone
    speed = (last.tokens_per_s or None) if last and is_running else None
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
    """Return the seconds until the last run ends, None if no running run has a throughput.

    This is the work left divided by the current rate, at least the time of the slowest running run.
    A silent run has no rate: it may have stopped.
    """
    running = [
        r for r in runs if r.eta_s is not None and r.flops and r.n_tokens and not r.is_silent
    ]
    rate = sum((r.tokens_per_s or 0.0) * (r.flops or 0.0) / (r.n_tokens or 1) for r in running)
    if not running or rate <= 0:
        return None
    open_states = ("planned", "queued", "preempted", INTERRUPTED)
    waiting = sum(run.flops or 0.0 for run in runs if run.state in open_states)
    left = sum((r.eta_s or 0.0) * (r.tokens_per_s or 0.0) * r.flops / r.n_tokens
               for r in running if r.flops and r.n_tokens)  # fmt: skip
    return max((waiting + left) / rate, max(r.eta_s or 0.0 for r in running))


def advise(
    sweep: str,
    counts: Mapping[str, int],
    budgets: Sequence[BudgetStatus],
    runs: Sequence[RunStatus],
    *,
    kind: str,
    is_measuring: bool = False,
) -> tuple[str, ...]:
    """Return the next steps for the user, the most urgent first.

    ``is_measuring`` says whether a worker of the results folder is qualifying its device.
    """
    advice = []
    if counts.get(BROKEN):
        first = next(run for run in runs if run.state == BROKEN)
        advice.append(f"run {first.run_id} cannot be read: {first.reason}")
    is_active = any(counts.get(state) for state in ACTIVE)
    stopped = sum(counts.get(s, 0) for s in STOPPED)
    if is_measuring and not counts.get("running"):
        advice.append(
            "a worker is qualifying its device, in at most 2 minutes; runs wait for the verdict."
        )
    elif stopped and not is_active:
        advice.append(
            f"{plural(stopped, 'run')} left and none is running: `scalelab resume {sweep}` "
            "continues the sweep."
        )
    silent = sorted((run for run in runs if run.is_silent), key=lambda run: -(run.silent_s or 0.0))
    if silent:
        advice.append(
            f"{plural(len(silent), 'run')} silent, the longest for "
            f"{format_duration(silent[0].silent_s or 0.0)}: its process may hang. See "
            f"`scalelab logs {silent[0].run_id}`."
        )
    if counts.get("failed"):
        first = next(run for run in runs if run.state == "failed")
        advice.append(
            f"{plural(counts['failed'], 'run')} failed ({first.reason or 'reason unknown'}): see "
            f"`scalelab logs {first.run_id}`, then run `scalelab retry {sweep}`."
        )
    if counts.get("diverged"):
        advice.append(
            f"{plural(counts['diverged'], 'run')} diverged; fits leave them out. `scalelab retry "
            f"{sweep} --status diverged --lr-scale 0.5` adds runs at half the learning rate."
        )
    if counts.get(PRUNED):
        advice.append(
            f"{plural(counts[PRUNED], 'run')} pruned as hopeless; fits leave them out. `scalelab "
            f"retry {sweep} --status pruned` trains them to their end."
        )
    for run, expected in surprising(runs) if kind != MIXTURE_KIND else ():
        side = "above" if (run.loss_nats or 0.0) > expected.high_nats else "below"
        advice.append(
            f"run {run.run_id} ended at a loss of {run.loss_nats:.4f}, {side} the range predicted "
            f"from the other runs ({expected.low_nats:.4f} to {expected.high_nats:.4f}): check its "
            f"curve with `scalelab logs {run.run_id}` before a fit uses it."
        )
    for budget in budgets:
        if budget.n_done == budget.n_runs and budget.shape in (FALLS_TO_SMALL, FALLS_TO_LARGE):
            is_small = budget.shape == FALLS_TO_SMALL
            best, add = ("smallest", "smaller") if is_small else ("largest", "larger")
            advice.append(
                f"budget {format_flops(budget.budget_flops)} FLOPs has no minimum: its {best} "
                f"model is the best. Add {add} models with a wider --span and --extend."
            )
    if counts.get("done") and not stopped and not is_active:
        advice.append(f"`{fit_command(sweep, kind)}` fits the finished runs.")
    return tuple(advice)


def _is_gone(note: Mapping[str, Any]) -> bool:
    """Return whether the attempt's process is known to be dead; unknown for other machines."""
    return note.get("host") == socket.gethostname() and not is_process_alive(note)


def _latest_name(results: Path) -> str:
    names = Results(results).sweep_names()
    if not names:
        raise DataError(
            f"results folder {results}, which has no sweep",
            "the results folder of a launched sweep",
            f"Launch one with {FIRST_SWEEP}, or name another folder with --results.",
        )
    return names[0]
