"""How a sweep stands, from its run folders alone: works while it runs, needs no database.

`read_status` reads the files; everything after that is pure: `find_valleys`, `advise`.
"""

from __future__ import annotations

import math
import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scalelab.errors import DataError, SpecError
from scalelab.records.names import named_folder
from scalelab.records.process import is_process_alive
from scalelab.records.run_dir import RunDir
from scalelab.records.types import MetricRow
from scalelab.store import scan
from scalelab.store.rows import Row, run_row
from scalelab.store.sources import PLAN_FILE
from scalelab.units import format_flops

INTERRUPTED = "interrupted"
BROKEN = "broken"
STATES = (
    "done", "running", "queued", "planned", INTERRUPTED, "preempted", "cancelled", "diverged",
    "failed", BROKEN,
)  # fmt: skip
"""The states of a run, in the order in which they are shown."""

ACTIVE = ("running", "queued")
"""States in which something is being done for the run."""

MIN_VALLEY_SIZES = 3
BRACKETED = "bracketed"
FALLS_TO_SMALL = "falls to the small end"
FALLS_TO_LARGE = "falls to the large end"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunState:
    """How one run of a sweep stands.

    Attributes
    ----------
    run_id : str
        The run.
    state : str
        One of `STATES`: the status that its files tell, or ``interrupted`` when they say running
        and the process is gone, or ``broken`` when they do not hold together.
    budget_flops : float or None
        Budget of its isoFLOP curve.
    n_params, n_tokens, n_steps : int or None
        As planned, N by the default convention; None without a readable spec.
    flops : float or None
        Planned training compute by the default convention.
    step : int
        Steps taken so far by the newest attempt, or of the result.
    loss_nats : float or None
        Held-out loss of a finished run, newest training loss of a running one.
    tokens_per_s : float or None
        Newest throughput of a running one.
    eta_s : float or None
        Seconds that a running one still needs at that speed.
    silent_s : float or None
        Seconds since a running one wrote its newest row.
    attempts : int
        Attempts made.
    reason : str or None
        Why it ended when not as done.
    """

    run_id: str
    state: str
    budget_flops: float | None = None
    n_params: int | None = None
    n_tokens: int | None = None
    n_steps: int | None = None
    flops: float | None = None
    step: int = 0
    loss_nats: float | None = None
    tokens_per_s: float | None = None
    eta_s: float | None = None
    silent_s: float | None = None
    attempts: int = 0
    reason: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Valley:
    """One isoFLOP curve so far.

    Attributes
    ----------
    budget_flops : float
        Its budget.
    n_done, n_runs : int
        Runs with a loss, and planned runs.
    best_n_params, best_loss_nats : float or None
        The size with the smallest mean loss, and that loss.
    shape : str
        ``bracketed`` (sizes on both sides of the best have larger losses), ``falls to the small
        end``, ``falls to the large end``, or ``too few sizes``.
    """

    budget_flops: float
    n_done: int
    n_runs: int
    best_n_params: float | None
    best_loss_nats: float | None
    shape: str

    @property
    def is_bracketed(self) -> bool:
        """Whether the smallest loss is not at an end."""
        return self.shape == BRACKETED


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepStatus:
    """How a sweep stands.

    Attributes
    ----------
    sweep, kind : str
        Name, and what was planned.
    runs : tuple of RunState
        In the plan's order.
    counts : Mapping[str, int]
        Runs by state, only states that occur.
    valleys : tuple of Valley
        By budget, smallest first; empty for a sweep without budgets.
    eta_s : float or None
        Seconds until the last run ends at the present speed; None when nothing runs.
    advice : tuple of str
        What to do next.
    """

    sweep: str
    kind: str
    runs: tuple[RunState, ...]
    counts: Mapping[str, int]
    valleys: tuple[Valley, ...]
    eta_s: float | None
    advice: tuple[str, ...]


def read_status(
    results: Path, sweep: str | None = None, *, now_s: float | None = None
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

    Raises
    ------
    DataError
        When there is no such sweep, or its plan cannot be read.
    """
    name = sweep if sweep is not None else _latest_name(results)
    plan = _read_plan(named_folder(results / "sweeps", name, what="sweep"))
    if plan is None:
        names = [found for _, found in _plans(results)]
        raise DataError(
            f"sweep {name!r}, which {results} does not have",
            f"one of {', '.join(names)}" if names else "a sweep that was launched",
            "Check the name and --results, or launch it with `scalelab sweep`.",
        )
    now = time.time() if now_s is None else now_s
    budgets = {row["run_id"]: row.get("budget_flops") for row in plan["rows"]}
    runs = tuple(
        read_run_state(results / "runs" / run_id, budget, now) for run_id, budget in budgets.items()
    )
    found = Counter(run.state for run in runs)
    counts = {state: found[state] for state in STATES if found[state]}
    valleys = find_valleys(runs)
    return SweepStatus(
        sweep=name,
        kind=str(plan.get("kind", "")),
        runs=runs,
        counts=counts,
        valleys=valleys,
        eta_s=sweep_eta(runs),
        advice=advise(name, counts, valleys, runs),
    )


def sweep_names(results: Path) -> list[str]:
    """Return the names of the sweeps with a readable plan, the one launched last first."""
    return [name for _, name in _plans(results)]


def read_run_state(folder: Path, budget_flops: float | None, now_s: float) -> RunState:
    """Return how the run in ``folder`` stands; a folder that does not hold together is a state."""
    if not folder.is_dir():
        return RunState(run_id=folder.name, state="planned", budget_flops=budget_flops)
    try:
        files = scan.read_run(str(folder))
    except (SpecError, OSError) as error:
        return RunState(
            run_id=folder.name, state=BROKEN, budget_flops=budget_flops, reason=str(error)
        )
    is_running = files.status == "running"
    last = RunDir(folder).attempts()[-1].last_metrics() if is_running else None
    is_gone = is_running and _is_gone(files.attempts[-1].note)
    return run_state(run_row(files), last, budget_flops, now_s, is_gone=is_gone)


def run_state(
    row: Row, last: MetricRow | None, budget_flops: float | None, now_s: float, *, is_gone: bool
) -> RunState:
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
    return RunState(
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


def find_valleys(runs: Sequence[RunState]) -> tuple[Valley, ...]:
    """Return the isoFLOP curves of the runs, smallest budget first.

    Replicates of a size count by their mean loss.
    """
    by_budget: dict[float, list[RunState]] = {}
    for run in runs:
        if run.budget_flops is not None:
            by_budget.setdefault(run.budget_flops, []).append(run)
    return tuple(_valley(budget, by_budget[budget]) for budget in sorted(by_budget))


def _valley(budget: float, runs: list[RunState]) -> Valley:
    losses: dict[int, list[float]] = {}
    for run in runs:
        if run.state == "done" and run.loss_nats is not None and run.n_params is not None:
            losses.setdefault(run.n_params, []).append(run.loss_nats)
    sizes = sorted(losses)
    means = [math.fsum(losses[size]) / len(losses[size]) for size in sizes]
    best = means.index(min(means)) if means else None
    if best is None or len(sizes) < MIN_VALLEY_SIZES:
        shape = "too few sizes"
    elif best == 0:
        shape = FALLS_TO_SMALL
    elif best == len(sizes) - 1:
        shape = FALLS_TO_LARGE
    else:
        shape = BRACKETED
    return Valley(
        budget_flops=budget,
        n_done=sum(map(len, losses.values())),
        n_runs=len(runs),
        best_n_params=None if best is None else sizes[best],
        best_loss_nats=None if best is None else means[best],
        shape=shape,
    )


def sweep_eta(runs: Sequence[RunState]) -> float | None:
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
    sweep: str, counts: Mapping[str, int], valleys: Sequence[Valley], runs: Sequence[RunState]
) -> tuple[str, ...]:
    """Return what to do next, most pressing first."""
    advice = []
    is_active = any(counts.get(state) for state in ACTIVE)
    stopped = sum(counts.get(s, 0) for s in ("planned", INTERRUPTED, "preempted", "cancelled"))
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
            f"{counts['diverged']} runs diverged and are left out of fits: a smaller --lr may help."
        )
    if counts.get(BROKEN):
        first = next(run for run in runs if run.state == BROKEN)
        advice.append(f"run {first.run_id} does not hold together: {first.reason}")
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
