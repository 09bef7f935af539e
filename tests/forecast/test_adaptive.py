"""The adaptive loop: budgets kept, repeatable, honest about its losses, good on real pools."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scalelab.api.replay import replay_adaptive
from scalelab.cli.main import main
from scalelab.errors import DataError, UsageError
from scalelab.forecast.adaptive import Target, next_round, r_squared, replay
from scalelab.store.public_tables import FOLDER
from scalelab.theory.laws import Chinchilla

TABLES = FOLDER / "scalebench"
TRUTH = Chinchilla(A=482.0, B=2085.4, E=1.817, alpha=0.3478, beta=0.3659)


def pool(n: int = 80, seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    columns = {
        "n_params": np.exp(rng.uniform(np.log(2e7), np.log(2e9), n)),
        "n_tokens": np.exp(rng.uniform(np.log(5e8), np.log(5e10), n)),
    }
    flops = 6 * columns["n_params"] * columns["n_tokens"]
    return columns, flops, TRUTH.loss(columns) * np.exp(0.002 * rng.standard_normal(n))


TARGET_7B = Target(columns={"n_params": np.array([7e9]), "n_tokens": np.array([2e11])})


def test_a_replay_keeps_its_budget_and_reads_only_losses_of_chosen_runs() -> None:
    columns, flops, losses = pool()
    seen: list[int] = []

    def observe(chosen: np.ndarray) -> np.ndarray:
        seen.extend(int(j) for j in chosen)
        return losses[chosen]

    budget = 0.1 * flops.sum()
    replayed = replay(columns, observe, flops, TARGET_7B, budget=budget, seed=0)
    assert list(replayed.rows) == seen
    assert len(set(seen)) == len(seen)
    assert replayed.spent == pytest.approx(flops[seen].sum())
    assert 0.5 * budget < replayed.spent <= budget
    exact = float(TRUTH.loss(TARGET_7B.columns or {})[0])
    assert replayed.last.low[0] < exact < replayed.last.high[0]
    assert replayed.last.loss[0] == pytest.approx(exact, rel=0.01)
    again = replay(columns, lambda j: losses[j], flops, TARGET_7B, budget=budget, seed=0)
    assert again.rows == replayed.rows
    other = replay(columns, lambda j: losses[j], flops, TARGET_7B, budget=budget, seed=1)
    assert other.rows != replayed.rows


def test_the_unit_of_the_loss_does_not_matter() -> None:
    columns, flops, losses = pool()
    budget = 0.05 * flops.sum()
    nats = replay(columns, lambda j: losses[j], flops, TARGET_7B, budget=budget, seed=3)
    bits = replay(columns, lambda j: losses[j] / 7.7, flops, TARGET_7B, budget=budget, seed=3)
    assert bits.rows == nats.rows
    np.testing.assert_allclose(bits.last.loss * 7.7, nats.last.loss, rtol=1e-6)


def test_a_replay_stops_at_the_requested_width() -> None:
    columns, flops, losses = pool()
    budget = 0.5 * flops.sum()
    whole = replay(columns, lambda j: losses[j], flops, TARGET_7B, budget=budget, seed=0)
    wide = 2.0 * whole.last.width
    early = replay(
        columns, lambda j: losses[j], flops, TARGET_7B, budget=budget, seed=0, until_width=wide
    )
    assert early.last.width <= wide
    assert early.spent < whole.spent
    assert early.history[-2][2] > wide


def test_a_target_in_flops_is_at_the_optimum_of_the_fitted_law() -> None:
    columns, flops, losses = pool(200)
    made = np.arange(150)
    rest = np.arange(150, 200)
    rng = np.random.default_rng(0)
    known = {name: values[made] for name, values in columns.items()}
    free = {name: values[rest] for name, values in columns.items()}
    target = Target(flops=1e23)
    first = next_round(known, losses[made], free, flops[rest], target, left=1e21, now=1e20, rng=rng)
    again = next_round(
        known,
        losses[made],
        free,
        flops[rest],
        target,
        left=1e21,
        now=1e20,
        rng=rng,
        before=first.posterior.forms,
    )
    n_params, n_tokens = (float(again.target[name][0]) for name in ("n_params", "n_tokens"))
    assert 6 * n_params * n_tokens == pytest.approx(1e23)
    assert n_params == pytest.approx(float(TRUTH.optimal(1e23)[0]), rel=0.3)
    assert sum(choice.flops for choice in again.batch) <= 1e20


def test_r_squared_is_clipped() -> None:
    observed = np.array([1.0, 2.0, 3.0])
    assert r_squared(observed, observed) == 1.0
    assert r_squared(observed[::-1], observed) == -1.0
    assert r_squared(np.array([1.5, 2.0, 3.0]), observed) == pytest.approx(0.875)
    assert np.isnan(r_squared(observed[:1], observed[:1]))


@pytest.mark.parametrize(("name", "at_least"), [("farseer", 0.88), ("data_constrained", 0.85)])
def test_a_twentieth_of_a_real_pool_beats_the_published_methods(
    name: str, at_least: float, capsys: pytest.CaptureFixture[str]
) -> None:
    pool_file, target_file = (TABLES / f"{name}_{part}.csv" for part in ("train", "test"))
    code = main(
        [
            *("sweep", "adaptive", "--pool", str(pool_file), "--target-rows", str(target_file)),
            *("--budget-share", "0.05", "--seed", "0", "--json"),
        ]
    )
    answer = json.loads(capsys.readouterr().out)
    assert code == 0
    table = pd.read_csv(pool_file)
    cost = 6 * table.n_params * table.n_tokens
    assert answer["spend"]["flops"] == pytest.approx(cost[answer["rows"]].sum())
    assert answer["spend"]["share"] == pytest.approx(cost[answer["rows"]].sum() / cost.sum())
    assert answer["spend"]["share"] <= 0.05
    wanted = pd.read_csv(target_file).loss.to_numpy()
    predicted = np.array([each["predicted"] for each in answer["predictions"]])
    assert answer["r2"] == pytest.approx(r_squared(predicted, wanted))
    assert answer["relative_error"]["max"] == pytest.approx(np.abs(predicted / wanted - 1).max())
    assert answer["r2"] > at_least
    covered = [each["low"] <= each["loss"] <= each["high"] for each in answer["predictions"]]
    assert np.mean(covered) > 0.8


def frame(n: int = 30) -> pd.DataFrame:
    columns, _, losses = pool(n)
    return pd.DataFrame({**columns, "loss": losses})


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"budget_share": 0.0}, UsageError, "share"),
        ({"budget_share": 1.5}, UsageError, "share"),
        ({"budget_share": None}, UsageError, "no budget"),
        ({"budget": 1e20}, UsageError, "two budgets"),
        ({"budget_share": None, "budget": 1e10}, UsageError, "cheapest"),
    ],
)
def test_invalid_budgets_are_errors(
    change: dict[str, float | None], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        replay_adaptive(frame(), frame(3), **{"budget_share": 0.05, **change})  # type: ignore[arg-type]


def test_tables_must_agree_on_repeats() -> None:
    with pytest.raises(DataError, match="unique_tokens"):
        replay_adaptive(frame().assign(unique_tokens=1e9), frame(3), budget_share=0.1)


@pytest.mark.parametrize("width", ["x", "0%", "200%", "-1"])
def test_an_invalid_width_is_an_error(width: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(
        ["sweep", "adaptive", "--pool", "a", "--target-rows", "b", "--until-width", width, "--json"]
    )
    assert code == 2
    assert "until-width" in json.loads(capsys.readouterr().out)["error"]["given"]


def test_the_text_output_of_a_replay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame().to_csv(tmp_path / "pool.csv", index=False)
    frame(3).to_csv(tmp_path / "target.csv", index=False)
    words = ["sweep", "adaptive", "--pool", str(tmp_path / "pool.csv")]
    assert main([*words, "--target-rows", str(tmp_path / "target.csv"), "--budget", "1e20"]) == 0
    out = capsys.readouterr().out
    assert "R^2" in out
    assert "Forms by weight" in out
    assert main(words) == 2
