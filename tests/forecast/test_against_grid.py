"""On the Chinchilla law with noise: the adaptive sweep against the default iso-FLOP grid.

Noise of a run: 0.3 % of the loss at 1e21 FLOP, 1.26 times more for each tenth of the compute. The
target is the compute-optimal loss at 1e24. The adaptive sweep has half of the grid's FLOPs.
"""

from __future__ import annotations

import numpy as np
import pytest

from scalelab.forecast.adaptive import Replay, Round, Target, next_round, replay
from scalelab.sweep.isoflop_sizes import TOKENS_PER_PARAM
from scalelab.sweep.spec import DEFAULT_SIZES, DEFAULT_SPAN
from scalelab.theory.accounting import tokens_at_6nd, train_flops_6nd
from scalelab.theory.laws import Chinchilla

TRUTH = Chinchilla(A=482.0, B=2085.4, E=1.817, alpha=0.3478, beta=0.3659)
BUDGETS = np.geomspace(1e18, 1e20, 5)
"""What 1e18..1e20 means: two per decade."""
TARGET = Target(flops=1e24)
EXACT = float(TRUTH.loss(dict(zip(("n_params", "n_tokens"), TRUTH.optimal(1e24), strict=True))))
SHARE = 0.5


def grid() -> dict[str, np.ndarray]:
    flops = np.repeat(BUDGETS, DEFAULT_SIZES)
    centre = np.sqrt([tokens_at_6nd(c, TOKENS_PER_PARAM) for c in flops])
    spread = np.geomspace(DEFAULT_SPAN**-0.5, DEFAULT_SPAN**0.5, DEFAULT_SIZES)
    n_params = centre * np.tile(spread, len(BUDGETS))
    return {"n_params": n_params, "n_tokens": flops / train_flops_6nd(n_params, 1.0)}


def candidates(largest: float) -> tuple[dict[str, np.ndarray], np.ndarray]:
    plain = grid()
    axes = (np.geomspace(plain[k].min(), 2 * plain[k].max(), 20) for k in ("n_params", "n_tokens"))
    n_params, n_tokens = (values.ravel() for values in np.meshgrid(*axes))
    flops = train_flops_6nd(n_params, n_tokens)
    fits = flops <= largest
    return {"n_params": n_params[fits], "n_tokens": n_tokens[fits]}, flops[fits]


def run(columns: dict[str, np.ndarray], rng: np.random.Generator) -> np.ndarray:
    flops = train_flops_6nd(columns["n_params"], columns["n_tokens"])
    noise = 0.003 * (flops / 1e21) ** -0.1 * rng.standard_normal(len(flops))
    return TRUTH.loss(columns) * np.exp(noise)


def compare(seed: int, largest: float) -> tuple[Round, Replay]:
    rng = np.random.default_rng(seed)
    plain = grid()
    could, flops = candidates(largest)
    losses = run(plain, rng)
    of_grid = next_round(plain, losses, could, flops, TARGET, left=0.0, now=0.0, rng=rng)
    theirs = run(could, rng)
    budget = SHARE * train_flops_6nd(plain["n_params"], plain["n_tokens"]).sum()
    chosen = replay(
        could, lambda j: theirs[j], flops, TARGET, budget=budget, seed=seed, pool_share=1.0
    )
    assert chosen.spent <= budget
    return of_grid, chosen


def test_half_the_flops_give_the_width_of_the_grid() -> None:
    of_grid, chosen = compare(seed=0, largest=4 * BUDGETS[-1])
    assert chosen.last.width <= of_grid.width
    assert chosen.last.low[0] < EXACT < chosen.last.high[0]


@pytest.mark.science
@pytest.mark.parametrize("largest", [1.0, 4.0])
def test_half_the_flops_give_the_width_of_the_grid_on_average(largest: float) -> None:
    pairs = [compare(seed, largest * BUDGETS[-1]) for seed in range(20)]
    grids = np.array([of_grid.width for of_grid, _ in pairs])
    widths = np.array([chosen.last.width for _, chosen in pairs])
    spends = np.array([chosen.spent for _, chosen in pairs])
    errors = np.array([[a.loss[0], b.last.loss[0]] for a, b in pairs]) / EXACT - 1
    covered = np.mean([b.last.low[0] < EXACT < b.last.high[0] for _, b in pairs])
    whole = train_flops_6nd(*grid().values()).sum()
    print(
        f"runs up to {largest:g} x 1e20: width {100 * np.median(widths):.2f} % for "
        f"{spends.mean() / whole:.2f} of the FLOPs of the grid, which has "
        f"{100 * np.median(grids):.2f} %; rms error {100 * np.sqrt((errors**2).mean(axis=0))} % "
        f"(grid, adaptive); covered {covered:.2f}"
    )
    assert np.median(widths) <= np.median(grids)
    assert covered >= 0.75
