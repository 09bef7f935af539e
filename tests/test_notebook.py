"""Arguments in the forms that notebook users write, and reports that show themselves."""

import inspect
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import scalelab as sl
from scalelab import api


@pytest.fixture(scope="module")
def frame(isoflop_runs):
    rows = isoflop_runs(noise=0.004)
    columns = ("n_params", "n_tokens", "loss_nats", "flops", "budget")
    return pd.DataFrame({name: getattr(rows, name) for name in columns})


@pytest.fixture(scope="module")
def report(frame):
    return sl.fit(frame, bootstrap=40, predict="C=1e24")


@pytest.fixture(scope="module")
def law(frame):
    return sl.fit(frame, bootstrap=0, forecaster="law").fit.params


def test_the_package_has_every_name_of_the_api():
    for name in api.__all__:
        assert hasattr(sl, name)
        if name not in ("fit", "launch", "tune"):
            assert getattr(sl, name) is getattr(api, name)
    assert set(api.__all__) <= set(dir(sl))
    assert not {"Any", "ModuleType", "TYPE_CHECKING", "importlib", "sys"} & set(dir(sl))
    with pytest.raises(AttributeError, match="fitt"):
        sl.fitt  # noqa: B018


@pytest.mark.parametrize("name", ["fit", "launch", "tune"])
def test_the_help_of_a_verb_that_is_also_a_package_is_that_of_the_verb(name):
    first, _, rest = getattr(sl, name).__doc__.partition("\n\n")
    assert first.startswith(f"{name}(")
    assert rest.startswith(inspect.getdoc(getattr(api, name)))


def test_importing_the_package_is_light_and_its_verbs_stay_callable():
    code = (
        "import sys, inspect, scalelab as sl; print(sorted({'numpy', 'pandas', 'inspect'} & "
        "(set(sys.modules) - {'inspect'}))); import scalelab.fit.bootstrap as b; "
        "print(callable(sl.fit), callable(sl.tune), callable(sl.launch)); "
        "print('bootstrap' in inspect.signature(sl.fit).parameters, b.BootstrapSpec.__name__)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split("\n")[:3] == ["[]", "True True True", "True BootstrapSpec"]


TABLES = {
    "dict": lambda df: df.to_dict("list"),
    "records": lambda df: df.to_dict("records"),
    "named fields": lambda df: df.to_records(index=False),
    "index": lambda df: df.set_index(["n_params", "n_tokens"]),
    "pyarrow": lambda df: pa.Table.from_pandas(df),
    "record batch": lambda df: pa.RecordBatch.from_pandas(df),
}


@pytest.mark.parametrize("kind", TABLES)
def test_any_table_with_named_columns_is_fitted(frame, law, kind):
    assert sl.fit(TABLES[kind](frame), bootstrap=0, forecaster="law").fit.params == law


def test_a_table_of_another_library_comes_in_by_the_arrow_protocol(frame, law):
    class Other:
        def __arrow_c_stream__(self, requested_schema=None):
            return pa.Table.from_pandas(frame).__arrow_c_stream__(requested_schema)

    assert sl.fit(Other(), bootstrap=0, forecaster="law").fit.params == law


COLUMNS = {
    "interval": lambda n: pd.cut(pd.Series(np.arange(float(n))), 3),
    "period": lambda n: pd.period_range("2024-01", periods=n, freq="M"),
    "sparse": lambda n: pd.arrays.SparseArray([0] * n),
    "complex": lambda n: np.arange(n) + 1j,
    "mixed objects": lambda n: pd.Series([1, "a", None, {}] * n, dtype=object)[:n],
    "longdouble": lambda n: np.arange(n).astype(np.longdouble),
    "time zone": lambda n: pd.date_range("2024", periods=n, tz="UTC"),
    "categories": lambda n: pd.Categorical(["a", None] * n)[:n],
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_a_column_of_any_dtype_that_is_not_used_changes_nothing(frame, law, kind):
    other = frame.assign(x=COLUMNS[kind](len(frame)))
    assert sl.fit(other, bootstrap=0, forecaster="law").fit.params == law


def test_columns_of_other_dtypes_are_used_where_they_hold_numbers_or_text(frame, law):
    sparse = frame.assign(loss_nats=pd.arrays.SparseArray(frame.loss_nats))
    assert sl.fit(sparse, bootstrap=0, forecaster="law").fit.params == law
    months = pd.period_range("2024-01", periods=len(frame), freq="M")
    some = sl.load(frame.assign(month=months), where="month < '2024-04'")
    assert len(some) == 3
    with pytest.raises(sl.DataError, match="loss_nats"):
        sl.fit(frame.assign(loss_nats=frame.loss_nats + 1j))


REFUSED = {
    "array": (lambda df, r: sl.fit(df.to_numpy()), r"ndarray and shape .*columns=\['n_params'"),
    "series": (lambda df, r: sl.fit(df.n_params), "Series"),
    "list of files": (lambda df, r: sl.fit(["a.csv", "b.csv"]), "list"),
    "report": (lambda df, r: sl.fit(r), "FitReport"),
    "ragged dict": (lambda df, r: sl.fit({"a": [1], "b": [1, 2]}), "equal length"),
    "scalars": (lambda df, r: sl.fit({"a": 1}), "equal length"),
    "no columns": (lambda df, r: sl.fit(pd.DataFrame()), "without columns"),
    "frame and sweep": (lambda df, r: sl.fit(df, sweep="x"), "both a table and the sweep"),
    "mask": (lambda df, r: sl.fit(df, where=df.n_params > 1e8), r"df\[df.n_params > 1e8\]"),
    "mapping": (lambda df, r: sl.fit(df, mapping="n_params=N"), "a dict from our column name"),
    "bootstrap text": (lambda df, r: sl.fit(df, bootstrap="200"), "bootstrap=200"),
    "bootstrap bool": (lambda df, r: sl.fit(df, bootstrap=True), "bootstrap=200"),
    "bootstrap key": (lambda df, r: sl.fit(df, bootstrap={"seeds": 3}), "Did you mean 'seed'"),
    "loss": (lambda df, r: sl.fit(df, objective="mse"), "Did you mean objective='ls'"),
    "near loss": (lambda df, r: sl.fit(df, objective="hubber"), "Did you mean objective='huber'"),
    "objective": (lambda df, r: sl.fit(df, objective=1), "Objective"),
    "level": (lambda df, r: sl.fit(df, level="0.9"), "between 0 and 1"),
    "number": (lambda df, r: sl.predict(r, 1e24), r'Did you mean "C=1e\+24"'),
    "nothing": (lambda df, r: sl.predict(r), "nothing to predict"),
    "no report": (lambda df, r: sl.predict(df, "C=1e24"), "DataFrame to predict from"),
    "limits": (lambda df, r: sl.decide(r, 1e24), r"Limits\(flops=..\)"),
    "limit name": (lambda df, r: sl.decide(r, {"flop": 1e24}), "Did you mean 'flops'"),
    "source": (lambda df, r: sl.decide(df, {"flops": 1e24}), "DataFrame to decide from"),
    "candidates": (lambda df, r: sl.decide(r, {"flops": 1e24}, candidates=7e9), "7B:2T"),
    "sweep": (lambda df, r: sl.plan("isoflop"), "budgets"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_argument_is_an_error_in_three_parts(frame, report, case):
    call, words = REFUSED[case]
    with pytest.raises(sl.ScalelabError, match=words) as caught:
        call(frame, report)
    assert all(caught.value.as_dict().values())


def test_the_bootstrap_and_objective_come_in_short_forms(frame):
    def params(bootstrap, objective):
        return sl.fit(frame, bootstrap=bootstrap, objective=objective, forecaster="law").params

    full = params(sl.BootstrapSpec(k=40), sl.Objective(loss="ls"))
    assert params(40, "ls") == full
    assert params({"k": 40, "seed": 0}, {"loss": "ls"}) == full


def test_requests_come_as_text_dicts_keywords_and_frames(report):
    asked = pd.DataFrame({"N": [7e9, 1e9], "n_tokens": [np.nan, 2e10]})
    found = sl.predict(report, asked)
    others = [
        sl.predict(report, "N=7e9", "N=1e9,D=2e10"),
        sl.predict(report, ["N=7B", {"n_params": 1e9, "D": "20B"}]),
        pd.concat([sl.predict(report, N=7e9), sl.predict(report, N=1e9, D=2e10)]),
    ]
    for other in others:
        np.testing.assert_array_equal(found["loss_nats"], other["loss_nats"])
    third = sl.predict(report, {"N": 1e9 / 3})
    assert third.loc[0, "n_params"] == 1e9 / 3


def test_a_report_shows_its_answer_and_gravest_warning_in_a_few_lines(report):
    lines = repr(report).splitlines()
    assert len(lines) <= 12
    assert max(map(len, lines)) <= 160
    assert lines[0] == "FitReport: chinchilla law, 45 runs, status ok"
    assert lines[1].startswith("warning, extrapolation: ")
    assert any(line.startswith("forecasts by the average of ") for line in lines[2:])
    assert any(line.startswith("C=1e24: N ") for line in lines)


def test_reports_are_tables_and_pictures(frame, report):
    comparison = sl.compare(frame, forms=["chinchilla", "tied"], objectives="huber")
    decision = sl.decide(report, {"flops": "1e22"}, {"gpu": "h100"})
    replayed = sl.replay_adaptive(frame, frame[frame.flops > 5e19], budget_share=0.2)
    for shown in (report, comparison, decision, replayed):
        assert len(repr(shown).splitlines()) <= 12
        html = shown._repr_html_()
        assert html.startswith("<pre")
        assert 'src="data:image/png;base64,' in html
        assert "http" not in html
        assert len(html) < 300_000
        assert len(shown.to_frame()) > 0
    table = report.to_frame()
    assert table.loc["alpha", "value"] == report.params["alpha"].value
    assert table.loc["a", "low"] == report.derived["a"].low
    assert list(comparison.to_frame()["form"]) == [c.form for c in comparison.candidates]
    assert decision.to_frame().loc[0, "flops"] == pytest.approx(1e22, rel=1e-6)


def test_a_plan_is_a_table_of_its_runs(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("some text for a plan. " * 50_000)
    sweep = {"kind": "isoflop", "budgets": "1e12,1e13", "sizes": 4, "data": {"paths": [str(text)]}}
    plan = sl.plan(sweep, results=tmp_path)
    assert len(plan.to_frame()) == len(plan.rows)
    assert list(plan.to_frame()["n_params"]) == [row.n_params for row in plan.rows]
    assert repr(plan).startswith("Plan ")
    assert "data:image/png" in plan._repr_html_()
