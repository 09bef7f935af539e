"""The kernels' benchmark as a test: it runs to its end, prints its table and keeps its figures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.gpu
@pytest.mark.timeout(600)
def test_kernels_are_timed_beside_torch():
    report = ROOT / "results" / "published" / "gpu" / "kernels.json"
    script = ROOT / "tests" / "benchmarks" / "kernels_gpu.py"
    subprocess.run([sys.executable, script, "--json", report], check=True)
    cases = json.loads(report.read_text())["cases"]
    assert {case["op"] for case in cases} >= {"add_rms_norm", "swiglu", "adamw", "attention"}
    assert all(case["ms"]["kernel"] > 0 for case in cases)
