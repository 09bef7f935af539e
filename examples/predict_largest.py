"""Fit a sweep without its largest budget, predict the losses of that budget, and print the errors.

Baseline: each model of the largest budget gets the loss of the model with the same rank at the
budget below.

Usage: python examples/predict_largest.py [SWEEP] [RESULTS]
"""

from __future__ import annotations

import sys

import numpy as np

import scalelab as sl
from scalelab.units import format_flops


def main(sweep: str = "demo", results: str = "results") -> None:
    """Print the errors of the predicted losses of the largest budget."""
    runs = sl.load(sweep=sweep, results=results).sort_values(["budget", "n_params"])
    budgets = [float(budget) for budget in np.unique(runs["budget"])]
    below, largest = budgets[-2:]
    held = runs[runs["budget"] == largest]
    report = sl.fit(runs, holdout=f"budget = {largest!r}")
    carried = runs.loc[runs["budget"] == below, "loss_nats"].to_numpy()[: len(held)]
    carried_error = np.abs(carried / held["loss_nats"].to_numpy()[: len(carried)] - 1)

    print(f"{sweep}: fitted on {len(runs) - len(held)} runs up to {format_flops(below)} FLOPs")
    print(f"law: {report.law_status}")
    print(f"baseline: mean relative error {carried_error.mean():.2%}")
    score = report.holdout
    if score is None:
        print("Nothing answers: there is no prediction.")
        return
    print(
        f"{report.forecaster.label} at {format_flops(largest)} FLOPs: mean relative error "
        f"{score.mean_relative_error:.2%}, largest {score.max_relative_error:.2%}"
    )
    print(
        f"{score.covered} of {score.n_rows} losses inside their {score.level:.0%} prediction "
        f"interval, mean width {score.mean_width:.3f} nats"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
