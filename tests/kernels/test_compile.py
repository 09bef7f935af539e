"""Every kernel compiles for Hopper without a GPU, and what the compiler reports is sane."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "kernels_compile.py"
SHARED_BYTES_OF_A_BLOCK = 227 * 1024


@pytest.mark.slow
def test_kernels_compile_for_hopper_without_spills(tmp_path):
    report = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, SCRIPT, "--capability", "90", "--json", report],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(report.read_text())
    assert {row["kernel"] for row in rows} >= {"_forward_kernel", "_key_kernel", "_update_kernel"}
    assert [row for row in rows if row["spill_bytes"]] == []
    assert max(row["shared_bytes"] for row in rows) <= SHARED_BYTES_OF_A_BLOCK
    multiplies = {"_key_kernel", "_query_kernel", "_grad_hidden_kernel", "_grad_weight_kernel"}
    assert all(row["wgmma"] for row in rows if row["kernel"] in multiplies)
    streams = {"_update_kernel", "_rows_kernel", "_norm_kernel", "_spread_kernel"}
    assert all(row["wide_loads"] for row in rows if row["kernel"] in streams)
