"""A worker needs only torch, Triton and NumPy, as a GPU node has them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from scalelab.corpus.dataset import Dataset
from scalelab.records.run_dir import RunDir
from tests.bare_machine import bare_environment
from tests.train.outcome import result

PROGRAM = """
import importlib, pkgutil, sys
from pathlib import Path

import scalelab.launch.local.worker
import scalelab.launch.slurm.job
import scalelab.train
import scalelab_kernels
for package in (scalelab.train, scalelab_kernels):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)

from scalelab.sweep.execution import ExecutionSpec
from scalelab.train.worker import run_batched

run, dataset = map(Path, sys.argv[1:])
print(run_batched([run], dataset, ExecutionSpec(step="direct")))
"""


def test_a_worker_trains_without_the_packages_of_a_laptop(
    make_run: Callable[..., RunDir], dataset: Dataset, tmp_path: Path
) -> None:
    run = make_run(n_steps=2, warmup_steps=0)
    root = Path(__file__).parents[2]
    environment = bare_environment(tmp_path, root, root / "kernels")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(run.path), str(dataset.folder)],
        capture_output=True,
        text=True,
        check=False,
        env={**environment, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "('done',)\n"
    assert result(run).n_steps == 2
