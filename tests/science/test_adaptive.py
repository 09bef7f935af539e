"""ScaleBench, in its protocol: R^2 on the target after 1, 5 and 10 % of the pool's cost.

Published means: arXiv:2604.22753, table 2, the best method at each budget. Ten repeats a cell.
"""

import time

import numpy as np
import pytest

from scalelab.api.replay import replay_adaptive
from scalelab.store.public_tables import FOLDER

TABLES = FOLDER / "scalebench"
BEST_PUBLISHED = {
    ("farseer", 0.01): 0.67,
    ("farseer", 0.05): 0.88,
    ("farseer", 0.10): 0.93,
    ("data_constrained", 0.01): 0.73,
    ("data_constrained", 0.05): 0.85,
    ("data_constrained", 0.10): 0.86,
}
REPEATS = 10
TIME_S = 600.0 / len(BEST_PUBLISHED)
"""Share of ten minutes for each cell, on one core."""


@pytest.mark.science
@pytest.mark.parametrize(("name", "share"), BEST_PUBLISHED)
def test_the_target_is_predicted_better_than_by_the_published_methods(name, share):
    start = time.perf_counter()
    reports = [
        replay_adaptive(
            TABLES / f"{name}_train.csv",
            TABLES / f"{name}_test.csv",
            budget_share=share,
            seed=seed,
        )
        for seed in range(REPEATS)
    ]
    wall_s = time.perf_counter() - start
    r2 = np.array([report.r2 for report in reports])
    errors = np.mean([report.relative_errors for report in reports])
    print(
        f"{name} {share:.0%}: R^2 {r2.mean():.3f} +- {r2.std():.3f} (worst {r2.min():.3f}, "
        f"published {BEST_PUBLISHED[name, share]}), relative error {errors:.4f}, {wall_s:.0f} s"
    )
    assert all(report.replayed.spent <= report.replayed.budget for report in reports)
    assert r2.mean() > BEST_PUBLISHED[name, share]
    assert wall_s < TIME_S
