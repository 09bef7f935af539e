"""Decisions about mixtures of experts: active parameters for compute, all for memory."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scalelab.api import fit
from scalelab.api.decisions import as_sweep, decide
from scalelab.cli.main import main
from scalelab.errors import UsageError
from scalelab.forecast.decision import Limits
from scalelab.forecast.fit_report import FitReport
from scalelab.sweep.plan import make_plan
from scalelab.sweep.planned_run import DataFacts
from scalelab.sweep.spec import sweep_from_mapping
from scalelab.theory.accounting import count_params, train_flops
from scalelab.theory.laws import Granularity

SHAPES = (256, 512)
EXPERTS = {"n_experts": 32, "granularity": 4, "n_shared_experts": 1}
LAW = Granularity(A=300.0, B=900.0, E=1.7, alpha=0.33, beta=0.31, g=250.0, gamma=0.6)
FLOPS = 1e20


def table() -> pd.DataFrame:
    """Return exact losses of the law, with 0.1 % of noise, as if from a sweep."""
    rng = np.random.default_rng(5)
    n, d, g = (
        axis.ravel()
        for axis in np.meshgrid(
            np.geomspace(1e6, 1e9, 6), np.geomspace(3e7, 3e10, 6), [1.0, 2.0, 4.0, 8.0]
        )
    )
    columns = {"n_params": n, "n_tokens": d, "granularity": g}
    loss = LAW.loss(columns) * np.exp(rng.normal(0, 1e-3, len(n)))
    return pd.DataFrame({**columns, "loss_nats": loss})


@pytest.fixture(scope="module")
def report() -> FitReport:
    found = fit(table(), form="granularity", bootstrap=20)
    assert found.fit.status == "ok"
    return found


def test_compute_counts_active_parameters_and_memory_all(report: FitReport) -> None:
    answer = decide(report, {"flops": FLOPS}, real_shapes=SHAPES, experts=EXPERTS)
    best = answer.best
    assert best is not None
    sweep = tomllib.loads(as_sweep(best, "a test", SHAPES, EXPERTS))
    facts = DataFacts(
        fingerprint="f",
        eval_fingerprint="e",
        tokenizer="bytes",
        vocab_size=SHAPES[0],
        n_train_tokens=10**12,
        n_eval_tokens=10**6,
    )
    (row,) = make_plan(sweep_from_mapping(sweep, source="a test"), facts, precision="bf16").rows
    # The emitted sweep plans the same mixture, tokens in whole steps.
    shape = row.spec.shape
    assert (shape.n_experts, shape.n_active_experts) == (32, 4)
    assert shape.d_shared_expert == shape.d_ff
    assert best.shape == shape.label()
    counts = count_params(shape)
    assert best.n_params == counts.of_active().total
    assert best.n_stored == counts.total > 3 * best.n_params
    assert best.flops == pytest.approx(FLOPS)
    assert train_flops(shape, SHAPES[1], round(best.n_tokens))["exact"] == pytest.approx(FLOPS)
    assert best.costs["serving_bytes"] == 2.0 * counts.total
    assert row.flops == pytest.approx(FLOPS, rel=0.01)


def test_the_loss_is_that_of_the_law_at_the_granularity(report: FitReport) -> None:
    best = decide(report, {"flops": FLOPS}, real_shapes=SHAPES, experts=EXPERTS).best
    assert best is not None
    run = {
        "n_params": np.array([best.n_params]),
        "n_tokens": np.array([best.n_tokens]),
        "granularity": np.array([4.0]),
    }
    law = report.fit.law
    assert best.loss_nats == pytest.approx(float(law.loss(run)[0]), rel=1e-9)
    assert best.loss_nats == pytest.approx(float(LAW.loss(run)[0]), rel=5e-3)
    draws = [float(each.loss(run)[0]) for each in report.fit.replicate_laws()]
    assert best.low is not None
    assert best.high is not None
    assert min(draws) <= best.low <= best.high <= max(draws)
    finer = decide(
        report, {"flops": FLOPS}, real_shapes=SHAPES, experts={**EXPERTS, "granularity": 2}
    ).best
    assert finer is not None
    assert finer.loss_nats > best.loss_nats


def test_a_limit_of_memory_binds_by_all_parameters(report: FitReport) -> None:
    free = decide(report, {"flops": FLOPS}, real_shapes=SHAPES, experts=EXPERTS).best
    assert free is not None
    most = free.n_stored  # bytes: half of what serving the best model takes
    limits = Limits(flops=FLOPS, serving_bytes=most)
    best = decide(report, limits, real_shapes=SHAPES, experts=EXPERTS).best
    assert best is not None
    assert 2.0 * best.n_stored <= most
    assert 2.0 * best.n_params < 0.5 * most


@pytest.mark.parametrize(
    ("experts", "shapes", "given"),
    [
        (EXPERTS, None, "experts without real shapes"),
        ({}, SHAPES, "form granularity without the experts"),
        ({"n_experts": 4, "n_active_experts": 8}, SHAPES, "n_active_experts = 8 with"),
        ({"granularity": 8}, SHAPES, "granularity (--granularity) without experts"),
    ],
)
def test_what_names_no_mixture_is_refused(report, experts, shapes, given) -> None:
    with pytest.raises(UsageError) as caught:
        decide(report, {"flops": FLOPS}, real_shapes=shapes, experts=experts)
    assert given in caught.value.given
    assert caught.value.do


def test_the_command_prints_active_and_all_parameters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "runs.csv"
    table().to_csv(file, index=False)
    words = ["decide", "--from", str(file), "--form", "granularity", "--flops", str(FLOPS)]
    words += ["--real-shapes", "--vocab-size", "256", "--n-experts", "32", "--granularity", "4"]
    assert main(words) == 0
    assert " active of " in capsys.readouterr().out
    assert main([*words, "--json"]) == 0
    best = json.loads(capsys.readouterr().out)["best"]
    assert best["n_params_total"] > 3 * best["n_params"]
    assert "4of32e" in best["shape"]
