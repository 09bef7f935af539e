"""What a person does wrong, or finds empty: the page keeps its figure and says what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from scalelab_dashboard import queries
from scalelab_dashboard.app import VIEWS
from scalelab_dashboard.asked import usual_count
from scalelab_dashboard.fits import Failure
from scalelab_dashboard.views.candidates import training_time
from streamlit.testing.v1 import AppTest

from scalelab.forecast.decision import Candidate

Opener = Callable[..., AppTest]
Said = Callable[[AppTest], str]
Commands = Callable[[AppTest], list[str]]


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    """Return a table with three checkpoints of each run, the last of them on a law."""
    lines = ["run,n_params,n_tokens,loss"]
    for size in range(5):
        for length in range(5):
            n, d = 1e7 * 2.0**size, 1e9 * 3.0**length
            for share in (0.2, 0.5, 1.0):
                tokens = share * d
                loss = 1.8 + 480 / n**0.35 + 2000 / tokens**0.37 + 0.3 * (1 - share)
                lines.append(f"r{size}{length},{n:.0f},{tokens:.0f},{loss:.5f}")
    path = tmp_path / "checkpoints.csv"
    path.write_text("\n".join(lines))
    return path


@pytest.mark.slow
def test_an_empty_page_opens_a_public_table_by_name(
    page: Opener, said: Said, commands: Commands, tmp_path: Path
) -> None:
    test = page(tmp_path, page="Fit")
    assert "public runs" in said(test)
    assert any(option == "public:llama3" for option in test.selectbox("sweep").options)
    test.button("open_chinchilla").click().run()
    assert not test.exception
    assert test.header[0].value == "Overview"
    assert "public:chinchilla, a table of 245 rows" in said(test).replace("**", "")


def test_a_link_opens_a_public_table(page: Opener, commands: Commands, tmp_path: Path) -> None:
    test = page(tmp_path, page="Data", sweep="public:datablations")
    assert not test.exception
    assert test.selectbox("sweep").value == "public:datablations"


def test_a_table_has_no_runs_and_cost_views(page: Opener, tables: Path, tmp_path: Path) -> None:
    test = page(tmp_path, tables / "chinchilla" / "data.csv", page="Data")
    assert {"Runs", "Cost and energy"}.isdisjoint(test.radio("page").options)
    assert set(VIEWS) - {"Runs", "Cost and energy"} == set(test.radio("page").options)


def test_a_link_may_name_its_page_as_view_and_a_wrong_name_is_told(
    page: Opener, said: Said, tmp_path: Path
) -> None:
    for query in ({"view": "glossary"}, {"page": "GLOSSARY"}):
        test = page(tmp_path, sweep="public:llama3", **query)
        assert "no view" not in said(test)
        assert test.radio("page").value == "Glossary"
        assert "view" not in test.query_params
    assert "no view **Decode**" in said(page(tmp_path, sweep="public:llama3", page="Decode"))


def test_a_compute_is_carried_from_view_to_view(page: Opener, small_store: Path) -> None:
    test = page(small_store, page="Extrapolate")
    test.text_input("max_flops").set_value("3e22").run()
    for view in ("Compare", "Decide", "Extrapolate"):
        test.radio("page").set_value(view).run()
        assert test.text_input("max_flops").value == "3e22", view


def test_long_numbers_of_a_table_are_rounded() -> None:
    from scalelab_dashboard.ui import short_number

    given = ("6795600349.289497", "9.993852799709755e+18", "2.3456789012", "0.0001234567", "run-12")
    assert list(map(short_number, given)) == ["6.796B", "9.994e18", "2.34568", "1.235e-4", "run-12"]


def test_the_link_of_an_upload_says_what_it_cannot_restore(
    page: Opener, said: Said, small_store: Path
) -> None:
    test = page(small_store, page="Runs", sweep="mine.csv (opened here)")
    assert "only in the memory of that page" in said(test)
    assert "Upload it again" in said(test)


@pytest.mark.slow
def test_a_target_that_is_no_number_keeps_the_figure_and_has_its_error_at_the_field(
    page: Opener, said: Said, small_store: Path
) -> None:
    test = page(small_store, page="Extrapolate", max_flops="3e22")
    assert "With 3e22 FLOP" in said(test)
    test.text_input("max_flops").set_value("2 milion").run()
    assert "2 milion" in said(test)
    assert "With 3e22 FLOP" in said(test)
    assert test.get("plotly_chart")
    test.text_input("max_flops").set_value("2 million").run()
    assert "milion'" not in said(test)


@pytest.mark.slow
def test_a_target_without_an_answer_in_a_link_still_shows_the_figure(
    page: Opener, said: Said, small_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = queries.forecast
    wide = Failure(given="--predict 'C=3e22': too wide", allowed="narrow limits", do="Add runs.")
    monkeypatch.setattr(
        queries,
        "forecast",
        lambda key, asked, fit: wide if "3e22" in asked else answered(key, asked, fit),
    )
    test = page(small_store, page="Extrapolate", max_flops="3e22")
    text = said(test)
    assert "C=3e22': too wide" in text
    assert "--predict 'C=3e22" not in text
    assert "Below: C=1e22, 10x the largest run" in text
    assert "With 1e22 FLOP" in text
    assert test.get("plotly_chart")


@pytest.mark.slow
def test_a_typo_in_a_condition_keeps_the_page_and_names_the_likely_column(
    page: Opener, said: Said, small_store: Path
) -> None:
    test = page(small_store, page="Overview", holdout="n_parms > 1e9")
    assert "Did you mean n_params" in said(test)
    assert test.get("plotly_chart")


@pytest.mark.slow
def test_decide_answers_before_its_fields_with_loss_against_parameters(
    page: Opener, small_store: Path
) -> None:
    parts = list(page(small_store, page="Decide").main)
    kinds = [each.type for each in parts]
    answer = next(
        i for i, each in enumerate(parts) if str(getattr(each, "value", "")).startswith("#### With")
    )
    figure, fields = kinds.index("plotly_chart"), kinds.index("text_input")
    assert answer < figure < fields
    assert "parameters N, at" in parts[figure].proto.spec
    assert "100 runs from sweep generated" in parts[figure].proto.spec


@pytest.mark.slow
def test_a_wrong_limit_keeps_the_decision(page: Opener, said: Said, small_store: Path) -> None:
    test = page(small_store, page="Decide", max_flops="1e22")
    assert "With 1e22 FLOP" in said(test)
    test.text_input("max_flops").set_value("lots").run()
    assert "lots" in said(test)
    assert "With 1e22 FLOP" in said(test)
    test.text_input("named").set_value("7B").run()
    assert "With 1e22 FLOP" in said(test)
    assert test.get("plotly_chart")


@pytest.mark.slow
def test_checkpoints_are_left_out_in_one_click(
    page: Opener,
    settle: Callable[[AppTest], None],
    said: Said,
    commands: Commands,
    tmp_path: Path,
    checkpoints: Path,
) -> None:
    test = page(tmp_path, checkpoints)
    assert "checkpoints" in said(test)
    found = [button for button in test.button if button.label == "Keep the last row of each run"]
    assert len(found) == 1
    found[0].click().run()
    settle(test)
    assert not test.exception
    assert any("--last-of run" in command for command in commands(test))
    assert "a table of 25 rows" in said(test)
    assert test.query_params["last_of"] == "run"
    reloaded = page(tmp_path, checkpoints, last_of="run")
    assert any("--last-of run" in command for command in commands(reloaded))
    assert "a table of 25 rows" in said(reloaded)


def test_a_snapshot_that_cannot_be_read_is_named_and_tables_still_open(
    page: Opener, said: Said, tmp_path: Path
) -> None:
    from scalelab.store.live import snapshot_path

    path = snapshot_path(tmp_path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"not a database")
    test = page(tmp_path, page="Data", sweep="public:llama3")
    assert not test.exception
    assert "Got" in said(test)
    assert test.selectbox("sweep").value == "public:llama3"


@pytest.mark.parametrize(("flops", "count"), [(8e12, 1), (1.3e23, 128), (5.76e23, 1024)])
def test_the_usual_number_of_gpus_fits_the_size_of_the_runs(flops: float, count: int) -> None:
    assert usual_count(flops, "h100", 0.4) == count


def test_the_time_of_a_small_run_is_in_words() -> None:
    candidate = Candidate(
        n_params=1.0,
        n_stored=1.0,
        n_tokens=1.0,
        flops=6.0,
        loss_nats=1.0,
        low=None,
        high=None,
        pred_low=None,
        pred_high=None,
        miss=None,
        costs={"days": 2.29e-10},
        broken=(),
    )
    assert training_time(candidate) == "< 1 s"
