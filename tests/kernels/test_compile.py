"""All kernels compile for GPUs that need not be present, and their machine code is checked.

The interpreter does not model shared memory, registers or matrix units. A launch fails if a block
needs more shared memory than the device has, and is many times slower if registers spill, loads are
2 bytes wide or products are narrow. One shape of each class that a sweep can plan is compiled; see
`tests/benchmarks/kernels_matrix.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "kernels_compile.py"
KERNELS = {"_key_kernel", "_query_kernel", "_grad_weight_kernel", "_rows_kernel", "_update_kernel"}
OLDEST = "3.6.0"
"""The oldest Triton that `scalelab_kernels` supports."""


def compile_for(capability, folder, *options, triton=None):
    """Return the rows of `kernels_compile.py`, run with one core and another Triton if given."""
    report = folder / "report.json"
    command = [
        *(sys.executable, SCRIPT, "--capability", str(capability)),
        *("--json", report, *options),
    ]
    paths = [os.fspath(triton)] if triton else []
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([*paths, *(p for p in sys.path if p)]),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(report.read_text())
    assert {row["kernel"] for row in rows} >= KERNELS
    return rows


def faulty(rows):
    return [(row["case"], row["kernel"], *row["faults"]) for row in rows if row["faults"]]


@pytest.mark.slow
def test_every_class_of_shapes_for_hopper(tmp_path):
    assert faulty(compile_for(90, tmp_path)) == []


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("capability", [80, 89, 90, 100])
def test_every_class_in_all_dtypes(tmp_path, capability):
    assert faulty(compile_for(capability, tmp_path, "--every")) == []


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("capability", [80, 89, 90, 100])
def test_every_class_with_the_oldest_triton(tmp_path, capability, oldest_triton):
    rows = compile_for(capability, tmp_path, triton=oldest_triton)
    assert {row["triton"] for row in rows} == {OLDEST}
    assert faulty(rows) == []


@pytest.fixture(scope="module")
def oldest_triton(tmp_path_factory):
    """Return a folder with the oldest Triton, which comes before the installed one on the path."""
    folder = tmp_path_factory.mktemp("triton")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    command = [*install, "--target", folder, f"triton=={OLDEST}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


GOOD = {
    "kernel": "_key_kernel",
    "load_bits": 128,
    "allowed_n": 64,
    "shared_bytes": 100_000,
    "spills": 0,
    "loads": {"128": 8, "32": 4},
    "matrix": 16,
    "smallest_n": 64,
}
BAD = {
    "spill": {"spills": 2},
    "shared memory": {"shared_bytes": 300_000},
    "matrix units": {"matrix": 0, "smallest_n": 0},
    "N = 16, not 64": {"smallest_n": 16},
    "narrow loads": {"loads": {"16": 48, "128": 2}},
}


@pytest.fixture(scope="module")
def faults():
    """Return the rules, loaded apart: the script turns the interpreter off."""
    code = "import json, sys; from kernels_compile import faults;"
    code += "print(json.dumps([faults(row, 90) for row in json.load(sys.stdin)]))"
    rows = [GOOD, *(GOOD | change for change in BAD.values())]
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([os.fspath(SCRIPT.parent), *(p for p in sys.path if p)])
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, input=json.dumps(rows), capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def test_the_rules_accept_a_good_kernel_and_name_each_fault(faults):
    good, *bad = faults
    assert good == []
    for word, found in zip(BAD, bad, strict=True):
        assert len(found) == 1
        assert word in found[0]
