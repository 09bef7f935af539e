"""The forms of special tables: fitted, cross-validated, and at the global optimum."""

import json

import numpy as np
import pytest

from scalelab import api
from scalelab.cli.main import main
from scalelab.errors import DataError, UsageError
from scalelab.fit.objective import Objective
from scalelab.fit.parametric import box_of
from scalelab.fit.penalty import Penalty
from scalelab.fit.powered_sum import row_model_of
from scalelab.fit.rows import design
from scalelab.fit.solver import search
from scalelab.theory.laws import law_named
from tests.fit.law_tables import LAW_TABLES, MOE, fitted, folds, r_squared, without_largest

# Measured (results/tables/laws.md), rounded down: R^2 of the first of 5 folds.
ENOUGH = {"parallel": 0.999, "vocabulary": 0.97, "experts": 0.94, "routed": 0.93, "sparsity": 0.88}
QUICK = [table for table in LAW_TABLES if table.form != "vocabulary"]
SLOW = [pytest.param(table, marks=pytest.mark.slow) for table in LAW_TABLES if table not in QUICK]


@pytest.mark.parametrize("table", [*QUICK, *SLOW], ids=lambda table: table.form)
def test_rows_that_were_left_out_are_predicted(table):
    assert r_squared(table.form, folds(table.rows())[0]) > ENOUGH[table.form]


def test_more_streams_than_were_fitted_are_predicted():
    table = LAW_TABLES[0]
    assert r_squared(table.form, without_largest(table.rows(), "n_streams")) > 0.9995


@pytest.mark.parametrize("table", [*QUICK, *SLOW], ids=lambda table: table.form)
def test_random_starts_find_no_better_optimum(table):
    rows = table.rows()[0]
    law = law_named(table.form)
    found = fitted(table.form, rows, "ls").law.to_coordinates()
    data = design(rows, law, Objective(residual="linear" if law.is_signed else "log"), None)
    model, box = row_model_of(law, data.columns), box_of(law, {})
    seeds = law.seeds(data.columns, data.rows.target)
    width = np.ptp(seeds, axis=0) + 0.2
    rng = np.random.default_rng(0)
    starts = rng.uniform(seeds.min(0) - 0.2 * width, seeds.max(0) + 0.2 * width, (60, len(width)))
    starts = model.eta(np.clip(starts, box.low, box.high))
    penalty = Penalty(delta=np.inf)
    best = search(model, starts, data.rows, penalty, box, n_starts=60).value
    ours = float(model.value(model.eta(found[None]), data.rows, penalty)[0])
    assert ours <= best * (1 + 1e-9)


def test_a_form_without_tokens_reads_a_table_without_them(capsys):
    mapped = ",".join(f"{ours}={theirs}" for ours, theirs in MOE.items())
    asked = ["fit", "--from", "public:scalebench_moe_train", "--map", mapped, "--bootstrap", "20"]
    assert main([*asked, "--form", "experts", "--predict", "N=1e9,n_experts=64"]) == 0
    out = capsys.readouterr().out
    assert "By the experts law" in out
    assert "N=1e9,n_experts=64: loss 2." in out
    # a law of N and D still asks for D
    assert main([*asked, "--form", "chinchilla"]) == 3
    assert "n_tokens" in capsys.readouterr().err


def test_a_missing_column_of_the_form_is_named():
    mapping = {name: theirs for name, theirs in MOE.items() if name != "n_experts"}
    with pytest.raises(UsageError, match="n_experts") as caught:
        api.fit("public:scalebench_moe_train", mapping=mapping, form="experts")
    assert "--map n_experts=COLUMN" in caught.value.do
    with pytest.raises(DataError, match="without n_params"):
        api.fit({"n_experts": [1, 2], "loss": [3.0, 2.0]}, form="experts")
    with pytest.raises(DataError, match="without n_params"):
        api.fit({"n_tokens": [1e9, 2e9], "loss": [3.0, 2.0]}, form="kaplan_n")


def test_only_a_signed_form_takes_negative_losses():
    rng = np.random.default_rng(0)
    N, D = np.exp(rng.uniform(18, 22, 60)), np.exp(rng.uniform(22, 25, 60))
    V = rng.choice([4e3, 1.6e4, 6.4e4], 60)
    truth = law_named("vocabulary")(
        A=32.0, B=28.0, F=4.5e3, E=-6.1, alpha=0.19, beta=0.5, gamma=0.42, delta=0.12
    )
    columns = {"n_params": N, "n_tokens": D, "vocab_size": V}
    loss = truth.loss(columns) * np.exp(1e-4 * rng.standard_normal(60))
    assert (loss < 0).any()
    report = api.fit({**columns, "loss": loss}, form="vocabulary", bootstrap=20)
    assert report.fit.objective.residual == "linear"
    assert report.fit.status in ("ok", "at_bound")
    np.testing.assert_allclose(report.fit.law.loss(columns), loss, rtol=0.01, atol=0.01)
    plain = api.fit({**columns, "loss": np.abs(loss)}, form="tied", bootstrap=0)
    assert len(plain.observations) == 60
    with pytest.raises(DataError, match="above zero"):
        api.fit({**columns, "loss": -np.abs(loss)}, form="tied")


def test_a_fit_without_sizes_has_no_other_approaches():
    table = {"n_params": [1e8, 2e8, 4e8, 8e8, 1e9, 2e9], "loss": [3.5, 3.3, 3.1, 2.95, 2.9, 2.75]}
    report = api.fit(table, form="kaplan_n", bootstrap=20)
    assert not report.observations.is_sized
    assert report.isoflop.reason == report.envelope.reason
    json.dumps(report.to_dict(), allow_nan=False)
    axes = report.plot().axes[0]
    assert axes.get_xlabel() == "observed loss"
    assert np.isfinite(axes.collections[0].get_offsets()).all()


def test_several_forms_ask_for_all_sizes():
    table = {"n_params": [1e8, 2e8, 4e8, 8e8, 1e9, 2e9], "loss": [3.5, 3.3, 3.1, 2.95, 2.9, 2.75]}
    with pytest.raises(DataError, match="without n_tokens"):
        api.fit(table, form="kaplan_n", compare_forms=True)
    with pytest.raises(UsageError, match="averaged forecaster with the form kaplan_n"):
        api.fit(table, form="kaplan_n", forecaster="averaged")
