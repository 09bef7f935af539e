"""An adaptive sweep from first to last batch; the fake launcher takes losses from a law."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scalelab.api.adaptive import ProgressCallbacks, adapt, default_axes, parse_target
from scalelab.cli.main import main
from scalelab.errors import UsageError
from scalelab.forecast.adaptive import BUDGET_SHARES
from scalelab.launch.adaptive import SweepRound
from scalelab.launch.base import LaunchReport, LaunchRequest
from scalelab.records.run_dir import RunDir
from scalelab.records.sweep_dir import Results
from scalelab.records.types import RunRecord
from scalelab.sweep.cost import Speed
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.model_table import ModelTable
from scalelab.sweep.shape_rule import ALIGNED
from scalelab.sweep.shapes import has_sizes
from scalelab.sweep.spec import SweepSpec, sweep_from_mapping
from scalelab.sweep.speeds import unmeasured_cpu_speed
from scalelab.theory.accounting import count_params, train_flops
from scalelab.theory.laws import Chinchilla
from scalelab.units import parse_range

TRUTH = Chinchilla(A=20.0, B=60.0, E=0.9, alpha=0.3, beta=0.35)


def test_default_axes_follow_the_budget() -> None:
    sizes, lengths = (parse_range(text) for text in default_axes(1e20, tokenizer="bpe:32000"))
    assert len(sizes) == 10
    assert 6 * sizes[-1] * lengths[-1] == pytest.approx(1e20, rel=0.1)
    assert sizes[-1] / sizes[0] == pytest.approx(100, rel=0.1)
    with pytest.raises(UsageError, match="too small"):
        default_axes(1e9, tokenizer="bytes")


def test_default_axes_have_as_many_sizes_as_a_coarse_rule_has_shapes() -> None:
    rule = ModelTable(preset="gpt2").rules(ALIGNED)[0]
    sizes, _ = default_axes(1e16, tokenizer="bytes", rule=rule)
    low, high = (float(text) for text in sizes.partition(":")[0].split(".."))
    n_sizes = int(sizes.rpartition(":")[2])
    assert 3 <= n_sizes < 10
    assert has_sizes(low, high, n_sizes, 256, rule)
    assert not has_sizes(low, high, n_sizes + 1, 256, rule)


def test_targets_are_read() -> None:
    assert parse_target("C=1e24").flops == 1e24
    columns = parse_target("N=7B,D=2T").columns
    assert columns is not None
    assert float(columns["n_tokens"][0]) == 2e12
    for text in ("N=7B", "lr=1", "C=1e24,N=7B", "x"):
        with pytest.raises(UsageError, match="--target"):
            parse_target(text)


def test_a_dry_run_shows_the_next_batch_and_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("some text for a dry run. " * 400_000)
    words = [
        *("sweep", "adaptive", "--target", "C=1e14", "--budget", "2e12", "--dry-run"),
        *("--data", str(text), "--results", str(tmp_path / "results")),
    ]
    assert main([*words, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["dry_run"]
    assert answer["spend"] == {"flops": 0.0, "budget_flops": 2e12}
    assert answer["next"]
    assert sum(run["flops"] for run in answer["next"]) <= BUDGET_SHARES[0] * 2e12
    assert answer["plan_flops"] <= 2e12
    assert answer["width_after_plan"] < answer["width"]
    assert answer["target"][0]["loss_nats"] is None
    assert main(words) == 0
    assert "correlation" in capsys.readouterr().out
    assert not (tmp_path / "results" / "runs").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--budget", "1e20"], "no --target"),
        (["--target", "C=1e24"], "no --budget"),
        (["--target", "C=1e24", "--budget", "1e20", "--budget-share", "0.5"], "without --pool"),
        (["--target", "C=1e24", "--budget", "1e20", "--seed", "-1"], "--seed"),
        (["--target", "C=1e24", "--pool", "x.csv"], "--pool"),
        (["--pool", "x.csv"], "--target-rows"),
        (["--target", "C=1e24", "--budget", "1e20", "--until-width", "0"], "until-width"),
    ],
)
def test_missing_options_are_named(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", "adaptive", *words, "--json"]) == 2
    assert says in json.loads(capsys.readouterr().out)["error"]["given"]


class Answering(ProgressCallbacks):
    """Records the rounds without showing them."""

    def __init__(self) -> None:
        self.rounds: list[SweepRound] = []

    def on_batch(self, batch: SweepRound, *, is_dry_run: bool) -> None:
        self.rounds.append(batch)

    def on_launch(self, start: Callable[[Callable[..., None]], Any]) -> Any:
        return start(lambda view: None)


def sweep_of(text: Path) -> SweepSpec:
    return sweep_from_mapping(
        {
            "kind": "grid",
            "name": "asked",
            "n_params": "12K..60K:5",
            "n_tokens": "20K..400K:6",
            "data": {"paths": (str(text),), "eval_tokens": 4096},
        },
        source="the test",
    )


def finish(run: RunDir, noise: float) -> None:
    """Write the record of a finished run with the loss of the law."""
    spec = run.read_spec()
    attempt = run.claim()
    counts = count_params(spec.shape).by_convention()
    columns = {"n_params": counts["chinchilla"], "n_tokens": spec.n_tokens}
    attempt.write_note({"execution": asdict(ExecutionSpec()), "resumed_from": None})
    attempt.write_record(
        RunRecord(
            run_id=spec.run_id,
            attempt=attempt.number,
            token=attempt.token,
            status="done",
            loss_nats=float(TRUTH.loss(columns)) * (1 + noise),
            loss_se_nats=0.01,
            n_params=counts,
            flops=train_flops(spec.shape, spec.seq_len, spec.n_tokens),
            n_tokens=spec.n_tokens,
            unique_tokens=spec.n_tokens,
            n_steps=spec.n_steps,
            wall_s=1.0,
        )
    )
    attempt.accept()


@pytest.fixture
def launched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a results folder whose launches finish at once."""
    rng = np.random.default_rng(0)
    folder = Results(tmp_path / "results")

    def launch_at_once(request: LaunchRequest, watch: object) -> LaunchReport:
        missing = [run_id for run_id in request.run_ids if folder.run(run_id).accepted() is None]
        for run_id in missing:
            finish(folder.run(run_id), 0.002 * float(rng.standard_normal()))
        done = dict.fromkeys(request.run_ids, "done")
        return LaunchReport(statuses=done, n_started=len(missing), wall_s=0.0)

    def speed(plan: object, execution: object, n_workers: int) -> Speed:
        return unmeasured_cpu_speed(n_workers)

    monkeypatch.setattr("scalelab.launch.execute.launch_local", launch_at_once)
    monkeypatch.setattr("scalelab.launch.proposal.speed_for", speed)
    (tmp_path / "text").mkdir()
    for i in range(60):
        letters = rng.integers(97, 122, 10_000).astype(np.uint8)
        (tmp_path / "text" / f"{i}.txt").write_bytes(letters.tobytes())
    return folder.path


@pytest.mark.slow
def test_batches_are_run_and_known_until_the_budget_is_used(launched: Path) -> None:
    sweep, budget = sweep_of(launched.parent / "text"), 3e11
    showing = Answering()
    target = parse_target("C=1e13")
    report = adapt(sweep, target, budget=budget, callbacks=showing, results=launched)
    assert report.status == "spent"
    ids = [r.spec.run_id for b in showing.rounds for r in b.proposal.plan.rows]
    assert len(ids) == len(set(ids)) == report.last.n_known
    assert set(Results(launched).load_plan("asked").run_ids) == set(ids)
    assert Results(launched).load_plan("asked").kind == "adaptive"
    spent = sum(r.flops for b in showing.rounds for r in b.proposal.plan.rows)
    assert report.last.spent == pytest.approx(spent)
    assert spent <= budget
    for batch in showing.rounds[:-1]:
        allowed = next(s for s in BUDGET_SHARES if s * budget > batch.spent * (1 + 1e-9))
        cost = sum(row.flops for row in batch.proposal.plan.rows)
        assert len(batch.proposal.plan.rows) == 1 or batch.spent + cost <= allowed * budget * 1.001
    n_params, n_tokens = (float(report.last.round.target[k][0]) for k in ("n_params", "n_tokens"))
    exact = float(TRUTH.loss({"n_params": n_params, "n_tokens": n_tokens}))
    assert report.last.round.low[0] < exact < report.last.round.high[0]
    # The same command again has nothing left to do.
    again = Answering()
    adapt(sweep, target, budget=budget, callbacks=again, results=launched)
    assert len(again.rounds) == 1
    assert again.rounds[0].stop == "spent"
    # Another sweep on the same text knows these runs and does not pay for them.
    other = sweep.model_copy(update={"name": "other"})
    third = Answering()
    adapt(other, target, budget=budget, until_width=0.9, callbacks=third, results=launched)
    assert third.rounds[0].n_known == len(ids)
    assert third.rounds[0].spent == 0.0
    assert third.rounds[0].stop == "narrow"


def test_a_budget_below_every_run_is_refused(launched: Path) -> None:
    with pytest.raises(UsageError, match="cheapest"):
        adapt(
            sweep_of(launched.parent / "text"),
            parse_target("C=1e13"),
            budget=1e6,
            callbacks=Answering(),
            results=launched,
        )


def test_a_pool_that_is_given_needs_no_budget_for_a_default_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("some text for a dry run. " * 40_000)
    words = [
        *("sweep", "adaptive", "--target", "C=1e11", "--budget", "6e10", "--dry-run"),
        *("--data", str(text), "--results", str(tmp_path / "results")),
    ]
    assert main(words) == 2
    assert "give --n-params and --n-tokens" in capsys.readouterr().err
    assert main([*words, "--n-params", "12K..40K:3", "--n-tokens", "10K..50K:3"]) == 0


def test_a_pool_that_is_used_up_is_not_a_matter_of_budget(launched: Path) -> None:
    axes = {"n_params": (12e3,), "n_tokens": (1e4, 2e4)}
    pool = sweep_of(launched.parent / "text").model_copy(update=axes)
    budget = 1e12
    adapt(pool, parse_target("C=1e13"), budget=budget, callbacks=Answering(), results=launched)
    other = pool.model_copy(update={"name": "other"})
    with pytest.raises(UsageError, match="all 2 runs are finished"):
        adapt(other, parse_target("C=1e13"), budget=budget, callbacks=Answering(), results=launched)
