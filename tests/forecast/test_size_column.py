"""Rows with several counts of N: which columns are counts, the average over them, the warning."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from scalelab import api
from scalelab.api.data import frame_of
from scalelab.fit.bootstrap import BootstrapSpec
from scalelab.fit.parametric import fit_parametric
from scalelab.fit.size_counts import size_counts
from scalelab.forecast.allocate import derived
from scalelab.forecast.averaged import AveragedFit
from scalelab.forecast.headline import NOT_STATED, headline
from scalelab.forecast.size_column import CountedFit, count_warnings, fit_counts
from scalelab.records.types import Observations
from scalelab.store.table_read import TableRead

VOCABULARY, NOISE = 50_000, 0.005
A = 0.28 / (0.34 + 0.28)


def total(blocks):
    """Return N with embeddings, of 12 layers x width^2 with a width of 64 x layers."""
    return blocks + VOCABULARY * (blocks * 64 / 12) ** (1 / 3)


def loss(blocks, D):
    """Return losses by a law of N with embeddings."""
    return 1.69 + 406.0 * total(blocks) ** -0.34 + 411.0 * D**-0.28


def best(flops):
    blocks = np.geomspace(1e6, 1e13, 8000)
    return float(blocks[np.argmin(loss(blocks, flops / 6 / total(blocks)))])


def table(seed, *, is_wrong=True, largest=1e20):
    """Return 45 runs; n_params is without embeddings if wrong, and the other count is offered."""
    rng = np.random.default_rng(seed)
    flops = np.repeat(np.geomspace(largest / 100, largest, 5), 9)
    centres = [best(c) * np.exp(0.15 * rng.standard_normal()) for c in flops[::9]]
    blocks = np.repeat(centres, 9) * np.tile(np.geomspace(1 / 6, 6, 9), 5)
    D = flops / 6 / total(blocks)
    N, other = (blocks, total(blocks)) if is_wrong else (total(blocks), blocks)
    return Observations(
        n_params=N,
        n_tokens=D,
        loss_nats=loss(blocks, D) * np.exp(NOISE * rng.standard_normal(len(D))),
        flops=6 * N * D,
        extra={"n_params_total" if is_wrong else "non_embedding_params": other},
    )


@pytest.mark.parametrize(
    ("name", "is_count"),
    [
        ("n_params_kaplan", True),
        ("total_params", True),
        ("non_embedding_params", True),
        ("num_parameters_nonembed", True),
        ("n_params_per_layer", False),
        ("n_params_embedding", False),
        ("kaplan", False),
        ("lr", False),
    ],
)
def test_counts_are_known_by_their_names(name, is_count):
    rows = table(0)
    (other,) = rows.extra.values()
    named = Observations(
        **{c: getattr(rows, c) for c in ("n_params", "n_tokens", "loss_nats", "flops")},
        extra={name: other},
    )
    assert list(size_counts(named)) == ([name] if is_count else [])


def test_a_count_is_used_if_n_determines_it_and_it_is_not_in_proportion_to_n():
    rows = table(0)
    noise = np.exp(0.2 * np.random.default_rng(0).standard_normal(len(rows)))
    rows.extra.update(
        n_params_active=rows.n_params / 8,
        n_params_all=rows.n_params * 3 * noise,
        n_params_chinchilla=np.where(np.arange(len(rows)) == 3, np.nan, rows.n_params + 1),
    )
    (relation,) = size_counts(rows).values()
    far = np.array([1e6, 1e12])
    np.testing.assert_allclose(relation.other(far), total(far), rtol=1e-6)


@pytest.mark.slow
def test_one_count_gives_the_plain_average():
    rows = table(0)
    found = fit_counts(Observations(
        n_params=rows.n_params, n_tokens=rows.n_tokens, loss_nats=rows.loss_nats, flops=rows.flops
    ))  # fmt: skip
    assert type(found) is AveragedFit


@pytest.mark.slow
def test_the_forecast_takes_the_count_of_the_truth_and_the_answer_says_so():
    rows = table(1)
    flops = 1e23
    at = {"n_params": np.array([best(flops)])}
    at["n_tokens"] = flops / 6 / total(at["n_params"])
    found = fit_counts(rows)
    assert isinstance(found, CountedFit)
    asked, other = found.counts
    assert other.weight > 0.9
    truth = loss(at["n_params"][0], at["n_tokens"][0])
    answer, alone = found.predict(at, 0.9), asked.fit.predict(at, 0.9)
    assert answer.low[0] <= truth <= answer.high[0]
    assert abs(answer.value[0] - truth) < abs(alone.value[0] - truth)
    assert answer.high[0] - answer.low[0] < 0.7 * (alone.high[0] - alone.low[0])
    draws = found.draws(at, 400, np.random.default_rng(0))
    assert np.median(draws) == pytest.approx(float(np.log(answer.value[0])), abs=0.005)

    question = f"N={at['n_params'][0]:.0f},D={at['n_tokens'][0]:.0f}"
    frame = frame_of(TableRead(observations=rows, lines=np.arange(len(rows))))
    report = api.fit(frame, predict=[question], forecaster="averaged", bootstrap=0)
    (message,) = (w.message for w in report.warnings if w.code == "count_of_n")
    assert "n_params_total 1.00" in message
    assert f"for {question}" in message


@pytest.mark.parametrize("is_wrong", [True, False])
def test_a_fit_warns_if_its_exponent_depends_on_the_count_and_not_if_it_has_the_better_one(
    is_wrong,
):
    rows = table(2, is_wrong=is_wrong)
    law = fit_parametric(rows, bootstrap=BootstrapSpec(k=100))
    a = derived(law, 0.9)["a"]
    assert (a.low <= A <= a.high) is not is_wrong
    messages = [w.message for w in count_warnings(law, rows, (), None, a)]
    assert len(messages) == is_wrong
    if is_wrong:
        assert "n_params_total, which explains the runs better" in messages[0]
        assert f"{a.value:.3f} with n_params, 0.4" in messages[0]


def test_a_fit_that_is_not_identified_names_the_count_that_is():
    rows = table(0, largest=1e18)
    law = fit_parametric(rows, bootstrap=BootstrapSpec(k=0))
    assert law.status == "not_identified"
    (warning,) = count_warnings(law, rows, (), None, derived(law)["a"])
    assert "determine the law with N from n_params_total" in warning.message


@pytest.mark.parametrize("convention", ["unstated", "chinchilla"])
@pytest.mark.parametrize("is_large", [False, True])
def test_a_count_that_nobody_stated_is_a_note_where_the_answer_depends_on_it(
    isoflop_runs, convention, is_large
):
    budgets = (1e24, 3e24, 1e25, 3e25) if is_large else (1e18, 3e18, 1e19, 3e19)
    rows = replace(isoflop_runs(noise=0.002, budgets=budgets), param_convention=convention)
    table = TableRead(observations=rows, lines=np.arange(len(rows)) + 2)
    report = api.fit(table, bootstrap=40)
    is_noted = convention == "unstated" and not is_large
    assert ("unstated_count" in [each.code for each in report.warnings]) is is_noted
    head = headline(report)
    assert (NOT_STATED in head.basis) is is_noted
    assert head.verdict == "sound"
