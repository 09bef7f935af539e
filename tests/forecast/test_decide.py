"""Decisions: published optima, closed forms, every limit binding in its turn, monotone demand."""

from __future__ import annotations

import itertools
import json
import time
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalelab.api.decisions import Demand, as_sweep, decide, setting_of
from scalelab.cli.main import main
from scalelab.errors import UnknownHardwareError, UsageError
from scalelab.forecast.decide import decide as best_of
from scalelab.forecast.decide import forecaster, overhead, parse_candidate
from scalelab.forecast.decision import Limits
from scalelab.forecast.published_laws import PUBLISHED_LAWS
from scalelab.sweep.spec import sweep_from_mapping
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
    assert overhead(law, half * n_params, flops) == pytest.approx(half * k_d - 1, rel=0.01)


@pytest.mark.parametrize("name", LIMITS)
def test_each_limit_can_bind(name: str) -> None:
    others = {other: 1e3 * value for other, value in LIMITS.items() if other != name}
    answer = decide("besiroglu", Limits(**{name: LIMITS[name]}, **others), Demand(n_devices=1e3))
    assert answer.binding == (name,)
    assert answer.relaxed[name] > 0
    assert all(answer.relaxed[other] == pytest.approx(0, abs=1e-9) for other in others)


def test_memory_and_data_bind_beside_compute() -> None:
    memory = decide("besiroglu", Limits(flops=BUDGET, serving_bytes=40e9))
    assert set(memory.binding) == {"flops", "serving_bytes"}
    assert memory.best is not None
    assert memory.best.n_params == pytest.approx(20e9)
    data = decide("besiroglu", Limits(flops=BUDGET, unique_tokens=1e11))
    assert set(data.binding) == {"flops", "unique_tokens"}
    assert decide("besiroglu", Limits(flops=BUDGET, unique_tokens=1e14)).binding == ("flops",)


@given(law=laws, usd=st.floats(1e4, 1e8), demands=st.lists(st.floats(1e8, 1e11), min_size=2))
@settings(max_examples=10, deadline=None)
def test_more_demand_never_asks_for_a_larger_model(
    law: Chinchilla, usd: float, demands: list[float]
) -> None:
    setting = setting_of(Demand())
    sizes = []
    for demand in sorted(demands):
        answer = best_of(
            forecaster(law), Limits(usd=usd), replace(setting, inference_tokens=demand)
        )
        assert answer.best is not None
        sizes.append(answer.best.n_params)
    assert all(b <= a * (1 + 1e-4) for a, b in itertools.pairwise(sizes))


@given(law=laws, log10_flops=st.floats(18, 26), nudge=st.floats(-0.5, 0.5))
@settings(max_examples=20, deadline=None)
def test_no_neighbour_beats_the_best(law: Chinchilla, log10_flops: float, nudge: float) -> None:
    best = best_of(forecaster(law), Limits(flops=10**log10_flops), setting_of(Demand())).best
    assert best is not None
    beside = law.loss(
        {"n_params": best.n_params * 10**nudge, "n_tokens": best.n_tokens / 10**nudge}
    )
    assert float(beside) >= best.loss_nats - 1e-12


@pytest.mark.parametrize("flops", [1e20, 1e23])
def test_real_shapes_keep_the_budget_by_their_exact_flops(flops: float) -> None:
    from scalelab.sweep.ladder import nearest_shape
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
    setting = setting_of(Demand())
    plain = best_of(forecaster(Chinchilla(**base)), Limits(flops=BUDGET), setting).best
    same = best_of(forecaster(Gamma(**base, gamma=1.0)), Limits(flops=BUDGET), setting).best
    assert plain is not None
    assert same is not None
    assert same.n_params == pytest.approx(plain.n_params, rel=1e-4)
    bent = best_of(forecaster(Gamma(**base, gamma=0.6)), Limits(flops=BUDGET), setting).best
    assert bent is not None
    assert bent.loss_nats != pytest.approx(plain.loss_nats, rel=1e-3)
    repeated = forecaster(DataConstrained(**base, R_D=5.0, R_N=5.0))
    fresh = best_of(repeated, Limits(flops=BUDGET), setting).best
    assert fresh is not None
    assert fresh.loss_nats == pytest.approx(plain.loss_nats, rel=1e-6)
    scarce = best_of(repeated, Limits(flops=BUDGET, unique_tokens=1e10), setting)
    assert "unique_tokens" in scarce.binding
    with pytest.raises(UsageError, match="worth of repeats"):
        best_of(
            forecaster(Gamma(**base, gamma=0.6)), Limits(flops=1e20, unique_tokens=1e9), setting
        )
    with pytest.raises(UsageError, match="weighs N against D"):
        forecaster(BatchSize(k=1.0, q=0.5))


def test_named_candidates_are_judged_and_ranked() -> None:
    answer = decide("besiroglu", Limits(flops=1e23), candidates=["7B:2T", "70B:1.4T", "1B:1T"])
    assert [candidate.is_feasible for candidate in answer.candidates] == [True, False, True]
    assert answer.candidates[1].broken == ("flops",)
    assert answer.best is answer.candidates[0]
    assert answer.front == (0, 2)
    assert parse_candidate("7B:2T") == (7e9, 2e12)


def test_the_winner_is_a_sweep_file() -> None:
    best = decide("besiroglu", Limits(flops=1e22)).best
    assert best is not None
    spec = sweep_from_mapping(tomllib.loads(as_sweep(best, "scalelab decide")), source="the test")
    assert spec.n_params == pytest.approx((best.n_params,), rel=1e-5)


@pytest.mark.parametrize(
    ("limits", "demand", "words"),
    [
        ({}, {}, "no limit"),
        ({"serving_bytes": 1e9}, {}, "no limit"),
        ({"usd": 1.0}, {"inference_tokens": 1e16}, "no model keeps"),
        ({"flops": -1.0}, {}, "above zero"),
        ({"flops": 1e20}, {"inference_tokens": -1.0}, "zero or more"),
        ({"flops": 1e20}, {"utilisation": 0.0}, "a share above 0"),
    ],
)
def test_what_cannot_be_meant_is_told(
    limits: dict[str, float], demand: dict[str, float], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        decide("besiroglu", Limits(**limits), Demand(**demand))


def test_unknown_names_are_told() -> None:
    with pytest.raises(UnknownHardwareError):
        decide("besiroglu", Limits(flops=1e20), Demand(gpu="abacus"))
    with pytest.raises(UsageError, match="hoffmann"):
        decide("nobody", Limits(flops=1e20))


@pytest.mark.parametrize("demand", ["0", "-1e9"])
def test_a_demand_of_nothing_is_told(demand: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["decide", "--law", "hoffmann", "--flops", "1e20", f"--inference-tokens={demand}"]
    assert main([*words, "--json"]) == 2
    assert set(json.loads(capsys.readouterr().out)["error"]) == {"given", "allowed", "do"}


def test_contradictory_limits_are_told() -> None:
    # even the smallest model cannot be served that often for that money
    with pytest.raises(UsageError, match="no model keeps"):
        decide("besiroglu", Limits(usd=10.0, serving_bytes=1e5), Demand(inference_tokens=1e19))
    with pytest.raises(UsageError, match="no model keeps"):
        decide("besiroglu", Limits(flops=1e20, serving_bytes=10.0), real_shapes=(32_768, 4096))


def test_a_fit_that_is_not_identified_decides_nothing() -> None:
    from types import SimpleNamespace

    from scalelab.errors import NotIdentifiedError

    with pytest.raises(NotIdentifiedError, match="not identified"):
        forecaster(SimpleNamespace(status="not_identified"))  # type: ignore[arg-type]


def test_the_command_prints_the_contract(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "winner.toml"
    words = ["decide", "--law", "hoffmann", "--flops", "5.76e23", "--json", "--emit", str(out)]
    # Processor time: what the answer costs, whatever else the machine is doing.
    started = time.process_time()
    assert main(words) == 0
    assert time.process_time() - started < 1
    told = json.loads(capsys.readouterr().out)
    assert told["binding"] == ["flops"]
    assert told["best"]["n_params"] == pytest.approx(32.19e9, rel=1e-3)
    assert told["best"]["low"] is None
    assert {"best", "binding", "candidates"} <= told.keys()
    assert 'kind = "grid"' in out.read_text()
    assert main(["decide", "--law", "hoffmann", "--published", "--json"]) == 0
    verdicts = json.loads(capsys.readouterr().out)["published"]
    assert len(verdicts) > 90


def test_a_fit_has_intervals_and_a_probability_of_missing(shared_data: Path) -> None:
    from scalelab.api import fit
    from scalelab.fit.bootstrap import BootstrapSpec

    report = fit(shared_data / "chinchilla_svg" / "data.csv", bootstrap=BootstrapSpec(k=100))
    answer = decide(report, Limits(flops=1e23), target_loss=2.05)
    best = answer.best
    assert best is not None
    assert best.low is not None
    assert best.high is not None
    assert best.miss is not None
    assert best.low < best.loss_nats < best.high
    easy = decide(report, Limits(flops=1e23), target_loss=2.5).best
    assert easy is not None
    assert easy.miss < 0.01
    assert 0 < best.miss < 1
    assert np.isfinite(best.miss)
