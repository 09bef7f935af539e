"""Which runs to add: what they cost, and how much narrower they make a forecast.

First come the sizes that a budget lacks (`missing_sizes`), then larger budgets. The draws of the
averaged forecaster are joint functions of N and D. If runs were added, the variance at the question
would fall by what the runs and the question share: a linear-Gaussian update on the covariance of
the draws, with the noise of a run. The losses of the new runs need not be known.
`tests/forecast/test_more_runs.py` compares it with refits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scalelab.arrays import FloatArray
from scalelab.forecast.averaged_optimum import compute_optimal_size
from scalelab.forecast.extrapolation import fitted_range
from scalelab.forecast.missing_sizes import missing_sizes
from scalelab.forecast.paths import paths_of
from scalelab.records.sweep_dir import SAME_BUDGET
from scalelab.theory.accounting import tokens_at_6nd, train_flops_6nd
from scalelab.units import format_flops, format_quantity, plural, round_significant

if TYPE_CHECKING:
    from scalelab.fit.isoflop import IsoflopFit
    from scalelab.forecast.allocate import Forecast
    from scalelab.forecast.averaged import AveragedFit
    from scalelab.records.types import Observations

HEADS = ("runs", "FLOP each", "N", "D", "compute", "then", "why")
NARROWER = "narrows the answer"
SIZES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Sizes of an added budget, relative to the compute-optimal one."""
BUDGETS = (1.0, 2.0, 5.0)
"""Added budgets, relative to the largest of the runs."""
MOST_SHARE = 0.7
"""Largest added budget, as a share of the compute that is asked about."""
SAME = 0.1
"""Relative difference of budgets below which they are one."""
RESULTS = "--results"
OF_SWEEP = re.compile(r"sweep (\S+)(?: where .*| without .*)?")
"""The source of the rows of a sweep, with its name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AddedBudget:
    """Runs of one budget that could be added.

    Attributes
    ----------
    reason : str
        Why: `NARROWER`, or what the budget lacks.
    budget, flops, share : float
        FLOPs of each run; of all its runs; these relative to the FLOPs of the finished runs.
    n_params, n_tokens : tuple of float
        N and D of its runs.
    asked : str
        The question that they would answer more narrowly, such as ``C=1e22``.
    now, after : float or None
        Half-width of the confidence interval of the loss that is asked about, relative to the loss:
        now, and as expected with these runs. None without an answer of the average.
    after_all : float or None
        As ``after``, with the runs of all rows before it too.
    sweep : tuple of str
        Words of the command that add its runs to the sweep of these budgets; none for a table.
    has_options : bool
        Whether these include the options of that sweep.
    """

    reason: str
    budget: float
    flops: float
    share: float
    n_params: tuple[float, ...]
    n_tokens: tuple[float, ...]
    asked: str
    now: float | None = None
    after: float | None = None
    after_all: float | None = None
    sweep: tuple[str, ...] = ()
    has_options: bool = False

    @property
    def is_repair(self) -> bool:
        """True if a budget of the runs lacks these sizes."""
        return self.reason != NARROWER

    @property
    def command(self) -> tuple[str, ...]:
        """Words of the command that plans them."""
        return (
            *("scalelab", "sweep", "isoflop", "--budgets", _short(self.budget)),
            *("--n-params", ",".join(format_quantity(size) for size in self.n_params)),
            *self.sweep,
            "--dry-run",
        )

    def cells(self) -> tuple[str, ...]:
        """Return the row of a table with the heads `HEADS`."""
        low, high = (format_quantity(end) for end in (self.n_params[0], self.n_params[-1]))
        most, least = (format_quantity(end) for end in (self.n_tokens[0], self.n_tokens[-1]))
        share = format_quantity(100 * self.share, 2)
        return (
            str(len(self.n_params)),
            format_flops(self.budget),
            f"{low} to {high}",
            f"{most} to {least}",
            f"+{share} %",
            "" if self.after is None else f"± {100 * self.after:.2g} %",
            self.reason,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the runs as in the JSON of ``scalelab fit``."""
        return {
            "reason": self.reason,
            "budget": self.budget,
            "flops": self.flops,
            "share_of_spent": self.share,
            "n_params": list(self.n_params),
            "n_tokens": list(self.n_tokens),
            "half_width_now": self.now,
            "half_width_after": self.after,
            "half_width_after_all": self.after_all,
            "command": list(self.command),
        }


def budgets_to_add(
    found: AveragedFit | None, rows: Observations, isoflop: IsoflopFit, forecast: Forecast | None
) -> tuple[AddedBudget, ...]:
    """Return runs to add: the sizes that budgets lack, then budgets, the cheapest first.

    Parameters
    ----------
    found : AveragedFit or None
        None if it does not determine an optimum around which to choose sizes: no larger budgets.
    rows : Observations
        The finished runs.
    isoflop : IsoflopFit
        Approach 2 on them.
    forecast : Forecast or None
        The answer to narrow. Without N, D and an interval there are no larger budgets.
    """
    if not rows.is_sized:
        return ()
    lacks = missing_sizes(isoflop, None if found is None else partial(compute_optimal_size, found))
    wanted = [(each.reason, each.budget, each.n_params) for each in lacks]
    is_open = forecast is not None and 0 < forecast.low < forecast.high < math.inf
    n, d = (forecast.n_params, forecast.n_tokens) if forecast is not None else (None, None)
    if found is not None and n is not None and d is not None and is_open:
        asked = train_flops_6nd(n.value, d.value)
        budgets = [round_significant(by * fitted_range(rows).flops, 2) for by in BUDGETS]
        budgets = [each for each in budgets if each <= MOST_SHARE * asked] or budgets[:1]
        for budget in budgets:
            if not any(math.isclose(budget, each.budget, rel_tol=SAME) for each in lacks):
                best = compute_optimal_size(found, budget)
                wanted.append((NARROWER, budget, tuple(best * by for by in SIZES)))
    of = OF_SWEEP.fullmatch(rows.source)
    # A budget that was inferred is no budget of the sweep.
    sweep = ("--name", of[1], "--extend") if of and not isoflop.is_grouped else ()
    spent = float(train_flops_6nd(rows.n_params, rows.n_tokens).sum())
    out = []
    for reason, budget, sizes in wanted:
        tokens = [float(tokens_at_6nd(budget, size)) for size in sizes]
        flops = len(sizes) * budget
        out.append(
            AddedBudget(
                reason=reason,
                budget=budget,
                flops=flops,
                share=flops / spent,
                n_params=sizes,
                n_tokens=tuple(tokens),
                asked="" if forecast is None else forecast.asked,
                sweep=sweep,
            )
        )
    if found is None or forecast is None or n is None or d is None or not is_open or not out:
        return tuple(out)
    return _with_intervals(out, found, forecast, (n.value, d.value))


def _with_intervals(
    added: list[AddedBudget], found: AveragedFit, forecast: Forecast, at: tuple[float, float]
) -> tuple[AddedBudget, ...]:
    """Return the runs with the half-width of the forecast at N and D, now and with them."""
    points = {
        "n_params": np.array([*(n for each in added for n in each.n_params), at[0]]),
        "n_tokens": np.array([*(d for each in added for d in each.n_tokens), at[1]]),
    }
    shared = np.cov(paths_of(found).draws(points), rowvar=False)
    noise = _noise_variance(found)
    now = math.log(forecast.high / forecast.low) / 2
    out, start = [], 0
    for each in added:
        end = start + len(each.n_params)
        after, after_all = (
            now * math.sqrt(_share_left(shared, np.arange(first, end), noise))
            for first in (start, 0)
        )
        out.append(replace(each, now=now, after=after, after_all=after_all))
        start = end
    return tuple(out)


def caption_of(budgets: tuple[AddedBudget, ...], level: float) -> str:
    """Return what the table of `AddedBudget.cells` of one or more budgets says."""
    first = budgets[0]
    asked = (
        ""
        if first.now is None
        else f"the {100 * level:g} % confidence interval of the loss at {first.asked} is "
        f"± {100 * first.now:.2g} % now (then: with the runs of that row alone). "
    )
    return f"Runs to add: {asked}Compute: relative to that of your runs."


def to_plan(budgets: tuple[AddedBudget, ...]) -> tuple[AddedBudget, ...]:
    """Return what to plan first: all sizes that budgets lack, or else the cheapest budget."""
    return tuple(each for each in budgets if each.is_repair) or budgets[:1]


def plans(budgets: tuple[AddedBudget, ...]) -> tuple[tuple[str, tuple[AddedBudget, ...]], ...]:
    """Return what to plan first, then the row that narrows the answer most; each with its words.

    The words say how many runs and FLOPs that is in total, and what the commands do.
    """
    first = to_plan(budgets)
    narrowest = min(budgets, key=lambda each: math.inf if each.after is None else each.after)
    many = len(first) > 1
    which = f"the first {len(first)} rows" if many else "the first row"
    start = f"These commands plan {which}" if many else f"This command plans {which}"
    end = f"Without --dry-run {'they also start' if many else 'it also starts'} them."
    if first[0].sweep and not first[0].has_options:
        end += " Add the other options of your sweep, such as --data."
    together = f"{start}: {total_words(first)}"
    if many and first[-1].now is not None and first[-1].after_all is not None:
        together += f"; with all of them ± {100 * first[-1].after_all:.2g} %"
    found = [(f"{together}. {end}", first)]
    if narrowest.after is not None and narrowest not in first:
        words = "This command plans the row that narrows the answer most: "
        words += f"{total_words((narrowest,))}."
        found.append((words, (narrowest,)))
    return tuple(found)


def total_words(rows: tuple[AddedBudget, ...]) -> str:
    """Return the runs and FLOPs of rows together, such as ``8 runs, 4.15e20 FLOP in all``."""
    runs = plural(sum(len(each.n_params) for each in rows), "run")
    share = format_quantity(100 * sum(each.share for each in rows), 2)
    flops = format_flops(sum(each.flops for each in rows))
    return f"{runs}, {flops} FLOP in all, +{share} % of your compute"


def of_sweep(
    added: Sequence[AddedBudget],
    runs: Sequence[str],
    stored: Callable[[str], tuple[str, ...] | None],
) -> tuple[AddedBudget, ...]:
    """Return the runs of a sweep with its own options and its results folder in the command.

    Parameters
    ----------
    added : sequence of AddedBudget
    runs : sequence of str
        Options that select the fitted rows, such as ``--results``.
    stored : callable
        The options of a stored sweep by name; None if they are not known.
    """
    folder = () if RESULTS not in runs else (RESULTS, runs[runs.index(RESULTS) + 1])

    def told(each: AddedBudget) -> AddedBudget:
        if not each.sweep:
            return each
        options = stored(each.sweep[1])
        words = (*each.sweep, *(options or ()), *folder)
        return replace(each, sweep=words, has_options=options is not None)

    return tuple(map(told, added))


def _short(budget: float) -> str:
    """Return a budget in few digits: an extended sweep takes them for its own budget."""
    texts = (f"{budget:.{digits}g}" for digits in range(1, 17))
    text = next(t for t in texts if math.isclose(float(t), budget, rel_tol=SAME_BUDGET))
    return format_flops(budget) if float(format_flops(budget)) == float(text) else text


def _share_left(shared: FloatArray, runs: NDArray[np.intp], noise: float) -> float:
    """Return the variance of the last point with these runs, relative to that without them."""
    across = shared[runs, -1]
    own = shared[np.ix_(runs, runs)] + noise * np.eye(len(runs))
    gain = across @ np.linalg.solve(own, across)
    return float(np.clip(1 - gain / shared[-1, -1], 0.0, 1.0))


def _noise_variance(found: AveragedFit) -> float:
    """Return the expected variance of the log loss of one run at the largest compute."""
    own = sum(each.weight * (1 + each.system.share) * each.noise**2 for each in found.components)
    return own * float(found.scale_weights @ found.scales**2)
