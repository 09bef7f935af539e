"""Mixture laws: recovered weights, held-out scores, limits, and errors of bad designs."""

import numpy as np
import pytest

from scalelab.api.mixtures import target_sets
from scalelab.errors import DataError, UsageError
from scalelab.fit.effective_data import effective_data
from scalelab.fit.mixing import FormScore
from scalelab.fit.mixing_folds import folds_of
from scalelab.fit.mixing_goal import MixtureLimits, within
from scalelab.fit.mixing_search import choose_form, fit_mixtures
from scalelab.fit.mixture_runs import MixtureRuns
from scalelab.theory.laws.mixing import MIXING_LAWS, ExponentialMixing

SOURCES = ("code", "web", "books")
SLOPES = {"code": (-3.0, -0.2, -0.4), "web": (-0.3, -2.0, -0.8)}


def losses_of(h, N):
    return {name: 1.5 + np.exp(h @ np.array(t)) + 40 * N**-0.3 for name, t in SLOPES.items()}


@pytest.fixture(scope="module")
def runs():
    rng = np.random.default_rng(3)
    mixtures = np.concatenate([np.eye(3), rng.dirichlet(np.ones(3), size=9)])
    h = np.tile(mixtures, (4, 1))
    N = np.repeat([1e6, 3e6, 1e7, 3e7], 12)
    return MixtureRuns(sources=SOURCES, weights=h, losses=losses_of(h, N), n_params=N)


@pytest.fixture(scope="module")
def fit(runs):
    return fit_mixtures(runs, forms=["exponential_mixing"], replicates=20)


def test_the_exponential_law_is_recovered(fit):
    law = fit.laws["code"].law
    assert law.params == pytest.approx(
        {"E": 1.5, "t_code": -3, "t_web": -0.2, "t_books": -0.4, "A": 40, "alpha": 0.3}, rel=1e-3
    )
    assert {s.scheme for s in fit.scores} == {"leave_10_out", "leave_mixture_out", "leave_size_out"}
    assert min(s.mean_r2 for s in fit.scores) > 0.9999


def test_best_weights_are_those_of_the_true_law(fit):
    best = fit.best_weights({"code": 0.5, "web": 0.5}, n_params=1e8)
    grid = np.array([(a, b, 1 - a - b) for a in np.linspace(0, 1, 201)
                     for b in np.linspace(0, 1 - a, 201)])  # fmt: skip
    true = losses_of(grid, 1e8)
    mean = 0.5 * true["code"] + 0.5 * true["web"]
    assert best.target.value == pytest.approx(mean.min(), abs=2e-4)
    assert [best.weights[n].value for n in SOURCES] == pytest.approx(grid[mean.argmin()], abs=0.02)
    assert "extrapolation" in {w.code for w in best.warnings}
    assert best.gain.value >= 0


def test_unique_tokens_limit_a_weight(fit):
    limits = MixtureLimits(unique_tokens={"code": 1e8}, max_epochs=4)
    best = fit.best_weights({"code": 1.0}, limits, n_tokens=1e9)
    assert best.weights["code"].value == pytest.approx(0.4, abs=1e-6)
    assert best.epochs["code"] == pytest.approx(4)
    assert best.binding == ("code",)
    free = fit.best_weights({"code": 1.0})
    assert free.weights["code"].value > 0.99
    # 4 epochs are worth less than 0.4 of new tokens.
    assert best.losses["code"].value > float(losses_of(np.array([[0.4, 0.0, 0.6]]), 3e7)["code"][0])


def test_impossible_limits_are_refused(fit):
    limits = MixtureLimits(unique_tokens=dict.fromkeys(SOURCES, 1e6), max_epochs=4)
    with pytest.raises(UsageError, match="no mixture meets"):
        fit.best_weights({"code": 1.0}, limits, n_tokens=1e9)


def test_unknown_targets_name_the_sets(fit):
    with pytest.raises(UsageError, match="code, web"):
        fit.best_weights({"cde": 1.0})


def test_a_point_outside_the_trained_mixtures_is_flagged(runs):
    inner = 0.5 * runs.weights + 0.5 / 3
    shrunk = MixtureRuns(
        sources=SOURCES, weights=inner, losses=losses_of(inner, runs.n_params),
        n_params=runs.n_params,
    )  # fmt: skip
    fit = fit_mixtures(shrunk, forms=["exponential_mixing"], replicates=0)
    best = fit.best_weights({"code": 1.0})
    assert {"outside_mixtures", "far_from_runs"} <= {w.code for w in best.warnings}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: 100 * h, "sum to 100"),
        (lambda h: h * 0.9, "sum to 0.9"),
        (lambda h: h - 0.5, "missing or negative"),
        (lambda h: np.tile(h[:4], (12, 1)), "at least 5 different"),
        (lambda h: np.column_stack([h[:, 0], np.zeros(48), 1 - h[:, 0]]), "source web"),
        (lambda h: np.column_stack([h[:, 0], (1 - h[:, 0]) / 2, (1 - h[:, 0]) / 2]), "web, books"),
    ],
)
def test_bad_weights_are_refused(runs, change, message):
    with pytest.raises(DataError, match=message):
        fit_mixtures(MixtureRuns(sources=SOURCES, weights=change(runs.weights), losses=runs.losses))


def test_forms_with_too_many_parameters_are_named(runs):
    few = slice(0, 6)
    some = MixtureRuns(
        sources=SOURCES, weights=runs.weights[few],
        losses={k: v[few] for k, v in runs.losses.items()},
    )  # fmt: skip
    fit = fit_mixtures(some, replicates=0)
    assert {law.form for law in fit.laws.values()} == {"exponential_mixing"}
    assert [w.code for w in fit.warnings] == ["too_few_mixtures"] * 2


def test_folds_leave_every_run_out_once_per_scheme():
    folds = folds_of(np.repeat(np.arange(12), 4), np.tile([1.0, 2, 3, 4], 12))
    start = 0
    for count in folds.counts:
        assert (1 - folds.kept[start : start + count]).sum(axis=0).tolist() == [1] * 48
        start += count
    numbers = np.tile(np.arange(float(len(folds.kept)))[:, None], 48)
    gathered = folds.gather(numbers)
    assert all(folds.kept[int(k), i] == 0 for row in gathered for i, k in enumerate(row))


def test_the_simpler_of_similar_forms_is_chosen():
    def score(form, rmse):
        return FormScore(
            form=form, scheme="x", r2={"a": 0.9}, rmse={"a": rmse}, n_folds=5, n_parameters=4
        )

    forms = ["simple", "rich"]
    assert choose_form(forms, [score("simple", 1.02), score("rich", 1.0)], "a") == "simple"
    assert choose_form(forms, [score("simple", 1.10), score("rich", 1.0)], "a") == "rich"


@pytest.mark.parametrize("kind", MIXING_LAWS, ids=lambda law: law.name)
def test_slopes_agree_with_finite_differences(kind):
    law = kind.over(SOURCES, ("n_params", "n_tokens"), "code")
    h = np.array([[0.5, 0.5, 0.0], [0.0, 0.3, 0.7], [0.2, 0.3, 0.5]])
    columns = {f"weight_{n}": h[:, j] for j, n in enumerate(SOURCES)}
    columns |= {"n_params": np.array([1e6, 2e6, 4e6]), "n_tokens": np.array([1e8, 2e8, 1e8])}
    theta = law.seeds(columns, np.array([3.0, 3.3, 2.8]))[0] + 0.01
    value, gradient = law.slopes(theta[None], columns)
    for j in range(len(theta)):
        step = np.zeros(len(theta))
        step[j] = 1e-6
        up, down = (np.asarray(law.evaluate(tuple(theta + s), columns)) for s in (step, -step))
        assert gradient[j, 0] == pytest.approx((up - down) / 2e-6, rel=1e-4, abs=1e-7)
    assert value[0] == pytest.approx(law.from_coordinates(theta).loss(columns))


def test_the_exponential_is_also_a_sum_of_terms():
    law = ExponentialMixing.over(SOURCES, ("n_params",))
    columns = {f"weight_{n}": np.array([0.2 + 0.1 * j]) for j, n in enumerate(SOURCES)}
    columns["n_params"] = np.array([1e6])
    theta = np.array([1.5, -1, -2, -3, 2.0, 0.3])
    features = law.terms(columns)
    total = theta[0] + np.exp(features @ theta).sum(axis=0)
    assert total == pytest.approx(np.asarray(law.evaluate(tuple(theta), columns)))


def test_weights_are_moved_into_their_limits():
    low, high = np.array([0.1, 0.0, 0.0]), np.array([1.0, 0.2, 0.5])
    h = within(np.random.default_rng(0).dirichlet(np.ones(3), size=50), low, high)
    assert h.sum(axis=1) == pytest.approx(np.ones(50))
    assert (h >= low - 1e-12).all()
    assert (h <= high + 1e-12).all()


def test_repeats_in_the_runs_count_as_in_predictions():
    rng = np.random.default_rng(5)
    h = np.concatenate([np.eye(2), rng.dirichlet(np.ones(2), size=10)])
    unique = {"code": 1e6, "web": 2e6}
    effective, _ = effective_data(h, 1e7, unique, ("code", "web"))
    loss = 1.0 + np.exp(effective @ np.array([-2.0, -0.5]))
    runs = MixtureRuns(
        sources=("code", "web"), weights=h, losses={"code": loss},
        n_tokens=np.full(len(h), 1e7), unique_tokens=unique,
    )  # fmt: skip
    fit = fit_mixtures(runs, forms=["exponential_mixing"], replicates=0)
    assert fit.laws["code"].law.params == pytest.approx(
        {"E": 1.0, "t_code": -2.0, "t_web": -0.5}, rel=1e-3
    )
    at = fit.predict({"code": h[5, 0], "web": h[5, 1]})
    assert at["code"].value == pytest.approx(loss[5], rel=1e-4)


def test_ten_epochs_are_worth_less_than_ten_times_the_text():
    h, tokens = effective_data(np.array([0.5, 0.5]), 20.0, {"a": 1.0}, ("a", "b"))
    worth = 1 + 15.387756 * (1 - np.exp(-9 / 15.387756))
    assert float(tokens) == pytest.approx(10 + worth)
    assert h[0] == pytest.approx(worth / (10 + worth))


def test_the_held_out_loss_of_a_sweep_is_the_mean_over_its_sources(runs):
    losses = {**runs.losses, "books": runs.losses["web"]}
    every = MixtureRuns(sources=SOURCES, weights=runs.weights, losses=losses)
    fit = fit_mixtures(every, forms=["exponential_mixing"], replicates=0)
    assert target_sets(fit, "0.4*heldout+0.6*code") == pytest.approx(
        {"code": 0.6 + 0.4 / 3, "web": 0.4 / 3, "books": 0.4 / 3}
    )
