"""A saved sweep of three runs for the launcher of SLURM, and its results folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from scalelab.records.sweep_dir import Results, SavedPlan
from scalelab.sweep.plan import make_plan
from scalelab.sweep.planned_run import DataFacts
from scalelab.sweep.spec import sweep_from_mapping
from scalelab.sweep.tables import SlurmTable

CPU_TABLE = SlurmTable(gpus_per_run=0, target_job_minutes=0)


@pytest.fixture
def saved(tmp_path: Path) -> SavedPlan:
    sweep = sweep_from_mapping(
        {
            "kind": "grid",
            "name": "faults",
            "n_params": "20K",
            "n_tokens": 1e5,
            "train": {"seq_len": 32, "batch_seqs": 4, "lr": 0.01, "seeds": (0, 1, 2)},
        },
        source="the test",
    )
    facts = DataFacts(
        fingerprint="f" * 12,
        eval_fingerprint="e" * 12,
        tokenizer="bytes",
        vocab_size=256,
        n_train_tokens=10**6,
        n_eval_tokens=4096,
    )
    plan = make_plan(sweep, facts, precision="fp32")
    return Results(tmp_path / "results").save_plan(plan, sweep.science(), extend=False)


@pytest.fixture
def results(tmp_path: Path, saved: SavedPlan) -> Results:
    return Results(tmp_path / "results")
