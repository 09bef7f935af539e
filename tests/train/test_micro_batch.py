"""Where memory is short the micro-batch is halved, and the batch stays what it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from scalelab.launch.slurm.retries import classify
from scalelab.records.run_dir import RunDir
from scalelab.sweep.run_spec import ExecutionSpec, RunSpec
from scalelab.train import gradients, micro_batch
from tests.train.outcome import curve, last_note, result


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Return a function that makes memory too small for more sequences than so many."""

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
    found = micro_batch.fitting_execution([spec], ExecutionSpec())
    assert (found.micro_batch_seqs, tried) == (6, [24, 12, 6])
    assert micro_batch.fitting_execution([spec] * 2, replace(found, micro_batch_seqs=7)) == replace(
        found, micro_batch_seqs=7
    )
    memory(0)
    with pytest.raises(torch.OutOfMemoryError):
        micro_batch.fitting_execution([spec], ExecutionSpec())


def test_another_error_is_not_taken_for_a_lack_of_memory(
    spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take(self: gradients.Autograd, tokens: torch.Tensor) -> Any:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(gradients.Autograd, "take", take)
    with pytest.raises(RuntimeError, match="shapes"):
        micro_batch.fitting_execution([spec], ExecutionSpec())


def test_a_run_that_runs_out_of_memory_goes_on_with_smaller_micro_batches(
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


def test_a_run_whose_single_sequence_does_not_fit_fails_for_good(
    make_run: Callable[..., RunDir],
    attempt_at: Callable[..., str],
    memory: Callable[..., list[int]],
) -> None:
    run = make_run()
    memory(0)
    assert attempt_at(run) == "failed"
    assert "OutOfMemoryError" in last_note(run)["ended"]["reason"]
    # No smaller micro-batch is left for another job to try.
    kind = classify("COMPLETED", last_note(run), is_accepted=False, is_first=True)
    assert kind == "exception"
