"""What a new reader of the page asked: one interval, one advice, something of one's own, lines."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from scalelab_dashboard.views import runs
from streamlit.testing.v1 import AppTest

Opener = Callable[..., AppTest]
Said = Callable[[AppTest], str]


@pytest.fixture(scope="module")
def two_sweeps(stores: ModuleType, tmp_path_factory, narrow_runs) -> Path:
    results: Path = tmp_path_factory.mktemp("two")
    stores.generated(results, 100, name="other")
    rows = narrow_runs()
    columns = {
        "n_params": np.round(rows.n_params),
        "n_tokens": np.round(rows.n_tokens),
        "budget": rows.budget,
        "loss_nats": rows.loss_nats,
        "status": "done",
        "reason": None,
    }
    stores.publish(results, "narrow", pd.DataFrame(columns), is_added=True)
    return results


def test_overview_and_decide_state_one_interval_and_one_advice(
    page: Opener, said: Said, commands: Callable[[AppTest], list[str]], two_sweeps: Path
) -> None:
    overview = page(two_sweeps, page="Overview", sweep="narrow")
    texts = said(overview), said(page(two_sweeps, page="Decide", sweep="narrow"))
    losses = [re.search(r"loss [\d.]+ \[[\d.]+, [\d.]+\]", text) for text in texts]
    assert losses[0] is not None
    assert losses[1] is not None
    assert losses[0][0] == losses[1][0]
    assert all("interval of a new run, by the average of" in text for text in texts)
    known = r"\| (sizes drift away|no minimum inside|narrows the answer) \|$"
    reasons = re.findall(known, texts[0], flags=re.M)
    first = ["sizes drift away", "no minimum inside", "no minimum inside"]
    assert reasons == [*first, *["narrows the answer"] * (len(reasons) - 3)]
    sweeps = [block for block in commands(overview) if "sweep isoflop" in block]
    # the sizes that three budgets lack, then the row that narrows the answer most
    assert [each.count("--name narrow --extend --results") for each in sweeps] == [3, 1]
    assert re.search(r"\d+ runs, [\d.e]+ FLOP in all", texts[0])
    sizes = re.search(r"([\d.]+[MB]) \[([\d.]+[MB]), ([\d.]+[MB])\] parameters", texts[0])
    assert sizes is not None
    assert all(sizes[0] in text for text in texts)
    assert f"{sizes[2]} to {sizes[3]} (90 %)" in texts[1]


@pytest.mark.slow
def test_the_outliers_are_left_out_by_one_click_and_marked_in_runs(
    page: Opener,
    settle: Callable[[AppTest], None],
    said: Said,
    commands: Callable[[AppTest], list[str]],
    two_sweeps: Path,
) -> None:
    marked = page(two_sweeps, page="Runs", sweep="narrow").dataframe[0].value
    outliers = marked["run_id"][marked[runs.MARK] == "outlier"].tolist()
    assert len(outliers) == 3
    overview = page(two_sweeps, page="Overview", sweep="narrow")
    button = overview.button(key="exclude_outliers")
    assert button.label == "Exclude these 3 runs and refit"
    button.click().run()
    settle(overview)
    assert sorted(overview.query_params["exclude"].split(",")) == sorted(outliers)
    text = said(overview)
    sizes = re.search(
        r"Without 3 excluded runs: .* loss [\d.]+ \[([\d.]+), ([\d.]+)\] .*"
        r"With all runs: .* loss [\d.]+ \[([\d.]+), ([\d.]+)\]",
        text,
    )
    assert sizes is not None
    low, high, old_low, old_high = map(float, sizes.groups())
    assert high - low < 0.8 * (old_high - old_low)
    assert any(f"--exclude {','.join(sorted(outliers))}" in each for each in commands(overview))
    assert not any(each.key == "exclude_outliers" for each in overview.button)
    after = page(two_sweeps, page="Runs", sweep="narrow", exclude=outliers[0])
    assert (after.dataframe[0].value[runs.MARK] == "excluded").sum() == 1


def test_the_outliers_of_a_table_are_marked_where_its_rows_are(
    page: Opener, said: Said, narrow_runs, tmp_path: Path
) -> None:
    rows, file = narrow_runs(), tmp_path / "runs.csv"
    lines = [
        f"{n},{d},{x}" for n, d, x in zip(rows.n_params, rows.n_tokens, rows.loss_nats, strict=True)
    ]
    file.write_text("\n".join(("n_params,n_tokens,loss", *lines)) + "\n")
    shown = page(tmp_path / "none", file=file, page="Data")
    frame = shown.dataframe[0].value
    expected = [line for line in (16, 38, 51) if line in frame.index]
    assert expected
    assert frame.index[frame[runs.MARK] == "outlier"].tolist() == expected
    assert "Outliers of the fit: 16, 38, 51." in said(shown)


def test_compare_opens_on_a_sweep_of_the_user_or_else_on_the_nearest_law(
    page: Opener, said: Said, two_sweeps: Path, small_store: Path
) -> None:
    text = said(page(two_sweeps, page="Compare", sweep="narrow"))
    assert "other: the latest other sweep or table. It is shown until you choose." in text
    # the losses of the generated sweep are those of this law
    alone = said(page(small_store, page="Compare"))
    assert re.search(r"The published law besiroglu(-huber)?: its D/N is nearest", alone)


def test_the_rows_of_a_table_have_the_line_that_messages_name(page: Opener, tmp_path: Path) -> None:
    file = tmp_path / "runs.csv"
    file.write_text(
        "n_params,n_tokens,loss\n"
        + "".join(f"{10**i},{20 * 10**i},{4 - i / 10}\n" for i in range(6, 12))
    )
    shown = page(tmp_path / "none", file=file, page="Data").dataframe[0].value
    assert shown.index.name == "line"
    assert shown.index.tolist() == [2, 3, 4, 5, 6, 7]
