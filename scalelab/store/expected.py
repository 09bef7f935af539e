"""Predict the current and final loss of a running run from the finished runs of its sweep.

A loss in mid-schedule is above the law's loss for those tokens, so a running run is compared with
finished runs at the same fraction of *their* schedules. The form
:math:`E + A N^{-1/3} + B D^{-1/3}`, fitted by least squares to the nearest finished runs, converts
their losses to its size and length. This is only a check during a sweep; `scalelab.fit` fits laws
with free exponents.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from scalelab.records import run_files
from scalelab.store.curves import Progress, read_new_rows
from scalelab.store.run_status import Expected, Outlook, RunStatus

if TYPE_CHECKING:
    from numpy.typing import NDArray

EXPONENT = 1 / 3
"""Published exponents are 0.28 to 0.37 (arXiv:2203.15556, 2404.10102)."""
MIN_FINISHED = 5
NEAREST = 24
WINDOW = 0.05
LEVEL = 0.9
FALSE_ALARMS = 0.01
"""Probability that any run of a normal sweep is reported by `surprising`."""
HOPELESS_FROM = 0.3
"""Share of its schedule after which a run can be hopeless: the warm-up and first drop are over."""
HOPELESS_EXCESS = 0.05
"""Share of the loss by which a hopeless run is above its expected final loss at least. Where the
finished runs follow the form closely, the interval alone is narrower than the form's error."""
HOPELESS_REACH = 2.0
"""Ratio by which N and D of a hopeless run may be outside those of the finished runs."""


def with_outlooks(runs: Sequence[RunStatus], runs_folder: str) -> tuple[RunStatus, ...]:
    """Return the runs of a sweep, with an outlook for each running run."""
    finished = [run for run in runs if _is_finished(run)]
    return tuple(
        replace(run, outlook=_outlook(run, finished, runs_folder))
        if run.state == "running" and run.n_params and run.n_tokens and run.n_steps
        else run
        for run in runs
    )


def hopeless(runs: Sequence[RunStatus], runs_folder: str) -> tuple[tuple[RunStatus, str], ...]:
    """Return the running runs whose predicted final loss is too high, each with the reason.

    The predicted final loss is that expected of the run's size and length, plus what its recent
    loss is above the losses of finished runs at the same fraction of their schedules. It is too
    high if recent and final loss are above prediction intervals at a level that raises a false
    alarm in `FALSE_ALARMS` of all sweeps, and by at least `HOPELESS_EXCESS` of the loss. Only runs
    past `HOPELESS_FROM` of their schedule and near the finished runs are compared: the form is no
    law, and a run far from the others may differ from it without being hopeless.
    """
    finished = [run for run in runs if _is_finished(run)]
    running = [run for run in runs if run.state == "running" and run.n_params and run.n_tokens]
    found = []
    for run in running:
        if run.step < HOPELESS_FROM * (run.n_steps or math.inf) or not _is_near(run, finished):
            continue
        outlook = _outlook(run, finished, runs_folder, level=1 - FALSE_ALARMS / len(runs))
        recent, now, end = outlook.recent_loss_nats, outlook.now, outlook.end
        if recent is None or now is None or end is None:
            continue
        final = end.loss_nats + recent - now.loss_nats
        most = max(end.high_nats, (1 + HOPELESS_EXCESS) * end.loss_nats)
        if recent > now.high_nats and final > most:
            found.append(
                (
                    run,
                    f"at {run.step / (run.n_steps or 1):.0%} of its steps its predicted final loss "
                    f"is {final:.4f}, above {most:.4f}, the highest that the finished runs allow",
                )
            )
    return tuple(found)


def _is_near(run: RunStatus, finished: Sequence[RunStatus]) -> bool:
    """Return whether N and D of a run are at most `HOPELESS_REACH` outside those of other runs."""
    if len(finished) < MIN_FINISHED:
        return False
    places, (at,) = _places(finished), _places([run])
    low, high = places.min(axis=0) / HOPELESS_REACH, places.max(axis=0) * HOPELESS_REACH
    return bool(((low <= at) & (at <= high)).all())


def expect(
    places: NDArray[np.float64],
    losses: NDArray[np.float64],
    *,
    at: NDArray[np.float64],
    level: float = LEVEL,
) -> Expected | None:
    """Return the expected loss of a run of size and length ``at``, with its prediction interval.

    Parameters
    ----------
    places : ndarray, shape (n, 2)
        N and D of finished runs.
    losses : ndarray, shape (n,)
        Their losses, nats per token.
    at : ndarray, shape (2,)
        N and D of the run.
    level : float
        Level of the prediction interval (Student's t, equal noise for all runs).

    Returns
    -------
    Expected or None
        None with fewer than `MIN_FINISHED` runs, or if the runs do not separate the effects of N
        and D.
    """
    if len(losses) < MIN_FINISHED:
        return None
    varies = np.ptp(places, axis=0) > 0
    if (at != places[0])[~varies].any():
        return None
    center = np.exp(np.log(places).mean(axis=0))
    design = np.column_stack([np.ones(len(places)), (places / center)[:, varies] ** -EXPONENT])
    here = np.concatenate([[1.0], (at / center)[varies] ** -EXPONENT])
    found, _, rank, _ = np.linalg.lstsq(design, losses, rcond=None)
    if rank < design.shape[1]:
        return None
    from scipy.special import stdtrit  # 0.15 s, which most calls of `scalelab status` do not need

    freedom = len(losses) - rank
    noise = math.sqrt(float(np.sum((losses - design @ found) ** 2)) / freedom)
    leverage = float(here @ np.linalg.solve(design.T @ design, here))
    half_width = float(stdtrit(freedom, (1 + level) / 2)) * noise * math.sqrt(1 + leverage)
    middle = float(here @ found)
    return Expected(loss_nats=middle, low_nats=middle - half_width, high_nats=middle + half_width)


def surprising(runs: Sequence[RunStatus]) -> tuple[tuple[RunStatus, Expected], ...]:
    """Return the finished runs whose loss is outside the range predicted from the other runs.

    Each run is compared with the form fitted to the other finished runs. In a normal sweep the
    probability that any run is returned is about `FALSE_ALARMS`.
    """
    finished = [run for run in runs if _is_finished(run)]
    places = _places(finished)
    losses = np.asarray([run.loss_nats for run in finished], float)
    found = []
    for index, run in enumerate(finished):
        near = _nearest(places, places[index], skip=index)
        expected = expect(
            places[near], losses[near], at=places[index], level=1 - FALSE_ALARMS / len(finished)
        )
        if expected and not expected.low_nats <= losses[index] <= expected.high_nats:
            found.append((run, expected))
    return tuple(found)


def _outlook(
    run: RunStatus, finished: Sequence[RunStatus], runs_folder: str, *, level: float = LEVEL
) -> Outlook:
    fraction = run.step / (run.n_steps or 1)
    recent = loss_about(f"{runs_folder}/{run.run_id}", fraction, run.n_steps or 1)
    (at,) = _places([run])
    near = [finished[index] for index in _nearest(_places(finished), at)]
    places = _places(near)
    final = np.asarray([other.loss_nats for other in near], float)
    then = [loss_about(f"{runs_folder}/{o.run_id}", fraction, o.n_steps or 1) for o in near]
    losses = np.asarray([math.nan if loss is None else loss for loss in then], float)
    is_known = np.isfinite(losses)
    return Outlook(
        recent_loss_nats=recent,
        now=expect(places[is_known], losses[is_known], at=at, level=level),
        end=expect(places, final, at=at, level=level),
    )


def loss_about(folder: str, fraction: float, n_steps: int) -> float | None:
    """Return a run's mean training loss in the last `WINDOW` of its schedule before ``fraction``.

    None if its curve has no row there, or a row that is not finite.
    """
    run = run_files.read_run(folder)
    # The sizes are the cache key: a running curve grows, a finished one does not.
    sizes = tuple((attempt.number, attempt.metrics_bytes) for attempt in run.attempts)
    steps, losses = _curve(folder, sizes)
    at = fraction * n_steps
    inside = losses[(steps > at - max(WINDOW * n_steps, 1.0)) & (steps <= at)]
    return float(inside.mean()) if len(inside) and np.isfinite(inside).all() else None


@functools.lru_cache(maxsize=512)
def _curve(
    folder: str, sizes: tuple[tuple[int, int], ...]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return steps and losses of a run's curve, from all attempts that form it."""
    run = run_files.read_run(folder)
    segments: Mapping[int, tuple[int, int | None]] = run.curve_segments()
    if not segments and run.attempts:
        segments = {run.attempts[-1].number: (0, None)}
    steps: list[int] = []
    losses: list[float] = []
    for attempt in run.attempts:
        after, up_to = segments.get(attempt.number, (math.inf, None))
        progress = Progress(token=attempt.token)
        while True:
            rows, reached = read_new_rows(f"{attempt.folder}/metrics.jsonl", progress)
            if reached == progress:
                break
            progress = reached
            kept = [r for r in rows if r["step"] > after and (up_to is None or r["step"] <= up_to)]
            steps += [row["step"] for row in kept]
            losses += [math.nan if row["loss_nats"] is None else row["loss_nats"] for row in kept]
    return np.asarray(steps, float), np.asarray(losses, float)


def _is_finished(run: RunStatus) -> bool:
    return run.state == "done" and None not in (run.loss_nats, run.n_params, run.n_tokens)


def _places(runs: Sequence[RunStatus]) -> NDArray[np.float64]:
    """Return N and D of runs, shape (n, 2)."""
    return np.asarray([(run.n_params, run.n_tokens) for run in runs], float).reshape(-1, 2)


def _nearest(
    places: NDArray[np.float64], at: NDArray[np.float64], skip: int | None = None
) -> NDArray[np.intp]:
    """Return the positions of the runs whose N and D are nearest in ratio."""
    distance = np.abs(np.log(places / at)).sum(axis=1)
    if skip is not None:
        distance[skip] = np.inf
    return np.argsort(distance, kind="stable")[: min(NEAREST, len(places) - (skip is not None))]
