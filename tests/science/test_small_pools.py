"""Adaptive choice from small pools against the cheapest runs, and a whole pool against a tenth.

Each pool is 30 random runs of a shared table. Its 3 targets are random runs of the tenth with most
compute; the runs of the pool have at most a third of their compute. Ten pools a table; the
printed table, with standard errors of the differences, goes to results/tables/adaptive.md.
"""

import numpy as np
import pytest

from scalelab.api.data import read_runs, split_runs
from scalelab.forecast.adaptive import Target, next_round, replay
from scalelab.store.public_tables import PREFIX, list_public_tables

NAMES = ("chinchilla", "llama3", "marin", "datablations", "scalebench_farseer_train")
SEEDS, POOL, TARGETS, REACH = 10, 30, 3, 3.0
SHARES = (0.1, 0.3, 1.0)


def columns_of(rows, has_repeats):
    columns = {"n_params": rows.n_params, "n_tokens": rows.n_tokens}
    if has_repeats:
        columns["unique_tokens"] = np.minimum(rows.extra["unique_tokens"], rows.n_tokens)
    return columns


def cut(rows, seed):
    """Return pool and target rows."""
    rng = np.random.default_rng(seed)
    flops = 6 * rows.n_params * rows.n_tokens
    largest = np.flatnonzero(flops >= np.quantile(flops, 0.9))
    wanted = rng.choice(largest, TARGETS, replace=False)
    smaller = np.flatnonzero(flops <= flops[wanted].min() / REACH)
    return rows.take(rng.choice(smaller, min(POOL, len(smaller)), replace=False)), rows.take(wanted)


def errors_of(rows, seed, share):
    """Return the mean relative errors of the adaptive choice and of the cheapest runs."""
    has_repeats = "unique_tokens" in rows.extra
    pool, wanted = cut(rows, seed)
    columns, flops = columns_of(pool, has_repeats), 6 * pool.n_params * pool.n_tokens
    target = Target(columns=columns_of(wanted, has_repeats))
    budget = max(share * flops.sum(), 3 * flops.min())
    found = replay(
        columns,
        lambda chosen: pool.loss_nats[chosen],
        flops,
        target,
        budget=budget,
        seed=seed,
        pool_share=1.0,
    )
    order = np.argsort(flops)
    made = order[np.cumsum(flops[order]) <= budget * (1 + 1e-12)]
    last = next_round(
        {name: values[made] for name, values in columns.items()},
        pool.loss_nats[made],
        {name: values[:0] for name, values in columns.items()},
        flops[:0],
        target,
        left=0.0,
        now=0.0,
        rng=np.random.default_rng(seed),
    )
    return [float(np.abs(one.loss / wanted.loss_nats - 1).mean()) for one in (found.last, last)]


@pytest.mark.science
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", NAMES)
def test_the_adaptive_choice_is_not_worse_than_the_cheapest_runs(name):
    (public,) = (each for each in list_public_tables() if each.name == name)
    rows, *_ = split_runs(read_runs(PREFIX + name, where=public.where or None))
    found = np.array([[errors_of(rows, seed, share) for share in SHARES] for seed in range(SEEDS)])
    adaptive, cheapest = found.mean(axis=0).T
    gaps = found[..., 0] - found[..., 1]
    errors = gaps.std(axis=0, ddof=1) / np.sqrt(SEEDS)
    cells = " | ".join(
        f"{100 * a:.2f}, {100 * c:.2f} ({100 * (a - c):+.2f} +- {100 * e:.2f})"
        for a, c, e in zip(adaptive, cheapest, errors, strict=True)
    )
    print(f"\n| {name} | {cells} |")
    assert (adaptive <= cheapest).all()
    assert adaptive[-1] <= adaptive[0]
