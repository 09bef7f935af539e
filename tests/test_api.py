import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from scalelab import api
from scalelab.errors import DataError, NotIdentifiedError, UsageError
from scalelab.fit.bootstrap import BootstrapSpec
from scalelab.fit.objective import Objective

SMALL = BootstrapSpec(k=40)


@pytest.fixture(scope="module")
def file(isoflop_runs, tmp_path_factory):
    rows = isoflop_runs(noise=0.004)
    path = tmp_path_factory.mktemp("api") / "runs.csv"
    pd.DataFrame(
        {
            "params": rows.n_params,
            "n_tokens": rows.n_tokens,
            "loss": rows.loss_nats,
            "flops": rows.flops,
            "isoflop_budget": rows.budget,
            "recipe": np.where(np.arange(len(rows)) % 3 == 0, "b", "a"),
        }
    ).to_csv(path, index=False)
    return path


MAPPING = {"n_params": "params"}


def test_what_load_gives_fit_takes(file):
    frame = api.load(file, mapping={"n_params": "params"})
    assert list(frame)[:5] == ["n_params", "n_tokens", "loss_nats", "flops", "budget"]
    from_frame = api.fit(frame, bootstrap=SMALL, forecaster="law")
    from_file = api.fit(file, mapping=MAPPING, bootstrap=SMALL, forecaster="law")
    assert from_frame.fit.params == from_file.fit.params
    np.testing.assert_array_equal(from_frame.fit.samples, from_file.fit.samples)


def test_predict_is_what_fit_predicts(file):
    report = api.fit(file, mapping=MAPPING, bootstrap=SMALL, predict=["N=7e9", "C=1e22"])
    frame = api.predict(report, "N=7e9", "C=1e22")
    assert frame.loc[0, "n_params"] == 7e9
    np.testing.assert_array_equal(frame["loss_nats"], [f.loss_nats for f in report.forecasts])
    np.testing.assert_array_equal(frame["pred_high"], [f.pred_high for f in report.forecasts])


def test_predict_refuses_a_fit_that_is_not_identified(file):
    report = api.fit(
        file,
        mapping={"n_params": "params", "n_tokens": "1e10"},
        bootstrap=SMALL,
    )
    assert report.forecasts == ()
    with pytest.raises(NotIdentifiedError):
        api.predict(report, "N=7e9")


@pytest.mark.slow
def test_auto_fits_what_compare_ranks_first(file):
    report = api.fit(file, mapping=MAPPING, bootstrap=SMALL, form="auto", forecaster="law")
    assert report.comparison is not None
    assert report.fit.form == report.comparison.best.form
    assert report.fit.objective == report.comparison.best.objective


def test_compare_keeps_held_out_rows_out(file):
    holdout = "flops > 5e19"
    forms = ("chinchilla", "tied")
    objectives = (Objective(),)
    found = api.compare(file, mapping=MAPPING, holdout=holdout, forms=forms, objectives=objectives)
    assert max(found.folds) < 5e19
    every = api.compare(file, mapping=MAPPING, forms=forms, objectives=objectives)
    assert max(every.folds) > 5e19


def test_a_speedup_fits_the_other_rows(file):
    words = {"recipe_b": "recipe = 'b'", "bootstrap": SMALL, "forecaster": "law"}
    report = api.fit(file, mapping=MAPPING, **words)
    assert report.speedup is not None
    assert report.speedup.n_rows_a == report.fit.n_rows == 30
    assert report.speedup.n_rows_b == 15
    assert report.speedup.factor.low < 1 < report.speedup.factor.high


@pytest.mark.parametrize("condition", ["flops > 0", "flops < 0"])
def test_a_holdout_of_all_or_none_is_refused(file, condition):
    with pytest.raises(DataError, match="holdout"):
        api.fit(file, mapping=MAPPING, holdout=condition, bootstrap=SMALL)


def test_a_file_and_a_sweep_together_are_refused(file):
    with pytest.raises(UsageError, match="both the file"):
        api.fit(file, sweep="demo")


def test_the_row_order_does_not_change_the_fit(file):
    frame = api.load(file, mapping={"n_params": "params"})
    shuffled = frame.sample(frac=1, random_state=3)[list(reversed(frame.columns))]
    one = api.fit(frame, bootstrap=SMALL, predict=["N=7e9"], forecaster="law")
    two = api.fit(shuffled, bootstrap=SMALL, predict=["N=7e9"], forecaster="law")
    for name, interval in one.params.items():
        other = two.params[name]
        for left, right in ((interval.value, other.value), (interval.low, other.low)):
            assert right == pytest.approx(left, rel=1e-12)
    assert two.forecasts[0].pred_low == pytest.approx(one.forecasts[0].pred_low, rel=1e-12)
    assert two.isoflop.n_law is not None
    assert one.isoflop.n_law is not None
    assert two.isoflop.n_law.exponent == pytest.approx(one.isoflop.n_law.exponent, rel=1e-9)


def test_rejected_rows_are_said_with_their_lines(file, tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text(file.read_text() + "1e6,nan,3,1e15,,a\nx,1e9,3,1e15,,a\n")
    report = api.fit(path, mapping=MAPPING, bootstrap=SMALL, forecaster="law")
    (said,) = [w for w in report.warnings if w.code == "rejected_rows"]
    assert said.message.startswith("2 rows cannot be used")
    assert "line 47: n_tokens is not finite" in said.message


def test_importing_the_verbs_is_light():
    code = (
        "import sys; from scalelab import api; "
        "heavy = {'numpy', 'scipy', 'pandas', 'duckdb', 'matplotlib', 'torch', 'rich'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_fitting_a_file_needs_no_pandas(file):
    code = (
        "import sys; from scalelab import api; "
        "api.fit(sys.argv[1], mapping={'n_params': 'params'}); "
        "print('pandas' in sys.modules, 'matplotlib' in sys.modules)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "False False"
