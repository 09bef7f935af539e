"""The next batch of an adaptive sweep.

The run pool is the plan of a grid sweep: all runs that could be chosen, with their exact FLOPs. The
posterior uses all finished runs of the results folder on the same text, so an adaptive sweep can
continue any other sweep. Each batch is added to the sweep; the same command resumes it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.errors import UsageError
from scalelab.forecast.adaptive import BUDGET_SHARES, Round, Target, next_round
from scalelab.forecast.modes import FormPosterior
from scalelab.launch.proposal import Proposal
from scalelab.records.metric import HELDOUT, Metric
from scalelab.records.run_metric import check_in_training, final_metric, fingerprints
from scalelab.records.sweep_dir import Results
from scalelab.sweep.cost import plan_cost
from scalelab.sweep.planned_run import PlannedRun
from scalelab.sweep.program import ProgramSpec
from scalelab.sweep.run_size import planned_flops
from scalelab.theory.accounting import DEFAULT_PARAM_CONVENTION
from scalelab.theory.epochs import MAX_EPOCHS
from scalelab.units import format_flops, plural

KIND = "adaptive"


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """The finished runs on one text, and the runs that this sweep has started.

    Attributes
    ----------
    n_params, n_tokens, losses : tuple of float
        N, D and loss of the finished runs of all sweeps in the results folder.
    run_ids : frozenset of str
        Runs that must not be chosen again: finished, diverged, or part of this sweep.
    spent : float
        FLOPs of the runs of this sweep, finished or not.
    """

    n_params: tuple[float, ...]
    n_tokens: tuple[float, ...]
    losses: tuple[float, ...]
    run_ids: frozenset[str]
    spent: float


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SweepRound:
    """One round of an adaptive sweep, with the batch to launch.

    Attributes
    ----------
    round : Round
        Posterior and proposed runs.
    proposal : Proposal
        The batch to launch now; its plan is empty if the sweep ends.
    n_known : int
        Finished runs that the posterior is conditioned on.
    n_candidates : int
        Runs of the pool that can still be chosen.
    spent, budget : float
        FLOPs of this sweep.
    stop : str or None
        Why the sweep ends: ``narrow`` or ``spent``; None while it continues.
    metric : Metric
        Which loss is predicted.
    """

    round: Round
    proposal: Proposal
    n_known: int
    n_candidates: int
    spent: float
    budget: float
    stop: str | None
    metric: Metric = HELDOUT


def next_batch(
    pool: Proposal,
    results: Results,
    target: Target,
    *,
    budget: float,
    until_width: float | None = None,
    seed: int = 0,
    before: Sequence[FormPosterior] = (),
    metric: Metric = HELDOUT,
) -> SweepRound:
    """Return the next batch of an adaptive sweep.

    Parameters
    ----------
    pool : Proposal
        The grid of all runs that could be chosen.
    results : Results
    target : Target
    budget : float
        FLOPs that this sweep may use in total.
    until_width : float, optional
        Stop once the target's 90 % confidence interval, divided by its loss, is this narrow.
    seed : int
        Seed of the random starts of the fits.
    before : sequence of FormPosterior
        Posteriors of the previous round.
    metric : Metric
        Which loss is predicted.

    Raises
    ------
    UsageError
        If the runs of the pool do not evaluate the metric, the budget is below the cheapest run of
        the pool, or all its runs are finished.
    """
    check_in_training(metric, (row.spec for row in pool.plan.rows))
    known = known_runs(results, pool, metric)
    most_epochs = np.inf if pool.sweep.allow_repeats else MAX_EPOCHS
    free = [
        row
        for row in pool.plan.rows
        if row.spec.run_id not in known.run_ids and (pool.plan.epochs(row) or 0.0) <= most_epochs
    ]
    flops = np.array([row.flops for row in free])
    if not known.spent and not free:
        pool.plan.refuse_repeats(allow_repeats=pool.sweep.allow_repeats)
        raise UsageError(
            f"a pool in which all {plural(len(pool.plan.rows), 'run')} are finished",
            "a pool with runs that are not finished",
            "Widen --n-params or --n-tokens, or fit the finished runs with `scalelab fit`.",
        )
    if not known.spent and flops.min() > budget:
        raise UsageError(
            f"a budget of {format_flops(budget)} FLOPs, below the cheapest run",
            f"at least {format_flops(float(flops.min()))} FLOPs",
            f"Use --budget {1.01 * flops.min():.2e}, or smaller --n-params and --n-tokens.",
        )
    left = budget - known.spent
    ceiling = next(
        (s * budget for s in BUDGET_SHARES if s * budget > known.spent * (1 + 1e-9)), budget
    )
    made, could = _columns(known, free, pool.plan.data.n_train_tokens or np.inf)
    found = next_round(
        made,
        np.array(known.losses),
        could,
        flops,
        target,
        left=left,
        now=ceiling - known.spent,
        rng=np.random.default_rng(seed),
        before=before,
    )
    stop = None
    if until_width is not None and known.losses and found.width <= until_width:
        stop = "narrow"
    elif not found.batch:
        stop = "spent"
    rows = () if stop else tuple(free[choice.position] for choice in found.batch)
    return SweepRound(
        round=found,
        proposal=of_rows(pool, rows),
        n_known=len(known.losses),
        n_candidates=len(free),
        spent=known.spent,
        budget=budget,
        stop=stop,
        metric=metric,
    )


def of_rows(pool: Proposal, rows: Sequence[PlannedRun]) -> Proposal:
    """Return a proposal of some rows of a run pool."""
    plan = dataclasses.replace(pool.plan, kind=KIND, rows=tuple(rows))
    return dataclasses.replace(
        pool,
        plan=plan,
        cost=plan_cost(plan, pool.cost.speed, skip=pool.finished),
        elsewhere=tuple(plan_cost(plan, cost.speed, skip=pool.finished) for cost in pool.elsewhere),
    )


def known_runs(results: Results, pool: Proposal, metric: Metric = HELDOUT) -> Known:
    """Return the finished runs of the results folder on the pool's text and evaluation sets."""
    sizes: list[float] = []
    lengths: list[float] = []
    losses: list[float] = []
    finished: set[str] = set()
    spent = 0.0
    text = (pool.plan.data.fingerprint, pool.plan.data.eval_fingerprint)
    sets = fingerprints(pool.plan.rows[0].spec, metric)
    programs = {_program_key(row.spec.program) for row in pool.plan.rows}
    for name in results.sweep_names():
        for run_id in results.load_plan(name).run_ids:
            is_ours = name == pool.plan.name
            if run_id in finished and not is_ours:
                continue
            run = results.run(run_id)
            spec = run.read_spec()
            if (spec.data_fingerprint, spec.eval_fingerprint) != text:
                continue
            if _program_key(spec.program) not in programs or fingerprints(spec, metric) != sets:
                continue
            attempt = run.accepted()
            record = None if attempt is None else attempt.read_record()
            loss = final_metric(run, metric)
            if (
                record is not None
                and run_id not in finished
                and loss is not None
                and math.isfinite(loss)
            ):
                counts = record.n_params
                sizes.append(float(counts.get("active", counts[DEFAULT_PARAM_CONVENTION])))
                lengths.append(float(record.n_tokens))
                losses.append(loss)
            if record is not None or is_ours:
                finished.add(run_id)
            if is_ours:
                spent += planned_flops(spec)
    return Known(
        n_params=tuple(sizes),
        n_tokens=tuple(lengths),
        losses=tuple(losses),
        run_ids=frozenset(finished),
        spent=spent,
    )


def _program_key(program: ProgramSpec | None) -> ProgramSpec | None:
    """Return a program without its size: runs of other programs are not comparable."""
    if program is None:
        return None
    return dataclasses.replace(program, size=(), n_params=0, flops_per_token=0.0)


def _columns(
    known: Known, free: Sequence[PlannedRun], unique: float
) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
    """Return the columns of the finished runs and of the runs that can be chosen.

    The column ``unique_tokens`` is present only if some run repeats text.
    """
    out = []
    for n_params, n_tokens in (
        (known.n_params, known.n_tokens),
        ([row.n_params_active for row in free], [row.spec.n_tokens for row in free]),
    ):
        D = np.array(n_tokens, dtype=np.float64)
        out.append(
            {
                "n_params": np.array(n_params, dtype=np.float64),
                "n_tokens": D,
                "unique_tokens": np.minimum(D, unique),
            }
        )
    if not any((columns["n_tokens"] > columns["unique_tokens"]).any() for columns in out):
        for columns in out:
            del columns["unique_tokens"]
    return out[0], out[1]
