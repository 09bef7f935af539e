"""Which step a bf16 run takes on a CPU: the written-out one where bf16 products are fast."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from scalelab.records.run_dir import RunDir
from scalelab.sweep.execution import AUTO, ExecutionSpec
from scalelab.sweep.run_spec import RunSpec
from scalelab.train import calibrate, execution, precision, worker
from tests.train.outcome import last_note, result

ALL_AUTO = {"step": AUTO, "kernels": AUTO, "attention": AUTO}


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Return a function that sets what the probe finds."""

    def put(is_fast: bool) -> None:
        for module in (execution, worker):
            monkeypatch.setattr(module, "has_fast_bf16", lambda: is_fast)

    return put


@pytest.mark.parametrize(("least", "found"), [(0.0, True), (float("inf"), False)])
def test_the_probe_compares_the_speeds_and_restores_the_threads(
    monkeypatch: pytest.MonkeyPatch, least: float, found: bool
) -> None:
    monkeypatch.setattr(precision, "FAST_BF16", least)
    torch.set_num_threads(2)
    assert precision.has_fast_bf16.__wrapped__() is found
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("changes", "request_", "steps"),
    [
        ({"precision": "bf16"}, ALL_AUTO, ("direct", "eager")),
        ({"precision": "bf16"}, {**ALL_AUTO, "step": "direct"}, ("direct", "direct")),
        ({"precision": "bf16"}, {**ALL_AUTO, "attention": "sdpa"}, ("eager", "eager")),
        ({}, ALL_AUTO, ("direct", "direct")),
        ({}, {**ALL_AUTO, "step": "direct"}, ("direct", "direct")),
    ],
)
def test_a_bf16_run_takes_the_direct_step_only_where_the_probe_finds_it_fast(
    make_run: Callable[..., RunDir],
    attempt_at: Callable[..., str],
    fast: Callable[[bool], None],
    spec: RunSpec,
    changes: dict[str, str],
    request_: dict[str, str],
    steps: tuple[str, str],
) -> None:
    for is_fast, step in zip((True, False), steps, strict=True):
        fast(is_fast)
        run = make_run(f"{is_fast}", n_steps=2, warmup_steps=0, **changes)
        assert attempt_at(run, **request_) == "done"
        note = last_note(run)
        assert note["execution"]["step"] == step
        assert note["qualification"]["requested"] == request_
        is_slow = changes.get("precision") == "bf16" and step == "direct" and not is_fast
        assert [w["message"] for w in note["warnings"]] == [worker.SLOW_BF16] * is_slow
        timed = calibrate.timed_execution(ExecutionSpec(**request_), replace(spec, **changes))
        assert timed.step == step


@pytest.mark.parametrize("begins_fast", [True, False])
def test_a_run_that_resumes_on_another_cpu_keeps_its_step(
    make_run: Callable[..., RunDir],
    attempt_at: Callable[..., str],
    fast: Callable[[bool], None],
    begins_fast: bool,
) -> None:
    straight, run = (make_run(group, precision="bf16") for group in ("straight", "stopped"))
    fast(begins_fast)
    assert attempt_at(straight, **ALL_AUTO) == "done"
    assert attempt_at(run, 13, **ALL_AUTO) == "preempted"
    fast(not begins_fast)
    assert attempt_at(run, **ALL_AUTO) == "done"
    note = last_note(run)
    assert note["resumed_from"]["step"] > 0
    assert note["execution"]["step"] == ("direct" if begins_fast else "eager")
    assert [w["message"] for w in note["warnings"]] == [worker.SLOW_BF16] * begins_fast
    assert result(run).loss_nats == result(straight).loss_nats
