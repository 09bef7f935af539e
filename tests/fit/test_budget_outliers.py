import numpy as np
import pytest

from scalelab.fit.diagnose import design_warnings
from scalelab.fit.envelope import fit_envelope
from scalelab.fit.isoflop import fit_isoflop

BAD = [14, 36, 49]
"""Rows of `narrow_runs` whose loss is 5 % too high; the last is at the end of the last budget."""


def named(rows):
    return sorted(int(row) for curve in fit_isoflop(rows).curves for row in curve.outliers)


def codes(rows):
    found = design_warnings(fit_isoflop(rows), fit_envelope(rows))
    return {warning.code: warning.message for warning in found}


def test_outliers_are_named_where_least_squares_bends_towards_them(narrow_runs):
    found = [named(narrow_runs(seed=seed)) for seed in range(40)]
    assert sum(rows == BAD for rows in found) >= 38
    assert all(set(BAD) & set(rows) for rows in found)


@pytest.mark.parametrize("pair", [[43, 44], [42, 46], [44, 48]])
def test_two_outliers_of_one_budget_do_not_hide_each_other(narrow_runs, pair):
    for seed in range(10):
        rows = narrow_runs(seed=seed, drift=1.0, has_outliers=False)
        rows.loss_nats[pair] *= 1.05
        assert named(rows) == pair


def test_a_minimum_is_not_inside_the_grid_because_of_an_outlier(narrow_runs):
    edges = [curve.n_params.edge for curve in fit_isoflop(narrow_runs()).curves]
    assert edges == [None, None, None, "below", "below"]
    message = codes(narrow_runs())["edge_minimum"]
    assert "3.16e19 (below the smallest N), 1e20 (below the smallest N)" in message


@pytest.mark.parametrize(("drift", "is_named"), [(3.0, True), (1.0, False)])
def test_a_drift_is_seen_though_the_last_minima_are_outside_their_grid(
    narrow_runs, drift, is_named
):
    found = [codes(narrow_runs(drift=drift, seed=seed)) for seed in range(20)]
    count = sum("drifting_grid" in each for each in found)
    assert count >= 18 if is_named else count == 0
    if is_named:
        assert "3.1 times" in found[0]["drifting_grid"]


@pytest.mark.parametrize("noise", [0.0, 0.002, 0.01])
@pytest.mark.parametrize("half_width", [2.0, 8.0])
def test_less_than_one_clean_sweep_in_twenty_names_an_outlier(isoflop_runs, noise, half_width):
    sweeps = 60 if noise else 1
    for sizes in (7, 10, 16):
        rows = (
            isoflop_runs(noise=noise, sizes=sizes, half_width=half_width, seed=seed)
            for seed in range(sweeps)
        )
        assert sum(bool(named(each)) for each in rows) < 0.05 * sweeps


def test_the_steep_ends_of_a_wide_real_grid_are_no_outliers(tables):
    from scalelab.store.read_options import ReadOptions
    from scalelab.store.tables import read_table

    for table, where in (
        ("llama3", None),
        ("marin", "dataset = 'dclm' AND role = 'sweep'"),
        ("chinchilla", "excluded_besiroglu = 0"),
    ):
        path = tables / table / "data.csv"
        assert named(read_table(path, ReadOptions(where=where)).observations) == []


def test_a_minimum_or_limit_beyond_all_numbers_is_none(isoflop_runs):
    rows = isoflop_runs(noise=0.0, half_width=2.0)
    rows.loss_nats[:] = 3.0 + 1e-4 * np.log(rows.n_params / rows.n_params.mean())
    rows.loss_nats[::2] += 1e-12
    for curve in fit_isoflop(rows).curves:
        assert curve.n_params.edge == "not_convex"
        assert np.isnan(curve.n_params.value)
