"""Every view on every kind of store, by Streamlit's own runner: what it says, and agrees with."""

from __future__ import annotations

import gc
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import streamlit as st
from scalelab_dashboard import queries
from scalelab_dashboard.app import VIEWS
from scalelab_dashboard.views.runs import PAGE_ROWS
from streamlit.testing.v1 import AppTest

from scalelab import api
from scalelab.store.run_status import RunStatus, budget_statuses
from scalelab.store.status import SweepStatus
from scalelab.sweep.spec import sweep_from_mapping

Opener = Callable[..., AppTest]
Said = Callable[[AppTest], str]
Commands = Callable[[AppTest], list[str]]


@pytest.mark.parametrize("view", list(VIEWS))
def test_every_view_renders_on_an_empty_store_and_says_what_to_do(
    page: Opener, said: Said, commands: Commands, tmp_path: Path, view: str
) -> None:
    test = page(tmp_path, page=view)
    assert not test.exception
    assert test.header[0].value == view
    assert "scalelab" in "\n".join(commands(test)) + said(test)


@pytest.mark.parametrize("view", list(VIEWS))
def test_every_view_renders_on_a_finished_sweep(page: Opener, small_store: Path, view: str) -> None:
    test = page(small_store, page=view)
    assert not test.exception
    assert test.header[0].value == view


@pytest.mark.slow
def test_the_loss_of_every_view_is_the_chosen_metric(
    page: Opener, said: Said, commands: Commands, tmp_path: Path
) -> None:
    table = tmp_path / "runs.csv"
    rows = [
        f"{n:.6g},{c / 6 / n:.6g},{c},{1.7 + 400 / n**0.34 + 410 / (c / 6 / n) ** 0.28:.6f},"
        f"{0.9 + 300 / n**0.36 + 150 / (c / 6 / n) ** 0.24:.6f}"
        for c in (1e18, 1e19, 1e20)
        for n in (c / 120) ** 0.5 * 2.0 ** np.arange(-2, 3)
    ]
    table.write_text("\n".join(["n_params,n_tokens,budget,loss,loss_code", *rows]) + "\n")
    test = page(tmp_path, table, page="Domains")
    assert not test.exception
    assert "code" in said(test)
    assert "metrics disagree on the compute-optimal D/N" in said(test)
    assert commands(test)[-1].endswith("--metric all")
    fitted = page(tmp_path, table, page="Overview", metric="code")
    assert not fitted.exception
    assert "loss on code" in said(fitted)
    reading = [line for line in commands(fitted) if not line.startswith("scalelab sweep")]
    assert reading
    assert [line for line in reading if "--metric code" not in line] == []
    assert not page(tmp_path, table, page="Overview", metric="bpb:nothing").exception


@pytest.mark.parametrize("view", list(VIEWS))
def test_every_view_renders_on_a_sweep_under_way(
    page: Opener, said: Said, stores: ModuleType, tmp_path: Path, view: str
) -> None:
    stores.running(tmp_path)
    test = page(tmp_path, page=view)
    assert not test.exception
    if view == "Overview":
        assert "66 of 80 runs are done" in str(test.get("progress")[0].proto)
        assert "retry half-done" in said(test)


def test_a_sweep_that_runs_shows_its_curves_verdicts_and_lost_runs(
    page: Opener,
    said: Said,
    stores: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stores.running(tmp_path)
    runs = [
        RunStatus(run_id=f"r{n}", state="done", budget_flops=3e18, n_params=n, loss_nats=loss)
        for n, loss in ((7_000_000, 3.5), (13_000_000, 3.2), (21_000_000, 3.3))
    ]
    more = {"budget_flops": 7e18, "n_steps": 50, "flops": 7e18}
    runs.append(
        RunStatus(run_id="slow", state="running", n_params=33_000_000, silent_s=400.0, **more)
    )
    runs.append(
        RunStatus(run_id="lost", state="failed", n_params=9_000_000, reason="<b>memory", **more)
    )
    budgets = budget_statuses(runs)
    status = SweepStatus(
        sweep="half-done",
        kind="isoflop",
        runs=tuple(runs),
        counts={"done": 3, "running": 1, "failed": 1},
        valleys=budgets,
        eta_s=150.0,
        worker_hours=1.0,
        wasted_hours=0.0,
        advice=("see `scalelab logs lost`.",),
    )
    monkeypatch.setattr(queries, "status", lambda *_: status)
    test = page(tmp_path)
    assert not test.exception
    text = said(test)
    assert "3 done, 1 running, 1 failed" in text
    assert "about 2.5 min left" in str(test.get("progress")[0].proto)
    assert "silent for 6.7 min" in text
    assert ":red[failed]" in text
    assert "<b>memory" in text
    assert ":green[bracketed]" in text
    assert "too few sizes so far" in text
    assert f"scalelab logs lost --results {tmp_path}" in text
    names = [str(each.proto) for each in test.get("plotly_chart")]
    assert any("3 done, 1 silent, 1 without a result" in name for name in names)


@pytest.mark.parametrize("view", list(VIEWS))
def test_every_view_renders_on_a_table(
    page: Opener, tables: Path, tmp_path: Path, view: str
) -> None:
    test = page(tmp_path, tables / "chinchilla" / "data.csv", page=view)
    assert not test.exception


def test_a_sweep_without_a_finished_run_says_how_to_go_on(
    page: Opener, said: Said, commands: Commands, stores: ModuleType, tmp_path: Path
) -> None:
    import duckdb

    stores.generated(tmp_path, 40)
    with duckdb.connect(str(tmp_path / "scalelab.duckdb")) as connection:
        connection.execute("UPDATE runs SET status = 'failed', loss_nats = NULL")
    test = page(tmp_path)
    assert not test.exception
    assert "No run of this sweep is done yet: 40 failed" in said(test)
    assert "scalelab resume generated" in commands(test)[0]


def test_the_convention_changes_the_fit_and_the_command(
    page: Opener, said: Said, commands: Commands, small_store: Path
) -> None:
    test = page(small_store, count_n="kaplan", count_c="6nd")
    assert "--map flops=flops_6nd,n_params=n_params_kaplan" in commands(test)[-1]
    by_default = page(small_store)
    assert said(test) != said(by_default)
    assert "N counted without embeddings" in said(test)


def test_the_saved_run_is_a_sweep_file(small_store: Path) -> None:
    from scalelab_dashboard.assess import run_as_sweep

    from scalelab.api.forecasts import forecasts

    report = api.fit(results=small_store)
    forecast = forecasts(report, "C=1e22")[0]
    text = run_as_sweep(forecast, "scalelab fit\n--predict C=1e22")
    spec = sweep_from_mapping(tomllib.loads(text), source="the test")
    assert forecast.n_params is not None
    assert spec.n_params == pytest.approx((forecast.n_params.value,), rel=1e-5)


def test_a_wrong_target_is_told_and_not_raised(page: Opener, said: Said, small_store: Path) -> None:
    test = page(small_store, page="Extrapolate", max_flops="many")
    assert not test.exception
    assert "many" in said(test)


def test_registered_forecasts_have_their_scores_on_the_page(
    page: Opener, said: Said, stores: ModuleType, tmp_path: Path
) -> None:
    assert "None yet." in said(page(tmp_path, page="Extrapolate"))
    stores.generated(tmp_path, 100)
    rows = api.load(results=tmp_path)
    run, earlier = rows.iloc[rows.flops.argmax()], rows[rows.flops < rows.flops.max()]
    point = f"N={run.n_params:.0f},D={run.n_tokens:.0f}"
    report = api.fit(earlier, predict=[point, "N=1e12,D=1e13"], bootstrap=20)
    kept = api.register(report, "late", results=tmp_path)
    assert len(kept.forecasts[0].begun) == 1
    test = page(tmp_path, page="Extrapolate")
    assert not test.exception
    means, scores = (element.value for element in test.dataframe[-2:])
    assert means["registered"].tolist() == ["after the fact"]
    (predicted,) = scores["predicted"]
    assert predicted == report.forecasts[0].loss_nats
    assert means["mean error, %"][0] == pytest.approx(100 * abs(predicted / run.loss_nats - 1))
    assert "1 forecast without a run yet: late (N=1e12,D=1e13)" in said(test)


def test_what_a_view_loaded_is_not_gone_through_after_every_run_of_the_script(
    page: Opener, small_store: Path
) -> None:
    gc.unfreeze()
    st.cache_resource.clear()
    page(small_store, page="Data")
    assert gc.get_freeze_count() > 100_000
    assert len(gc.get_objects()) < gc.get_freeze_count()


def test_many_runs_come_in_pages_of_one_order(
    page: Opener, said: Said, stores: ModuleType, tmp_path: Path
) -> None:
    stores.generated(tmp_path, PAGE_ROWS + 500)
    first = page(tmp_path, page="Runs", order="lowest loss")
    second = page(tmp_path, page="Runs", order="lowest loss", part="2")
    assert not first.exception
    assert not second.exception
    upper, lower = first.dataframe[0].value["loss_nats"], second.dataframe[0].value["loss_nats"]
    assert (len(upper), len(lower)) == (PAGE_ROWS, 500)
    assert upper.max() <= lower.min()
    assert "2,001 to 2,500 are on this page" in said(second)
    found = page(tmp_path, page="Runs", part="2", find="no such run")
    assert not found.exception


def test_hostile_text_is_shown_as_it_is(
    page: Opener, said: Said, stores: ModuleType, tmp_path: Path
) -> None:
    stores.running(tmp_path)
    test = page(tmp_path, page="Runs")
    assert not test.exception
    shown = test.dataframe[0].value
    assert stores.HOSTILE in set(shown["reason"].dropna())
    held = page(tmp_path, page="Overview", holdout="1); DROP TABLE runs; --")
    assert not held.exception
    assert "several statements" in said(held) or "Got" in said(held)
    assert len(api.load(results=tmp_path)) == 66


def test_a_table_is_read_with_the_options_of_fit(
    page: Opener,
    said: Said,
    commands: Commands,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = tmp_path / "runs.csv"
    rows = [
        f"{n:.6g},{d:.6g},{lr},{2.5 + 400 / n**0.34 + 410 / d**0.28 + extra:.6f}"
        for n in (1e7, 3e7, 1e8)
        for d in (1e9, 4e9, 1.6e10)
        for lr, extra in ((1e-3, 0.0), (4e-3, 0.25))
    ]
    table.write_text("\n".join(["n_params,n_tokens,lr,val_bits", *rows]) + "\n")
    monkeypatch.setenv("SCALELAB_DASHBOARD_MAP", "loss_nats=val_bits")
    options = {"loss_unit": "bits", "best_of": ["lr"]}
    monkeypatch.setenv("SCALELAB_DASHBOARD_READING", json.dumps(options))
    test = page(tmp_path, table, page="Data")
    assert not test.exception
    assert "9 usable rows" in said(test)
    shown = "\n".join(commands(test))
    assert "--loss-unit bits --best-of lr" in shown
    # The widgets change it, and an invalid value is an error on the page.
    test.text_input(key="read_best").set_value("").run()
    assert "18 usable rows" in said(test)
    assert "--best-of" not in "\n".join(commands(test))
    test.text_input(key="read_best").set_value("lr,,").run()
    assert not test.exception
    assert "names of columns with commas" in said(test) + str([e.value for e in test.error])
    fitted = page(tmp_path, table, page="Fit")
    assert not fitted.exception
    words = "\n".join(commands(fitted))
    assert f"--from {table} --map loss_nats=val_bits --loss-unit bits --best-of lr" in words
