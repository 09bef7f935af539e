"""The headline of a fit: its target, its sentence, its verdict and the next command."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from scalelab import api
from scalelab.fit.bootstrap import BootstrapSpec
from scalelab.forecast.extrapolation import fitted_range
from scalelab.forecast.headline import (
    NextCommand,
    basis_words,
    decision_sentence,
    distance,
    headline,
    laws_sentence,
    loss_words,
    next_compute,
    size_words,
)
from scalelab.forecast.published import far_words
from scalelab.forecast.verdict import NOT_IDENTIFIED, SOUND, WITH_WARNINGS
from scalelab.store.table_read import TableRead
from scalelab.units import format_quantity


def table_of(rows):
    return TableRead(observations=rows, lines=np.arange(len(rows)) + 2)


def report_of(rows, k=60, **words):
    return api.fit(table_of(rows), bootstrap=BootstrapSpec(k=k), forecaster="law", **words)


@pytest.fixture(scope="module")
def rows(isoflop_runs):
    return isoflop_runs(noise=0.002)


@pytest.fixture(scope="module")
def report(rows):
    return report_of(rows)


def test_the_target_is_ten_times_the_largest_budget(rows):
    assert next_compute(rows) == 10 * rows.budget.max()
    # a budget far below the largest run does not stand for it
    assert next_compute(replace(rows, budget=rows.budget / 7)) == pytest.approx(
        10 * rows.flops.max(), rel=0.05
    )


def test_forecasts_count_from_the_same_compute_as_the_headline(rows):
    span = fitted_range(rows)
    assert (span.flops, span.largest) == (rows.budget.max(), "budget")
    far = 30 * rows.budget.max()
    assert distance(rows, far) == "30x your largest budget"
    assert span.describe_distance(far) == "Extrapolation: 30x the FLOPs of the largest budget."
    # N and D with three digits are those of a run
    for rounded in (1.01 * span.flops, span.least_flops / 1.01):
        assert span.describe_distance(rounded) == "Within the FLOPs of the runs."
    # a budget far below the largest run does not stand for it
    alone = fitted_range(replace(rows, budget=rows.budget / 7))
    product = 6 * rows.n_params * rows.n_tokens
    assert (alone.flops, alone.largest) == (pytest.approx(product.max()), "run")


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (10.0, "10x your largest budget"),
        (1e9, "1e9x your largest budget"),
        (0.5, "within the compute of your runs"),
        (1e-4, "100x below your smallest run"),
    ],
)
def test_the_distance_is_said_in_both_directions(rows, factor, words):
    flops = factor * rows.budget.max()
    assert distance(rows, flops) == words


def test_a_sound_fit_has_the_sentence_and_a_command(report):
    head = headline(report, NextCommand(runs=("--sweep", "demo")))
    forecast = head.forecast
    assert head.verdict == SOUND
    assert head.sentence.startswith("With 1e21 FLOP (10x your largest budget): ")
    assert f"loss {forecast.loss_nats:.3f} [" in head.sentence
    assert f"[{forecast.pred_low:.3f}, {forecast.pred_high:.3f}]" in head.sentence
    factor = 10 ** report.derived["a"].value
    assert f"Every 10x compute wants {factor:.2g}x N." in head.sentence
    assert head.command == ("scalelab", "decide", "--sweep", "demo", "--flops", "1e21")
    unable = headline(report, NextCommand(runs=("--where", "flops > 1"), can_decide=False))
    assert unable.command[:2] == ("scalelab", "fit")


def test_fit_and_decide_state_the_same_interval_of_a_new_run(isoflop_runs):
    found = api.fit(table_of(isoflop_runs(noise=0.01)), bootstrap=BootstrapSpec(k=20))
    head = headline(found)
    decision = api.decide(found, {"flops": head.flops})
    best = decision.best
    loss = f"loss {loss_words(best.loss_nats, best.pred_low, best.pred_high)}"
    sentence = decision_sentence(best, found.observations, "loss", "nats/token")
    assert loss in sentence
    assert loss in head.sentence
    assert loss_words(best.loss_nats, best.low, best.high) not in sentence
    by = f"by the {found.forecaster.label}"
    assert head.basis.startswith(basis_words(by, found.level, head.forecast))
    assert "90 % confidence intervals of N and D, 90 % prediction interval of a new" in head.basis
    # the range of N and D is that of the optimum, in both sentences
    n, d = head.forecast.n_params, head.forecast.n_tokens
    ranges = f"{size_words(n)} parameters on {size_words(d)} tokens"
    low, high = format_quantity(n.low), format_quantity(n.high)
    assert f" [{low}, {high}] parameters" in ranges
    assert ranges in head.sentence
    at = decision_sentence(best, found.observations, "loss", "nats/token", decision.optimum)
    assert ranges in at
    # a candidate of another size has no such range
    small = f"{best.n_params / 3:.4g}:{3 * best.n_tokens:.4g}"
    assert api.decide(found, candidates=small).optimum is None


def test_the_laws_of_an_average_are_listed_with_their_weights(isoflop_runs):
    found = api.fit(table_of(isoflop_runs(noise=0.01)), bootstrap=BootstrapSpec(k=20))
    shown = [name for name, weight in found.averaged.weights.items() if weight >= 0.005]
    assert f"average of {len(shown)} laws" == found.forecaster.label
    words = laws_sentence(found.averaged)
    assert all(f"{name} {found.averaged.weights[name]:.2f}" in words for name in shown)
    assert laws_sentence(None) == ""


def test_what_the_fit_warns_of_lowers_the_verdict(rows):
    losses = rows.loss_nats.copy()
    losses[3] *= 2
    head = headline(report_of(replace(rows, loss_nats=losses)))
    assert head.verdict == WITH_WARNINGS
    assert "outliers" in [each.code for each in head.warnings]


@pytest.mark.slow
def test_a_law_that_is_not_identified_has_no_numbers_and_asks_for_runs(rows):
    head = headline(report_of(replace(rows, n_tokens=np.full(len(rows), 1e10))))
    assert head.verdict == NOT_IDENTIFIED
    assert head.forecast is None
    assert head.sentence.startswith("No answer")
    assert head.command[:3] == ("scalelab", "sweep", "isoflop")


def test_a_wide_optimum_is_a_warning_and_asks_for_runs(report):
    wide = headline(report).forecast
    size = replace(wide.n_params, low=wide.n_params.value / 5, high=wide.n_params.value * 5)
    head = headline(report, forecast=replace(wide, n_params=size))
    assert [each.code for each in head.warnings] == ["wide_optimum"]
    assert head.verdict == WITH_WARNINGS
    assert head.command[:3] == ("scalelab", "sweep", "isoflop")


def test_limits_have_the_digits_that_show_their_distance():
    assert loss_words(1.33612, 1.30812, 1.36634) == "1.336 [1.308, 1.366]"
    assert loss_words(1.33612, 1.33597, 1.33634) == "1.33612 [1.33597, 1.33634]"
    assert loss_words(1.33612, float("nan"), 1.4) == "1.336"


def test_a_form_of_n_alone_has_no_sentence_about_d(rows):
    noise = np.exp(0.002 * np.random.default_rng(0).standard_normal(len(rows)))
    of_n = replace(rows, loss_nats=(8.8e13 / rows.n_params) ** 0.076 * noise)
    head = headline(report_of(of_n, k=0, form="kaplan_n"))
    assert "no compute-optimal N and D" in head.sentence
    assert head.command == ("scalelab", "fit", "-v")


def test_published_models_far_beyond_the_runs_are_called_guesses():
    assert far_words([1e21, 1e23], 1e21) == ""
    words = far_words([1e21, 2e24, 3e25], 1e21)
    assert words.startswith("2 of 3 models have more than 1,000x the compute of the largest run ")
    assert "(2,000x to 30,000x)" in words
