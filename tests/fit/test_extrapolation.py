"""Predictions of real runs that were not fitted, and the coverage of their intervals.

The goals are those of the project: marin's validation runs within 1.3 % on average, OLMo's 7B and
13B within 1.5 % and 2.5 % at delta 0.01, and at least 85 % of all held-out rows inside their 90 %
prediction interval.
"""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from scalelab import api
from scalelab.fit.bootstrap import BootstrapSpec
from scalelab.fit.objective import Objective

SPEC = BootstrapSpec(k=300)
OLMO = "is_final = 1 AND (mode = 'eval' OR (mode = 'train' AND run NOT LIKE '%0.5xC'))"
MARIN_SETS = ("comma", "nemotron")
"""The third set, dclm, has no validation runs in the table."""


def marin(tables: Path, dataset: str, forecaster: str = "law", **options):
    return api.fit(
        tables / "marin" / "data.csv",
        where=f"dataset = '{dataset}'",
        holdout="role = 'validation_optimal'",
        bootstrap=SPEC,
        forecaster=forecaster,
        **options,
    )


def olmo(tables: Path, forecaster: str = "law", **options):
    return api.fit(
        tables / "olmo_ladder" / "data.csv",
        where=OLMO,
        holdout="mode = 'eval'",
        bootstrap=SPEC,
        forecaster=forecaster,
        **options,
    )


def best_form(tables: Path, name: str):
    """Return the form that was chosen without the targets, and how it did on them."""
    report = olmo(tables, form="auto") if name == "olmo" else marin(tables, name, form="auto")
    return report.fit.form, report.holdout


def mean_error(holdouts):
    rows = [holdout.n_rows for holdout in holdouts]
    return np.average([holdout.mean_relative_error for holdout in holdouts], weights=rows)


def test_the_default_law_predicts_real_runs_and_its_intervals_cover(tables):
    holdouts = [marin(tables, name).holdout for name in MARIN_SETS]
    assert sum(holdout.n_rows for holdout in holdouts) == 15
    assert mean_error(holdouts) <= 0.013
    holdouts.append(olmo(tables).holdout)
    assert sum(holdout.n_rows for holdout in holdouts) == 17
    assert sum(holdout.covered for holdout in holdouts) / 17 >= 0.85
    # Losses are near 3: intervals of 4 % on marin's sets, of 10 % on OLMo's from 16 small runs.
    assert max(holdout.mean_width for holdout in holdouts[:2]) <= 0.15
    assert holdouts[2].mean_width <= 0.27


def test_the_averaged_forecast_predicts_real_runs_closer_than_any_law(tables):
    holdouts = [marin(tables, name, "averaged").holdout for name in MARIN_SETS]
    assert mean_error(holdouts) <= 0.007
    report = olmo(tables, "averaged", predict=[f"N={n},D={d}" for n, d, _ in _targets(tables)])
    for found, (_, _, loss), limit in zip(
        report.forecasts, _targets(tables), (0.008, 0.023), strict=True
    ):
        assert abs(found.loss_nats / loss - 1) <= limit
        assert found.pred_low <= loss <= found.pred_high
    # The goal, 85 % of 17 rows, is missed by one row: results/tables/backtest.md.
    assert sum(holdout.covered for holdout in [*holdouts, report.holdout]) >= 14


def test_the_default_form_warns_of_a_misfit_on_marins_runs(tables):
    codes = {warning.code for warning in marin(tables, "nemotron").warnings}
    assert "misfit" in codes


@pytest.mark.parametrize(
    ("delta", "small", "large"), [(0.01, 0.015, 0.025), (None, 0.0195, 0.0375)]
)
def test_the_olmo_targets_are_predicted_from_the_ladder(tables, delta, small, large):
    report = olmo(tables, objective=Objective(delta=delta))
    assert report.fit.n_rows == 16
    for (n_params, n_tokens, loss), limit in zip(_targets(tables), (small, large), strict=True):
        value = report.fit.law.loss({"n_params": n_params, "n_tokens": n_tokens})
        assert abs(value / loss - 1) <= limit
    assert report.holdout.covered == 2


def _targets(tables: Path):
    from scalelab.store.read_options import ReadOptions
    from scalelab.store.tables import read_table

    rows = read_table(
        tables / "olmo_ladder" / "data.csv",
        ReadOptions(where="is_final = 1 AND mode = 'eval'"),
    ).observations
    order = np.argsort(rows.n_params)
    return [(rows.n_params[i], rows.n_tokens[i], rows.loss_nats[i]) for i in order]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_form_chosen_without_the_targets_does_better_and_its_intervals_cover(
    tables, monkeypatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # Each is one process's work: on two cores they take half as long side by side.
    with ProcessPoolExecutor(2, get_context("spawn")) as processes:
        found = [processes.submit(best_form, tables, name) for name in (*MARIN_SETS, "olmo")]
        forms, holdouts = zip(*(each.result() for each in found), strict=True)
    assert set(forms) == {"gamma"}
    # 0.62 and 0.41 % on marin's sets, 1.5 % on OLMo's two targets.
    assert mean_error(holdouts[:2]) <= 0.006
    assert holdouts[2].mean_relative_error <= 0.016
    assert sum(holdout.n_rows for holdout in holdouts) == 17
    assert sum(holdout.covered for holdout in holdouts) / 17 >= 0.85
    # Narrower than the default's, and still covering.
    assert max(holdout.mean_width for holdout in holdouts) <= 0.1
