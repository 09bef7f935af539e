"""All kernels compile for GPUs that need not be present, and the compiler's report is checked.

The interpreter does not model shared memory, registers or matrix units. A launch fails if a block
needs more shared memory than the device has, and is many times slower if registers spill.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "kernels_compile.py"
# Most shared memory of a block, CUDA C++ programming guide, technical specifications.
SHARED_KIB = {90: 227, 80: 163, 86: 99}
MULTIPLIES = {
    "_key_kernel",
    "_query_kernel",
    "_grad_hidden_kernel",
    "_grad_weight_kernel",
    "_gram_kernel",
}
STREAMS = {"_update_kernel", "_rows_kernel", "_norm_kernel", "_spread_kernel"}


OPTIONS = {90: (), 80: ("--largest",), 86: ("--largest",)}


@pytest.fixture(scope="module")
def compilers(tmp_path_factory):
    """Return the running compilers by capability; they run in parallel on one core each."""
    folder = tmp_path_factory.mktemp("reports")
    words = {
        capability: [
            *(sys.executable, SCRIPT, "--capability", str(capability), *options),
            *("--json", folder / f"{capability}.json"),
        ]
        for capability, options in OPTIONS.items()
    }
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "OMP_NUM_THREADS": "1",
    }
    with contextlib.ExitStack() as stack:
        started = {}
        for capability, command in words.items():
            log = stack.enter_context((folder / f"{capability}.log").open("w+"))
            process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.kill)
            started[capability] = process
        yield folder, started


def rows_for(capability, compilers):
    folder, started = compilers
    assert started[capability].wait() == 0, (folder / f"{capability}.log").read_text()
    rows = json.loads((folder / f"{capability}.json").read_text())
    assert {row["kernel"] for row in rows} >= {"_forward_kernel", *MULTIPLIES, *STREAMS}
    assert max(row["shared_bytes"] for row in rows) <= SHARED_KIB[capability] * 1024
    return rows


@pytest.mark.slow
def test_for_hopper_nothing_spills_and_products_use_the_matrix_units(compilers):
    rows = rows_for(90, compilers)
    assert [row for row in rows if row["spill_bytes"]] == []
    assert all(row["wgmma"] for row in rows if row["kernel"] in MULTIPLIES)
    assert all(row["wide_loads"] for row in rows if row["kernel"] in STREAMS)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 86])
def test_for_ampere_the_widest_shapes_fit_and_products_use_the_matrix_units(compilers, capability):
    rows = rows_for(capability, compilers)
    assert [row for row in rows if row["spill_bytes"] > 128] == []
    assert all(row["mma"] for row in rows if row["kernel"] in MULTIPLIES)
    assert all(row["wide_loads"] for row in rows if row["kernel"] in STREAMS)
