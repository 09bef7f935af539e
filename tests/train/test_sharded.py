"""A run over several processes has the losses of one process, and resumes on another number."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scalelab.corpus.dataset import Dataset
from scalelab.sweep.run_spec import ExecutionSpec, RunSpec, to_json
from scalelab.train.engine import Engine

PROGRAM = """
import json, os, sys, warnings
from pathlib import Path
import torch.distributed as dist
from scalelab.corpus.dataset import open_dataset
from scalelab.sweep.run_spec import ExecutionSpec, run_spec_from_mapping
from scalelab.train.sharded import ShardedEngine

request = json.loads(sys.argv[1])
dist.init_process_group("gloo")
spec = run_spec_from_mapping(request["spec"])
dataset = open_dataset(Path(request["dataset"]))
engine = ShardedEngine(
    spec,
    ExecutionSpec(micro_batch_seqs=request["micro"]),
    recomputes_blocks=request["recomputes"],
)
if request["load"]:
    engine.load(Path(request["load"]))
else:
    engine.initialize()
found = []
while engine.n_steps < request["until"]:
    tokens = dataset.batch(spec.seed, engine.n_steps, spec.batch_seqs, spec.seq_len)
    found.append(engine.step(tokens))
if request["save"]:
    engine.save(Path(request["save"]))
if dist.get_rank() == 0:
    print(json.dumps(found))
dist.destroy_process_group()
"""


def train_sharded(spec: RunSpec, dataset: Dataset, n_ranks: int, **options: Any) -> Any:
    request = {
        "spec": json.loads(to_json(spec)),
        "dataset": str(dataset.folder),
        "micro": 0,
        "recomputes": False,
        "load": None,
        "save": None,
        "until": 6,
    }
    text = json.dumps({**request, **options})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, text],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "RANK": str(rank),
                "WORLD_SIZE": str(n_ranks),
            },
        )
        for rank in range(n_ranks)
    ]
    answers = [rank.communicate(timeout=240) for rank in ranks]
    assert all(rank.returncode == 0 for rank in ranks), answers[0][1] + answers[-1][1]
    return np.array(json.loads(answers[0][0].strip().splitlines()[-1]))


def single(spec: RunSpec, dataset: Dataset) -> Any:
    engine = Engine([spec], ExecutionSpec())
    engine.initialize(0)
    for step in range(6):
        engine.step(dataset.batch(spec.seed, step, spec.batch_seqs, spec.seq_len))
    readings = engine.read()
    return np.column_stack([readings.losses[:, 0], readings.norms[:, 0]])


@pytest.mark.slow
def test_two_ranks_with_micro_batches_equal_one_process_and_resume_on_three(
    spec: RunSpec, dataset: Dataset, tmp_path: Path
) -> None:
    spec = replace(spec, batch_seqs=12)
    expected = single(spec, dataset)
    folder = str(tmp_path / "saved")
    first = train_sharded(spec, dataset, 2, micro=2, until=3, save=folder)
    np.testing.assert_allclose(first, expected[:3], rtol=2e-5)
    rest = train_sharded(spec, dataset, 3, load=folder, recomputes=True)
    np.testing.assert_allclose(rest, expected[3:], rtol=5e-5)


def test_a_single_device_imports_nothing_distributed() -> None:
    code = (
        "import sys, scalelab.train.worker\n"
        "assert 'scalelab.train.sharded' not in sys.modules\n"
        "assert 'torch.distributed.fsdp' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
