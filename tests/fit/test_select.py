from dataclasses import replace

import numpy as np
import pytest

from scalelab.errors import DataError
from scalelab.fit.bootstrap import BootstrapSpec
from scalelab.fit.compute_folds import folds_of
from scalelab.fit.objective import Objective
from scalelab.fit.parametric import fit_parametric
from scalelab.fit.select import aicc, columns_of, compare
from scalelab.fit.selected import SelectedFit, first_identified, fit_selected
from scalelab.records.types import Observations


def test_the_form_that_made_the_runs_extrapolates_best(isoflop_runs):
    # The tied form cannot fit exponents this different, and Kaplan's form has no asymptote.
    rows = isoflop_runs(alpha=0.5, beta=0.25, A=1000.0, B=400.0, noise=2e-4, half_width=8.0)
    found = compare(rows, forms=("tied", "chinchilla", "kaplan"), k=30)
    assert found.best.form == "chinchilla"
    assert [c.is_tied for c in found.candidates] == [True, False, False]
    assert found.best.aicc == min(c.aicc for c in found.candidates)
    assert "do not separate" not in found.verdict


def test_forms_that_fit_equally_well_are_tied(isoflop_runs):
    rows = isoflop_runs(alpha=0.33, beta=0.33, noise=0.004)
    found = compare(rows, forms=("chinchilla", "tied"), k=30)
    assert all(candidate.is_tied for candidate in found.candidates)
    assert "The data do not separate it from" in found.verdict
    gap = found.candidates[1].gap
    assert gap[0] <= 1e-4


def test_only_lower_budgets_are_used_to_predict_a_budget(isoflop_runs):
    rows = isoflop_runs(noise=1e-4)
    spoiled = rows.loss_nats.copy()
    spoiled[rows.budget == 1e20] *= 3
    clean = compare(rows, forms=("chinchilla",), k=10)
    worse = compare(replace(rows, loss_nats=spoiled), forms=("chinchilla",), k=10)
    # The last budget is predicted from the others alone: 1/3 of the observed, an error of 2/3.
    share = 9 / clean.n_predicted
    expected = clean.best.mean_relative_error * (1 - share) + share * 2 / 3
    assert worse.best.mean_relative_error == pytest.approx(expected, rel=0.01)


def test_every_objective_is_tried_with_every_form(isoflop_runs):
    objectives = (Objective(), Objective(loss="ls"))
    found = compare(isoflop_runs(), forms=("chinchilla", "tied"), objectives=objectives, k=5)
    pairs = {(c.form, c.objective.loss) for c in found.candidates}
    assert pairs == {(f, o) for f in ("chinchilla", "tied") for o in ("huber", "ls")}
    assert sorted(c.mean_relative_error for c in found.candidates) == [
        c.mean_relative_error for c in found.candidates
    ]


def test_the_same_seed_gives_the_same_ranking_in_any_row_order(isoflop_runs):
    rows = isoflop_runs()
    order = np.random.default_rng(1).permutation(len(rows))
    first = compare(rows, forms=("chinchilla", "tied"), k=20, seed=4)
    second = compare(rows.take(order), forms=("chinchilla", "tied"), k=20, seed=4)
    for one, two in zip(first.candidates, second.candidates, strict=True):
        assert one.form == two.form
        assert two.mean_relative_error == pytest.approx(one.mean_relative_error, rel=1e-6)
        assert two.covered == one.covered


def test_too_few_budgets_are_an_error_with_the_number_needed(isoflop_runs):
    with pytest.raises(DataError, match="2 levels of compute"):
        compare(isoflop_runs(budgets=(1e18, 1e19)))


def test_too_few_rows_below_the_last_budget_are_counted(isoflop_runs):
    rows = isoflop_runs(budgets=(1e18, 1e19, 1e20), sizes=3)
    with pytest.raises(DataError, match="6 rows below the highest level") as caught:
        compare(rows)
    assert caught.value.allowed == "7 or more (tied has 4 parameters)"


def test_forms_with_too_many_parameters_are_skipped(isoflop_runs):
    rows = isoflop_runs(budgets=(1e18, 1e19, 1e20), sizes=4)
    found = compare(rows, k=10)
    assert {c.form for c in found.candidates} >= {"chinchilla", "tied"}
    assert found.skipped == ("gamma (too few rows)",)
    assert found.verdict.endswith("Not tried: gamma (too few rows).")


def test_at_most_six_budgets_are_predicted(isoflop_runs):
    budgets = tuple(np.geomspace(1e17, 1e20, 14))
    found = compare(isoflop_runs(budgets=budgets, sizes=4), forms=("tied",), k=5)
    assert len(found.folds) == 6
    assert found.folds[-1] == pytest.approx(1e20)


def test_no_candidate_is_started_after_the_time_limit(isoflop_runs):
    found = compare(isoflop_runs(), forms=("chinchilla", "tied"), k=5, time_limit_s=0.0)
    assert [c.form for c in found.candidates] == ["chinchilla"]
    assert found.skipped == ("tied with huber (time limit of 0 s)",)


def test_candidates_that_are_not_identified_come_last(isoflop_runs):
    # Without a model term E + A N^-alpha cannot be told apart; the form without E can be.
    rows = isoflop_runs(noise=1e-4, E=0.0, alpha=0.05, beta=0.3)
    found = compare(rows, forms=("chinchilla", "kaplan", "tied"), k=10)
    identified = [c.is_identified for c in found.candidates]
    assert identified == sorted(identified, reverse=True)
    assert sum(c.share for c in found.candidates) == pytest.approx(1.0)
    assert all(c.share == 0.0 for c in found.candidates if not c.is_identified)


def test_the_intervals_of_a_chosen_form_include_its_rivals(isoflop_runs):
    rows = isoflop_runs(noise=0.004)
    candidates = compare(rows, forms=("chinchilla", "gamma"), k=10).candidates
    equal = [replace(c, share=0.5) for c in candidates]
    spec = BootstrapSpec(k=200)
    chosen = fit_selected(rows, equal, spec)
    alone = fit_parametric(rows, form=equal[0].form, bootstrap=spec)
    rival = fit_parametric(rows, form=equal[1].form, bootstrap=spec)
    assert isinstance(chosen, SelectedFit)
    assert chosen.form == equal[0].form
    assert {type(law).name for law in chosen.replicate_laws()} == {"chinchilla", "gamma"}
    point = {"n_params": 1e10, "n_tokens": 1e12}
    mixed, *both = (fit.predict(point) for fit in (chosen, alone, rival))
    ends = sorted(each.low[0] for each in both), sorted(each.high[0] for each in both)
    assert ends[0][0] <= mixed.low[0] <= ends[0][1]
    assert ends[1][0] <= mixed.high[0] <= ends[1][1]


def test_a_form_is_fitted_where_none_can_be_compared(isoflop_runs):
    rows = isoflop_runs(budgets=(1e18, 1e19, 1e20), sizes=3)
    reason = DataError("6 rows", "7 or more", "Add runs.")
    fit = first_identified(rows, Objective(), BootstrapSpec(k=10), reason)
    assert fit.form == "chinchilla"
    assert "6 rows, and 7 or more are needed" in fit.warnings[0].message


def test_rows_between_budgets_go_to_the_nearer_and_a_grid_to_equal_parts(isoflop_runs):
    rows = isoflop_runs()
    fold, centres = folds_of(rows)
    np.testing.assert_allclose(centres, [1e18, 3e18, 1e19, 3e19, 1e20], rtol=1e-12)
    np.testing.assert_array_equal(centres[fold], rows.flops)
    counted_otherwise = replace(rows, flops=rows.flops * 2.5)
    np.testing.assert_array_equal(folds_of(counted_otherwise)[0], fold)
    budget = np.where(np.arange(len(rows)) % 4 == 0, np.nan, rows.flops)
    np.testing.assert_array_equal(folds_of(replace(rows, budget=budget))[0], fold)
    rng = np.random.default_rng(2)
    n = 60
    grid = Observations(
        n_params=10 ** rng.uniform(7, 9, n),
        n_tokens=10 ** rng.uniform(9, 11, n),
        loss_nats=rng.uniform(2, 3, n),
        flops=10 ** np.sort(rng.uniform(15, 25, n)),
    )
    fold, centres = folds_of(grid)
    assert len(centres) == 6
    np.testing.assert_array_equal(np.bincount(fold), 10)
    assert (np.diff(fold) >= 0).all()


def test_aicc_is_the_gaussian_one_for_least_squares(isoflop_runs):
    rows = isoflop_runs()
    fit = fit_parametric(rows, objective=Objective(loss="ls"), bootstrap=BootstrapSpec(k=0))
    n, k = len(rows), 6
    sigma = np.sqrt(np.mean(fit.residuals**2))
    log_likelihood = np.sum(
        -0.5 * (fit.residuals / sigma) ** 2 - np.log(sigma * np.sqrt(2 * np.pi))
    )
    expected = 2 * k - 2 * log_likelihood + 2 * k * (k + 1) / (n - k - 1)
    assert aicc(fit) == pytest.approx(expected, rel=1e-12)


def test_aicc_is_the_laplace_one_for_a_small_delta(isoflop_runs):
    rows = isoflop_runs(noise=0.01)
    fit = fit_parametric(rows, objective=Objective(delta=1e-4), bootstrap=BootstrapSpec(k=0))
    n, k = len(rows), 6
    b = np.mean(np.abs(fit.residuals))
    log_likelihood = np.sum(-np.abs(fit.residuals) / b - np.log(2 * b))
    expected = 2 * k - 2 * log_likelihood + 2 * k * (k + 1) / (n - k - 1)
    assert aicc(fit) == pytest.approx(expected, rel=1e-12)


def test_columns_are_under_the_names_that_laws_use(isoflop_runs):
    rows = isoflop_runs()
    found = columns_of(rows)
    assert {"n_params", "n_tokens", "flops"} <= set(found)
    np.testing.assert_array_equal(found["n_params"], rows.n_params)


@pytest.mark.parametrize(("form", "seed"), [("kaplan", 7), ("gamma", 13)])
def test_losses_that_no_law_describes_are_fitted_without_an_error(form, seed):
    # These two seeds lead to points where the law is not finite.
    rng = np.random.default_rng(seed)
    n_params, n_tokens = 10 ** rng.uniform(4, 9, 20), 10 ** rng.uniform(5, 11, 20)
    rows = Observations(
        n_params=n_params,
        n_tokens=n_tokens,
        loss_nats=10 ** rng.uniform(-3, 3, 20),
        flops=6 * n_params * n_tokens,
    )
    fit = fit_parametric(rows, form=form, bootstrap=BootstrapSpec(k=0))
    assert np.isfinite(fit.residuals).all()


def test_losses_exactly_on_the_law_have_an_aicc_of_minus_infinity(isoflop_runs):
    fit = fit_parametric(isoflop_runs(), bootstrap=BootstrapSpec(k=0))
    assert aicc(replace(fit, residuals=np.zeros_like(fit.residuals))) == -np.inf
