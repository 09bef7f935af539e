"""The trainer with Triton kernels, interpreted on the CPU, has the losses of the references."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from scalelab_kernels import operations

from scalelab.corpus.dataset import Dataset
from scalelab.errors import UsageError
from scalelab.sweep import execution as execution_names
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.run_spec import RunSpec, to_json
from scalelab.theory.shape import ModelShape
from scalelab.train.engine import Engine

PROGRAM = """
import json, sys
from pathlib import Path
from scalelab.corpus.dataset import open_dataset
from scalelab.sweep.execution import ExecutionSpec
from scalelab.sweep.run_spec import run_spec_from_mapping
from scalelab.train.engine import Engine

request = json.load(sys.stdin)
spec = run_spec_from_mapping(request["spec"])
dataset = open_dataset(Path(request["dataset"]))
found = {}
for kind in ("reference", "triton"):
    attention = {"reference": "explicit", "triton": "triton"}[kind]
    execution = ExecutionSpec(
        kernels=kind, attention=attention, metrics_interval_steps=spec.n_steps
    )
    engine = Engine([spec], execution)
    engine.initialize(0)
    for step in range(spec.n_steps):
        engine.step(dataset.batch(spec.seed, step, spec.batch_seqs, spec.seq_len))
    found[kind] = engine.read().losses[:, 0].tolist()
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is for Linux only")
def test_fifty_steps_with_interpreted_kernels_have_the_losses_of_the_references(
    spec: RunSpec, dataset: Dataset
) -> None:
    shape = ModelShape(
        n_layers=1, d_model=16, n_heads=2, n_kv_heads=1, d_head=8, d_ff=24, vocab_size=61
    )
    run = replace(spec, shape=shape, seq_len=8, batch_seqs=2, n_steps=50, z_loss=1e-4)
    request = {"spec": json.loads(to_json(run)), "dataset": str(dataset.folder)}
    answer = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
    )
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout)
    assert len(found["triton"]) == 50
    assert np.mean(found["reference"][-10:]) < np.mean(found["reference"][:10]) - 0.1
    np.testing.assert_allclose(found["triton"], found["reference"], rtol=0, atol=1e-4)
    assert found["triton"] != found["reference"]


def test_kernels_on_an_unsupported_device_are_an_error(
    spec: RunSpec, execution: ExecutionSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(UsageError, match="triton"):
        Engine([spec], replace(execution, kernels="triton"))
    with pytest.raises(UsageError, match="triton"):
        Engine([spec], replace(execution, attention="triton"))


def test_requests_name_the_operations_that_exist() -> None:
    assert execution_names.KERNELS == operations.IMPLEMENTATIONS
    assert execution_names.ATTENTIONS == operations.ATTENTION_PATHS
    unrepeatable = set(operations.ATTENTION_PATHS) - set(operations.REPEATABLE_PATHS)
    assert unrepeatable == set(execution_names.UNREPEATABLE_ATTENTIONS)
