"""Decisions: published optima, closed forms, every limit binding in its turn, monotone demand."""

from __future__ import annotations

import itertools
import math
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalelab.api import fit
from scalelab.api.decisions import as_sweep, decide
from scalelab.errors import UnknownHardwareError, UsageError
from scalelab.fit.bootstrap import BootstrapSpec
from scalelab.forecast.allocate import parse_request
from scalelab.forecast.decide import decide as best_of
from scalelab.forecast.decide import parse_candidate
from scalelab.forecast.decision import Deployment, Limits
from scalelab.forecast.fit_report import FitReport
from scalelab.forecast.forecaster import forecaster
from scalelab.forecast.headline import headline
from scalelab.forecast.published_laws import PUBLISHED_LAWS
from scalelab.sweep.spec import sweep_from_mapping
from scalelab.theory.accounting import train_flops_6nd
from scalelab.theory.laws import Chinchilla

BUDGET = 5.76e23
# published.md, "Compute-optimal at 5.76e23 FLOP", rows 1 to 4: N in B, D in T, as printed.
OPTIMA = {
    "hoffmann": (32.19, 2.982),
    "hoffmann-tex": (40.36, 2.379),
    "besiroglu": (72.36, 1.327),
    "besiroglu-huber": (73.19, 1.312),
}
LIMITS = {
    "flops": 1e22,
    "gpu_hours": 5e3,
    "days": 0.2,
    "usd": 2e4,
    "kwh": 4e3,
    "kg_co2": 2e3,
}
laws = st.sampled_from([published.law for published in PUBLISHED_LAWS.values()])


@pytest.mark.parametrize("name", OPTIMA)
def test_published_optima_to_the_last_printed_digit(name: str) -> None:
    best = decide(name, Limits(flops=BUDGET)).best
    assert best is not None
    n_params, n_tokens = OPTIMA[name]
    assert round(best.n_params / 1e9, 2) == n_params
    assert round(best.n_tokens / 1e12, 3) == n_tokens
    assert best.low is None
    assert best.high is None


@given(law=laws, log10_flops=st.floats(19, 26))
@settings(max_examples=30, deadline=None)
def test_half_the_optimal_size_costs_what_the_closed_form_says(
    law: Chinchilla, log10_flops: float
) -> None:
    flops = 10**log10_flops
    n_params, n_tokens = (float(x) for x in law.optimal(flops))
    # de Vries 2023: k_D = (1 - (k_N^-alpha - 1) A N^-alpha / (B D^-beta))^(-1/beta).
    half = 0.5
    ratio = law.A * n_params**-law.alpha / (law.B * n_tokens**-law.beta)
    k_d = (1 - (half**-law.alpha - 1) * ratio) ** (-1 / law.beta)
    loss = law.loss({"n_params": n_params, "n_tokens": n_tokens})
    needed = train_flops_6nd(half * n_params, float(law.tokens_for(half * n_params, loss)))
    assert needed / flops - 1 == pytest.approx(half * k_d - 1, rel=0.01)


@pytest.mark.parametrize("name", LIMITS)
def test_each_limit_can_bind(name: str) -> None:
    others = {other: 1e3 * value for other, value in LIMITS.items() if other != name}
    answer = decide(
        "besiroglu", Limits(**{name: LIMITS[name]}, **others), Deployment(n_devices=1e3)
    )
    assert answer.binding == (name,)
    assert answer.relaxed[name] > 0
    assert all(answer.relaxed[other] == pytest.approx(0, abs=1e-9) for other in others)


def test_memory_and_data_can_bind_together_with_compute() -> None:
    memory = decide("besiroglu", Limits(flops=BUDGET, serving_bytes=40e9))
    assert set(memory.binding) == {"flops", "serving_bytes"}
    assert memory.best is not None
    assert memory.best.n_params == pytest.approx(20e9)
    data = decide("besiroglu", Limits(flops=BUDGET, unique_tokens=1e11))
    assert set(data.binding) == {"flops", "unique_tokens"}
    assert decide("besiroglu", Limits(flops=BUDGET, unique_tokens=1e14)).binding == ("flops",)


@given(law=laws, usd=st.floats(1e4, 1e8), demands=st.lists(st.floats(1e8, 1e11), min_size=2))
@settings(max_examples=10, deadline=None)
def test_more_served_tokens_never_give_a_larger_best_model(
    law: Chinchilla, usd: float, demands: list[float]
) -> None:
    deployment = Deployment()
    sizes = []
    for demand in sorted(demands):
        answer = best_of(
            forecaster(law), Limits(usd=usd), replace(deployment, inference_tokens=demand)
        )
        assert answer.best is not None
        sizes.append(answer.best.n_params)
    assert all(b <= a * (1 + 1e-4) for a, b in itertools.pairwise(sizes))


@given(law=laws, log10_flops=st.floats(18, 26), nudge=st.floats(-0.5, 0.5))
@settings(max_examples=20, deadline=None)
def test_no_size_is_better_than_the_best(law: Chinchilla, log10_flops: float, nudge: float) -> None:
    best = best_of(forecaster(law), Limits(flops=10**log10_flops), Deployment()).best
    assert best is not None
    beside = law.loss(
        {"n_params": best.n_params * 10**nudge, "n_tokens": best.n_tokens / 10**nudge}
    )
    assert float(beside) >= best.loss_nats - 1e-12


@pytest.mark.parametrize("flops", [1e20, 1e23])
def test_real_shapes_keep_the_budget_by_their_exact_flops(flops: float) -> None:
    from scalelab.sweep.shapes import nearest_shape
    from scalelab.theory.accounting import train_flops

    free = decide("besiroglu", Limits(flops=flops)).best
    answer = decide("besiroglu", Limits(flops=flops), real_shapes=(50_257, 2048))
    real = answer.best
    assert free is not None
    assert real is not None
    shape = nearest_shape(real.n_params, 50_257)
    assert real.shape == shape.label()
    exact = train_flops(shape, 2048, round(real.n_tokens))["exact"]
    assert exact == pytest.approx(real.flops, rel=1e-6)
    assert real.flops <= flops * (1 + 1e-9)
    assert real.flops != pytest.approx(6 * real.n_params * real.n_tokens, rel=1e-3)
    assert real.n_params == pytest.approx(free.n_params, rel=0.35)
    assert answer.binding == ("flops",)
    assert all(each.shape is not None for each in answer.candidates)
    assert answer.relaxed["flops"] > 0
    assert free.shape is None


@pytest.mark.parametrize("name", [*LIMITS, "serving_bytes"])
def test_each_limit_holds_for_real_shapes(name: str) -> None:
    value = {**LIMITS, "serving_bytes": 4e9}[name]
    limits = {"flops": 1e23, name: value}
    best = decide("besiroglu", Limits(**limits), real_shapes=(32_768, 4096)).best
    assert best is not None
    used = {**best.costs, "flops": best.flops}[name]
    assert used is not None
    assert used <= value * (1 + 1e-9)


def test_other_forms_decide_too() -> None:
    from scalelab.theory.laws import BatchSize, DataConstrained, Gamma

    base = {"A": 482.0, "B": 2085.4, "E": 1.817, "alpha": 0.3478, "beta": 0.3659}
    deployment = Deployment()
    plain = best_of(forecaster(Chinchilla(**base)), Limits(flops=BUDGET), deployment).best
    same = best_of(forecaster(Gamma(**base, gamma=1.0)), Limits(flops=BUDGET), deployment).best
    assert plain is not None
    assert same is not None
    assert same.n_params == pytest.approx(plain.n_params, rel=1e-4)
    bent = best_of(forecaster(Gamma(**base, gamma=0.6)), Limits(flops=BUDGET), deployment).best
    assert bent is not None
    assert bent.loss_nats != pytest.approx(plain.loss_nats, rel=1e-3)
    repeated = forecaster(DataConstrained(**base, R_D=5.0, R_N=5.0))
    fresh = best_of(repeated, Limits(flops=BUDGET), deployment).best
    assert fresh is not None
    assert fresh.loss_nats == pytest.approx(plain.loss_nats, rel=1e-6)
    scarce = best_of(repeated, Limits(flops=BUDGET, unique_tokens=1e10), deployment)
    assert "unique_tokens" in scarce.binding
    with pytest.raises(UsageError, match="a form with repeated tokens"):
        best_of(
            forecaster(Gamma(**base, gamma=0.6)), Limits(flops=1e20, unique_tokens=1e9), deployment
        )
    with pytest.raises(UsageError, match="trade-off between N and D"):
        best_of(forecaster(BatchSize(k=1.0, q=0.5)), Limits(flops=1e20), deployment)


def test_named_candidates_are_assessed() -> None:
    answer = decide("besiroglu", Limits(flops=1e23), candidates=["7B:2T", "70B:1.4T", "1B:1T"])
    assert [candidate.is_feasible for candidate in answer.candidates] == [True, False, True]
    assert answer.candidates[1].broken == ("flops",)
    assert answer.best is answer.candidates[0]
    assert answer.front == (0, 2)
    assert parse_candidate("7B:2T") == (7e9, 2e12)


def test_the_best_candidate_is_written_as_a_sweep_file() -> None:
    best = decide("besiroglu", Limits(flops=1e22)).best
    assert best is not None
    spec = sweep_from_mapping(tomllib.loads(as_sweep(best, "scalelab decide")), source="the test")
    assert spec.n_params == pytest.approx((best.n_params,), rel=1e-5)


@pytest.mark.parametrize("limits", [{}, {"unique_tokens": 1e14}])
def test_without_a_limit_on_compute_a_law_answers_for_the_compute_of_chinchilla(
    limits: dict[str, float],
) -> None:
    best = decide("besiroglu", limits).best
    assert best is not None
    assert best.flops == pytest.approx(5.76e23)


@pytest.mark.parametrize(
    ("limits", "demand", "words"),
    [
        ({"usd": 1.0}, {"inference_tokens": 1e16}, "exclude every model"),
        ({"flops": -1.0}, {}, "above 0"),
        ({"flops": 1e20}, {"inference_tokens": -1.0}, "number from 0"),
        ({"flops": 1e20}, {"utilisation": 0.0}, "a share above 0"),
        ({"flops": 1e20}, {"utilisation": math.nan}, "a share above 0"),
        ({"flops": 1e20}, {"n_devices": 0.0}, "number of devices"),
        ({"flops": 1e20}, {"n_devices": math.inf}, "number of devices"),
        ({"flops": 1e20}, {"bytes_per_param": 0.0}, "bytes per parameter"),
        ({"flops": 1e20}, {"usd_per_hour": -3.0}, "price of a device-hour"),
        ({"flops": 1e20}, {"usd_per_hour": math.nan}, "price of a device-hour"),
        ({"flops": 1e20}, {"grams_per_kwh": -5.0}, "g CO2 per kWh"),
        ({"usd": 1e3}, {"usd_per_hour": 0.0}, "price of 0"),
        ({"kg_co2": 1e3}, {"grams_per_kwh": 0.0}, "price of 0"),
    ],
)
def test_an_invalid_value_is_named(
    limits: dict[str, float], demand: dict[str, float], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        decide("besiroglu", Limits(**limits), Deployment(**demand))


def test_unknown_devices_and_laws_are_errors() -> None:
    with pytest.raises(UnknownHardwareError):
        decide("besiroglu", Limits(flops=1e20), Deployment(gpu="abacus"))
    with pytest.raises(UsageError, match="hoffmann"):
        decide("nobody", Limits(flops=1e20))


def test_contradictory_limits_are_named() -> None:
    # even the smallest model cannot be served that often for that money
    with pytest.raises(UsageError, match="exclude every model"):
        decide("besiroglu", Limits(usd=10.0, serving_bytes=1e5), Deployment(inference_tokens=1e19))
    with pytest.raises(UsageError, match="exclude every model"):
        decide("besiroglu", Limits(flops=1e20, serving_bytes=10.0), real_shapes=(32_768, 4096))


def test_a_fit_that_is_not_identified_cannot_decide() -> None:
    from scalelab.errors import NotIdentifiedError

    rows = [(1e8, 2e9, 3.5), (2e8, 4e9, 3.3), (4e8, 8e9, 3.1), (8e8, 16e9, 2.95)]
    table = dict(zip(("n_params", "n_tokens", "loss"), zip(*rows, strict=True), strict=True))
    law = fit(table, bootstrap=0, forecaster="law")
    with pytest.raises(NotIdentifiedError, match="not identified"):
        decide(law, Limits(flops=1e21))
    line = fit(table, bootstrap=0)
    with pytest.raises(NotIdentifiedError, match="one line of N and D"):
        decide(line, Limits(flops=1e21))
    on_it = decide(line, Limits(flops=1e21), candidates="1.6B:32B").best
    assert on_it is not None
    assert on_it.low is not None
    assert on_it.low < on_it.loss_nats < 2.95


def test_clean_power_lifts_the_limit_on_co2() -> None:
    free = decide("besiroglu", Limits(flops=1e22)).best
    clean = decide("besiroglu", Limits(flops=1e22, kg_co2=1.0), Deployment(grams_per_kwh=0.0)).best
    assert free is not None
    assert clean is not None
    assert clean.n_params == free.n_params
    assert clean.costs["kg_co2"] == 0


@pytest.fixture(scope="module")
def report(tables: Path) -> FitReport:
    return fit(tables / "chinchilla" / "data.csv", bootstrap=BootstrapSpec(k=200), forecaster="law")


@pytest.mark.parametrize("flops", [1e21, BUDGET])
def test_the_probability_of_missing_is_that_of_the_prediction_interval(
    report: FitReport, flops: float
) -> None:
    # Within the runs' compute, and beyond it, where inflation widens the interval.
    assert report.fit.inflation > 1
    best = decide(report, Limits(flops=flops)).best
    assert best is not None
    assert best.miss is None
    assert best.low is not None
    assert best.high is not None
    assert best.low < best.loss_nats < best.high
    at = report.fit.predict({"n_params": best.n_params, "n_tokens": best.n_tokens}, level=0.9)
    for target, chance in ((at.pred_high[0], 0.05), (at.pred_low[0], 0.95)):
        named = f"{best.n_params!r}:{best.n_tokens!r}"
        answer = decide(report, Limits(), candidates=[named], target_loss=float(target))
        (candidate,) = answer.candidates
        assert candidate.miss == pytest.approx(chance, abs=0.001)
    assert decide(report, Limits(flops=flops), target_loss=9.0).best.miss == 0  # type: ignore[union-attr]


def test_warnings_of_the_fit_and_of_extrapolation_are_kept(report: FitReport) -> None:
    near = decide(report, Limits(flops=1e21))
    assert near.warnings == report.warnings
    far = decide(report, Limits(flops=1e32))
    # The fit asks the same question, and says the same of the answer.
    request = parse_request("C=1e32")
    head = headline(report, forecast=report.forecaster.forecast(request))
    assert far.verdict is not None
    codes = [each.code for each in far.verdict.warnings]
    assert [each.code for each in head.warnings] == codes
    assert far.to_dict()["verdict"] == head.verdict == "with warnings"
    assert decide("hoffmann", Limits(flops=1e21)).to_dict()["verdict"] is None
    own, wide = [warning for warning in far.warnings if warning not in report.warnings]
    assert [own.code, wide.code] == ["extrapolation", "wide_optimum"]
    assert "x the FLOPs of the largest run" in own.message
    assert far.to_dict()["warnings"][0] == {"code": "extrapolation", "message": own.message}
    named = decide(report, Limits(), candidates=["1B:1T", "1T:1M"])
    assert [w.code for w in named.warnings].count("extrapolation") == 1


def test_the_best_model_uses_less_compute_if_repeated_data_saturate() -> None:
    answer = decide("besiroglu", Limits(flops=1e24, unique_tokens=1e9))
    best, full = answer.best, answer.candidates[1]
    assert best is not None
    assert full.flops == pytest.approx(1e24)
    assert best.flops < 1e-3 * full.flops
    assert 0 < best.loss_nats - full.loss_nats < 1.001e-3
    assert answer.binding == ("unique_tokens",)
    assert [warning.code for warning in answer.warnings] == ["repeated_data", "saturated"]
    # the answer does not depend on how much is left over
    less = decide("besiroglu", Limits(flops=1e23, unique_tokens=1e9)).best
    assert less is not None
    assert less.flops == pytest.approx(best.flops, rel=0.01)
    fresh = decide("besiroglu", Limits(flops=1e24, unique_tokens=1e14))
    assert fresh.binding == ("flops",)
    assert fresh.warnings == ()


@pytest.mark.parametrize(
    ("limits", "real_shapes"),
    [(Limits(flops=1e24, unique_tokens=1.0), None), (Limits(flops=1e30), (32_768, 4096))],
)
def test_a_best_size_at_the_edge_of_the_search_gives_a_warning(
    limits: Limits, real_shapes: tuple[int, int] | None
) -> None:
    told = decide("besiroglu", limits, real_shapes=real_shapes).warnings
    assert "edge_of_search" in [warning.code for warning in told]


@pytest.mark.parametrize("name", ["averaged", "law"])
def test_a_candidate_has_the_intervals_of_the_forecast_at_its_n_and_d(
    tables: Path, name: str
) -> None:
    data = tables / "chinchilla" / "data.csv"
    found = fit(data, bootstrap=BootstrapSpec(k=50), forecaster=name)
    best = decide(found, candidates="3e9:6e10").best
    assert best is not None
    at = {"n_params": np.array([3e9]), "n_tokens": np.array([6e10])}
    own = found.forecaster.predict(at, found.level)
    ends = [own.pred_low[0], own.low[0], own.high[0], own.pred_high[0]]
    given = [best.pred_low, best.low, best.high, best.pred_high]
    assert given == pytest.approx(ends, rel=1e-12)
    assert sorted(set(given)) == given
