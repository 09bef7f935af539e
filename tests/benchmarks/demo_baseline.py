"""The demo's sweep beside the plain trainer: ``python tests/benchmarks/demo_baseline.py``.

Ours is the whole command, from its start to its end. The plain trainer of `train_baseline` takes
the same runs one after the other on all cores: tokens of each over its tokens/s at that shape,
measured before and after our sweep, with neither start-up nor evaluation nor checkpoints counted
against it. It needs a quiet machine.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tempfile
import time
from typing import Any

from train_baseline import measure

DEMO = "--budgets 8e10..8e11:4 --sizes 6 --span 8 --seq-len 64 --batch-seqs 9 --name demo"
SECONDS = 2.0


def scalelab(*words: str) -> dict[str, Any]:
    """Run a command and return its JSON object."""
    command = [sys.executable, "-m", "scalelab", *words, "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def plain_s(rows: list[dict[str, Any]]) -> float:
    """Return the seconds of the plain trainer for these runs."""
    speeds: dict[str, float] = {}
    for row in rows:
        if row["shape"] in speeds:
            continue
        found = re.match(r"(\d+)L-(\d+)d", row["shape"])
        assert found is not None
        n_layers, d_model = map(int, found.groups())
        shape = {"n_layers": n_layers, "d_model": d_model, "batch_seqs": row["batch_seqs"]}
        speeds[row["shape"]] = measure("baseline", shape, SECONDS, seq_len=row["seq_len"])
    return sum(row["n_tokens"] / speeds[row["shape"]] for row in rows)


def main() -> None:
    """Print one JSON object: both times and their ratio."""
    with tempfile.TemporaryDirectory() as results:
        sweep = ("sweep", "isoflop", *shlex.split(DEMO), "--results", results)
        planned = scalelab(*sweep, "--dry-run")
        before_s = plain_s(planned["rows"])
        started_s = time.perf_counter()
        done = scalelab(*sweep, "--yes")
        ours_s = time.perf_counter() - started_s
        after_s = plain_s(planned["rows"])
    theirs_s = (before_s + after_s) / 2
    print(
        json.dumps(
            {
                "planned_s": done["totals"]["wall_s"],
                "trained_s": done["wall_s"],
                "ours_s": ours_s,
                "plain_s": [before_s, after_s],
                "ours_over_plain": ours_s / theirs_s,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
