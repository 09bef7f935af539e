"""Runs without hope are stopped, and no others: a real sweep with one bad learning rate."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from scalelab.cli.main import main
from scalelab.launch import prune
from scalelab.launch.execute import resume, save
from scalelab.launch.local import pool
from scalelab.launch.proposal import propose
from scalelab.records.run_dir import PRUNED_FILE
from scalelab.records.sweep_dir import Results
from scalelab.store.expected import HOPELESS_FROM
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.spec import sweep_from_mapping
from scalelab.sweep.speeds import unmeasured_cpu_speed

HOPELESS_LR = 3e-5
N_STEPS = 1500


def saved_sweep(results: Results, text: Path, *, lr: float, seeds: str, extend: bool) -> Any:
    sweep = sweep_from_mapping(
        {
            "kind": "grid",
            "name": "tiny",
            "n_params": "12K,30K",
            "n_tokens": N_STEPS * 8 * 32,
            "allow_repeats": True,
            "data": {"paths": (str(text),), "eval_tokens": 4096},
            "train": {"seq_len": 32, "batch_seqs": 8, "lr": lr, "seeds": seeds},
            "launcher": {"stop_hopeless": True},
        },
        source="the test",
    )
    proposal = propose(
        sweep,
        results,
        execution=ExecutionSpec(step="direct", batched_runs=1),
        n_workers=2,
        is_dry_run=False,
        speed=unmeasured_cpu_speed(1),
    )
    return save(proposal, results, extend=extend), [r.spec.run_id for r in proposal.plan.rows]


@pytest.mark.slow
def test_a_hopeless_run_is_pruned_and_a_healthy_sweep_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Looks are frequent enough for the few seconds, on a fast machine less, that a run takes.
    monkeypatch.setattr(prune, "LOOK_INTERVAL_S", 0.1)
    monkeypatch.setattr(pool, "TICK_S", 0.1)
    text, results = tmp_path / "text", Results(tmp_path / "results")
    text.mkdir()
    rng = random.Random(5)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 7))) for _ in range(200)]
    for number in range(60):
        (text / f"{number}.txt").write_text(" ".join(rng.choices(words, k=600)))
    saved, healthy = saved_sweep(results, text, lr=0.01, seeds="0,1,2", extend=False)
    notes: list[str] = []

    def launch(saved: Any) -> Any:
        return resume(
            saved,
            results,
            lambda view: notes.append(view.note),
            execution=ExecutionSpec(step="direct", metrics_interval_steps=2),
            n_workers=2,
        )

    assert set(launch(saved).statuses.values()) == {"done"}
    assert not [note for note in notes if "pruned" in note]
    saved, added = saved_sweep(results, text, lr=HOPELESS_LR, seeds="0", extend=True)
    statuses = launch(saved).statuses
    pruned = [run_id for run_id in added if statuses[run_id] == "pruned"]
    assert pruned
    assert {statuses[run_id] for run_id in healthy} == {"done"}
    for run_id in pruned:
        content = json.loads((results.run(run_id).path / PRUNED_FILE).read_text())
        assert HOPELESS_FROM * N_STEPS <= content["step"] < N_STEPS
        assert results.run(run_id).accepted() is None
    # Neither resume nor a retry of failed runs starts it again.
    folder = ["--results", str(results.path)]
    for command in ("resume", "retry"):
        assert main([command, "tiny", *folder, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["counts"]["pruned"] == len(pruned)
    assert main(["status", "tiny", *folder, "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert status["counts"]["pruned"] == len(pruned)
    shown = {run["run_id"]: run for run in status["runs"]}
    assert "the highest that the finished runs allow" in shown[pruned[0]]["reason"]
    assert main(["status", "tiny", *folder]) == 0
    assert "pruned as hopeless" in capsys.readouterr().out
    # Asked for by name, it continues to its end and is not pruned again.
    assert main(["retry", "tiny", "--status", "pruned", *folder, "--json"]) == 0
    assert "pruned" not in json.loads(capsys.readouterr().out)["counts"]
    assert main(["retry", "tiny", "--status", "pruned", *folder]) == 2
    assert "which has no pruned run" in capsys.readouterr().err
