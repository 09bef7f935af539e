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


def test_the_command_prints_the_contract(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    started = time.perf_counter()
    out = tmp_path / "winner.toml"
    words = ["decide", "--law", "hoffmann", "--flops", "5.76e23", "--json", "--emit", str(out)]
    assert main(words) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["binding"] == ["flops"]
    assert told["best"]["n_params"] == pytest.approx(32.19e9, rel=1e-3)
    assert told["best"]["low"] is None
    assert {"best", "binding", "candidates"} <= told.keys()
    assert 'kind = "grid"' in out.read_text()
    assert time.perf_counter() - started < 20
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
