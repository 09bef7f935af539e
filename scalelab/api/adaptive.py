"""The verb `adapt`: choose and train runs batch by batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalelab.api import sweeps
from scalelab.api.data import DEFAULT_RESULTS
from scalelab.api.notebook_view import NotebookView
from scalelab.errors import UsageError
from scalelab.units import format_flops, parse_quantity, plural

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from scalelab.api.sweep_reports import LaunchReport, Proposal
    from scalelab.forecast.adaptive import Target
    from scalelab.launch.adaptive import SweepRound
    from scalelab.launch.base import Watcher
    from scalelab.launch.grid_design import DesignGain
    from scalelab.sweep.shape_rule import ShapeRule
    from scalelab.sweep.spec import SweepSpec

LARGEST_SHARE = 0.25
"""Share of the budget that the largest compute-optimal run of a default pool costs."""
POOL_SIZES, POOL_LENGTHS, POOL_SPAN = 10, 12, 100.0
MIN_SIZES = 3
LEAST_SPAN = 2.0
"""Smallest ratio of the largest to the smallest size of a default pool."""
DESIGNS = ("plain", "optimal")
ENDS = {
    "narrow": "the interval is as narrow as requested",
    "spent": "no affordable run would narrow the interval",
    "planned": "dry run, nothing launched",
    "interrupted": "interrupted",
    "failed": "some runs failed",
}


class ProgressCallbacks:
    """Callbacks of `adapt`. These do nothing: derive a class to show progress or to ask."""

    def on_batch(self, batch: SweepRound, *, is_dry_run: bool) -> None:
        """Run before a batch is launched, and at the end; an exception stops the sweep."""

    def on_launch(self, start: Callable[[Watcher], LaunchReport]) -> LaunchReport:
        """Call ``start`` with a function that receives each `LaunchView`; return its report."""
        return start(sweeps.ignore)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class AdaptReport(NotebookView):
    """How an adaptive sweep ended.

    Attributes
    ----------
    name : str
        Name of the sweep.
    status : str
        ``narrow`` or ``spent`` if it is complete, ``planned`` for a dry run, ``interrupted``,
        ``failed``.
    last : SweepRound
        The state at the end.
    launches : tuple of LaunchReport
    """

    name: str
    status: str
    last: SweepRound
    launches: tuple[LaunchReport, ...]

    def _lines(self) -> Iterator[str]:
        last = self.last
        yield f"AdaptReport {self.name}: {ENDS[self.status]}"
        yield (
            f"{plural(last.n_known, 'finished run')}; {format_flops(last.spent)} of "
            f"{format_flops(last.budget)} FLOPs spent; relative width of the target's interval "
            f"{100 * last.round.width:.2f} %"
        )
        yield "see .last, .to_frame(), .plot()"

    def to_frame(self) -> pd.DataFrame:
        """Return the predicted loss of each target with its interval."""
        import pandas as pd

        found = self.last.round
        return pd.DataFrame(
            {**found.target, "loss_nats": found.loss, "low": found.low, "high": found.high}
        )

    def plot(self) -> Figure:
        """Return the predicted loss of each target with its interval."""
        from scalelab.report.plots import interval_figure

        found = self.last.round
        rows = [
            (f"target {i + 1}", float(found.loss[i]), float(found.low[i]), float(found.high[i]))
            for i in range(len(found.loss))
        ]
        return interval_figure(rows, self.last.metric.axis)


def parse_target(text: str) -> Target:
    """Return the target that ``C=1e24`` or ``N=7B,D=2T`` names.

    Raises
    ------
    UsageError
        If it names neither a compute budget nor N and D.
    """
    import numpy as np

    from scalelab.forecast.adaptive import Target
    from scalelab.forecast.allocate import parse_request

    values = parse_request(text, option="--target").values
    if set(values) == {"flops"}:
        return Target(flops=values["flops"])
    if {"n_params", "n_tokens"} <= set(values) <= {"n_params", "n_tokens", "flops"}:
        return Target(columns={key: np.array([values[key]]) for key in ("n_params", "n_tokens")})
    raise UsageError(
        f"--target {text!r}", "C, or N and D", "Write --target C=1e24 or --target N=7B,D=2T."
    )


def default_axes(
    budget: float, *, tokenizer: str, rule: ShapeRule | None = None
) -> tuple[str, str]:
    """Return ranges of N and D for a run pool that suits the budget, of shapes that the rule has.

    Raises
    ------
    UsageError
        If the budget is too small for several sizes.
    """
    from scalelab.sweep.isoflop_sizes import expected_tokens_per_param
    from scalelab.sweep.shape_rule import DEFAULT_RULE
    from scalelab.sweep.shapes import SMALLEST_VOCABULARY, has_sizes, size_limits
    from scalelab.theory.accounting import tokens_at_6nd

    rule = rule or DEFAULT_RULE
    ratio = expected_tokens_per_param(tokenizer)
    largest = math.sqrt(tokens_at_6nd(LARGEST_SHARE * budget, ratio))
    smallest, top = 1.05 * size_limits(SMALLEST_VOCABULARY, rule)[0], 2 * largest
    low = max(top / POOL_SPAN, smallest)
    if top < LEAST_SPAN * low:
        raise UsageError(
            f"a budget of {format_flops(budget)} FLOPs, too small for a range of sizes",
            "a budget that can train several sizes",
            "Raise --budget, or give --n-params and --n-tokens.",
        )
    n_sizes = max(round(POOL_SIZES * math.log(top / low) / math.log(POOL_SPAN)), MIN_SIZES)
    low, top = (float(f"{n_params:.2g}") for n_params in (low, top))
    # Heads of a fixed size or a fixed aspect leave few shapes.
    while n_sizes > MIN_SIZES and not has_sizes(low, top, n_sizes, SMALLEST_VOCABULARY, rule):
        n_sizes -= 1
    longest = 2 * ratio * largest
    return (
        f"{low:g}..{top:g}:{n_sizes}",
        f"{longest / POOL_SPAN:.2g}..{longest:.2g}:{POOL_LENGTHS}",
    )


def adapt(
    sweep: SweepSpec | Mapping[str, Any],
    target: Target | str,
    *,
    budget: float | str,
    callbacks: ProgressCallbacks | None = None,
    until_width: float | None = None,
    seed: int = 0,
    results: str | Path = DEFAULT_RESULTS,
    device: str | None = None,
    workers: int | None = None,
    is_dry_run: bool = False,
    allow_source_change: bool = False,
    metric: str | None = None,
) -> AdaptReport:
    """Choose runs of a grid batch by batch and train them, until the target is predicted well.

    Parameters
    ----------
    sweep : SweepSpec or Mapping
        Of kind ``grid``: the run pool. The launched sweep has its name and the chosen runs.
        Finished runs of other sweeps on the same text are used at no cost.
    target : Target or str
        What to predict, for example ``"C=1e24"`` or ``"N=7B,D=2T"``.
    budget : float or str
        Most FLOPs that this sweep may cost in total, exact convention.
    callbacks : ProgressCallbacks, optional
        Called for each batch and each launch.
    until_width : float, optional
        Stop when the target's 90 % confidence interval, divided by its loss, is this narrow.
    seed : int
        Seed of the random starts of the fits.
    results, device, workers, is_dry_run, allow_source_change
        As in `propose`.
    metric : str, optional
        Which loss is predicted: an evaluation set of these runs, such as ``"code"`` or
        ``"bpb:code"``; default: the held-out loss.

    Raises
    ------
    UsageError
        If the budget buys no run of the grid.
    """
    from scalelab.launch.adaptive import next_batch
    from scalelab.records.metric import HELDOUT, parse_metric
    from scalelab.records.sweep_dir import Results

    callbacks = callbacks or ProgressCallbacks()
    wanted = HELDOUT if metric is None else parse_metric(metric)
    target = parse_target(target) if isinstance(target, str) else target
    folder = Results(Path(results))
    pool = sweeps.propose(
        sweep,
        results=results,
        device=device,
        workers=workers,
        is_dry_run=is_dry_run,
        allow_source_change=allow_source_change,
    )
    pool.sweep.require_one_mixture("adaptive sweep")
    launches: list[LaunchReport] = []
    found = None
    while True:
        found = next_batch(
            pool,
            folder,
            target,
            budget=parse_quantity(budget, what="budget"),
            until_width=until_width,
            seed=seed,
            before=() if found is None else found.round.posterior.forms,
            metric=wanted,
        )
        callbacks.on_batch(found, is_dry_run=is_dry_run)
        status = "planned" if is_dry_run else found.stop
        if status is None:
            launches.append(_launched(found, results, callbacks))
            if launches[-1].is_interrupted:
                status = "interrupted"
            elif launches[-1].count("failed"):
                status = "failed"
        if status is not None:
            return AdaptReport(
                name=pool.plan.name, status=status, last=found, launches=tuple(launches)
            )


def _launched(batch: SweepRound, results: str | Path, callbacks: ProgressCallbacks) -> LaunchReport:
    return callbacks.on_launch(
        lambda watch: sweeps.launch(batch.proposal, results=results, watch=watch)
    )


def propose_design(
    sweep: SweepSpec, design: str, **options: Any
) -> tuple[Proposal, DesignGain | None]:
    """Return the proposal of a sweep, with an optimal grid if ``design`` is ``optimal``.

    Parameters
    ----------
    sweep : SweepSpec
        Of kind ``isoflop`` for the design ``optimal``.
    design : str
        ``plain`` or ``optimal``.
    options
        As in `propose`.

    Raises
    ------
    UsageError
        If the design has another name.
    """
    from scalelab.api.sweep_reports import Proposal

    if design not in DESIGNS:
        raise UsageError(f"--design {design}", " or ".join(DESIGNS), "Write --design optimal.")
    if design != "plain" and sweep.model.shape_list:
        raise UsageError(
            f"--design {design} with --shape-list",
            "--design plain, because an optimal grid chooses its own sizes",
            "Remove --design or --shape-list.",
        )
    if design != "plain" and sweep.n_params:
        raise UsageError(
            f"--design {design} with --n-params",
            "--design plain, because an optimal grid chooses its own sizes",
            "Remove --design or --n-params.",
        )
    if design != "plain" and sweep.program is not None and sweep.program.size.by == "table":
        raise UsageError(
            f"--design {design} with a table of sizes",
            "--design plain, because an optimal grid needs sizes between those of the table",
            "Remove --design.",
        )
    plain = sweeps.propose(sweep, **options)
    if design == "plain":
        return plain, None
    from scalelab.launch.grid_design import optimal_grid, pool_of

    proposal, gain = optimal_grid(plain, sweeps.propose(pool_of(sweep), **options))
    return Proposal.of(proposal), gain
