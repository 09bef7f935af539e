"""For each kind of step on a CPU, stopping and resuming at 20 steps does not change a bit."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from scalelab.corpus.dataset import Dataset
from scalelab.records.run_dir import RunDir
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.run_spec import RunSpec
from scalelab.theory.shape import ModelShape
from scalelab.train import loop, worker
from scalelab.train.engine import Engine
from tests.train.outcome import curve, result

MakeRun = Callable[..., RunDir]
N_STEPS = 30
STOPS = sorted(random.Random(11).sample(range(1, N_STEPS), 20))
BATCHED: list[dict[str, Any]] = [{"seed": 3}, {"seed": 4, "lr": 0.003}, {"seed": 5, "n_steps": 23}]
EXPERTS: dict[str, Any] = {
    "shape": ModelShape(
        n_layers=1,
        d_model=16,
        n_heads=2,
        d_head=8,
        d_ff=16,
        vocab_size=61,
        n_experts=4,
        n_active_experts=2,
        d_shared_expert=8,
    ),
    "router_z_weight": 1e-3,
}


def final(run: RunDir) -> float:
    loss = result(run).loss_nats
    assert loss is not None
    return loss


@pytest.fixture
def attempt(
    make_run: MakeRun, dataset: Dataset, execution: ExecutionSpec, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[list[RunDir], tuple[str, ...]]]:
    """Return a function that attempts batched runs, stopped after a step if given."""
    monkeypatch.setattr(loop, "POLL_INTERVAL_S", 0.0)

    def train(
        group: str, members: list[dict[str, Any]], step: str, stop_at: int | None = None, **way: Any
    ) -> tuple[list[RunDir], tuple[str, ...]]:
        runs = [make_run(group, **member) for member in members]
        taken = [0]
        original = Engine.step

        def counted(self: Engine, tokens: Any) -> None:
            original(self, tokens)
            taken[0] += 1

        with monkeypatch.context() as patch:
            patch.setattr(Engine, "step", counted)
            statuses = worker.run_batched(
                [run.path for run in runs],
                dataset.folder,
                replace(execution, step=step, batched_runs=len(runs), **way),
                should_stop=lambda: "enough" if taken[0] == stop_at else None,
            )
        return runs, statuses

    return train


@pytest.mark.parametrize(
    ("step", "members", "way"),
    [
        ("direct", BATCHED[:1], {}),
        ("direct", BATCHED[:1], {"micro_batch_seqs": 4}),
        ("direct", [{"precision": "bf16"}], {}),
        pytest.param("direct", BATCHED, {}, marks=pytest.mark.slow),
        pytest.param("eager", BATCHED, {}, marks=pytest.mark.slow),
        pytest.param("eager", [{**run, **EXPERTS} for run in BATCHED], {}, marks=pytest.mark.slow),
    ],
    ids=[
        "direct",
        "direct accumulated",
        "direct bf16",
        "direct batched",
        "eager batched",
        "experts batched",
    ],
)
def test_a_stop_at_any_step_changes_no_bit(
    attempt: Any, step: str, members: list[dict[str, Any]], way: dict[str, Any]
) -> None:
    straight, _ = attempt("straight", members, step, **way)
    for stop_at in STOPS:
        runs, statuses = attempt(f"at-{stop_at}", members, step, stop_at, **way)
        assert "preempted" in statuses
        runs, statuses = attempt(f"at-{stop_at}", members, step, **way)
        assert statuses == ("done",) * len(members)
        for run, expected in zip(runs, straight, strict=True):
            assert curve(run) == {**curve(run), **curve(expected)}
            assert final(run) == final(expected)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("default")
def test_a_compiled_run_is_the_same_from_any_step(
    spec: RunSpec, execution: ExecutionSpec, dataset: Dataset
) -> None:
    """Uses one engine for one compilation; a resumed run gets only the state of the first."""
    spec = replace(spec, shape=replace(spec.shape, n_layers=1))
    compiled = replace(execution, step="compiled", metrics_interval_steps=N_STEPS)
    engine = Engine([spec], compiled)
    engine.initialize(0)

    def train(first: int) -> np.ndarray[Any, Any]:
        for step in range(first, N_STEPS):
            if first == 0:
                states[step] = engine.state(0)
            engine.step(dataset.batch(spec.seed, step, spec.batch_seqs, spec.seq_len))
        return engine.read().losses

    states: dict[int, dict[str, Any]] = {}
    straight = train(0)
    for stop_at in STOPS:
        engine.load_state(0, states[stop_at])
        np.testing.assert_array_equal(train(stop_at), straight[stop_at:])


@pytest.mark.slow
def test_two_threads_give_the_bits_of_one(attempt: Any, spec: RunSpec) -> None:
    shape = replace(spec.shape, d_model=64, d_ff=176, n_heads=4, d_head=16)
    member = {"shape": shape, "batch_seqs": 16, "seq_len": 80, "n_steps": 8, "warmup_steps": 2}
    (one,), _ = attempt("one", [member], "direct")
    (two,), _ = attempt("two", [member], "direct", n_threads=2)
    assert curve(one) == curve(two)
    assert final(one) == final(two)


def test_a_resumed_run_keeps_its_kind_of_step(attempt: Any) -> None:
    """A run that began with eager steps keeps its bits when the default becomes direct."""
    (straight,), _ = attempt("straight", BATCHED[:1], "eager")
    (run,), _ = attempt("changed", BATCHED[:1], "eager", 13)
    attempt("changed", BATCHED[:1], "direct")
    assert run.attempts()[-1].read_note()["execution"]["step"] == "eager"
    assert final(run) == final(straight)
    (other,), _ = attempt("other", BATCHED[:1], "direct")
    assert final(other) != final(straight)
