"""A whole step with interpreted kernels passes the check that a worker makes on its GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scalelab.sweep.execution import ExecutionSpec
from scalelab.theory.shape import ModelShape
from scalelab.train.calibrate import synthetic_run
from scalelab.train.qualify import cases, steps

SHAPE = ModelShape(n_layers=1, d_model=8, n_heads=2, n_kv_heads=1, d_head=4, d_ff=8, vocab_size=7)
TRITON = ExecutionSpec(kernels="triton", attention="triton")


@pytest.mark.slow
def test_a_whole_step_of_two_runs_is_right(monkeypatch):
    monkeypatch.setitem(steps.CHECKED_POSITIONS, "cpu", 3)
    monkeypatch.setattr(steps, "DRAWS", 1)
    spec = replace(synthetic_run(SHAPE, seq_len=4, batch_seqs=2), precision="bf16")
    found = cases.Cases("cpu").step(spec, 2, TRITON)
    assert (found["status"], found["reason"]) == ("ok", "")
    assert max(error for error, _ in found["checks"].values()) > 0
