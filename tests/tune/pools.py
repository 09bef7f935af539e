"""Runs for fits of tuning laws: real ones, and simulated ones with a known law."""

import csv
import math

import numpy as np

from scalelab.tune.runs_table import TunedRuns

SEQ_LEN = 2048


def real_pool(tables):
    """Return the 2,702 runs of arXiv:2503.04715, batches in tokens."""
    with (tables / "scalebench/lr_batch_train.csv").open() as file:
        rows = list(csv.DictReader(file))
    columns = {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}
    return TunedRuns(
        n_params=columns["n_params_non_embedding"],
        n_tokens=columns["n_tokens"],
        lr=columns["lr"],
        batch_tokens=columns["batch_sequences"] * SEQ_LEN,
        loss=columns["loss"],
    )


def step_law(n_params, n_tokens):
    """Return the published best learning rate and batch, tokens (README of the data)."""
    return 1.79 * n_params**-0.713 * n_tokens**0.307, 0.58 * n_tokens**0.571


def regret(cell, lr, batch_tokens):
    """Return the excess over the best loss of the 4 nearest runs in log lr and log batch, %."""
    distance = np.hypot(np.log(cell.lr / lr), np.log(cell.batch_tokens / batch_tokens))
    near = np.argsort(distance, kind="stable")[:4]
    return 100 * (cell.loss[near].mean() / cell.loss.min() - 1)


def simulated_pool(
    *, cells, seed=0, noise=1e-3, scatter=0.0, rates=8, batches=5, p=-0.6, q=0.3, bp=0.0, bq=0.55
):
    """Return runs on grids around a known law: lr* = 0.01 (N / 1e8)^p (D / 2e9)^q.

    The excess loss differs from the fitted form: quadratic in log lr and log batch with a cubic
    term. ``scatter`` is the standard deviation of each cell's optimum, in logs; ``noise`` is the
    standard deviation of log loss.
    """
    random = np.random.default_rng(seed)
    found = []
    for n_params, n_tokens in cells:
        centre = math.log(0.01) + p * math.log(n_params / 1e8) + q * math.log(n_tokens / 2e9)
        middle = math.log(2e5) + bp * math.log(n_params / 1e8) + bq * math.log(n_tokens / 2e9)
        shift = scatter * random.normal(size=2)
        # The grid is near the optimum, not centred on it, as a person would place it.
        start, first = centre + random.uniform(-0.4, 0.4), middle + random.uniform(-0.3, 0.3)
        for lr in start + 0.4 * (np.arange(rates) - rates // 2):
            for batch in first + 0.7 * (np.arange(batches) - batches // 2):
                u, v = lr - centre - shift[0], batch - middle - shift[1]
                q_ = 0.008 * (u - 0.3 * v) ** 2 + 0.003 * u**3 * (u > -1) + 0.006 * v * v
                best = 1.7 + 400 / n_params**0.34 + 410 / n_tokens**0.28
                loss = best * math.exp(q_ + noise * random.normal())
                found.append((n_params, n_tokens, math.exp(lr), math.exp(batch), loss))
    columns = np.array(found).T
    names = ("n_params", "n_tokens", "lr", "batch_tokens", "loss")
    return TunedRuns(**dict(zip(names, columns, strict=True)))
