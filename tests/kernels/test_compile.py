"""Every kernel compiles for devices that need not be there, and the compiler's report is sane.

The interpreter knows nothing of shared memory, registers or matrix units. A launch fails where a
block asks for more shared memory than a device has, and slows down many times where it spills.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "kernels_compile.py"
# Most shared memory of a block, CUDA C++ programming guide, technical specifications.
SHARED_KIB = {90: 227, 80: 163, 86: 99}
MULTIPLIES = {"_key_kernel", "_query_kernel", "_grad_hidden_kernel", "_grad_weight_kernel"}
STREAMS = {"_update_kernel", "_rows_kernel", "_norm_kernel", "_spread_kernel"}


def compile_for(capability, folder, *options):
    report = folder / "report.json"
    done = subprocess.run(
        [sys.executable, SCRIPT, "--capability", str(capability), "--json", report, *options],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(report.read_text())
    assert {row["kernel"] for row in rows} >= {"_forward_kernel", *MULTIPLIES, *STREAMS}
    assert max(row["shared_bytes"] for row in rows) <= SHARED_KIB[capability] * 1024
    return rows


@pytest.mark.slow
def test_for_hopper_nothing_spills_and_products_use_the_matrix_units(tmp_path):
    rows = compile_for(90, tmp_path)
    assert [row for row in rows if row["spill_bytes"]] == []
    assert all(row["wgmma"] for row in rows if row["kernel"] in MULTIPLIES)
    assert all(row["wide_loads"] for row in rows if row["kernel"] in STREAMS)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 86])
def test_for_ampere_the_widest_shapes_fit_and_products_use_the_matrix_units(tmp_path, capability):
    rows = compile_for(capability, tmp_path, "--largest")
    assert [row for row in rows if row["spill_bytes"] > 128] == []
    assert all(row["mma"] for row in rows if row["kernel"] in MULTIPLIES)
    assert all(row["wide_loads"] for row in rows if row["kernel"] in STREAMS)
