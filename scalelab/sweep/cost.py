"""Cost of a plan before it runs: time, money and energy, here and on other hardware.

A `Speed` comes from a calibration of this machine, or from a stated utilisation of a named device.
Time is estimated run by run; like the launcher, the estimate starts the longest runs first.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scalelab.sweep.batched_runs import choose_batched_runs
from scalelab.sweep.evaluation import evaluated_tokens
from scalelab.sweep.execution import step_kind
from scalelab.sweep.plan import Plan, longest_first
from scalelab.sweep.run_size import planned_flops, run_size
from scalelab.sweep.run_spec import RunSpec
from scalelab.sweep.trunk import shared_steps
from scalelab.theory.accounting import TRAIN_TO_FORWARD

RUN_OVERHEAD_S = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeedPoint:
    """Measured speed of one worker at one shape and batch.

    Attributes
    ----------
    d_model, n_layers, seq_len, batch_seqs : int
        The step that was timed.
    experts : tuple of int
        `ModelShape.experts` of its model.
    kind : str
        Of the step, from `scalelab.sweep.execution.step_kind`.
    flops_per_s : float
        Training FLOP/s, exact convention.
    eval_flops_per_s : float
        Forward FLOP/s of an evaluation.
    batching_gains : tuple of (int, float)
        Number of batched runs, and their speed relative to one run; empty if not measured.
    """

    d_model: int
    n_layers: int
    seq_len: int
    batch_seqs: int
    flops_per_s: float
    eval_flops_per_s: float
    batching_gains: tuple[tuple[int, float], ...] = ()
    experts: tuple[int, ...] = ()
    kind: str = ""

    def matches(self, spec: RunSpec) -> bool:
        """Return whether this is a measurement of exactly the step of a run."""
        sizes = (self.d_model, self.n_layers, self.seq_len, self.batch_seqs, self.experts)
        return (*sizes, self.kind) == step_key(spec)


def step_key(spec: RunSpec) -> tuple[Any, ...]:
    """Return what determines the speed of a run's step on one machine."""
    shape = spec.shape
    sizes = (shape.d_model, shape.n_layers, spec.seq_len, spec.batch_seqs, shape.experts)
    return (*sizes, step_kind(spec))


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """Training speed of one worker, and the number of workers.

    Attributes
    ----------
    device : str
        Description.
    n_workers : int
        Runs trained at once.
    points : tuple of SpeedPoint
        General measurements, one per width, by increasing width.
    exact : tuple of SpeedPoint
        Measurements of the plan's own steps.
    usd_per_worker_hour : float
        Price of one worker.
    watts_per_worker : float or None
        Power of one worker, if known.
    is_measured : bool
        Whether the points were timed on this machine with this trainer.
    note : str
        Source of the figures.
    max_batched_runs : int
        Maximum number of runs in a step; 0 for as many as are faster.
    is_program : bool
        Whether a user's program trains; its speed is then ``tokens_per_s`` or ``token_rates``.
    tokens_per_s : float
        Training tokens per second of every run of a program; 0 if it depends on the run.
    token_rates : tuple of (float, float)
        FLOPs per token and training tokens per second of runs of a program, smallest first.
    n_devices : Mapping[str, int]
        Devices of each run by run_id, where runs have different numbers of them. Speed, price and
        power are then those of one device.
    """

    device: str
    n_workers: int
    points: tuple[SpeedPoint, ...]
    exact: tuple[SpeedPoint, ...] = ()
    usd_per_worker_hour: float
    watts_per_worker: float | None
    is_measured: bool
    note: str
    max_batched_runs: int = 0
    is_program: bool = False
    tokens_per_s: float = 0.0
    token_rates: tuple[tuple[float, float], ...] = ()
    n_devices: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_known(self) -> bool:
        """Whether there is an estimate; only the time of a program can be unknown."""
        return bool(self.points or self.tokens_per_s or self.token_rates)

    def token_rate(self, spec: RunSpec) -> float:
        """Return training tokens per second of a program's run; 0 if unknown.

        Interpolates log-linearly between the sizes that were measured; beyond them the FLOP/s of
        the nearest one are kept.
        """
        if self.tokens_per_s or not self.token_rates:
            return self.tokens_per_s
        wanted = run_size(spec).planned_per_token
        for (low, low_rate), (high, high_rate) in itertools.pairwise(self.token_rates):
            if low <= wanted <= high:
                share = math.log(wanted / low) / math.log(high / low)
                return float(low_rate ** (1 - share) * high_rate**share)
        size, rate = self.token_rates[0 if wanted <= self.token_rates[0][0] else -1]
        return rate * size / wanted

    def devices_of(self, run_id: str) -> int:
        """Return the factor of a run's speed and price: 1, or its own number of devices."""
        return self.n_devices.get(run_id, 1)

    def at(self, spec: RunSpec) -> tuple[float, float]:
        """Return training and evaluation FLOP/s for a run's step.

        Uses the measurement of the step if there is one. Otherwise interpolates the general points
        by width, log-linear between them and constant beyond them.
        """
        own = self._own_point(spec)
        if own is not None:
            return own.flops_per_s, own.eval_flops_per_s
        d_model = min(max(spec.shape.d_model, self.points[0].d_model), self.points[-1].d_model)
        for left, right in itertools.pairwise(self.points):
            if left.d_model <= d_model <= right.d_model:
                share = math.log(d_model / left.d_model) / math.log(right.d_model / left.d_model)
                return (
                    left.flops_per_s ** (1 - share) * right.flops_per_s**share,
                    left.eval_flops_per_s ** (1 - share) * right.eval_flops_per_s**share,
                )
        return self.points[0].flops_per_s, self.points[0].eval_flops_per_s

    def batching_gains(self, spec: RunSpec) -> dict[int, float]:
        """Return the gains of batching a run's step, by size; empty if not measured."""
        own = self._own_point(spec)
        return {} if own is None else dict(own.batching_gains)

    def _own_point(self, spec: RunSpec) -> SpeedPoint | None:
        return next((point for point in self.exact if point.matches(spec)), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanCost:
    """Time, money and energy of a plan on one kind of worker.

    Attributes
    ----------
    speed : Speed
        Speed that the estimate uses.
    run_seconds : tuple of float
        Training and evaluation time of each row, in the plan's order.
    wall_s : float
        Time from the first start to the last end, longest runs first.
    worker_hours : float
        Sum over runs.
    usd : float
        Worker-hours at the worker's price, or device-hours at that of a device.
    kwh : float or None
        Energy, if the power is known.
    """

    speed: Speed
    run_seconds: tuple[float, ...]
    wall_s: float
    worker_hours: float
    usd: float
    kwh: float | None


def plan_cost(
    plan: Plan,
    speed: Speed,
    *,
    skip: frozenset[str] = frozenset(),
    largest: frozenset[str] = frozenset(),
) -> PlanCost:
    """Return the cost of a plan at a speed.

    ``skip`` has finished run_ids, which cost nothing, and ``largest`` those that start after all
    others have ended.
    """
    specs = [row.spec for row in plan.rows]
    n_eval = {plan.data.fingerprint: plan.data.n_eval_tokens}
    seconds = seconds_by_id(specs, n_eval, speed, skip=skip)
    # The longest branch of a trunk waits for the whole trunk, even with many workers.
    unfinished = [spec for spec in specs if seconds[spec.run_id]]
    alone = [spec_seconds(spec, plan.data.n_eval_tokens, speed) for spec in unfinished]
    in_order = [row.spec.run_id for row in longest_first(plan.rows)]
    parts = ([r for r in in_order if r not in largest], [r for r in in_order if r in largest])
    hours = sum(seconds.values()) / 3600
    device_hours = sum(each * speed.devices_of(r) for r, each in seconds.items()) / 3600
    return PlanCost(
        speed=speed,
        run_seconds=tuple(seconds[spec.run_id] for spec in specs),
        wall_s=max(
            sum(makespan([seconds[r] for r in part], speed.n_workers) for part in parts),
            *alone,
            0.0,
        ),
        worker_hours=hours,
        usd=device_hours * speed.usd_per_worker_hour,
        kwh=None
        if speed.watts_per_worker is None
        else device_hours * speed.watts_per_worker / 1000,
    )


def seconds_by_id(
    specs: Sequence[RunSpec],
    n_eval_tokens: Mapping[str, int],
    speed: Speed,
    *,
    skip: frozenset[str] = frozenset(),
) -> dict[str, float]:
    """Return a worker's seconds for each run of a sweep; shared work counts once.

    Parameters
    ----------
    specs : sequence of RunSpec
        All runs of the sweep. A branch of a trunk costs only the steps that no earlier branch
        takes, and batched runs cost less each.
    n_eval_tokens : Mapping
        Held-out tokens by the fingerprint of the data; 0 for the data of a program.
    speed : Speed
    skip : frozenset of str
        run_ids of finished runs, which cost nothing.
    """
    shared = shared_steps(specs)
    batched = choose_batched_runs(
        [s for s in specs if s.run_id not in skip],
        speed.batching_gains,
        speed.n_workers,
        most=speed.max_batched_runs,
    )
    return {
        spec.run_id: 0.0
        if spec.run_id in skip
        else spec_seconds(
            spec,
            n_eval_tokens.get(spec.data_fingerprint, 0),
            speed,
            n_shared=shared[spec.run_id],
            gain=batched[spec.run_id].gain,
        )
        for spec in specs
    }


def spec_seconds(
    spec: RunSpec, n_eval_tokens: int, speed: Speed, *, n_shared: int = 0, gain: float = 1.0
) -> float:
    """Return a worker's seconds for one run: start, training and evaluations.

    The first ``n_shared`` steps are taken by another branch of the trunk and cost nothing. Batched
    runs train ``gain`` times as fast. 0 if the speed of a program is unknown.
    """
    if speed.is_program:
        rate = speed.token_rate(spec)
        return spec.n_tokens / rate + RUN_OVERHEAD_S if rate else 0.0
    flops = planned_flops(spec)
    n_evaluated = evaluated_tokens(spec, n_eval_tokens)
    evaluation = flops / spec.n_tokens / TRAIN_TO_FORWARD * n_evaluated
    n_devices = speed.devices_of(spec.run_id) if speed.n_devices else 1
    train_rate, eval_rate = (n_devices * rate for rate in speed.at(spec))
    own = flops * (1 - n_shared / spec.n_steps)
    return own / (train_rate * gain) + evaluation / eval_rate + RUN_OVERHEAD_S


def makespan(seconds: Sequence[float], n_workers: int) -> float:
    """Return the time until all jobs end if each, in order, goes to the first free worker."""
    free_at = [0.0] * max(n_workers, 1)
    for duration in seconds:
        heapq.heapreplace(free_at, free_at[0] + duration)
    return max(free_at)
