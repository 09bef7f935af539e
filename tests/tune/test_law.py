import dataclasses
import math

import numpy as np
import pytest

from scalelab.errors import NotIdentifiedError
from scalelab.tune.law import fit_law

from .pools import real_pool, regret, simulated_pool, step_law

GRID = [(n, d) for n in (1e8, 3e8, 1e9) for d in (2e9, 8e9, 3e10)]


def regrets(pool, fitted_on):
    """Return (ours, published) regret of each cell, predicted by a fit to ``fitted_on(cell)``."""
    number = pool.cells()
    ours, published = [], []
    for one in range(number.max() + 1):
        cell = pool.take(np.flatnonzero(number == one))
        rows = fitted_on(number, one)
        if rows is None:
            continue
        law = fit_law(pool.take(np.flatnonzero(rows)), n_replicates=0)
        lr, batch = law.best(cell.n_params[0], cell.n_tokens[0])
        ours.append(regret(cell, lr.value, batch.value))
        published.append(regret(cell, *step_law(cell.n_params[0], cell.n_tokens[0])))
    return np.array(ours), np.array(published)


def test_a_cell_of_the_real_pool_is_predicted_from_the_others(tables):
    pool = real_pool(tables)
    ours, published = regrets(pool, lambda number, one: number != one)
    assert len(ours) == 41
    assert ours.mean() <= 0.21
    assert ours.max() <= 0.5
    assert ours.mean() <= published.mean() + 0.02


@pytest.mark.parametrize("n_largest", [5, 10, 15])
def test_the_largest_cells_of_the_real_pool_are_predicted_from_the_smaller(n_largest, tables):
    pool = real_pool(tables)
    number = pool.cells()
    compute = np.array([(pool.n_params * pool.n_tokens)[number == one].mean() for one in range(41)])
    largest = np.argsort(compute)[-n_largest:]
    is_small = ~np.isin(number, largest)
    ours, published = regrets(pool, lambda _, one: is_small if one in largest else None)
    assert len(ours) == n_largest
    assert ours.mean() <= 0.21
    assert ours.max() <= 0.5
    assert ours.mean() <= published.mean() + 0.02


def test_a_known_law_is_recovered():
    law = fit_law(simulated_pool(cells=GRID), n_replicates=0)
    assert law.lr().p.value == pytest.approx(-0.6, abs=0.04)
    assert law.lr().q.value == pytest.approx(0.3, abs=0.04)
    assert law.batch_tokens().q.value == pytest.approx(0.55, abs=0.04)
    lr, batch = law.best(3e9, 1e11)
    assert lr.value == pytest.approx(0.01 * 30**-0.6 * 50**0.3, rel=0.12)
    assert batch.value == pytest.approx(2e5 * 50**0.55, rel=0.12)


def test_k_p_and_q_are_the_prediction():
    law = fit_law(simulated_pool(cells=GRID), n_replicates=20)
    rate = law.lr()
    lr, _ = law.best(2e9, 5e10)
    assert rate.k.value * 2e9**rate.p.value * 5e10**rate.q.value == pytest.approx(lr.value)
    assert lr.low < lr.value < lr.high


def test_intervals_cover_the_truth_at_their_level():
    # Nine cells whose centres scatter by 10 % about the law, 40 pools: 90 % is 36; the range is
    # what a binomial of 0.8 to 0.97 leaves with a chance of about 1 in 50 on either side.
    held = []
    for seed in range(40):
        pool = simulated_pool(cells=GRID, seed=seed, scatter=0.1, rates=6, batches=4)
        lr, batch = fit_law(pool, n_replicates=100, seed=seed).best(2e9, 6e10)
        held.append(lr.low <= 0.01 * 20**-0.6 * 30**0.3 <= lr.high)
        held.append(batch.low <= 2e5 * 30**0.55 <= batch.high)
    assert 0.8 <= np.mean(held) <= 0.98


def test_diverged_runs_do_not_move_the_law():
    pool = simulated_pool(cells=GRID)
    random = np.random.default_rng(1)
    hit = random.choice(len(pool), len(pool) // 10, replace=False)
    loss = pool.loss.copy()
    loss[hit] *= random.uniform(1.05, 1.24, len(hit))
    loss[hit[:10]] *= 4
    lr, batch = fit_law(pool, n_replicates=0).best(1e9, 1e11)
    hurt_lr, hurt_batch = fit_law(dataclasses.replace(pool, loss=loss), n_replicates=0).best(
        1e9, 1e11
    )
    assert hurt_lr.value == pytest.approx(lr.value, rel=0.03)
    assert hurt_batch.value == pytest.approx(batch.value, rel=0.03)


def test_the_order_and_the_unit_of_losses_do_not_matter():
    pool = simulated_pool(cells=GRID, rates=5, batches=3)
    shuffled = pool.take(np.random.default_rng(0).permutation(len(pool)))
    in_bits = dataclasses.replace(shuffled, loss=shuffled.loss / math.log(2))
    one, other = (fit_law(p, n_replicates=0).best(1e9, 1e11)[0].value for p in (pool, in_bits))
    assert other == pytest.approx(one, rel=1e-4)


def test_tokens_that_differ_by_a_part_of_a_step_are_one_cell():
    pool = simulated_pool(cells=GRID)
    random = np.random.default_rng(2)
    moved = pool.n_tokens * random.uniform(0.995, 1.005, len(pool))
    assert fit_law(dataclasses.replace(pool, n_tokens=moved), n_replicates=0).n_cells == 9


def test_few_cells_give_a_warning():
    law = fit_law(simulated_pool(cells=GRID[:5]), n_replicates=20)
    assert "few_cells" in {w.code for w in law.warnings}
    assert law.bootstrap == "runs"


def test_cells_on_one_line_predict_on_it_and_nowhere_else():
    law = fit_law(simulated_pool(cells=[(n, 20 * n) for n in (1e8, 3e8, 1e9)]), n_replicates=20)
    assert "collinear" in {w.code for w in law.warnings}
    assert law.lr().p.low is None
    lr, _ = law.best(2e9, 4e10)
    assert lr.value == pytest.approx(0.01 * 20**-0.6 * 20**0.3, rel=0.12)
    with pytest.raises(NotIdentifiedError, match="not identified"):
        law.best(2e9, 4e11)


def test_batches_that_do_not_vary_leave_a_law_of_the_rate():
    law = fit_law(simulated_pool(cells=GRID, batches=1), n_replicates=0)
    assert law.batch_tokens() is None
    assert law.best(1e9, 1e10)[1] is None
    assert law.lr().p.value == pytest.approx(-0.6, abs=0.08)


def test_one_cell_is_not_identified():
    with pytest.raises(NotIdentifiedError, match="1 cell "):
        fit_law(simulated_pool(cells=GRID[:1]))


def test_one_rate_a_cell_is_not_identified():
    with pytest.raises(NotIdentifiedError, match="learning rates that do not differ"):
        fit_law(simulated_pool(cells=GRID, rates=1))


def test_rates_all_on_one_side_are_not_identified():
    pool = simulated_pool(cells=GRID, rates=12)
    low = pool.lr < 0.35 * 0.01 * (pool.n_params / 1e8) ** -0.6 * (pool.n_tokens / 2e9) ** 0.3
    with pytest.raises(NotIdentifiedError, match="outside those tried"):
        fit_law(pool.take(np.flatnonzero(low)))


def test_a_cell_whose_best_is_at_its_edge_is_placed_by_the_others():
    pool = simulated_pool(cells=GRID)
    cell = (pool.n_params == 1e9) & (pool.n_tokens == 3e10)
    best = 0.01 * 10**-0.6 * 15**0.3
    law = fit_law(pool.take(np.flatnonzero(~cell | (pool.lr < 0.8 * best))), n_replicates=0)
    assert law.best(1e9, 3e10)[0].value == pytest.approx(best, rel=0.1)
    assert "edge_lr" in {w.code for w in law.warnings}


def test_extrapolation_warnings_name_the_factor_beyond_the_runs():
    law = fit_law(simulated_pool(cells=GRID), n_replicates=0)
    assert law.extrapolation_warnings(5e8, 1e10) == []
    (warning,) = law.extrapolation_warnings(1e10, 1e10)
    assert warning.code == "extrapolation"
    assert "factor of 10" in warning.message
