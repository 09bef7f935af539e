"""The micro-batch is halved until a step fits in memory; attention is chosen by measurement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from scalelab.corpus.dataset import Dataset
from scalelab.errors import UsageError
from scalelab.launch.slurm.retries import classify
from scalelab.records.run_dir import RunDir
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.run_spec import RunSpec
from scalelab.train import execution as executions
from scalelab.train import gradients
from tests.train.outcome import curve, last_note, result, run_attempt


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Return a function that limits how many sequences of a forward pass fit in memory."""

    def limit(fits: int, *, after: int = 0) -> list[int]:
        tried: list[int] = []
        original = gradients.Autograd.take

        def take(self: gradients.Autograd, tokens: torch.Tensor) -> Any:
            micro = self.execution.micro_batch_seqs or tokens.shape[-2]
            tried.append(micro)
            if micro > fits and len(tried) > after:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
            return original(self, tokens)

        monkeypatch.setattr(gradients.Autograd, "take", take)
        return tried

    return limit


def test_the_largest_micro_batch_that_fits_is_found(
    spec: RunSpec, memory: Callable[..., list[int]]
) -> None:
    spec = replace(spec, batch_seqs=24)
    tried = memory(7)
    found = executions.fitting_execution([spec], ExecutionSpec())
    assert (found.micro_batch_seqs, tried) == (6, [24, 12, 6])
    assert executions.fitting_execution([spec] * 2, replace(found, micro_batch_seqs=7)) == replace(
        found, micro_batch_seqs=7
    )
    memory(0)
    with pytest.raises(torch.OutOfMemoryError):
        executions.fitting_execution([spec], ExecutionSpec())


def test_other_errors_are_not_treated_as_out_of_memory(
    spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take(self: gradients.Autograd, tokens: torch.Tensor) -> Any:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(gradients.Autograd, "take", take)
    with pytest.raises(RuntimeError, match="shapes"):
        executions.fitting_execution([spec], ExecutionSpec())


def test_a_run_that_runs_out_of_memory_continues_with_smaller_micro_batches(
    make_run: Callable[..., RunDir],
    attempt_at: Callable[..., str],
    memory: Callable[..., list[int]],
) -> None:
    straight, short = make_run("straight"), make_run("short")
    assert attempt_at(straight, micro_batch_seqs=0) == "done"
    memory(2, after=9)
    assert attempt_at(short, checkpoint_interval_s=0.0) == "done"
    notes = [attempt.read_note() for attempt in short.attempts()]
    assert [note["execution"]["micro_batch_seqs"] for note in notes] == [0, 3, 1]
    assert [note["ended"]["status"] for note in notes] == ["failed", "failed", "done"]
    assert notes[-1]["resumed_from"]["step"] > 0
    found, expected = (np.array(list(curve(run).values())) for run in (short, straight))
    np.testing.assert_allclose(found, expected, rtol=2e-5)
    assert result(short).loss_nats == pytest.approx(result(straight).loss_nats, rel=2e-5)


def test_a_run_whose_single_sequence_does_not_fit_fails(
    make_run: Callable[..., RunDir],
    attempt_at: Callable[..., str],
    memory: Callable[..., list[int]],
) -> None:
    run = make_run()
    memory(0)
    assert attempt_at(run) == "failed"
    assert "OutOfMemoryError" in last_note(run)["ended"]["reason"]
    # The launcher does not retry: there is no smaller micro-batch.
    kind = classify("COMPLETED", last_note(run), is_accepted=False, is_first=True)
    assert kind == "exception"


def test_a_measured_attention_needs_a_gpu(spec: RunSpec, execution: ExecutionSpec) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU to measure on")
    with pytest.raises(UsageError, match="CUDA"):
        executions.fastest_attention(spec, execution)


def test_the_fastest_attention_is_stored_with_the_attempt(
    make_run: Callable[..., RunDir],
    dataset: Dataset,
    execution: ExecutionSpec,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def measure(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, float]:
        asked.append((shape, dtype))
        return {"explicit": 3.0, "sdpa": 2.0}

    monkeypatch.setattr(executions, "measure_attention", measure)
    run = make_run(n_steps=4)
    status = run_attempt(run.path, dataset.folder, replace(execution, attention="measured"))
    assert status == "done"
    spec = run.read_spec()
    shape = (spec.batch_seqs, spec.shape.n_heads, spec.shape.kv_heads, spec.seq_len)
    assert asked == [((*shape, spec.shape.d_head), torch.float32)]
    (attempt,) = run.attempts()
    kept = attempt.read_note()
    assert kept["execution"]["attention"] == "sdpa"
    assert kept["attention_ms"] == {"explicit": 3.0, "sdpa": 2.0}
