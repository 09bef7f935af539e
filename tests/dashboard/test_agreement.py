"""What the page says is what the command says that stands under it, to the last digit."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from scalelab.cli.main import main
from scalelab.fit.select import FORMS
from scalelab.units import format_quantity

Opener = Callable[..., AppTest]
Said = Callable[[AppTest], str]
Teller = Callable[[AppTest], dict[str, Any]]
Commands = Callable[[AppTest], list[str]]


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str], commands: Commands) -> Teller:
    """Return a runner of the last command that a page shows, with its JSON."""

    def run(test: AppTest) -> dict[str, Any]:
        words = shlex.split(commands(test)[-1])
        assert words[0] == "scalelab"
        capsys.readouterr()
        assert main([*words[1:], "--json"]) == 0
        answer: dict[str, Any] = json.loads(capsys.readouterr().out)
        return answer

    return run


def _six(value: float) -> str:
    far = value != 0 and not 1e-3 <= abs(value) < 1e6
    return format_quantity(value, 4) if far else f"{value:.6g}"


def slow(**choices: str) -> Any:
    """Return choices that only `make test-all` tries: each takes a fit by page and by command."""
    return pytest.param(choices, marks=pytest.mark.slow)


CHOICES = (
    {},
    slow(count_n="kaplan", count_c="6nd", level="80"),
    {"form": "tied", "holdout": "n_params > 1e9", "level": "95"},
)


@pytest.mark.parametrize("choices", CHOICES, ids=["default", "conventions", "form-and-holdout"])
def test_fit_and_overview_say_what_fit_prints(
    page: Opener,
    said: Said,
    commands: Commands,
    printed: Teller,
    small_store: Path,
    choices: dict[str, str],
) -> None:
    test = page(small_store, page="Fit", **choices)
    answer = printed(test)
    shown = test.dataframe[0].value.set_index("parameter")
    every = {**answer["params"], **answer["derived"]}
    assert list(shown.index) == list(every)
    for name, interval in every.items():
        ends = [interval[key] for key in ("value", "low", "high")]
        expected = ["–" if end is None else _six(end) for end in ends]
        assert shown.loc[name].tolist() == expected, name
    for warning in answer["warnings"]:
        assert warning["message"].replace("`", "") in said(test).replace("`", "")
    head = answer["headline"]
    overview_page = page(small_store, page="Overview", **choices)
    asked = commands(overview_page)[0]
    assert set(shlex.split(head["next"])) == set(shlex.split(asked))
    overview = said(overview_page)
    assert f"#### {head['sentence']}" in overview
    assert f"-badge[{head['verdict']}]" in overview
    for code in head["warnings"]:
        assert code.replace("_", " ") in overview
    for name in ("a", "b"):
        interval = answer["frontier"][0][name]
        assert f"### {interval['value']:.3f}" in overview
        assert f"{interval['low']:.3f} to {interval['high']:.3f}" in overview


@pytest.mark.parametrize(
    "choices",
    [
        {"max_flops": "3e24"},
        {"target": "7B", "by": "Parameters N", "level": "80"},
        slow(target="2T", by="Tokens D"),
        slow(target="100K", by="GPU-hours", gpu="a100"),
        slow(target="2M", by="Money", mfu="0.5"),
    ],
    ids=lambda choices: choices.get("by", "compute"),
)
def test_extrapolate_says_what_predict_prints(
    page: Opener, said: Said, printed: Teller, small_store: Path, choices: dict[str, str]
) -> None:
    test = page(small_store, page="Extrapolate", **choices)
    forecast = printed(test)["predictions"][0]
    text = said(test)
    for key in ("n_params", "n_tokens"):
        value, low, high = (forecast[key + end] for end in ("", "_low", "_high"))
        assert f"### {format_quantity(value)}" in text
        if low != high:
            assert f"{format_quantity(low)} to {format_quantity(high)}" in text
    assert f"### {forecast['loss_nats']:.4f}" in text
    share = f"{choices.get('level', '90')} %"
    for key, name in (("", "confidence"), ("pred_", "prediction")):
        low, high = forecast[f"{key}low"], forecast[f"{key}high"]
        assert f"{low:.4f} to {high:.4f} ({share} {name} interval)" in text


@pytest.mark.parametrize(
    "choices",
    [
        {"max_flops": "1e22", "max_usd": "9K", "serve": "1T", "count_n": "kaplan"},
        slow(max_kg_co2="2K", grid_co2="50", price="$2.50", device="b200"),
        slow(max_flops="1e22", grid_co2="0", price="0"),
        {"law": "besiroglu", "max_flops": "5.76e23", "named": "7B:2T, 70B:1.4T"},
        {"law": "besiroglu", "max_flops": "1e24", "max_unique_tokens": "1B"},
        slow(),
    ],
    ids=["money", "carbon", "for nothing", "constants", "repeated", "no limit"],
)
def test_decide_says_what_decide_prints(
    page: Opener, said: Said, printed: Teller, small_store: Path, choices: dict[str, str]
) -> None:
    test = page(small_store, page="Decide", **choices)
    answer = printed(test)
    text, best = said(test), answer["best"]
    assert f"### {format_quantity(best['n_params'])}" in text
    assert f"### {format_quantity(best['n_tokens'])}" in text
    assert f"### {best['loss_nats']:.4f}" in text
    if best["pred_low"] is not None:
        assert f"{best['pred_low']:.4f} to {best['pred_high']:.4f}" in text
    for name in answer["binding"]:
        assert f"{answer['relaxing_by_10_percent_saves_nats'][name]:.4f} nats" in text
    for warning in answer["warnings"]:
        assert warning["message"].replace("`", "") in text.replace("`", "")
    losses = [f"{c['loss_nats']:.4f}" for c in answer["candidates"]]
    few = test.dataframe[0].value
    assert few["loss, nats/token"].tolist() == losses
    # the table fits a page of 900 px
    assert len(few.columns) <= 6
    shown = test.toggle(key="all_columns").set_value(True).run().dataframe[0].value
    assert shown["loss, nats/token"].tolist() == losses
    assert ("exceeds" in few) == bool((shown["exceeds"] != "").any())
    assert shown["kg CO2"].tolist() == [
        format_quantity(c["kg_co2"] or 0.0) for c in answer["candidates"]
    ]


def test_other_forms_are_ranked_as_compare_ranks_them(
    page: Opener, said: Said, commands: Commands, few: Path
) -> None:
    # The worker calls the verb behind `--compare`; to call it once more would take as long again.
    test = page(few, page="Fit", view="Other forms")
    assert commands(test)[-1].endswith("--compare")
    shown = test.dataframe[0].value
    errors = shown["mean error, %"].tolist()
    assert errors == sorted(errors)
    assert {label.split(",")[0] for label in shown["form and objective"]} == set(FORMS)
    best = shown["form and objective"].iloc[0]
    assert f"{best} predicts the next budget best ({errors[0]:.2f} % mean error)" in said(test)


def test_leaving_out_each_budget_ends_in_a_figure(page: Opener, few: Path) -> None:
    test = page(few, page="Fit", view="Leave one budget out")
    assert not test.warning
    alt = test.get("plotly_chart")[0].proto.alt
    assert alt.startswith("Leaving out each of 4 budgets in turn")


def test_the_grid_and_every_rate_are_stated_and_can_be_given(
    page: Opener, said: Said, small_store: Path
) -> None:
    from scalelab.theory.hardware import GRID_SOURCE, WORLD_GRAMS_PER_KWH

    by_default = said(page(small_store, page="Cost and energy"))
    assert f"{WORLD_GRAMS_PER_KWH:g} g CO2-equivalent per kWh: {GRID_SOURCE}." in by_default
    given = page(small_store, page="Cost and energy", grid="50.0", watts="300.0", usd="1.5")
    assert "50 g CO2-equivalent per kWh: given on this page." in said(given)
    spent = given.dataframe[0].value.set_index("")["spent on results"]
    hours = float(sum(stored_hours(small_store)))
    assert spent["Energy, kWh"] == format_quantity(hours * 0.3)
    assert spent["CO2, kg CO2-equivalent"] == format_quantity(hours * 0.015)


def stored_hours(results: Path) -> list[float]:
    import duckdb

    with duckdb.connect(str(results / "scalelab.duckdb"), read_only=True) as connection:
        return [row[0] for row in connection.execute("SELECT wall_s / 3600 FROM runs").fetchall()]


@pytest.fixture(scope="module")
def few(stores: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a results folder with four budgets of six runs, on which forms are quick to fit."""
    results: Path = tmp_path_factory.mktemp("few")
    stores.generated(results, 24, name="few")
    return results
