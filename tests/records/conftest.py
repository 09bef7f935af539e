"""Fixtures: run folders."""

from pathlib import Path

import pytest

from scalelab.records.run_dir import Attempt, RunDir
from scalelab.records.types import RunRecord
from scalelab.sweep.run_spec import RunSpec
from scalelab.theory.accounting import count_params, train_flops
from scalelab.theory.shape import ModelShape


@pytest.fixture(scope="session")
def spec():
    return RunSpec(
        shape=ModelShape(n_layers=3, d_model=48, n_heads=3, d_head=16, d_ff=128, vocab_size=256),
        seq_len=96,
        batch_seqs=12,
        n_steps=340,
        lr=0.0031,
        warmup_steps=17,
        data_fingerprint="d" * 16,
        eval_fingerprint="e" * 16,
        tokenizer="bytes",
        seed=7,
    )


@pytest.fixture
def run(tmp_path: Path, spec):
    run = RunDir(tmp_path / "runs" / spec.run_id)
    run.write_spec(spec)
    return run


@pytest.fixture(scope="session")
def record_of(spec):
    def make(attempt: Attempt, *, loss_nats=1.4375, status="done") -> RunRecord:
        return RunRecord(
            run_id=attempt.run.run_id,
            attempt=attempt.number,
            token=attempt.token,
            status=status,
            loss_nats=loss_nats,
            loss_se_nats=0.011,
            n_params=count_params(spec.shape).by_convention(),
            flops=train_flops(spec.shape, spec.seq_len, spec.n_tokens),
            n_tokens=spec.n_tokens,
            unique_tokens=spec.n_tokens,
            n_steps=spec.n_steps,
            wall_s=12.5,
        )

    return make
