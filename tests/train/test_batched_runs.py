"""Batched runs have the results of separate ones and do not depend on each other."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from scalelab.corpus.dataset import Dataset
from scalelab.errors import UsageError
from scalelab.records.run_dir import RunDir
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.run_spec import RunSpec
from scalelab.train import loop, worker
from scalelab.train.engine import Engine

MakeRun = Callable[..., RunDir]
MEMBERS: list[dict[str, Any]] = [
    {"seed": 3},
    {"seed": 4, "lr": 0.003, "beta2": 0.99},
    {"seed": 3, "lr": 0.02, "weight_decay": 0.0, "n_steps": 17},
    {"seed": 9, "grad_clip": 0.3, "warmup_steps": 10},
]


def losses_of(run: RunDir) -> dict[int, float]:
    found = {}
    for attempt in run.attempts():
        for line in attempt.metrics_path.read_text().splitlines():
            row = json.loads(line)
            found[row["step"]] = row["loss_nats"]
    return found


def final_loss(run: RunDir) -> float | None:
    accepted = run.accepted()
    assert accepted is not None
    record = accepted.read_record()
    assert record is not None
    return record.loss_nats


@pytest.fixture
def train_batched(
    make_run: MakeRun, dataset: Dataset, execution: ExecutionSpec
) -> Callable[..., tuple[list[RunDir], tuple[str, ...]]]:
    def train(
        group: str, members: list[dict[str, Any]], **options: Any
    ) -> tuple[list[RunDir], tuple[str, ...]]:
        runs = [make_run(group, **member) for member in members]
        chosen = replace(execution, batched_runs=len(runs))
        return runs, worker.run_batched([r.path for r in runs], dataset.folder, chosen, **options)

    return train


def test_batched_runs_have_the_losses_of_separate_ones(train_batched: Any) -> None:
    batched, statuses = train_batched("batched", MEMBERS)
    assert statuses == ("done",) * 4
    for run, member in zip(batched, MEMBERS, strict=True):
        (alone,), _ = train_batched("alone", [member])
        found, expected = losses_of(run), losses_of(alone)
        assert set(found) >= set(expected)
        assert [found[step] for step in expected] == pytest.approx(
            list(expected.values()), rel=2e-5
        )
        assert final_loss(run) == pytest.approx(final_loss(alone), rel=2e-5)
        assert len(run.attempts()) == 1


def test_the_bits_of_a_batched_run_do_not_depend_on_the_others(train_batched: Any) -> None:
    """The third run ends early, so the number of batched runs becomes smaller."""
    first, _ = train_batched("first", MEMBERS)
    others = [{"seed": 77, "lr": 0.05}, MEMBERS[1], {"seed": 5}, {"seed": 6, "n_steps": 22}]
    second, _ = train_batched("second", others)
    assert losses_of(first[1]) == losses_of(second[1])
    assert final_loss(first[1]) == final_loss(second[1])


def test_a_diverging_run_does_not_stop_the_others(train_batched: Any) -> None:
    harmful = {"seed": 8, "lr": 3e38, "grad_clip": 1e30, "warmup_steps": 0}
    calm, _ = train_batched("calm", [MEMBERS[0], {"seed": 8}, MEMBERS[1]])
    runs, statuses = train_batched("harmed", [MEMBERS[0], harmful, MEMBERS[1]])
    assert statuses == ("done", "diverged", "done")
    for index in (0, 2):
        assert final_loss(runs[index]) == final_loss(calm[index])
        assert all(math.isfinite(loss) for loss in losses_of(runs[index]).values())


def test_stopped_batched_runs_resume_to_the_same_bits(
    train_batched: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "POLL_INTERVAL_S", 0.0)
    straight, _ = train_batched("straight", MEMBERS)
    for patience in (2, 5, 11, 19):
        polls = iter([None] * patience + ["enough"] * 10)
        runs, statuses = train_batched(f"stopped-{patience}", MEMBERS, should_stop=polls.__next__)
        assert "preempted" in statuses
        runs, statuses = train_batched(f"stopped-{patience}", MEMBERS)
        assert statuses == ("done",) * 4
        for run, expected in zip(runs, straight, strict=True):
            assert final_loss(run) == final_loss(expected)


def test_runs_that_cannot_share_a_step_are_refused(spec: RunSpec, execution: ExecutionSpec) -> None:
    with pytest.raises(UsageError, match="differ in seq_len"):
        Engine([spec, replace(spec, seq_len=12)], execution)


def test_members_at_different_steps_use_their_own_rates(
    spec: RunSpec, execution: ExecutionSpec, dataset: Dataset
) -> None:
    ahead = Engine([spec], execution)
    ahead.initialize(0)
    for step in range(5):
        ahead.step(dataset.batch(spec.seed, step, spec.batch_seqs, spec.seq_len))
        ahead.read()
    both = Engine([spec, spec], execution)
    both.initialize(0)
    both.load_state(1, ahead.state(0))
    tokens = [dataset.batch(spec.seed, step, spec.batch_seqs, spec.seq_len) for step in (0, 5)]
    both.step(np.stack(tokens))
    ahead.step(tokens[1])
    alone = Engine([spec], execution)
    alone.initialize(0)
    alone.step(tokens[0])
    found = both.read().losses
    assert found[0] == pytest.approx(
        [alone.read().losses[0, 0], ahead.read().losses[0, 0]], rel=1e-5
    )
    for index, engine in enumerate((alone, ahead)):
        state = both.state(index)
        expected = engine.state(0)
        assert state["step"] == expected["step"]
        np.testing.assert_allclose(state["master"], expected["master"], atol=2e-6)
