"""Which runs to add: what another budget costs, and how much narrower it makes a forecast.

The draws of the averaged forecaster are joint functions of N and D. If runs were added, the
variance at the question would fall by what the runs and the question share: a linear-Gaussian
update on the covariance of the draws, with the noise of a run. The losses of the new runs need not
be known. `tests/forecast/test_more_runs.py` compares it with refits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scalelab.arrays import FloatArray
from scalelab.forecast.averaged_optimum import compute_optimal_size
from scalelab.forecast.extrapolation import fitted_range
from scalelab.forecast.paths import paths_of
from scalelab.theory.accounting import tokens_at_6nd, train_flops_6nd
from scalelab.units import format_flops, format_quantity, round_significant

if TYPE_CHECKING:
    from scalelab.forecast.allocate import Forecast
    from scalelab.forecast.averaged import AveragedFit
    from scalelab.records.types import Observations

HEADS = ("runs of FLOP", "N", "D", "cost", "interval then")
SIZES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Sizes of an added budget, relative to the compute-optimal one."""
BUDGETS = (1.0, 2.0, 5.0)
"""Added budgets, relative to the largest of the runs."""
MOST_SHARE = 0.7
"""Largest added budget, as a share of the compute that is asked about."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AddedBudget:
    """One isoFLOP budget that could be added.

    Attributes
    ----------
    asked : str
        The question that they would answer more narrowly, such as ``C=1e22``.
    budget, flops, share : float
        FLOPs of each run; of all its runs; these relative to the FLOPs of the finished runs.
    n_params, n_tokens : tuple of float
        N and D of its runs.
    now, after : float
        Half-width of the interval of the noise-free loss that is asked about, relative to the loss:
        now, and as expected with these runs.
    """

    asked: str
    budget: float
    flops: float
    share: float
    n_params: tuple[float, ...]
    n_tokens: tuple[float, ...]
    now: float
    after: float

    @property
    def command(self) -> tuple[str, ...]:
        """Words of the command that plans it."""
        budget, sizes = format_flops(self.budget), str(len(self.n_params))
        return "scalelab", "sweep", "isoflop", "--budgets", budget, "--sizes", sizes, "--dry-run"

    def cells(self) -> tuple[str, ...]:
        """Return the row of a table with the heads `HEADS`."""
        low, high = (format_quantity(end) for end in (self.n_params[0], self.n_params[-1]))
        most, least = (format_quantity(end) for end in (self.n_tokens[0], self.n_tokens[-1]))
        share = format_quantity(100 * self.share, 2)
        return (
            f"{len(self.n_params)} of {format_flops(self.budget)}",
            f"{low} to {high}",
            f"{most} to {least}",
            f"{format_flops(round_significant(self.flops, 2))}, {share} %",
            f"± {100 * self.after:.2g} %",
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the budget as in the JSON of ``scalelab fit``."""
        return {
            "budget": self.budget,
            "flops": self.flops,
            "share_of_spent": self.share,
            "n_params": list(self.n_params),
            "n_tokens": list(self.n_tokens),
            "half_width_now": self.now,
            "half_width_after": self.after,
            "command": list(self.command),
        }


def budgets_to_add(
    found: AveragedFit, rows: Observations, forecast: Forecast
) -> tuple[AddedBudget, ...]:
    """Return budgets that would narrow a forecast, the cheapest first.

    Parameters
    ----------
    found : AveragedFit
    rows : Observations
        The finished runs.
    forecast : Forecast
        The answer to narrow. Without N, D and an interval there is nothing to add.
    """
    n, d = forecast.n_params, forecast.n_tokens
    if n is None or d is None or not 0 < forecast.low < forecast.high < np.inf:
        return ()
    asked = train_flops_6nd(n.value, d.value)
    spent = train_flops_6nd(rows.n_params, rows.n_tokens)
    budgets = [round_significant(by * fitted_range(rows).flops, 2) for by in BUDGETS]
    budgets = [each for each in budgets if each <= MOST_SHARE * asked] or budgets[:1]
    sizes = np.array([[compute_optimal_size(found, c) * by for by in SIZES] for c in budgets])
    tokens = tokens_at_6nd(np.array(budgets)[:, None], sizes)
    points = {
        "n_params": np.append(sizes.ravel(), n.value),
        "n_tokens": np.append(tokens.ravel(), d.value),
    }
    shared = np.cov(paths_of(found).draws(points), rowvar=False)
    noise = _noise_variance(found)
    now = float(np.log(forecast.high / forecast.low)) / 2
    out = []
    for i, budget in enumerate(budgets):
        own = np.arange(i * len(SIZES), (i + 1) * len(SIZES))
        flops = float(train_flops_6nd(sizes[i], tokens[i]).sum())
        out.append(
            AddedBudget(
                asked=forecast.asked,
                budget=budget,
                flops=flops,
                share=flops / float(spent.sum()),
                n_params=tuple(sizes[i].tolist()),
                n_tokens=tuple(tokens[i].tolist()),
                now=now,
                after=now * float(np.sqrt(_share_left(shared, own, noise))),
            )
        )
    return tuple(out)


def caption_of(budgets: tuple[AddedBudget, ...], level: float) -> str:
    """Return what the table of `AddedBudget.cells` of one or more budgets says."""
    return (
        f"Runs to add: the {100 * level:g} % interval of the loss at {budgets[0].asked} is "
        f"± {100 * budgets[0].now:.2g} % now. Cost: in all, and relative to your runs."
    )


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
