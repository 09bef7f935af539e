"""A real tuning on the demo's sizes: in 10 minutes on 2 cores, and better than the default rule."""

import json
import subprocess
import sys
import time

import pytest

pytestmark = [pytest.mark.science, pytest.mark.timeout(1800)]
LONGEST_S = 600.0
SIZES = "20K,40K,80K"


def scalelab(*words):
    command = [sys.executable, "-m", "scalelab", *words, "--yes", "--json"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def test_a_tuned_rule_beats_the_default_rule(tmp_path):
    common = ("--seq-len", "128", "--workers", "2", "--results", str(tmp_path))
    cells = ("--n-params", SIZES, "--n-tokens", "150K,400K", "--batch-seqs", "1..16")
    started_s = time.time()
    said = scalelab("tune", *cells, "--trials", "8", "--name", "small", *common)
    wall_s = time.time() - started_s
    print(f"\ntune: {wall_s:.0f} s, {said['trials']}, law {said['law']['lr']}")
    losses = {}
    for rule in ("width", "tuned:small"):
        name = rule.partition(":")[0]
        grid = ("--n-params", SIZES, "--n-tokens", "800K", "--name", name, "--seeds", "0,1")
        rows = scalelab("sweep", "grid", *grid, "--lr-rule", rule, *common)["rows"]
        for row in rows:
            record = json.loads(
                next((tmp_path / "runs" / row["run_id"]).glob("attempts/*/record.json")).read_text()
            )
            losses.setdefault(rule, []).append(record["loss_nats"])
    for rule, found in losses.items():
        print(f"{rule}: {[round(loss, 4) for loss in found]}")
    assert wall_s <= LONGEST_S
    assert sum(losses["tuned:small"]) < sum(losses["width"])
