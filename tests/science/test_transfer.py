"""The best learning rate stays put under muP and CompleteP, and moves under standard: 15 minutes.

The widths are 64 and 256, the depths 2 and 8. `results/tables/transfer.md` has the smaller widths.
"""

import json
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.science, pytest.mark.timeout(3600)]
SHAPES = "2L-64d-4h,2L-256d-16h,8L-64d-4h"


def test_the_best_rate_stays_within_a_factor_of_one_and_a_half(tmp_path):
    words = ("tune", "--transfer", "--shape-list", SHAPES, "--results", str(tmp_path))
    command = [sys.executable, "-m", "scalelab", *words, "--yes", "--json"]
    said = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    found = {(one["parametrization"], one["axis"]): one for one in said["drifts"]}
    for key, one in found.items():
        print(key, one["factor"], (one["low"], one["high"]), one["has_held"])
    assert found["mup", "width"]["has_held"]
    assert found["completep", "width"]["has_held"]
    assert found["completep", "depth"]["has_held"]
    assert found["standard", "width"]["factor"] > 2
    assert found["standard", "width"]["has_held"] is False
