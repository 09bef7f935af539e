"""What a ladder's losses are worth: ``python tests/benchmarks/ladder_losses.py``.

At sizes and tokens of the demo, cosine runs of each (N, D) with three learning rates and three
seeds, and ladders of the same sizes, tokens, rates and seeds. Either side is given its best rate
for each (N, D); the gap of the mean losses stands beside the standard deviation over seeds. Takes
a few minutes on 2 cores and prints a table and one JSON object; the losses do not depend on how
busy the machine is.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

SIZES = "12K,40K"
TOKENS = "250K,500K,1M,2M"
FACTORS = "0.5,1,2"
"""Learning rates tried, over the default rule's at the middle of the tokens."""
SEEDS = "0,1,2"
COMMON = ("--seq-len", "64", "--batch-seqs", "9")

Losses = dict[tuple[float, float], list[float]]


def scalelab(*words: str) -> dict[str, Any]:
    """Run a command and return its JSON object."""
    command = [sys.executable, "-m", "scalelab", *words, *COMMON, "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def losses(kind: str, size: str, lr: float, results: Path) -> dict[float, list[float]]:
    """Train and return the seeds' losses by tokens."""
    words = ("--n-params", size, "--n-tokens", TOKENS, "--seeds", SEEDS, "--lr", f"{lr:g}")
    name = f"{kind}-{size}-{lr:g}"
    said = scalelab("sweep", kind, *words, "--name", name, "--results", str(results), "--yes")
    found = defaultdict(list)
    for row in said["rows"]:
        (record,) = (results / "runs" / row["run_id"]).glob("attempts/*/record.json")
        found[row["n_tokens"]].append(json.loads(record.read_text())["loss_nats"])
    return dict(sorted(found.items()))


def main() -> None:
    """Print the table and the JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default=SIZES)
    parser.add_argument("--factors", default=FACTORS)
    options = parser.parse_args()
    factors = [float(factor) for factor in options.factors.split(",")]
    rows = []
    print("N     D        cosine   ladder   gap      seeds   lr over the rule's (cosine, ladder)")
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder)
        for size in options.sizes.split(","):
            words = ("--n-params", size, "--n-tokens", "700K", "--results", folder, "--dry-run")
            rule = scalelab("sweep", "grid", *words)["rows"][0]["lr"]
            tried = {
                kind: {f: losses(kind, size, f * rule, results) for f in factors}
                for kind in ("grid", "ladder")
            }
            for i, d in enumerate(tried["grid"][factors[0]]):
                best = {}
                for kind, by_factor in tried.items():
                    each = {f: list(by_tokens.values())[i] for f, by_tokens in by_factor.items()}
                    factor = min(each, key=lambda f: statistics.mean(each[f]))
                    best[kind] = (factor, each[factor])
                (f_cosine, cosine), (f_ladder, ladder) = best["grid"], best["ladder"]
                row = {
                    "n_params": size,
                    "n_tokens": d,
                    "cosine": statistics.mean(cosine),
                    "ladder": statistics.mean(ladder),
                    "seed_sd": statistics.mean(
                        [statistics.stdev(cosine), statistics.stdev(ladder)]
                    ),
                    "factors": [f_cosine, f_ladder],
                }
                rows.append(row)
                print(
                    f"{size:5} {d / 1e6:.2f}M    {row['cosine']:.4f}   {row['ladder']:.4f}   "
                    f"{row['ladder'] - row['cosine']:+.4f}  {row['seed_sd']:.4f}  "
                    f"{f_cosine}, {f_ladder}",
                    flush=True,
                )
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
